//! The whole loop: a real Prometheus that scrapes round trips and traffic, the placement loop that
//! asks it, and Seika's controller that makes the pods. Pods are where the traffic enters, in exact
//! numbers, and go where it goes.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use e2e::kube::http::Client;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, free_port};
use e2e::kube::steps::Steps;
use e2e::kube::{Error, Result, ensure, eventually};
use serde_json::json;

use super::rig::{CONVERGES, NAMESPACE, Rig, seika};

const NODES: [&str; 3] = ["node-0", "node-1", "node-2"];
/// Round trips in ms, by the nodes' places in [`NODES`].
const APART_MS: [(usize, usize, f64); 3] = [(0, 1, 30.0), (0, 2, 50.0), (1, 2, 50.0)];
/// Requests a second, each of which takes a pod 10 ms: 1.4 pods of which each may be busy for 0.7 of
/// its time. With what a count may be off, and 1.3 times more, that is above one pod and below two.
const REQUESTS_A_SECOND: f64 = 96.0;
const SERVING_S: f64 = 0.01;
const PODS: u32 = 2;

/// What is measured: counters grow with time, at the node at which requests enter.
struct Measured {
    enters: usize,
    since: Instant,
    totals: [f64; 3],
}

impl Measured {
    fn advance(&mut self) {
        let now = Instant::now();
        let grown = now.duration_since(self.since).as_secs_f64() * REQUESTS_A_SECOND;
        self.totals[self.enters] += grown;
        self.since = now;
    }

    /// The page, as agents and a router publish it.
    fn page(&mut self) -> String {
        self.advance();
        let mut page = String::new();
        for (a, b, ms) in APART_MS {
            for (from, to) in [(a, b), (b, a)] {
                let ways = format!("from=\"{}\",to=\"{}\"", NODES[from], NODES[to]);
                let _ = writeln!(page, "latency_between_nodes{{{ways}}} {ms}");
                let _ = writeln!(page, "orlop_latency_peer_up{{{ways}}} 1");
            }
        }
        for (node, requests) in NODES.iter().zip(self.totals) {
            let of = format!("namespace=\"{NAMESPACE}\",service=\"loop\",node=\"{node}\"");
            let requests = requests.floor();
            let seconds = requests * SERVING_S;
            let _ = writeln!(page, "orlop_router_requests_total{{{of}}} {requests}");
            let _ = writeln!(
                page,
                "orlop_router_serving_seconds_count{{{of}}} {requests}"
            );
            let _ = writeln!(page, "orlop_router_serving_seconds_sum{{{of}}} {seconds}");
        }
        page
    }
}

fn prometheus(dir: &Path, exporter: &str) -> Result<(String, Process)> {
    let port = free_port()?;
    let target = exporter.trim_start_matches("http://");
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: nodes\n    static_configs: \
         [{{targets: ['{target}']}}]\n"
    );
    let file = dir.join("prometheus.yml");
    std::fs::write(&file, config)?;
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.join("tsdb").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let process = Process::start("prometheus", dir, &mut command)?;
    Ok((format!("http://127.0.0.1:{port}"), process))
}

pub(crate) async fn follows(dir: &Path) -> Result<()> {
    let mut steps = Steps::start();
    let mut rig = Rig::start(dir, 3).await?;
    rig.start_controller()?;
    rig.leader().await?;
    steps.done("the control plane and Seika's controller are ready");
    let measured = Arc::new(Mutex::new(Measured {
        enters: 0,
        since: Instant::now(),
        totals: [0.0; 3],
    }));
    let shown = Arc::clone(&measured);
    let address = format!("127.0.0.1:{}", free_port()?);
    let exporter = wire::Pages::start("exporter", &[address], None, move |path| {
        let mut measured = shown.lock().unwrap_or_else(PoisonError::into_inner);
        (path == "/metrics").then(|| wire::Page::new("text/plain; version=0.0.4", measured.page()))
    });
    let exporter = exporter.map_err(|error| Error::Failed(error.to_string()))?;
    let (url, mut prometheus) = prometheus(dir, &exporter.urls()[0])?;
    let port = free_port()?;
    let mut command = Command::new(e2e::fleet::program()?);
    command
        .args(["place", "--round=0.5", "--window=5", "--latency-period=1"])
        .args(["--max-age=10", "--lease-namespace=default"])
        .arg(format!("--kubeconfig={}", rig.admin.display()))
        .arg(format!("--prometheus={url}"))
        .arg(format!("--metrics-addr=127.0.0.1:{port}"));
    let mut place = Process::start("place", dir, &mut command)?;

    let mut service = seika("loop", &[]);
    service["metadata"]["labels"] = json!({ "orlop.io/placement": "on" });
    service["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "100m" } });
    rig.create(&service).await?;
    rig.converges("loop", &[(NODES[0], PODS)]).await?;
    steps.done("pods are at the node of the traffic");
    for (enters, node) in [(2, NODES[2]), (1, NODES[1])] {
        {
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            measured.advance();
            measured.enters = enters;
        }
        rig.converges("loop", &[(node, PODS)]).await?;
        steps.done("they have moved with it");
    }
    // Nothing more happens, and no pod was made but those.
    let page = || async {
        let (_, text) = Client::plain(port).page("/metrics").await?;
        Ok::<_, Error>(Metrics::new(text))
    };
    let of = |page: &Metrics, direction: &str| {
        let label = format!("direction=\"{direction}\"");
        page.sum("orlop_placement_moves_total", &[&label])
    };
    let before = page().await?;
    let rounds = |page: &Metrics| page.sum("orlop_placement_rounds_total", &[]);
    eventually("two windows pass", CONVERGES, || async {
        let now = page().await?;
        Ok((rounds(&now) >= rounds(&before) + 20.0).then_some(()))
    })
    .await?;
    let now = page().await?;
    let (added, removed) = (of(&now, "added"), of(&now, "removed"));
    let created = rig
        .series(0, "orlop_seika_writes_total{what=\"create\"}")
        .await?;
    println!("{added} pods added, {removed} removed by the loop; {created} created by Seika");
    ensure(
        (added, removed) == (3.0 * f64::from(PODS), 2.0 * f64::from(PODS)) && created == added,
        || format!("{added} added, {removed} removed, {created} created"),
    )?;
    rig.is_exact("loop", &[(NODES[1], PODS)]).await?;
    place.check_running()?;
    prometheus.check_running()?;
    rig.check()
}
