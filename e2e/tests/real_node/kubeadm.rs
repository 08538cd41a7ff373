//! A new cluster on orlop, from `kubeadm init` with the packaged configuration to `reset`, with
//! what an administrator does in between.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::kube::proc::output;
use e2e::kube::steps::Steps;
use e2e::kube::{Result, ensure, eventually, fail};
use e2e::node::host::group_name;
use e2e::node::{Node, Nodes};
use serde_json::Value;

use crate::cluster::{
    CERTIFICATE_KEY, IGNORED, KUBEADM_LIMIT, NEXT_TAG, ORLOP_REPOSITORY, ORLOP_TAG, POD_LIMIT,
    TOKEN, component, etcdctl, init, object, packaged, page, pod, reach_web, start_web,
    wait_for_control_plane, web_pods,
};
use crate::{losses, on_nodes};

/// What `docs/start/kubeadm.md` says that a second control plane node is told.
const REFUSAL: &str = "orlop: this is one server without replicas, so members can be neither \
     added nor removed; let further control plane nodes use it as an external etcd (kubeadm: \
     etcd.external.endpoints)";
const NOT_AFTER: &str = "orlop_certificate_not_after_timestamp_seconds";
const VERSION: &str = "v1.37.1";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cluster_of_kubeadm_lives_on_orlop() {
    on_nodes(&["first", "second"], |nodes, dir, steps| {
        Box::pin(lives(nodes, dir, steps))
    })
    .await;
}

async fn lives(nodes: &Nodes, dir: &Path, steps: &mut Steps) -> Result<()> {
    let [node, second] = nodes.all() else {
        return fail("two nodes are needed");
    };
    let took = init(node, &packaged("init.yaml")?, dir)?;
    steps.done(&format!("kubeadm init took {:.1} s", took.as_secs_f64()));
    start_web(node)?;
    reach_web(node).await?;
    is_orlop(node)?;
    steps.done("pods run, and a Service reaches them");
    let pods = web_pods(node)?;

    renew_certificates(node).await?;
    steps.done("certificates are renewed");
    losses::a_copy_starts(node, dir)?;
    steps.done("a copy of the data directory starts");
    losses::a_killed_store_keeps_all(node).await?;
    steps.done("a killed store lost nothing");
    restart_static_pod(node, dir, steps).await?;
    joining_is_refused(node, second, dir)?;
    steps.done("a second control plane node was refused");
    upgrade(node, steps).await?;

    let now = web_pods(node)?;
    ensure(pods == now, || format!("pods were {pods:?}, are {now:?}"))?;
    reach_web(node).await?;
    reset(node)?;
    steps.done("the node is reset");
    Ok(())
}

/// The commands of `docs/start/kubeadm.md` that show what runs.
fn is_orlop(node: &Node) -> Result<()> {
    let pod = format!("etcd-{}", node.name());
    let exec = |args: &[&str]| {
        let mut all = vec!["--namespace=kube-system", "exec", &pod, "--"];
        all.extend(args);
        node.kubectl(&all)
    };
    let version = exec(&["etcd", "--version"])?;
    ensure(version.contains("\norlop Version"), || version.clone())?;
    let status = exec(&[
        "etcdctl",
        "--cacert=/etc/kubernetes/pki/etcd/ca.crt",
        "--cert=/etc/kubernetes/pki/etcd/healthcheck-client.crt",
        "--key=/etc/kubernetes/pki/etcd/healthcheck-client.key",
        "endpoint",
        "status",
        "--write-out=table",
    ])?;
    ensure(status.contains("127.0.0.1:2379"), || status.clone())
}

/// orlop shows a renewed certificate without a restart, and in time.
async fn renew_certificates(node: &Node) -> Result<()> {
    let expiry = || -> Result<String> {
        let page = page(node, "/metrics")?;
        let line = page.lines().find(|line| line.starts_with(NOT_AFTER));
        line.map_or_else(
            || fail(format!("no {NOT_AFTER}")),
            |line| Ok(line.to_owned()),
        )
    };
    let (before, of_pod) = (expiry()?, pod(&component(node, "etcd")?));
    node.run("kubeadm", &["certs", "renew", "all"])?;
    let began = Instant::now();
    eventually(
        "the renewed certificate is shown",
        Duration::from_secs(3),
        || async { Ok((expiry()? != before).then_some(())) },
    )
    .await?;
    println!(
        "renewed certificates were in use {:.1} s later",
        began.elapsed().as_secs_f64()
    );
    etcdctl(node, &["endpoint", "health"])?;
    ensure(pod(&component(node, "etcd")?) == of_pod, || {
        "the store was restarted for its certificates".to_owned()
    })
}

