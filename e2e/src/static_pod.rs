//! kubeadm's static pod of etcd without a kubelet: its certificates and manifest, its
//! command line on free loopback ports, and its probes.
//!
//! kubeadm writes nothing outside the test's directory: its configuration puts
//! certificates and data there, and the manifest comes from a dry run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::kube::etcdctl::Etcdctl;
use crate::kube::http::Client;
use crate::kube::pki::Pair;
use crate::kube::proc::{Process, free_port};
use crate::kube::store::Tls;
use crate::kube::{Result, binaries, ensure, fail};
use serde_yaml_ng::Value;

/// The node's address in the manifest: one for documentation, on no network.
pub const NODE: &str = "192.0.2.77";

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

/// Has kubeadm make etcd's certificates, in `pki/etcd` of `dir`, and its manifest, for the
/// data directory `data` of `dir`. Returns the manifest.
///
/// # Errors
/// If kubeadm fails.
pub fn manifest(dir: &Path) -> Result<Value> {
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
    read(&dir.join("dry-run/etcd.yaml"))
}

/// Reads a YAML file.
///
/// # Errors
/// If it cannot be read or is no YAML.
pub fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)?;
    serde_yaml_ng::from_str(&text).or_else(|error| fail(format!("{}: {error}", path.display())))
}

/// Ports that stand for those of the manifest.
#[derive(Debug)]
pub struct Ports {
    /// Clients, on loopback.
    pub loopback: u16,
    /// Clients, on the node's address.
    pub node: u16,
    /// Peers.
    pub peer: u16,
    /// Health and metrics.
    pub probe: u16,
}

impl Ports {
    /// Free ones of loopback.
    ///
    /// # Errors
    /// If there is none.
    pub fn free() -> Result<Self> {
        Ok(Self {
            loopback: free_port()?,
            node: free_port()?,
            peer: free_port()?,
            probe: free_port()?,
        })
    }

    /// The command of a container with the address of each port replaced by one of these.
    /// Nothing else is changed.
    #[must_use]
    pub fn command(&self, container: &Value) -> Vec<String> {
        container["command"]
            .as_sequence()
            .into_iter()
            .flatten()
            .filter_map(|argument| argument.as_str().map(|argument| self.adapted(argument)))
            .collect()
    }

    fn adapted(&self, argument: &str) -> String {
        argument
            .replace("127.0.0.1:2379", &format!("127.0.0.1:{}", self.loopback))
            .replace(&format!("{NODE}:2379"), &format!("127.0.0.1:{}", self.node))
            .replace(&format!("{NODE}:2380"), &format!("127.0.0.1:{}", self.peer))
            .replace("127.0.0.1:2381", &format!("127.0.0.1:{}", self.probe))
    }

    /// etcdctl with kubeadm's health check certificate, on both of the client URLs. `pki`
    /// is the directory of etcd's certificates.
    ///
    /// # Errors
    /// If etcdctl is not built.
    pub fn etcdctls(&self, pki: &Path) -> Result<Vec<Etcdctl>> {
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
        [self.loopback, self.node]
            .iter()
            .map(|port| Etcdctl::new(&format!("https://127.0.0.1:{port}"), Some(&tls)))
            .collect()
    }
}

/// A probe of the manifest.
#[derive(Debug)]
pub struct Probe {
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

/// The probes of a container.
#[derive(Debug)]
pub struct Probes {
    startup: Probe,
    others: [Probe; 2],
}

impl Probes {
    /// Reads them.
    ///
    /// # Errors
    /// If they are not what this module knows.
    pub fn of(container: &Value) -> Result<Self> {
        Ok(Self {
            startup: Probe::of(container, "startupProbe")?,
            others: [
                Probe::of(container, "livenessProbe")?,
                Probe::of(container, "readinessProbe")?,
            ],
        })
    }

    /// Does what a kubelet does after a start: asks until the startup probe passes, as long
    /// as the manifest allows, and then the others once. Returns how long the first took.
    ///
    /// # Errors
    /// If the process ends, or a probe does not pass.
    pub async fn pass(&self, process: &mut Process, port: u16) -> Result<Duration> {
        let began = Instant::now();
        let client = Client::plain(port);
        while !self.startup.passes(&client).await {
            process.check_running()?;
            ensure(began.elapsed() < self.startup.patience, || {
                format!(
                    "the startup probe does not pass; the log ends:\n{}",
                    process.tail()
                )
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = began.elapsed();
        for probe in &self.others {
            ensure(probe.passes(&client).await, || {
                format!("{} does not pass", probe.path)
            })?;
        }
        Ok(took)
    }
}
