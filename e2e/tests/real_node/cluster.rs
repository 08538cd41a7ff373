//! A cluster of kubeadm on one node: its images, its configuration, and pods in it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::kube::store::Kind;
use e2e::kube::{Result, binaries, ensure, eventually, fail};
use e2e::node::Node;
use e2e::node::host::group_name;
use e2e::node::image::Archive;
use serde_json::Value;

use crate::POD;

/// How long kubeadm may take for an init or an upgrade.
pub(crate) const KUBEADM_LIMIT: Duration = Duration::from_secs(400);
/// How long pods may take.
pub(crate) const POD_LIMIT: Duration = Duration::from_secs(120);
/// The directory of etcd's certificates.
const PKI: &str = "/etc/kubernetes/pki/etcd";
/// Not checked by kubeadm: it wants control groups of version 2, or a kernel's configuration.
pub(crate) const IGNORED: &str = "--ignore-preflight-errors=SystemVerification";
/// What a second control plane node would join with.
pub(crate) const TOKEN: &str = "abcdef.0123456789abcdef";
pub(crate) const CERTIFICATE_KEY: &str =
    "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// Name of the image in `packaging/kubeadm`, and of the next one.
pub(crate) const ORLOP_REPOSITORY: &str = "registry.example.com/orlop/etcd";
pub(crate) const ORLOP_TAG: &str = concat!("3.7.3_orlop.", env!("CARGO_PKG_VERSION"));
pub(crate) const NEXT_TAG: &str = concat!("3.7.3_orlop.", env!("CARGO_PKG_VERSION"), ".next");
/// The real etcd.
pub(crate) const ETCD_REPOSITORY: &str = "registry.k8s.io/etcd";
pub(crate) const ETCD_TAG: &str = "3.7.3-0";
/// The image of the pods here.
const WEB: &str = "localhost/web:1";

/// A file of `packaging/kubeadm`.
pub(crate) fn packaged(name: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/kubeadm");
    Ok(std::fs::read_to_string(path.join(name))?)
}

/// kubeadm's configuration for `node`: `cluster` is its ClusterConfiguration.
pub(crate) fn configuration(node: &Node, cluster: &str) -> String {
    format!(
        "{cluster}
# A second control plane node joins by this address.
controlPlaneEndpoint: {address}:6443
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens: [{{ token: {TOKEN} }}]
certificateKey: {CERTIFICATE_KEY}
localAPIEndpoint: {{ advertiseAddress: {address} }}
nodeRegistration:
  name: {name}
  criSocket: unix:///run/containerd/containerd.sock
  # The only node runs all pods.
  taints: []
{kubelet}---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
# They are the machine's.
conntrack: {{ maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }}
",
        address = node.address(),
        name = node.name(),
        kubelet = kubelet_configuration(node)
    )
}

fn kubelet_configuration(node: &Node) -> String {
    format!(
        "---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /{}
failCgroupV1: false
# The disk is the machine's, and may be fuller than a node likes.
evictionHard: {{ memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1% }}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
",
        group_name(node.name())
    )
}

/// Writes the archive of all images for the cluster that `configuration` (a file) describes,
/// with every name as kubeadm says it.
pub(crate) fn images(node: &Node, configuration: &str, to: &Path) -> Result<()> {
    let listed = node.run(
        "kubeadm",
        &["config", "images", "list", "--config", configuration],
    )?;
    let kube = binaries("kube-1.37")?;
    let mut archive = Archive::new(&to.with_extension("parts"))?;
    let components = archive.layer(
        "components",
        &[
            ("/usr/local/bin/kube-apiserver", kube.join("kube-apiserver")),
            (
                "/usr/local/bin/kube-controller-manager",
                kube.join("kube-controller-manager"),
            ),
            ("/usr/local/bin/kube-scheduler", kube.join("kube-scheduler")),
            (
                "/usr/local/bin/kube-proxy",
                binaries("node-1.37")?.join("kube-proxy"),
            ),
            (
                "/usr/local/bin/coredns",
                binaries("coredns")?.join("coredns"),
            ),
            // kube-proxy runs it.
            ("/usr/sbin/nft", PathBuf::from("/usr/sbin/nft")),
        ],
    )?;
    let pod = archive.layer("pod", &[("/pod", PathBuf::from(POD))])?;
    for name in listed.lines() {
        let program = name
            .rsplit('/')
            .next()
            .and_then(|last| last.split(':').next());
        match program {
            Some("etcd") => {}
            Some("pause") => archive.image(name, &pod, &["/pod", "pause"])?,
            Some(program) => archive.image(name, &components, &[program])?,
            None => return fail(format!("kubeadm names an image {name:?}")),
        }
    }
    archive.image("localhost/pause:1", &pod, &["/pod", "pause"])?;
    archive.image(WEB, &pod, &["/pod", "web"])?;

    let tools = binaries("etcd")?;
    let bin = |store: PathBuf| {
        [
            ("/usr/local/bin/etcd", store),
            ("/usr/local/bin/etcdctl", tools.join("etcdctl")),
            ("/usr/local/bin/etcdutl", tools.join("etcdutl")),
        ]
    };
    let orlop = archive.layer("orlop", &bin(Kind::Orlop.program()?))?;
    for tag in [ORLOP_TAG, NEXT_TAG] {
        archive.image(&format!("{ORLOP_REPOSITORY}:{tag}"), &orlop, &["etcd"])?;
    }
    let etcd = archive.layer("etcd", &bin(tools.join("etcd")))?;
    archive.image(&format!("{ETCD_REPOSITORY}:{ETCD_TAG}"), &etcd, &["etcd"])?;
    archive.finish(to)
}

