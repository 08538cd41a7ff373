//! Stores with histories, the programs that move them, and what makes two stores equal.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::differential::rng::Rng;
use e2e::kube::binaries;
use e2e::kube::store::{Kind, Setup, Store};
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{self as pb, kv_client::KvClient, lease_client::LeaseClient};
use etcd_api::mvccpb;
use tonic::transport::Channel;

/// What goes wrong is only read.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// An error.
pub(crate) fn fail<T>(text: impl Into<String>) -> Result<T> {
    Err(text.into().into())
}

/// Fails unless it holds.
pub(crate) fn ensure(holds: bool, text: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { fail(text()) }
}

/// Ends a test that ran in `dir`.
pub(crate) fn conclude(dir: tempfile::TempDir, result: Result<()>) {
    let result = result.or_else(|error| e2e::kube::fail(error.to_string()));
    e2e::kube::proc::conclude(dir, result);
}

/// The pinned etcds.
pub(crate) const ETCDS: [&str; 3] = ["etcd", "etcd-3.6", "etcd-3.5"];
/// Longest wait for what etcd does in the background.
const SOON: Duration = Duration::from_secs(10);

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless it went well; returns what it printed.
    pub(crate) fn well(self) -> Result<String> {
        ensure(self.ok, || format!("it failed: {self:?}"))?;
        Ok(self.out)
    }

    /// Fails unless it was refused with all of `words`.
    pub(crate) fn refused(&self, words: &[&str]) -> Result<()> {
        let missing = words.iter().find(|word| !self.err.contains(*word));
        ensure(!self.ok && missing.is_none(), || {
            format!("expected a refusal with {words:?}: {self:?}")
        })
    }
}

/// Paths as arguments.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Runs the orlop command.
pub(crate) fn orlop(args: &[&str]) -> Result<Said> {
    let output = Command::new(Kind::Orlop.program()?).args(args).output()?;
    Ok(Said::of(&output))
}

/// Runs the etcdutl of one of the pinned etcds.
pub(crate) fn etcdutl_of(set: &str, args: &[&str]) -> Result<Said> {
    let program = binaries(set)?.join("etcdutl");
    Ok(Said::of(&Command::new(program).args(args).output()?))
}

/// Runs the newest etcdutl.
pub(crate) fn etcdutl(args: &[&str]) -> Result<Said> {
    etcdutl_of("etcd", args)
}

/// Starts one of the pinned etcds on data below `dir`.
pub(crate) async fn etcd(set: &str, name: &str, dir: &Path) -> Result<Store> {
    let setup = Setup::new(Kind::Etcd, binaries(set)?.join("etcd"));
    Ok(Store::start_as(setup, name, dir, None).await?)
}

/// Starts orlop on data below `dir`.
pub(crate) async fn serve(name: &str, dir: &Path) -> Result<Store> {
    Ok(Store::start(Kind::Orlop, name, dir, None, &[]).await?)
}

/// Where the store called `name` will look for its data.
pub(crate) fn data_dir(name: &str, dir: &Path) -> PathBuf {
    dir.join(format!("{name}-data"))
}

/// Restores a snapshot for an etcd called `name`, by the newest etcdutl.
pub(crate) fn etcdutl_restore(file: &Path, name: &str, dir: &Path, more: &[&str]) -> Result<()> {
    restore_by("etcd", file, name, dir, more)
}

/// Restores a snapshot for an etcd called `name`, by the etcdutl of `set`.
pub(crate) fn restore_by(
    set: &str,
    file: &Path,
    name: &str,
    dir: &Path,
    more: &[&str],
) -> Result<()> {
    let data = data_dir(name, dir);
    let cluster = format!("{name}=http://127.0.0.1:2380");
    let mut args = vec!["snapshot", "restore", text(file), "--data-dir", text(&data)];
    args.extend(["--name", name, "--initial-cluster", &cluster]);
    args.extend(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"]);
    args.extend(more);
    etcdutl_of(set, &args)?.well().map(drop)
}

/// Saves a snapshot with the released etcdctl.
pub(crate) fn save(store: &Store, file: &Path) -> Result<()> {
    store.etcdctl()?.ok(&["snapshot", "save", text(file)])?;
    Ok(())
}

pub(crate) async fn connect(store: &Store) -> Result<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(store.url())?;
    Ok(endpoint.connect().await?)
}

