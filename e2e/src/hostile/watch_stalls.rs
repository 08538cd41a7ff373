//! How long writes wait while a client asks much of its watches.

use std::time::Duration;

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::node::Node;
use super::stalls::{Row, Scale, beside, failed, load};
use crate::kube::{Result, ensure, fail};

/// Requests that wait in this client.
const QUEUE: usize = 1024;

/// A watch stream.
struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Stream {
    async fn open(channel: &Channel) -> Result<Self> {
        let (requests, open) = mpsc::channel(QUEUE);
        let mut client = WatchClient::new(channel.clone());
        // The answer's headers come with the first message.
        let first = create(Bytes::from_static(b"first"), 0);
        ensure(requests.try_send(first).is_ok(), || {
            "no room for a request".to_owned()
        })?;
        let answers = failed(client.watch(ReceiverStream::new(open)).await, "watch")?;
        Ok(Stream { requests, answers })
    }

    async fn next(&mut self) -> Result<pb::WatchResponse> {
        match self.answers.message().await {
            Ok(Some(answer)) => {
                ensure(!answer.canceled, || format!("a watch ended: {answer:?}"))?;
                Ok(answer)
            }
            other => fail(format!("a watch stream ended: {other:?}")),
        }
    }

    /// Sends requests and reads meanwhile, until `enough` of what was read so far.
    async fn send(
        &mut self,
        requests: impl Iterator<Item = pb::WatchRequest> + Send + 'static,
        mut enough: impl FnMut(&pb::WatchResponse) -> bool,
    ) -> Result<()> {
        let to = self.requests.clone();
        let sending = tokio::spawn(async move {
            for request in requests {
                if to.send(request).await.is_err() {
                    return;
                }
            }
        });
        loop {
            let answer = self.next().await?;
            if enough(&answer) {
                break;
            }
        }
        let sent = sending.await;
        ensure(sent.is_ok(), || format!("sending requests: {sent:?}"))
    }
}

fn create(key: Bytes, start_revision: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key,
        start_revision,
        ..Default::default()
    };
    pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

fn progress() -> pb::WatchRequest {
    let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    pb::WatchRequest {
        request_union: Some(progress),
    }
}

/// Measures a server that [`super::stalls::measure`] may have measured before.
///
/// # Errors
/// If a watch fails, or sees other than it must.
pub async fn measure(node: &Node, scale: Scale) -> Result<Vec<Row>> {
    let channel = node.channel()?;
    let mut rows = Vec::new();

    let (watches, requests) = scale.watches;
    let mut stream = Stream::open(&channel).await?;
    let keys = (0..watches).map(|n| create(format!("watched/{n:06}").into(), 0));
    let mut created = 0;
    stream
        .send(keys, |answer| {
            created += usize::from(answer.created);
            // The first one came with the stream.
            created == watches + 1
        })
        .await?;
    let put = pb::PutRequest {
        key: "watched/000000".into(),
        ..Default::default()
    };
    let header = failed(KvClient::new(channel.clone()).put(put).await, "put")?.header;
    let now = header.unwrap_or_default().revision;
    let stream = Mutex::new(stream);
    let flood = beside(
        node,
        "a flood of progress requests",
        Duration::ZERO,
        || async {
            let end = create(Bytes::from_static(b"last"), 0);
            let requests = (0..requests).map(|_| progress()).chain([end]);
            // The end's answer says that all before it was read.
            let (mut ended, mut reached) = (false, 0);
            let mut stream = stream.lock().await;
            stream
                .send(requests, |answer| {
                    ended |= answer.created;
                    if answer.watch_id == -1 {
                        reached = answer.header.as_ref().map_or(0, |h| h.revision);
                    }
                    ended && reached >= now
                })
                .await
        },
    );
    rows.push(flood.await?);
    drop(stream);

    let (late, events) = scale.late;
    load(&channel, "late", events, late, 64, 0).await?;
    rows.push(
        beside(node, "watches that catch up", Duration::ZERO, || async {
            let mut stream = Stream::open(&channel).await?;
            let keys = (0..late).map(move |n| create(format!("late/{n:08}").into(), now + 1));
            let mut seen = 0;
            stream
                .send(keys, |answer| {
                    seen += answer.events.len();
                    seen >= events
                })
                .await?;
            ensure(seen == events, || format!("{seen} events of {events}"))
        })
        .await?,
    );
    Ok(rows)
}
