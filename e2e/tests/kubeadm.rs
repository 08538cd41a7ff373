//! The store under the name `etcd`, started and probed as kubeadm's static pod
//! does it: command line, certificates and probes are kubeadm's own.
//!
//! kubeadm writes nothing outside the test's directory: its configuration puts
//! certificates and data there, and the manifest comes from a dry run. Of what it
//! writes, only addresses are changed, because tests use free loopback ports: see
//! [`adapted`].

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::etcdctl::Etcdctl;
use e2e::kube::http::Client;
use e2e::kube::pki::Pair;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::{Kind, Tls};
use e2e::kube::{Result, binaries, ensure, fail};
use serde_yaml_ng::Value;

/// The node's address in the manifest: one for documentation, on no network.
const NODE: &str = "192.0.2.77";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn starts_and_is_probed_as_kubeadm_does() {
    let dir = tempfile::tempdir().unwrap();
    let result = static_pod(dir.path()).await;
    conclude(dir, result);
}

/// Runs kubeadm on `config.yaml` in `dir`.
fn kubeadm(dir: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(binaries("kube-1.37")?.join("kubeadm"))
        .args(["init", "phase"])
        .args(args)
        .arg(format!("--config={}", dir.join("config.yaml").display()))
        .env("KUBEADM_INIT_DRYRUN_DIR", dir.join("dry-run"))
        .output()?;
    ensure(output.status.success(), || {
        format!(
            "kubeadm {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Has kubeadm make etcd's certificates and manifest. Returns the manifest.
fn manifest(dir: &Path) -> Result<Value> {
    let config = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{ advertiseAddress: {NODE} }}
nodeRegistration: {{ name: node, criSocket: unix:///nowhere.sock }}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.37.1
certificatesDir: {pki}
etcd: {{ local: {{ dataDir: {data} }} }}
",
        pki = dir.join("pki").display(),
        data = dir.join("data").display()
    );
    std::fs::write(dir.join("config.yaml"), config)?;
    std::fs::create_dir(dir.join("dry-run"))?;
    for certificate in [
        "etcd-ca",
        "etcd-server",
        "etcd-peer",
        "etcd-healthcheck-client",
    ] {
        kubeadm(dir, &["certs", certificate])?;
    }
    kubeadm(dir, &["etcd", "local", "--dry-run"])?;
    let text = std::fs::read_to_string(dir.join("dry-run/etcd.yaml"))?;
    serde_yaml_ng::from_str(&text).or_else(|error| fail(format!("kubeadm's manifest: {error}")))
}

/// Ports that stand for those of the manifest.
struct Ports {
    loopback: u16,
    node: u16,
    peer: u16,
    probe: u16,
}

/// An argument of the manifest with the address of each port replaced by a free
/// one of loopback. Nothing else is changed.
fn adapted(argument: &str, ports: &Ports) -> String {
    argument
        .replace("127.0.0.1:2379", &format!("127.0.0.1:{}", ports.loopback))
        .replace(
            &format!("{NODE}:2379"),
            &format!("127.0.0.1:{}", ports.node),
        )
        .replace(
            &format!("{NODE}:2380"),
            &format!("127.0.0.1:{}", ports.peer),
        )
        .replace("127.0.0.1:2381", &format!("127.0.0.1:{}", ports.probe))
}

/// A probe of the manifest.
struct Probe {
    path: String,
    timeout: Duration,
    patience: Duration,
}

impl Probe {
    fn of(container: &Value, name: &str) -> Result<Self> {
        let probe = &container[name];
        let http = &probe["httpGet"];
        let seconds = |field: &str| probe[field].as_u64().unwrap_or(1);
        // It is sent to the port by the name of etcd's metrics port.
        let port = http["port"].as_str().unwrap_or_default();
        let named = container["ports"].as_sequence().into_iter().flatten();
        let number = named
            .filter(|p| p["name"].as_str() == Some(port))
            .map(|p| &p["containerPort"]);
        let right = http["host"].as_str() == Some("127.0.0.1")
            && http["scheme"].as_str() == Some("HTTP")
            && number.map(Value::as_u64).eq([Some(2381)]);
        ensure(right, || {
            format!("{name} is not as this test knows it: {probe:?}")
        })?;
        Ok(Self {
            path: http["path"].as_str().unwrap_or_default().to_owned(),
            timeout: Duration::from_secs(seconds("timeoutSeconds")),
            patience: Duration::from_secs(seconds("periodSeconds") * seconds("failureThreshold")),
        })
    }

    /// What a kubelet asks: a success, in time.
    async fn passes(&self, client: &Client) -> bool {
        let page = tokio::time::timeout(self.timeout, client.page(&self.path)).await;
        matches!(page, Ok(Ok((200..400, _))))
    }
}

async fn static_pod(dir: &Path) -> Result<()> {
    let manifest = manifest(dir)?;
    let container = &manifest["spec"]["containers"][0];
    let ports = Ports {
        loopback: free_port()?,
        node: free_port()?,
        peer: free_port()?,
        probe: free_port()?,
    };
    let command: Vec<String> = container["command"]
        .as_sequence()
        .into_iter()
        .flatten()
        .filter_map(|argument| argument.as_str().map(|argument| adapted(argument, &ports)))
        .collect();
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

    let startup = Probe::of(container, "startupProbe")?;
    let others = [
        Probe::of(container, "livenessProbe")?,
        Probe::of(container, "readinessProbe")?,
    ];
    let client = Client::plain(ports.probe);
    let pki = dir.join("pki/etcd");
    let etcdctls = etcdctls(&pki, &ports)?;
    for start in 1..=2 {
        let began = Instant::now();
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
        while !startup.passes(&client).await {
            process.check_running()?;
            ensure(began.elapsed() < startup.patience, || {
                format!(
                    "the startup probe does not pass; the log ends:\n{}",
                    process.tail()
                )
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!(
            "start {start}: the startup probe passed after {} ms",
            began.elapsed().as_millis()
        );
        for probe in &others {
            ensure(probe.passes(&client).await, || {
                format!("{} does not pass", probe.path)
            })?;
        }
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

/// etcdctl with kubeadm's health check certificate, on both of the URLs.
fn etcdctls(pki: &Path, ports: &Ports) -> Result<Vec<Etcdctl>> {
    let file = |name: &str| -> PathBuf { pki.join(name) };
    let pair = |name: &str| Pair {
        cert: file(&format!("{name}.crt")),
        key: file(&format!("{name}.key")),
    };
    let tls = Tls {
        server: pair("server"),
        ca: file("ca.crt"),
        client: Some(pair("healthcheck-client")),
    };
    [ports.loopback, ports.node]
        .iter()
        .map(|port| Etcdctl::new(&format!("https://127.0.0.1:{port}"), Some(&tls)))
        .collect()
}
