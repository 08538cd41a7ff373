//! Locks of operations that are admitted but not yet visible.
//!
//! An operation evaluates against the visible state, so it may not start while a pending
//! operation could change what it reads. Operations of one lane become visible in the
//! order of admission; those of different lanes in any order, so between lanes every
//! overlap of a write with a read or a write conflicts, ranges included (a create inside
//! a pending DeleteRange must not slip in before it and survive it). Within a lane an
//! unconditional put conflicts with nothing: what it does follows from the state it is
//! applied to, so such puts chain in one batch.

use crate::op::KeyRange;
use bytes::Bytes;
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// Number of lanes: [`crate::op::DURABLE`] and [`crate::op::VOLATILE`].
pub const LANES: usize = 2;

/// A key or range that an operation reads or writes, or both.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    range: KeyRange,
    reads: bool,
    writes: bool,
}

/// What an operation reads and writes.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// Which lane it takes to become visible.
    pub lane: usize,
    /// Most operations have one access; it needs no allocation.
    pub(crate) first: Option<Access>,
    pub(crate) rest: Vec<Access>,
    /// Leases that it needs to go on existing.
    pub leases_used: Vec<i64>,
    /// The lease that it grants or revokes.
    pub lease_changed: Option<i64>,
    /// It reads at a fixed revision.
    pub reads_history: bool,
    /// It moves the compact revision.
    pub compacts: bool,
}

impl Footprint {
    /// Its evaluation reads `range`.
    pub fn read(&mut self, range: KeyRange) {
        self.access(range, true, false);
    }

    /// It writes `range`: a key, or the whole range of a DeleteRange.
    pub fn write(&mut self, range: KeyRange) {
        self.access(range, false, true);
    }

    fn access(&mut self, range: KeyRange, reads: bool, writes: bool) {
        match &mut self.first {
            Some(a) if a.range == range => {
                a.reads |= reads;
                a.writes |= writes;
            }
            Some(_) => self.rest.push(Access {
                range,
                reads,
                writes,
            }),
            first => {
                *first = Some(Access {
                    range,
                    reads,
                    writes,
                });
            }
        }
    }

    /// The only thing that it touches, if that is one key.
    pub fn only_key(&self) -> Option<&Bytes> {
        let plain = self.rest.is_empty()
            && self.leases_used.is_empty()
            && self.lease_changed.is_none()
            && !self.reads_history
            && !self.compacts;
        let range = self.first.as_ref().map(|a| &a.range);
        range.filter(|r| plain && r.is_one()).map(|r| &r.key)
    }

    fn accesses(&self) -> impl Iterator<Item = &Access> {
        self.first.iter().chain(&self.rest)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    reads: [u32; LANES],
    writes: [u32; LANES],
}

impl Counts {
    fn is_zero(&self) -> bool {
        self.reads == [0; LANES] && self.writes == [0; LANES]
    }
}

/// Counted locks on keys, ranges, leases and the compact revision.
#[derive(Debug, Default)]
pub struct Locks {
    keys: HashMap<Bytes, Counts>,
    ranges: Vec<(Access, usize)>,
    leases_used: BTreeMap<i64, u32>,
    leases_changed: BTreeMap<i64, u32>,
    history_readers: u32,
    compactions: u32,
}

fn overlap(a: &KeyRange, b: &KeyRange) -> bool {
    if a.is_one() {
        return b.contains(&a.key);
    }
    if b.is_one() {
        return a.contains(&b.key);
    }
    a.upper().is_none_or(|end| b.key.as_ref() < end)
        && b.upper().is_none_or(|end| a.key.as_ref() < end)
}

fn bump<K: Ord>(map: &mut BTreeMap<K, u32>, k: K, up: bool) {
    if up {
        *map.entry(k).or_default() += 1;
    } else if let Some(n) = map.get_mut(&k) {
        *n -= 1;
        if *n == 0 {
            map.remove(&k);
        }
    }
}

impl Locks {
    /// Whether no lock is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.ranges.is_empty()
            && self.leases_used.is_empty()
            && self.leases_changed.is_empty()
            && self.history_readers == 0
            && self.compactions == 0
    }

    /// Takes all locks of an operation.
    pub fn add(&mut self, f: &Footprint) {
        self.change(f, true);
    }

    /// Gives them back.
    pub fn remove(&mut self, f: &Footprint) {
        self.change(f, false);
    }

