//! History: one append-only ring of events in revision order. A watcher is a cursor on
//! it; it costs the store nothing and cannot hold a writer up.

use crate::record::Revision;
use crate::tail::Key;
use std::collections::VecDeque;
use std::sync::Arc;

/// One change to one key, as a watcher sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// When it became visible.
    pub revision: Revision,
    /// The key.
    pub key: Key,
    /// The new version; `None` for a delete.
    pub tail: Option<Arc<[u8]>>,
    /// The version before it, `None` for a create.
    pub prev: Option<Arc<[u8]>>,
}

impl Event {
    /// Bytes that dropping this event, and the version that it replaced, would free.
    pub fn history_bytes(&self) -> usize {
        EVENT_OVERHEAD_BYTES
            + self
                .prev
                .as_ref()
                .map_or(0, |p| p.len() + crate::index::VERSION_OVERHEAD_BYTES)
            + if self.tail.is_none() {
                crate::index::VERSION_OVERHEAD_BYTES
            } else {
                0
            }
    }
}

/// Bytes that an event in the ring costs beyond the versions that it shares.
pub const EVENT_OVERHEAD_BYTES: usize = 96;

/// The ring.
#[derive(Debug, Default)]
pub struct History {
    events: VecDeque<Arc<Event>>,
}

impl History {
    /// Number of events retained.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing is retained.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Bytes that the ring itself costs.
    pub fn bytes(&self) -> usize {
        self.events.len() * EVENT_OVERHEAD_BYTES
    }

    /// Appends an event; revisions must rise.
    pub fn push(&mut self, event: Event) {
        debug_assert!(
            self.events
                .back()
                .is_none_or(|e| e.revision < event.revision)
        );
        self.events.push_back(Arc::new(event));
    }

    /// The events from revision `from` on, at most about `max_events` of them, but never
    /// a part of a revision.
    pub fn since(&self, from: i64, max_events: usize, out: &mut Vec<Arc<Event>>) {
        let start = self.events.partition_point(|e| e.revision.main < from);
        let mut last = None;
        for e in self.events.range(start..) {
            if out.len() >= max_events && last != Some(e.revision.main) {
                break;
            }
            last = Some(e.revision.main);
            out.push(e.clone());
        }
    }

    /// The event at the front and the number of events behind positions visited.
    pub(crate) fn get(&self, i: usize) -> Option<&Arc<Event>> {
        self.events.get(i)
    }

    /// Drops the event at the front.
    pub(crate) fn pop_front(&mut self) {
        self.events.pop_front();
        if self.events.capacity() > 4 * self.events.len() + 1024 {
            self.events.shrink_to(2 * self.events.len());
        }
    }

    /// The lowest revision to compact at so that about `bytes` of history go.
    pub fn revision_to_free(&self, bytes: usize) -> Option<i64> {
        let mut freed = 0;
        for e in &self.events {
            freed += e.history_bytes();
            if freed >= bytes {
                return Some(e.revision.main);
            }
        }
        self.events.back().map(|e| e.revision.main)
    }
}
