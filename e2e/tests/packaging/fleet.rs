//! The alerts of `orlop-fleet`: valid, each tested and explained, and about series that exist; and
//! its image.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::http::Client;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::{Result, ensure};
use e2e::static_pod::read;
use serde_yaml_ng::Value;

use crate::{repo, rules, run};

const RULES: &str = "packaging/prometheus/fleet.rules.yml";
const PATIENCE: Duration = Duration::from_secs(45);

fn alerts() -> Result<Vec<Value>> {
    let rules = read(&repo(RULES))?;
    let alerts = rules["groups"][0]["rules"].as_sequence().cloned();
    Ok(alerts.unwrap_or_default())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Each alert is valid, fires when its test says so, and has a section on what to do.
#[test]
fn the_fleets_alerts_fire_and_are_explained() {
    run(Command::new("promtool")
        .args(["check", "rules"])
        .arg(repo(RULES)))
    .unwrap();
    let tests = repo("packaging/prometheus/fleet.rules.test.yml");
    run(Command::new("promtool").args(["test", "rules"]).arg(&tests)).unwrap();
    let tested = std::fs::read_to_string(tests).unwrap();
    let alerts = alerts().unwrap();
    assert!(alerts.len() >= 9);
    for alert in alerts {
        let name = text(&alert["alert"]);
        assert!(
            tested.contains(&format!("alertname: {name}\n")),
            "{name} is not tested"
        );
        let runbook = text(&alert["annotations"]["runbook"]);
        let (page, anchor) = runbook.split_once('#').unwrap();
        assert_eq!(anchor, name.to_lowercase());
        let page = std::fs::read_to_string(repo(page)).unwrap();
        assert!(
            page.contains(&format!("\n### {name}\n")),
            "{name} is not explained"
        );
    }
}

#[tokio::test]
async fn each_series_of_the_fleets_alerts_exists() {
    let dir = tempfile::tempdir().unwrap();
    let result = series(dir.path()).await;
    conclude(dir, result);
}

/// Two agents, and a controller and a loop whose cluster does not answer: their pages are whole.
async fn series(dir: &Path) -> Result<()> {
    let ports = [free_port()?, free_port()?];
    let peers = dir.join("peers");
    let line = |(n, port): (usize, &u16)| format!("node-{n} 127.0.0.1:{port} zone\n");
    let lines: String = ports.iter().enumerate().map(line).collect();
    std::fs::write(&peers, lines)?;
    let nowhere = dir.join("kubeconfig");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: \
         'http://127.0.0.1:{}'}}}}]\nusers: [{{name: x}}]\ncontexts: [{{name: x, context: {{cluster: \
         x, user: x}}}}]\n",
        free_port()?
    );
    std::fs::write(&nowhere, kubeconfig)?;
    let mut processes = Vec::new();
    let mut pages = Vec::new();
    let mut start = |name: String, arguments: &[String]| -> Result<()> {
        let mut command = Command::new(e2e::fleet::program()?);
        command.args(arguments);
        processes.push(Process::start(&name, dir, &mut command)?);
        Ok(())
    };
    for (n, port) in ports.iter().enumerate() {
        let arguments = [
            "latency".to_owned(),
            "--period=1".into(),
            "--timeout-ms=500".into(),
            format!("--node=node-{n}"),
            format!("--peers={}", peers.display()),
            format!("--listen=127.0.0.1:{port}"),
            format!("--metrics-addr=127.0.0.1:{port}"),
        ];
        start(format!("agent-{n}"), &arguments)?;
        pages.push(*port);
    }
    for words in [
        &["seika", "run"][..],
        &["place", "--prometheus=http://127.0.0.1:1"],
    ] {
        let port = free_port()?;
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).into()).collect();
        arguments.push(format!("--kubeconfig={}", nowhere.display()));
        arguments.push(format!("--metrics-addr=127.0.0.1:{port}"));
        start(words[0].to_owned(), &arguments)?;
        pages.push(port);
    }
    let began = Instant::now();
    loop {
        for process in &mut processes {
            process.check_running()?;
        }
        match are_there(&pages).await {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn are_there(ports: &[u16]) -> Result<()> {
    let mut pages = Vec::new();
    for port in ports {
        let (_, page) = Client::plain(*port).page("/metrics").await?;
        pages.push(Metrics::new(page));
    }
    for alert in alerts()? {
        for (name, labels) in rules::selectors(text(&alert["expr"])) {
            // What is not equal, and patterns, say nothing of what has to be there.
            let labels: Vec<&str> = labels
                .iter()
                .map(String::as_str)
                .filter(|label| !label.contains("!=") && !label.contains('~'))
                .collect();
            let found = pages.iter();
            let found = found.filter(|page| page.series(&name, &labels).next().is_some());
            ensure(found.count() > 0, || {
                format!("{}: no {name}{labels:?}", text(&alert["alert"]))
            })?;
        }
    }
    Ok(())
}

/// The image has the program and nothing else, is made of what `packaging/build` makes, and is the
/// one that the manifests name.
#[test]
fn the_fleets_image_is_what_the_manifests_name() {
    let file = std::fs::read_to_string(repo("packaging/Containerfile.fleet")).unwrap();
    let instructions: BTreeSet<&str> = file
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect();
    assert!(instructions.contains("FROM scratch"));
    assert!(!file.lines().any(|line| line.starts_with("RUN")));
    assert!(instructions.contains("ARG TARGETARCH"));
    let copy = "COPY fleet-linux-${TARGETARCH}/ /usr/local/bin/";
    assert!(instructions.contains(copy));
    assert!(instructions.contains("ENV PATH=/usr/local/bin"));
    let version = env!("CARGO_PKG_VERSION");
    for (name, object) in [
        ("latency", "daemonset.yaml"),
        ("seika", "deployment.yaml"),
        ("place", "deployment.yaml"),
    ] {
        let dir = repo("packaging/fleet").join(name);
        let kustomization = read(&dir.join("kustomization.yaml")).unwrap();
        let image = &kustomization["images"][0];
        assert_eq!(text(&image["name"]), "orlop-fleet");
        assert!(text(&image["newName"]).ends_with("/orlop-fleet"));
        assert_eq!(text(&image["newTag"]), version, "{name}");
        let manifest = read(&dir.join(object)).unwrap();
        let container = &manifest["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(text(&container["image"]), "orlop-fleet");
        assert_eq!(text(&container["command"][0]), "orlop-fleet");
    }
}
