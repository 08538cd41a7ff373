//! How many calls fail when the leader moves, by the gap of the handover: at clients of a load
//! tool's kind, and at a kube-apiserver. By hand; prints a table:
//!
//! `ORLOP_PROXY_GAPS=0,1,5,20 cargo test -p e2e --test proxy -- --ignored --nocapture failed_calls`
//!
//! A row can have a limit of its own, in ms after a colon: `ORLOP_PROXY_GAPS=5:500,5:5000`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::etcd_members::{EtcdMembers, told};
use e2e::kube::api::Api;
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::proc::conclude;
use e2e::kube::store::{Kind, Setup, Store};
use e2e::kube::{Result, ensure};
use etcd_api::etcdserverpb as pb;
use serde_json::json;

use super::{Proxy, endpoint, status, until_all_are_at};

/// Leader changes for each row.
const MOVES: u64 = 10;

/// A load: connections, calls in flight on each, and the pause after a call.
struct Load {
    name: &'static str,
    connections: usize,
    in_flight: usize,
    pause: Duration,
}

const LOADS: [Load; 3] = [
    Load {
        name: "20 connections, 1 in flight, without a pause",
        connections: 20,
        in_flight: 1,
        pause: Duration::ZERO,
    },
    Load {
        name: "10 connections, 10 in flight, without a pause",
        connections: 10,
        in_flight: 10,
        pause: Duration::ZERO,
    },
    Load {
        name: "20 connections, 4 in flight, 50 ms of pause",
        connections: 20,
        in_flight: 4,
        pause: Duration::from_millis(50),
    },
];

fn gaps() -> Vec<String> {
    let gaps = std::env::var("ORLOP_PROXY_GAPS").unwrap_or_else(|_| "0,1,5,20".to_owned());
    gaps.split(',').map(str::to_owned).collect()
}

/// The proxy's flags for a row: GAP or GAP:LIMIT.
fn flags(row: &str) -> Vec<String> {
    match row.split_once(':') {
        Some((gap, limit)) => vec![
            format!("--handover-gap-ms={gap}"),
            format!("--handover-limit-ms={limit}"),
        ],
        None => vec![format!("--handover-gap-ms={row}")],
    }
}

#[derive(Default)]
struct Calls {
    stop: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    /// Of those, calls that the client says it had not sent. Go's client makes them anew by itself.
    not_sent: AtomicU64,
}

impl Calls {
    fn count(&self, failed: bool) {
        self.done.fetch_add(1, Ordering::SeqCst);
        self.failed.fetch_add(u64::from(failed), Ordering::SeqCst);
    }

    fn read(&self) -> [u64; 3] {
        [&self.done, &self.failed, &self.not_sent].map(|n| n.load(Ordering::SeqCst))
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }
}

