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
use std::collections::BTreeMap;
use std::ops::Bound;

/// Number of lanes: durable writes use lane 0; the other is the seam for volatile ones.
pub const LANES: usize = 2;

/// What an operation reads and writes.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// Which lane it takes to become visible.
    pub lane: usize,
    /// What its evaluation reads.
    pub reads: Vec<KeyRange>,
    /// What it writes: keys, and the whole range of a DeleteRange.
    pub writes: Vec<KeyRange>,
    /// Leases that it needs to go on existing.
    pub leases_used: Vec<i64>,
    /// The lease that it grants or revokes.
    pub lease_changed: Option<i64>,
    /// It reads at a fixed revision.
    pub reads_history: bool,
    /// It moves the compact revision.
    pub compacts: bool,
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
    keys: BTreeMap<Bytes, Counts>,
    ranges: Vec<(KeyRange, usize, bool)>,
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
        for (ranges, is_write) in [(&f.reads, false), (&f.writes, true)] {
            for r in ranges {
                if r.is_one() {
                    let c = self.keys.entry(r.key.clone()).or_default();
                    let n = if is_write {
                        &mut c.writes[f.lane]
                    } else {
                        &mut c.reads[f.lane]
                    };
                    *n = if up { *n + 1 } else { n.saturating_sub(1) };
                    if c.is_zero() {
                        self.keys.remove(&r.key);
                    }
                } else if up {
                    self.ranges.push((r.clone(), f.lane, is_write));
                } else if let Some(i) = self
                    .ranges
                    .iter()
                    .position(|x| x.1 == f.lane && x.2 == is_write && &x.0 == r)
                {
                    self.ranges.swap_remove(i);
                }
            }
        }
        for &id in &f.leases_used {
            bump(&mut self.leases_used, id, up);
        }
        if let Some(id) = f.lease_changed {
            bump(&mut self.leases_changed, id, up);
        }
        let step = |n: &mut u32| *n = if up { *n + 1 } else { n.saturating_sub(1) };
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
        let counts = |c: &Counts, is_write: bool| {
            (0..LANES).any(|lane| {
                let other = strict_order || lane != f.lane;
                if is_write {
                    other && (c.writes[lane] > 0 || c.reads[lane] > 0)
                } else {
                    c.writes[lane] > 0
                }
            })
        };
        for (ranges, is_write) in [(&f.reads, false), (&f.writes, true)] {
            for r in ranges {
                let hit = if r.is_one() {
                    self.keys.get(&r.key).is_some_and(|c| counts(c, is_write))
                } else {
                    self.held_keys(r).any(|c| counts(c, is_write))
                };
                let range_hit = self.ranges.iter().any(|(held, lane, held_write)| {
                    // Within a lane the keys that a pending DeleteRange deletes are locked
                    // one by one; the range as such stops only other lanes.
                    (strict_order || *lane != f.lane)
                        && (is_write || *held_write)
                        && overlap(held, r)
                });
                if hit || range_hit {
                    return true;
                }
            }
        }
        false
    }

    fn held_keys<'a>(&'a self, r: &'a KeyRange) -> impl Iterator<Item = &'a Counts> + 'a {
        let upper = r.upper();
        let empty = upper.is_some_and(|e| e <= r.key.as_ref());
        let end = upper.map_or(Bound::Unbounded, Bound::Excluded);
        let range = (!empty).then(|| {
            self.keys
                .range::<[u8], _>((Bound::Included(r.key.as_ref()), end))
        });
        range.into_iter().flatten().map(|(_, c)| c)
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
        Footprint {
            lane,
            writes: vec![range(key, "")],
            ..Footprint::default()
        }
    }

    fn cas(lane: usize, key: &'static str) -> Footprint {
        Footprint {
            reads: vec![range(key, "")],
            ..put(lane, key)
        }
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
        let del = Footprint {
            reads: vec![range("a", "c")],
            writes: vec![range("a", "c")],
            ..Footprint::default()
        };
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
