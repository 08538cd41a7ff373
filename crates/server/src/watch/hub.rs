//! A worker's watches. Synced ones share one cursor on history, moved by [`Hub::pump`];
//! each of the others ("behind": started in the past, or its client is slow) has its own
//! and is served by its stream's task when the client has room.

use super::encode::{Batch, control};
use crate::encode::Ids;
use crate::shared::Shared;
use bytes::Bytes;
use engine::history::Event;
use engine::op::KeyRange;
use engine::watch::RangeSet;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use wire::Outbound;

/// Events taken from the store at a time.
const PUMP_EVENTS: usize = 1024;
/// Events that a watcher which is behind scans at a time.
const CATCH_UP_EVENTS: usize = 512;

/// Up to so many watches of a closing stream are taken out one by one, more in one pass.
const ONE_BY_ONE: usize = 16;

/// What a client asked for.
#[derive(Clone, Debug)]
pub(super) struct Watcher {
    pub(super) stream: u64,
    pub(super) watch_id: i64,
    pub(super) range: KeyRange,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
    /// Wants progress notifications.
    pub(super) progress_notify: bool,
    /// Nothing was sent since the last tick of the notification timer.
    pub(super) quiet: bool,
    /// The next revision that it has not been sent; events below are not for it.
    pub(super) next_revision: i64,
    pub(super) synced: bool,
}

impl Watcher {
    fn wants(&self, e: &Event) -> bool {
        e.revision.main >= self.next_revision
            && !(if e.tail.is_some() {
                self.no_put
            } else {
                self.no_delete
            })
    }
}

/// A watch stream's part of the hub.
struct Stream {
    outbound: Outbound,
    watchers: HashMap<i64, u64>,
    next_id: i64,
    behind: VecDeque<u64>,
    progress_wanted: bool,
    wake: Arc<tokio::sync::Notify>,
}

/// All watches of one worker.
pub(crate) struct Hub {
    shared: Arc<Shared>,
    /// Everything below was sent to the synced watchers.
    next_revision: i64,
    ranges: RangeSet,
    watchers: HashMap<u64, Watcher>,
    streams: HashMap<u64, Stream>,
    next_key: u64,
}

