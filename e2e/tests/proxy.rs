//! `orlop proxy` before three real etcds with TLS: leaders are killed, moved and stopped, while
//! clients connect, write and watch through it.
//!
//! `ORLOP_PROXY_ROUNDS=200` makes so many leader changes; `ORLOP_PROXY_ETCD=etcd-3.5` takes
//! another set of `e2e/build-bins`.

#[path = "proxy/failed_calls.rs"]
mod failed_calls;
#[path = "proxy/write_gaps.rs"]
mod write_gaps;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::env;
use e2e::etcd_members::{EtcdMembers, told};
use e2e::kube::http::Client;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::{Kind, Tls};
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use serde_json::Value;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Leader changes of a run, unless told otherwise.
const ROUNDS: u64 = 9;
/// From one connection to the next.
const CONNECT_EVERY: Duration = Duration::from_millis(250);
/// A new connection must be there within the proxy's own patience.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(12);
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// The proxy's default, in which a connection to a follower has to end.
const HANDOVER_LIMIT: Duration = Duration::from_millis(5_000);
/// What polling adds.
const SLACK: Duration = Duration::from_millis(1_000);

/// A proxy process.
struct Proxy {
    process: Process,
    port: u16,
    admin: u16,
}

impl Proxy {
    async fn start(dir: &Path, endpoints: &str, tls: &Tls, flags: &[&str]) -> Result<Self> {
        Self::start_at(dir, free_port()?, endpoints, tls, flags).await
    }

    async fn start_at(
        dir: &Path,
        port: u16,
        endpoints: &str,
        tls: &Tls,
        flags: &[&str],
    ) -> Result<Self> {
        let admin = free_port()?;
        let mut command = Command::new(Kind::Orlop.program()?);
        command
            .arg("proxy")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--metrics-addr=127.0.0.1:{admin}"))
            .arg(format!("--endpoints={endpoints}"))
            .arg(format!("--cacert={}", tls.ca.display()))
            .args(flags);
        if let Some(client) = &tls.client {
            command
                .arg(format!("--cert={}", client.cert.display()))
                .arg(format!("--key={}", client.key.display()));
        }
        let process = Process::start("proxy", dir, &mut command)?;
        let proxy = Proxy {
            process,
            port,
            admin,
        };
        proxy.until_ready().await?;
        Ok(proxy)
    }

