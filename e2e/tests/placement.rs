//! `orlop-fleet place` on a real apiserver: pods follow traffic, noise moves nothing, and what is
//! missing changes nothing; the apiserver restarts, and of two loops one is killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "placement/prometheus.rs"]
mod prometheus;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::fleet;
use e2e::kube::api::Api;
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::http::Client;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, conclude, free_port, run};
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Error, Result, binaries, ensure, eventually, fail};
use prometheus::{Measured, Prometheus};
use serde_json::{Value, json};

/// On two cores that other tests may use too.
const PATIENCE: Duration = Duration::from_secs(120);
/// Rounds of a window.
const WINDOW_ROUNDS: f64 = 5.0;
const ROUND_S: f64 = 0.5;
const SEIKA: &str = "/apis/batch.bonavadeur.io/v1/namespaces/default/seikas/hello";

fn node(name: &str) -> Value {
    let room = json!({ "cpu": "2", "memory": "4Gi", "pods": "20" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Test", "message": "" }]
        }
    })
}

/// As much of the resource as the loop uses.
fn definition() -> Value {
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "seikas.batch.bonavadeur.io" },
        "spec": {
            "group": "batch.bonavadeur.io", "scope": "Namespaced",
            "names": { "kind": "Seika", "listKind": "SeikaList", "plural": "seikas", "singular": "seika" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                    "spec": { "type": "object", "required": ["selector", "template"], "properties": {
                        "repurika": {
                            "type": "object",
                            "additionalProperties": { "type": "integer", "minimum": 0 }
                        },
                        "selector": open, "template": open
                    } }
                } } }
            }]
        }
    })
}

fn seika(annotations: &Value) -> Value {
    json!({
        "apiVersion": "batch.bonavadeur.io/v1", "kind": "Seika",
        "metadata": {
            "name": "hello", "namespace": "default",
            "labels": { "orlop.io/placement": "on" }, "annotations": annotations
        },
        "spec": {
            "selector": { "matchLabels": { "app": "hello" } },
            "template": {
                "metadata": { "labels": { "app": "hello" } },
                "spec": { "containers": [{
                    "name": "hello", "image": "hello",
                    "resources": { "requests": { "cpu": "250m", "memory": "128Mi" } }
                }] }
            }
        }
    })
}

struct Loops {
    dir: PathBuf,
    kubeconfig: PathBuf,
    url: String,
    running: Vec<(u16, Process)>,
}

impl Loops {
    fn start(&mut self) -> Result<()> {
        let port = free_port()?;
        let name = format!("loop-{}", self.running.len());
        let mut command = Command::new(fleet::program()?);
        command
            .args([
                "place",
                "--round=0.5",
                "--window=2.5",
                "--latency-period=1",
                "--max-age=10",
            ])
            .args(["--lease-namespace=default", "--lease-duration-ms=4000"])
            .arg(format!("--identity={name}"))
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--prometheus={}", self.url))
            .arg(format!("--metrics-addr=127.0.0.1:{port}"));
        let process = Process::start(&name, &self.dir, &mut command)?;
        self.running.push((port, process));
        Ok(())
    }

    async fn page(port: u16) -> Result<Metrics> {
        let (_, text) = Client::plain(port).page("/metrics").await?;
        Ok(Metrics::new(text))
    }

    /// The place in the list of the one that acts; an error while none does.
    async fn acting(&mut self) -> Result<usize> {
        let mut acting = Vec::new();
        for (n, (port, process)) in self.running.iter_mut().enumerate() {
            process.check_running()?;
            if Self::page(*port).await?.sum("orlop_placement_acts", &[]) == 1.0 {
                acting.push(n);
            }
        }
        match acting[..] {
            [one] => Ok(one),
            [] => fail("no loop acts"),
            _ => fail(format!("several loops act: {acting:?}")),
        }
    }

