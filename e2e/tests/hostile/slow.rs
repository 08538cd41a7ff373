//! Clients that ask and do not read.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::hostile::call::RANGE;
use e2e::hostile::raw::{self, whole};
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure, fail};
use e2e::recorder::observer::Observer;
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use crate::{node, survives_with};

/// Watchers that never read, and what is written for them.
const SLOW: usize = 60;
/// What the server holds for a stream that is not read: its queue (4 MiB) and the
/// transport's buffer (1 MiB).
const SLOW_BYTES: u64 = 5 << 20;
/// What it holds of unary answers for a connection that does not read: 64 MiB, and the two
/// of 20 MiB that were being made when that was reached.
const UNREAD_BYTES: u64 = (64 + 2 * 20) << 20;
const CONNECTIONS: usize = 5;
/// Room for what else happens meanwhile: history, and what the allocator keeps.
const SLACK_BYTES: u64 = 192 << 20;
const WRITES: usize = 400;
const VALUE_BYTES: usize = 100_000;
/// How soon a watcher that reads must have an event, measured from its put's answer.
const PROMPT: Duration = Duration::from_secs(2);

async fn put(channel: &Channel, key: String, value_bytes: usize) -> Result<()> {
    let put = pb::PutRequest {
        key: key.into(),
        value: vec![b'v'; value_bytes].into(),
        ..Default::default()
    };
    match KvClient::new(channel.clone()).put(put).await {
        Ok(_) => Ok(()),
        Err(status) => fail(format!("put: {status}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_never_read_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let result = watchers(dir.path()).await;
    conclude(dir, result);
}

async fn watchers(dir: &Path) -> Result<()> {
    let mut node = node(dir).await?;
    let channels = (0..10)
        .map(|_| node.channel())
        .collect::<Result<Vec<_>>>()?;
    let reader = Observer::start(node.channel()?, "big/", b"big0", 2);
    let writer = node.channel()?;
    let limit = SLOW as u64 * SLOW_BYTES + SLACK_BYTES;
    survives_with(&mut node, "watchers that never read", limit, async move {
        let mut silent = Vec::new();
        for n in 0..SLOW {
            let create = pb::WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                    key: "big/".into(),
                    range_end: "big0".into(),
                    ..Default::default()
                })),
            };
            let requests = tokio_stream::once(create).chain(tokio_stream::pending());
            let mut client = WatchClient::new(channels[n % channels.len()].clone());
            silent.push(client.watch(requests).await);
        }
        let mut latest = Duration::ZERO;
        for n in 0..WRITES {
            // Few keys: what is retained is history, and what slow watchers would hold.
            put(&writer, format!("big/{:02}", n % 10), VALUE_BYTES).await?;
            let began = Instant::now();
            while reader.events().len() <= n {
                ensure(began.elapsed() < PROMPT, || {
                    format!(
                        "event {n} is not there {PROMPT:?} after its put ({:?})",
                        reader.wrong()
                    )
                })?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            latest = latest.max(began.elapsed());
        }
        Ok(format!(
            "{} that never read, {WRITES} events of {VALUE_BYTES} bytes, the latest {} ms after its put",
            silent.len(),
            latest.as_millis()
        ))
    })
    .await?;
    node.stop().map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_whose_answers_are_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let result = requests(dir.path()).await;
    conclude(dir, result);
}

async fn requests(dir: &Path) -> Result<()> {
    let mut node = node(dir).await?;
    let channel = node.channel()?;
    for n in 0..20 {
        put(&channel, format!("large/{n}"), 1 << 20).await?;
    }
    let port = node.port();
    let limit = CONNECTIONS as u64 * UNREAD_BYTES + SLACK_BYTES;
    survives_with(
        &mut node,
        "answers that are never read",
        limit,
        async move {
            let range = pb::RangeRequest {
                key: "large/".into(),
                range_end: "large0".into(),
                ..Default::default()
            };
            let range = range.encode_to_vec();
            let mut open = Vec::new();
            let mut calls = 0;
            for _ in 0..CONNECTIONS {
                // 20 MiB each, of which this connection's window lets 64 KiB out.
                let mut bytes = raw::hello();
                for n in 0..40 {
                    let stream = 1 + 2 * n;
                    let headers = raw::call_headers(RANGE);
                    bytes.extend(whole(raw::HEADERS, raw::END_HEADERS, stream, &headers));
                    let message = raw::message(range.len() as u32, &range);
                    bytes.extend(whole(raw::DATA, raw::END_STREAM, stream, &message));
                    calls += 1;
                }
                open.push(raw::open(port, &bytes).await?);
            }
            tokio::time::sleep(Duration::from_secs(8)).await;
            Ok(format!("{calls} answers of 20 MiB asked for"))
        },
    )
    .await?;
    node.stop().map(drop)
}
