//! etcd's log line for a read that took longer than `--warning-apply-duration`.

use crate::encode;
use crate::service::Service;
use engine::op::{Op, Outcome, RangeOp, Reply, TxnOp};
use std::fmt::Write;
use std::time::Duration;

/// What the line shows of a request at most, in bytes: keys may be long, and many.
const SHOWN_BYTES: usize = 1024;

impl Service {
    pub(super) fn is_slow(&self, took: Duration) -> bool {
        took > self.shared.warning_apply
    }

    /// Warns of a slow range; `request` is what [`range`] made of it.
    pub(super) fn warn_slow_range(&self, took: Duration, request: &str, keys: usize, bytes: usize) {
        let response = format!("range_response_count:{keys} size:{bytes}");
        self.shared
            .warn_slow_read("read-only range ", took, request, &response);
    }

    /// Warns of a slow transaction that only reads.
    pub(super) fn warn_slow_txn(&self, took: Duration, request: &TxnOp, outcome: &Outcome) {
        let bytes = encode::reply_bytes(&self.shared.ids, outcome);
        let mut counts = String::new();
        if let Reply::Txn { replies, .. } = &outcome.reply {
            for (_, reply) in replies {
                if let Reply::Range(r) = reply {
                    let gap = if counts.is_empty() { "" } else { " " };
                    let _ = write!(counts, "{gap}range_response_count:{}", r.kvs.len());
                }
            }
        }
        let response = format!("responses:<{counts}> size:{bytes}");
        let request = cut(txn(request));
        self.shared
            .warn_slow_read("read-only txn ", took, &request, &response);
    }
}

/// A range as etcd's log shows it: the fields that are set.
pub(super) fn range(op: &RangeOp) -> String {
    let mut out = String::new();
    put_range(op, &mut out);
    cut(out)
}

fn put_range(op: &RangeOp, out: &mut String) {
    let _ = write!(out, "key:\"{}\"", op.range.key.escape_ascii());
    if !op.range.end.is_empty() {
        let _ = write!(out, " range_end:\"{}\"", op.range.end.escape_ascii());
    }
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

/// Of a transaction that only reads: how much it compares, and its ranges.
fn txn(op: &TxnOp) -> String {
    let mut out = format!("compares:{}", op.compares.len());
    for (branch, ops) in [("success", &op.success), ("failure", &op.failure)] {
        let _ = write!(out, " {branch}:<");
        put_ops(ops, &mut out);
        out.push('>');
    }
    out
}

fn put_ops(ops: &[Op], out: &mut String) {
    for (n, op) in ops.iter().enumerate() {
        if out.len() > SHOWN_BYTES {
            return;
        }
        out.push_str(if n == 0 { "" } else { " " });
        match op {
            Op::Range(r) => {
                out.push_str("request_range:<");
                put_range(r, out);
                out.push('>');
            }
            Op::Txn(t) => {
                out.push_str("request_txn:<");
                out.push_str(&txn(t));
                out.push('>');
            }
            // Not in one that only reads.
            Op::Put(_) | Op::Delete(_) => {}
        }
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
    use engine::op::KeyRange;

    #[test]
    fn a_request_is_shown_as_etcd_does_and_no_longer_than_is_of_use() {
        let op = RangeOp {
            range: KeyRange {
                key: "/a\n".into(),
                end: "/b".into(),
            },
            limit: 500,
            keys_only: true,
            ..RangeOp::default()
        };
        let text = r#"key:"/a\n" range_end:"/b" limit:500 keys_only:true"#;
        assert_eq!(range(&op), text);
        let nested = TxnOp {
            failure: vec![Op::Range(op.clone())],
            ..TxnOp::default()
        };
        let whole = TxnOp {
            success: vec![Op::Range(op.clone()), Op::Txn(nested)],
            ..TxnOp::default()
        };
        assert_eq!(
            txn(&whole),
            format!(
                "compares:0 success:<request_range:<{text}> request_txn:<compares:0 success:<> \
                 failure:<request_range:<{text}>>>> failure:<>"
            )
        );
        let long = RangeOp {
            range: KeyRange::one(vec![0xff; 1 << 20].into()),
            ..RangeOp::default()
        };
        assert_eq!(range(&long).len(), SHOWN_BYTES + 3);
        let many = TxnOp {
            success: vec![Op::Range(op); 100_000],
            ..TxnOp::default()
        };
        assert!(txn(&many).len() < 2 * SHOWN_BYTES);
    }
}
