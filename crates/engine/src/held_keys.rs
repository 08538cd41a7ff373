//! Keys that pending operations hold: by hash, and in order while ranges are asked for.
//!
//! Most stores see no range for hours. Then no order is kept: it would cost every put. The
//! first range that asks has it kept, and it is given up when none has asked for a while.

use crate::footprint::Want;
use crate::lane::{Lane, PerLane};
use crate::op::KeyRange;
use crate::steps::Steps;
use bytes::Bytes;
use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;
use std::collections::BTreeSet;

/// Which operation, in order of arrival.
pub(crate) type OpId = u64;

/// So many keys are put in order at once; of more, those that are touched from now on.
const SORTED_AT_ONCE: usize = 1024;

/// The order is given up when so many keys have been taken since a range asked.
const IDLE_AFTER: u32 = 8192;

/// Who holds a key.
#[derive(Debug, Default)]
struct Holders {
    reads: PerLane<u32>,
    writes: PerLane<u32>,
    /// The last operation of each lane that took it: it ends after the others.
    last: PerLane<OpId>,
    sorted: bool,
}

impl Holders {
    fn is_free(&self) -> bool {
        let none = PerLane::default();
        self.reads == none && self.writes == none
    }

    fn blocker(&self, want: Want) -> Option<OpId> {
        let blocks = |held: &Lane| {
            (self.writes[*held] > 0 && want.waits_for_write(*held))
                || (self.reads[*held] > 0 && want.waits_for_read(*held))
        };
        Lane::ALL.into_iter().find(blocks).map(|l| self.last[l])
    }
}

/// The keys that each lane holds, in order.
#[derive(Debug, Default)]
struct Sorted {
    reads: PerLane<BTreeSet<Bytes>>,
    writes: PerLane<BTreeSet<Bytes>>,
    /// How many keys are held that are not in it: those that were held before it began and
    /// have not been taken again. The operations that hold them are from before, too.
    missing: usize,
    /// Of these operations the last of each lane, while it is pending.
    missing_until: PerLane<Option<OpId>>,
    /// Keys taken since a range asked.
    unasked: u32,
}

/// Keys that are held.
#[derive(Debug, Default)]
pub(crate) struct HeldKeys {
    holders: HashMap<Bytes, Holders>,
    sorted: Option<Box<Sorted>>,
    /// The last operation of each lane, while it is pending.
    last: PerLane<Option<OpId>>,
    steps: Steps,
}

impl HeldKeys {
    pub(crate) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// An operation begins: it takes its keys next.
    pub(crate) fn begin(&mut self, lane: Lane, id: OpId) {
        self.last[lane] = Some(id);
        let idle = |s: &Sorted| s.unasked > IDLE_AFTER;
        if self.holders.len() <= SORTED_AT_ONCE && self.sorted.as_deref().is_some_and(idle) {
            self.sorted = None;
            self.holders.values_mut().for_each(|h| h.sorted = false);
        }
    }

    /// An operation ends: it has given its keys back.
    pub(crate) fn end(&mut self, lane: Lane, id: OpId) {
        let forget = |last: &mut Option<OpId>| {
            if *last == Some(id) {
                *last = None;
            }
        };
        forget(&mut self.last[lane]);
        if let Some(sorted) = &mut self.sorted {
            forget(&mut sorted.missing_until[lane]);
        }
    }

    /// Takes a key.
    pub(crate) fn add(&mut self, key: &Bytes, want: Want, id: OpId) {
        let held = self.holders.entry_ref(key).or_default();
        let new = held.is_free();
        held.reads[want.lane] += u32::from(want.reads);
        held.writes[want.lane] += u32::from(want.writes);
        held.last[want.lane] = id;
        let Some(sorted) = &mut self.sorted else {
            return;
        };
        sorted.unasked = sorted.unasked.saturating_add(1);
        if !held.sorted {
            held.sorted = true;
            sorted.missing -= usize::from(!new);
            sorted.insert(key, held);
        } else {
            if want.reads && held.reads[want.lane] == 1 {
                sorted.reads[want.lane].insert(key.clone());
            }
            if want.writes && held.writes[want.lane] == 1 {
                sorted.writes[want.lane].insert(key.clone());
            }
        }
    }

