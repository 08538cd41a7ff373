//! Routers on loopback, each a process of its own with a certificate of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::fleet;
use e2e::kube::http::Client;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, free_port};
use e2e::kube::{Result, ensure, fail};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpStream;

use crate::backend::Backend;

/// On two cores that other tests may use too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A router.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    pub(crate) peer_port: u16,
    metrics_port: u16,
    pub(crate) process: Option<Process>,
}

/// Routers, and the file by which they route.
pub(crate) struct Rig {
    pub(crate) dir: PathBuf,
    pub(crate) nodes: Vec<Node>,
    flags: Vec<String>,
    pub(crate) ca: CertifiedIssuer<'static, KeyPair>,
}

/// Writes a certificate for this name, and its key.
pub(crate) fn certificate(
    ca: &CertifiedIssuer<'static, KeyPair>,
    dir: &Path,
    file: &str,
    name: &str,
    uri: Option<&str>,
) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if let Some(uri) = uri {
        let uri = rcgen::SanType::URI(uri.try_into().unwrap());
        params.subject_alt_names.push(uri);
    }
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, ca).unwrap();
    std::fs::write(dir.join(format!("{file}.crt")), cert.pem()).unwrap();
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

/// An authority.
pub(crate) fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Rig {
    /// Routers of these nodes, without services.
    pub(crate) async fn start(dir: &Path, names: &[&str], flags: &[&str]) -> Result<Self> {
        let ca = authority();
        std::fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
        let mut nodes = Vec::new();
        for name in names {
            certificate(&ca, dir, name, name, None);
            nodes.push(Node {
                name: (*name).to_owned(),
                port: free_port()?,
                tls_port: free_port()?,
                peer_port: free_port()?,
                metrics_port: free_port()?,
                process: None,
            });
        }
        certificate(&ca, dir, "served", "localhost", None);
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut rig = Self {
            dir: dir.to_owned(),
            nodes,
            flags,
            ca,
        };
        rig.services(&[]);
        for at in 0..names.len() {
            rig.run(at).await?;
        }
        Ok(rig)
    }

    /// Starts a node's router.
    pub(crate) async fn run(&mut self, at: usize) -> Result<()> {
        let node = &self.nodes[at];
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(fleet::program()?);
        command
            .arg("router")
            .arg(format!("--node={}", node.name))
            .arg(format!("--config={}", file("services.toml")))
            .arg(format!("--listen=127.0.0.1:{}", node.port))
            .arg(format!("--tls-listen=127.0.0.1:{}", node.tls_port))
            .arg(format!("--tls-cert-file={}", file("served.crt")))
            .arg(format!("--tls-key-file={}", file("served.key")))
            .arg(format!("--peer-listen=127.0.0.1:{}", node.peer_port))
            .arg(format!(
                "--peer-cert-file={}",
                file(&format!("{}.crt", node.name))
            ))
            .arg(format!(
                "--peer-key-file={}",
                file(&format!("{}.key", node.name))
            ))
            .arg(format!("--peer-trusted-ca-file={}", file("ca.crt")))
            .arg(format!("--metrics-addr=127.0.0.1:{}", node.metrics_port))
            .args(["--drain-notice-ms=500", "--access-log"])
            .args(&self.flags);
        let process = Process::start(&format!("router-{}", node.name), &self.dir, &mut command)?;
        self.nodes[at].process = Some(process);
        let began = Instant::now();
        while self.page(at, "/readyz").await.is_err() {
            if let Some(process) = &mut self.nodes[at].process {
                process.check_running()?;
            }
            ensure(began.elapsed() < PATIENCE, || {
                "a router is not ready".to_owned()
            })?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Services, each: its lines, and its pods with their nodes.
    pub(crate) fn services(&self, services: &[(&str, &[(&Backend, &str)])]) {
        let mut text = String::new();
        for node in &self.nodes {
            let _ = write!(
                text,
                "[[node]]\nname = \"{}\"\npeer = \"127.0.0.1:{}\"\n",
                node.name, node.peer_port
            );
        }
        for (lines, pods) in services {
            let _ = write!(text, "[[service]]\n{lines}\n");
            for (pod, node) in *pods {
                let _ = write!(
                    text,
                    "[[service.pod]]\nname = \"{}\"\nnode = \"{node}\"\naddress = \"{}\"\n",
                    pod.name, pod.address
                );
            }
        }
        // By a rename, as one should: no router reads half a file.
        let new = self.dir.join("services.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.dir.join("services.toml")).unwrap();
    }

    /// The same, and waits until all routers that run know them.
    pub(crate) async fn apply(&self, services: &[(&str, &[(&Backend, &str)])]) -> Result<()> {
        let mut before = Vec::new();
        let runs = |at: &usize| self.nodes[*at].process.is_some();
        let running: Vec<usize> = (0..self.nodes.len()).filter(runs).collect();
        for at in &running {
            before.push(tables(&self.metrics(*at).await?));
        }
        self.services(services);
        let others = running.len() - 1;
        for (at, before) in running.into_iter().zip(before) {
            self.until(at, "the services are known", |page| {
                let up = page.sum("orlop_router_peer_up", &[]) as usize;
                tables(page) > before && up >= others
            })
            .await?;
        }
        Ok(())
    }

    async fn page(&self, at: usize, path: &str) -> Result<String> {
        let (status, text) = Client::plain(self.nodes[at].metrics_port)
            .page(path)
            .await?;
        ensure(status == 200, || format!("{path}: HTTP {status}: {text}"))?;
        Ok(text)
    }

    pub(crate) async fn metrics(&self, at: usize) -> Result<Metrics> {
        Ok(Metrics::new(self.page(at, "/metrics").await?))
    }

    /// Waits until `holds` of a router's page.
    pub(crate) async fn until(
        &self,
        at: usize,
        what: &str,
        holds: impl Fn(&Metrics) -> bool,
    ) -> Result<Metrics> {
        let began = Instant::now();
        loop {
            let page = self.metrics(at).await?;
            if holds(&page) {
                return Ok(page);
            }
            if began.elapsed() > PATIENCE {
                return fail(format!("not in time at {at}: {what}; {}", page.text()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn tables(page: &Metrics) -> f64 {
    page.sum("orlop_router_tables_total", &[])
}

/// A status, the pod that answered, and the body with its trailers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) pod: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

pub(crate) fn request(method: &str, path: &str, host: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
}

/// Sends a request on a connection of its own.
pub(crate) async fn send(port: u16, request: Request<Full<Bytes>>, h2: bool) -> Result<Answer> {
    let broken = |error: hyper::Error| e2e::kube::Error::Failed(format!("no answer: {error:?}"));
    let stream = TokioIo::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let sent = async {
        let answer = if h2 {
            let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (mut sender, connection) = made.map_err(broken)?;
            tokio::spawn(connection);
            let answer = sender.send_request(request).await.map_err(broken)?;
            return read(answer).await;
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
                .await
                .map_err(broken)?;
            tokio::spawn(connection);
            sender.send_request(request).await.map_err(broken)?
        };
        read(answer).await
    };
    tokio::time::timeout(PATIENCE, sent)
        .await
        .map_err(|_| e2e::kube::Error::Failed("no answer in time".to_owned()))?
}

async fn read(answer: http::Response<hyper::body::Incoming>) -> Result<Answer> {
    let (head, body) = answer.into_parts();
    let body = body.collect().await;
    let body = body.map_err(|error| e2e::kube::Error::Failed(format!("half a body: {error:?}")))?;
    let pod = head
        .headers
        .get("pod")
        .map(|pod| pod.to_str().unwrap_or("?").to_owned());
    Ok(Answer {
        status: head.status.as_u16(),
        pod: pod.unwrap_or_default(),
        trailers: body.trailers().cloned(),
        headers: head.headers,
        body: body.to_bytes(),
    })
}

/// A GET.
pub(crate) async fn get(port: u16, path: &str, host: &str) -> Result<Answer> {
    send(
        port,
        request("GET", path, host).body(Full::default()).unwrap(),
        false,
    )
    .await
}
