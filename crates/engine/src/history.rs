//! History: one append-only ring of events in revision order. A watcher is a cursor on
//! it; it costs the store nothing and cannot hold a writer up.

use crate::Engine;
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
    /// Bytes of its key and of the versions that it shows.
    pub fn bytes(&self) -> usize {
        let version = |tail: &Option<Arc<[u8]>>| tail.as_ref().map_or(0, |t| t.len());
        self.key.len() + version(&self.tail) + version(&self.prev)
    }
}

/// How much of history to take at a time: whole revisions, at least one, and no further one
/// once there are so many events or so many bytes of them.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Events.
    pub max_events: usize,
    /// Bytes of keys and versions.
    pub max_bytes: usize,
}

impl Part {
    /// By number alone.
    pub fn events(max_events: usize) -> Self {
        Part {
            max_events,
            max_bytes: usize::MAX,
        }
    }
}

impl<W> Engine<W> {
    /// Appends the events from revision `from` on: whole revisions, as many as `part` allows.
    /// Returns whether there are more. Check [`Engine::compact_revision`] first: below it,
    /// events are missing. Those at it come without `prev`, as in etcd.
    pub fn events_since(&self, from: i64, part: Part, out: &mut Vec<Arc<Event>>) -> bool {
        self.history.since(from, self.compact_revision, part, out)
    }
}

/// Bytes that an event in the ring costs beyond the versions that it shares.
pub const EVENT_OVERHEAD_BYTES: usize = 96;

/// Events in a block.
const BLOCK: usize = 1024;

/// The ring, in blocks: it never copies all of itself to grow or to shrink.
#[derive(Debug, Default)]
pub struct History {
    /// All but the first and the last are full; none is empty.
    blocks: VecDeque<VecDeque<Arc<Event>>>,
    len: usize,
}

impl History {
    /// Number of events retained.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is retained.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the ring itself costs.
    pub fn bytes(&self) -> usize {
        self.len * EVENT_OVERHEAD_BYTES
    }

    /// Appends an event; revisions must rise.
    pub fn push(&mut self, event: Event) {
        debug_assert!(self.last().is_none_or(|e| e.revision < event.revision));
        self.append(Arc::new(event));
    }

    fn append(&mut self, event: Arc<Event>) {
        match self.blocks.back_mut() {
            Some(block) if block.len() < BLOCK => block.push_back(event),
            _ => {
                let mut block = VecDeque::with_capacity(BLOCK);
                block.push_back(event);
                self.blocks.push_back(block);
            }
        }
        self.len += 1;
    }

    fn last(&self) -> Option<&Arc<Event>> {
        self.blocks.back()?.back()
    }

    /// Appends to `out` the events from revision `from` on: whole revisions, as many as `part`
    /// allows. Returns whether there are more. Those at `compact_revision` come without their
    /// former version, which is compacted, as from etcd.
    fn since(
        &self,
        from: i64,
        compact_revision: i64,
        part: Part,
        out: &mut Vec<Arc<Event>>,
    ) -> bool {
        let start = self.first_at(from);
        let mut last = None;
        let (mut events, mut bytes) = (0, 0);
        for e in (start..self.len).filter_map(|i| self.get(i)) {
            let full = events >= part.max_events || bytes >= part.max_bytes;
            if full && last.is_some_and(|main| main != e.revision.main) {
                return true;
            }
            last = Some(e.revision.main);
            events += 1;
            bytes += e.bytes();
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
        false
    }

    /// Takes the events of a restored store, in revision order.
    pub(crate) fn restore(&mut self, events: Vec<Arc<Event>>) {
        *self = History::default();
        events.into_iter().for_each(|e| self.append(e));
    }

    /// Position of the first event at or above a revision.
    fn first_at(&self, from: i64) -> usize {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).is_some_and(|e| e.revision.main < from) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The event at position `i` from the front.
    pub(crate) fn get(&self, i: usize) -> Option<&Arc<Event>> {
        let first = self.blocks.front()?;
        match i.checked_sub(first.len()) {
            None => first.get(i),
            Some(i) => self.blocks.get(1 + i / BLOCK)?.get(i % BLOCK),
        }
    }

    /// Drops the event at the front.
    pub(crate) fn pop_front(&mut self) {
        let Some(block) = self.blocks.front_mut() else {
            return;
        };
        if block.pop_front().is_some() {
            self.len -= 1;
        }
        if block.is_empty() {
            self.blocks.pop_front();
        }
    }

    /// What share (0 to 1) of the events came after revision `from`, up to `to`.
    pub(crate) fn share_between(&self, from: i64, to: i64) -> f64 {
        let events = self
            .first_at(to + 1)
            .saturating_sub(self.first_at(from + 1));
        events as f64 / self.len.max(1) as f64
    }

    /// The lowest revision to compact at so that about `share` (0 to 1) of the events go:
    /// the one after that of the last event to go, since those at a compact revision stay.
    pub(crate) fn revision_to_free(&self, share: f64) -> Option<i64> {
        let n = (self.len as f64 * share) as usize;
        let last = self.get(n.min(self.len.checked_sub(1)?))?;
        Some(last.revision.main + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(main: i64, sub: i64) -> Event {
        Event {
            revision: Revision { main, sub },
            key: Key::from(&b"k"[..]),
            tail: None,
            prev: None,
        }
    }

    #[test]
    fn blocks_act_as_one_list() {
        let mut history = History::default();
        let mut want: VecDeque<Revision> = VecDeque::new();
        let mut main = 2;
        for round in 0..40 {
            for _ in 0..100 + round * 3 {
                // Every third revision has two events.
                for sub in 0..1 + i64::from(main % 3 == 0) {
                    history.push(event(main, sub));
                    want.push_back(Revision { main, sub });
                }
                main += 1;
            }
            for _ in 0..round * 5 {
                history.pop_front();
                want.pop_front();
            }
            assert_eq!(history.len(), want.len());
            for i in (0..want.len()).step_by(97) {
                assert_eq!(history.get(i).map(|e| e.revision), want.get(i).copied());
            }
            assert!(history.get(want.len()).is_none());
            for from in [0, main / 2, main - 1, main] {
                let mut got = Vec::new();
                let more = history.since(from, -1, Part::events(10), &mut got);
                let last = got.last().map(|e| e.revision);
                assert_eq!(more, last.is_some() && last != want.back().copied());
                let got: Vec<Revision> = got.iter().map(|e| e.revision).collect();
                let from = want.iter().position(|r| r.main >= from);
                let rest = want.iter().skip(from.unwrap_or(want.len()));
                let whole = rest.clone().take(10).next_back().map_or(0, |r| r.main);
                let rest: Vec<Revision> = rest.take_while(|r| r.main <= whole).copied().collect();
                assert_eq!(got, rest);
            }
        }
        while !history.is_empty() {
            history.pop_front();
        }
        assert!(history.blocks.is_empty());
    }

    #[test]
    fn a_part_ends_at_its_bytes_but_never_within_a_revision() {
        let mut history = History::default();
        for (main, sub) in [(2, 0), (3, 0), (3, 1), (4, 0)] {
            history.push(Event {
                tail: Some(vec![0; 99].into()),
                ..event(main, sub)
            });
        }
        for (max_bytes, count) in [(0, 1), (100, 1), (101, 3), (300, 3), (301, 4)] {
            let part = Part {
                max_events: 1024,
                max_bytes,
            };
            let mut got = Vec::new();
            let more = history.since(2, -1, part, &mut got);
            assert_eq!((got.len(), more), (count, count < 4), "{max_bytes} bytes");
        }
    }
}
