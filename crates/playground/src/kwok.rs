//! Hollow nodes: objects that KWOK keeps alive and whose pods it says are running. No
//! container is ever started.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Api, items};
use crate::proc::Process;
use crate::{Error, Result, eventually};

/// How nodes and pods go on; KWOK calls it stages.
const STAGES: &str = include_str!("stages.yaml");
/// As a kubelet's: it renews four times in this time.
const LEASE_DURATION_S: u32 = 40;
/// Addresses of pods.
const POD_CIDR: &str = "10.244.0.1/14";
/// An address of no network: nobody connects to a hollow node.
const NODE_IP: &str = "192.0.2.100";
/// How long nodes may take to be ready: KWOK's start, and the taint that goes then.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts `program` (KWOK) for all nodes that the apiserver of `kubeconfig` has, its log and
/// its configuration in `dir`.
///
/// # Errors
/// If it cannot be started.
pub fn start(program: &Path, kubeconfig: &Path, dir: &Path) -> Result<Process> {
    let stages = dir.join("kwok-stages.yaml");
    std::fs::write(&stages, STAGES)?;
    let mut command = Command::new(program);
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--config={}", stages.display()))
        .arg("--manage-all-nodes=true")
        .arg(format!("--node-lease-duration-seconds={LEASE_DURATION_S}"))
        .arg(format!("--cidr={POD_CIDR}"))
        .arg(format!("--node-ip={NODE_IP}"))
        // Otherwise a line a step.
        .arg("--v=WARN")
        // It also reads a file of its user's; what happens here must not depend on that.
        .env("HOME", dir)
        .env("KWOK_WORKDIR", dir);
    Process::start("kwok", dir, &mut command)
}

/// Creates `count` nodes called `node-0` and so on. They become ready when KWOK sees them.
///
/// # Errors
/// If the apiserver refuses one.
pub async fn create_nodes(api: &Api, count: u32) -> Result<()> {
    let room = json!({ "cpu": "64", "memory": "256Gi", "pods": "5000" });
    for n in 0..count {
        let name = format!("node-{n}");
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/hostname": name,
                    "kubernetes.io/os": "linux",
                    "type": "kwok"
                }
            },
            "status": { "capacity": room, "allocatable": room }
        });
        match api.create("/api/v1/nodes", &node).await {
            Err(Error::Status { status: 409, .. }) => {}
            other => other.map(|_| ())?,
        }
    }
    Ok(())
}

/// Waits until `count` nodes are ready and take pods.
///
/// # Errors
/// If they are not in time.
pub async fn wait_for_nodes(api: &Api, count: u32) -> Result<()> {
    eventually("hollow nodes are ready", READY_TIMEOUT, || async {
        let list = api.get("/api/v1/nodes").await?;
        let ready = items(&list).iter().filter(|node| takes_pods(node)).count();
        Ok((ready >= count as usize).then_some(()))
    })
    .await
}

fn takes_pods(node: &Value) -> bool {
    let ready = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let tainted = node["spec"]["taints"]
        .as_array()
        .is_some_and(|taints| !taints.is_empty());
    ready && !tainted
}
