//! From a data directory to a log that takes writes.

use super::checkpoint::MIN_SEGMENTS;
use super::committer::{Committer, VolatileLane};
use super::errands::Errands;
use super::rounds::Rounds;
use super::volatile::{self, WorkerWrites};
use super::{CommitLog, Committed, Sizes};
use crate::error::Error;
use crate::lifecycle::Lifecycle;
use crate::memory::Quota;
use crate::shards::Shards;
use crate::store::{Store, Waiter};
use config::Config;
use copies::shards::Fence;
use engine::Engine;
use files::FileSystem;
use journal::{
    Asked, Begun, CommitError, Holders, Identity, Journal, NewDirectory, OpenError, OpenReport,
    Options, RulesKeeper,
};
use metrics::Metrics;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use threads::spawn_vital;

/// A data directory that has been recovered; this process has it to itself.
pub(crate) struct Opened {
    journal: Journal,
    report: OpenReport,
    files: Arc<dyn FileSystem>,
    data_dir: PathBuf,
    segment_bytes: u64,
}

/// What a log needs of the server around it.
pub(crate) struct Around {
    /// Where its batches come from; it holds what was recovered.
    pub(crate) store: Arc<Store>,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// When to stop.
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// For a line when it is reached, or is no longer.
    pub(crate) quota: Quota,
    /// A batch that takes longer to become visible is told in the log.
    pub(crate) warning_apply: Duration,
    /// Who holds the newest frames in memory, if anybody may.
    pub(crate) shards: Option<Arc<Shards>>,
}

/// Opens the data directory, and brings `engine` to what is in it.
///
/// # Errors
/// Those of [`Journal::open`].
pub(crate) fn open(
    config: &Config,
    files: Arc<dyn FileSystem>,
    engine: &mut Engine<Waiter>,
    shards: Option<&Shards>,
) -> Result<Opened, OpenError> {
    let data_dir = config.data_dir.clone();
    let mut options = options(config);
    let mut generation = None;
    if config.recover_without_shards {
        options.holders = Holders::GivenUp;
    } else if let Some(shards) = shards {
        let begun = recover(&files, config, &options, shards)?;
        generation = begun.generation;
        if let Some(complete) = begun.complete {
            options.holders = Holders::Complete(complete);
        }
    }
    let opened = Journal::open(files.clone(), &data_dir, options, engine);
    let (mut journal, report) = opened?;
    if let Some(shards) = shards {
        let identity = journal.identity().clone();
        let generation = match generation {
            Some(generation) => generation,
            None => journal.next_generation()?,
        };
        let fence = Fence {
            raft_term: identity.raft_term,
            generation,
        };
        shards.open(identity.cluster_id, fence, &config.name);
    }
    for w in &report.warnings {
        tracing::warn!(warning = %w, "while opening the data directory");
    }
    if let Some(cut) = &report.cut_short {
        tracing::info!(cut = %cut, "the log ended in an unfinished write that was never acknowledged; it is left out");
    }
    if let Some(w) = files::real::fs_warning(&data_dir) {
        tracing::warn!("data-dir" = %data_dir.display(), "{w}");
    }
    engine.set_disk_full(report.no_space);
    Ok(Opened {
        journal,
        report,
        files,
        data_dir,
        segment_bytes: config.segment_bytes,
    })
}

/// Begins the start of a server that has shards: they are asked if they have to be.
fn recover(
    files: &Arc<dyn FileSystem>,
    config: &Config,
    options: &Options,
    shards: &Shards,
) -> Result<Begun, OpenError> {
    let began = Instant::now();
    let mut ask = |asked: &Asked| shards.ask(asked, &config.name);
    let begun = journal::recover(
        &**files,
        &config.data_dir,
        options.marker_dir.as_deref(),
        options.guards,
        &mut ask,
    )?;
    if let Some(complete) = &begun.complete {
        tracing::info!(
            reason = complete.reason,
            frames = complete.frames,
            took = %telemetry::GoDuration(began.elapsed()),
            "nothing was lost with the power: what a shard held is back on the disk"
        );
    }
    Ok(begun)
}

impl Opened {
    /// Whose directory it is.
    pub(crate) fn identity(&self) -> &Identity {
        &self.report.identity
    }

    /// Where a choice of storage rules outlives a restart.
    pub(crate) fn rules_keeper(&self) -> Arc<dyn RulesKeeper> {
        self.journal.rules_keeper()
    }

