//! Everything that a client can read of two stores, side by side.

use std::time::Duration;

use bytes::Bytes;
use e2e::kube::store::Store;
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use etcd_api::mvccpb::Event;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};

/// How long events that are there may take to come.
const WATCH_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_RESPONSE_BYTES: usize = 256 << 20;

pub(crate) async fn connect(store: &Store) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(store.url());
    let connected = match endpoint {
        Ok(endpoint) => endpoint.connect().await,
        Err(error) => Err(error),
    };
    connected.or_else(|error| fail(format!("{}: {error}", store.url())))
}

/// A refusal as an error of the test.
pub(crate) fn answered<T>(
    what: &str,
    answer: std::result::Result<tonic::Response<T>, tonic::Status>,
) -> Result<T> {
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => fail(format!("{what}: {status}")),
    }
}

/// What a store says of one revision.
#[derive(Debug, PartialEq)]
struct At {
    revision: i64,
    keys: Vec<etcd_api::mvccpb::KeyValue>,
    hash: u32,
}

/// What a store says of itself.
#[derive(Debug, PartialEq)]
struct Seen {
    revision: i64,
    compact_revision: i64,
    at: Vec<At>,
    events: Vec<Event>,
    /// Id, granted time to live, keys.
    leases: Vec<(i64, i64, Vec<Bytes>)>,
    alarms: Vec<i32>,
}

pub(crate) async fn hash_kv(channel: &Channel, revision: i64) -> Result<pb::HashKvResponse> {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let answer = maintenance.hash_kv(pb::HashKvRequest { revision }).await;
    answered("HashKV", answer)
}

async fn range_at(channel: &Channel, revision: i64) -> Result<pb::RangeResponse> {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let everything = pb::RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..pb::RangeRequest::default()
    };
    answered("Range", kv.range(everything).await)
}

impl Seen {
    async fn of(store: &Store) -> Result<Self> {
        let channel = connect(store).await?;
        let now = hash_kv(&channel, 0).await?;
        let (revision, compact_revision) = (now.hash_revision, now.compact_revision);
        let mut at = Vec::new();
        // At the compact revision itself a store that made the compaction answers with the
        // hash from before it.
        for r in compact_revision.max(0) + 1..=revision {
            let (range, hash) = (range_at(&channel, r).await?, hash_kv(&channel, r).await?);
            at.push(At {
                revision: r,
                keys: range.kvs,
                hash: hash.hash,
            });
        }
        if at.is_empty() {
            at.push(At {
                revision,
                keys: range_at(&channel, 0).await?.kvs,
                hash: now.hash,
            });
        }
        Ok(Seen {
            revision,
            compact_revision,
            at,
            events: events(&channel, compact_revision + 1, revision).await?,
            leases: leases(&channel).await?,
            alarms: alarms(&channel).await?,
        })
    }
}

/// All events of revisions `from` to `to`.
async fn events(channel: &Channel, from: i64, to: i64) -> Result<Vec<Event>> {
    if from > to {
        return Ok(Vec::new());
    }
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: from.max(1),
        prev_kv: true,
        ..pb::WatchCreateRequest::default()
    };
    let (tx, rx) = tokio::sync::mpsc::channel(4);
    let send = |union| async {
        let request = pb::WatchRequest {
            request_union: Some(union),
        };
        tx.send(request).await.or_else(|_| fail("the watch ended"))
    };
    use pb::watch_request::RequestUnion;
    send(RequestUnion::CreateRequest(create)).await?;
    let mut watch = WatchClient::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let requests = tokio_stream::wrappers::ReceiverStream::new(rx);
    let mut answers = answered("Watch", watch.watch(requests).await)?;
    let mut events = Vec::new();
    let collect = async {
        loop {
            let answer = match answers.message().await {
                Ok(Some(answer)) => answer,
                other => return fail(format!("the watch ended: {other:?}")),
            };
            ensure(!answer.canceled, || format!("cancelled: {answer:?}"))?;
            let progress = answer.events.is_empty() && !answer.created;
            let reached = answer.header.as_ref().map_or(0, |h| h.revision) >= to;
            events.extend(answer.events);
            if progress && reached {
                return Ok(());
            }
            let request = pb::WatchProgressRequest {};
            send(RequestUnion::ProgressRequest(request)).await?;
        }
    };
    match tokio::time::timeout(WATCH_TIMEOUT, collect).await {
        Ok(done) => done.map(|()| events),
        Err(_) => fail("no end of the events"),
    }
}

async fn leases(channel: &Channel) -> Result<Vec<(i64, i64, Vec<Bytes>)>> {
    let mut lease = LeaseClient::new(channel.clone());
    let listed = lease.lease_leases(pb::LeaseLeasesRequest {}).await;
    let mut found = Vec::new();
    for status in answered("LeaseLeases", listed)?.leases {
        let request = pb::LeaseTimeToLiveRequest {
            id: status.id,
            keys: true,
        };
        let answer = answered("LeaseTimeToLive", lease.lease_time_to_live(request).await)?;
        let mut keys = answer.keys;
        keys.sort();
        found.push((status.id, answer.granted_ttl, keys));
    }
    found.sort();
    Ok(found)
}

async fn alarms(channel: &Channel) -> Result<Vec<i32>> {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let answer = maintenance.alarm(pb::AlarmRequest::default()).await;
    let mut alarms: Vec<i32> = answered("Alarm", answer)?
        .alarms
        .iter()
        .map(|a| a.alarm)
        .collect();
    alarms.sort_unstable();
    Ok(alarms)
}

/// Fails unless both answer the same to everything. Returns the number of revisions
/// compared.
pub(crate) async fn same(what: &str, left: &Store, right: &Store) -> Result<usize> {
    let (left, right) = (Seen::of(left).await?, Seen::of(right).await?);
    let numbers = |s: &Seen| (s.revision, s.compact_revision, s.events.len(), s.at.len());
    ensure(numbers(&left) == numbers(&right), || {
        format!(
            "{what}: revision, compact revision, events, revisions: {:?} and {:?}",
            numbers(&left),
            numbers(&right)
        )
    })?;
    for (l, r) in left.at.iter().zip(&right.at) {
        ensure(l == r, || {
            format!("{what}: different at a revision:\n{l:?}\n{r:?}")
        })?;
    }
    for (l, r) in left.events.iter().zip(&right.events) {
        ensure(l == r, || {
            format!("{what}: different events:\n{l:?}\n{r:?}")
        })?;
    }
    ensure(left == right, || {
        format!(
            "{what}: {:?} {:?} and {:?} {:?}",
            left.leases, left.alarms, right.leases, right.alarms
        )
    })?;
    Ok(left.at.len())
}
