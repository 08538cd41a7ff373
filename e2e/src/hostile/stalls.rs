//! How long writes wait while the server does something large.
//!
//! A well-behaved client puts all the time, first beside an idle server, then beside each
//! large operation; the difference is the stall. On a shared machine it is an upper bound.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::call::{RANGE, call};
use super::good::{Good, Latency};
use super::load::put_all;
use super::node::Node;
use crate::kube::{Result, ensure, fail};

/// Bytes of a value.
const VALUE_BYTES: usize = 1024;
/// Time between the measuring client's puts.
const PAUSE: Duration = Duration::from_micros(500);

/// How much data, and how long to look.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Keys of 1 KiB.
    pub keys: usize,
    /// Revisions to compact.
    pub revisions: usize,
    /// Keys of one lease, or one DeleteRange, that go at once.
    pub at_once: usize,
    /// How long each operation is repeated.
    pub time: Duration,
    /// Watches of one stream, and requests for progress that come at once.
    pub watches: (usize, usize),
    /// Watches that begin at a past revision, and events since then.
    pub late: (usize, usize),
}

impl Scale {
    /// What the promises are about: 100,000 keys, a million revisions.
    pub const FULL: Scale = Scale {
        keys: 100_000,
        revisions: 1_000_000,
        at_once: 20_000,
        time: Duration::from_secs(10),
        watches: (50_000, 20_000),
        late: (5_000, 50_000),
    };
    /// For a test of a few seconds.
    pub const SMALL: Scale = Scale {
        keys: 5_000,
        revisions: 10_000,
        at_once: 2_000,
        time: Duration::from_secs(1),
        watches: (2_000, 5_000),
        late: (500, 5_000),
    };
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// What the server did meanwhile.
    pub beside: &'static str,
    /// How often.
    pub times: usize,
    /// How long the longest took.
    pub longest: Duration,
    /// The puts.
    pub latency: Latency,
}

impl Row {
    /// The head of a table of rows.
    #[must_use]
    pub fn head() -> String {
        format!(
            "{:<34} {:>5} {:>9} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "puts beside", "times", "took ms", "puts", "p50 ms", "p99 ms", "p99.9", "max", "rise"
        )
    }

    /// This row, and by how much its p99.9 is over the idle one.
    #[must_use]
    pub fn line(&self, idle: &Latency) -> String {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let at = |share| ms(self.latency.quantile(share));
        format!(
            "{:<34} {:>5} {:>9.1} {:>7} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>+8.2}",
            self.beside,
            self.times,
            ms(self.longest),
            self.latency.count(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0),
            at(0.999) - ms(idle.quantile(0.999)),
        )
    }
}

pub(super) fn failed<T>(answer: std::result::Result<Response<T>, Status>, what: &str) -> Result<T> {
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => fail(format!("{what}: {status}")),
    }
}

/// Puts `count` times to `keys` keys, many at once.
pub(super) async fn load(
    channel: &Channel,
    prefix: &'static str,
    count: usize,
    keys: usize,
    bytes: usize,
    lease: i64,
) -> Result<()> {
    put_all(channel, count, move |n| pb::PutRequest {
        key: format!("{prefix}/{:08}", n % keys).into(),
        value: vec![b'v'; bytes].into(),
        lease,
        ..Default::default()
    })
    .await
}

/// Measures puts beside `operation`, done again and again for `time`, at least once.
pub(super) async fn beside<F, Fut>(
    node: &Node,
    name: &'static str,
    time: Duration,
    mut operation: F,
) -> Result<Row>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let good = Good::start(node.url(), 64, VALUE_BYTES, PAUSE);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = Instant::now();
    let (mut times, mut longest) = (0, Duration::ZERO);
    while times == 0 || began.elapsed() < time {
        let one = Instant::now();
        operation().await?;
        longest = longest.max(one.elapsed());
        times += 1;
    }
    Ok(Row {
        beside: name,
        times,
        longest,
        latency: good.finish()?,
    })
}

