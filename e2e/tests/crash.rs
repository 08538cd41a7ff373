//! The real program, killed at random moments under load.
//!
//! Clients put, compare-and-put, delete and read; watchers go on over the restarts; a
//! background task grants leases, compacts, and has snapshots of the journal written. At
//! the end everything that anybody was told must fit together (`e2e::recorder`).
//!
//! A killed process loses nothing of any class: so the same is asked under every profile.
//!
//! `ORLOP_CRASH_ROUNDS=N` kills N times in each test, `ORLOP_CRASH_SEED=S` begins at
//! another seed. The moments of the kills are not replayable; what clients ask for is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::differential::rng::Rng;
use e2e::env::number;
use e2e::hostile::node::Node;
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure, eventually, fail};
use e2e::recorder::check::check;
use e2e::recorder::client::Client;
use e2e::recorder::observer::{Observer, Seen};
use e2e::recorder::world::World;
use e2e::recorder::{Recorder, Start};
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Small requests and segments, so that the log rolls over many times between kills.
const FLAGS: [&str; 2] = ["--max-request-bytes=131072", "--segment-bytes=1048576"];
/// Rules under which half of the writes are volatile.
const RULES: &str = r#"
[[rule]]
prefix = ["k1", "k3", "lease/"]
change = ["create", "delete"]
durability = "volatile"
sync_within = "30s"

[[rule]]
prefix = ["k2", "k5"]
durability = "volatile"
sync_within = "20s"
"#;
const CLIENTS: usize = 12;
const CONNECTIONS: usize = 4;
const KEYS: usize = 40;
/// Time to live of leases that must outlive every restart, in seconds.
const LONG_TTL_S: i64 = 3600;
/// How long watchers may take to see the last revision.
const CATCH_UP: Duration = Duration::from_secs(20);

/// How a server is started and used.
struct Case {
    /// Flags besides [`FLAGS`].
    flags: Vec<String>,
    world: World,
    /// Kills, unless the environment says otherwise.
    rounds: u64,
    /// Whether writes become volatile.
    volatile: bool,
}

