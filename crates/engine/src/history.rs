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
    /// What a watch shows as `prev_kv`: the key's version before that revision, `None`
    /// where there was none. (A key may be put and deleted in one transaction: both
    /// events have the version before it.)
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

    /// Appends to `out` the events from revision `from` on: whole revisions, until there
    /// are `max_events` of them, at least one revision. Those at `compact_revision` come
    /// without their former version, which is compacted, as from etcd.
    pub fn since(
        &self,
        from: i64,
        compact_revision: i64,
        max_events: usize,
        out: &mut Vec<Arc<Event>>,
    ) {
        let start = self.events.partition_point(|e| e.revision.main < from);
        let mut last = None;
        for (n, e) in self.events.range(start..).enumerate() {
            if last.is_some_and(|main| main != e.revision.main) && n >= max_events {
                break;
            }
            last = Some(e.revision.main);
            out.push(if e.revision.main <= compact_revision && e.prev.is_some() {
                Arc::new(Event {
                    revision: e.revision,
                    key: e.key.clone(),
                    tail: e.tail.clone(),
                    prev: None,
                })
            } else {
                e.clone()
            });
        }
    }

    /// Takes the events of a restored store, in revision order.
    pub(crate) fn restore(&mut self, events: Vec<Arc<Event>>) {
        self.events = events.into();
    }

    /// The event at position `i` from the front.
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

    /// The lowest revision to compact at so that about `bytes` of history go: the one
    /// after that of the last event to go, since the events at a compact revision stay.
    pub fn revision_to_free(&self, bytes: usize) -> Option<i64> {
        let mut freed = 0;
        for e in &self.events {
            freed += e.history_bytes();
            if freed >= bytes {
                return Some(e.revision.main + 1);
            }
        }
        self.events.back().map(|e| e.revision.main + 1)
    }
}