/// Loads a fresh server and measures. The first row is the idle one.
///
/// # Errors
/// If an operation fails.
pub async fn measure(node: &Node, scale: Scale) -> Result<Vec<Row>> {
    let channel = node.channel()?;
    let kv = || KvClient::new(channel.clone());
    let maintenance = || MaintenanceClient::new(channel.clone());
    let range = |prefix: &str| {
        (
            Bytes::from(format!("{prefix}/")),
            Bytes::from(format!("{prefix}0")),
        )
    };
    load(&channel, "data", scale.keys, scale.keys, VALUE_BYTES, 0).await?;

    let mut rows = Vec::new();
    let idle = || tokio::time::sleep(scale.time / 10);
    rows.push(
        beside(node, "nothing", scale.time, || async {
            idle().await;
            Ok(())
        })
        .await?,
    );
    rows.push(
        beside(node, "a snapshot of the journal", scale.time, || async {
            failed(
                maintenance().defragment(pb::DefragmentRequest {}).await,
                "defragment",
            )
            .map(drop)
        })
        .await?,
    );
    rows.push(
        beside(node, "HashKV", scale.time, || async {
            let request = pb::HashKvRequest::default();
            failed(maintenance().hash_kv(request).await, "hash").map(drop)
        })
        .await?,
    );
    let list = {
        use prost::Message as _;
        let (key, range_end) = range("data");
        let request = pb::RangeRequest {
            key,
            range_end,
            ..Default::default()
        };
        Bytes::from(request.encode_to_vec())
    };
    rows.push(
        beside(node, "a list of all keys", scale.time, || async {
            match call(channel.clone(), RANGE, list.clone()).await {
                Ok(Some(answer)) => ensure(answer.len() > scale.keys * VALUE_BYTES, || {
                    format!("a list of {} bytes", answer.len())
                }),
                other => fail(format!("list: {other:?}")),
            }
        })
        .await?,
    );

    rows.push(
        beside(node, "a stream of all keys", scale.time, || async {
            let (key, range_end) = range("data");
            let request = pb::RangeRequest {
                key,
                range_end,
                ..Default::default()
            };
            let mut pieces = failed(kv().range_stream(request).await, "stream")?;
            let mut keys = 0;
            while let Some(piece) = pieces.message().await.transpose() {
                let piece = failed(piece.map(Response::new), "stream")?;
                keys += piece.range_response.unwrap_or_default().kvs.len();
            }
            ensure(keys == scale.keys, || format!("a stream of {keys} keys"))
        })
        .await?,
    );
    rows.push(
        beside(node, "a snapshot for a client", scale.time, || async {
            let request = pb::SnapshotRequest {};
            let mut pieces = failed(maintenance().snapshot(request).await, "snapshot")?;
            let mut bytes = 0;
            while let Some(piece) = pieces.message().await.transpose() {
                bytes += failed(piece.map(Response::new), "snapshot")?.blob.len();
            }
            ensure(bytes > scale.keys * VALUE_BYTES, || {
                format!("a snapshot of {bytes} bytes")
            })
        })
        .await?,
    );

    rows.extend(super::stalls_txn::measure(node, &channel, scale).await?);

    load(&channel, "churn", scale.revisions, 1000, 64, 0).await?;
    let put = pb::PutRequest {
        key: "last".into(),
        ..Default::default()
    };
    let header = failed(kv().put(put).await, "put")?.header;
    let revision = header.unwrap_or_default().revision;
    rows.push(
        beside(node, "a compaction", Duration::ZERO, || async {
            let request = pb::CompactionRequest {
                revision,
                physical: true,
            };
            failed(kv().compact(request).await, "compact")?;
            // It frees memory after its answer.
            tokio::time::sleep(scale.time).await;
            Ok(())
        })
        .await?,
    );

    // These two are atomic, and so stall what comes after: how long is to be known.
    load(
        &channel,
        "many",
        scale.at_once,
        scale.at_once,
        VALUE_BYTES,
        0,
    )
    .await?;
    rows.push(
        beside(
            node,
            "(atomic) DeleteRange of many keys",
            Duration::ZERO,
            || async {
                let (key, range_end) = range("many");
                let request = pb::DeleteRangeRequest {
                    key,
                    range_end,
                    ..Default::default()
                };
                failed(kv().delete_range(request).await, "delete").map(drop)
            },
        )
        .await?,
    );
    let grant = pb::LeaseGrantRequest { ttl: 3600, id: 77 };
    let mut lease = LeaseClient::new(channel.clone());
    failed(lease.lease_grant(grant).await, "grant")?;
    load(
        &channel,
        "leased",
        scale.at_once,
        scale.at_once,
        VALUE_BYTES,
        77,
    )
    .await?;
    rows.push(
        beside(
            node,
            "(atomic) end of a lease of many keys",
            Duration::ZERO,
            || async {
                let revoke = pb::LeaseRevokeRequest { id: 77 };
                let answer = LeaseClient::new(channel.clone()).lease_revoke(revoke).await;
                failed(answer, "revoke").map(drop)
            },
        )
        .await?,
    );
    Ok(rows)
}
