//! The proxy's unit and static pod: valid, and with what they say it serves real etcds.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::etcd_members::EtcdMembers;
use e2e::kube::http::Client;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure, fail};
use e2e::static_pod::read;
use serde_yaml_ng::Value;

use crate::rules::selectors;
use crate::unit::{READY_TIMEOUT, Service, allowed, settings, systemd_takes, values};
use crate::{repo, run};

const UNIT: &str = "packaging/systemd/orlop-proxy.service";
const RULES: &str = "packaging/prometheus/proxy.rules.yml";
const PAGE: &str = "docs/operating/proxy.md";
const MANIFEST: &str = "packaging/kubeadm/proxy.yaml";
/// Addresses of the examples.
const EXAMPLES: [&str; 2] = [
    "http://192.0.2.1:2379,http://192.0.2.2:2379,http://192.0.2.3:2379",
    "https://NODE_IP_1:2379,https://NODE_IP_2:2379,https://NODE_IP_3:2379",
];

#[test]
fn systemd_takes_the_proxys_unit() {
    systemd_takes("orlop-proxy.service", "proxy-tls.conf").unwrap();
}

/// Runs the proxy as the unit does, and compares each system call with its sandbox.
#[tokio::test]
async fn the_sandbox_leaves_what_the_proxy_needs() {
    let dir = tempfile::tempdir().unwrap();
    let result = sandbox(dir.path()).await;
    conclude(dir, result);
}

async fn sandbox(dir: &Path) -> Result<()> {
    let unit = std::fs::read_to_string(repo(UNIT))?;
    let settings = settings(&unit);
    let start = values(&settings, "ExecStart");
    ensure(start == ["/usr/local/bin/orlop proxy"], || {
        format!("{start:?}")
    })?;
    let etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    let (port, admin) = (free_port()?, free_port()?);
    let file = std::fs::read_to_string(repo("packaging/systemd/proxy.env"))?;
    let file = file
        .replace("127.0.0.1:2379", &format!("127.0.0.1:{port}"))
        .replace("127.0.0.1:2382", &format!("127.0.0.1:{admin}"))
        .replace(EXAMPLES[0], &etcds.urls());
    // The drop-in's credentials.
    let drop_in = std::fs::read_to_string(repo("packaging/systemd/proxy-tls.conf"))?;
    let tls = etcds.tls();
    let Some(client) = &tls.client else {
        return fail("no client certificate");
    };
    let drop_in = drop_in
        .replace("Environment=", "")
        .replace("%d/client.crt", &client.cert.display().to_string())
        .replace("%d/client.key", &client.key.display().to_string())
        .replace("%d/ca.crt", &tls.ca.display().to_string());
    let lines = file.lines().chain(drop_in.lines());
    let environment: Vec<(&str, &str)> = lines
        .filter(|line| line.starts_with("ORLOP_"))
        .filter_map(|line| line.split_once('='))
        .collect();
    let names: BTreeSet<_> = environment.iter().map(|(name, _)| *name).collect();
    ensure(names.len() == 6, || format!("{names:?}"))?;

    let service = Service::start(dir, "proxy", environment)?;
    let etcdctl = etcds.etcdctl(&format!("https://127.0.0.1:{port}"))?;
    etcdctl.ok(&["put", "key", "value"])?;
    let (status, _) = Client::plain(admin).page("/metrics").await?;
    ensure(status == 200, || format!("/metrics: {status}"))?;
    let trace = service.stop()?;
    let needed = ["epoll_wait", "accept4", "connect"];
    allowed(&trace, &settings, &needed)
}

fn alerts() -> Result<Vec<Value>> {
    let rules = read(&repo(RULES))?;
    let alerts = rules["groups"][0]["rules"].as_sequence().cloned();
    Ok(alerts.unwrap_or_default())
}

