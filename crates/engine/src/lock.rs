//! Locks of operations that are admitted but not yet visible.
//!
//! An operation evaluates against the visible state, so it may not start while a pending
//! operation could change what it reads. Operations of one lane become visible in the
//! order of admission; those of different lanes in any order, so between lanes every
//! overlap of a write with a read or a write conflicts, ranges included (a create inside
//! a pending DeleteRange must not slip in before it and survive it). Within a lane an
//! unconditional put conflicts with nothing: what it does follows from the state it is
//! applied to, so such puts chain in one batch.
//!
//! A lock knows the last operation of each lane that took it: who must wait hangs on that
//! one, which ends after the others.

use crate::attached::Attached;
use crate::footprint::{Access, Footprint, LeaseChange, Want};
use crate::held_keys::{HeldKeys, OpId};
use crate::interval::{Interval, IntervalMap};
use crate::lane::{Lane, PerLane};
use crate::steps::Steps;
use bytes::Bytes;
use hashbrown::HashMap;

/// Who holds a lock that is not a key's: how many of each lane, and the last of them.
#[derive(Debug, Default)]
struct Holders {
    count: PerLane<u32>,
    last: PerLane<OpId>,
}

impl Holders {
    fn change(&mut self, lane: Lane, id: OpId, up: bool) {
        let n = &mut self.count[lane];
        if up {
            *n += 1;
            self.last[lane] = id;
        } else {
            *n -= 1;
        }
    }

    /// One of those in lanes that count.
    fn find(&self, counts: impl Fn(Lane) -> bool) -> Option<OpId> {
        let held = |lane: &Lane| self.count[*lane] > 0 && counts(*lane);
        let lane = Lane::ALL.into_iter().find(held)?;
        Some(self.last[lane])
    }

    fn any(&self) -> Option<OpId> {
        self.find(|_| true)
    }
}

/// Ranges that the operations of a lane hold.
#[derive(Debug, Default)]
struct HeldRanges {
    /// Those that are read only.
    reads: IntervalMap<Bytes>,
    writes: IntervalMap<Bytes>,
}

impl HeldRanges {
    fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }
}

/// Counted locks on keys, ranges, leases and the compact revision.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    keys: HeldKeys,
    ranges: PerLane<HeldRanges>,
    leases_used: HashMap<i64, Holders>,
    leases_changed: HashMap<i64, Holders>,
    /// Ends of leases, whose keys are those attached to the lease.
    ends: Holders,
    history_readers: Holders,
    compactions: Holders,
    steps: Steps,
}

impl Locks {
    /// Whether no lock is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.ranges.iter().all(|(_, held)| held.is_empty())
            && self.leases_used.is_empty()
            && self.leases_changed.is_empty()
            && self.history_readers.any().is_none()
            && self.compactions.any().is_none()
    }

    /// Locks and nodes looked at so far.
    pub(crate) fn steps(&self) -> u64 {
        let ranges = self.ranges.iter();
        let ranges = ranges.map(|(_, r)| r.reads.steps() + r.writes.steps());
        self.steps.get() + self.keys.steps() + ranges.sum::<u64>()
    }

    /// Takes all locks of an operation.
    pub(crate) fn add(&mut self, f: &Footprint, id: OpId) {
        self.keys.begin(f.lane, id);
        self.change(f, id, true);
    }

    /// Gives them back.
    pub(crate) fn remove(&mut self, f: &Footprint, id: OpId) {
        self.change(f, id, false);
        self.keys.end(f.lane, id);
    }

    fn change(&mut self, f: &Footprint, id: OpId, up: bool) {
        self.steps.add(f.len() as u64);
        for a in f.accesses() {
            match (a.range.is_one(), up) {
                (true, true) => self.keys.add(&a.range.key, f.want(a), id),
                (true, false) => self.keys.remove(&a.range.key, f.want(a)),
                (false, _) => self.change_range(a, f.lane, id, up),
            }
        }
        for &lease in &f.leases_used {
            change_lease(&mut self.leases_used, lease, f.lane, id, up);
        }
        if let Some(change) = f.lease {
            change_lease(&mut self.leases_changed, change.id(), f.lane, id, up);
            if matches!(change, LeaseChange::Ended(_)) {
                self.ends.change(f.lane, id, up);
            }
        }
        if f.reads_history {
            self.history_readers.change(f.lane, id, up);
        }
        if f.compacts {
            self.compactions.change(f.lane, id, up);
        }
    }

    fn change_range(&mut self, a: &Access, lane: Lane, id: OpId, up: bool) {
        let held = &mut self.ranges[lane];
        let held = match a.writes {
            true => &mut held.writes,
            false => &mut held.reads,
        };
        if up {
            held.insert(Interval::from(&a.range), id);
        } else {
            held.remove(&a.range.interval(), id);
        }
    }

    /// One who holds what `f` must wait for. When that one has ended there may be another.
    pub(crate) fn blocker(&mut self, f: &Footprint, attached: &Attached<'_>) -> Option<OpId> {
        self.steps.add(f.len() as u64);
        if let Some(id) = self.lease_blocker(f) {
            return Some(id);
        }
        if f.reads_history || f.compacts {
            let readers = self.history_readers.any().filter(|_| f.compacts);
            if let Some(id) = self.compactions.any().or(readers) {
                return Some(id);
            }
        }
        for a in f.accesses() {
            let want = f.want(a);
            let blocker = match a.range.is_one() {
                true => self.key_blocker(&a.range.key, want, attached),
                false => self.range_blocker(a, want),
            };
            if blocker.is_some() {
                return blocker;
            }
        }
        match f.lease {
            Some(LeaseChange::Ended(lease)) => self.end_blocker(lease, f.lane, attached),
            _ => None,
        }
    }

    fn lease_blocker(&self, f: &Footprint) -> Option<OpId> {
        let used = f.leases_used.iter();
        let mut of_used = used.filter_map(|id| self.leases_changed.get(id)?.any());
        of_used.next().or_else(|| {
            let id = f.lease?.id();
            let holders = [self.leases_changed.get(&id), self.leases_used.get(&id)];
            holders.into_iter().flatten().find_map(Holders::any)
        })
    }

    fn key_blocker(&self, key: &[u8], want: Want, attached: &Attached<'_>) -> Option<OpId> {
        self.keys
            .blocker_at(key, want)
            .or_else(|| self.range_holder(&Interval::one(key), want))
            .or_else(|| self.ending(key, want, attached))
    }

    fn range_blocker(&mut self, a: &Access, want: Want) -> Option<OpId> {
        // The end of a lease may delete keys of any range.
        self.keys
            .blocker_in(&a.range, want)
            .or_else(|| self.range_holder(&a.range.interval(), want))
            .or_else(|| self.ends.find(|lane| want.waits_for_write(lane)))
    }

    /// The end of the lease that a key is attached to: the key goes with it.
    fn ending(&self, key: &[u8], want: Want, attached: &Attached<'_>) -> Option<OpId> {
        self.ends.any()?;
        self.steps.add(1);
        let ends = self.leases_changed.get(&attached.lease_of(key)?)?;
        ends.find(|lane| want.waits_for_write(lane))
    }

    /// A range that another lane holds. Within a lane the keys that a pending DeleteRange
    /// deletes are locked one by one; the range as such stops only other lanes.
    fn range_holder(&self, with: &Interval<&[u8]>, want: Want) -> Option<OpId> {
        self.ranges.others(want.lane).find_map(|(_, held)| {
            let reads = || held.reads.any(with).filter(|_| want.writes);
            held.writes.any(with).or_else(reads)
        })
    }

    /// Who holds a key that goes with a lease.
    fn end_blocker(&self, lease: i64, lane: Lane, attached: &Attached<'_>) -> Option<OpId> {
        let want = Want {
            lane,
            reads: true,
            writes: true,
        };
        if self.keys.is_empty() && self.ranges.others(lane).all(|(_, r)| r.is_empty()) {
            return None;
        }
        attached.keys_of(lease).find_map(|key| {
            self.steps.add(1);
            let holder = self.keys.blocker_at(key, want);
            holder.or_else(|| self.range_holder(&Interval::one(key), want))
        })
    }
}

