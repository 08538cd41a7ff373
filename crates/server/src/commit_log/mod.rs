//! The server's one owner of the journal.
//!
//! Writes get into the log here and nowhere else. The committer takes durable batches
//! ([`committer`]); a worker or the volatile writer takes volatile ones ([`volatile`]); both make
//! them visible, or refuse them, in one way ([`release`]). Everybody else has a few verbs:
//!
//! - [`open()`] recovers what is there, [`Opened::run`] starts the threads;
//! - [`CommitLog::write_on_worker`]: a worker takes the few volatile writes of its turn itself;
//! - [`CommitLog::order`]: something for the committer to do between two batches;
//! - [`CommitLog::checkpoint`]: a snapshot of the journal, so that old segments go;
//! - [`CommitLog::status`]: how it stands, without waiting for the disk.

mod checkpoint;
mod committer;
mod errands;
mod open;
mod release;
mod rounds;
mod signal;
mod volatile;

pub(crate) use errands::{AtPoint, Errand, Stopping};
pub(crate) use open::{Around, open};
pub(crate) use signal::Signal;

use crate::lifecycle::Lifecycle;
use crate::memory::Quota;
use crate::store::Store;
use errands::Errands;
use files::FileSystem;
use journal::{Allocator, VolatileStatus, VolatileWriter};
use metrics::Metrics;
use rounds::Rounds;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use volatile::WorkerWrites;

/// A batch holds at most about so many bytes, so that one commit cannot take for ever.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// What the threads of the log share, and what everybody else asks.
pub(crate) struct CommitLog {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    lifecycle: Arc<Lifecycle>,
    quota: Quota,
    warning_apply: Duration,
    files: Arc<dyn FileSystem>,
    data_dir: PathBuf,
    segment_bytes: u64,
    allocator: Allocator,
    volatile: VolatileWriter,
    worker_writes: WorkerWrites,
    errands: Errands,
    rounds: Rounds,
    disk_full: AtomicBool,
    committed: Committed,
    sizes: Sizes,
    last_checkpoint_unix_ms: AtomicU64,
}

/// How far the log of visible writes reaches.
#[derive(Debug, Default)]
struct Committed {
    lsn: AtomicU64,
    records: AtomicU64,
}

/// What the committer last found.
#[derive(Debug, Default)]
struct Sizes {
    log_bytes: AtomicU64,
    since_checkpoint_bytes: AtomicU64,
}

/// How the log stands.
#[derive(Clone, Debug)]
pub(crate) struct LogStatus {
    /// Records of this process that are visible.
    pub(crate) committed_records: u64,
    /// Bytes that the log takes on disk.
    pub(crate) log_bytes: u64,
    /// Segments that that is, about.
    pub(crate) segments: u64,
    /// Bytes that a start would replay.
    pub(crate) since_checkpoint_bytes: u64,
    /// When the last checkpoint of this process was saved, in seconds since 1970; 0 if none was.
    pub(crate) last_checkpoint_unix_s: f64,
    /// Volatile writes and their epoch.
    pub(crate) volatile: VolatileStatus,
}

impl CommitLog {
    /// How it stands.
    pub(crate) fn status(&self) -> LogStatus {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let log_bytes = load(&self.sizes.log_bytes);
        LogStatus {
            committed_records: load(&self.committed.records),
            log_bytes,
            segments: log_bytes / self.segment_bytes.max(1),
            since_checkpoint_bytes: load(&self.sizes.since_checkpoint_bytes),
            last_checkpoint_unix_s: load(&self.last_checkpoint_unix_ms) as f64 / 1000.0,
            volatile: self.volatile.status(),
        }
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.data_dir
    }

    /// The log takes room by so many bytes at a time.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The log's sequence number that all visible writes are at or below.
    pub(crate) fn committed_lsn(&self) -> u64 {
        self.committed.lsn.load(Ordering::Relaxed)
    }

    fn committed(&self, lsn: u64, records: u64) {
        self.committed.lsn.fetch_max(lsn, Ordering::Relaxed);
        self.committed.records.fetch_add(records, Ordering::Relaxed);
    }

    fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Acquire)
    }

    fn set_disk_full(&self, full: bool) {
        let was = {
            // Both at once: committer and volatile writer may find different things.
            let mut engine = self.store.lock();
            engine.set_disk_full(full);
            self.disk_full.swap(full, Ordering::AcqRel)
        };
        if was && !full {
            tracing::info!("the journal has room again: writes are accepted");
        }
        // A full disk is tried again by the committer.
        if full {
            self.store.commit.raise();
        }
    }

    /// Ends the process: the journal has failed, and nothing more may be acknowledged.
    fn die(&self, error: &str) -> ! {
        tracing::error!(
            target: telemetry::FATAL,
            error,
            "the journal has failed; the server ends without answering what was being written, so that nothing unsure is acknowledged"
        );
        // The line is written by now: a fatal one waits for that.
        std::process::exit(1);
    }
}
