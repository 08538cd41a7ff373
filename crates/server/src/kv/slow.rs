//! etcd's log lines for what took long: reads that took longer than
//! `--warning-apply-duration`, and unary calls that took longer than
//! `--warning-unary-request-duration`.

use super::convert;
use super::long::Answer;
use crate::service::Service;
use bytes::Bytes;
use engine::op::{DeleteOp, KeyRange, Op, PutOp, RangeOp, TxnOp};
use etcd_api::etcdserverpb as pb;
use metrics::GrpcMethod;
use prost::Message;
use std::fmt::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};
use telemetry::Throttle;
use wire::{Call, Frame, Peer, Status};

/// What a line shows of a request at most, in bytes: keys may be long, and many.
const SHOWN_BYTES: usize = 1024;

/// One line of each kind in this time.
const PERIOD: Duration = Duration::from_secs(10);

static SLOW_RANGE: Throttle = Throttle::new(PERIOD);
static SLOW_TXN: Throttle = Throttle::new(PERIOD);
/// By method, so that many slow calls of one do not hide those of another.
static SLOW_CALLS: [Throttle; GrpcMethod::ALL.len()] =
    [const { Throttle::new(PERIOD) }; GrpcMethod::ALL.len()];

/// A read that etcd has a line for.
#[derive(Clone, Copy, Debug)]
pub(super) enum SlowRead {
    Range,
    Txn,
}

impl Service {
    pub(super) fn is_slow_read(&self, took: Duration) -> bool {
        took > self.shared.settings.warning_apply
    }

    /// Warns of a slow read, if it is one. `message` is its request.
    pub(super) fn warn_if_slow(
        &self,
        kind: SlowRead,
        took: Duration,
        message: &Bytes,
        answer: &Answer,
    ) {
        if !self.is_slow_read(took) {
            return;
        }
        self.shared.metrics.slow_apply.inc();
        let (throttle, prefix, method) = match kind {
            SlowRead::Range => (&SLOW_RANGE, "read-only range ", GrpcMethod::KvRange),
            SlowRead::Txn => (&SLOW_TXN, "read-only txn ", GrpcMethod::KvTxn),
        };
        let Some(suppressed) = throttle.allow() else {
            return;
        };
        let mut counts = String::new();
        for keys in answer.keys.iter().take(SHOWN_BYTES) {
            let gap = if counts.is_empty() { "" } else { " " };
            let _ = write!(counts, "{gap}range_response_count:{keys}");
        }
        let bytes = answer.frame.message().len();
        let response = match kind {
            SlowRead::Range => format!("{counts} size:{bytes}"),
            SlowRead::Txn => format!("responses:<{}> size:{bytes}", cut(counts)),
        };
        tracing::warn!(
            took = %telemetry::GoDuration(took),
            "expected-duration" = %telemetry::GoDuration(self.shared.settings.warning_apply),
            prefix,
            request = request(method, message),
            response,
            suppressed,
            "apply request took too long"
        );
    }

    /// Whether a call that took so long gets a line.
    pub(super) fn is_slow_call(&self, took: Duration) -> bool {
        took > self.shared.settings.warning_unary
    }
}

/// A unary call under way: if it takes long, a line says what it was, also if its client goes
/// away before it is answered.
pub(crate) struct SlowCall {
    method: GrpcMethod,
    peer: Rc<Peer>,
    message: Bytes,
    started: Instant,
    limit: Duration,
    answered: bool,
}

impl SlowCall {
    pub(crate) fn new(service: &Service, call: &Call, method: GrpcMethod, message: Bytes) -> Self {
        SlowCall {
            method,
            peer: call.peer.clone(),
            message,
            started: call.started.into_std(),
            limit: service.shared.settings.warning_unary,
            answered: false,
        }
    }

    pub(super) fn method(&self) -> GrpcMethod {
        self.method
    }

