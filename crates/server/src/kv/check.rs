//! etcd's checks of KV requests, in etcd's order: the first failure is the answer.

use crate::status;
use engine::cover::Cover;
use engine::interval::{End, Interval};
use etcd_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use std::collections::BTreeSet;
use std::ops::Bound;
use wire::Status;

pub(super) fn range(r: &RangeRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        return Err(status::empty_key());
    }
    if SortOrder::try_from(r.sort_order).is_err() || SortTarget::try_from(r.sort_target).is_err() {
        return Err(status::invalid_sort_option());
    }
    Ok(())
}

pub(super) fn put(r: &PutRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        Err(status::empty_key())
    } else if r.ignore_value && !r.value.is_empty() {
        Err(status::value_provided())
    } else if r.ignore_lease && r.lease != 0 {
        Err(status::lease_provided())
    } else {
        Ok(())
    }
}

pub(super) fn delete(r: &DeleteRangeRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        Err(status::empty_key())
    } else {
        Ok(())
    }
}

/// Checks a transaction: counts at each depth, each operation, then overlaps.
///
/// # Errors
/// etcd's of the first that fails; `too many operations` also for more than
/// [`max_leaves`] of all depths, which etcd does not limit.
pub(super) fn txn(r: &TxnRequest, max_ops: usize) -> Result<(), Status> {
    let mut left = max_leaves(max_ops);
    txn_ops(r, max_ops as i64, &mut left)?;
    overlaps(&r.success)?;
    overlaps(&r.failure)?;
    Ok(())
}

/// A transaction may hold so many compares and operations in all, nested ones and those of
/// branches that are not taken included: what it may keep the store's lock for.
const MAX_LEAVES: usize = 8192;

/// How many a transaction may hold in all; never fewer than `--max-txn-ops` lets a single
/// level hold.
fn max_leaves(max_ops: usize) -> usize {
    MAX_LEAVES.max(max_ops.saturating_mul(3))
}

fn txn_ops(r: &TxnRequest, max_ops: i64, left: &mut usize) -> Result<(), Status> {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len()) as i64;
    let leaves = r.compare.len() + r.success.len() + r.failure.len();
    let rest = left.checked_sub(leaves).filter(|_| ops <= max_ops);
    *left = rest.ok_or_else(status::too_many_ops)?;
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(status::empty_key());
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete(r)?,
            Some(Request::RequestTxn(r)) => txn_ops(r, max_ops - ops, left)?,
            None => return Err(status::key_not_found()),
        }
    }
    Ok(())
}

/// The keys that a branch puts and those that it may delete.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Cover<&'a [u8]>,
    /// Keys and intervals looked at or moved, for tests.
    steps: usize,
}

impl<'a> Touched<'a> {
    fn delete(&mut self, d: &'a DeleteRangeRequest) {
        // As etcd's interval tree sees it: the end is taken literally, `\0` included.
        let end = match d.range_end.is_empty() {
            true => End::Start,
            false => End::Before(d.range_end.as_ref()),
        };
        self.deletes.insert(Interval {
            start: d.key.as_ref(),
            end,
        });
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), Status> {
        self.steps += 1;
        match !self.deletes.holds(key) && self.puts.insert(key) {
            true => Ok(()),
            false => Err(status::duplicate_key()),
        }
    }

    /// Whether a key that `other` puts is one that this puts or deletes.
    fn meets(&mut self, other: &Touched<'a>) -> bool {
        self.steps += self.puts.len().min(other.puts.len());
        self.steps += self.deletes.len().min(other.puts.len());
        let both = match self.puts.len() < other.puts.len() {
            true => self.puts.iter().any(|key| other.puts.contains(key)),
            false => other.puts.iter().any(|key| self.puts.contains(key)),
        };
        both || match self.deletes.len() < other.puts.len() {
            true => self.deletes.parts().any(|part| other.puts_in(part)),
            false => other.puts.iter().any(|key| self.deletes.holds(key)),
        }
    }

    fn puts_in(&self, part: &Interval<&'a [u8]>) -> bool {
        let end = match part.end {
            End::Start => Bound::Included(part.start),
            End::Before(end) => Bound::Excluded(end),
            End::Open => Bound::Unbounded,
        };
        let within = (Bound::Included(part.start), end);
        self.puts.range::<[u8], _>(within).next().is_some()
    }

    /// Takes in what `other` touches. The smaller goes into the larger, so that a key that is
    /// nested deeply does not move at each depth.
    fn merge(&mut self, mut other: Touched<'a>) {
        self.steps += other.steps;
        if self.puts.len() < other.puts.len() {
            std::mem::swap(&mut self.puts, &mut other.puts);
        }
        if self.deletes.len() < other.deletes.len() {
            std::mem::swap(&mut self.deletes, &mut other.deletes);
        }
        self.steps += other.puts.len() + other.deletes.len();
        self.puts.extend(other.puts);
        other
            .deletes
            .into_parts()
            .for_each(|part| self.deletes.insert(part));
    }
}