/// Changes at random: few keys, so that each has many versions; some in transactions of
/// several, with leases, deletions, and values from none to 20 KiB.
pub(crate) struct Writer {
    rng: Rng,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    leases: Vec<i64>,
    revision: i64,
    compacted: i64,
    /// Revisions that it leaves when it compacts.
    pub(crate) keep: i64,
}

impl Writer {
    pub(crate) async fn new(store: &Store, seed: u64) -> Result<Self> {
        let channel = connect(store).await?;
        Ok(Writer {
            rng: Rng::new(seed),
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel),
            leases: Vec::new(),
            revision: 1,
            compacted: 0,
            keep: 0,
        })
    }

    fn key(&mut self) -> Bytes {
        format!("/registry/{}", self.rng.below(40)).into()
    }

    fn put(&mut self) -> pb::PutRequest {
        let length = match self.rng.below(20) {
            0 => 0,
            1 => 20 << 10,
            n => n * 17,
        };
        let lease = match self.leases.is_empty() || self.rng.chance(70) {
            true => 0,
            false => self.rng.pick(&self.leases),
        };
        pb::PutRequest {
            key: self.key(),
            value: vec![self.rng.bits() as u8; length].into(),
            lease,
            ..Default::default()
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let key = self.key();
        let range_end = match self.rng.chance(20) {
            true => Bytes::from_static(b"/registry/3"),
            false => Bytes::new(),
        };
        pb::DeleteRangeRequest {
            key,
            range_end,
            ..Default::default()
        }
    }

    /// One random change.
    pub(crate) async fn step(&mut self) -> Result<()> {
        let header = match self.rng.below(100) {
            0..50 => {
                let put = self.put();
                self.kv.put(put).await?.into_inner().header
            }
            50..65 => {
                let delete = self.delete();
                self.kv.delete_range(delete).await?.into_inner().header
            }
            65..85 => {
                let txn = self.txn();
                match self.kv.txn(txn).await {
                    Ok(answer) => answer.into_inner().header,
                    // A key twice.
                    Err(status) if status.message().contains("duplicate key") => None,
                    Err(status) => return Err(status.into()),
                }
            }
            85..92 => {
                let grant = pb::LeaseGrantRequest {
                    ttl: 600 + self.rng.between(0, 600),
                    id: 0,
                };
                let lease = self.lease.lease_grant(grant).await?.into_inner();
                self.leases.push(lease.id);
                None
            }
            92..95 if !self.leases.is_empty() => {
                let at = self.rng.below(self.leases.len());
                let id = self.leases.swap_remove(at);
                let revoke = pb::LeaseRevokeRequest { id };
                self.lease.lease_revoke(revoke).await?.into_inner().header
            }
            95..97 if self.revision > self.compacted + self.keep + 10 => {
                let newest = self.revision - self.keep;
                let to = self.rng.between(self.compacted + 1, newest);
                let compaction = pb::CompactionRequest {
                    revision: to,
                    physical: true,
                };
                self.kv.compact(compaction).await?;
                self.compacted = to;
                None
            }
            _ => None,
        };
        self.revision = header.map_or(self.revision, |h| h.revision);
        Ok(())
    }

    fn txn(&mut self) -> pb::TxnRequest {
        let mut success = Vec::new();
        if self.rng.chance(30) {
            // Deletes and puts one key, which a transaction may.
            let key = self.key();
            success.push(Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: key.clone(),
                ..Default::default()
            }));
            let again = pb::PutRequest { key, ..self.put() };
            success.push(Request::RequestPut(again));
        }
        for _ in 0..1 + self.rng.below(4) {
            success.push(match self.rng.chance(70) {
                true => Request::RequestPut(self.put()),
                false => Request::RequestDeleteRange(self.delete()),
            });
        }
        let operation = |request| pb::RequestOp {
            request: Some(request),
        };
        pb::TxnRequest {
            success: success.into_iter().map(operation).collect(),
            ..Default::default()
        }
    }

    pub(crate) async fn steps(&mut self, steps: usize) -> Result<()> {
        for _ in 0..steps {
            self.step().await?;
        }
        Ok(())
    }
}