    /// Gives a key back.
    pub(crate) fn remove(&mut self, key: &Bytes, want: Want) {
        let EntryRef::Occupied(mut entry) = self.holders.entry_ref(key) else {
            return;
        };
        let held = entry.get_mut();
        held.reads[want.lane] -= u32::from(want.reads);
        held.writes[want.lane] -= u32::from(want.writes);
        let free = held.is_free();
        if let Some(sorted) = &mut self.sorted {
            if !held.sorted {
                sorted.missing -= usize::from(free);
            } else {
                if want.reads && held.reads[want.lane] == 0 {
                    sorted.reads[want.lane].remove(key);
                }
                if want.writes && held.writes[want.lane] == 0 {
                    sorted.writes[want.lane].remove(key);
                }
            }
        }
        if free {
            entry.remove();
        }
    }

    /// One who keeps others from a key.
    pub(crate) fn blocker_at(&self, key: &[u8], want: Want) -> Option<OpId> {
        self.holders.get(key)?.blocker(want)
    }

    /// One who keeps others from a key of a range. While not all keys are in order, it may be
    /// one who holds none.
    pub(crate) fn blocker_in(&mut self, range: &KeyRange, want: Want) -> Option<OpId> {
        if self.holders.is_empty() {
            return None;
        }
        let within = range.bounds()?;
        if self.sorted.is_none() {
            self.sort();
        }
        let sorted = self.sorted.as_deref_mut()?;
        sorted.unasked = 0;
        for lane in Lane::ALL {
            let sets = [
                (&sorted.writes[lane], want.waits_for_write(lane)),
                (&sorted.reads[lane], want.waits_for_read(lane)),
            ];
            for (keys, _) in sets.into_iter().filter(|(_, waits)| *waits) {
                self.steps.add(1);
                if let Some(key) = keys.range::<[u8], _>(within).next() {
                    return self.holders.get(key).map(|held| held.last[lane]);
                }
            }
        }
        let before = sorted.missing_until.iter().find_map(|(_, id)| *id);
        before.filter(|_| sorted.missing > 0)
    }

    /// Begins to keep the order.
    fn sort(&mut self) {
        let mut sorted = Box::new(Sorted::default());
        if self.holders.len() <= SORTED_AT_ONCE {
            self.steps.add(self.holders.len() as u64);
            for (key, held) in &mut self.holders {
                held.sorted = true;
                sorted.insert(key, held);
            }
        } else {
            sorted.missing = self.holders.len();
            sorted.missing_until = self.last;
        }
        self.sorted = Some(sorted);
    }
}