    async fn until_ready(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            if matches!(
                Client::plain(self.admin).page("/readyz").await,
                Ok((200, _))
            ) {
                return Ok(());
            }
            ensure(began.elapsed() < Duration::from_secs(20), || {
                format!("the proxy is not ready:\n{}", self.process.tail())
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

async fn status(admin: u16) -> Result<Value> {
    let (_, page) = Client::plain(admin).page("/v1/status").await?;
    serde_json::from_str(&page).map_err(told)
}

/// A client's endpoint at the proxy.
fn endpoint(url: &str, tls: &Tls) -> Result<Endpoint> {
    let mut config =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(&tls.ca)?));
    if let Some(client) = &tls.client {
        let (cert, key) = (std::fs::read(&client.cert)?, std::fs::read(&client.key)?);
        config = config.identity(Identity::from_pem(cert, key));
    }
    Endpoint::from_shared(url.to_owned())
        .and_then(|endpoint| endpoint.tls_config(config))
        .map(|endpoint| endpoint.connect_timeout(CONNECT_TIMEOUT))
        .map_err(told)
}

/// What clients have seen.
#[derive(Default)]
struct Seen {
    connections: u64,
    failed_connections: Vec<String>,
    calls: u64,
    failed_calls: Vec<String>,
    /// Longest time from the end of one acknowledged write to the end of the next.
    longest_gap: Duration,
    /// Acknowledged writes.
    written: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Events of the watch, by revision.
    events: BTreeMap<i64, (Vec<u8>, Vec<u8>)>,
    /// Longest time that a follower had connections.
    at_follower: Duration,
}

struct Watching {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

impl Watching {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn see<T>(&self, see: impl FnOnce(&mut Seen) -> T) -> T {
        let mut seen = self
            .seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        see(&mut seen)
    }
}

fn value(nth: u64) -> Vec<u8> {
    let len = 100 + (nth * 7919) % 9_000;
    let byte = |at: u64| (at.wrapping_mul(nth + 31) >> 3) as u8;
    (0..len).map(byte).collect()
}

/// A new connection, again and again, with one read on each.
async fn connects(endpoint: Endpoint, w: Arc<Watching>) {
    while w.goes_on() {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await;
        match opened {
            Ok(Ok(channel)) => {
                w.see(|seen| seen.connections += 1);
                let range = pb::RangeRequest {
                    key: b"/proxy/".to_vec().into(),
                    ..Default::default()
                };
                let mut client = pb::kv_client::KvClient::new(channel);
                let _ = tokio::time::timeout(CALL_TIMEOUT, client.range(range)).await;
            }
            Ok(Err(error)) => {
                let error = format!("{error}: {:?}", std::error::Error::source(&error));
                w.see(|seen| seen.failed_connections.push(error));
            }
            Err(_) => w.see(|seen| seen.failed_connections.push("time-out".to_owned())),
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// Writes one after the other on a connection that is kept open.
async fn writes(channel: Channel, w: Arc<Watching>) {
    let mut client = pb::kv_client::KvClient::new(channel);
    let mut last = Instant::now();
    for nth in 0.. {
        if !w.goes_on() {
            return;
        }
        let (key, value) = (format!("/proxy/{nth:08}").into_bytes(), value(nth));
        let put = client.put(pb::PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            ..Default::default()
        });
        let result = tokio::time::timeout(CALL_TIMEOUT, put).await;
        w.see(|seen| seen.calls += 1);
        match result {
            Ok(Ok(_)) => {
                let now = Instant::now();
                w.see(|seen| {
                    seen.longest_gap = seen.longest_gap.max(now - last);
                    seen.written.insert(key, value)
                });
                last = now;
            }
            Ok(Err(status)) => {
                w.see(|seen| seen.failed_calls.push(status.message().to_owned()));
            }
            Err(_) => w.see(|seen| seen.failed_calls.push("time-out".to_owned())),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Watches all of it, and goes on after each break where it was.
async fn watches(channel: Channel, w: Arc<Watching>) {
    let mut client = pb::watch_client::WatchClient::new(channel);
    let mut next = 1;
    while w.goes_on() {
        let create = pb::WatchCreateRequest {
            key: b"/proxy/".to_vec().into(),
            range_end: b"/proxy0".to_vec().into(),
            start_revision: next,
            ..Default::default()
        };
        let request = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let _ = sender.send(request).await;
        let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let opened = tokio::time::timeout(CALL_TIMEOUT, client.watch(requests)).await;
        let Ok(Ok(answer)) = opened else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut stream = answer.into_inner();
        while w.goes_on() {
            let message = tokio::time::timeout(Duration::from_millis(200), stream.message()).await;
            match message {
                Err(_) => {}
                Ok(Ok(Some(answer))) => {
                    for event in answer.events.into_iter().filter_map(|event| event.kv) {
                        next = event.mod_revision + 1;
                        let seen = (event.key.to_vec(), event.value.to_vec());
                        w.see(|all| all.events.insert(event.mod_revision, seen));
                    }
                }
                Ok(_) => break,
            }
        }
    }
}

/// Looks how long followers have connections.
async fn looks(admin: u16, w: Arc<Watching>) {
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    while w.goes_on() {
        if let Ok(status) = status(admin).await {
            let led = status["leader"].is_object();
            for member in status["members"].as_array().into_iter().flatten() {
                let name = member["endpoint"].as_str().unwrap_or_default().to_owned();
                let has = member["connections"].as_u64().unwrap_or(0) > 0;
                let leads = member["leads"].as_bool() == Some(true);
                if led && has && !leads {
                    let began = *since.entry(name).or_insert_with(Instant::now);
                    w.see(|seen| seen.at_follower = seen.at_follower.max(began.elapsed()));
                } else {
                    since.remove(&name);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the proxy knows the leader, and every connection is there.
async fn until_all_are_at(proxy: &Proxy, url: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = status(proxy.admin).await?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let elsewhere = members
            .iter()
            .filter(|m| m["endpoint"] != url && m["connections"].as_u64() != Some(0));
        if status["leader"]["endpoint"] == url && elsewhere.count() == 0 {
            return Ok(());
        }
        ensure(began.elapsed() < Duration::from_secs(20), || {
            format!("not all are at {url}: {status:#}")
        })?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_the_leader_through_kills_moves_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let result = follow(dir.path()).await;
    conclude(dir, result);
}

async fn follow(dir: &Path) -> Result<()> {
    let rounds = env::number("ORLOP_PROXY_ROUNDS")?.unwrap_or(ROUNDS);
    let set = std::env::var("ORLOP_PROXY_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let mut etcds = EtcdMembers::start_straight(&set, 3, dir).await?;
    let gap = std::env::var("ORLOP_PROXY_GAP_MS").map(|ms| format!("--handover-gap-ms={ms}"));
    let flags: Vec<&str> = gap.iter().map(String::as_str).collect();
    let mut proxy = Proxy::start(dir, &etcds.urls(), &etcds.tls(), &flags).await?;
    let w = Arc::new(Watching {
        stop: AtomicBool::new(false),
        seen: Mutex::default(),
    });
    let endpoint = endpoint(&proxy.url(), &etcds.tls())?;
    let tasks = [
        tokio::spawn(connects(endpoint.clone(), Arc::clone(&w))),
        tokio::spawn(writes(endpoint.connect_lazy(), Arc::clone(&w))),
        tokio::spawn(watches(endpoint.connect_lazy(), Arc::clone(&w))),
        tokio::spawn(looks(proxy.admin, Arc::clone(&w))),
    ];
    let mut failed_calls: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for round in 0..rounds {
        let leader = etcds.leader().await?;
        until_all_are_at(&proxy, &etcds.members[leader].url()).await?;
        let before = w.see(|seen| seen.failed_calls.len());
        let (how, next) = match round % 3 {
            0 => {
                let to = (leader + 1) % etcds.members.len();
                etcds.move_leader(to).await?;
                ("moved", etcds.leader_but(Some(leader)).await?)
            }
            1 => {
                etcds.kill(leader);
                ("killed", etcds.leader_but(Some(leader)).await?)
            }
            _ => {
                etcds.pause(leader)?;
                ("stopped", etcds.leader_but(Some(leader)).await?)
            }
        };
        until_all_are_at(&proxy, &etcds.members[next].url()).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        match how {
            "killed" => etcds.start_again(leader).await?,
            "stopped" => etcds.resume(leader)?,
            _ => {}
        }
        let failed = w.see(|seen| seen.failed_calls.len()) - before;
        failed_calls.entry(how).or_default().push(failed);
        proxy.process.check_running()?;
    }
    // What was written last is still to be watched.
    tokio::time::sleep(Duration::from_secs(1)).await;
    w.stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.map_err(told)?;
    }
    let ends = status(proxy.admin).await?["connections"].clone();
    let seen = w.see(std::mem::take);
    println!(
        "{rounds} leader changes: {} connections, {} failed; {} writes, {} failed ({failed_calls:?}: \
         {:?}); longest gap between acknowledged writes {} ms; longest at a follower {} ms\n{ends}",
        seen.connections,
        seen.failed_connections.len(),
        seen.calls,
        seen.failed_calls.len(),
        tally(&seen.failed_calls),
        seen.longest_gap.as_millis(),
        seen.at_follower.as_millis(),
    );
    ensure(seen.failed_connections.is_empty(), || {
        format!("connections failed: {:?}", seen.failed_connections)
    })?;
    ensure(seen.connections > rounds, || {
        "too few connections".to_owned()
    })?;
    ensure(seen.at_follower < HANDOVER_LIMIT + SLACK, || {
        format!("{:?} at a follower", seen.at_follower)
    })?;
    compare(&etcds, &seen)?;
    let ended = proxy.process.terminate(Duration::from_secs(15))?;
    ensure(ended.success(), || format!("the proxy ended with {ended}"))
}

fn tally(texts: &[String]) -> BTreeMap<&str, usize> {
    let mut tally = BTreeMap::new();
    for text in texts {
        *tally.entry(text.as_str()).or_default() += 1;
    }
    tally
}

/// Everything that was acknowledged is there, and was watched, byte for byte.
fn compare(etcds: &EtcdMembers, seen: &Seen) -> Result<()> {
    ensure(!seen.written.is_empty(), || {
        "nothing was written".to_owned()
    })?;
    let mut watched: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for (key, value) in seen.events.values() {
        watched.insert(key, value);
    }
    for (key, value) in &seen.written {
        let name = String::from_utf8_lossy(key).into_owned();
        match watched.get(key.as_slice()) {
            None => return fail(format!("{name} was acknowledged and never watched")),
            Some(other) if *other != value.as_slice() => {
                return fail(format!("{name} was watched with other bytes"));
            }
            Some(_) => {}
        }
    }
    let stored = etcds.etcdctl(&etcds.urls())?.keys("/proxy/", 0)?;
    for key in seen.written.keys() {
        let name = String::from_utf8_lossy(key);
        ensure(stored.contains_key(&*name), || {
            format!("{name} is not stored")
        })?;
    }
    for (revision, (key, value)) in &seen.events {
        let nth = std::str::from_utf8(key)
            .ok()
            .and_then(|key| key.strip_prefix("/proxy/")?.parse().ok());
        let sent = nth.map(self::value);
        ensure(sent.as_deref() == Some(value), || {
            format!("the event at {revision} has other bytes than were sent")
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_goes_through_and_the_status_says_who_leads() {
    let dir = tempfile::tempdir().unwrap();
    let result = ordinary(dir.path()).await;
    conclude(dir, result);
}

async fn ordinary(dir: &Path) -> Result<()> {
    let etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    // One endpoint is enough: the others are found.
    let proxy = Proxy::start(dir, &etcds.members[0].url(), &etcds.tls(), &[]).await?;
    let leader = etcds.leader().await?;
    let etcdctl = etcds.etcdctl(&proxy.url())?;
    etcdctl.ok(&["put", "key", "value"])?;
    let got = etcdctl.ok(&["get", "key", "--print-value-only"])?;
    ensure(got == "value\n", || got.clone())?;
    // Without a client certificate it is the member that refuses.
    let mut nobody = etcds.tls();
    nobody.client = None;
    let refused = e2e::kube::etcdctl::Etcdctl::new(&proxy.url(), Some(&nobody))?.run(&[
        "get",
        "key",
        "--command-timeout=3s",
    ])?;
    ensure(refused.code != 0, || format!("{refused:?}"))?;
    let shown = Command::new(Kind::Orlop.program()?)
        .args(["proxy", "status"])
        .arg(format!("--admin-url=http://127.0.0.1:{}", proxy.admin))
        .output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = shown
        .lines()
        .find(|line| line.contains(&etcds.members[leader].url()) && line.contains("leader"));
    ensure(line.is_some(), || shown.clone())?;
    ensure(shown.matches("follower").count() == 2, || shown.clone())?;
    let metrics = Client::plain(proxy.admin).page("/metrics").await?.1;
    let leads = format!("endpoint=\"{}\"}} 1", etcds.members[leader].url());
    let says = |line: &str| line.starts_with("orlop_proxy_member_leads") && line.ends_with(&leads);
    ensure(metrics.lines().any(says), || metrics.clone())
}
