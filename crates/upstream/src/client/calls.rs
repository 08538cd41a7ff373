//! The calls that go by what they ask for: each knows what work it is.

use super::{Client, Work};
use crate::endpoint::Endpoint;
use crate::error::CallError;
use etcd_api::etcdserverpb::request_op::Request as Operation;
use etcd_api::etcdserverpb::{self as pb, kv_client::KvClient};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Streaming;

/// The longest message that is taken: etcd's answers are bounded by what a range asks for.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Requests of a watch stream that wait to be sent.
const MAX_WATCH_REQUESTS: usize = 16;

/// An answer of etcd with its header.
pub trait Headed {
    /// The header, where there is one.
    fn header(&self) -> Option<&pb::ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ident),* $(,)?) => {
        $(impl Headed for pb::$answer {
            fn header(&self) -> Option<&pb::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

headed!(
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    TxnResponse,
    CompactionResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseTimeToLiveResponse,
    LeaseLeasesResponse,
    MemberListResponse,
    MemberAddResponse,
    MemberRemoveResponse,
    MemberPromoteResponse,
    MoveLeaderResponse,
    StatusResponse,
    AlarmResponse,
    AuthStatusResponse,
    HashKvResponse,
);

impl<T> Headed for Streaming<T> {
    fn header(&self) -> Option<&pb::ResponseHeader> {
        None
    }
}

/// An open watch stream: it ends with an error when its member is lost, or has no leader for
/// long.
#[derive(Debug)]
pub struct Watch {
    /// Its member.
    pub endpoint: Endpoint,
    /// What it brings.
    pub stream: Streaming<pb::WatchResponse>,
    /// Takes further requests. The stream ends when this is dropped.
    pub requests: mpsc::Sender<pb::WatchRequest>,
}

impl Client {
    /// Reads keys: at the leader, or by the route of serializable reads if it asks for that.
    ///
    /// # Errors
    /// The last failure.
    pub async fn range(
        &self,
        request: pb::RangeRequest,
        timeout: Duration,
    ) -> Result<pb::RangeResponse, CallError> {
        let work = if request.serializable {
            Work::SerializableRead
        } else {
            Work::Read
        };
        self.call(work, timeout, |attempt| {
            let request = attempt.request(request.clone());
            let client = KvClient::new(attempt.channel);
            let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
            async move { client.range(request).await }
        })
        .await
    }

    /// Writes a key.
    ///
    /// # Errors
    /// The last failure; whether it may have been made is in it.
    pub async fn put(
        &self,
        request: pb::PutRequest,
        timeout: Duration,
    ) -> Result<pb::PutResponse, CallError> {
        self.call(Work::Write, timeout, |attempt| {
            let request = attempt.request(request.clone());
            let mut client = KvClient::new(attempt.channel);
            async move { client.put(request).await }
        })
        .await
    }

    /// Deletes keys.
    ///
    /// # Errors
    /// The last failure; whether it may have been made is in it.
    pub async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
        timeout: Duration,
    ) -> Result<pb::DeleteRangeResponse, CallError> {
        self.call(Work::Write, timeout, |attempt| {
            let request = attempt.request(request.clone());
            let mut client = KvClient::new(attempt.channel);
            async move { client.delete_range(request).await }
        })
        .await
    }

    /// A transaction: a read if it changes nothing, and a serializable one if all of it is.
    ///
    /// # Errors
    /// The last failure; whether it may have been made is in it.
    pub async fn txn(
        &self,
        request: pb::TxnRequest,
        timeout: Duration,
    ) -> Result<pb::TxnResponse, CallError> {
        self.call(work_of(&request), timeout, |attempt| {
            let request = attempt.request(request.clone());
            let client = KvClient::new(attempt.channel);
            let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
            async move { client.txn(request).await }
        })
        .await
    }

    /// Gives the lead to another member.
    ///
    /// # Errors
    /// The last failure.
    pub async fn move_leader(&self, target_id: u64, timeout: Duration) -> Result<(), CallError> {
        self.call(Work::Write, timeout, |attempt| {
            let request = attempt.request(pb::MoveLeaderRequest { target_id });
            let mut client = pb::maintenance_client::MaintenanceClient::new(attempt.channel);
            async move { client.move_leader(request).await }
        })
        .await
        .map(|_: pb::MoveLeaderResponse| ())
    }

    /// Opens a watch stream by the route of watches, with a first request. When it ends, its
    /// caller opens another from where it has come to.
    ///
    /// # Errors
    /// The last failure.
    pub async fn watch(
        &self,
        request: pb::WatchCreateRequest,
        timeout: Duration,
    ) -> Result<Watch, CallError> {
        let mut opened = None;
        let stream = self
            .call(Work::Watch, timeout, |mut attempt| {
                // A stream lasts longer than its opening may take.
                attempt.deadline = None;
                let (requests, receiver) = mpsc::channel(MAX_WATCH_REQUESTS);
                let create = pb::watch_request::RequestUnion::CreateRequest(request.clone());
                // There is room for the first.
                let _ = requests.try_send(pb::WatchRequest {
                    request_union: Some(create),
                });
                opened = Some((attempt.endpoint.clone(), requests));
                let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
                let request = attempt.request(stream);
                let client = pb::watch_client::WatchClient::new(attempt.channel);
                let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
                async move { client.watch(request).await }
            })
            .await?;
        match opened {
            Some((endpoint, requests)) => Ok(Watch {
                endpoint,
                stream,
                requests,
            }),
            None => Err(CallError::Nobody("no attempt was made".to_owned())),
        }
    }
}

/// As etcd decides it: a transaction without a write is a read, and a serializable one if all
/// of its ranges are.
fn work_of(request: &pb::TxnRequest) -> Work {
    let operations = || request.success.iter().chain(&request.failure);
    let mut work = Work::SerializableRead;
    for operation in operations() {
        match &operation.request {
            Some(Operation::RequestRange(range)) if range.serializable => {}
            Some(Operation::RequestRange(_)) => work = Work::Read,
            Some(Operation::RequestTxn(inner)) => match work_of(inner) {
                Work::Write => return Work::Write,
                Work::SerializableRead => {}
                _ => work = Work::Read,
            },
            _ => return Work::Write,
        }
    }
    match operations().next() {
        // It only compares; that is read too, by what was agreed on.
        None => Work::Read,
        Some(_) => work,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(serializable: bool) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(Operation::RequestRange(pb::RangeRequest {
                serializable,
                ..Default::default()
            })),
        }
    }

    fn txn(operations: Vec<pb::RequestOp>) -> pb::TxnRequest {
        pb::TxnRequest {
            failure: operations,
            ..Default::default()
        }
    }

    fn nested(inner: pb::TxnRequest) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(Operation::RequestTxn(inner)),
        }
    }

    #[test]
    fn a_transaction_is_what_it_may_do() {
        let put = || pb::RequestOp {
            request: Some(Operation::RequestPut(pb::PutRequest::default())),
        };
        assert_eq!(work_of(&txn(vec![])), Work::Read);
        assert_eq!(work_of(&txn(vec![range(true)])), Work::SerializableRead);
        assert_eq!(work_of(&txn(vec![range(true), range(false)])), Work::Read);
        assert_eq!(work_of(&txn(vec![range(false), put()])), Work::Write);
        let inner = nested(txn(vec![range(true), put()]));
        assert_eq!(work_of(&txn(vec![range(true), inner])), Work::Write);
        let inner = nested(txn(vec![range(false)]));
        assert_eq!(work_of(&txn(vec![inner, range(true)])), Work::Read);
        let unknown = pb::RequestOp { request: None };
        assert_eq!(work_of(&txn(vec![unknown])), Work::Write);
    }
}
