//! A set of keys as disjoint intervals: what a transaction has deleted so far, or may delete.

use crate::interval::{Bounds, Interval};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Keys, by the intervals that they fill.
#[derive(Debug)]
pub struct Cover<K> {
    /// By start; none overlaps another, none is empty.
    parts: BTreeMap<K, Interval<K>>,
}

impl<K> Default for Cover<K> {
    fn default() -> Self {
        Cover {
            parts: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone + AsRef<[u8]> + Borrow<[u8]>> Cover<K> {
    /// Number of intervals.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether no key is in it.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The intervals, by start.
    pub fn parts(&self) -> impl Iterator<Item = &Interval<K>> {
        self.parts.values()
    }

    /// The intervals, by start, taken out.
    pub fn into_parts(self) -> impl Iterator<Item = Interval<K>> {
        self.parts.into_values()
    }

    /// Adds the keys of an interval.
    pub fn insert(&mut self, mut interval: Interval<K>) {
        if interval.is_empty() {
            return;
        }
        if let Some(before) = self.at_or_before(interval.start.as_ref())
            && before.reaches(interval.start.as_ref())
        {
            if before.cmp_end(&interval).is_ge() {
                return;
            }
            interval.start = before.start.clone();
        }
        while let Some((start, next)) = self.next(interval.start.as_ref())
            && interval.reaches(start.as_ref())
        {
            if next.cmp_end(&interval).is_gt() {
                interval.end = next.end.clone();
            }
            let start = start.clone();
            self.parts.remove::<[u8]>(start.borrow());
        }
        self.parts.insert(interval.start.clone(), interval);
    }

    /// Whether `key` is in it.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.at_or_before(key).is_some_and(|part| part.reaches(key))
    }

    /// What lies between `start` and `end` and is not in it, in order.
    pub(crate) fn gaps<'a>(&'a self, start: &'a [u8], end: Option<&'a [u8]>) -> Vec<Bounds<'a>> {
        let to = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut from = Bound::Included(start);
        let mut gaps = Vec::new();
        if end.is_some_and(|end| end <= start) {
            return gaps;
        }
        let before = self
            .at_or_before(start)
            .filter(|part| part.reaches(start) && part.start.as_ref() < start);
        let within = self.parts.range::<[u8], _>((Bound::Included(start), to));
        for part in before.into_iter().chain(within.map(|x| x.1)) {
            if part.start.as_ref() > start {
                gaps.push((from, Bound::Excluded(part.start.as_ref())));
            }
            match part.behind() {
                Some(behind) => from = behind,
                None => return gaps,
            }
        }
        gaps.push((from, to));
        gaps
    }

    fn at_or_before(&self, key: &[u8]) -> Option<&Interval<K>> {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.parts.range::<[u8], _>(upto).next_back().map(|x| x.1)
    }

    fn next(&self, from: &[u8]) -> Option<(&K, &Interval<K>)> {
        let on = (Bound::Included(from), Bound::Unbounded);
        self.parts.range::<[u8], _>(on).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interval::End;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(proptest::sample::select(&b"\0abc"[..]), 0..3)
    }

    fn interval() -> impl Strategy<Value = Interval<Vec<u8>>> {
        (key(), key(), 0..5).prop_map(|(start, end, kind)| Interval {
            start,
            end: match kind {
                0 => End::Start,
                1 => End::Open,
                _ => End::Before(end),
            },
        })
    }

    fn within(gap: &Bounds<'_>, key: &[u8]) -> bool {
        let from = match gap.0 {
            Bound::Included(k) => key >= k,
            Bound::Excluded(k) => key > k,
            Bound::Unbounded => true,
        };
        from && match gap.1 {
            Bound::Excluded(k) => key < k,
            Bound::Included(k) => key <= k,
            Bound::Unbounded => true,
        }
    }

    proptest! {
        #[test]
        fn holds_what_was_added_and_gaps_are_the_rest(
            intervals in proptest::collection::vec(interval(), 0..12),
            keys in proptest::collection::vec(key(), 1..20),
            start in key(),
            end in proptest::option::of(key()),
        ) {
            let mut cover = Cover::default();
            intervals.iter().for_each(|i| cover.insert(i.clone()));
            let gaps = cover.gaps(&start, end.as_deref());
            for key in &keys {
                let held = intervals.iter().any(|i| !i.is_empty() && *key >= i.start && i.reaches(key));
                prop_assert_eq!(cover.holds(key), held);
                let asked = *key >= start && end.as_ref().is_none_or(|e| key < e);
                let found = gaps.iter().filter(|g| within(g, key)).count();
                prop_assert_eq!(found, usize::from(asked && !held), "{:?} in {:?}", key, gaps);
            }
            for (a, b) in cover.parts().zip(cover.parts().skip(1)) {
                prop_assert!(!a.reaches(&b.start));
            }
        }
    }
}
