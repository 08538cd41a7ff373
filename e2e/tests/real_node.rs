//! orlop as the etcd of a cluster that kubeadm makes, on a real node: kubelet, containerd, runc,
//! kube-proxy, CoreDNS. And that such a node leaves nothing on the machine.
//!
//! It needs root, Debian's packages of `run-tests`, and the sets of `e2e/build-bins`. A machine
//! that cannot run a node fails the test with what it lacks.

#![allow(clippy::unwrap_used)] // tests

#[path = "real_node/cluster.rs"]
mod cluster;
#[path = "real_node/from_etcd.rs"]
mod from_etcd;
#[path = "real_node/guard.rs"]
mod guard;
#[path = "real_node/kubeadm.rs"]
mod kubeadm;
#[path = "real_node/losses.rs"]
mod losses;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use e2e::kube::Result;
use e2e::kube::proc::conclude;
use e2e::kube::steps::Steps;
use e2e::node::Nodes;
use e2e::node::host::{self, Traces};

/// The program that makes nodes.
const GUARD: &str = env!("CARGO_BIN_EXE_node-guard");
/// What containers run.
const POD: &str = env!("CARGO_BIN_EXE_node-pod");

/// Held by the test that has nodes: each compares the machine before and after.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a test does with its nodes and their directory.
type Work = for<'a> fn(
    &'a Nodes,
    &'a Path,
    &'a mut Steps,
) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Runs `work` on nodes called `names`, and sees that nothing of them is left.
async fn on_nodes(names: &[&str], work: Work) {
    let _turn = ONE_AT_A_TIME.lock().await;
    // Logs are printed and kept when it fails. Below /tmp, because a node's /var is an overlay.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let result = async {
        let mut steps = Steps::start();
        host::check()?;
        let before = Traces::read()?;
        let nodes = Nodes::start(Path::new(GUARD), dir.path(), names)?;
        steps.done("nodes run");
        let worked = work(&nodes, dir.path(), &mut steps).await;
        let ended = nodes.end();
        steps.done("nodes have ended");
        worked.and(ended).and(before.compare())
    };
    let result = result.await;
    conclude(dir, result);
}
