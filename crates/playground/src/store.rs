//! The store under a control plane: orlop, or a real etcd to compare with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::etcdctl::Etcdctl;
use crate::http::Client;
use crate::metrics::Metrics;
use crate::pki::Pair;
use crate::proc::{Process, free_port};
use crate::shards::Shards;
use crate::{Result, binaries, ensure, fail};

/// How long a store may take to become ready. A real etcd with a new directory
/// needs a second or two, its election included.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a store may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Which program is the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The pinned etcd.
    Etcd,
    /// The orlop built from this checkout.
    Orlop,
}

impl Kind {
    /// The store a test is about: orlop, unless `ORLOP_E2E_STORE` is `etcd`, which
    /// shows whether a failure is the test's or orlop's.
    ///
    /// # Errors
    /// If the variable has another value.
    pub fn under_test() -> Result<Self> {
        match std::env::var("ORLOP_E2E_STORE").as_deref() {
            Err(_) | Ok("orlop") => Ok(Self::Orlop),
            Ok("etcd") => Ok(Self::Etcd),
            Ok(other) => fail(format!(
                "ORLOP_E2E_STORE={other}: neither `orlop` nor `etcd`"
            )),
        }
    }

    /// The program's file.
    ///
    /// # Errors
    /// If it is not built, with what to run.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::Etcd => Ok(binaries("etcd")?.join("etcd")),
            Self::Orlop => {
                let exe = std::env::current_exe()?;
                // A test's own program is one directory deeper than the others.
                let beside = exe.parent().unwrap_or(Path::new("."));
                let target = match beside.parent() {
                    Some(above) if beside.ends_with("deps") => above,
                    _ => beside,
                };
                let program = match std::env::var_os("ORLOP_E2E_ORLOP") {
                    Some(path) => PathBuf::from(path),
                    None => target.join("orlop"),
                };
                ensure(program.is_file(), || {
                    format!(
                        "{} is not there: run `cargo build -p orlop` with the profile of the \
                         tests, or set ORLOP_E2E_ORLOP",
                        program.display()
                    )
                })?;
                Ok(program)
            }
        }
    }
}

/// How a store is run: what, where its data lies, and around it.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which program it is.
    pub kind: Kind,
    /// The program's file.
    pub program: PathBuf,
    /// Words before the program on the command line, as a tracer is; none for none. The
    /// process must still be the store's own.
    pub before: Vec<String>,
    /// More flags, in etcd's spelling.
    pub flags: Vec<String>,
    /// Directory of its data directory; none for the one of its log.
    pub data_in: Option<PathBuf>,
    /// Client port; 0 for a free one.
    pub port: u16,
    /// How many shards an orlop has beside it.
    pub shards: usize,
}

/// Keeps the variables of the user's own server from one that is started: they would make it
/// something else.
pub fn without_own_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("ETCD_") || text.starts_with("ORLOP_") {
            command.env_remove(&name);
        }
    }
}

/// A command of `program` with the words `before` it on the line, without the user's own variables.
pub(crate) fn command_after(before: &[String], program: &Path) -> Command {
    let mut command = match before.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    without_own_variables(&mut command);
    command
}

impl Setup {
    /// `program` as it is, with a free port and no flags.
    #[must_use]
    pub fn new(kind: Kind, program: PathBuf) -> Self {
        Self {
            kind,
            program,
            before: Vec::new(),
            flags: Vec::new(),
            data_in: None,
            port: 0,
            shards: 0,
        }
    }
}

/// TLS of a store's client port.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The server's certificate and key.
    pub server: Pair,
    /// The authority that clients check the server with.
    pub ca: PathBuf,
    /// The certificate clients show; with it the server demands one.
    pub client: Option<Pair>,
}

impl Tls {
    /// What a server is told of it, in etcd's flags.
    pub(crate) fn server_flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--cert-file={}", self.server.cert.display()),
            format!("--key-file={}", self.server.key.display()),
        ];
        if self.client.is_some() {
            flags.push("--client-cert-auth".into());
            flags.push(format!("--trusted-ca-file={}", self.ca.display()));
        }
        flags
    }
}

/// What a client has to know to reach a store.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// One URL for each server that the client may call.
    pub urls: Vec<String>,
    /// Its TLS files, if it uses TLS.
    pub tls: Option<Tls>,
}

impl Endpoints {
    /// What etcdctl has to be told to reach them.
    #[must_use]
    pub fn etcdctl_flags(&self) -> Vec<String> {
        crate::etcdctl::flags(&self.urls.join(","), self.tls.as_ref())
    }
}

/// A store process with its data directory and port, which outlive its restarts.
#[derive(Debug)]
pub struct Store {
    setup: Setup,
    name: String,
    dir: PathBuf,
    port: u16,
    metrics_port: u16,
    peer_port: u16,
    tls: Option<Tls>,
    process: Option<Process>,
    shards: Option<Shards>,
}

