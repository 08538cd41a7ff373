//! etcd's checks of KV requests, in etcd's order: the first failure is the answer.

use crate::status;
use bytes::Bytes;
use etcd_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use std::collections::HashSet;
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
pub(super) fn txn(r: &TxnRequest, max_ops: usize) -> Result<(), Status> {
    txn_ops(r, max_ops as i64)?;
    overlaps(&r.success)?;
    overlaps(&r.failure)?;
    Ok(())
}

fn txn_ops(r: &TxnRequest, max_ops: i64) -> Result<(), Status> {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len()) as i64;
    if ops > max_ops {
        return Err(status::too_many_ops());
    }
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(status::empty_key());
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete(r)?,
            Some(Request::RequestTxn(r)) => txn_ops(r, max_ops - ops)?,
            None => return Err(status::key_not_found()),
        }
    }
    Ok(())
}

/// The keys that a branch puts and the ranges that it deletes.
#[derive(Default)]
struct Touched<'a> {
    puts: HashSet<&'a Bytes>,
    deletes: Vec<(&'a Bytes, &'a Bytes)>,
}

impl Touched<'_> {
    /// As etcd's interval tree sees it: the end is taken literally, `\0` included.
    fn deletes(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|(from, end)| {
            if end.is_empty() {
                *from == key
            } else {
                *from <= key && key < *end
            }
        })
    }
}

/// Refuses a branch that puts a key twice, or puts and deletes it. Nested branches count
/// with their parent, but the two branches of one nested transaction not with each other.
fn overlaps(ops: &[RequestOp]) -> Result<Touched<'_>, Status> {
    let mut all = Touched::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(d)) = &op.request {
            all.deletes.push((&d.key, &d.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(t)) = &op.request else {
            continue;
        };
        let (success, failure) = (overlaps(&t.success)?, overlaps(&t.failure)?);
        for key in &success.puts {
            if all.deletes(key) || !all.puts.insert(key) {
                return Err(status::duplicate_key());
            }
        }
        for key in &failure.puts {
            let twice = all.puts.contains(key) && !success.puts.contains(key);
            if twice || all.deletes(key) {
                return Err(status::duplicate_key());
            }
            all.puts.insert(key);
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(p)) = &op.request
            && (all.deletes(&p.key) || !all.puts.insert(&p.key))
        {
            return Err(status::duplicate_key());
        }
    }
    Ok(all)
}
