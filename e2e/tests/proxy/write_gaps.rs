//! How long a client cannot write when the leader is killed: by a kube-apiserver that has the
//! proxy, and by one that has all members, at the same kills of one cluster. By hand; prints a
//! table:
//!
//! `ORLOP_PROXY_KILLS=20 cargo test -p e2e --test proxy -- --ignored --nocapture write_gaps`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::env;
use e2e::etcd_members::{EtcdMembers, told};
use e2e::kube::api::Api;
use e2e::kube::binaries;
use e2e::kube::control_plane::{ControlPlane, Plan, READY_TIMEOUT};
use e2e::kube::proc::conclude;
use e2e::kube::store::Endpoints;
use e2e::kube::{Result, ensure};
use serde_json::json;
use tokio::task::JoinHandle;

use super::Proxy;

/// Kills of the leader, unless told otherwise.
const KILLS: u64 = 20;
/// From a kill until a writer must have gone on.
const GOES_ON: Duration = Duration::from_secs(30);
/// After what has changed the cluster, before the next kill.
const REST: Duration = Duration::from_secs(3);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(5);

/// When a writer's calls were acknowledged.
struct Writer {
    acknowledged: Arc<std::sync::Mutex<Vec<Instant>>>,
    failed: Arc<std::sync::atomic::AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(api: Arc<Api>, name: &'static str) -> Self {
        let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
        let failed = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, failures, end) = (
            Arc::clone(&acknowledged),
            Arc::clone(&failed),
            Arc::clone(&stop),
        );
        let task = tokio::spawn(async move {
            let path = "/api/v1/namespaces/default/configmaps";
            for round in 0_u64.. {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": format!("{name}-{round}")},
                    "data": {"value": "x".repeat(1024)},
                });
                match api.create(path, &map).await {
                    Ok(_) => {
                        if let Ok(mut noted) = noted.lock() {
                            noted.push(Instant::now());
                        }
                    }
                    Err(_) => {
                        failures.fetch_add(1, Ordering::SeqCst);
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Writer {
            acknowledged,
            failed,
            stop,
            task,
        }
    }

    /// The longest time without an acknowledgement that began or went on after `since`.
    fn longest_gap(&self, since: Instant) -> Option<Duration> {
        let all = self.acknowledged.lock().ok()?;
        let gaps = all.windows(2).filter(|pair| pair[1] >= since);
        gaps.map(|pair| pair[1].duration_since(pair[0])).max()
    }

    fn goes_on_after(&self, since: Instant) -> bool {
        let all = self.acknowledged.lock();
        all.is_ok_and(|all| all.iter().rev().take_while(|at| **at > since).count() > 10)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of some minutes"]
async fn write_gaps_when_the_leader_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let result = gaps(dir.path()).await;
    conclude(dir, result);
}

async fn plane(dir: &Path, endpoints: &Endpoints) -> Result<ControlPlane> {
    std::fs::create_dir(dir)?;
    let plan = Plan {
        binaries: binaries("kube-1.37")?,
        checks_cache: false,
        client_qps: None,
        port: 0,
        ready_timeout: READY_TIMEOUT,
    };
    ControlPlane::start_as(plan, dir, endpoints, &[]).await
}

async fn gaps(dir: &Path) -> Result<()> {
    let kills = env::number("ORLOP_PROXY_KILLS")?.unwrap_or(KILLS);
    let mut etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    let proxy = Proxy::start(dir, &etcds.urls(), &etcds.tls(), &[]).await?;
    let by = |urls: Vec<String>| Endpoints {
        urls,
        tls: Some(etcds.tls()),
    };
    let all = by(etcds.urls().split(',').map(str::to_owned).collect());
    let direct = plane(&dir.join("direct"), &all).await?;
    let behind = plane(&dir.join("behind"), &by(vec![proxy.url()])).await?;
    let writers = [
        Writer::start(behind.api(), "proxy"),
        Writer::start(direct.api(), "all"),
    ];
    tokio::time::sleep(REST).await;

    println!("| kill | proxy ms | all three ms |");
    let mut seen = [Vec::new(), Vec::new()];
    for kill in 0..kills {
        let leader = etcds.leader().await?;
        let killed = Instant::now();
        etcds.kill(leader);
        let next = etcds.leader_but(Some(leader)).await?;
        while !writers.iter().all(|w| w.goes_on_after(killed)) {
            ensure(killed.elapsed() < GOES_ON, || {
                "a writer did not go on".to_owned()
            })?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What comes late (a connection that waits out its backoff) counts too.
        tokio::time::sleep(REST).await;
        let gaps: Vec<_> = writers
            .iter()
            .map(|w| w.longest_gap(killed).unwrap_or(GOES_ON).as_millis())
            .collect();
        println!("| {kill} | {} | {} |", gaps[0], gaps[1]);
        seen[0].push(gaps[0]);
        seen[1].push(gaps[1]);
        ensure(next != leader, || "nobody else leads".to_owned())?;
        etcds.start_again(leader).await?;
        tokio::time::sleep(REST).await;
    }
    for (name, seen) in ["proxy", "all three"].iter().zip(&mut seen) {
        seen.sort_unstable();
        println!(
            "{name}: median {} ms, longest {} ms",
            seen[seen.len() / 2],
            seen[seen.len() - 1]
        );
    }
    for (name, writer) in ["proxy", "all three"].iter().zip(writers) {
        writer.stop.store(true, Ordering::SeqCst);
        let failed = writer.failed.load(Ordering::SeqCst);
        println!("{name}: {failed} calls of the API failed");
        writer.task.await.map_err(told)?;
    }
    Ok(())
}
