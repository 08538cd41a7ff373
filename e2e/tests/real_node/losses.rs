//! What the store of a real node keeps: killed under writes, and copied while it runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::proc::{Process, output};
use e2e::kube::{Result, ensure, eventually};
use e2e::node::Node;
use serde_json::json;

use crate::cluster::{POD_LIMIT, component, etcdctl, page, pod, wait_for_control_plane};

/// Objects that are written while the store is killed, one after the other.
/// kubectl sends them at 50 a second, but for the first 300.
const WRITES: usize = 800;
/// Of those, how many are acknowledged before it is.
const BEFORE: usize = 60;

/// kubectl creates objects and names each that was acknowledged; the store is killed in the
/// middle. All that were named are there afterwards.
pub(crate) async fn a_killed_store_keeps_all(node: &Node) -> Result<()> {
    let objects: Vec<_> = (0..WRITES)
        .map(|n| {
            json!({ "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": { "name": format!("written-{n}") } })
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    let file = node.dir().join("writes.json");
    std::fs::write(&file, list.to_string())?;
    let mut command = node.command("kubectl");
    command
        .args(["create", "--output=name", "--filename"])
        .arg(&file);
    let before = pod(&component(node, "etcd")?);
    let process = process_of_store(node)?;
    let mut writer = Process::start("writer", node.dir(), &mut command)?;
    let log = writer.log().to_owned();
    let acknowledged = || -> Result<BTreeSet<String>> {
        let said = std::fs::read_to_string(&log)?;
        // The last line may be half of one.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let names = whole.lines().filter(|line| line.starts_with("configmap/"));
        Ok(names.map(String::from).collect())
    };
    eventually("writes are acknowledged", POD_LIMIT, || async {
        Ok((acknowledged()?.len() >= BEFORE).then_some(()))
    })
    .await?;

    node.run("kill", &["-9", &process])?;
    let killed = Instant::now();
    let in_time = acknowledged()?.len();
    ensure(in_time < WRITES, || {
        "all was written before the kill".to_owned()
    })?;
    eventually("the store answers again", POD_LIMIT, || async {
        page(node, "/readyz").map(Some)
    })
    .await?;
    println!(
        "killed after {in_time} acknowledged writes, it answered {:.2} s later",
        killed.elapsed().as_secs_f64()
    );
    let began = Instant::now();
    while writer.ended()?.is_none() {
        ensure(began.elapsed() < POD_LIMIT, || {
            "the writer does not end".to_owned()
        })?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    wait_for_control_plane(node).await?;
    let after = pod(&component(node, "etcd")?);
    ensure(after.3 > before.3, || {
        format!("the kubelet saw no restart: {before:?}, {after:?}")
    })?;

    let acknowledged = acknowledged()?;
    let found = node.kubectl(&["get", "configmaps", "--output=name"])?;
    let found: BTreeSet<String> = found.lines().map(String::from).collect();
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    ensure(lost.is_empty(), || {
        format!("acknowledged and lost: {lost:?}")
    })?;
    println!(
        "{} of {WRITES} writes were acknowledged, none is lost",
        acknowledged.len()
    );
    Ok(())
}

/// The id of the store's process, in the node.
fn process_of_store(node: &Node) -> Result<String> {
    let list = node.run("ctr", &["--namespace=k8s.io", "tasks", "list"])?;
    let etcd = component(node, "etcd")?;
    let container = pod(&etcd).2.replace("containerd://", "");
    let id = list
        .lines()
        .find(|line| line.starts_with(&container))
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or_default()
        .to_owned();
    ensure(!container.is_empty() && !id.is_empty(), || {
        format!("no task of container {container} in {list}")
    })?;
    Ok(id)
}

/// A copy of the directory of a running store starts, and has what was there before it was made.
pub(crate) fn a_copy_starts(node: &Node, dir: &Path) -> Result<()> {
    let count = |text: &str| text.lines().filter(|line| !line.is_empty()).count();
    let get = ["get", "/registry/", "--prefix", "--keys-only"];
    let copy = dir.join("copy").display().to_string();
    let stable = ["get", "/registry/services/", "--prefix"];
    let expected = etcdctl(node, &stable)?;
    let keys = count(&etcdctl(node, &get)?);
    node.run("cp", &["--archive", "/var/lib/etcd", &copy])?;
    let size = node.run("du", &["--summarize", "--block-size=1M", &copy])?;

    let url = "http://127.0.0.1:12379";
    let mut command = node.command("orlop");
    command
        .args(["serve", "--name=copy", "--data-dir", &copy])
        .args(["--listen-client-urls", url, "--advertise-client-urls", url]);
    let mut process = Process::start("copy", dir, &mut command)?;
    let endpoint = format!("--endpoints={url}");
    let ask = |args: &[&str]| -> Result<String> {
        let mut all = vec![endpoint.as_str()];
        all.extend(args);
        node.run("etcdctl", &all)
    };
    let began = Instant::now();
    while ask(&["endpoint", "health"]).is_err() {
        process.check_running()?;
        ensure(began.elapsed() < POD_LIMIT, || {
            "the copy does not answer".to_owned()
        })?;
    }
    ensure(ask(&stable)? == expected, || {
        "the copy has other Services".to_owned()
    })?;
    let found = count(&ask(&get)?);
    ensure(found + 5 >= keys, || {
        format!("the copy has {found} keys of {keys}")
    })?;
    println!(
        "a copy of {} MB has {found} keys",
        size.split('\t').next().unwrap_or_default()
    );
    stop(node, &copy)
}

/// Stops the server of the copy, in the node.
fn stop(node: &Node, copy: &str) -> Result<()> {
    let mut kill: Command = node.command("pkill");
    kill.args(["-TERM", "-f", copy]);
    output(&mut kill, "", POD_LIMIT)?;
    Ok(())
}
