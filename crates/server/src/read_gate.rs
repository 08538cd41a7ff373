//! Whether a linearizable read may be answered from what is visible now.
//!
//! With the journal in a file of its own nobody else writes: what is visible is all that was
//! answered, and there is no gate. A journal that others write to, or that may have gone to another
//! server, asks first: its gate lets a read through once nothing was acknowledged elsewhere that is
//! not visible here.

use crate::service::Service;
use etcd_api::etcdserverpb as pb;
use metrics::GrpcMethod;
use prost::Message;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use wire::{Call, Reply, Status};

/// A read may go on when this is ready.
pub type Passing = Pin<Box<dyn Future<Output = Result<(), Closed>> + Send>>;

/// Asked once for each linearizable read, when it comes.
pub trait ReadGate: Send + Sync {
    /// `None` if the read may be answered now.
    fn pass(&self) -> Option<Passing>;
}

/// A linearizable read cannot be answered here, and may be elsewhere, or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Why, for the client.
    pub reason: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Closed {}

impl Service {
    /// Waits at the gate, if there is one, before a read that needs it; then goes on as without.
    pub(crate) fn read_or_write(
        self: &Rc<Self>,
        method: GrpcMethod,
        call: Call,
        message: bytes::Bytes,
    ) -> Reply {
        let gate = self.shared.read_gate.as_ref();
        let passing = gate
            .filter(|_| needs_gate(method, &message))
            .and_then(|gate| gate.pass());
        let Some(passing) = passing else {
            return self.kv(method, call, message);
        };
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            if let Err(closed) = passing.await {
                return Err(Status::new(wire::Code::Unavailable, closed.reason));
            }
            match this.kv(method, call, message) {
                Reply::Now(answer) => answer,
                Reply::Later(answer) => answer.await,
            }
        }))
    }
}

/// Whether a call is a read that is to see all that was acknowledged before it. As in etcd, a
/// transaction is not if all its ranges are serializable; what cannot be read is refused later.
fn needs_gate(method: GrpcMethod, message: &[u8]) -> bool {
    match method {
        GrpcMethod::KvRange => {
            pb::RangeRequest::decode(message).is_ok_and(|range| !range.serializable)
        }
        GrpcMethod::KvTxn => pb::TxnRequest::decode(message).is_ok_and(|txn| {
            let mut ops = txn.success.iter().chain(&txn.failure);
            !ops.all(|op| match &op.request {
                Some(pb::request_op::Request::RequestRange(range)) => range.serializable,
                // A write waits for its own place.
                _ => true,
            })
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::request_op::Request;

    fn txn(ops: Vec<Request>) -> Vec<u8> {
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        let txn = pb::TxnRequest {
            success: ops.into_iter().map(op).collect(),
            ..Default::default()
        };
        txn.encode_to_vec()
    }

    #[test]
    fn only_linearizable_reads_need_the_gate() {
        let range = |serializable| pb::RangeRequest {
            key: "a".into(),
            serializable,
            ..Default::default()
        };
        let needs = |serializable: bool| {
            let alone = range(serializable).encode_to_vec();
            let within = txn(vec![Request::RequestRange(range(serializable))]);
            (
                needs_gate(GrpcMethod::KvRange, &alone),
                needs_gate(GrpcMethod::KvTxn, &within),
            )
        };
        assert_eq!(needs(false), (true, true));
        assert_eq!(needs(true), (false, false));
        let put = pb::PutRequest::default();
        assert!(!needs_gate(GrpcMethod::KvPut, &put.encode_to_vec()));
        assert!(!needs_gate(
            GrpcMethod::KvTxn,
            &txn(vec![Request::RequestPut(put)])
        ));
    }
}
