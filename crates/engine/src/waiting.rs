//! Operations that wait for others on their keys, first in, first out.

use crate::lock::{Footprint, Locks};
use crate::op::{Class, Write};
use bytes::Bytes;
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};

/// A write that waits.
#[derive(Debug)]
pub(crate) struct Waiting<W> {
    pub(crate) write: Write,
    pub(crate) class: Class,
    pub(crate) footprint: Footprint,
    pub(crate) waiter: W,
    pub(crate) deadline_ms: u64,
}

/// The queue. What touches one key only is found by that key, so that a crowd at one key
/// costs nothing until its turn comes; anything else is looked at whenever something
/// completes.
#[derive(Debug)]
pub(crate) struct WaitingQueue<W> {
    /// By number of arrival.
    all: BTreeMap<u64, Box<Waiting<W>>>,
    next: u64,
    by_key: HashMap<Bytes, VecDeque<u64>>,
    /// How many are not in `by_key`.
    others: usize,
    bytes: usize,
    /// What they would lock.
    pub(crate) locks: Locks,
}

impl<W> WaitingQueue<W> {
    pub(crate) fn new() -> Self {
        WaitingQueue {
            all: BTreeMap::new(),
            next: 0,
            by_key: HashMap::new(),
            others: 0,
            bytes: 0,
            locks: Locks::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Bytes that they carry.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn push(&mut self, w: Waiting<W>) {
        let n = self.next;
        self.next += 1;
        self.locks.add(&w.footprint);
        self.bytes += w.write.bytes();
        match w.footprint.only_key() {
            Some(key) => self.by_key.entry_ref(key).or_default().push_back(n),
            None => self.others += 1,
        }
        self.all.insert(n, Box::new(w));
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, n: u64) -> Option<Box<Waiting<W>>> {
        let w = self.all.remove(&n)?;
        self.locks.remove(&w.footprint);
        self.bytes -= w.write.bytes();
        match w.footprint.only_key() {
            Some(key) => {
                if let Some(queue) = self.by_key.get_mut(key) {
                    if queue.front() == Some(&n) {
                        queue.pop_front();
                    } else {
                        queue.retain(|&m| m != n);
                    }
                    if queue.is_empty() {
                        self.by_key.remove(key);
                    }
                }
            }
            None => self.others -= 1,
        }
        Some(w)
    }

    /// Takes one out if nothing that is `held` stops it.
    pub(crate) fn remove_free(&mut self, n: u64, held: &Locks) -> Option<Box<Waiting<W>>> {
        let free = !held.conflicts(&self.all.get(&n)?.footprint, false);
        if free { self.remove(n) } else { None }
    }

    /// The first that waits for `key` and nothing else.
    pub(crate) fn first_at(&self, key: &Bytes) -> Option<(u64, &Waiting<W>)> {
        let n = *self.by_key.get(key)?.front()?;
        Some((n, self.all.get(&n)?))
    }

    /// Moves one to another lane; it keeps its place.
    pub(crate) fn set_lane(&mut self, n: u64, lane: usize) {
        if let Some(w) = self.all.get_mut(&n)
            && w.footprint.lane != lane
        {
            self.locks.remove(&w.footprint);
            w.footprint.lane = lane;
            self.locks.add(&w.footprint);
        }
    }

    /// Whether some touch more than one key, or a range, a lease, history.
    pub(crate) fn has_others(&self) -> bool {
        self.others > 0
    }

    /// Takes all out, in order of arrival.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Box<Waiting<W>>> + use<W> {
        self.by_key.clear();
        self.others = 0;
        self.bytes = 0;
        self.locks = Locks::default();
        std::mem::take(&mut self.all).into_values()
    }

    /// Numbers of those that have waited too long.
    pub(crate) fn late(&self, now_ms: u64) -> Vec<u64> {
        let late = self.all.iter().filter(|(_, w)| w.deadline_ms <= now_ms);
        late.map(|(&n, _)| n).collect()
    }
}
