//! One orlop process whose flags, environment, launcher and end a test decides.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tonic::transport::{Channel, Endpoint};

use crate::kube::http::Client;
use crate::kube::metrics::Metrics;
use crate::kube::proc::{Process, free_port};
use crate::kube::store::Kind;
use crate::kube::{Result, ensure, fail};

/// How long a server may take to become ready, or to refuse to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A server, its data directory and its ports, which outlive its restarts.
#[derive(Debug)]
pub struct Node {
    name: String,
    logs: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    port: u16,
    metrics_port: u16,
    /// More flags.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// The command line before the program: `strace` and its flags.
    pub launcher: Vec<OsString>,
    /// The program, if it is not orlop by its own name.
    pub program: Option<PathBuf>,
    /// `http` or `https`.
    pub scheme: &'static str,
    process: Option<Process>,
}

impl Node {
    /// A server that is not started, with its data and log in `dir`.
    ///
    /// # Errors
    /// If no port is free.
    pub fn new(name: &str, dir: &Path, args: &[&str]) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            logs: dir.to_owned(),
            data: dir.join(format!("{name}.data")),
            port: free_port()?,
            metrics_port: free_port()?,
            args: args.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            launcher: Vec::new(),
            program: None,
            scheme: "http",
            process: None,
        })
    }

    /// As [`Node::new`], started and ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start(name: &str, dir: &Path, args: &[&str]) -> Result<Self> {
        let mut node = Self::new(name, dir, args)?;
        node.run().await?;
        Ok(node)
    }

    fn command(&self) -> Result<Command> {
        let mut line = self.launcher.clone();
        match &self.program {
            Some(program) => line.push(program.into()),
            None => {
                line.push(Kind::Orlop.program()?.into());
                line.push("serve".into());
            }
        }
        let mut command = Command::new(&line[0]);
        let url = self.url();
        command
            .args(&line[1..])
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data.display()))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!(
                "--listen-metrics-urls=http://127.0.0.1:{}",
                self.metrics_port
            ))
            .args(&self.args)
            .envs(self.env.iter().cloned());
        Ok(command)
    }

    /// Starts the program without waiting for anything.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn spawn(&mut self) -> Result<()> {
        self.process = Some(Process::start(
            &self.name,
            &self.logs,
            &mut self.command()?,
        )?);
        Ok(())
    }

    /// Starts the program and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn run(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.spawn()?;
        loop {
            self.check_running()?;
            if matches!(self.page("/readyz").await, Ok((200, _))) {
                return Ok(began.elapsed());
            }
            ensure(began.elapsed() < START_TIMEOUT, || {
                format!("{} is not ready; its log ends:\n{}", self.name, self.tail())
            })?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts the program, which must refuse. Returns how it ended and all that it said
    /// this time.
    ///
    /// # Errors
    /// If it does not end by itself.
    pub async fn run_refused(&mut self) -> Result<(ExitStatus, String)> {
        let before = std::fs::read(self.log()).unwrap_or_default().len();
        self.spawn()?;
        let status = self.wait_end(START_TIMEOUT).await?;
        let log = std::fs::read(self.log())?;
        let said = String::from_utf8_lossy(log.get(before..).unwrap_or_default()).into_owned();
        Ok((status, said))
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// If it does not within `timeout`.
    pub async fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        let Some(process) = &mut self.process else {
            return fail(format!("{} is not started", self.name));
        };
        loop {
            if let Some(status) = process.ended()? {
                self.process = None;
                return Ok(status);
            }
            if began.elapsed() > timeout {
                return fail(format!(
                    "{} still runs after {} s; its log ends:\n{}",
                    self.name,
                    timeout.as_secs(),
                    process.tail()
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its client URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Its client port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of its metrics.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// The file that its output goes to.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.logs.join(format!("{}.log", self.name))
    }

    /// All of its output so far.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }

    /// A new connection to it, made when it is first used.
    ///
    /// # Errors
    /// If its URL is not one.
    pub fn channel(&self) -> Result<Channel> {
        match Endpoint::from_shared(self.url()) {
            Ok(endpoint) => Ok(endpoint
                .connect_timeout(Duration::from_secs(5))
                .connect_lazy()),
            Err(error) => fail(format!("{}: {error}", self.url())),
        }
    }

    /// One of its plain HTTP pages: status and body.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn page(&self, path: &str) -> Result<(u16, String)> {
        Client::plain(self.metrics_port).page(path).await
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::new(self.page("/metrics").await?.1))
    }

    /// Its process id; with a launcher, the launcher's.
    ///
    /// # Errors
    /// If it is not started.
    pub fn id(&self) -> Result<u32> {
        match &self.process {
            Some(process) => Ok(process.id()),
            None => fail(format!("{} is not started", self.name)),
        }
    }

    /// Memory that it holds now, in bytes.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()?))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        kib.map_or_else(|| fail("no VmRSS"), |kib| Ok(kib * 1024))
    }

    /// Fails, with the end of its log, if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.process {
            Some(process) => process.check_running(),
            None => fail(format!("{} is not started", self.name)),
        }
    }

    /// SIGTERM; it must exit by itself. Returns how.
    ///
    /// # Errors
    /// If it does not.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        match self.process.take() {
            Some(mut process) => process.terminate(STOP_TIMEOUT),
            None => fail(format!("{} is not started", self.name)),
        }
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }
}

/// Puts a key; the store's revision then.
///
/// # Errors
/// If it is refused, or not answered.
pub async fn put(channel: &Channel, key: &str, value: &str) -> Result<i64> {
    let request = pb::PutRequest {
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
        value: bytes::Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    };
    match KvClient::new(channel.clone()).put(request).await {
        Ok(answer) => Ok(answer.into_inner().header.unwrap_or_default().revision),
        Err(status) => fail(format!("put {key}: {status}")),
    }
}

/// Keys with values and revisions, and the store's revision.
pub type Contents = (BTreeMap<String, (String, i64)>, i64);

/// All that a server has.
///
/// # Errors
/// If it does not answer.
pub async fn contents(channel: &Channel) -> Result<Contents> {
    let request = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    let answer = match KvClient::new(channel.clone()).range(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return fail(format!("range: {status}")),
    };
    let text = |b: &bytes::Bytes| String::from_utf8_lossy(b).into_owned();
    let kvs = answer.kvs.iter();
    let kvs = kvs.map(|kv| (text(&kv.key), (text(&kv.value), kv.mod_revision)));
    Ok((kvs.collect(), answer.header.unwrap_or_default().revision))
}