impl Store {
    /// Starts a store called `name` with its data and log below `dir`, and waits
    /// until it is ready. `extra` are more flags, in etcd's spelling.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start(
        kind: Kind,
        name: &str,
        dir: &Path,
        tls: Option<Tls>,
        extra: &[&str],
    ) -> Result<Self> {
        let mut setup = Setup::new(kind, kind.program()?);
        setup.flags = extra.iter().map(ToString::to_string).collect();
        Self::start_as(setup, name, dir, tls).await
    }

    /// Starts the store that `setup` describes, as [`Store::start`] does.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start_as(setup: Setup, name: &str, dir: &Path, tls: Option<Tls>) -> Result<Self> {
        let port = match setup.port {
            0 => free_port()?,
            port => port,
        };
        let peer_port = free_port()?;
        let shards = match setup.shards {
            0 => None,
            count => Some(Shards::new(&setup.program, dir, peer_port, count)?),
        };
        let mut store = Self {
            setup,
            name: name.to_owned(),
            dir: dir.to_owned(),
            port,
            metrics_port: free_port()?,
            peer_port,
            tls,
            process: None,
            shards,
        };
        store.start_again().await?;
        let metrics_port = store.metrics_port;
        if let Some(shards) = &mut store.shards {
            shards.start(metrics_port).await?;
        }
        Ok(store)
    }

    /// Starts the program again after [`Store::stop`] or [`Store::kill`], with the
    /// same data and port, and waits until it is ready. Returns how long that took.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start_again(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let mut process = Process::start(&self.name, &self.dir, &mut self.command())?;
        let client = Client::plain(self.metrics_port);
        loop {
            process.check_running()?;
            if matches!(client.page("/readyz").await, Ok((200, _))) {
                break;
            }
            ensure(began.elapsed() < START_TIMEOUT, || {
                format!(
                    "{} is not ready; its log ends:\n{}",
                    self.name,
                    process.tail()
                )
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
        Ok(began.elapsed())
    }

    fn command(&self) -> Command {
        let mut command = command_after(&self.setup.before, &self.setup.program);
        if self.setup.kind == Kind::Orlop {
            command.arg("serve");
        }
        let url = self.url();
        let peer_scheme = match self.shards {
            Some(_) => "https",
            None => "http",
        };
        let peer = format!("{peer_scheme}://127.0.0.1:{}", self.peer_port);
        command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data_dir().display()))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!(
                "--listen-metrics-urls=http://127.0.0.1:{}",
                self.metrics_port
            ))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={}={peer}", self.name));
        if let Some(tls) = &self.tls {
            command.args(tls.server_flags());
        }
        if let Some(shards) = &self.shards {
            command.args(shards.server_flags());
        }
        command.args(&self.setup.flags);
        command
    }

    /// Its shards, if it has some.
    #[must_use]
    pub fn shards(&self) -> Option<&Shards> {
        self.shards.as_ref()
    }

    /// Which program it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.setup.kind
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        let parent = self.setup.data_in.as_ref().unwrap_or(&self.dir);
        parent.join(format!("{}-data", self.name))
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Its client port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its client URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// How a client reaches it.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            urls: vec![self.url()],
            tls: self.tls.clone(),
        }
    }

    /// Its TLS files, if it uses TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Port of its plain HTTP pages.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// etcdctl, set up for this store.
    ///
    /// # Errors
    /// If etcdctl is not built.
    pub fn etcdctl(&self) -> Result<Etcdctl> {
        Etcdctl::new(&self.url(), self.tls.as_ref())
    }

    /// What etcdctl has to be told to reach it.
    #[must_use]
    pub fn etcdctl_flags(&self) -> Vec<String> {
        self.endpoints().etcdctl_flags()
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let (status, text) = Client::plain(self.metrics_port).page("/metrics").await?;
        ensure(status == 200, || {
            format!("{} /metrics: HTTP {status}", self.name)
        })?;
        Ok(Metrics::new(text))
    }

    /// Fails if the program has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(shards) = &mut self.shards {
            shards.check_running()?;
        }
        match &mut self.process {
            Some(process) => process.check_running(),
            None => fail(format!("{} was stopped", self.name)),
        }
    }

    /// Stops it with SIGTERM; it must exit by itself. Its shards end after it.
    ///
    /// # Errors
    /// If it does not.
    pub fn stop(&mut self) -> Result<()> {
        let ended = match self.process.take() {
            Some(mut process) => process.terminate(STOP_TIMEOUT).map(|_| ()),
            None => Ok(()),
        };
        match &mut self.shards {
            Some(shards) => ended.and(shards.stop()),
            None => ended,
        }
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }
}