fn change_lease(of: &mut HashMap<i64, Holders>, lease: i64, lane: Lane, id: OpId, up: bool) {
    let held = of.entry(lease).or_default();
    held.change(lane, id, up);
    if held.any().is_none() {
        of.remove(&lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::lease::Leases;
    use crate::op::KeyRange;

    fn range(a: &'static str, b: &'static str) -> KeyRange {
        KeyRange {
            key: Bytes::from_static(a.as_bytes()),
            end: Bytes::from_static(b.as_bytes()),
        }
    }

    fn put(lane: Lane, key: &'static str) -> Footprint {
        let mut f = Footprint::new(lane);
        f.write(range(key, ""));
        f
    }

    fn cas(lane: Lane, key: &'static str) -> Footprint {
        let mut f = put(lane, key);
        f.read(range(key, ""));
        f
    }

    fn waits(l: &mut Locks, f: &Footprint) -> bool {
        let (index, leases) = (Index::default(), Leases::default());
        let attached = Attached {
            index: &index,
            leases: &leases,
        };
        l.blocker(f, &attached).is_some()
    }

    use Lane::{Durable, Volatile};

    #[test]
    fn puts_chain_within_a_lane_and_wait_across_lanes() {
        let mut l = Locks::default();
        l.add(&put(Durable, "a"), 1);
        assert!(!waits(&mut l, &put(Durable, "a")));
        assert!(waits(&mut l, &put(Volatile, "a")));
        assert!(waits(&mut l, &cas(Durable, "a")));
        assert!(!waits(&mut l, &cas(Volatile, "b")));
        l.remove(&put(Durable, "a"), 1);
        assert!(l.is_empty());
    }

    #[test]
    fn a_pending_delete_range_stops_creates_of_other_lanes() {
        let mut l = Locks::default();
        let mut del = Footprint::new(Durable);
        del.change(range("a", "c"));
        l.add(&del, 1);
        assert!(!waits(&mut l, &put(Durable, "b")));
        assert!(waits(&mut l, &put(Volatile, "b")));
        assert!(!waits(&mut l, &put(Volatile, "c")));
        l.remove(&del, 1);
        assert!(l.is_empty());
    }

    #[test]
    fn leases_and_compaction_lock_too() {
        let mut l = Locks::default();
        let mut end = Footprint::new(Durable);
        end.lease = Some(LeaseChange::Ended(7));
        let uses = |lease| {
            let mut f = put(Durable, "a");
            f.leases_used.push(lease);
            f
        };
        l.add(&end, 1);
        assert!(waits(&mut l, &uses(7)));
        assert!(!waits(&mut l, &uses(8)));
        let mut read = put(Durable, "x");
        read.reads_history = true;
        l.add(&read, 2);
        let mut compact = Footprint::new(Durable);
        compact.compacts = true;
        assert!(waits(&mut l, &compact));
        l.remove(&end, 1);
        l.remove(&read, 2);
        assert!(l.is_empty() && !waits(&mut l, &compact));
    }
}