/// The manifest goes and comes back, as for any change of a static pod.
async fn restart_static_pod(node: &Node, dir: &Path, steps: &mut Steps) -> Result<()> {
    let manifest = "/etc/kubernetes/manifests/etcd.yaml";
    let kept = dir.join("etcd.yaml").display().to_string();
    let revision = object(node, &["service", "web"])?["metadata"]["resourceVersion"].clone();
    node.run("mv", &[manifest, &kept])?;
    eventually("the store has ended", POD_LIMIT, || async {
        Ok(page(node, "/livez").is_err().then_some(()))
    })
    .await?;
    node.run("mv", &[&kept, manifest])?;
    let began = Instant::now();
    eventually("the store answers", POD_LIMIT, || async {
        page(node, "/readyz").map(Some)
    })
    .await?;
    let answers = began.elapsed().as_secs_f64();
    eventually("kubectl has an answer", POD_LIMIT, || async {
        object(node, &["service", "web"]).map(Some)
    })
    .await?;
    let same = object(node, &["service", "web"])?["metadata"]["resourceVersion"] == revision;
    ensure(same, || "an object changed with a restart".to_owned())?;
    steps.done(&format!(
        "the static pod was restarted: it answered {answers:.1} s after its manifest was back, \
         kubectl after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    wait_for_control_plane(node).await
}

fn joining_is_refused(node: &Node, second: &Node, dir: &Path) -> Result<()> {
    let file = dir.join("join.yaml").display().to_string();
    // A kubelet removes what it does not know from its control group, so that each has one.
    let patches = dir.join("patches");
    std::fs::create_dir(&patches)?;
    std::fs::write(
        patches.join("kubeletconfiguration+strategic.yaml"),
        format!("cgroupRoot: /{}\n", group_name(second.name())),
    )?;
    let configuration = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    apiServerEndpoint: {first}:6443
    token: {TOKEN}
    unsafeSkipCAVerification: true
controlPlane:
  certificateKey: {CERTIFICATE_KEY}
  localAPIEndpoint: {{ advertiseAddress: {address} }}
nodeRegistration:
  name: {name}
  criSocket: unix:///run/containerd/containerd.sock
  # There is no registry, and none of its pods will start.
  imagePullPolicy: Never
patches: {{ directory: {patches} }}
# By default kubeadm tries for two minutes.
timeouts: {{ etcdAPICall: 10s }}
",
        first = node.address(),
        address = second.address(),
        name = second.name(),
        patches = patches.display()
    );
    std::fs::write(&file, configuration)?;
    let args = ["join", "--config", &file, IGNORED];
    let left = output(second.command("kubeadm").args(args), "", KUBEADM_LIMIT)?;
    let said = [left.stdout, left.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure(!left.status.success() && said.contains(REFUSAL), || {
        said.clone()
    })?;
    let members = etcdctl(node, &["member", "list"])?;
    ensure(members.lines().count() == 1, || members.clone())?;
    let args = [
        "reset",
        "--force",
        "--cri-socket=unix:///run/containerd/containerd.sock",
    ];
    second.run_within(KUBEADM_LIMIT, "kubeadm", &args, "")?;
    node.kubectl(&["delete", "node", second.name(), "--ignore-not-found"])?;
    Ok(())
}

/// A new orlop by `kubeadm upgrade`, as the page says it: the tag first, then the upgrade.
async fn upgrade(node: &Node, steps: &mut Steps) -> Result<()> {
    let map = ["--namespace=kube-system", "configmap", "kubeadm-config"];
    let mut configuration = object(node, &map)?;
    let text = configuration["data"]["ClusterConfiguration"]
        .as_str()
        .unwrap_or_default();
    let changed = text.replace(
        &format!("imageTag: {ORLOP_TAG}"),
        &format!("imageTag: {NEXT_TAG}"),
    );
    ensure(changed != text, || format!("the tag is not in {text}"))?;
    configuration["data"]["ClusterConfiguration"] = Value::String(changed);
    node.apply(&configuration.to_string())?;

    let plan = node.run_within(
        KUBEADM_LIMIT,
        "kubeadm",
        &["upgrade", "plan", VERSION, IGNORED],
        "",
    )?;
    ensure(plan.contains(&format!("Target version: {VERSION}")), || {
        plan.clone()
    })?;
    steps.done("kubeadm upgrade plan");
    let began = Instant::now();
    let args = ["upgrade", "apply", VERSION, "--yes", IGNORED];
    node.run_within(KUBEADM_LIMIT, "kubeadm", &args, "")?;
    steps.done(&format!(
        "kubeadm upgrade apply took {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    wait_for_control_plane(node).await?;
    let image = component(node, "etcd")?["spec"]["containers"][0]["image"].clone();
    ensure(image == format!("{ORLOP_REPOSITORY}:{NEXT_TAG}"), || {
        format!("after the upgrade the store's image is {image}")
    })
}

fn reset(node: &Node) -> Result<()> {
    let args = [
        "reset",
        "--force",
        "--cri-socket=unix:///run/containerd/containerd.sock",
    ];
    node.run_within(KUBEADM_LIMIT, "kubeadm", &args, "")?;
    let left = node.run(
        "find",
        &["/var/lib/etcd", "/etc/kubernetes/manifests", "-type", "f"],
    )?;
    ensure(left.is_empty(), || format!("kubeadm reset left {left}"))?;
    let tasks = node.run("ctr", &["--namespace=k8s.io", "tasks", "list", "--quiet"])?;
    ensure(tasks.is_empty(), || {
        format!("containers run after kubeadm reset: {tasks}")
    })
}
