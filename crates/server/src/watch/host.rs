//! What the hub needs of the server around it, so that tests can stand in for that.

use crate::encode::Ids;
use crate::shared::Shared;
use engine::history::{Event, Part};
use std::sync::Arc;
use std::time::Duration;
use wire::{Frame, Outbound, Refused};

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revisions {
    pub(crate) current: i64,
    pub(crate) compacted: i64,
}

/// Server and store.
pub(crate) trait Host {
    fn ids(&self) -> &Ids;

    /// Answers of watches that asked for fragments are split at this size.
    fn fragment_bytes(&self) -> usize;

    /// Watches that there may be in all.
    fn max_watches(&self) -> usize;

    fn revisions(&self) -> Revisions;

    /// Appends events from revision `from` on; returns where the store is, and whether there are
    /// more.
    fn read(&self, from: i64, part: Part, events: &mut Vec<Arc<Event>>) -> (Revisions, bool);

    /// Watches of the whole server.
    fn watchers(&self) -> usize;

    /// This worker has so many watchers more, and so many more that are behind.
    fn count_watchers(&self, more: i64, more_behind: i64);

    fn stream_opened(&self);

    fn stream_closed(&self);

    /// Events were handed to a watcher's stream.
    fn sent(&self, events: usize, took: Duration);

    /// Progress notifications were handed to a stream.
    fn notified(&self, took: Duration);

    /// A watcher missed what had been compacted.
    fn cancelled_slow(&self);
}

impl Host for Arc<Shared> {
    fn ids(&self) -> &Ids {
        &self.ids
    }

    fn fragment_bytes(&self) -> usize {
        self.settings.max_message_bytes
    }

    fn max_watches(&self) -> usize {
        self.settings.max_watches.max(0) as usize
    }

    fn revisions(&self) -> Revisions {
        let engine = self.store.lock();
        Revisions {
            current: engine.revision(),
            compacted: engine.compact_revision(),
        }
    }

    fn read(&self, from: i64, part: Part, events: &mut Vec<Arc<Event>>) -> (Revisions, bool) {
        let engine = self.store.lock();
        let more = engine.events_since(from, part, events);
        let revisions = Revisions {
            current: engine.revision(),
            compacted: engine.compact_revision(),
        };
        (revisions, more)
    }

    fn watchers(&self) -> usize {
        self.watches.open().max(0) as usize
    }

    fn count_watchers(&self, more: i64, more_behind: i64) {
        if more != 0 {
            self.watches.opened(more);
        }
        if more_behind != 0 {
            self.watches.fell_behind(more_behind);
        }
    }

    fn stream_opened(&self) {
        self.metrics.watch_streams.inc();
    }

    fn stream_closed(&self) {
        self.metrics.watch_streams.dec();
    }

    fn sent(&self, events: usize, took: Duration) {
        let took_s = took.as_secs_f64();
        self.metrics.watch_events.add(events as u64);
        self.metrics.watch_send.observe_s(took_s);
        self.metrics
            .watch_send_per_event
            .observe_s(took_s / events.max(1) as f64);
    }

    fn notified(&self, took: Duration) {
        self.metrics.watch_progress_send.observe(took);
    }

    fn cancelled_slow(&self) {
        self.metrics.watch_cancelled_slow.inc();
    }
}

/// A stream's queue of answers.
pub(crate) trait Sink {
    fn try_send(&self, frame: Frame) -> Result<(), Refused>;

    /// For short control answers, whatever the limit.
    fn push(&self, frame: Frame);

    fn queued_bytes(&self) -> usize;

    fn limit_bytes(&self) -> usize;
}

impl Sink for Outbound {
    fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        Outbound::try_send(self, frame)
    }

    fn push(&self, frame: Frame) {
        Outbound::push(self, frame);
    }

    fn queued_bytes(&self) -> usize {
        Outbound::queued_bytes(self)
    }

    fn limit_bytes(&self) -> usize {
        Outbound::limit_bytes(self)
    }
}
