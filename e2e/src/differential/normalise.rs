//! Takes out of two answers what may differ between two stores that behave alike:
//! ids of cluster and member, the raft term, times, and orders that etcd itself
//! leaves to chance. Everything else stays and is compared bit by bit.

use etcd_api::etcdserverpb as pb;
use etcd_api::mvccpb::KeyValue;

use super::op::{Answer, Op};

/// Go sorts up to this many items with an insertion sort, which keeps equal items
/// in order; longer ones with one that does not (`sort.Sort`). etcd's order of
/// equal items is therefore only defined up to here.
const STABLE_SORT_ITEMS: i64 = 12;

/// How far the remaining seconds of a lease may be apart: the two stores granted
/// it at different moments, and round.
const TTL_TOLERANCE_S: i64 = 2;

/// Normalises both answers to `op`.
pub fn normalise(op: &Op, left: &mut [Answer], right: &mut [Answer]) {
    for answer in left.iter_mut().chain(right.iter_mut()) {
        one(op, answer);
    }
    for pair in left.iter().zip(right.iter_mut()) {
        if let (Answer::LeaseTimeToLive(left), Answer::LeaseTimeToLive(right)) = pair
            && left.ttl > 0
            && right.ttl > 0
            && left.ttl.abs_diff(right.ttl) <= TTL_TOLERANCE_S as u64
        {
            right.ttl = left.ttl;
        }
    }
}

fn one(op: &Op, answer: &mut Answer) {
    match answer {
        Answer::Range(response) => {
            header(&mut response.header);
            if let Op::Range(request) = op {
                range(request, response);
            }
        }
        Answer::Put(response) => header(&mut response.header),
        Answer::DeleteRange(response) => header(&mut response.header),
        Answer::Txn(response) => {
            if let Op::Txn(request) = op {
                txn(request, response);
            }
        }
        Answer::Compact(response) => header(&mut response.header),
        Answer::HashKv(response) => header(&mut response.header),
        Answer::LeaseGrant(response) => {
            header(&mut response.header);
            if matches!(op, Op::LeaseGrantAnyId { .. }) {
                response.id = response.id.signum();
            }
        }
        Answer::LeaseRevoke(response) => header(&mut response.header),
        Answer::LeaseTimeToLive(response) => {
            header(&mut response.header);
            if matches!(op, Op::LeaseGrantAnyId { .. }) {
                response.id = response.id.signum();
            }
            // etcd lists them as they come out of a hash map.
            response.keys.sort_unstable();
        }
        Answer::LeaseLeases(response) => header(&mut response.header),
        Answer::LeaseKeepAlive(response) => header(&mut response.header),
        Answer::Watch(response) => header(&mut response.header),
        Answer::Failed { .. } | Answer::Nothing => {}
    }
}

/// Keeps of the ids only whether they are there.
fn header(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = header.cluster_id.min(1);
        header.member_id = header.member_id.min(1);
        header.raft_term = header.raft_term.min(1);
    }
}

fn txn(request: &pb::TxnRequest, response: &mut pb::TxnResponse) {
    use pb::request_op::Request;
    use pb::response_op::Response;

    header(&mut response.header);
    let ops = if response.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, answer) in ops.iter().zip(&mut response.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(response))) => {
                header(&mut response.header);
                range(request, response);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(response))) => {
                txn(request, response);
            }
            (_, Some(Response::ResponsePut(response))) => header(&mut response.header),
            (_, Some(Response::ResponseDeleteRange(response))) => header(&mut response.header),
            _ => {}
        }
    }
}

/// Puts keys that are equal by the sort target into the order of their names,
/// where etcd's order is not defined. Of the last group, which a limit may have
/// cut anywhere, only the size is kept.
fn range(request: &pb::RangeRequest, response: &mut pb::RangeResponse) {
    use pb::range_request::SortTarget;

    let target = request.sort_target();
    if target == SortTarget::Key || response.count <= STABLE_SORT_ITEMS {
        return;
    }
    let same = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Version => a.version == b.version,
        SortTarget::Create => a.create_revision == b.create_revision,
        SortTarget::Mod => a.mod_revision == b.mod_revision,
        // The values of a keys_only range are not there to tell groups apart, so
        // they count as one.
        SortTarget::Value | SortTarget::Key => a.value == b.value,
    };
    for group in response.kvs.chunk_by_mut(same) {
        group.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }
    if response.more {
        let cut = response.kvs.chunk_by(same).last().map_or(0, <[_]>::len);
        let keep = response.kvs.len() - cut;
        for kv in &mut response.kvs[keep..] {
            *kv = KeyValue::default();
        }
    }
}
