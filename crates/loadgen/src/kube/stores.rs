//! The stores that can be compared, by name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::{PutRequest, PutResponse};
use playground::backend::{self, Backend, Way};
use playground::cluster::etcd_program;
use playground::members;
use playground::pki::private_dir;
use playground::store::{Kind, Setup};
use serde::Serialize;
use tempfile::TempDir;

use super::{Result, ms};
use crate::report::median;
use crate::rpc::{Call, Connection};
use crate::{Error, orlop_program};

/// What slows etcd's syncs down.
const TRACER: &str = "strace";
/// A file system in memory, on every Linux.
const RAM: &str = "/dev/shm";
const RAM_SUFFIX: &str = "-ram";
/// A comparison with shards has so many of them, on this machine.
const SHARDS: usize = 3;
/// Members of `etcd-3`.
const MEMBERS: usize = 3;
/// Puts, one after the other, that show what a delay adds.
const PROBES: usize = 100;
/// How long each of them may take, whatever the delay.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// One store of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct StoreSpec {
    pub(crate) name: String,
    what: What,
    ram: bool,
}

/// What a store is made of.
#[derive(Debug, Clone)]
enum What {
    /// One server, perhaps with shards.
    One(Setup),
    /// Members of etcd, which the apiserver is told all of.
    Members(members::Setup),
}

/// What a slower disk adds to one put that has the store for itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Delay {
    pub(crate) store: String,
    pub(crate) asked_ms: f64,
    pub(crate) put_ms: f64,
    pub(crate) delayed_put_ms: f64,
}

impl Delay {
    /// What it adds by itself, with whatever makes it.
    pub(crate) fn added_ms(&self) -> f64 {
        self.delayed_put_ms - self.put_ms
    }
}

/// Programs that a store may be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs {
    pub(crate) etcd: Option<PathBuf>,
    pub(crate) orlop: Option<PathBuf>,
}

impl StoreSpec {
    /// `etcd`, `etcd-3` (three members, the first of which leads), `strict` (orlop as it is),
    /// `shared` (with three shards), or another profile of orlop; with `-ram` behind it, its data
    /// is in memory.
    pub(crate) fn parse(
        name: &str,
        programs: &Programs,
        say: &mut dyn FnMut(&str),
    ) -> Result<StoreSpec> {
        let (base, ram) = match name.strip_suffix(RAM_SUFFIX) {
            Some(base) => (base, true),
            None => (name, false),
        };
        if !base.starts_with(|c: char| c.is_ascii_lowercase())
            || !base.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            return Err(Error::Argument(format!(
                "`{name}` names no store: etcd, etcd-3, etcd-ram, strict, shared, balanced, ephemeral"
            )));
        }
        let etcd = |say| etcd_program(programs.etcd.as_deref(), say);
        let what = match base {
            "etcd" => What::One(Setup::new(Kind::Etcd, etcd(say)?)),
            "etcd-3" if ram => {
                return Err(Error::Argument(format!(
                    "`{name}`: members' data is on the disk"
                )));
            }
            "etcd-3" => {
                let mut setup = members::Setup::new(etcd(say)?, MEMBERS)?;
                setup.leader = Some(0);
                What::Members(setup)
            }
            profile => {
                let program = orlop_program(programs.orlop.as_deref())?;
                let mut setup = Setup::new(Kind::Orlop, program);
                setup.flags.push(format!("--profile={profile}"));
                if profile == "shared" {
                    setup.shards = SHARDS;
                }
                What::One(setup)
            }
        };
        Ok(StoreSpec {
            name: name.to_owned(),
            what,
            ram,
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        match &self.what {
            What::One(setup) => setup.kind,
            What::Members(_) => Kind::Etcd,
        }
    }

    /// How to start it with each sync slower by `delay`, and the directory in memory that its
    /// data goes to, if it does.
    pub(crate) fn setup(&self, delay: Duration) -> Result<(backend::Setup, Option<TempDir>)> {
        let slow = !delay.is_zero();
        let mut setup = match self.what.clone() {
            What::One(setup) => setup,
            What::Members(mut members) => {
                if slow {
                    members.before = tracer(delay);
                }
                let way = Way::All;
                return Ok((backend::Setup::Members { members, way }, None));
            }
        };
        match setup.kind {
            Kind::Orlop if slow => setup
                .flags
                .push(format!("--fault-sync-delay={}us", delay.as_micros())),
            Kind::Etcd if slow => setup.before = tracer(delay),
            _ => {}
        }
        let dir = match self.ram {
            false => None,
            true => Some(directory_in(Path::new(RAM))?),
        };
        setup.data_in = dir.as_ref().map(|dir| dir.path().to_owned());
        Ok((backend::Setup::store(setup), dir))
    }
}

/// Words before etcd's program that make each of its syncs take `delay` longer. With -D the tracer
/// is a grandchild, and the process that is started is etcd itself. Only fdatasync stops for it.
fn tracer(delay: Duration) -> Vec<String> {
    let inject = format!("inject=fdatasync:delay_exit={}", delay.as_micros());
    let words = [
        TRACER,
        "-D",
        "-q",
        "-f",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        &inject,
    ];
    words.map(str::to_owned).to_vec()
}

/// A directory for a run's files, gone when it is dropped.
pub(crate) fn directory_in(parent: &Path) -> Result<TempDir> {
    private_dir("orlop-bench-", parent).map_err(Error::file(parent))
}

/// Fails, with what to do, if the program that slows etcd's syncs down is not there.
pub(crate) fn check_tracer() -> Result<()> {
    let found = Command::new(TRACER)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match found {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Error::Argument(format!(
            "--disk-delay slows etcd's syncs down with {TRACER}, which cannot be run: install \
             it (Debian: apt-get install strace)"
        ))),
    }
}

/// The median of what puts take, one after the other, that have a store for themselves.
///
/// # Errors
/// If it does not start, or does not answer in time.
pub(crate) async fn put_ms(setup: backend::Setup, dir: &Path) -> Result<f64> {
    let mut store = Backend::start(setup, dir, None).await?;
    // Of several members the first leads.
    let url = store.endpoints().urls.first().cloned().unwrap_or_default();
    let connection = Connection::open(url.trim_start_matches("http://")).await?;
    let mut took = Vec::new();
    for n in 0..PROBES {
        let put = PutRequest {
            key: format!("/probe/{n}").into(),
            value: vec![b'x'; 1024].into(),
            ..PutRequest::default()
        };
        let began = Instant::now();
        let answer = connection.unary::<PutResponse>(Call::Put, &put);
        let Ok(answer) = tokio::time::timeout(PROBE_TIMEOUT, answer).await else {
            return Err(Error::Stuck {
                what: "putting one key",
                seconds: PROBE_TIMEOUT.as_secs(),
            });
        };
        answer?;
        took.push(ms(began.elapsed()));
    }
    store.stop()?;
    Ok(median(took).unwrap_or_default())
}
