//! Operations that wait for others, first in, first out.
//!
//! Each hangs on one operation that it must wait for: the latest of those that came earlier and
//! wait themselves, or, if none of those is in its way, one that is pending. When that one goes,
//! those that hang on it, and no others, are *ready* to be looked at again: they are admitted, or
//! hang on the next one. So a crowd at one key is a chain, of which each completion moves one
//! link.

use crate::attached::Attached;
use crate::footprint::{Footprint, LeaseChange};
use crate::held_keys::OpId;
use crate::interval::{Interval, IntervalMap};
use crate::lane::Lane;
use crate::op::{Class, Write};
use crate::steps::Steps;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The end of a lease with more keys waits for all that came earlier, wanted or not: to look
/// for each key would take too long.
const KEYS_LOOKED_FOR: usize = 1024;

/// A write that waits.
#[derive(Debug)]
pub(crate) struct Waiting<W> {
    pub(crate) write: Write,
    pub(crate) class: Class,
    pub(crate) footprint: Footprint,
    pub(crate) waiter: W,
    pub(crate) deadline_ms: u64,
    /// What it holds in memory, about.
    pub(crate) bytes: usize,
}

/// Where one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It waits for this one to go.
    HangsOn(OpId),
    /// It is to be looked at.
    Ready,
}

#[derive(Debug)]
struct Waiter<W> {
    op: Waiting<W>,
    stand: Stand,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct WaitingQueue<W> {
    /// In order of arrival.
    all: BTreeMap<OpId, Box<Waiter<W>>>,
    by_deadline: BTreeSet<(u64, OpId)>,
    /// Who hangs on whom: the second on the first.
    hanging: BTreeSet<(OpId, OpId)>,
    ready: BTreeSet<OpId>,
    bytes: usize,
    wants: Wants,
}

/// What those who wait want, each with its number.
#[derive(Debug, Default)]
struct Wants {
    /// Keys and ranges to read only.
    reads: IntervalMap<Bytes>,
    /// Those to write.
    writes: IntervalMap<Bytes>,
    leases_used: BTreeSet<(i64, OpId)>,
    leases_changed: BTreeSet<(i64, OpId)>,
    /// Ends of leases.
    ends: BTreeSet<OpId>,
    history_readers: BTreeSet<OpId>,
    compactions: BTreeSet<OpId>,
    steps: Steps,
}

impl<W> WaitingQueue<W> {
    pub(crate) fn new() -> Self {
        WaitingQueue {
            all: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            hanging: BTreeSet::new(),
            ready: BTreeSet::new(),
            bytes: 0,
            wants: Wants::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Bytes that they hold.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nodes looked at so far.
    pub(crate) fn steps(&self) -> u64 {
        let w = &self.wants;
        w.steps.get() + w.reads.steps() + w.writes.steps()
    }

    /// Takes one in. Numbers are given in order of arrival.
    pub(crate) fn insert(&mut self, id: OpId, op: Waiting<W>, stand: Stand) {
        self.bytes += op.bytes;
        self.by_deadline.insert((op.deadline_ms, id));
        self.wants.change(&op.footprint, id, true);
        self.all.insert(id, Box::new(Waiter { op, stand }));
        self.stands(id, stand);
    }

    fn stands(&mut self, id: OpId, stand: Stand) {
        match stand {
            Stand::HangsOn(on) => self.hanging.insert((on, id)),
            Stand::Ready => self.ready.insert(id),
        };
    }

    /// Takes one out; those that hang on it are ready.
    pub(crate) fn remove(&mut self, id: OpId) -> Option<Waiting<W>> {
        let w = self.all.remove(&id)?;
        match w.stand {
            Stand::HangsOn(on) => self.hanging.remove(&(on, id)),
            Stand::Ready => self.ready.remove(&id),
        };
        self.by_deadline.remove(&(w.op.deadline_ms, id));
        self.bytes -= w.op.bytes;
        self.wants.change(&w.op.footprint, id, false);
        self.gone(id);
        Some(w.op)
    }

    /// An operation is not in the way any more: those that hang on it are ready.
    pub(crate) fn gone(&mut self, id: OpId) {
        while let Some(&(on, waiter)) = self.hanging.range((id, 0)..=(id, OpId::MAX)).next() {
            self.hanging.remove(&(on, waiter));
            if let Some(w) = self.all.get_mut(&waiter) {
                w.stand = Stand::Ready;
            }
            self.ready.insert(waiter);
        }
    }

    /// The first that is ready.
    pub(crate) fn first_ready(&self) -> Option<OpId> {
        self.ready.first().copied()
    }

    /// One that waits.
    pub(crate) fn get(&self, id: OpId) -> Option<&Waiting<W>> {
        self.all.get(&id).map(|w| &w.op)
    }

    /// Sets the lane that one would take now; others that wait do not care.
    pub(crate) fn set_lane(&mut self, id: OpId, lane: Lane) {
        if let Some(w) = self.all.get_mut(&id) {
            w.op.footprint.lane = lane;
        }
    }

    /// One that is ready hangs on another.
    pub(crate) fn hang(&mut self, id: OpId, on: OpId) {
        if let Some(w) = self.all.get_mut(&id)
            && self.ready.remove(&id)
        {
            w.stand = Stand::HangsOn(on);
            self.hanging.insert((on, id));
        }
    }

    /// The latest of those that came before `id` and want what `f` does. Lanes make no
    /// difference here: first in, first out.
    pub(crate) fn earlier(&self, f: &Footprint, id: OpId, attached: &Attached<'_>) -> Option<OpId> {
        if self.all.is_empty() {
            return None;
        }
        let of_end = match f.lease {
            Some(LeaseChange::Ended(lease)) => match attached.count(lease) {
                0..=KEYS_LOOKED_FOR => self.wants.earlier_at(lease, id, attached),
                _ => self.all.range(..id).next_back().map(|x| *x.0),
            },
            _ => None,
        };
        of_end.max(self.wants.earlier(f, id, attached))
    }

    /// Takes all out, in order of arrival.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waiting<W>> + use<W> {
        let all = std::mem::replace(self, WaitingQueue::new()).all;
        all.into_values().map(|w| w.op)
    }

    /// Takes out one that has waited too long.
    pub(crate) fn take_late(&mut self, now_ms: u64) -> Option<Waiting<W>> {
        let &(deadline_ms, id) = self.by_deadline.first()?;
        if deadline_ms > now_ms {
            return None;
        }
        self.remove(id)
    }
}

/// The latest before `id` of those who want a lease.
fn before(set: &BTreeSet<(i64, OpId)>, of: i64, id: OpId) -> Option<OpId> {
    set.range((of, 0)..(of, id)).next_back().map(|x| x.1)
}

impl Wants {
    fn change(&mut self, f: &Footprint, id: OpId, add: bool) {
        self.steps.add(f.len() as u64);
        for a in f.accesses() {
            let of = match a.writes {
                true => &mut self.writes,
                false => &mut self.reads,
            };
            if add {
                of.insert(Interval::from(&a.range), id);
            } else {
                of.remove(&a.range.interval(), id);
            }
        }
        fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, add: bool) {
            if add {
                set.insert(value);
            } else {
                set.remove(&value);
            }
        }
        for &lease in &f.leases_used {
            put(&mut self.leases_used, (lease, id), add);
        }
        if let Some(change) = f.lease {
            put(&mut self.leases_changed, (change.id(), id), add);
            if matches!(change, LeaseChange::Ended(_)) {
                put(&mut self.ends, id, add);
            }
        }
        if f.reads_history {
            put(&mut self.history_readers, id, add);
        }
        if f.compacts {
            put(&mut self.compactions, id, add);
        }
    }

