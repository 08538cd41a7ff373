//! Puts beside transactions that read much.

use etcd_api::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::request_op::Request;
use tonic::transport::Channel;

use super::node::Node;
use super::stalls::{Row, Scale, beside, failed};
use crate::kube::{Result, ensure};

/// Transactions, each of 64 ranges over all keys, with what their rows are called.
const CASES: [(&str, Case); 4] = [
    ("a transaction of 64 counts", Case::Counts),
    ("a transaction of 64 lists of keys", Case::Keys),
    ("a transaction of 64 compares", Case::Compares),
    ("a put with 64 lists of keys", Case::PutAndKeys),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Counts,
    Keys,
    Compares,
    PutAndKeys,
}

impl Case {
    /// The transaction, over the keys from `prefix/` on.
    fn txn(self, prefix: &str) -> pb::TxnRequest {
        let (key, range_end) = (format!("{prefix}/"), format!("{prefix}0"));
        let range = pb::RangeRequest {
            key: key.clone().into(),
            range_end: range_end.clone().into(),
            count_only: self == Case::Counts,
            keys_only: true,
            ..Default::default()
        };
        let compare = pb::Compare {
            result: CompareResult::NotEqual as i32,
            target: CompareTarget::Version as i32,
            key: key.into(),
            range_end: range_end.into(),
            target_union: Some(TargetUnion::Version(-1)),
        };
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        let mut txn = pb::TxnRequest::default();
        if self == Case::Compares {
            txn.compare = vec![compare; 64];
        } else {
            txn.success = vec![op(Request::RequestRange(range)); 64];
        }
        if self == Case::PutAndKeys {
            let put = pb::PutRequest {
                key: "beside".into(),
                ..Default::default()
            };
            txn.success.push(op(Request::RequestPut(put)));
        }
        txn
    }
}

/// Measures puts beside each of them.
pub(super) async fn measure(node: &Node, channel: &Channel, scale: Scale) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, case) in CASES {
        let row = beside(node, name, scale.time, || async {
            let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
            let answer = failed(kv.txn(case.txn("data")).await, name)?;
            ensure(answer.succeeded, || format!("{name}: the compares failed"))?;
            let ranges = answer.responses.iter().filter_map(|r| match &r.response {
                Some(pb::response_op::Response::ResponseRange(r)) => Some(r.count),
                _ => None,
            });
            let counts: Vec<i64> = ranges.collect();
            ensure(counts.iter().all(|&n| n == scale.keys as i64), || {
                format!("{name}: {counts:?}")
            })
        });
        rows.push(row.await?);
    }
    Ok(rows)
}