impl Sorted {
    fn insert(&mut self, key: &Bytes, held: &Holders) {
        for lane in Lane::ALL {
            if held.reads[lane] > 0 {
                self.reads[lane].insert(key.clone());
            }
            if held.writes[lane] > 0 {
                self.writes[lane].insert(key.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn want(lane: Lane, kind: u8) -> Want {
        Want {
            lane,
            reads: kind != 1,
            writes: kind != 0,
        }
    }

    fn key(n: u64) -> Bytes {
        Bytes::from(format!("k{n:06}"))
    }

    fn range(from: u64, to: u64) -> KeyRange {
        KeyRange {
            key: key(from),
            end: key(to),
        }
    }

    proptest! {
        /// Also when the order begins with too many keys to sort, and when it is given up.
        #[test]
        fn blockers_are_those_of_a_scan(
            before in prop_oneof![Just(0u64), Just(1500)],
            idle in any::<bool>(),
            steps in proptest::collection::vec(
                (0..8u64, 0..8u64, any::<bool>(), 0..3u8, 0..4u8), 1..60),
        ) {
            let mut keys = HeldKeys::default();
            let mut held: Vec<(OpId, u64, Want)> = Vec::new();
            let all = (0..before).map(|n| (10 + n % 4, n % 2 == 0, 2u8, 0u8));
            // Operations of a lane end in the order in which they began.
            let mut id = 0;
            let steps = all.map(|(k, volatile, kind, what)| (k, 8, volatile, kind, what))
                .chain(steps);
            for (n, to, volatile, kind, what) in steps {
                let lane = if volatile { Lane::Volatile } else { Lane::Durable };
                let w = want(lane, kind);
                match what {
                    0 | 1 => {
                        id += 1;
                        // Spread, so that there are many keys.
                        let n = if n < 10 { n } else { n * 1000 + id };
                        keys.begin(lane, id);
                        keys.add(&key(n), w, id);
                        held.push((id, n, w));
                        if idle && let Some(s) = &mut keys.sorted {
                            s.unasked = IDLE_AFTER + 1;
                        }
                    }
                    2 => if let Some(at) = held.iter().position(|h| h.2.lane == lane) {
                        let (id, n, w) = held.remove(at);
                        keys.remove(&key(n), w);
                        keys.end(lane, id);
                    },
                    _ => {
                        let conflict = |h: &&(OpId, u64, Want)| {
                            (h.2.writes && w.waits_for_write(h.2.lane))
                                || (h.2.reads && w.waits_for_read(h.2.lane))
                        };
                        let got = keys.blocker_in(&range(n, to), w);
                        let want = held.iter().filter(conflict).any(|h| (n..to).contains(&h.1));
                        let missing = keys.sorted.as_ref().map_or(0, |s| s.missing);
                        if want || missing == 0 {
                            prop_assert_eq!(got.is_some(), want);
                        }
                        // Whoever it is goes on to end.
                        prop_assert!(got.is_none_or(|id| held.iter().any(|h| h.0 == id)));
                        let got = keys.blocker_at(&key(n), w);
                        let want = held.iter().filter(conflict).any(|h| h.1 == n);
                        prop_assert_eq!(got.is_some(), want);
                    }
                }
            }
            for (id, n, w) in std::mem::take(&mut held) {
                keys.remove(&key(n), w);
                keys.end(w.lane, id);
            }
            prop_assert!(keys.is_empty());
            prop_assert!(keys.sorted.is_none_or(|s| s.missing == 0));
        }
    }

    #[test]
    fn the_order_begins_and_ends_without_going_over_many_keys() {
        let mut keys = HeldKeys::default();
        let put = want(Lane::Durable, 1);
        let all = want(Lane::Durable, 2);
        for n in 1..=50_000 {
            keys.begin(Lane::Durable, n);
            keys.add(&key(n), put, n);
        }
        // Not in order: whoever asks waits for all from before.
        assert_eq!(keys.blocker_in(&range(900_000, 900_001), all), Some(50_000));
        for n in 50_001..=60_000 {
            keys.begin(Lane::Durable, n);
            keys.add(&key(n), put, n);
        }
        for n in 1..=50_000 {
            keys.remove(&key(n), put);
            keys.end(Lane::Durable, n);
        }
        assert_eq!(keys.blocker_in(&range(900_000, 900_001), all), None);
        assert_eq!(keys.blocker_in(&range(0, 900_001), all), Some(50_001));
        assert!(keys.steps() < 10, "{}", keys.steps());
        for n in 60_001..=70_000 {
            keys.begin(Lane::Durable, n);
            keys.add(&key(n), put, n);
            keys.remove(&key(n - 10_000), put);
            keys.end(Lane::Durable, n - 10_000);
        }
        assert!(
            keys.sorted.is_some(),
            "there are too many keys to give it up"
        );
        for n in 60_001..=70_000 {
            keys.remove(&key(n), put);
            keys.end(Lane::Durable, n);
        }
        keys.begin(Lane::Durable, 70_001);
        assert!(keys.sorted.is_none());
    }
}