    fn earlier(&self, f: &Footprint, id: OpId, attached: &Attached<'_>) -> Option<OpId> {
        self.steps.add(f.len() as u64);
        let used = f.leases_used.iter();
        let mut latest = used
            .filter_map(|l| before(&self.leases_changed, *l, id))
            .max();
        if let Some(change) = f.lease {
            latest = latest
                .max(before(&self.leases_changed, change.id(), id))
                .max(before(&self.leases_used, change.id(), id));
        }
        let last = |set: &BTreeSet<OpId>| set.range(..id).next_back().copied();
        if f.reads_history || f.compacts {
            latest = latest.max(last(&self.compactions));
        }
        if f.compacts {
            latest = latest.max(last(&self.history_readers));
        }
        for a in f.accesses() {
            let with = a.range.interval();
            latest = latest.max(self.writes.latest(&with, id));
            if a.writes {
                latest = latest.max(self.reads.latest(&with, id));
            }
            if self.ends.is_empty() {
                continue;
            }
            // The end of a lease may delete keys of any range.
            latest = latest.max(match a.range.is_one() {
                true => attached
                    .lease_of(&a.range.key)
                    .and_then(|lease| before(&self.leases_changed, lease, id)),
                false => last(&self.ends),
            });
        }
        latest
    }

    /// The latest before `id` that wants a key of a lease.
    fn earlier_at(&self, lease: i64, id: OpId, attached: &Attached<'_>) -> Option<OpId> {
        let of_key = |key: &[u8]| {
            let with = Interval::one(key);
            self.writes
                .latest(&with, id)
                .max(self.reads.latest(&with, id))
        };
        attached.keys_of(lease).filter_map(of_key).max()
    }
}
