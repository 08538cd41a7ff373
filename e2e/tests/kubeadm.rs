//! The store under the name `etcd`, started and probed as kubeadm's static pod
//! does it: command line, certificates and probes are kubeadm's own.
//!
//! Of what kubeadm writes, only addresses are changed, because tests use free loopback
//! ports: see [`e2e::static_pod`].

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::kube::proc::{Process, conclude};
use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure, fail};
use e2e::static_pod::{Ports, Probes, manifest};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn starts_and_is_probed_as_kubeadm_does() {
    let dir = tempfile::tempdir().unwrap();
    let result = static_pod(dir.path()).await;
    conclude(dir, result);
}

async fn static_pod(dir: &Path) -> Result<()> {
    let manifest = manifest(dir)?;
    let container = &manifest["spec"]["containers"][0];
    let ports = Ports::free()?;
    let command = ports.command(container);
    ensure(command.len() > 15 && command[0] == "etcd", || {
        format!("{command:?}")
    })?;
    println!("{}", command.join("\n  "));

    let bin = dir.join("bin");
    std::fs::create_dir(&bin)?;
    symlink(Kind::under_test()?.program()?, bin.join("etcd"))?;
    let version = Command::new(bin.join(&command[0]))
        .arg("--version")
        .output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    ensure(version.starts_with("etcd Version: 3.7.3\n"), || {
        version.clone()
    })?;

    let probes = Probes::of(container)?;
    let etcdctls = ports.etcdctls(&dir.join("pki/etcd"))?;
    for start in 1..=2 {
        let old = start == 2 && Kind::under_test()? == Kind::Orlop;
        let arguments = command[1..]
            .iter()
            .map(|a| if old { as_before_1_34(a) } else { a.clone() });
        let mut command_line = Command::new(bin.join(&command[0]));
        command_line
            .args(arguments)
            // What Kubernetes adds to the environment of a pod beside a Service
            // called etcd.
            .env("ETCD_PORT", "tcp://10.96.0.7:2379")
            .env("ETCD_SERVICE_HOST", "10.96.0.7");
        let mut process = Process::start("etcd", dir, &mut command_line)?;
        let took = probes.pass(&mut process, ports.probe).await?;
        println!(
            "start {start}: the startup probe passed after {} ms",
            took.as_millis()
        );
        for etcdctl in &etcdctls {
            etcdctl.ok(&["endpoint", "health"])?;
            let found = etcdctl.ok(&["get", "key", "--print-value-only"])?;
            ensure(found.is_empty() == (start == 1), || {
                format!("start {start}: {found:?}")
            })?;
        }
        etcdctls[0].ok(&["put", "key", "kept"])?;
        let members = etcdctls[1].ok(&["member", "list"])?;
        ensure(members.contains(", started, node, "), || members.clone())?;
        ensure(dir.join("data/member").exists(), || {
            "no `member` in the data directory".into()
        })?;
        process.check_running()?;
        process.terminate(Duration::from_secs(15))?;
    }
    logs_as_etcd(&dir.join("etcd.log"))
}

/// Names that kubeadm used before 1.34, which etcd 3.7 no longer has and clusters
/// still pass.
fn as_before_1_34(argument: &str) -> String {
    argument
        .replace(
            "--feature-gates=InitialCorruptCheck=true",
            "--experimental-initial-corrupt-check=true",
        )
        .replace("--watch-progress", "--experimental-watch-progress")
}

/// Under the name `etcd` every line is JSON as etcd's, with the texts that tools
/// look for.
fn logs_as_etcd(log: &Path) -> Result<()> {
    let text = std::fs::read_to_string(log)?;
    for line in text.lines() {
        let found: serde_json::Value = serde_json::from_str(line)
            .or_else(|error| fail(format!("a log line is not JSON ({error}): {line}")))?;
        let whole = ["level", "ts", "msg"]
            .iter()
            .all(|field| found[*field].is_string());
        ensure(whole, || {
            format!("a log line without level, ts or msg: {line}")
        })?;
    }
    for text_of_etcd in [
        "ready to serve client requests",
        "serving client traffic securely",
        "received signal; shutting down",
    ] {
        let said = text.contains(&format!("\"msg\":\"{text_of_etcd}\""));
        ensure(said, || format!("the log does not say {text_of_etcd:?}"))?;
    }
    Ok(())
}
