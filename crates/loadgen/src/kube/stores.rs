//! The stores that can be compared, by name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::{PutRequest, PutResponse};
use playground::cluster::etcd_program;
use playground::store::{Kind, Setup, Store};
use serde::Serialize;
use tempfile::TempDir;

use super::error::{Error, Result};
use crate::report::median;
use crate::rpc::{Call, Connection};

/// A file system in memory, on every Linux.
const RAM: &str = "/dev/shm";
const RAM_SUFFIX: &str = "-ram";
/// Puts, one after the other, that show what a delay adds.
const PROBES: usize = 100;

/// One store of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct StoreSpec {
    pub(crate) name: String,
    setup: Setup,
    ram: bool,
}

/// What a slower disk adds to one put that has the store for itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Delay {
    pub(crate) store: String,
    pub(crate) asked_ms: f64,
    pub(crate) put_ms: f64,
    pub(crate) delayed_put_ms: f64,
}

/// Programs that a store may be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs {
    pub(crate) etcd: Option<PathBuf>,
    pub(crate) orlop: Option<PathBuf>,
}

impl StoreSpec {
    /// `etcd`, `strict` (orlop as it is), or another profile of orlop; with `-ram` behind it,
    /// its data is in memory.
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
                "`{name}` names no store: etcd, etcd-ram, strict, balanced, ephemeral"
            )));
        }
        let setup = if base == "etcd" {
            Setup::new(Kind::Etcd, etcd_program(programs.etcd.as_deref(), say)?)
        } else {
            let this = || std::env::current_exe().map_err(Error::io("finding this executable"));
            let program = programs.orlop.clone().map_or_else(this, Ok)?;
            let mut setup = Setup::new(Kind::Orlop, program);
            // What orlop is without being told.
            if base != "strict" {
                setup.flags.push(format!("--profile={base}"));
            }
            setup
        };
        Ok(StoreSpec {
            name: name.to_owned(),
            setup,
            ram,
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.setup.kind
    }

    /// How to start it with each sync slower by `delay`, and the directory in memory that its
    /// data goes to, if it does.
    pub(crate) fn setup(&self, delay: Duration) -> Result<(Setup, Option<TempDir>)> {
        let mut setup = self.setup.clone();
        if !delay.is_zero() {
            match setup.kind {
                Kind::Orlop => setup
                    .flags
                    .push(format!("--fault-sync-delay={}us", delay.as_micros())),
                // With -D the tracer is a grandchild, and the process that is started is etcd
                // itself. Only fdatasync stops for it.
                Kind::Etcd => {
                    let inject = format!("inject=fdatasync:delay_exit={}", delay.as_micros());
                    let words = [
                        "strace",
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
                    setup.before = words.map(str::to_owned).to_vec();
                }
            }
        }
        let dir = match self.ram {
            false => None,
            true => Some(
                tempfile::Builder::new()
                    .prefix("orlop-bench-")
                    .tempdir_in(RAM)
                    .map_err(Error::io(format!("a directory in {RAM}")))?,
            ),
        };
        setup.data_in = dir.as_ref().map(|dir| dir.path().to_owned());
        Ok((setup, dir))
    }

    /// Measures what `delay` adds to a put, with the store's data in `parent`.
    pub(crate) async fn measure_delay(&self, delay: Duration, parent: &Path) -> Result<Delay> {
        Ok(Delay {
            store: self.name.clone(),
            asked_ms: delay.as_secs_f64() * 1e3,
            put_ms: self.put_ms(Duration::ZERO, parent).await?,
            delayed_put_ms: self.put_ms(delay, parent).await?,
        })
    }

    async fn put_ms(&self, delay: Duration, parent: &Path) -> Result<f64> {
        let dir = tempfile::Builder::new()
            .prefix("orlop-bench-")
            .tempdir_in(parent)
            .map_err(Error::io(parent.display().to_string()))?;
        let (setup, _ram) = self.setup(delay)?;
        let mut store = Store::start_as(setup, "store", dir.path(), None).await?;
        let url = store.url();
        let authority = url.trim_start_matches("http://");
        let failed = |error: crate::Error| Error::Transport(error.to_string());
        let connection = Connection::open(authority).await.map_err(failed)?;
        let mut ms = Vec::new();
        for n in 0..PROBES {
            let put = PutRequest {
                key: format!("/probe/{n}").into(),
                value: vec![b'x'; 1024].into(),
                ..PutRequest::default()
            };
            let began = Instant::now();
            connection
                .unary::<PutResponse>(Call::Put, &put)
                .await
                .map_err(failed)?;
            ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
        store.stop()?;
        Ok(median(ms).unwrap_or_default())
    }
}
