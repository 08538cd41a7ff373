//! One run: a fresh cluster on a store, a load, and away with it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use playground::backend;
use playground::cluster::{Cluster, Options, Programs};
use playground::guard::Guard;
use serde::Serialize;
use tempfile::TempDir;

use super::client::Target;
use super::load::{self, Shape};
use super::manifest::Manifest;
use super::progress::Progress;
use super::result::Run;
use super::sample::Subjects;
use super::stores::{self, Delay, StoreSpec};
use super::{Result, ms};
use crate::{Error, Interrupt};

/// How long an idle control plane is left alone before it is looked at: informers, leader
/// leases and first reports are done then.
const IDLE_WARMUP: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);
const HOUR_S: f64 = 3600.0;

/// Everything that runs have in common.
pub(crate) struct Bench {
    pub(crate) programs: Programs,
    pub(crate) nodes: u32,
    pub(crate) dir: std::path::PathBuf,
    pub(crate) disk_delay: Duration,
    pub(crate) manifest: Manifest,
    pub(crate) interrupt: Interrupt,
    pub(crate) progress: Progress,
    pub(crate) guard: Guard,
}

/// What an idle control plane costs its disk.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Idle {
    pub(crate) store: String,
    pub(crate) nodes: u32,
    pub(crate) seconds: f64,
    pub(crate) syncs_per_hour: f64,
    pub(crate) written_bytes_per_hour: f64,
    pub(crate) store_cpu_ms_per_s: f64,
    pub(crate) all_cpu_ms_per_s: f64,
}

/// How a store is to be started, and where.
struct Place {
    setup: backend::Setup,
    dir: TempDir,
    _ram: Option<TempDir>,
}

struct Started {
    cluster: Cluster,
    subjects: Subjects,
    target: Arc<Target>,
    _ram: Option<TempDir>,
}

impl Bench {
    /// Runs a load on a fresh cluster on `store`.
    ///
    /// # Errors
    /// If the cluster does not start or the user interrupts. [`Error::Count`] if it started,
    /// and the count is wrong or a program ended: that run is lost, others may be good.
    pub(crate) async fn load(
        &mut self,
        store: &StoreSpec,
        round: usize,
        shape: &Shape,
    ) -> Result<Run> {
        self.progress.title(format!(
            "round {round} {} {} T={} ms",
            store.name,
            shape.mode(),
            ms(shape.interval)
        ));
        let started = self.start(store).await?;
        let outcome = load::run(
            Arc::clone(&started.target),
            &self.manifest,
            shape,
            &started.subjects,
            false,
            &self.interrupt,
            &mut self.progress,
        )
        .await;
        let outcome = match started.end(outcome) {
            // A leader that is kept waiting for too long gives up and ends.
            Err(error @ (Error::Cluster(_) | Error::Apiserver(_) | Error::Decode(_))) => {
                return Err(Error::Count(error.to_string()));
            }
            other => other?,
        };
        Ok(Run::new(
            &store.name,
            round,
            shape,
            self.disk_delay,
            &outcome,
        ))
    }

    /// Runs a load on somebody's cluster.
    ///
    /// # Errors
    /// As [`Bench::load`].
    pub(crate) async fn load_on(
        &mut self,
        kubeconfig: &Path,
        round: usize,
        shape: &Shape,
    ) -> Result<Run> {
        self.progress
            .title(format!("round {round} {}", shape.mode()));
        let target = Arc::new(Target::from_kubeconfig(kubeconfig)?);
        let subjects = Subjects {
            pids: Vec::new(),
            store: None,
        };
        let outcome = load::run(
            target,
            &self.manifest,
            shape,
            &subjects,
            true,
            &self.interrupt,
            &mut self.progress,
        )
        .await?;
        Ok(Run::new("cluster", round, shape, Duration::ZERO, &outcome))
    }