/// Moves the lead so often; how long the handovers took.
async fn moves(etcds: &EtcdMembers, proxy: &Proxy) -> Result<Duration> {
    let mut took = Duration::ZERO;
    for _ in 0..MOVES {
        let leader = etcds.leader().await?;
        let to = (leader + 1) % etcds.members.len();
        etcds.move_leader(to).await?;
        let next = etcds.leader_but(Some(leader)).await?;
        let began = Instant::now();
        until_all_are_at(proxy, &etcds.members[next].url()).await?;
        took = took.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(took)
}

async fn row(
    name: &str,
    gap: &str,
    calls: &Calls,
    etcds: &EtcdMembers,
    proxy: &Proxy,
) -> Result<()> {
    let ends = |status: serde_json::Value| status["connections"]["ended"].clone();
    let before = ends(status(proxy.admin).await?);
    let [done, failed, not_sent] = calls.read();
    let took = moves(etcds, proxy).await?;
    let [all, failures, unsent] = calls.read();
    let after = ends(status(proxy.admin).await?);
    let ended = |why: &str| after[why].as_u64().unwrap_or(0) - before[why].as_u64().unwrap_or(0);
    println!(
        "| {name} | {gap} | {} | {:.1} | {:.1} | {} | {} | {} |",
        all - done,
        (failures - failed) as f64 / MOVES as f64,
        (unsent - not_sent) as f64 / MOVES as f64,
        ended("handover_gap"),
        ended("handover_limit"),
        took.as_millis(),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of some minutes"]
async fn failed_calls_of_a_load_by_gap() {
    let dir = tempfile::tempdir().unwrap();
    let result = of_load(dir.path()).await;
    conclude(dir, result);
}

async fn of_load(dir: &Path) -> Result<()> {
    let etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    println!(
        "| load | gap ms | calls | failed a change | of these not sent | ends in a gap | at the limit | longest ms |"
    );
    for gap in gaps() {
        let flags = flags(&gap);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let proxy = Proxy::start(dir, &etcds.urls(), &etcds.tls(), &flags).await?;
        for load in &LOADS {
            let calls = Arc::new(Calls::default());
            let mut tasks = Vec::new();
            for connection in 0..load.connections {
                let channel = endpoint(&proxy.url(), &etcds.tls())?.connect_lazy();
                for nth in 0..load.in_flight {
                    let mut client = pb::kv_client::KvClient::new(channel.clone());
                    let (calls, pause) = (Arc::clone(&calls), load.pause);
                    let key = format!("/load/{connection}/{nth}").into_bytes();
                    tasks.push(tokio::spawn(async move {
                        while calls.goes_on() {
                            let put = pb::PutRequest {
                                key: key.clone().into(),
                                value: vec![7; 1024].into(),
                                ..Default::default()
                            };
                            let result = client.put(put).await;
                            calls.count(result.is_err());
                            let not_sent = result.is_err_and(|status| {
                                status.message().contains("operation was canceled")
                            });
                            calls
                                .not_sent
                                .fetch_add(u64::from(not_sent), Ordering::SeqCst);
                            tokio::time::sleep(pause).await;
                        }
                    }));
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            row(load.name, &gap, &calls, &etcds, &proxy).await?;
            calls.stop.store(true, Ordering::SeqCst);
            for task in tasks {
                task.await.map_err(told)?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of some minutes"]
async fn failed_calls_of_an_apiserver_by_gap() {
    let dir = tempfile::tempdir().unwrap();
    let result = of_apiserver(dir.path()).await;
    conclude(dir, result);
}

async fn of_apiserver(dir: &Path) -> Result<()> {
    let etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    // A store of this address, in whose place the proxy listens.
    let setup = Setup::new(Kind::Orlop, Kind::Orlop.program()?);
    let mut store = Store::start_as(setup, "stand-in", dir, Some(etcds.tls())).await?;
    store.stop()?;
    let port = store
        .url()
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    let port: u16 = port.unwrap_or_default();
    ensure(port != 0, || store.url())?;
    let mut plane = None;
    println!(
        "| load | gap ms | calls | failed a change | of these not sent | ends in a gap | at the limit | longest ms |"
    );
    for gap in gaps() {
        let flags = flags(&gap);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let proxy = Proxy::start_at(dir, port, &etcds.urls(), &etcds.tls(), &flags).await?;
        if plane.is_none() {
            let mut new = ControlPlane::start(dir, "kube-1.37", &store, &[]).await?;
            new.start_component("kube-controller-manager", "kube-controller-manager")?;
            new.start_component("kube-scheduler", "kube-scheduler")?;
            plane = Some(new);
        }
        let Some(plane) = &plane else { continue };
        let api = plane.api();
        let calls = Arc::new(Calls::default());
        let tasks: Vec<_> = (0..16)
            .map(|nth| tokio::spawn(updates(Arc::clone(&api), nth, Arc::clone(&calls))))
            .collect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let errors =
            |metrics: &e2e::kube::metrics::Metrics| metrics.sum("etcd_request_errors_total", &[]);
        let before = errors(&api.metrics().await?);
        row(
            "kube-apiserver, 16 writers of its API",
            &gap,
            &calls,
            &etcds,
            &proxy,
        )
        .await?;
        let failed = errors(&api.metrics().await?) - before;
        println!(
            "|   calls of the apiserver to etcd that failed, a change | {gap} | | {:.1} |",
            failed / MOVES as f64
        );
        calls.stop.store(true, Ordering::SeqCst);
        for task in tasks {
            task.await.map_err(told)?;
        }
    }
    Ok(())
}

/// Creates and deletes config maps, one call after the other.
async fn updates(api: Arc<Api>, nth: usize, calls: Arc<Calls>) {
    let path = "/api/v1/namespaces/default/configmaps";
    for round in 0.. {
        if !calls.goes_on() {
            return;
        }
        let name = format!("load-{nth}-{round}");
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"value": "x".repeat(1024)},
        });
        calls.count(api.create(path, &map).await.is_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
        calls.count(api.delete(&format!("{path}/{name}")).await.is_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
