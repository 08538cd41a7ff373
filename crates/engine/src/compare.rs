//! Compares of transactions: whether one holds for every key of its range, in slices.

use crate::index::Index;
use crate::op::{Compare, Operator, Target};
use crate::tail::{self, Fields, Key};
use std::ops::Bound;

/// Bytes of a value that are compared at the price of visiting a key.
const VALUE_BYTES_A_VISIT: usize = 4096;

/// Where a compare over a range stands.
#[derive(Debug, Default)]
pub(crate) struct CompareCursor {
    after: Option<Key>,
    /// Whether any key was there to compare.
    any: bool,
}

impl CompareCursor {
    /// Goes on comparing the keys as they stood at `revision`, for what is `left` of visits.
    /// Says whether the compare holds, or nothing yet if `left` is used up first.
    pub(crate) fn step(
        &mut self,
        c: &Compare,
        index: &Index,
        revision: i64,
        left: &mut usize,
    ) -> Option<bool> {
        if c.range.is_one() {
            *left = left.saturating_sub(cost(c));
            let tail = index
                .get(&c.range.key)
                .and_then(|entry| entry.live_at(revision));
            return Some(match tail {
                Some(tail) => holds(c, &tail::decode(tail)),
                None => holds_for_none(c),
            });
        }
        let after = self.after.take();
        let start = match &after {
            Some(key) => Bound::Excluded(key.as_ref()),
            None => Bound::Included(c.range.key.as_ref()),
        };
        let end = c.range.upper().map_or(Bound::Unbounded, Bound::Excluded);
        for entry in index.range(start, end) {
            if let Some(tail) = entry.live_at(revision) {
                self.any = true;
                if !holds(c, &tail::decode(tail)) {
                    return Some(false);
                }
            }
            *left = left.saturating_sub(cost(c));
            if *left == 0 {
                self.after = Some(entry.key().clone());
                return None;
            }
        }
        Some(self.any || holds_for_none(c))
    }
}

/// What comparing with one key costs, in visits.
fn cost(c: &Compare) -> usize {
    match &c.target {
        Target::Value(v) => 1 + v.len() / VALUE_BYTES_A_VISIT,
        _ => 1,
    }
}

/// A value compare on a key that is not there never holds: no value is not "".
pub(crate) fn holds_for_none(c: &Compare) -> bool {
    !matches!(c.target, Target::Value(_)) && holds(c, &Fields::default())
}

/// Whether a compare holds for a key with these fields.
pub(crate) fn holds(c: &Compare, f: &Fields<'_>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let ord = match &c.target {
        Target::Version(v) => f.version.cmp(v),
        Target::Create(v) => f.create_revision.cmp(v),
        Target::Mod(v) => f.mod_revision.cmp(v),
        Target::Value(v) => f.value.cmp(v.as_ref()),
        Target::Lease(v) => f.lease.cmp(v),
        Target::Unknown => Equal,
    };
    match c.operator {
        Operator::Equal => ord == Equal,
        Operator::NotEqual => ord != Equal,
        Operator::Greater => ord == Greater,
        Operator::Less => ord == Less,
        Operator::Unknown => true,
    }
}
