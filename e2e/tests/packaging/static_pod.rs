//! The static pod, and what kubeadm's `join --control-plane` meets.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::kube::proc::{Process, conclude};
use e2e::kube::store::Kind;
use e2e::kube::{Result, binaries, ensure, fail};
use e2e::static_pod::{NODE, Ports, Probes, manifest, read};
use serde_yaml_ng::Value;

use crate::{repo, run};

/// What a second control plane node is told, by the server and at its start.
const INSTEAD: &str = "etcd.external.endpoints";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_static_pod_is_what_kubeadm_expects() {
    let dir = tempfile::tempdir().unwrap();
    let result = static_pod(dir.path()).await;
    conclude(dir, result);
}

/// Our manifest as its page says to fill it in.
fn ours() -> Result<Value> {
    let text = std::fs::read_to_string(repo("packaging/kubeadm/etcd.yaml"))?;
    let text = text.replace("NODE_NAME", "node").replace("NODE_IP", NODE);
    serde_yaml_ng::from_str(&text).or_else(|error| fail(error.to_string()))
}

async fn static_pod(dir: &Path) -> Result<()> {
    let kubeadms = manifest(dir)?;
    let ours = ours()?;
    let (theirs, own) = (
        &kubeadms["spec"]["containers"][0],
        &ours["spec"]["containers"][0],
    );
    for field in ["metadata", "apiVersion", "kind"] {
        same(field, &kubeadms[field], &ours[field])?;
    }
    for field in [
        "hostNetwork",
        "priority",
        "priorityClassName",
        "securityContext",
    ] {
        same(field, &kubeadms["spec"][field], &ours["spec"][field])?;
    }
    for field in [
        "name",
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "imagePullPolicy",
    ] {
        same(field, &theirs[field], &own[field])?;
    }
    // Every flag is kubeadm's, but for the directory, and certificates lie where it puts them.
    let pki = dir.join("pki").display().to_string();
    let of_kubeadm = words(theirs)
        .map(|word| word.replace(&pki, "/etc/kubernetes/pki"))
        .collect::<Vec<_>>();
    for word in words(own).filter(|word| !word.starts_with("--data-dir=")) {
        ensure(of_kubeadm.iter().any(|other| other == word), || {
            format!("{word} is not in {of_kubeadm:?}")
        })?;
    }

    // What tells a killed process from a power loss is in the host's memory.
    let entry = |list: &Value, path: &str| {
        let named = list.as_sequence().into_iter().flatten();
        let mut found = named.filter(|entry| entry["name"] == "orlop-run");
        found.next().and_then(|entry| {
            let value = path.split('.').fold(entry, |value, key| &value[key]);
            value.as_str().map(String::from)
        })
    };
    for place in [
        entry(&own["volumeMounts"], "mountPath"),
        entry(&ours["spec"]["volumes"], "hostPath.path"),
    ] {
        ensure(place.as_deref() == Some("/run/orlop"), || {
            format!("{place:?}")
        })?;
    }

    let ports = Ports::free()?;
    let command: Vec<_> = ports
        .command(own)
        .iter()
        .map(|word| {
            word.replace("/etc/kubernetes/pki", &pki)
                .replace("/var/lib/orlop", &dir.join("data").display().to_string())
        })
        .collect();
    let bin = dir.join("bin");
    std::fs::create_dir(&bin)?;
    symlink(Kind::Orlop.program()?, bin.join("etcd"))?;
    let mut process = Process::start(
        "etcd",
        dir,
        Command::new(bin.join(&command[0])).args(&command[1..]),
    )?;
    Probes::of(own)?.pass(&mut process, ports.probe).await?;
    let etcdctls = ports.etcdctls(&dir.join("pki/etcd"))?;
    for etcdctl in &etcdctls {
        etcdctl.ok(&["put", "key", "value"])?;
    }
    // kubeadm tells nodes apart by this URL.
    let members = etcdctls[0].ok(&["member", "list"])?;
    ensure(
        members.contains(&format!("https://127.0.0.1:{}", ports.peer)),
        || members,
    )?;

    // kubeadm join --control-plane first announces the new node ...
    let added = etcdctls[0].run(&[
        "member",
        "add",
        "second",
        "--learner",
        "--peer-urls=https://192.0.2.78:2380",
    ])?;
    ensure(added.code != 0 && added.err.contains(INSTEAD), || {
        format!("{added:?}")
    })?;
    process.terminate(Duration::from_secs(15))?;

    // ... and then starts its etcd as one more of several.
    let joined = ports.command(theirs);
    let joined = joined[1..]
        .iter()
        .filter(|word| !word.starts_with("--initial-cluster=") && !word.starts_with("--data-dir="));
    let output = Command::new(bin.join("etcd"))
        .args(joined)
        .arg(format!("--data-dir={}", dir.join("second").display()))
        .arg(format!(
            "--initial-cluster=node=https://{NODE}:2380,second=https://192.0.2.78:2380"
        ))
        .arg("--initial-cluster-state=existing")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(!output.status.success() && said.contains(INSTEAD), || said)?;
    ensure(!dir.join("second").exists(), || {
        "a refused start left a directory".into()
    })
}

fn same(what: &str, kubeadms: &Value, ours: &Value) -> Result<()> {
    // kubeadm writes no empty fields, and neither do we.
    ensure(kubeadms == ours && !ours.is_null(), || {
        format!("{what}: kubeadm has {kubeadms:?}, we have {ours:?}")
    })
}

fn words(container: &Value) -> impl Iterator<Item = &str> {
    container["command"]
        .as_sequence()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

#[test]
fn kubeadm_takes_our_configurations() {
    let kubeadm = binaries("kube-1.37").unwrap().join("kubeadm");
    for name in ["init.yaml", "external.yaml"] {
        let file = repo("packaging/kubeadm").join(name);
        run(Command::new(&kubeadm)
            .args(["config", "validate", "--config"])
            .arg(file))
        .unwrap();
    }
    // The image's name is as the manifest and the pages have it.
    let init = repo("packaging/kubeadm/init.yaml");
    let images = run(Command::new(&kubeadm)
        .args(["config", "images", "list", "--config"])
        .arg(&init))
    .unwrap();
    let image = ours().unwrap()["spec"]["containers"][0]["image"].clone();
    let image = image.as_str().unwrap();
    assert!(images.lines().any(|line| line == image), "{images}");
    let tag = format!("3.7.3_orlop.{}", env!("CARGO_PKG_VERSION"));
    assert!(image.ends_with(&tag), "{image}");

    // kind's patch is the same.
    let kind = read(&repo("packaging/kubeadm/kind.yaml")).unwrap();
    let patch = kind["kubeadmConfigPatches"][0].as_str().unwrap();
    let patch: Value = serde_yaml_ng::from_str(patch).unwrap();
    assert_eq!(patch["etcd"], read(&init).unwrap()["etcd"]);
}
