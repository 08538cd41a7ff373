//! Three real etcds with TLS on loopback, that a test kills, stops and has lead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::etcdctl::Etcdctl;
use e2e::kube::pki::{Authority, Pair};
use e2e::kube::proc::{Process, free_port};
use e2e::kube::store::Tls;
use e2e::kube::{Result, binaries, ensure, fail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for an election, on two cores that others use too.
const ELECTION: Duration = Duration::from_secs(30);

struct Member {
    name: String,
    client: u16,
    peer: u16,
    metrics: u16,
    process: Option<Process>,
}

/// A cluster. Its members end with it.
pub(crate) struct Etcds {
    dir: PathBuf,
    program: PathBuf,
    members: Vec<Member>,
    tls: Tls,
}

impl Etcds {
    /// Starts three members of a set of `e2e/build-bins`, with files below `dir`.
    pub(crate) async fn start(dir: &Path, set: &str) -> Result<Self> {
        let authority = Authority::new(dir, "etcd")?;
        let (server, client): (Pair, Pair) = (authority.sign("server")?, authority.sign("client")?);
        let tls = Tls {
            server,
            ca: authority.cert.clone(),
            client: Some(client),
        };
        let mut members = Vec::new();
        for name in ["a", "b", "c"] {
            members.push(Member {
                name: name.to_owned(),
                client: free_port()?,
                peer: free_port()?,
                metrics: free_port()?,
                process: None,
            });
        }
        let mut etcds = Etcds {
            dir: dir.to_owned(),
            program: binaries(set)?.join("etcd"),
            members,
            tls,
        };
        for nth in 0..etcds.members.len() {
            etcds.run(nth)?;
        }
        etcds.until_led().await?;
        Ok(etcds)
    }

    fn run(&mut self, nth: usize) -> Result<()> {
        let peer = |m: &Member| format!("http://127.0.0.1:{}", m.peer);
        let cluster: Vec<_> = self
            .members
            .iter()
            .map(|m| format!("{}={}", m.name, peer(m)))
            .collect();
        let m = &self.members[nth];
        let (name, url) = (&m.name, format!("https://127.0.0.1:{}", m.client));
        let mut command = Command::new(&self.program);
        e2e::kube::store::without_own_variables(&mut command);
        command
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", self.dir.join(name).display()))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!(
                "--listen-metrics-urls=http://127.0.0.1:{}",
                m.metrics
            ))
            .arg(format!("--listen-peer-urls={}", peer(m)))
            .arg(format!("--initial-advertise-peer-urls={}", peer(m)))
            .arg(format!("--initial-cluster={}", cluster.join(",")))
            .arg(format!("--cert-file={}", self.tls.server.cert.display()))
            .arg(format!("--key-file={}", self.tls.server.key.display()))
            .arg(format!("--trusted-ca-file={}", self.tls.ca.display()))
            .args(["--client-cert-auth", "--unsafe-no-fsync"]);
        let process = Process::start(&format!("etcd-{name}"), &self.dir, &mut command)?;
        self.members[nth].process = Some(process);
        Ok(())
    }

    /// TLS files of clients and members.
    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Port of a member's plain pages.
    pub(crate) fn metrics_port(&self, nth: usize) -> u16 {
        self.members[nth].metrics
    }

    /// A member's client URL.
    pub(crate) fn url(&self, nth: usize) -> String {
        format!("https://127.0.0.1:{}", self.members[nth].client)
    }

    /// All client URLs, separated by commas.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<_> = (0..self.members.len()).map(|nth| self.url(nth)).collect();
        urls.join(",")
    }

    /// etcdctl for these URLs.
    pub(crate) fn etcdctl(&self, urls: &str) -> Result<Etcdctl> {
        Etcdctl::new(urls, Some(&self.tls))
    }

    /// Who leads by a member's own word: its number and its id.
    fn led_by(&self, nth: usize) -> Option<(usize, String)> {
        let answer = self
            .etcdctl(&self.url(nth))
            .ok()?
            .ok(&["endpoint", "status", "-w", "json", "--command-timeout=1s"])
            .ok()?;
        let status: Value = serde_json::from_str(&answer).ok()?;
        let status = &status[0]["Status"];
        let (leader, own) = (&status["leader"], &status["header"]["member_id"]);
        (leader == own).then(|| (nth, format!("{:x}", own.as_u64().unwrap_or(0))))
    }

    /// Waits until a running member other than `not` leads; its number.
    pub(crate) async fn until_led_by_other(&self, not: Option<usize>) -> Result<usize> {
        let began = Instant::now();
        while began.elapsed() < ELECTION {
            let candidates = (0..self.members.len()).filter(|nth| Some(*nth) != not);
            for nth in candidates.filter(|nth| self.members[*nth].process.is_some()) {
                if let Some((leader, _)) = self.led_by(nth) {
                    return Ok(leader);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fail("no member leads")
    }

    /// Waits until one leads; its number.
    pub(crate) async fn until_led(&self) -> Result<usize> {
        self.until_led_by_other(None).await
    }

    /// Has `to` lead in the place of `from`.
    pub(crate) fn move_leader(&self, from: usize, to: usize) -> Result<()> {
        let list = self
            .etcdctl(&self.url(to))?
            .ok(&["endpoint", "status", "-w", "json"])?;
        let status: Value = serde_json::from_str(&list).map_err(text)?;
        let id = status[0]["Status"]["header"]["member_id"]
            .as_u64()
            .unwrap_or(0);
        self.etcdctl(&self.url(from))?
            .ok(&["move-leader", &format!("{id:x}")])?;
        Ok(())
    }

    /// Kills a member without warning.
    pub(crate) fn kill(&mut self, nth: usize) {
        if let Some(mut process) = self.members[nth].process.take() {
            process.kill();
        }
    }

    /// Starts a killed member, and waits until it serves.
    pub(crate) async fn start_again(&mut self, nth: usize) -> Result<()> {
        self.run(nth)?;
        let began = Instant::now();
        let etcdctl = self.etcdctl(&self.url(nth))?;
        loop {
            if etcdctl.run(&["endpoint", "health"])?.code == 0 {
                return Ok(());
            }
            ensure(began.elapsed() < ELECTION, || {
                "a member does not come back".into()
            })?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops a member as if its machine stood still, or has it go on.
    pub(crate) fn signal(&self, nth: usize, signal: Signal) -> Result<()> {
        let process = self.members[nth].process.as_ref();
        let pid = process.and_then(|p| i32::try_from(p.id()).ok());
        match pid.and_then(Pid::from_raw) {
            Some(pid) => kill_process(pid, signal).map_err(text),
            None => fail("it does not run"),
        }
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}

/// Any error as the tests' own.
pub(crate) fn text(error: impl std::fmt::Display) -> e2e::kube::Error {
    e2e::kube::Error::Failed(error.to_string())
}
