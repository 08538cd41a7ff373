//! Which watchers an event concerns: ranges, found by key.
//!
//! Ranges lie in one array sorted by start, each knowing the highest end at or before it,
//! so that a lookup walks back from the key only while a match is still possible. Single
//! keys, the most common ranges of some clients, are found by a hash.

use crate::op::KeyRange;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};

/// A set of ranges with an id each.
#[derive(Debug, Default)]
pub struct RangeSet {
    keys: HashMap<Bytes, Vec<u64>>,
    ranges: Vec<(KeyRange, u64)>,
    /// For each position the highest end so far; `None` when open. Empty when stale.
    max_end: Vec<Option<Bytes>>,
}

impl RangeSet {
    /// Adds a range.
    pub fn insert(&mut self, range: KeyRange, id: u64) {
        if range.is_one() {
            self.keys.entry(range.key).or_default().push(id);
        } else {
            let at = self.ranges.partition_point(|(r, _)| r.key <= range.key);
            self.ranges.insert(at, (range, id));
            self.max_end.clear();
        }
    }

    /// Removes a range.
    pub fn remove(&mut self, range: &KeyRange, id: u64) {
        if range.is_one() {
            if let Some(ids) = self.keys.get_mut(&range.key) {
                ids.retain(|&i| i != id);
                if ids.is_empty() {
                    self.keys.remove(&range.key);
                }
            }
        } else {
            self.ranges.retain(|(_, i)| *i != id);
            self.max_end.clear();
        }
    }

    /// Removes many ranges in one pass.
    pub fn remove_all(&mut self, ids: &HashSet<u64>) {
        self.keys.retain(|_, of_key| {
            of_key.retain(|id| !ids.contains(id));
            !of_key.is_empty()
        });
        self.ranges.retain(|(_, id)| !ids.contains(id));
        self.max_end.clear();
    }

    /// Appends the ids of all ranges that hold `key`.
    pub fn find(&mut self, key: &[u8], out: &mut Vec<u64>) {
        if let Some(ids) = self.keys.get(key) {
            out.extend_from_slice(ids);
        }
        if self.max_end.len() != self.ranges.len() {
            self.rebuild();
        }
        let n = self.ranges.partition_point(|(r, _)| r.key.as_ref() <= key);
        for i in (0..n).rev() {
            if self.max_end[i]
                .as_ref()
                .is_some_and(|end| end.as_ref() <= key)
            {
                break;
            }
            let (range, id) = &self.ranges[i];
            if range.contains(key) {
                out.push(*id);
            }
        }
    }

    fn rebuild(&mut self) {
        let mut max: Option<Bytes> = Some(Bytes::new());
        self.max_end.clear();
        for (r, _) in &self.ranges {
            max = match (max, r.upper()) {
                (Some(m), Some(end)) if m.as_ref() >= end => Some(m),
                (Some(_), Some(_)) => Some(r.end.clone()),
                _ => None,
            };
            self.max_end.push(max.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exactly_the_ranges_that_hold_the_key() {
        let b = |s: &'static str| Bytes::from_static(s.as_bytes());
        let ranges = [
            ("a", "c"),
            ("b", ""),
            ("b", "\0"),
            ("a", "b"),
            ("c", "d"),
            ("x", "y"),
        ];
        let mut set = RangeSet::default();
        for (i, (k, e)) in ranges.iter().enumerate() {
            set.insert(
                KeyRange {
                    key: b(k),
                    end: b(e),
                },
                i as u64,
            );
        }
        for key in ["a", "aa", "b", "bb", "c", "cc", "d", "x", "z"] {
            let mut got = Vec::new();
            set.find(key.as_bytes(), &mut got);
            got.sort_unstable();
            let want: Vec<u64> = ranges
                .iter()
                .enumerate()
                .filter(|(_, (k, e))| {
                    KeyRange {
                        key: b(k),
                        end: b(e),
                    }
                    .contains(key.as_bytes())
                })
                .map(|(i, _)| i as u64)
                .collect();
            assert_eq!(got, want, "{key}");
        }
        let mut some = RangeSet::default();
        for (i, (k, e)) in ranges.iter().enumerate() {
            let range = KeyRange {
                key: b(k),
                end: b(e),
            };
            some.insert(range, i as u64);
        }
        some.remove_all(&[1, 2, 3].into());
        let mut left = Vec::new();
        some.find(b"b", &mut left);
        assert_eq!(left, [0]);
        set.remove(
            &KeyRange {
                key: b("b"),
                end: b("\0"),
            },
            2,
        );
        let mut got = Vec::new();
        set.find(b"z", &mut got);
        assert!(got.is_empty());
    }

    fn text() -> impl proptest::strategy::Strategy<Value = Bytes> {
        use proptest::strategy::Strategy;
        proptest::collection::vec(proptest::sample::select(&b"\0abc"[..]), 0..3)
            .prop_map(Bytes::from)
    }

    proptest::proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            ranges in proptest::collection::vec((text(), text(), proptest::bool::ANY), 0..20),
            keys in proptest::collection::vec(text(), 1..10),
        ) {
            let mut set = RangeSet::default();
            let mut held = Vec::new();
            for (i, (key, end, stays)) in ranges.into_iter().enumerate() {
                let range = KeyRange { key, end };
                set.insert(range.clone(), i as u64);
                held.push((range, i as u64, stays));
            }
            for pass in 0..2 {
                for key in &keys {
                    let mut got = Vec::new();
                    set.find(key, &mut got);
                    got.sort_unstable();
                    let want: Vec<u64> = held
                        .iter()
                        .filter(|(r, _, stays)| (pass == 0 || *stays) && r.contains(key))
                        .map(|x| x.1)
                        .collect();
                    proptest::prop_assert_eq!(got, want);
                }
                for (r, i, stays) in &held {
                    if !stays {
                        set.remove(r, *i);
                    }
                }
            }
        }
    }
}