/// Everything that a client can ask of a store.
#[derive(Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) hash: u32,
    /// Id, granted time to live, keys.
    pub(crate) leases: Vec<(i64, i64, Vec<Bytes>)>,
    /// The keys at each retained revision.
    pub(crate) at: Vec<(i64, Vec<mvccpb::KeyValue>)>,
    /// What a watch from the oldest revision brings.
    pub(crate) events: Vec<(i32, Option<mvccpb::KeyValue>)>,
}

/// Looks at all of a store that nobody writes to.
pub(crate) async fn view(store: &Store) -> Result<View> {
    let channel = connect(store).await?;
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
    let hash = maintenance
        .hash_kv(pb::HashKvRequest { revision: 0 })
        .await?
        .into_inner();
    let revision = hash.header.map_or(0, |h| h.revision);
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let mut at = Vec::new();
    for r in hash.compact_revision.max(1)..=revision {
        let all = pb::RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            revision: r,
            ..Default::default()
        };
        at.push((r, kv.range(all).await?.into_inner().kvs));
    }
    let mut client = LeaseClient::new(channel.clone());
    let ids = client
        .lease_leases(pb::LeaseLeasesRequest {})
        .await?
        .into_inner();
    let mut leases = Vec::new();
    for id in ids.leases.into_iter().map(|lease| lease.id) {
        let ask = pb::LeaseTimeToLiveRequest { id, keys: true };
        let lease = client.lease_time_to_live(ask).await?.into_inner();
        let mut keys = lease.keys;
        keys.sort();
        leases.push((id, lease.granted_ttl, keys));
    }
    leases.sort();
    Ok(View {
        revision,
        compact_revision: hash.compact_revision,
        hash: hash.hash,
        leases,
        at,
        events: events(channel, hash.compact_revision.max(0) + 1, revision).await?,
    })
}

async fn events(
    channel: Channel,
    from: i64,
    to: i64,
) -> Result<Vec<(i32, Option<mvccpb::KeyValue>)>> {
    let mut found = Vec::new();
    if from > to {
        return Ok(found);
    }
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: from,
        ..Default::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    };
    // Its end at the end of this function closes the connection; etcd's stop waits for that.
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(request).await?;
    let mut stream = pb::watch_client::WatchClient::new(channel)
        .max_decoding_message_size(256 << 20)
        .watch(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let reached = |events: &[(i32, Option<mvccpb::KeyValue>)]| {
        let last = events.last().and_then(|event| event.1.as_ref());
        last.is_some_and(|kv| kv.mod_revision >= to)
    };
    while !reached(&found) {
        match tokio::time::timeout(SOON, stream.message()).await {
            Ok(Ok(Some(response))) => {
                found.extend(response.events.into_iter().map(|e| (e.r#type, e.kv)));
            }
            other => return fail(format!("a watch from {from} ended before {to}: {other:?}")),
        }
    }
    Ok(found)
}

/// Fails, shortly, unless two stores are equal.
pub(crate) fn equal(left: &View, right: &View) -> Result<()> {
    let short = |v: &View| {
        format!(
            "revision {}, compacted {}, hash {:08x}, {} leases, {} revisions, {} events",
            v.revision,
            v.compact_revision,
            v.hash,
            v.leases.len(),
            v.at.len(),
            v.events.len()
        )
    };
    ensure(
        (left.revision, left.compact_revision, left.hash)
            == (right.revision, right.compact_revision, right.hash)
            && left.at == right.at
            && left.events == right.events,
        || format!("not equal:\n  {}\n  {}", short(left), short(right)),
    )?;
    ensure(left.leases == right.leases, || {
        format!("leases: {:?}\n{:?}", left.leases, right.leases)
    })
}

/// Waits until a store answers with a hash that satisfies `wanted`.
pub(crate) async fn until_hash(
    store: &Store,
    wanted: impl Fn(&pb::HashKvResponse) -> bool,
) -> Result<pb::HashKvResponse> {
    let channel = connect(store).await?;
    let began = Instant::now();
    loop {
        let hash = pb::maintenance_client::MaintenanceClient::new(channel.clone())
            .hash_kv(pb::HashKvRequest { revision: 0 })
            .await?
            .into_inner();
        if wanted(&hash) {
            return Ok(hash);
        }
        ensure(began.elapsed() < SOON, || format!("it stays {hash:?}"))?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