/// Makes images, brings them to the node and runs `kubeadm init` with `cluster` as its
/// ClusterConfiguration. Returns how long init took.
pub(crate) fn init(node: &Node, cluster: &str, dir: &Path) -> Result<Duration> {
    let file = dir.join("init.yaml").display().to_string();
    std::fs::write(&file, configuration(node, cluster))?;
    let archive = dir.join("images.tar");
    images(node, &file, &archive)?;
    node.import(&archive)?;
    std::fs::remove_file(&archive)?;
    let began = Instant::now();
    let args = ["init", "--config", &file, "--upload-certs", IGNORED];
    node.run_within(KUBEADM_LIMIT, "kubeadm", &args, "")?;
    Ok(began.elapsed())
}

/// etcdctl's flags for the store on the node.
pub(crate) fn etcdctl(node: &Node, args: &[&str]) -> Result<String> {
    let files = [
        format!("--cacert={PKI}/ca.crt"),
        format!("--cert={PKI}/server.crt"),
        format!("--key={PKI}/server.key"),
    ];
    let mut all = vec!["--endpoints=https://127.0.0.1:2379"];
    all.extend(files.iter().map(String::as_str));
    all.extend(args);
    node.run("etcdctl", &all)
}

/// An object of the cluster.
pub(crate) fn object(node: &Node, args: &[&str]) -> Result<Value> {
    let mut all = vec!["get", "--output=json"];
    all.extend(args);
    Ok(serde_json::from_str(&node.kubectl(&all)?)?)
}

/// Pods of a Deployment, and a Service before them.
const WEB_MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 3
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: web, image: 'localhost/web:1', imagePullPolicy: Never }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  selector: { app: web }
  ports: [{ port: 80, targetPort: 8080 }]
";

/// Starts pods, and waits until they and CoreDNS run.
pub(crate) fn start_web(node: &Node) -> Result<()> {
    node.apply(WEB_MANIFEST)?;
    for deployment in [
        ["--namespace=default", "web"],
        ["--namespace=kube-system", "coredns"],
    ] {
        let args = [
            "rollout",
            "status",
            "--timeout=120s",
            deployment[0],
            "deployment",
            deployment[1],
        ];
        node.run_within(POD_LIMIT, "kubectl", &args, "")?;
    }
    Ok(())
}

/// The Service answers on its ClusterIP, from the node, and by its name, from a pod.
pub(crate) async fn reach_web(node: &Node) -> Result<()> {
    let service = object(node, &["service", "web"])?;
    let address = format!(
        "{}:80",
        service["spec"]["clusterIP"].as_str().unwrap_or_default()
    );
    eventually("the Service answers", POD_LIMIT, || async {
        let name = node.run(POD, &["get", &address, "/"])?;
        Ok(name.starts_with("web-").then_some(()))
    })
    .await?;
    eventually(
        "the Service answers a pod by its name",
        POD_LIMIT,
        || async {
            let by_name = "web.default.svc.cluster.local:80";
            let args = ["exec", "deployment/web", "--", "/pod", "get", by_name, "/"];
            let name = node.kubectl(&args)?;
            Ok(name.starts_with("web-").then_some(()))
        },
    )
    .await
}

/// What a pod was, to tell whether it is the same now: its name, id, container and restarts.
pub(crate) type Pods = Vec<(String, String, String, u64)>;

/// The pods of the Deployment.
pub(crate) fn web_pods(node: &Node) -> Result<Pods> {
    let list = object(node, &["pods", "--selector=app=web"])?;
    let mut pods: Pods = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(pod)
        .collect();
    pods.sort();
    ensure(pods.len() == 3, || format!("{pods:?}"))?;
    Ok(pods)
}

/// The pod of a component of the control plane.
pub(crate) fn component(node: &Node, name: &str) -> Result<Value> {
    let pod = format!("{name}-{}", node.name());
    object(node, &["--namespace=kube-system", "pod", &pod])
}

/// See [`Pods`].
pub(crate) fn pod(pod: &Value) -> (String, String, String, u64) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let container = &pod["status"]["containerStatuses"][0];
    (
        text(&pod["metadata"]["name"]),
        text(&pod["metadata"]["uid"]),
        text(&container["containerID"]),
        container["restartCount"].as_u64().unwrap_or(u64::MAX),
    )
}

/// Waits until kubectl gets an answer, and the store's static pod is ready.
pub(crate) async fn wait_for_control_plane(node: &Node) -> Result<()> {
    eventually("the store's pod is ready", POD_LIMIT, || async {
        let pod = component(node, "etcd")?;
        let ready = &pod["status"]["containerStatuses"][0]["ready"];
        Ok((ready.as_bool() == Some(true)).then_some(()))
    })
    .await
}

/// A page of the store's metrics port.
pub(crate) fn page(node: &Node, path: &str) -> Result<String> {
    node.run(POD, &["get", "127.0.0.1:2381", path])
}
