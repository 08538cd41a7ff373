//! A cluster that kubeadm made on etcd moves to orlop, as `docs/operating/migrate.md` says it
//! under "With kubeadm". Pods go on.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::kube::proc::Process;
use e2e::kube::steps::Steps;
use e2e::kube::{Result, ensure, eventually, fail};
use e2e::node::{Node, Nodes};
use serde_json::Value;

use crate::cluster::{
    ETCD_REPOSITORY, ETCD_TAG, ORLOP_REPOSITORY, ORLOP_TAG, POD_LIMIT, component, etcdctl, init,
    object, packaged, reach_web, start_web, wait_for_control_plane, web_pods,
};
use crate::on_nodes;

const MANIFESTS: &str = "/etc/kubernetes/manifests";
const PKI: &str = "/etc/kubernetes/pki/etcd";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cluster_of_kubeadm_moves_from_etcd() {
    on_nodes(&["first"], |nodes, dir, steps| {
        Box::pin(moves(nodes, dir, steps))
    })
    .await;
}

async fn moves(nodes: &Nodes, dir: &Path, steps: &mut Steps) -> Result<()> {
    let [node] = nodes.all() else {
        return fail("one node is needed");
    };
    let cluster = packaged("init.yaml")?
        .replace(
            "imageRepository: registry.example.com/orlop",
            "imageRepository: registry.k8s.io",
        )
        .replace(ORLOP_TAG, ETCD_TAG);
    let took = init(node, &cluster, dir)?;
    steps.done(&format!(
        "kubeadm init with etcd took {:.1} s",
        took.as_secs_f64()
    ));
    start_web(node)?;
    reach_web(node).await?;
    let pods = web_pods(node)?;
    ensure(
        image_of_store(node)? == format!("{ETCD_REPOSITORY}:{ETCD_TAG}"),
        || "the cluster does not run on etcd".to_owned(),
    )?;
    steps.done("pods run on etcd");

    // Steps 2 to 6 of the page.
    let mut import = follow(node, dir).await?;
    steps.done("the import follows");
    let stopped = dir.join("stopped").display().to_string();
    node.run("mkdir", &["-p", &stopped])?;
    let apiserver = format!("{MANIFESTS}/kube-apiserver.yaml");
    let down = Instant::now();
    node.run("mv", &[&apiserver, &stopped])?;
    ended(node, "kube-apiserver").await?;
    steps.done("the apiserver has ended");
    let revision = finish(node, &mut import).await?;
    let of_etcd = hash(node, &revision)?;
    node.run("mv", &[&format!("{MANIFESTS}/etcd.yaml"), &stopped])?;
    ended(node, "etcd").await?;
    steps.done("etcd has ended");

    let manifest = dir.join("orlop-etcd.yaml");
    let text = packaged("etcd.yaml")?
        .replace("NODE_NAME", node.name())
        .replace("NODE_IP", node.address());
    std::fs::write(&manifest, text)?;
    let manifest = manifest.display().to_string();
    node.run("cp", &[&manifest, &format!("{MANIFESTS}/etcd.yaml")])?;
    eventually("orlop answers", POD_LIMIT, || async {
        etcdctl(node, &["endpoint", "health"]).map(Some)
    })
    .await?;
    let of_orlop = hash(node, &revision)?;
    ensure(of_etcd == of_orlop, || {
        format!("HashKV at revision {revision}: etcd {of_etcd}, orlop {of_orlop}")
    })?;
    node.run(
        "mv",
        &[&format!("{stopped}/kube-apiserver.yaml"), MANIFESTS],
    )?;
    eventually("kubectl has an answer", POD_LIMIT, || async {
        object(node, &["service", "web"]).map(Some)
    })
    .await?;
    steps.done(&format!(
        "the apiserver runs on orlop; without one for {:.1} s",
        down.elapsed().as_secs_f64()
    ));

    tell_kubeadm(node)?;
    // The pod that Kubernetes shows is etcd's until the kubelet has said otherwise.
    let image = format!("{ORLOP_REPOSITORY}:{ORLOP_TAG}");
    eventually("the store's pod is orlop's", POD_LIMIT, || async {
        Ok((image_of_store(node)? == image).then_some(()))
    })
    .await?;
    steps.done("Kubernetes shows orlop's pod");
    wait_for_control_plane(node).await?;
    node.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "node",
        node.name(),
        "--timeout=60s",
    ])?;
    let now = web_pods(node)?;
    ensure(pods == now, || format!("pods were {pods:?}, are {now:?}"))?;
    reach_web(node).await?;
    goes_on(node)?;
    steps.done("pods are the same, and new ones start");
    Ok(())
}