/// Each alert is valid, fires when its test says so, and has a section on what to do.
#[test]
fn the_proxys_alerts_fire_and_are_explained() {
    run(Command::new("promtool")
        .args(["check", "rules"])
        .arg(repo(RULES)))
    .unwrap();
    let tests = repo("packaging/prometheus/proxy.rules.test.yml");
    run(Command::new("promtool").args(["test", "rules"]).arg(&tests)).unwrap();
    let tested = std::fs::read_to_string(tests).unwrap();
    let page = std::fs::read_to_string(repo(PAGE)).unwrap();
    let alerts = alerts().unwrap();
    assert!(alerts.len() >= 5);
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(
            page.contains(&format!("\n### {name}\n")),
            "{name} is not explained"
        );
        assert!(
            tested.contains(&format!("alertname: {name}\n")),
            "{name} is not tested"
        );
        let anchor = format!("{PAGE}#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"].as_str().unwrap(), anchor);
    }
}

#[tokio::test]
async fn the_proxys_static_pod_serves() {
    let dir = tempfile::tempdir().unwrap();
    let result = static_pod(dir.path()).await;
    conclude(dir, result);
}

async fn static_pod(dir: &Path) -> Result<()> {
    let pod = read(&repo(MANIFEST))?;
    let container = &pod["spec"]["containers"][0];
    // The image is the server's.
    let server = read(&repo("packaging/kubeadm/etcd.yaml"))?;
    ensure(
        container["image"] == server["spec"]["containers"][0]["image"],
        || "another image".into(),
    )?;
    let etcds = EtcdMembers::start_straight("etcd", 3, dir).await?;
    let tls = etcds.tls();
    let Some(client) = &tls.client else {
        return fail("no client certificate");
    };
    let (port, admin) = (free_port()?, free_port()?);
    let pki = "/etc/kubernetes/pki/etcd";
    let words = container["command"].as_sequence().into_iter().flatten();
    let words: Vec<String> = words
        .filter_map(Value::as_str)
        .map(|word| {
            word.replace("127.0.0.1:2378", &format!("127.0.0.1:{port}"))
                .replace("127.0.0.1:2382", &format!("127.0.0.1:{admin}"))
                .replace(EXAMPLES[1], &etcds.urls())
                .replace(&format!("{pki}/ca.crt"), &tls.ca.display().to_string())
                .replace(
                    &format!("{pki}/healthcheck-client.crt"),
                    &client.cert.display().to_string(),
                )
                .replace(
                    &format!("{pki}/healthcheck-client.key"),
                    &client.key.display().to_string(),
                )
        })
        .collect();
    ensure(words[0] == "orlop", || words[0].clone())?;
    ensure(words.iter().all(|word| !word.contains("NODE_IP")), || {
        format!("{words:?}")
    })?;
    let mut command = Command::new(Kind::Orlop.program()?);
    let mut process = Process::start("proxy", dir, command.args(&words[1..]))?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        let named = container["ports"][0]["name"] == get["port"];
        let right = named && container["ports"][0]["containerPort"] == 2382;
        ensure(right && get["host"] == "127.0.0.1", || {
            format!("{probe}: {get:?}")
        })?;
        let path = get["path"].as_str().unwrap_or_default();
        let began = Instant::now();
        while !matches!(Client::plain(admin).page(path).await, Ok((200, _))) {
            process.check_running()?;
            ensure(began.elapsed() < READY_TIMEOUT, || {
                format!("{probe}: {}", process.tail())
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let etcdctl = etcds.etcdctl(&format!("https://127.0.0.1:{port}"))?;
    etcdctl.ok(&["put", "key", "value"])?;
    let (_, page) = Client::plain(admin).page("/metrics").await?;
    let page = Metrics::new(page);
    for alert in alerts()? {
        for (name, labels) in selectors(alert["expr"].as_str().unwrap_or_default()) {
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            let found = page.series(&name, &labels).next().is_some();
            ensure(found, || {
                format!("no {name}{labels:?} in the proxy's /metrics")
            })?;
        }
    }
    Ok(())
}