async fn killed(dir: tempfile::TempDir, case: Case) {
    let result = kills(dir.path(), &case).await;
    conclude(dir, result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kills() {
    let case = Case {
        flags: Vec::new(),
        world: World::Plain,
        rounds: 8,
        volatile: false,
    };
    killed(tempfile::tempdir().unwrap(), case).await;
}

/// Some keys volatile by their name, some only when they come or go, whatever that does to
/// a lease; nothing is synced for long. A killed process has lost nothing all the same: no
/// write of any class, no revision, and no watch begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_volatile_is_lost_by_kills() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules.toml");
    std::fs::write(&rules, RULES).unwrap();
    let case = Case {
        flags: vec![format!("--rules={}", rules.display())],
        world: World::Plain,
        rounds: 6,
        volatile: true,
    };
    killed(dir, case).await;
}

/// The same under a profile as it ships, with keys and objects that its rules are about.
async fn killed_under(dir: tempfile::TempDir, profile: &str) {
    let case = Case {
        flags: vec![format!("--profile={profile}")],
        world: World::Kubernetes,
        rounds: 5,
        volatile: profile != "strict",
    };
    killed(dir, case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_by_kills_under_strict() {
    killed_under(tempfile::tempdir().unwrap(), "strict").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_by_kills_under_balanced() {
    killed_under(tempfile::tempdir().unwrap(), "balanced").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_by_kills_under_ephemeral() {
    killed_under(tempfile::tempdir().unwrap(), "ephemeral").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leases_survive_a_clean_restart_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let result = leases(dir.path()).await;
    conclude(dir, result);
}

fn failed<T>(what: &str) -> impl FnOnce(Status) -> Result<T> {
    move |status| fail(format!("{what}: {status}"))
}

async fn revision(node: &Node) -> Result<i64> {
    let range = pb::RangeRequest {
        key: "none".into(),
        ..Default::default()
    };
    let reply = KvClient::new(node.channel()?).range(range).await;
    let reply = reply.or_else(failed("range"))?.into_inner();
    Ok(reply.header.unwrap_or_default().revision)
}

async fn kills(dir: &std::path::Path, case: &Case) -> Result<()> {
    let rounds = number("ORLOP_CRASH_ROUNDS")?.unwrap_or(case.rounds);
    let seed = number("ORLOP_CRASH_SEED")?.unwrap_or(1);
    let mut random = Rng::new(seed);
    let recorder = Recorder::default();
    let own = case.flags.iter().map(String::as_str);
    let flags: Vec<&str> = FLAGS.into_iter().chain(own).collect();
    let mut node = Node::start("orlop", dir, &flags).await?;
    let everything = Observer::start(node.channel()?, "\0", b"\0", 2);
    let mut others: Vec<(Observer, i64, &str)> = Vec::new();
    for prefix in case.world.prefixes() {
        let watch = Observer::start(node.channel()?, prefix, &prefix_end(prefix), 2);
        others.push((watch, 2, prefix));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    let channels = (0..CONNECTIONS)
        .map(|_| node.channel())
        .collect::<Result<Vec<_>>>()?;
    let kept = Arc::new(tokio::sync::Mutex::new(Kept::default()));
    for n in 0..CLIENTS {
        let channel = channels[n % CONNECTIONS].clone();
        let seed = seed * 1000 + n as u64;
        let mut client = Client::new(channel, recorder.clone(), seed, format!("c{n}"), KEYS);
        client.world = case.world;
        let (stop, kept) = (stop.clone(), kept.clone());
        tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.leases = kept.lock().await.leases.clone();
                client.step().await;
            }
        }));
    }
    {
        let (stop, kept, observer) = (stop.clone(), kept.clone(), everything.clone());
        let (channel, seen) = (
            channels[0].clone(),
            others.iter().map(|o| o.0.clone()).collect(),
        );
        let random = Rng::new(seed ^ 0xfeed);
        tasks.push(tokio::spawn(housekeeping(
            channel, kept, observer, seen, stop, random,
        )));
    }

    let mut starts = Vec::new();
    let mut slowest_start = Duration::ZERO;
    for _ in 0..rounds {
        let life_ms = random.between(50, 1500);
        tokio::time::sleep(Duration::from_millis(life_ms as u64)).await;
        node.check_running()?;
        let told = recorder.highest();
        node.kill();
        let down_us = recorder.now_us();
        slowest_start = slowest_start.max(node.run().await?);
        let revision = revision(&node).await?;
        ensure(revision >= told, || {
            format!("the revision went back from {told} to {revision}")
        })?;
        starts.push(Start {
            at_us: recorder.now_us(),
            down_us,
            revision,
        });
        kept.lock().await.check(&node).await?;
        // A watch that starts in the past, and one at the next revision.
        let from = random
            .between(everything.next().min(revision) - 1, revision + 1)
            .max(2);
        let all = case.world.prefixes()[1];
        let watch = Observer::start(node.channel()?, all, &prefix_end(all), from);
        others.push((watch, from, all));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        let ended = tokio::time::timeout(CATCH_UP, task).await;
        ensure(matches!(ended, Ok(Ok(()))), || "a client hangs".to_owned())?;
    }
    let last = revision(&node).await?;
    let events = seen_up_to(&everything, last).await?;
    let summary = check(&recorder.entries(), &events, &starts, 2)?;
    for (observer, from, prefix) in &others {
        same_as(observer, &events, *from, prefix).await?;
    }
    final_state(&node, &events).await?;
    kept.lock().await.check(&node).await?;
    let written = node.metrics().await?;
    let writes = |class: &str| written.sum("orlop_writes_total", &[class]);
    let (volatile, durable) = (writes("class=\"volatile\""), writes("class=\"durable\""));
    ensure(durable > 0.0 && (volatile > 0.0) == case.volatile, || {
        format!("since the last start {durable} durable writes, {volatile} volatile ones")
    })?;
    ensure(node.stop()?.success(), || "the last stop failed".to_owned())?;
    println!(
        "{rounds} kills, {} watches, slowest start {slowest_start:?}; {summary:?}; {}",
        others.len() + 1,
        kept.lock().await.summary()
    );
    ensure(summary.acknowledged > 100 * rounds as usize, || {
        format!("too little happened: {summary:?}")
    })
}

/// The end of the range of all keys with this prefix.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// What background work must still be there.
#[derive(Debug, Default)]
struct Kept {
    leases: Vec<i64>,
    revoked: Vec<i64>,
    compacted: i64,
    snapshots: usize,
}

impl Kept {
    fn summary(&self) -> String {
        format!(
            "{} leases kept, {} revoked, {} snapshots, compacted at {}",
            self.leases.len(),
            self.revoked.len(),
            self.snapshots,
            self.compacted
        )
    }

    async fn check(&self, node: &Node) -> Result<()> {
        let mut client = LeaseClient::new(node.channel()?);
        for &id in &self.leases {
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let lease = client.lease_time_to_live(request).await;
            let lease = lease.or_else(failed("time to live"))?.into_inner();
            ensure(lease.ttl > LONG_TTL_S - 600, || {
                format!("lease {id} was granted, and has {} s now", lease.ttl)
            })?;
        }
        for &id in &self.revoked {
            let request = pb::LeaseTimeToLiveRequest { id, keys: false };
            let lease = client.lease_time_to_live(request).await;
            let lease = lease.or_else(failed("time to live"))?.into_inner();
            ensure(lease.ttl == -1, || {
                format!("lease {id} was revoked, and has {} s now", lease.ttl)
            })?;
        }
        if self.compacted > 0 {
            let range = pb::RangeRequest {
                key: "k".into(),
                revision: self.compacted - 1,
                ..Default::default()
            };
            let answer = KvClient::new(node.channel()?).range(range).await;
            ensure(
                answer.is_err_and(|status| status.code() == Code::OutOfRange),
                || format!("the compaction at {} is forgotten", self.compacted),
            )?;
        }
        Ok(())
    }
}

/// Grants, revokes, compacts behind the watchers, has snapshots written.
async fn housekeeping(
    channel: Channel,
    kept: Arc<tokio::sync::Mutex<Kept>>,
    everything: Observer,
    others: Vec<Observer>,
    stop: Arc<AtomicBool>,
    mut random: Rng,
) {
    let mut kv = KvClient::new(channel.clone());
    let mut lease = LeaseClient::new(channel.clone());
    let mut maintenance = MaintenanceClient::new(channel);
    let mut id = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        match random.below(12) {
            0..5 => {
                id += 1;
                let request = pb::LeaseGrantRequest {
                    ttl: LONG_TTL_S,
                    id,
                };
                let granted = lease.lease_grant(request).await.is_ok();
                if !granted {
                    continue;
                }
                let put = pb::PutRequest {
                    key: format!("lease/{id}").into(),
                    value: format!("lease {id}").into(),
                    lease: id,
                    ..Default::default()
                };
                let attached = kv.put(put).await.is_ok();
                if id % 3 > 0 {
                    // Keys of clients hang on those that stay; they must not be revoked.
                    if kept.lock().await.leases.len() < 60 {
                        kept.lock().await.leases.push(id);
                    }
                } else if attached
                    && lease
                        .lease_revoke(pb::LeaseRevokeRequest { id })
                        .await
                        .is_ok()
                {
                    kept.lock().await.revoked.push(id);
                }
            }
            5 => {
                // Behind every watcher, so that none may be told of it.
                let seen = others
                    .iter()
                    .map(Observer::next)
                    .fold(everything.next(), i64::min);
                let revision = seen.min(everything.next()) - 200;
                let request = pb::CompactionRequest {
                    revision,
                    physical: random.chance(50),
                };
                if revision > 2 && kv.compact(request).await.is_ok() {
                    kept.lock().await.compacted = revision;
                }
            }
            6 => {
                let done = maintenance.defragment(pb::DefragmentRequest {}).await;
                kept.lock().await.snapshots += usize::from(done.is_ok());
            }
            _ => {}
        }
    }
}

/// All that `observer` saw, once it has seen revision `last`.
async fn seen_up_to(observer: &Observer, last: i64) -> Result<Vec<Seen>> {
    eventually("the watch of everything", CATCH_UP, || async {
        match observer.wrong() {
            Some(text) => fail(text),
            None => Ok((observer.next() > last).then_some(())),
        }
    })
    .await?;
    Ok(observer.events())
}

/// A watch of a prefix saw its part of all events, from its start on.
async fn same_as(observer: &Observer, events: &[Seen], from: i64, prefix: &str) -> Result<()> {
    let own = |event: &&Seen| event.revision >= from && event.key.starts_with(prefix);
    let expected: Vec<&Seen> = events.iter().filter(own).collect();
    let began = Instant::now();
    loop {
        if let Some(text) = observer.wrong() {
            return fail(text);
        }
        let seen = observer.events();
        if seen.len() >= expected.len() || began.elapsed() > CATCH_UP {
            let differs = expected.iter().zip(&seen).find(|(a, b)| **a != *b);
            return ensure(seen.len() == expected.len() && differs.is_none(), || {
                format!(
                    "the watch of {prefix} from {from} saw {} of {} events; first different: {differs:?}",
                    seen.len(),
                    expected.len()
                )
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is there is what the events made.
async fn final_state(node: &Node, events: &[Seen]) -> Result<()> {
    let mut expected = std::collections::BTreeMap::new();
    for event in events {
        match &event.value {
            Some(value) => expected.insert(event.key.clone(), (value.clone(), event.revision)),
            None => expected.remove(&event.key),
        };
    }
    let range = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    let mut kv = KvClient::new(node.channel()?).max_decoding_message_size(256 << 20);
    let reply = kv.range(range).await.or_else(failed("range"))?.into_inner();
    let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
    let found = reply
        .kvs
        .iter()
        .map(|kv| (text(&kv.key), (text(&kv.value), kv.mod_revision)));
    let found: std::collections::BTreeMap<_, _> = found.collect();
    ensure(found == expected, || {
        "the keys at the end differ from the events".to_owned()
    })
}

async fn leases(dir: &std::path::Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &FLAGS).await?;
    for (id, ttl) in [(1, LONG_TTL_S), (2, LONG_TTL_S), (3, 2)] {
        let mut lease = LeaseClient::new(node.channel()?);
        let grant = pb::LeaseGrantRequest { id, ttl };
        lease.lease_grant(grant).await.or_else(failed("grant"))?;
        let put = pb::PutRequest {
            key: format!("key/{id}").into(),
            lease: id,
            ..Default::default()
        };
        let mut kv = KvClient::new(node.channel()?);
        kv.put(put).await.or_else(failed("put"))?;
    }
    for clean in [true, false] {
        if clean {
            ensure(node.stop()?.success(), || "stopping failed".to_owned())?;
        } else {
            node.kill();
        }
        node.run().await?;
        let mut lease = LeaseClient::new(node.channel()?);
        for id in [1, 2] {
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let found = lease.lease_time_to_live(request).await;
            let found = found.or_else(failed("time to live"))?.into_inner();
            ensure(
                found.granted_ttl == LONG_TTL_S
                    && found.ttl > LONG_TTL_S - 60
                    && found.keys == [bytes::Bytes::from(format!("key/{id}"))],
                || format!("lease {id} after a restart (clean: {clean}): {found:?}"),
            )?;
        }
    }
    // The short one still ends, with its key.
    let channel = node.channel()?;
    eventually("lease 3 expires", Duration::from_secs(15), || async {
        let range = pb::RangeRequest {
            key: "key/".into(),
            range_end: "key0".into(),
            keys_only: true,
            ..Default::default()
        };
        let reply = KvClient::new(channel.clone()).range(range).await;
        let reply = reply.or_else(failed("range"))?.into_inner();
        Ok((reply.count == 2).then_some(()))
    })
    .await
}