    /// Whether the directory is new.
    pub(crate) fn created(&self) -> bool {
        self.report.created
    }

    /// Starts the threads. The log takes writes from now on, until the server stops.
    ///
    /// # Errors
    /// The system has no thread, or the log fails at once.
    pub(crate) fn run(self, around: Around) -> Result<Arc<CommitLog>, Error> {
        let Opened {
            mut journal,
            report,
            files,
            data_dir,
            segment_bytes,
        } = self;
        let Around {
            store,
            metrics,
            lifecycle,
            quota,
            warning_apply,
            shards,
        } = around;
        let strict = store.storage.is_strict();
        report_epoch(&report, strict);
        let volatile_lane = if !strict {
            journal.allow_volatile();
            if let Some((shards, copies)) = shards.zip(store.storage.copies()) {
                shards.begin(journal.hold()?, copies);
            }
            VolatileLane::On
        } else if report.epoch.is_none() {
            VolatileLane::Off
        } else {
            // What the last process left is on disk; nothing volatile follows.
            match journal.close_epoch(|| store.lock().revision()) {
                Ok(()) => VolatileLane::Off,
                Err(error) => {
                    tracing::warn!(%error, "cannot close the epoch of volatile writes yet: until it is, a power loss makes every watcher list again");
                    VolatileLane::Ending
                }
            }
        };
        let log = Arc::new(CommitLog {
            store,
            metrics,
            lifecycle,
            quota,
            warning_apply,
            files,
            data_dir,
            segment_bytes,
            allocator: journal.allocator(),
            volatile: journal.volatile(),
            worker_writes: WorkerWrites::default(),
            errands: Errands::default(),
            rounds: Rounds::default(),
            disk_full: AtomicBool::new(report.no_space),
            committed: Committed::default(),
            sizes: Sizes::default(),
            last_checkpoint_unix_ms: AtomicU64::new(0),
        });
        log.committed(report.position.lsn(), 0);

        let allocator = journal.allocator();
        let allocator = spawn_vital("allocator", move || allocator.run(tell_of_segments))?;
        let waker = Arc::downgrade(&log);
        journal.set_waker(move || {
            if let Some(log) = waker.upgrade() {
                log.store.commit.raise();
            }
        });
        let (of_writer, writer) = (log.clone(), journal.volatile());
        let volatile = spawn_vital("volatile", move || volatile::run(&of_writer, &writer))?;
        let committer = Committer::new(log.clone(), journal, volatile, volatile_lane);
        let committer = spawn_vital("committer", move || committer.run())?;
        log.lifecycle.keep(committer);
        log.lifecycle.keep(allocator);
        Ok(log)
    }
}

/// Says what a start after a crash made of volatile writes.
fn report_epoch(report: &OpenReport, strict: bool) {
    if let Some(problem) = report.marker_problem.as_ref().filter(|_| !strict) {
        tracing::warn!(problem, "a killed server will start as after a power loss");
    }
    let Some(epoch) = &report.epoch else { return };
    if epoch.trusted {
        tracing::info!(
            reason = epoch.reason,
            "nothing was lost: the last process ended without a stop, and the log is complete"
        );
        return;
    }
    tracing::warn!(
        reason = epoch.reason,
        "jumped-to" = epoch.jumped_to.unwrap_or(0),
        "stamped-anew" = epoch.restamped_frames,
        "volatile writes of the last moments before the crash may be lost; every durable one is there; watchers are told to list again"
    );
}

/// The log's next file cannot be made, or can be again.
fn tell_of_segments(problem: Option<&CommitError>) {
    match problem {
        Some(error) => tracing::error!(
            %error,
            "cannot make the journal's next file: writes go on as long as there is room in this one"
        ),
        None => tracing::info!("the journal's next file could be made again"),
    }
}

fn options(config: &Config) -> Options {
    let random = |salt: u64| RandomState::new().hash_one((salt, Instant::now())).max(1);
    let mut options = Options::new(NewDirectory {
        cluster_id: random(1),
        member_id: random(2),
        name: config.name.clone(),
        salt: random(3),
        ..NewDirectory::default()
    });
    options.segment_bytes = config.segment_bytes;
    // What a snapshot frees is used again, instead of made anew.
    options.spare_segments = MIN_SEGMENTS as usize;
    options.no_fsync = config.unsafe_no_fsync;
    options.marker_dir = files::real::memory_dir();
    options
}
