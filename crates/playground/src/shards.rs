//! Shards of an orlop: certificates by `orlop certs`, and processes of `orlop shard`, as a user
//! has them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::http::Client;
use crate::metrics::Metrics;
use crate::proc::{Process, free_port};
use crate::store::without_own_variables;
use crate::{Result, ensure};

/// How long it may take until what they hold counts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one may take to end after SIGTERM: it waits until others hold what it held.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// The shards of one server. Dropped, they are killed.
#[derive(Debug)]
pub struct Shards {
    program: PathBuf,
    dir: PathBuf,
    server: String,
    count: usize,
    processes: Vec<Process>,
}

impl Shards {
    /// `count` shards for a server that is not started yet and listens for its peers on
    /// `peer_port`, with certificates below `dir`.
    ///
    /// # Errors
    /// If the certificates cannot be made.
    pub fn new(program: &Path, dir: &Path, peer_port: u16, count: usize) -> Result<Self> {
        let shards = Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            server: format!("https://127.0.0.1:{peer_port}"),
            count,
            processes: Vec::new(),
        };
        let names: Vec<String> = (1..=count).map(Self::name).collect();
        let names = names.iter().map(String::as_str);
        shards.certs(&["init"])?;
        shards.certs(&["make", "peer", "store", "--san=127.0.0.1"])?;
        shards.certs(
            &["make", "shard"]
                .into_iter()
                .chain(names)
                .collect::<Vec<_>>(),
        )?;
        Ok(shards)
    }

    fn name(number: usize) -> String {
        format!("shard-{number}")
    }

    fn pki(&self) -> PathBuf {
        self.dir.join("copies-pki")
    }

    fn certs(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        without_own_variables(&mut command);
        let done = command
            .arg("certs")
            .args(args)
            .arg(format!("--dir={}", self.pki().display()))
            .stdin(Stdio::null())
            .output()?;
        ensure(done.status.success(), || {
            format!(
                "{} certs {}: {}",
                self.program.display(),
                args.join(" "),
                String::from_utf8_lossy(&done.stderr)
            )
        })
    }

    /// Flags for a certificate of `role`.
    fn certificate(&self, role: &str, name: &str, prefix: &str) -> [String; 3] {
        let dir = self.pki().join(role).join(name);
        let flag =
            |flag: &str, file: &str| format!("--{prefix}{flag}={}", dir.join(file).display());
        [
            flag("cert-file", "tls.crt"),
            flag("key-file", "tls.key"),
            flag("trusted-ca-file", "ca.crt"),
        ]
    }

    /// What the server is told to let them in.
    #[must_use]
    pub fn server_flags(&self) -> Vec<String> {
        let mut flags = self.certificate("peer", "store", "peer-").to_vec();
        flags.push(format!("--max-shards={}", self.count));
        flags
    }

    /// Starts all, and waits until what they hold counts at the server.
    ///
    /// # Errors
    /// If one ends, or it does not come to count.
    pub async fn start(&mut self, server_metrics_port: u16) -> Result<()> {
        for number in 1..=self.count {
            let name = Self::name(number);
            let mut command = Command::new(&self.program);
            without_own_variables(&mut command);
            command
                .arg("shard")
                .arg(format!("--server={}", self.server))
                .arg(format!("--name={name}"))
                .arg(format!("--metrics-addr=127.0.0.1:{}", free_port()?))
                .args(self.certificate("shard", &name, ""));
            let process = Process::start(&name, &self.dir, &mut command)?;
            self.processes.push(process);
        }
        let began = Instant::now();
        let client = Client::plain(server_metrics_port);
        loop {
            self.check_running()?;
            let (_, text) = client.page("/metrics").await?;
            if Metrics::new(text).sum("orlop_shards_counting", &[]) == 1.0 {
                return Ok(());
            }
            ensure(began.elapsed() < START_TIMEOUT, || {
                let tails: Vec<_> = self.processes.iter().map(Process::tail).collect();
                format!("shards do not count; their logs end:\n{}", tails.join("\n"))
            })?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Name and process of each that runs.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        let numbered = self.processes.iter().enumerate();
        numbered
            .map(|(n, process)| (Self::name(n + 1), process.id()))
            .collect()
    }

    /// Fails if one has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        self.processes
            .iter_mut()
            .try_for_each(Process::check_running)
    }

    /// Stops all with SIGTERM.
    ///
    /// # Errors
    /// If one does not end by itself.
    pub fn stop(&mut self) -> Result<()> {
        let mut ended = Ok(());
        for mut process in self.processes.drain(..) {
            ended = ended.and(process.terminate(STOP_TIMEOUT).map(|_| ()));
        }
        ended
    }
}