impl Hub {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let next_revision = shared.store.lock().revision() + 1;
        Hub {
            shared,
            next_revision,
            ranges: RangeSet::default(),
            watchers: HashMap::new(),
            streams: HashMap::new(),
            next_key: 1,
        }
    }

    fn ids(&self) -> &Ids {
        &self.shared.ids
    }

    pub(super) fn open_stream(
        &mut self,
        outbound: Outbound,
        wake: Arc<tokio::sync::Notify>,
    ) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        let stream = Stream {
            outbound,
            watchers: HashMap::new(),
            next_id: 0,
            behind: VecDeque::new(),
            progress_wanted: false,
            wake,
        };
        self.streams.insert(key, stream);
        self.shared.metrics.watch_streams.inc();
        key
    }

    pub(super) fn close_stream(&mut self, key: u64) {
        let Some(stream) = self.streams.remove(&key) else {
            return;
        };
        let ids: HashSet<u64> = stream.watchers.into_values().collect();
        let many = ids.len() > ONE_BY_ONE;
        if many {
            self.ranges.remove_all(&ids);
        }
        for id in &ids {
            if let Some(w) = self.watchers.remove(id)
                && w.synced
                && !many
            {
                self.ranges.remove(&w.range, *id);
            }
        }
        self.shared.watchers(-(ids.len() as i64));
        self.shared.watchers_behind(-(stream.behind.len() as i64));
        self.shared.metrics.watch_streams.dec();
    }

    fn forget(&mut self, id: u64) {
        let Some(w) = self.watchers.remove(&id) else {
            return;
        };
        if w.synced {
            self.ranges.remove(&w.range, id);
        } else {
            self.shared.watchers_behind(-1);
            if let Some(s) = self.streams.get_mut(&w.stream) {
                s.behind.retain(|&b| b != id);
            }
        }
        self.shared.watchers(-1);
    }

    /// Adds a watcher with the id asked for (0: the next free one). Err: the id is taken.
    pub(super) fn add(&mut self, mut w: Watcher) -> Result<i64, ()> {
        let id = self.next_key;
        self.next_key += 1;
        let Some(stream) = self.streams.get_mut(&w.stream) else {
            return Err(());
        };
        if w.watch_id == 0 {
            while stream.watchers.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            w.watch_id = stream.next_id;
            stream.next_id += 1;
        } else if stream.watchers.contains_key(&w.watch_id) {
            return Err(());
        }
        let watch_id = w.watch_id;
        stream.watchers.insert(watch_id, id);
        w.synced = w.next_revision >= self.next_revision;
        if w.synced {
            self.ranges.insert(w.range.clone(), id);
        } else {
            stream.behind.push_back(id);
            self.shared.watchers_behind(1);
        }
        self.watchers.insert(id, w);
        self.shared.watchers(1);
        Ok(watch_id)
    }

    /// Cancels a watcher; false if there is none.
    pub(super) fn cancel(&mut self, stream: u64, watch_id: i64) -> bool {
        let id = self
            .streams
            .get_mut(&stream)
            .and_then(|s| s.watchers.remove(&watch_id));
        match id {
            Some(id) => {
                self.forget(id);
                true
            }
            None => false,
        }
    }

    /// Sends new events to the synced watchers. Returns whether there may be more.
    pub(crate) fn pump(&mut self) -> bool {
        let mut events = Vec::new();
        let (head, compacted) = {
            let engine = self.shared.store.lock();
            if !self.watchers.is_empty() {
                engine.events_since(self.next_revision, PUMP_EVENTS, &mut events);
            }
            (engine.revision(), engine.compact_revision())
        };
        if self.next_revision < compacted && !self.watchers.is_empty() {
            self.fall_behind(head);
            return false;
        }
        let next = events.last().map_or(head, |e| e.revision.main) + 1;
        if next <= self.next_revision {
            return false;
        }
        self.next_revision = next;
        let batch = Batch::new(events);
        let mut wanted: HashMap<u64, Vec<usize>> = HashMap::new();
        let mut order = Vec::new();
        let mut found = Vec::new();
        for (i, e) in batch.events().iter().enumerate() {
            found.clear();
            self.ranges.find(&e.key, &mut found);
            for &id in &found {
                if self.watchers.get(&id).is_some_and(|w| w.wants(e)) {
                    wanted
                        .entry(id)
                        .or_insert_with(|| {
                            order.push(id);
                            Vec::new()
                        })
                        .push(i);
                }
            }
        }
        for id in order {
            let Some(indices) = wanted.remove(&id) else {
                continue;
            };
            self.send_synced(id, &batch, &indices, next - 1);
        }
        next <= head
    }

    /// History was compacted before this worker had sent it: its watchers find out from
    /// their own cursors, each with the answer that it is due.
    fn fall_behind(&mut self, head: i64) {
        let missed = self.next_revision;
        self.next_revision = head + 1;
        for (&id, w) in &mut self.watchers {
            if !w.synced || w.next_revision > head {
                continue;
            }
            w.next_revision = w.next_revision.max(missed);
            w.synced = false;
            self.ranges.remove(&w.range, id);
            self.shared.watchers_behind(1);
            if let Some(s) = self.streams.get_mut(&w.stream) {
                s.behind.push_back(id);
                s.wake.notify_one();
            }
        }
    }

    fn send_synced(&mut self, id: u64, batch: &Batch, indices: &[usize], revision: i64) {
        let Some(w) = self.watchers.get_mut(&id) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&w.stream) else {
            return;
        };
        self.shared.metrics.watch_events.add(indices.len() as u64);
        let started = Instant::now();
        let sent = batch.send(&self.shared, w, indices, revision, &stream.outbound);
        let took_s = started.elapsed().as_secs_f64();
        let m = &self.shared.metrics;
        m.watch_send.observe_s(took_s);
        m.watch_send_per_event
            .observe_s(took_s / indices.len().max(1) as f64);
        match sent {
            Ok(()) => w.quiet = false,
            Err(unsent) => {
                // From here on the watcher is served from history, at its client's pace.
                w.next_revision = unsent;
                w.synced = false;
                self.ranges.remove(&w.range, id);
                stream.behind.push_back(id);
                stream.wake.notify_one();
                self.shared.watchers_behind(1);
            }
        }
    }

    /// Whether a stream has watchers that are behind, or a progress request to answer.
    pub(super) fn owes(&self, stream: u64) -> bool {
        self.streams
            .get(&stream)
            .is_some_and(|s| !s.behind.is_empty() || s.progress_wanted)
    }

    /// Serves one slice of history to one watcher that is behind. Returns false when the
    /// client has no room.
    pub(super) fn catch_up(&mut self, key: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else {
            return false;
        };
        let Some(&id) = stream.behind.front() else {
            return true;
        };
        let Some(w) = self.watchers.get_mut(&id) else {
            stream.behind.pop_front();
            return true;
        };
        let mut events = Vec::new();
        let compacted = {
            let engine = self.shared.store.lock();
            engine.events_since(w.next_revision, CATCH_UP_EVENTS, &mut events);
            engine.compact_revision()
        };
        if w.next_revision < compacted {
            let frame = control(&self.shared.ids, 0, w.watch_id)
                .canceled("")
                .compact_revision(compacted)
                .frame();
            if stream.outbound.try_send(frame).is_err() {
                return false;
            }
            self.shared.metrics.watch_cancelled_slow.inc();
            let watch_id = w.watch_id;
            stream.watchers.remove(&watch_id);
            self.forget(id);
            return true;
        }
        // What synced watchers have not been sent yet is left to the pump.
        events.retain(|e| e.revision.main < self.next_revision);
        let scanned_to = match events.last() {
            Some(e) if events.len() >= CATCH_UP_EVENTS => e.revision.main + 1,
            _ => self.next_revision,
        };
        let batch = Batch::new(events);
        let indices: Vec<usize> = batch
            .events()
            .iter()
            .enumerate()
            .filter(|(_, e)| w.range.contains(&e.key) && w.wants(e))
            .map(|(i, _)| i)
            .collect();
        if !indices.is_empty() {
            match batch.send(&self.shared, w, &indices, scanned_to - 1, &stream.outbound) {
                Ok(()) => {
                    w.quiet = false;
                    self.shared.metrics.watch_events.add(indices.len() as u64);
                }
                Err(unsent) => {
                    w.next_revision = unsent;
                    return false;
                }
            }
        }
        w.next_revision = scanned_to;
        if scanned_to >= self.next_revision {
            w.synced = true;
            self.ranges.insert(w.range.clone(), id);
            stream.behind.pop_front();
            self.shared.watchers_behind(-1);
        } else {
            // Others of the stream have their turn.
            stream.behind.rotate_left(1);
        }
        true
    }

    /// A client asked for progress of all its watchers: answered once all are synced.
    pub(super) fn request_progress(&mut self, key: u64) {
        while self.pump() {}
        if let Some(s) = self.streams.get_mut(&key) {
            s.progress_wanted = !s.watchers.is_empty();
        }
        self.answer_progress(key);
    }

    /// Answers a pending progress request if the stream has caught up. Returns false when
    /// the client has no room.
    pub(super) fn answer_progress(&mut self, key: u64) -> bool {
        let revision = self.next_revision - 1;
        let ids = *self.ids();
        let Some(s) = self.streams.get_mut(&key) else {
            return true;
        };
        if !s.progress_wanted || !s.behind.is_empty() {
            return true;
        }
        let future = |id: &u64| {
            self.watchers
                .get(id)
                .is_some_and(|w| w.next_revision > revision + 1)
        };
        // As in etcd: a watcher of the future has no progress to report yet.
        if s.watchers.values().any(future) {
            s.progress_wanted = false;
            return true;
        }
        let sent = s
            .outbound
            .try_send(control(&ids, revision, -1).frame())
            .is_ok();
        s.progress_wanted = !sent;
        sent
    }

    /// A tick of a stream's notification timer.
    pub(super) fn notify_progress(&mut self, key: u64) {
        let started = Instant::now();
        while self.pump() {}
        let (ids, revision) = (*self.ids(), self.next_revision - 1);
        let Some(s) = self.streams.get(&key) else {
            return;
        };
        for id in s.watchers.values() {
            let Some(w) = self.watchers.get_mut(id) else {
                continue;
            };
            if !w.progress_notify {
                continue;
            }
            let synced = w.synced && w.next_revision <= revision + 1;
            if w.quiet && synced {
                // A client without room for a notification does not need one.
                let _ = s
                    .outbound
                    .try_send(control(&ids, revision, w.watch_id).frame());
            }
            w.quiet = true;
        }
        self.shared
            .metrics
            .watch_progress_send
            .observe(started.elapsed());
    }

    /// The revision shown in answers to control requests.
    pub(super) fn revision(&self) -> i64 {
        self.shared.store.lock().revision()
    }

    /// A range in the form that the matcher takes, or `None` if it is empty: etcd then
    /// refuses the watch.
    pub(super) fn watch_range(key: Bytes, end: Bytes) -> Option<KeyRange> {
        let key = if key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            key
        };
        let range = KeyRange { key, end };
        let open = range.is_one() || range.upper().is_none();
        (open || range.upper().is_some_and(|e| range.key.as_ref() < e)).then_some(range)
    }
}
