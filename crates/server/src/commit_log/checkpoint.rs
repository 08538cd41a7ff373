//! Checkpoints: snapshots of the journal, so that replay stays short and old segments go.

use super::CommitLog;
use crate::store::SLICE_KEYS;
use engine::record::SnapshotItem;
use engine::snapshot::SnapshotCursor;
use journal::{Position, SnapshotError, SnapshotInfo, SnapshotWriter};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use threads::{Pace, Panicked};

/// The log grows by at least this much between checkpoints, in bytes.
const MIN_BYTES: u64 = 256 << 20;
/// And by at least so many segments.
pub(super) const MIN_SEGMENTS: u64 = 4;

/// What a checkpoint's thread works on: the state at a place of the log.
pub(super) struct Checkpoint {
    pub(super) at: Position,
    pub(super) cursor: SnapshotCursor,
    pub(super) head: Vec<SnapshotItem>,
}

/// A checkpoint that was asked for, and has not begun before.
pub(crate) struct AskedCheckpoint {
    log: Arc<CommitLog>,
    number: u64,
}

impl AskedCheckpoint {
    /// What came of it, once it has ended.
    pub(crate) fn result(&self) -> Option<Result<(), String>> {
        self.log.rounds.result(self.number)
    }
}

impl CommitLog {
    /// Asks for a checkpoint that begins from now on.
    pub(crate) fn checkpoint(self: &Arc<Self>) -> AskedCheckpoint {
        let number = self.rounds.want();
        self.store.commit.raise();
        AskedCheckpoint {
            log: self.clone(),
            number,
        }
    }

    /// How much the log grows before the next checkpoint: as much as the data, so that no byte
    /// is written more than about twice for it.
    pub(super) fn checkpoint_after_bytes(&self, data_bytes: u64) -> u64 {
        MIN_BYTES
            .max(MIN_SEGMENTS * self.segment_bytes)
            .max(data_bytes)
    }

    /// Starts the thread of a checkpoint that has begun.
    pub(super) fn spawn_checkpoint(self: &Arc<Self>, checkpoint: Checkpoint) {
        let (of_work, at_end) = (self.clone(), self.clone());
        let work = move || of_work.save(checkpoint);
        let ended = move |result: Result<(), Panicked>| {
            if let Err(error) = result {
                at_end.checkpoint_failed(&error);
            }
        };
        match threads::spawn_job("snapshot", work, ended) {
            Ok(thread) => self.lifecycle.keep(thread),
            Err(error) => self.checkpoint_failed(&error),
        }
    }

    fn save(self: &Arc<Self>, checkpoint: Checkpoint) {
        threads::fault_point("snapshot");
        let started = Instant::now();
        let at = checkpoint.at;
        match self.write(checkpoint) {
            Ok(None) => self.checkpoint_ended(Err("the server stops".into())),
            Ok(Some(info)) => {
                let took = started.elapsed();
                if let Err(error) = self.allocator.retire(at) {
                    tracing::warn!(%error, "cannot remove old journal segments; they take space until the next snapshot");
                }
                tracing::info!(
                    bytes = info.bytes,
                    items = info.items,
                    took = %telemetry::GoDuration(took),
                    path = %info.path.display(),
                    "saved a snapshot of the journal"
                );
                self.checkpoint_ended(Ok(took));
            }
            Err(error) => self.checkpoint_failed(&error),
        }
    }

    /// `None` if the server stops meanwhile: it does not wait for gigabytes to be written.
    fn write(&self, mut checkpoint: Checkpoint) -> Result<Option<SnapshotInfo>, SnapshotError> {
        let (files, at) = (self.files.clone(), checkpoint.at);
        let meta = checkpoint.cursor.meta;
        let mut out = SnapshotWriter::create(files, &self.data_dir, meta, at)?;
        for item in &checkpoint.head {
            out.push(item)?;
        }
        let mut keys = Vec::new();
        let mut pace = Pace::start();
        loop {
            if self.lifecycle.stopping() {
                return Ok(None);
            }
            let done =
                self.store
                    .lock()
                    .snapshot_step(&mut checkpoint.cursor, SLICE_KEYS, &mut keys);
            for k in keys.drain(..) {
                out.push(&k.into_item())?;
            }
            if done {
                break;
            }
            pace.rest();
        }
        drop(checkpoint.cursor);
        out.finish().map(Some)
    }

    fn checkpoint_failed(&self, error: &dyn std::error::Error) {
        tracing::warn!(%error, "failed to save a snapshot of the journal; the log is kept and it is tried again later");
        self.checkpoint_ended(Err(error.to_string()));
    }

    /// Ends a checkpoint, with what it took, or why there is none.
    pub(super) fn checkpoint_ended(&self, result: Result<Duration, String>) {
        if let Ok(took) = &result {
            self.last_checkpoint_unix_ms
                .store(crate::shared::unix_ms(), Ordering::Relaxed);
            self.metrics.journal_snapshot.observe(*took);
            self.metrics.snap_save.observe(*took);
        }
        if self.rounds.end(result.map(drop)) {
            self.store.commit.raise();
        }
    }
}
