//! Transactions out of chance.

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;
use pb::compare::{CompareTarget, TargetUnion};
use pb::request_op::Request;

use super::generate::Generator;
use super::op::State;

/// Deepest nesting of transactions.
const MAX_DEPTH: usize = 3;

impl Generator {
    /// A transaction. Deep inside others it has few operations.
    pub(super) fn txn(&mut self, state: &State, depth: usize) -> pb::TxnRequest {
        let compares = match self.rng.below(200) {
            0 => 129,
            _ => self.rng.below(4),
        };
        if depth == 0 {
            self.puts_in_txn = self.rng.chance(80);
        }
        // Some that only read, which etcd serves differently.
        let read_only = self.rng.chance(15);
        let mut branch = || {
            let ops = self.branch_len(depth);
            (0..ops)
                .map(|_| self.txn_op(state, depth, read_only, ops))
                .collect()
        };
        let success = branch();
        let failure = branch();
        pb::TxnRequest {
            compare: (0..compares).map(|_| self.compare(state)).collect(),
            success,
            failure,
        }
    }

    /// What kube-apiserver does to write: if the object is as it was read, put or delete it,
    /// else read it again.
    pub(super) fn guarded_write(&mut self, state: &State) -> pb::TxnRequest {
        let key = self.key();
        let at = state.read_at.get(&key).copied().unwrap_or_default();
        let compare = pb::Compare {
            result: pb::compare::CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::ModRevision(at)),
        };
        let write = if at > 0 && self.rng.chance(20) {
            Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: key.clone(),
                ..pb::DeleteRangeRequest::default()
            })
        } else {
            Request::RequestPut(pb::PutRequest {
                value: self.value(&key),
                key: key.clone(),
                ..pb::PutRequest::default()
            })
        };
        let read = Request::RequestRange(pb::RangeRequest {
            key,
            ..pb::RangeRequest::default()
        });
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        pb::TxnRequest {
            compare: vec![compare],
            success: vec![op(write)],
            failure: vec![op(read)],
        }
    }

    fn txn_op(
        &mut self,
        state: &State,
        depth: usize,
        read_only: bool,
        ops: usize,
    ) -> pb::RequestOp {
        let request = match self.rng.below(20) {
            _ if read_only => Request::RequestRange(self.range_in_txn(state)),
            0..7 => Request::RequestRange(self.range_in_txn(state)),
            7..14 if self.puts_in_txn => Request::RequestPut(self.put_in_txn(state, ops)),
            14..17 => Request::RequestDeleteRange(self.delete_in_txn()),
            17..19 if depth < MAX_DEPTH => Request::RequestTxn(self.txn(state, depth + 1)),
            19 if self.rng.chance(10) => return pb::RequestOp { request: None },
            _ if self.puts_in_txn => Request::RequestPut(self.put_in_txn(state, ops)),
            _ => Request::RequestDeleteRange(self.delete_in_txn()),
        };
        pb::RequestOp {
            request: Some(request),
        }
    }

    /// Most wrong requests make the whole transaction fail, so they are rarer here.
    fn range_in_txn(&mut self, state: &State) -> pb::RangeRequest {
        let mut request = self.range(state);
        if self.rng.chance(80) {
            request.revision = 0;
            request.sort_order %= 3;
            request.sort_target %= 5;
        }
        request
    }

    fn put_in_txn(&mut self, state: &State, ops: usize) -> pb::PutRequest {
        let mut request = self.put(state);
        if self.rng.chance(70) {
            // Those of a key that is not there make the whole transaction fail.
            request.ignore_value = false;
            request.ignore_lease = false;
        }
        if ops > 8 {
            // As many keys as operations, or all of these would be refused for
            // writing a key twice.
            request.key = Bytes::from(format!("z/{:03}", self.rng.below(20_000)));
            request.value.truncate(8);
        }
        request
    }

    /// etcd's check for a key that is deleted and put in one transaction does not see that a
    /// range ends at the last key of all. It then falls over (3.7.3, index out of range in put)
    /// if the put needs the value that was there, and loses what was put if a compaction comes
    /// at that revision, falling over later. So a transaction has either puts or such ranges.
    fn delete_in_txn(&mut self) -> pb::DeleteRangeRequest {
        let mut request = self.delete_range();
        if self.puts_in_txn && request.range_end.as_ref() == b"\0" {
            request.range_end = Bytes::new();
        }
        request
    }

    fn compare(&mut self, state: &State) -> pb::Compare {
        let (key, range_end) = self.interval();
        let range_end = if self.rng.chance(70) {
            Bytes::new()
        } else {
            range_end
        };
        let target = self.rng.between(0, 4) as i32;
        let union_of = if self.rng.chance(95) {
            target
        } else {
            self.rng.between(0, 5) as i32
        };
        let target_union = match CompareTarget::try_from(union_of) {
            Ok(CompareTarget::Version) => Some(TargetUnion::Version(self.rng.between(-1, 3))),
            Ok(CompareTarget::Create) => {
                Some(TargetUnion::CreateRevision(self.compared_revision(state)))
            }
            Ok(CompareTarget::Mod) => Some(TargetUnion::ModRevision(self.compared_revision(state))),
            Ok(CompareTarget::Value) => Some(TargetUnion::Value(Bytes::from(format!(
                "v{}",
                self.rng.below(3)
            )))),
            Ok(CompareTarget::Lease) => Some(TargetUnion::Lease(self.rng.between(0, 3))),
            Err(_) => None,
        };
        pb::Compare {
            result: if self.rng.chance(2) {
                9
            } else {
                self.rng.between(0, 3) as i32
            },
            target: if self.rng.chance(2) { 9 } else { target },
            key,
            range_end,
            target_union,
        }
    }

    fn compared_revision(&mut self, state: &State) -> i64 {
        if self.rng.chance(40) {
            0
        } else {
            self.revision(state)
        }
    }
}
