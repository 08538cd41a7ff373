//! Checked KV requests in the engine's terms.

use engine::op::{
    Compare, DeleteOp, KeyRange, Op, Operator, PutOp, RangeOp, SortOrder, SortTarget, Target, TxnOp,
};
use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_api::etcdserverpb::range_request;
use etcd_api::etcdserverpb::request_op::Request;

pub(super) fn range(r: pb::RangeRequest) -> RangeOp {
    let sort_order = match r.sort_order() {
        range_request::SortOrder::None => SortOrder::None,
        range_request::SortOrder::Ascend => SortOrder::Ascend,
        range_request::SortOrder::Descend => SortOrder::Descend,
    };
    let sort_target = match r.sort_target() {
        range_request::SortTarget::Key => SortTarget::Key,
        range_request::SortTarget::Version => SortTarget::Version,
        range_request::SortTarget::Create => SortTarget::Create,
        range_request::SortTarget::Mod => SortTarget::Mod,
        range_request::SortTarget::Value => SortTarget::Value,
    };
    RangeOp {
        range: KeyRange {
            key: r.key,
            end: r.range_end,
        },
        limit: r.limit,
        revision: r.revision,
        sort_order,
        sort_target,
        keys_only: r.keys_only,
        count_only: r.count_only,
        min_mod_revision: r.min_mod_revision,
        max_mod_revision: r.max_mod_revision,
        min_create_revision: r.min_create_revision,
        max_create_revision: r.max_create_revision,
    }
}

pub(super) fn put(r: pb::PutRequest) -> PutOp {
    PutOp {
        key: r.key,
        value: r.value,
        lease: r.lease,
        prev_kv: r.prev_kv,
        ignore_value: r.ignore_value,
        ignore_lease: r.ignore_lease,
    }
}

pub(super) fn delete(r: pb::DeleteRangeRequest) -> DeleteOp {
    DeleteOp {
        range: KeyRange {
            key: r.key,
            end: r.range_end,
        },
        prev_kv: r.prev_kv,
    }
}

pub(super) fn txn(r: pb::TxnRequest) -> TxnOp {
    let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().filter_map(op).collect();
    TxnOp {
        compares: r.compare.into_iter().map(compare).collect(),
        success: ops(r.success),
        failure: ops(r.failure),
    }
}

fn op(op: pb::RequestOp) -> Option<Op> {
    Some(match op.request? {
        Request::RequestRange(r) => Op::Range(range(r)),
        Request::RequestPut(r) => Op::Put(put(r)),
        Request::RequestDeleteRange(r) => Op::Delete(delete(r)),
        Request::RequestTxn(r) => Op::Txn(txn(r)),
    })
}

/// A target whose union holds another field compares with that field's default, as in etcd.
fn compare(c: pb::Compare) -> Compare {
    let union = c.target_union;
    let target = match (CompareTarget::try_from(c.target), union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(v))) => Target::Version(v),
        (Ok(CompareTarget::Version), _) => Target::Version(0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(v))) => Target::Create(v),
        (Ok(CompareTarget::Create), _) => Target::Create(0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(v))) => Target::Mod(v),
        (Ok(CompareTarget::Mod), _) => Target::Mod(0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(v))) => Target::Value(v),
        (Ok(CompareTarget::Value), _) => Target::Value(bytes::Bytes::new()),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(v))) => Target::Lease(v),
        (Ok(CompareTarget::Lease), _) => Target::Lease(0),
        (Err(_), _) => Target::Unknown,
    };
    let operator = match CompareResult::try_from(c.result) {
        Ok(CompareResult::Equal) => Operator::Equal,
        Ok(CompareResult::Greater) => Operator::Greater,
        Ok(CompareResult::Less) => Operator::Less,
        Ok(CompareResult::NotEqual) => Operator::NotEqual,
        Err(_) => Operator::Unknown,
    };
    Compare {
        range: KeyRange {
            key: c.key,
            end: c.range_end,
        },
        target,
        operator,
    }
}