fn image_of_store(node: &Node) -> Result<String> {
    let image = component(node, "etcd")?["spec"]["containers"][0]["image"].clone();
    Ok(image.as_str().unwrap_or_default().to_owned())
}

/// Starts the import and waits until it follows.
async fn follow(node: &Node, dir: &Path) -> Result<Process> {
    let mut command = node.command("orlop");
    command
        .args(["import", "--from=https://127.0.0.1:2379"])
        .args([
            format!("--cacert={PKI}/ca.crt"),
            format!("--cert={PKI}/server.crt"),
            format!("--key={PKI}/server.key"),
        ])
        .args(["--data-dir=/var/lib/orlop", "--follow"])
        .arg(format!("--name={}", node.name()));
    let import = Process::start("import", dir, &mut command)?;
    said(import.log(), "following").await?;
    Ok(import)
}

async fn said(log: &Path, text: &str) -> Result<String> {
    eventually(&format!("the import says {text:?}"), POD_LIMIT, || async {
        let said = std::fs::read_to_string(log)?;
        Ok(said.contains(text).then_some(said))
    })
    .await
}

/// Ends the import when it says that nothing is written any more; the revision it has.
async fn finish(node: &Node, import: &mut Process) -> Result<String> {
    said(import.log(), "quiet at revision").await?;
    node.run("pkill", &["-TERM", "-x", "orlop"])?;
    let text = said(import.log(), "verified: HashKV").await?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = import.ended()? {
            break status;
        }
        ensure(began.elapsed() < POD_LIMIT, || {
            "the import does not end".to_owned()
        })?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure(status.success() && !text.contains("WARNING"), || {
        text.clone()
    })?;
    let line = text
        .lines()
        .find(|line| line.starts_with("verified: HashKV"));
    let revision = line
        .and_then(|line| line.split("at revision ").nth(1))
        .and_then(|rest| rest.split(' ').next());
    revision.map_or_else(|| fail(text.clone()), |revision| Ok(revision.to_owned()))
}

/// Waits until a component of the control plane has no container any more.
async fn ended(node: &Node, program: &str) -> Result<()> {
    eventually(&format!("{program} has ended"), POD_LIMIT, || async {
        let listed = node.run("ps", &["-eo", "comm="])?;
        // The kernel keeps 15 characters of a name.
        let name = &program[..program.len().min(15)];
        Ok((!listed.lines().any(|line| line.trim() == name)).then_some(()))
    })
    .await
}

fn hash(node: &Node, revision: &str) -> Result<Value> {
    let rev = format!("--rev={revision}");
    let answer = etcdctl(node, &["endpoint", "hashkv", "--write-out=json", &rev])?;
    let answer: Value = serde_json::from_str(&answer)?;
    let hash = answer[0]["HashKV"]["hash"].clone();
    ensure(hash.is_u64(), || format!("no hash in {answer}"))?;
    Ok(hash)
}

/// What `docs/start/kubeadm.md` has one change in the ConfigMap.
fn tell_kubeadm(node: &Node) -> Result<()> {
    let map = ["--namespace=kube-system", "configmap", "kubeadm-config"];
    let mut configuration = object(node, &map)?;
    let text = configuration["data"]["ClusterConfiguration"]
        .as_str()
        .unwrap_or_default();
    let changed = text
        .replace(
            "imageRepository: registry.k8s.io\n    imageTag",
            "imageRepository: registry.example.com/orlop\n    imageTag",
        )
        .replace(ETCD_TAG, ORLOP_TAG)
        .replace("dataDir: /var/lib/etcd", "dataDir: /var/lib/orlop");
    for line in [
        ORLOP_TAG,
        "registry.example.com/orlop",
        "dataDir: /var/lib/orlop",
    ] {
        ensure(changed.contains(line), || {
            format!("{line} is not in {changed}")
        })?;
    }
    configuration["data"]["ClusterConfiguration"] = Value::String(changed);
    node.apply(&configuration.to_string()).map(drop)
}

/// Controllers and the kubelet act on what is in orlop.
fn goes_on(node: &Node) -> Result<()> {
    node.kubectl(&["scale", "deployment", "web", "--replicas=4"])?;
    let args = ["rollout", "status", "--timeout=120s", "deployment", "web"];
    node.run_within(POD_LIMIT, "kubectl", &args, "").map(drop)
}
