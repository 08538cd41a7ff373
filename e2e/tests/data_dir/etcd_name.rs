//! Started under the name `etcd`, it behaves as etcd's supervisors expect.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::hostile::node::Node;
use e2e::kube::pki::Authority;
use e2e::kube::proc::conclude;
use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure};

#[tokio::test]
async fn under_the_name_etcd_it_behaves_as_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let result = behaves(dir.path()).await;
    conclude(dir, result);
}

fn link(dir: &Path) -> Result<PathBuf> {
    let etcd = dir.join("etcd");
    symlink(std::path::absolute(Kind::Orlop.program()?)?, &etcd)?;
    Ok(etcd)
}

/// Log lines of zap's shape that have `message`.
fn lines(log: &str, message: &str) -> Result<Vec<serde_json::Value>> {
    let mut found = Vec::new();
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        for field in ["level", "ts", "msg"] {
            ensure(value[field].is_string(), || format!("no {field} in {line}"))?;
        }
        if value["msg"] == message {
            found.push(value);
        }
    }
    Ok(found)
}

async fn behaves(dir: &Path) -> Result<()> {
    let etcd = link(dir)?;
    let version = Command::new(&etcd).arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    ensure(
        version.lines().next() == Some("etcd Version: 3.7.3"),
        || version,
    )?;

    let socket = dir.join("notify");
    let notify = UnixDatagram::bind(&socket)?;
    notify.set_read_timeout(Some(Duration::from_secs(5)))?;
    let pki = Authority::new(dir, "ca")?;
    let pair = pki.sign("server")?;
    let mut node = Node::new("etcd", dir, &[])?;
    node.program = Some(etcd.clone());
    node.scheme = "https";
    node.args = vec![
        format!("--cert-file={}", pair.cert.display()),
        format!("--key-file={}", pair.key.display()),
    ];
    let socket = socket.display().to_string();
    node.env = vec![
        ("NOTIFY_SOCKET".to_owned(), socket),
        // Kubernetes gives every pod such variables.
        ("ETCD_PORT".to_owned(), "tcp://10.0.0.1:2379".to_owned()),
    ];
    node.run().await?;
    let mut buffer = [0; 256];
    let n = notify.recv(&mut buffer)?;
    let told = String::from_utf8_lossy(&buffer[..n]).into_owned();
    ensure(told.lines().any(|line| line == "READY=1"), || {
        format!("NOTIFY_SOCKET got {told:?}")
    })?;
    ensure(node.stop()?.code() == Some(0), || {
        "SIGTERM did not end it with 0".to_owned()
    })?;
    let said = node.said();
    for message in [
        "ready to serve client requests",
        "serving client traffic securely",
        "received signal; shutting down",
    ] {
        ensure(!lines(&said, message)?.is_empty(), || {
            format!("no log line {message:?}: {said}")
        })?;
    }

    // A start that fails says so in a log line, and exits with 1.
    let mut other = Node::new("failing", dir, &[])?;
    other.program = Some(etcd);
    std::fs::write(&other.data, "not a directory")?;
    let (status, said) = other.run_refused().await?;
    ensure(status.code() == Some(1), || format!("{status}: {said}"))?;
    let last = said.lines().last().unwrap_or_default();
    let last: serde_json::Value = serde_json::from_str(last)?;
    ensure(last["level"] == "fatal", || said)
}