    fn change(&mut self, f: &Footprint, up: bool) {
        let step = |n: &mut u32| *n = if up { *n + 1 } else { n.saturating_sub(1) };
        for a in f.accesses() {
            if a.range.is_one() {
                let c = self.keys.entry_ref(&a.range.key).or_default();
                if a.reads {
                    step(&mut c.reads[f.lane]);
                }
                if a.writes {
                    step(&mut c.writes[f.lane]);
                }
                if !up && c.is_zero() {
                    self.keys.remove(&a.range.key);
                }
            } else if up {
                self.ranges.push((a.clone(), f.lane));
            } else if let Some(i) = self.ranges.iter().position(|(held, lane)| {
                *lane == f.lane
                    && (held.reads, held.writes) == (a.reads, a.writes)
                    && held.range == a.range
            }) {
                self.ranges.swap_remove(i);
            }
        }
        for &id in &f.leases_used {
            bump(&mut self.leases_used, id, up);
        }
        if let Some(id) = f.lease_changed {
            bump(&mut self.leases_changed, id, up);
        }
        if f.reads_history {
            step(&mut self.history_readers);
        }
        if f.compacts {
            step(&mut self.compactions);
        }
    }

    /// Whether `f` must wait for a holder. With `strict_order` (against those that wait
    /// already) lanes make no difference: first in, first out.
    pub fn conflicts(&self, f: &Footprint, strict_order: bool) -> bool {
        if f.leases_used
            .iter()
            .any(|id| self.leases_changed.contains_key(id))
            || f.lease_changed.is_some_and(|id| {
                self.leases_changed.contains_key(&id) || self.leases_used.contains_key(&id)
            })
            || (f.reads_history && self.compactions > 0)
            || (f.compacts && self.compactions + self.history_readers > 0)
        {
            return true;
        }
        if self.keys.is_empty() && self.ranges.is_empty() {
            return false;
        }
        let counts = |c: &Counts, a: &Access| {
            (0..LANES).any(|lane| {
                let other = strict_order || lane != f.lane;
                (a.reads && c.writes[lane] > 0)
                    || (a.writes && other && (c.writes[lane] > 0 || c.reads[lane] > 0))
            })
        };
        f.accesses().any(|a| {
            let hit = if a.range.is_one() {
                self.keys.get(&a.range.key).is_some_and(|c| counts(c, a))
            } else {
                // Keys are not in order here: a hash serves the common case, and few
                // operations are on a range.
                let mut held = self.keys.iter();
                held.any(|(k, c)| a.range.contains(k) && counts(c, a))
            };
            hit || self.ranges.iter().any(|(held, lane)| {
                // Within a lane the keys that a pending DeleteRange deletes are locked
                // one by one; the range as such stops only other lanes.
                (strict_order || *lane != f.lane)
                    && (a.writes || held.writes)
                    && overlap(&held.range, &a.range)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(a: &'static str, b: &'static str) -> KeyRange {
        KeyRange {
            key: Bytes::from_static(a.as_bytes()),
            end: Bytes::from_static(b.as_bytes()),
        }
    }

    fn put(lane: usize, key: &'static str) -> Footprint {
        let mut f = Footprint {
            lane,
            ..Footprint::default()
        };
        f.write(range(key, ""));
        f
    }

    fn cas(lane: usize, key: &'static str) -> Footprint {
        let mut f = put(lane, key);
        f.read(range(key, ""));
        f
    }

    #[test]
    fn puts_chain_within_a_lane_and_wait_across_lanes() {
        let mut l = Locks::default();
        l.add(&put(0, "a"));
        assert!(!l.conflicts(&put(0, "a"), false));
        assert!(l.conflicts(&put(1, "a"), false));
        assert!(l.conflicts(&cas(0, "a"), false));
        assert!(!l.conflicts(&cas(1, "b"), false));
        l.remove(&put(0, "a"));
        assert!(l.is_empty());
    }

    #[test]
    fn a_pending_delete_range_stops_creates_of_other_lanes() {
        let mut l = Locks::default();
        let mut del = Footprint::default();
        del.read(range("a", "c"));
        del.write(range("a", "c"));
        l.add(&del);
        assert!(!l.conflicts(&put(0, "b"), false));
        assert!(l.conflicts(&put(1, "b"), false));
        assert!(!l.conflicts(&put(1, "c"), false));
        l.remove(&del);
        assert!(l.is_empty());
    }

    #[test]
    fn leases_and_compaction_lock_too() {
        let mut l = Locks::default();
        let revoke = Footprint {
            lease_changed: Some(7),
            ..Footprint::default()
        };
        l.add(&revoke);
        assert!(l.conflicts(
            &Footprint {
                leases_used: vec![7],
                ..put(0, "a")
            },
            false
        ));
        assert!(!l.conflicts(
            &Footprint {
                leases_used: vec![8],
                ..put(0, "a")
            },
            false
        ));
        let read = Footprint {
            reads_history: true,
            ..put(0, "x")
        };
        l.add(&read);
        assert!(l.conflicts(
            &Footprint {
                compacts: true,
                ..Footprint::default()
            },
            false
        ));
    }
}