    /// It has its answer.
    pub(crate) fn answered(self, answer: &Result<Frame, Status>) {
        let took = self.started.elapsed();
        self.answered_after(took, answer);
    }

    /// The same where the time is known.
    pub(super) fn answered_after(mut self, took: Duration, answer: &Result<Frame, Status>) {
        self.answered = true;
        if took > self.limit {
            match answer {
                Ok(frame) => self.warn(took, frame.message().len(), "OK"),
                Err(status) => self.warn(took, 0, status.code.name()),
            }
        }
    }

    fn warn(&self, took: Duration, response_bytes: usize, outcome: &str) {
        let throttle = SLOW_CALLS.get(usize::from(self.method.id()));
        let Some(suppressed) = throttle.and_then(Throttle::allow) else {
            return;
        };
        let (service, name) = (self.method.service(), self.method.name());
        tracing::warn!(
            "time spent" = %telemetry::GoDuration(took),
            remote = %self.peer.address,
            "response type" = %format_args!("/{service}/{name}"),
            "request size" = self.message.len() as u64,
            "response size" = response_bytes as u64,
            "request content" = request(self.method, &self.message),
            outcome,
            "expected-duration" = %telemetry::GoDuration(self.limit),
            suppressed,
            "request stats"
        );
    }
}

impl Drop for SlowCall {
    fn drop(&mut self) {
        if !self.answered {
            let took = self.started.elapsed();
            if took > self.limit {
                self.warn(took, 0, "the client went away");
            }
        }
    }
}

/// A request as etcd's log shows it: the fields that are set, and of values their size.
fn request(method: GrpcMethod, message: &Bytes) -> String {
    let message = message.clone();
    let mut out = String::new();
    let shown = match method {
        GrpcMethod::KvRange => {
            pb::RangeRequest::decode(message).map(|r| put_range(&convert::range(r), &mut out))
        }
        GrpcMethod::KvPut => {
            pb::PutRequest::decode(message).map(|r| put_put(&convert::put(r), &mut out))
        }
        GrpcMethod::KvDeleteRange => pb::DeleteRangeRequest::decode(message)
            .map(|r| put_delete(&convert::delete(r), &mut out)),
        GrpcMethod::KvTxn => {
            pb::TxnRequest::decode(message).map(|r| put_txn(&convert::txn(r), &mut out))
        }
        GrpcMethod::KvCompact => pb::CompactionRequest::decode(message).map(|r| {
            let _ = write!(out, "revision:{} physical:{}", r.revision, r.physical);
        }),
        // Small, and seldom.
        _ => Ok(()),
    };
    // Who is asked for a line has decoded it before.
    drop(shown);
    cut(out)
}

fn put_keys(range: &KeyRange, out: &mut String) {
    let _ = write!(out, "key:\"{}\"", range.key.escape_ascii());
    if !range.end.is_empty() {
        let _ = write!(out, " range_end:\"{}\"", range.end.escape_ascii());
    }
}

fn put_range(op: &RangeOp, out: &mut String) {
    put_keys(&op.range, out);
    for (name, value) in [
        ("limit", op.limit),
        ("revision", op.revision),
        ("min_mod_revision", op.min_mod_revision),
        ("max_mod_revision", op.max_mod_revision),
        ("min_create_revision", op.min_create_revision),
        ("max_create_revision", op.max_create_revision),
    ] {
        if value != 0 {
            let _ = write!(out, " {name}:{value}");
        }
    }
    for (name, set) in [("keys_only", op.keys_only), ("count_only", op.count_only)] {
        if set {
            let _ = write!(out, " {name}:true");
        }
    }
}

fn put_put(op: &PutOp, out: &mut String) {
    let (key, bytes) = (op.key.escape_ascii(), op.value.len());
    let _ = write!(out, "key:\"{key}\" value_size:{bytes}");
    if op.lease != 0 {
        let _ = write!(out, " lease:{}", op.lease);
    }
}

