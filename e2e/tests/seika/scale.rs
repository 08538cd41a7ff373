//! How fast pods come: Seika against the ReplicaSet controller, on the same control plane, in turn.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::env::number;
use e2e::kube::api::Api;
use e2e::kube::{Result, ensure, eventually};
use serde_json::{Value, json};

use super::rig::{CLIENT_QPS, NAMESPACE, Rig, seika, seikas};

const NODES: u64 = 20;
const PODS_A_NODE: u64 = 10;
/// A Deployment has so many pods at the most.
const DEPLOYMENT_PODS: u64 = 1000;
const LIMIT: Duration = Duration::from_secs(1800);

struct Size {
    nodes: u64,
    pods_a_node: u64,
    rounds: u64,
}

impl Size {
    fn pods(&self) -> u64 {
        self.nodes * self.pods_a_node
    }
}

/// Scales both up in turn, and prints pods a second of each. What is asserted are numbers of pods,
/// not times.
pub(crate) async fn compare(dir: &Path) -> Result<()> {
    let size = Size {
        nodes: number("ORLOP_SEIKA_NODES")?.unwrap_or(NODES),
        pods_a_node: number("ORLOP_SEIKA_PODS")?.unwrap_or(PODS_A_NODE),
        rounds: number("ORLOP_SEIKA_ROUNDS")?.unwrap_or(1),
    };
    let mut rig = Rig::start(dir, u32::try_from(size.nodes).unwrap_or(u32::MAX)).await?;
    rig.start_controller()?;
    rig.leader().await?;
    let mut of_seika = Vec::new();
    let mut of_deployments = Vec::new();
    for _ in 0..size.rounds {
        of_seika.push(by_seika(&mut rig, &size).await?);
        of_deployments.push(by_deployments(&rig, &size).await?);
    }
    println!(
        "kube-controller-manager and kube-scheduler: --kube-api-qps={CLIENT_QPS}, twice that in \
         bursts; --concurrent-replicaset-syncs and --concurrent-deployment-syncs: their default, 5"
    );
    for (name, times) in [("Seika", &of_seika), ("Deployments", &of_deployments)] {
        for (created, ready) in times {
            let rate = |time: &Duration| size.pods() as f64 / time.as_secs_f64();
            println!(
                "{name}: {} nodes x {} pods: all created after {:.2} s ({:.0} a second), all ready \
                 after {:.2} s ({:.0} a second)",
                size.nodes,
                size.pods_a_node,
                created.as_secs_f64(),
                rate(created),
                ready.as_secs_f64(),
                rate(ready)
            );
        }
    }
    rig.check()
}

/// Processor time that each process of a rig has used so far, in seconds.
fn cpu_s(rig: &Rig) -> BTreeMap<String, f64> {
    let ticks_a_second = rustix::param::clock_ticks_per_second() as f64;
    let of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = fields.split_ascii_whitespace().skip(11).take(2);
        ticks.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / ticks_a_second
    };
    let pids = rig.pids();
    pids.into_iter()
        .map(|(name, pid)| (name, of(pid)))
        .collect()
}

/// Prints what was used since `before`.
fn say_cpu(what: &str, before: &BTreeMap<String, f64>, rig: &Rig) {
    let now = cpu_s(rig);
    let used = now.iter().map(|(name, s)| {
        let before = before.get(name).copied().unwrap_or_default();
        format!("{name} {:.1} s", s - before)
    });
    let used: Vec<String> = used.collect();
    println!("{what}: processor time of {}", used.join(", "));
}

/// The pods of the namespace, without reading them all: one object and a count.
async fn count(api: &Api) -> Result<u64> {
    let list = api
        .get(&format!("/api/v1/namespaces/{NAMESPACE}/pods?limit=1"))
        .await?;
    let more = list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
    let here = list["items"].as_array().map_or(0, Vec::len);
    Ok(more + here as u64)
}

async fn reaches(api: &Api, pods: u64) -> Result<()> {
    eventually(&format!("{pods} pods"), LIMIT, || async {
        let now = count(api).await?;
        Ok((now == pods).then_some(()))
    })
    .await
}

async fn by_seika(rig: &mut Rig, size: &Size) -> Result<(Duration, Duration)> {
    let per_node = u32::try_from(size.pods_a_node).unwrap_or(u32::MAX);
    let names: Vec<String> = (0..size.nodes).map(|n| format!("node-{n}")).collect();
    let wanted: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), per_node)).collect();
    let before = cpu_s(rig);
    let began = Instant::now();
    rig.create(&seika("scale", &wanted)).await?;
    reaches(&rig.api, size.pods()).await?;
    let created = began.elapsed();
    say_cpu("Seika, until all are created", &before, rig);
    let path = format!("{}/scale", seikas());
    eventually("Seika is ready", LIMIT, || async {
        let status = rig.api.get(&path).await?["status"].take();
        Ok((status["readyTotal"].as_u64() == Some(size.pods())).then_some(()))
    })
    .await?;
    let ready = began.elapsed();
    say_cpu("Seika, until all are ready", &before, rig);
    // Exact, on each node.
    let now = rig.api.get(&path).await?;
    let exact = |node: &Value| node["current"] == per_node && node["ready"] == per_node;
    let nodes = now["status"]["nodes"].as_array();
    let exact = nodes.into_iter().flatten().filter(|n| exact(n)).count() as u64;
    ensure(exact == size.nodes, || {
        format!("{exact} of {} nodes are exact", size.nodes)
    })?;
    let creates = rig
        .series(0, "orlop_seika_writes_total{what=\"create\"}")
        .await?;
    let deletes = rig
        .series(0, "orlop_seika_writes_total{what=\"delete\"}")
        .await?;
    println!("Seika's controller: {creates} creates, {deletes} deletes since its start");
    // Scaled up and not once too many.
    ensure(deletes == 0.0 || size.rounds > 1, || {
        format!("{deletes} deletes while scaling up")
    })?;
    rig.api.delete(&path).await?;
    reaches(&rig.api, 0).await?;
    Ok((created, ready))
}

async fn by_deployments(rig: &Rig, size: &Size) -> Result<(Duration, Duration)> {
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
    let mut left = size.pods();
    let mut names = Vec::new();
    let before = cpu_s(rig);
    let began = Instant::now();
    while left > 0 {
        let replicas = left.min(DEPLOYMENT_PODS);
        left -= replicas;
        let name = format!("scale-{}", names.len());
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": { "labels": { "app": name } },
                    "spec": { "containers": [{ "name": "main", "image": "hello:1" }] }
                }
            }
        });
        rig.api.create(&path, &deployment).await?;
        names.push(name);
    }
    reaches(&rig.api, size.pods()).await?;
    let created = began.elapsed();
    say_cpu("Deployments, until all are created", &before, rig);
    eventually("the Deployments are ready", LIMIT, || async {
        let list = rig.api.get(&path).await?;
        let of = |d: &Value| d["status"]["readyReplicas"].as_u64().unwrap_or(0);
        let ready: u64 = list["items"].as_array().into_iter().flatten().map(of).sum();
        Ok((ready == size.pods()).then_some(()))
    })
    .await?;
    let ready = began.elapsed();
    say_cpu("Deployments, until all are ready", &before, rig);
    for name in names {
        rig.api.delete(&format!("{path}/{name}")).await?;
    }
    reaches(&rig.api, 0).await?;
    Ok((created, ready))
}
