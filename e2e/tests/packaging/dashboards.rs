//! The Grafana dashboards: whole, and every series that a query names exists.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::etcd_members::{EtcdMembers, told};
use e2e::kube::http::Client;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, ensure};
use serde_json::Value;

use crate::repo;
use crate::rules::selectors;

const ORLOP: &str = "packaging/grafana/orlop.json";
const MEMBERS: &str = "packaging/grafana/etcd-members.json";
const NODES: &str = "packaging/grafana/fleet-nodes.json";

fn board(path: &str) -> Result<Value> {
    let file = std::fs::read_to_string(repo(path))?;
    serde_json::from_str(&file).map_err(told)
}

fn panels(board: &Value) -> Vec<&Value> {
    board["panels"].as_array().into_iter().flatten().collect()
}

/// Every query, with its panel's title.
fn queries(board: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in panels(board) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    found
}

#[test]
fn panels_are_whole_and_do_not_overlap() {
    let mut uids = BTreeSet::new();
    for path in [ORLOP, MEMBERS, NODES] {
        let board = board(path).unwrap();
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()));
        let variables: Vec<String> = board["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| format!("${}", variable["name"].as_str().unwrap()))
            .collect();
        let mut cells = BTreeSet::new();
        for panel in panels(&board) {
            let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(x < 24 && cells.insert((x, y)), "{}", panel["title"]);
                }
            }
        }
        let queries = queries(&board);
        assert!(queries.len() >= 15, "{path}");
        for (title, query) in queries {
            // A panel shows the jobs that were chosen, and no others.
            let job = query.split_once("{job=~\"").unwrap().1;
            let job = job.split_once('"').unwrap().0.to_owned();
            assert!(variables.contains(&job), "{title}: {query}");
        }
    }
}

/// Fails where a query names a series that is in none of these pages.
fn each_is_there(path: &str, pages: &[Metrics]) -> Result<()> {
    for (title, query) in queries(&board(path)?) {
        let named = selectors(&query);
        ensure(!named.is_empty(), || {
            format!("{title}: no series in {query}")
        })?;
        for (name, _) in named {
            let found = pages
                .iter()
                .any(|page| page.series(&name, &[]).next().is_some());
            ensure(found, || format!("{path}, {title}: no {name}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_series_of_orlops_dashboard_exists() {
    let dir = tempfile::tempdir().unwrap();
    let result = of_orlop(dir.path()).await;
    conclude(dir, result);
}

async fn of_orlop(dir: &Path) -> Result<()> {
    let store = Store::start(Kind::Orlop, "orlop", dir, None, &[]).await?;
    store.etcdctl()?.ok(&["put", "key", "value"])?;
    each_is_there(ORLOP, &[store.metrics().await?])
}

#[tokio::test]
async fn each_series_of_the_members_dashboard_exists() {
    let dir = tempfile::tempdir().unwrap();
    let result = of_members(dir.path()).await;
    conclude(dir, result);
}

async fn of_members(dir: &Path) -> Result<()> {
    let etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    let (port, admin) = (free_port()?, free_port()?);
    let tls = etcds.tls();
    let client = tls
        .client
        .as_ref()
        .map(|c| (c.cert.display(), c.key.display()));
    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .arg("proxy")
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg(format!("--metrics-addr=127.0.0.1:{admin}"))
        .arg(format!("--endpoints={}", etcds.urls()))
        .arg(format!("--cacert={}", tls.ca.display()));
    if let Some((cert, key)) = client {
        command
            .arg(format!("--cert={cert}"))
            .arg(format!("--key={key}"));
    }
    let mut proxy = Process::start("proxy", dir, &mut command)?;
    let etcdctl = etcds.etcdctl(&format!("https://127.0.0.1:{port}"))?;
    let began = Instant::now();
    while etcdctl.run(&["put", "key", "value"])?.code != 0 {
        proxy.check_running()?;
        ensure(began.elapsed() < Duration::from_secs(30), || proxy.tail())?;
    }
    // Members measure how far they are from each other after a while.
    let began = Instant::now();
    loop {
        let mut pages = Vec::new();
        let members = etcds.members.iter().map(|member| member.metrics_port);
        for port in members.chain([admin]) {
            let (_, page) = Client::plain(port).page("/metrics").await?;
            pages.push(Metrics::new(page));
        }
        match each_is_there(MEMBERS, &pages) {
            Err(error) if began.elapsed() > Duration::from_secs(45) => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            Ok(()) => return Ok(()),
        }
    }
}

#[tokio::test]
async fn each_series_of_the_nodes_dashboard_exists() {
    let dir = tempfile::tempdir().unwrap();
    let result = of_nodes(dir.path()).await;
    conclude(dir, result);
}

/// Three agents, so that a zone has two nodes, and one that is not there.
async fn of_nodes(dir: &Path) -> Result<()> {
    let ports = [free_port()?, free_port()?, free_port()?];
    let peers = dir.join("peers");
    let line = |(n, port): (usize, &u16)| format!("node-{n} 127.0.0.1:{port} zone\n");
    let mut lines: String = ports.iter().enumerate().map(line).collect();
    lines.push_str(&format!("gone 127.0.0.1:{} zone\n", free_port()?));
    std::fs::write(&peers, lines)?;
    let mut agents = Vec::new();
    for (n, port) in ports.iter().enumerate() {
        let mut command = Command::new(e2e::fleet::program()?);
        command
            .args(["latency", "--period=1", "--window=10", "--timeout-ms=500"])
            .arg(format!("--node=node-{n}"))
            .arg(format!("--peers={}", peers.display()))
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--metrics-addr=127.0.0.1:{port}"));
        agents.push(Process::start(&format!("agent-{n}"), dir, &mut command)?);
    }
    let began = Instant::now();
    loop {
        for agent in &mut agents {
            agent.check_running()?;
        }
        let page = Client::plain(ports[0]).page("/metrics").await;
        let page = page.map(|(_, page)| Metrics::new(page));
        match page.and_then(|page| each_is_there(NODES, &[page])) {
            Err(error) if began.elapsed() > Duration::from_secs(45) => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            Ok(()) => return Ok(()),
        }
    }
}