    /// Looks at a control plane with which nothing happens, for `length`.
    ///
    /// # Errors
    /// If it does not start, or the user interrupts.
    pub(crate) async fn idle(&mut self, store: &StoreSpec, length: Duration) -> Result<Idle> {
        self.progress.title(format!("idle {}", store.name));
        let started = self.start(store).await?;
        self.progress.say("waiting until it is idle");
        let looked = async {
            self.wait(IDLE_WARMUP).await?;
            self.progress.begin(length);
            let before = started.subjects.sample().await;
            self.wait(length).await?;
            Ok((before, started.subjects.sample().await))
        }
        .await;
        let (before, after) = started.end(looked)?;
        let (Some(store_before), Some(store_after)) = (before.store, after.store) else {
            return Err(Error::Argument(format!(
                "{} did not answer with its metrics: its syncs are not known",
                store.name
            )));
        };
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let cpu = |name: Option<&str>| -> f64 {
            let ours = |(n, _): &(&String, &super::sample::Use)| match name {
                Some(name) => n.as_str() == name,
                None => n.as_str() != super::LOAD_GENERATOR,
            };
            let sum = |s: &super::sample::Sample| -> f64 {
                s.uses.iter().filter(ours).map(|(_, u)| u.cpu_ms).sum()
            };
            (sum(&after) - sum(&before)) / seconds
        };
        let written = |s: &super::sample::Sample| {
            s.uses
                .get(super::STORE)
                .map_or(0.0, |u| u.written_bytes as f64)
        };
        Ok(Idle {
            store: store.name.clone(),
            nodes: self.nodes,
            seconds,
            syncs_per_hour: (store_after.syncs - store_before.syncs) / seconds * HOUR_S,
            written_bytes_per_hour: (written(&after) - written(&before)) / seconds * HOUR_S,
            store_cpu_ms_per_s: cpu(Some(super::STORE)),
            all_cpu_ms_per_s: cpu(None),
        })
    }

    /// Measures what the slower disk adds to a put that has `store` for itself.
    ///
    /// # Errors
    /// If the store does not start or answer, or the user interrupts.
    pub(crate) async fn measure_delay(&mut self, store: &StoreSpec) -> Result<Delay> {
        self.progress.title(format!("syncs of {}", store.name));
        Ok(Delay {
            store: store.name.clone(),
            asked_ms: ms(self.disk_delay),
            put_ms: self.put_ms(store, Duration::ZERO).await?,
            delayed_put_ms: self.put_ms(store, self.disk_delay).await?,
        })
    }

    async fn put_ms(&mut self, store: &StoreSpec, delay: Duration) -> Result<f64> {
        self.progress.say("putting");
        let place = self.place(store, delay)?;
        tokio::select! {
            took = stores::put_ms(place.setup, place.dir.path()) => took,
            () = interrupted(&self.interrupt) => Err(Error::Interrupted),
        }
    }

    /// Directories for a store and what else a run needs, which go when this process ends,
    /// however that is.
    fn place(&mut self, store: &StoreSpec, delay: Duration) -> Result<Place> {
        let (setup, ram) = store.setup(delay)?;
        let dir = stores::directory_in(&self.dir)?;
        for dir in ram.iter().chain([&dir]) {
            self.guard.remove_at_end(dir.path())?;
        }
        Ok(Place {
            setup,
            dir,
            _ram: ram,
        })
    }

    async fn start(&mut self, store: &StoreSpec) -> Result<Started> {
        self.progress.say("starting a control plane");
        let Place {
            setup,
            dir,
            _ram: ram,
        } = self.place(store, self.disk_delay)?;
        let options = Options {
            programs: self.programs.clone(),
            backend: setup,
            nodes: self.nodes,
            port: 0,
            // What is compared is the store, and not how fast a Go client encrypts.
            private_store: false,
        };
        let cluster = tokio::select! {
            cluster = Cluster::start(options, dir) => cluster?,
            () = interrupted(&self.interrupt) => return Err(Error::Interrupted),
        };
        let subjects = Subjects {
            pids: cluster.pids().into_iter().map(component).collect(),
            store: cluster
                .backend()
                .store()
                .map(|server| (store.kind(), server.metrics_port())),
        };
        let target = Arc::new(Target::from_kubeconfig(cluster.kubeconfig())?);
        Ok(Started {
            cluster,
            subjects,
            target,
            _ram: ram,
        })
    }

    async fn wait(&mut self, length: Duration) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < length {
            self.interrupt.check()?;
            if self.progress.due() {
                self.progress.show_time();
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Started {
    /// Ends the cluster; a failure says, too, if a program had ended by itself.
    fn end<T>(mut self, result: Result<T>) -> Result<T> {
        let alive = self.cluster.check_alive();
        let stopped = self.cluster.stop();
        match (result, alive) {
            (Err(Error::Interrupted), _) => Err(Error::Interrupted),
            (_, Err(dead)) => Err(dead.into()),
            (Err(error), Ok(())) => Err(error),
            (Ok(value), Ok(())) => stopped.map(|()| value).map_err(Error::from),
        }
    }
}

/// A process under the name that reports have for it: members of etcd are one store, and shards one
/// component.
fn component((name, pid): (String, u32)) -> (String, u32) {
    let name = match name {
        member if member.starts_with("etcd-") => super::STORE.to_owned(),
        shard if shard.starts_with("shard-") => "shards".to_owned(),
        name => name,
    };
    (name, pid)
}

async fn interrupted(interrupt: &Interrupt) {
    while interrupt.check().is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}