fn put_delete(op: &DeleteOp, out: &mut String) {
    put_keys(&op.range, out);
    if op.prev_kv {
        out.push_str(" prev_kv:true");
    }
}

/// Of a transaction: its compares' keys, and its operations.
fn put_txn(op: &TxnOp, out: &mut String) {
    out.push_str("compare:<");
    for (n, compare) in op.compares.iter().enumerate() {
        if out.len() > SHOWN_BYTES {
            break;
        }
        out.push_str(if n == 0 { "" } else { " " });
        put_keys(&compare.range, out);
    }
    out.push('>');
    for (branch, ops) in [("success", &op.success), ("failure", &op.failure)] {
        let _ = write!(out, " {branch}:<");
        put_ops(ops, out);
        out.push('>');
    }
}

fn put_ops(ops: &[Op], out: &mut String) {
    for (n, op) in ops.iter().enumerate() {
        if out.len() > SHOWN_BYTES {
            return;
        }
        out.push_str(if n == 0 { "" } else { " " });
        let (name, put): (_, &dyn Fn(&mut String)) = match op {
            Op::Range(r) => ("range", &|out| put_range(r, out)),
            Op::Put(p) => ("put", &|out| put_put(p, out)),
            Op::Delete(d) => ("delete_range", &|out| put_delete(d, out)),
            Op::Txn(t) => ("txn", &|out| put_txn(t, out)),
        };
        let _ = write!(out, "request_{name}:<");
        put(out);
        out.push('>');
    }
}

fn cut(mut text: String) -> String {
    if text.len() > SHOWN_BYTES {
        // All of it is ASCII.
        text.truncate(SHOWN_BYTES);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> RangeOp {
        RangeOp {
            range: KeyRange {
                key: "/a\n".into(),
                end: "/b".into(),
            },
            limit: 500,
            keys_only: true,
            ..RangeOp::default()
        }
    }

    const RANGE: &str = r#"key:"/a\n" range_end:"/b" limit:500 keys_only:true"#;

    #[test]
    fn a_request_is_shown_with_its_keys_and_without_its_values() {
        let nested = TxnOp {
            failure: vec![Op::Range(range())],
            ..TxnOp::default()
        };
        let put = PutOp {
            key: "k".into(),
            value: "secret".into(),
            lease: 7,
            ..PutOp::default()
        };
        let delete = DeleteOp {
            range: KeyRange::one("d".into()),
            prev_kv: true,
        };
        let compare = engine::op::Compare {
            range: KeyRange::one("c".into()),
            target: engine::op::Target::Version(1),
            operator: engine::op::Operator::Equal,
        };
        let op = TxnOp {
            compares: vec![compare],
            success: vec![Op::Range(range()), Op::Txn(nested)],
            failure: vec![Op::Put(put), Op::Delete(delete)],
        };
        let mut shown = String::new();
        put_txn(&op, &mut shown);
        assert_eq!(
            shown,
            format!(
                "compare:<key:\"c\"> success:<request_range:<{RANGE}> request_txn:<compare:<> \
                 success:<> failure:<request_range:<{RANGE}>>>> failure:<request_put:<key:\"k\" \
                 value_size:6 lease:7> request_delete_range:<key:\"d\" prev_kv:true>>"
            )
        );
    }

    #[test]
    fn a_request_is_shown_no_longer_than_is_of_use() {
        let long = pb::RangeRequest {
            key: vec![0xff; 1 << 20].into(),
            ..Default::default()
        };
        let shown = request(GrpcMethod::KvRange, &long.encode_to_vec().into());
        assert_eq!(shown.len(), SHOWN_BYTES + 3);
        let many = TxnOp {
            success: vec![Op::Range(range()); 100_000],
            ..TxnOp::default()
        };
        let mut shown = String::new();
        put_txn(&many, &mut shown);
        assert!(shown.len() < 2 * SHOWN_BYTES);
    }
}