/// Refuses a branch that puts a key twice, or puts and deletes it. Nested branches count
/// with their parent, but the two branches of one nested transaction not with each other.
fn overlaps(ops: &[RequestOp]) -> Result<Touched<'_>, Status> {
    let mut all = Touched::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(d)) = &op.request {
            all.delete(d);
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(t)) = &op.request else {
            continue;
        };
        let (success, failure) = (overlaps(&t.success)?, overlaps(&t.failure)?);
        if all.meets(&success) || all.meets(&failure) {
            return Err(status::duplicate_key());
        }
        all.merge(success);
        all.merge(failure);
    }
    for op in ops {
        if let Some(Request::RequestPut(p)) = &op.request {
            all.put(p.key.as_ref())?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn put_op(key: Vec<u8>) -> RequestOp {
        let put = PutRequest {
            key: key.into(),
            ..PutRequest::default()
        };
        RequestOp {
            request: Some(Request::RequestPut(put)),
        }
    }

    fn delete_op(key: Vec<u8>, range_end: Vec<u8>) -> RequestOp {
        let delete = DeleteRangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            ..DeleteRangeRequest::default()
        };
        RequestOp {
            request: Some(Request::RequestDeleteRange(delete)),
        }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        let txn = TxnRequest {
            success,
            failure,
            ..TxnRequest::default()
        };
        RequestOp {
            request: Some(Request::RequestTxn(txn)),
        }
    }

    /// The rule by looking at each pair: puts and deletes of a branch, or none if refused.
    type Plain = (HashSet<Bytes>, Vec<(Bytes, Bytes)>);

    fn plainly(ops: &[RequestOp]) -> Option<Plain> {
        let deletes_of = |ops: &[RequestOp]| {
            let of = |op: &RequestOp| match &op.request {
                Some(Request::RequestDeleteRange(d)) => Some((d.key.clone(), d.range_end.clone())),
                _ => None,
            };
            ops.iter().filter_map(of).collect::<Vec<_>>()
        };
        let hit = |deletes: &[(Bytes, Bytes)], key: &Bytes| {
            deletes.iter().any(|(from, end)| match end.is_empty() {
                true => from == key,
                false => from <= key && key < end,
            })
        };
        let (mut puts, mut deletes) = (HashSet::new(), deletes_of(ops));
        for op in ops {
            if let Some(Request::RequestTxn(t)) = &op.request {
                let (then, or) = (plainly(&t.success)?, plainly(&t.failure)?);
                for key in then.0.union(&or.0) {
                    if puts.contains(key) || hit(&deletes, key) {
                        return None;
                    }
                }
                puts.extend(then.0);
                puts.extend(or.0);
                deletes.extend(then.1);
                deletes.extend(or.1);
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(p)) = &op.request
                && (hit(&deletes, &p.key) || !puts.insert(p.key.clone()))
            {
                return None;
            }
        }
        Some((puts, deletes))
    }

    fn ops() -> impl Strategy<Value = Vec<RequestOp>> {
        let key = || proptest::collection::vec(proptest::sample::select(&b"abcdef"[..]), 1..3);
        let end = prop_oneof![
            Just(Vec::new()),
            Just(b"\0".to_vec()),
            proptest::collection::vec(proptest::sample::select(&b"abcdef"[..]), 1..3)
        ];
        let leaf = prop_oneof![
            3 => key().prop_map(put_op),
            1 => (key(), end).prop_map(|(key, end)| delete_op(key, end)),
        ];
        let op = leaf.prop_recursive(4, 40, 6, |op| {
            let ops = || proptest::collection::vec(op.clone(), 0..5);
            (ops(), ops()).prop_map(|(success, failure)| txn_op(success, failure))
        });
        proptest::collection::vec(op, 0..6)
    }

    proptest! {
        #[test]
        fn overlaps_are_found_as_by_looking_at_each_pair(ops in ops()) {
            prop_assert_eq!(overlaps(&ops).is_ok(), plainly(&ops).is_some());
        }
    }

    #[test]
    fn a_large_transaction_is_checked_in_few_steps() {
        const N: usize = 50_000;
        let key = |n: usize| format!("k{n:08}").into_bytes();
        let put = |n: usize| put_op(key(2 * n));
        let delete = |n: usize| delete_op(key(2 * n + 1), Vec::new());
        let nested = vec![txn_op(
            vec![
                txn_op((0..N).map(delete).collect(), Vec::new()),
                txn_op((0..N).map(put).collect(), Vec::new()),
            ],
            Vec::new(),
        )];
        // One more put and delete at each of many depths, around many.
        let mut deep: Vec<RequestOp> = (100..N).map(put).collect();
        for n in 0..90 {
            deep = vec![put(n), delete(n), txn_op(deep, Vec::new())];
        }
        // Each its own transaction.
        let wide = (0..N)
            .map(|n| txn_op(vec![put(n)], vec![delete(n)]))
            .collect();
        for ops in [nested, deep, wide] {
            let touched = overlaps(&ops).unwrap();
            assert!(touched.puts.len() >= N - 100);
            assert!(touched.steps < 10 * N, "{} steps", touched.steps);
        }
    }

    #[test]
    fn leaves_are_counted_over_all_depths() {
        let puts = |from: usize, n: usize| -> Vec<RequestOp> {
            (from..from + n)
                .map(|n| put_op(format!("k{n}").into_bytes()))
                .collect()
        };
        // 120 at the top, each with 8 of its own: every level has fewer than 128.
        let wide = |each: usize| TxnRequest {
            success: (0..120)
                .map(|n| txn_op(puts(n * 1000, each), puts(n * 1000, 0)))
                .collect(),
            ..TxnRequest::default()
        };
        assert!(txn(&wide(8), 128).is_ok());
        let most = TxnRequest {
            success: (0..64)
                .map(|n| {
                    txn_op(
                        puts(n * 1000, 60),
                        vec![txn_op(puts(n * 1000, 200), Vec::new())],
                    )
                })
                .collect(),
            ..TxnRequest::default()
        };
        let refused = txn(&most, 400).unwrap_err();
        assert_eq!(refused.code, status::too_many_ops().code);
        // What a single level may hold is never too much.
        let level = TxnRequest {
            success: puts(0, 20_000),
            failure: puts(0, 20_000),
            ..TxnRequest::default()
        };
        assert!(txn(&level, 20_000).is_ok());
        assert!(txn(&level, 19_999).is_err());
    }
}