    async fn one_acts(&mut self) -> Result<u16> {
        let began = std::time::Instant::now();
        loop {
            match self.acting().await {
                Ok(n) => return Ok(self.running[n].0),
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn wanted(seika: &Value) -> BTreeMap<String, u64> {
    let map = seika["spec"]["repurika"].as_object();
    map.into_iter()
        .flatten()
        .map(|(node, count)| (node.clone(), count.as_u64().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Waits until pods are wanted on these nodes and on no others; returns the round of the acting
/// loop in which the first of them came.
async fn settle(api: &Api, port: u16, nodes: &[&str]) -> Result<f64> {
    let what = format!("pods are wanted on {nodes:?}");
    eventually(&what, PATIENCE, || async {
        let wanted = wanted(&api.get(SEIKA).await?);
        let names: Vec<&str> = wanted.keys().map(String::as_str).collect();
        ensure(names == nodes, || format!("{wanted:?}"))?;
        Ok(Some(()))
    })
    .await?;
    let (code, text) = Client::plain(port)
        .page("/v1/services/default/hello")
        .await?;
    ensure(code == 200, || text.clone())?;
    let explained: Value = serde_json::from_str(&text)?;
    let rounds = Loops::page(port)
        .await?
        .sum("orlop_placement_rounds_total", &[]);
    let moves = explained["moves"].as_array().cloned().unwrap_or_default();
    let first = moves
        .iter()
        .filter(|m| m["added"] == true && nodes.contains(&m["node"].as_str().unwrap_or_default()))
        .filter_map(|m| m["seconds_ago"].as_f64())
        .fold(0.0, f64::max);
    Ok(rounds - first / ROUND_S)
}

async fn rounds(port: u16) -> Result<f64> {
    Ok(Loops::page(port)
        .await?
        .sum("orlop_placement_rounds_total", &[]))
}

/// Waits until the loop has made so many more rounds.
async fn pass(port: u16, more: f64) -> Result<()> {
    let before = rounds(port).await?;
    eventually("rounds", PATIENCE, || async {
        Ok((rounds(port).await? >= before + more).then_some(()))
    })
    .await
}

async fn held(port: u16, reason: &str) -> Result<()> {
    let label = format!("reason=\"{reason}\"");
    eventually(&format!("held: {reason}"), PATIENCE, || async {
        let page = Loops::page(port).await?;
        Ok((page.sum("orlop_placement_held_services", &[&label]) == 1.0).then_some(()))
    })
    .await
}

async fn nothing_held(port: u16) -> Result<()> {
    eventually("nothing is held", PATIENCE, || async {
        let page = Loops::page(port).await?;
        Ok((page.sum("orlop_placement_held_services", &[]) == 0.0).then_some(()))
    })
    .await
}

async fn the_loop(dir: &Path) -> Result<()> {
    let store = Store::start(Kind::Orlop, "orlop", dir, None, &[]).await?;
    let mut plane = ControlPlane::start(dir, "kube-1.37", &store, &[]).await?;
    let api = plane.api();
    for name in ["n0", "n1", "n2"] {
        api.create("/api/v1/nodes", &node(name)).await?;
        // A new node has a taint until a controller finds it ready; here there is none.
        let untainted = json!({ "spec": { "taints": null } });
        api.patch(&format!("/api/v1/nodes/{name}"), &untainted)
            .await?;
    }
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.create(definitions, &definition()).await?;
    let seikas = "/apis/batch.bonavadeur.io/v1/namespaces/default/seikas";
    eventually("the resource is served", PATIENCE, || async {
        match api.create(seikas, &seika(&json!({}))).await {
            Ok(_) | Err(Error::Status { status: 409, .. }) => Ok(Some(())),
            Err(error) => Err(error),
        }
    })
    .await?;
    let prometheus = Prometheus::start(Measured {
        round_trips: [
            (("n0", "n1"), 30.0),
            (("n0", "n2"), 50.0),
            (("n1", "n2"), 50.0),
        ]
        .into(),
        entered: [("n0", 100.0), ("n1", 0.0), ("n2", 0.0)].into(),
        serving_ms: 10.0,
        ..Measured::default()
    })?;
    let mut loops = Loops {
        dir: dir.to_owned(),
        kubeconfig: plane.write_kubeconfig("admin")?,
        url: prometheus.url(),
        running: Vec::new(),
    };
    loops.start()?;
    loops.start()?;
    let port = loops.one_acts().await?;

    manifests(&loops.kubeconfig)?;

    // A pod is where its traffic enters, written by the loop's own manager.
    settle(&api, port, &["n0"]).await?;
    let written = api.get(SEIKA).await?;
    let managers = written["metadata"]["managedFields"].to_string();
    ensure(managers.contains("orlop-placement"), || managers)?;
    // The pod shows when a round has seen it.
    eventually("explain says all of it", PATIENCE, || async {
        explained(port).map(Some)
    })
    .await?;

    // Traffic moves to another node: pods follow within three windows, and the old ones go.
    let began = rounds(port).await?;
    prometheus.set(|m| m.entered = [("n0", 0.0), ("n1", 0.0), ("n2", 100.0)].into());
    let came = settle(&api, port, &["n2"]).await?;
    ensure(came - began <= 3.0 * WINDOW_ROUNDS, || {
        format!("pods followed in round {came}, traffic moved in round {began}")
    })?;

    // Noise of 20 % on latency, and of arrivals, moves nothing.
    prometheus.set(|m| {
        m.noise = 0.2;
        m.entered = [("n0", 40.0), ("n1", 0.0), ("n2", 100.0)].into();
    });
    settle(&api, port, &["n0", "n2"]).await?;
    pass(port, 3.0 * WINDOW_ROUNDS).await?;
    let moves = Loops::page(port)
        .await?
        .sum("orlop_placement_moves_total", &[]);
    let before = wanted(&api.get(SEIKA).await?);
    pass(port, 12.0 * WINDOW_ROUNDS).await?;
    let now = Loops::page(port)
        .await?
        .sum("orlop_placement_moves_total", &[]);
    ensure(moves == now, || format!("{} moves by noise", now - moves))?;
    ensure(before == wanted(&api.get(SEIKA).await?), || {
        "something moved".into()
    })?;
    prometheus.set(|m| m.noise = 0.0);

    // What is missing changes nothing, and is said.
    prometheus.set(|m| m.silent = true);
    held(port, "traffic").await?;
    prometheus.set(|m| (m.silent, m.no_traffic) = (false, true));
    held(port, "no_series").await?;
    ensure(before == wanted(&api.get(SEIKA).await?), || {
        "changed without input".into()
    })?;
    prometheus.set(|m| m.no_traffic = false);
    nothing_held(port).await?;

    // The apiserver restarts; the loops go on, one of them acts.
    plane.restart_apiserver(0, &[]).await?;
    let api = plane.api();
    let port = loops.one_acts().await?;
    nothing_held(port).await?;
    prometheus.set(|m| m.entered = [("n0", 0.0), ("n1", 100.0), ("n2", 0.0)].into());
    settle(&api, port, &["n1"]).await?;

    // The one that acts is killed: the other takes over.
    let acting = loops.acting().await?;
    loops.running.remove(acting);
    let port = loops.one_acts().await?;
    prometheus.set(|m| m.entered = [("n0", 0.0), ("n1", 0.0), ("n2", 100.0)].into());
    settle(&api, port, &["n2"]).await?;

    // Something in the Seika that is not understood.
    let wrong = json!({ "metadata": { "annotations": { "orlop.io/concurrency": "many" } } });
    api.patch(SEIKA, &wrong).await?;
    held(port, "seika").await?;
    let right = json!({ "metadata": { "annotations": { "orlop.io/concurrency": null } } });
    api.patch(SEIKA, &right).await?;
    nothing_held(port).await?;
    // A Seika that somebody takes away from it is left alone.
    let off = json!({ "metadata": { "labels": { "orlop.io/placement": "off" } } });
    api.patch(SEIKA, &off).await?;
    eventually("it is not known", PATIENCE, || async {
        let page = Loops::page(port).await?;
        Ok((page.sum("orlop_placement_services", &[]) == 0.0).then_some(()))
    })
    .await?;
    for (_, process) in &mut loops.running {
        let status = process.terminate(Duration::from_secs(30))?;
        ensure(status.success(), || format!("{status}"))?;
    }
    Ok(())
}

/// The apiserver takes the manifests; those for the Prometheus Operator's kinds are whole.
fn manifests(kubeconfig: &Path) -> Result<()> {
    let kubectl = binaries("kube-1.37")?.join("kubectl");
    let fleet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/fleet");
    for name in ["latency", "place"] {
        run(Command::new(&kubectl)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .args(["apply", "-k"])
            .arg(fleet.join(name)))?;
        let all = run(Command::new(&kubectl)
            .arg("kustomize")
            .arg(fleet.join(format!("{name}-monitoring"))))?;
        ensure(all.contains("monitoring.coreos.com/v1"), || all.clone())?;
    }
    Ok(())
}

/// The command says why, in text and as JSON.
fn explained(port: u16) -> Result<()> {
    let ask = |args: &[&str]| {
        run(Command::new(fleet::program()?)
            .arg("explain")
            .args(args)
            .arg(format!("--addr=127.0.0.1:{port}")))
    };
    let text = ask(&["hello"])?;
    for said in [
        "default/hello",
        "n0",
        "traffic of n0 found no pod with time",
    ] {
        ensure(text.contains(said), || {
            format!("{said:?} is not in:\n{text}")
        })?;
    }
    let json: Value = serde_json::from_str(&ask(&["default/hello", "-o", "json"])?)?;
    ensure(json["nodes"][0]["node"] == "n0", || json.to_string())?;
    let unknown = ask(&["nobody"]).err().map(|error| error.to_string());
    ensure(
        unknown.is_some_and(|text| text.contains("orlop.io/placement=on")),
        || "an unknown service is explained".into(),
    )
}

#[tokio::test]
async fn pods_follow_traffic_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let result = the_loop(dir.path()).await;
    conclude(dir, result);
}
