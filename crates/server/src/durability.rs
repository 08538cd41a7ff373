//! The committer: one thread that takes the sequencer's batches to the journal and makes
//! them visible. One write and one fdatasync a batch; while it syncs, the next batch fills.

use crate::shared::Shared;
use engine::Error;
use engine::record::SnapshotMeta;
use engine::sequencer::{Answers, Batch};
use engine::snapshot::SnapshotCursor;
use journal::{CommitError, Journal, Position};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A batch holds at most about so many bytes, so that one commit cannot take for ever.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// After so long without a write the journal notes what is synced.
const IDLE_MARK_AFTER: Duration = Duration::from_secs(5);
/// How often a full disk is tried again.
const ROOM_RETRY: Duration = Duration::from_secs(1);
/// After a snapshot of the journal that failed, the next is not tried sooner: on a full disk
/// each would take the room that the log waits for.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(10);
/// etcd warns of a sync that takes longer.
const SLOW_SYNC: Duration = Duration::from_secs(1);

/// A flag that threads raise and the committer waits for.
#[derive(Default)]
pub(crate) struct Signal {
    raised: AtomicBool,
    sleeping: Mutex<bool>,
    wake: Condvar,
}

impl Signal {
    /// Raises the flag; costs a swap while the committer is busy.
    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) && *self.sleeping.lock() {
            self.wake.notify_one();
        }
    }

    /// Takes the flag down, waiting for it at most `timeout`. True if it was raised.
    fn wait(&self, timeout: Duration) -> bool {
        if self.raised.swap(false, Ordering::AcqRel) {
            return true;
        }
        let deadline = Instant::now() + timeout;
        let mut sleeping = self.sleeping.lock();
        *sleeping = true;
        let mut raised = self.raised.swap(false, Ordering::AcqRel);
        while !raised && !self.wake.wait_until(&mut sleeping, deadline).timed_out() {
            raised = self.raised.swap(false, Ordering::AcqRel);
        }
        *sleeping = false;
        raised || self.raised.swap(false, Ordering::AcqRel)
    }
}

/// What a snapshot thread works on.
pub(crate) struct SnapshotJob {
    pub(crate) at: Position,
    pub(crate) cursor: SnapshotCursor,
    pub(crate) head: Vec<engine::record::SnapshotItem>,
    pub(crate) pin: crate::store::Pin,
}

impl SnapshotJob {
    pub(crate) fn meta(&self) -> SnapshotMeta {
        self.cursor.meta
    }
}

/// The committer's thread.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    journal: Journal,
    disk_full: bool,
    idle_marked: bool,
    /// Snapshots wait until the log has grown by this much.
    snapshot_after_bytes: u64,
    snapshot_tries: Tries,
}

/// When something that is due was last tried in vain.
#[derive(Debug, Default)]
struct Tries {
    last: Option<Instant>,
}

impl Tries {
    /// Whether to try now: at once when it has become due, later only now and then.
    fn now(&mut self, due: bool, now: Instant, pause: Duration) -> bool {
        let try_now = due
            && self
                .last
                .is_none_or(|last| now.saturating_duration_since(last) >= pause);
        if try_now {
            self.last = Some(now);
        } else if !due {
            self.last = None;
        }
        try_now
    }
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, journal: Journal, disk_full: bool) -> Self {
        let snapshot_after_bytes = shared.snapshot_after_bytes(0);
        Committer {
            shared,
            journal,
            disk_full,
            idle_marked: true,
            snapshot_after_bytes,
            snapshot_tries: Tries::default(),
        }
    }

    /// Runs until the server stops; then closes the journal.
    pub(crate) fn run(mut self) {
        loop {
            let stopping = self.shared.stopping();
            let batch = {
                let mut engine = self.shared.store.lock();
                engine
                    .take_batch(0, MAX_BATCH_BYTES)
                    .map(|b| (b, engine.revision()))
            };
            match batch {
                Some((batch, revision_before)) => self.commit(batch, revision_before),
                None if stopping => break,
                None => self.idle(),
            }
            self.start_snapshot_if_due();
        }
        let mut answers = Answers::new();
        let revision = {
            let mut engine = self.shared.store.lock();
            engine.abandon(Error::Stopped, &mut answers);
            engine.revision()
        };
        self.shared.store.deliver(&mut answers);
        if let Err(error) = self.journal.close(revision) {
            tracing::error!(%error, "failed to close the journal; the next start replays it as after a crash");
        }
    }

    fn idle(&mut self) {
        let timeout = if self.disk_full {
            ROOM_RETRY
        } else if self.idle_marked {
            Duration::from_secs(3600)
        } else {
            IDLE_MARK_AFTER
        };
        if self.shared.store.commit.wait(timeout) {
            return;
        }
        if self.disk_full {
            if self.journal.ensure_room().is_ok() {
                self.set_disk_full(false);
            }
        } else if !self.idle_marked {
            self.idle_marked = true;
            let revision = self.shared.store.lock().revision();
            if let Err(error) = self.journal.mark(revision) {
                self.failed(&error);
            }
        }
    }

    fn commit(&mut self, batch: Batch, revision_before: i64) {
        let started = Instant::now();
        let result = self.journal.commit(&batch.records, revision_before);
        let shared = self.shared.clone();
        let m = &shared.metrics;
        m.commit_batch_size
            .observe_value(batch.records.len() as f64);
        let mut answers = Answers::new();
        let now_ms = self.shared.store.now_ms();
        match result {
            Ok(info) => {
                self.idle_marked = false;
                self.shared
                    .committed(info.position.lsn(), batch.records.len() as u64);
                let sync = Duration::from_micros(info.sync_us);
                m.wal_fsync.observe(sync);
                m.wal_write.observe(Duration::from_micros(info.write_us));
                m.wal_write_bytes.add(info.bytes);
                if sync > SLOW_SYNC {
                    self.shared.warn_slow_sync(sync);
                }
                if self.disk_full {
                    self.set_disk_full(false);
                }
                let applying = Instant::now();
                let quota_changed = {
                    let mut engine = self.shared.store.lock();
                    engine.complete(batch.ticket, now_ms, &mut answers);
                    engine.check_quota()
                };
                let apply = applying.elapsed();
                self.shared.store.deliver(&mut answers);
                m.backend_commit.observe(started.elapsed());
                if quota_changed {
                    self.shared.log_quota();
                }
                if apply > self.shared.warning_apply {
                    self.shared.warn_slow_apply(apply, batch.records.len());
                }
            }
            Err(error) => {
                m.proposals_failed.add(batch.records.len() as u64);
                let answer = match &error {
                    CommitError::NoSpace { .. } => Error::NoSpace,
                    CommitError::TooLarge { .. } => Error::TooManyRequests,
                    CommitError::Poisoned { .. } => Error::Stopped,
                };
                if matches!(error, CommitError::NoSpace { .. }) && !self.disk_full {
                    tracing::error!(%error, "the journal has no room: writes are refused with NOSPACE until there is");
                    self.set_disk_full(true);
                }
                // With a failed sync nothing may be answered: whether the writes are on the
                // disk is unknown. The process ends with them unanswered.
                if !matches!(error, CommitError::Poisoned { .. }) {
                    self.shared
                        .store
                        .lock()
                        .fail(batch.ticket, answer, &mut answers);
                    self.shared.store.deliver(&mut answers);
                }
                self.failed(&error);
            }
        }
    }

    fn set_disk_full(&mut self, full: bool) {
        self.disk_full = full;
        self.shared.store.lock().set_disk_full(full);
        if !full {
            tracing::info!("the journal has room again: writes are accepted");
        }
    }

    fn failed(&self, error: &CommitError) {
        if matches!(error, CommitError::Poisoned { .. }) {
            self.shared.die(&error.to_string());
        }
    }

    fn start_snapshot_if_due(&mut self) {
        let due = self.journal.bytes_since_snapshot() >= self.snapshot_after_bytes;
        let due = self.snapshot_tries.now(due, Instant::now(), SNAPSHOT_RETRY);
        self.shared.journal_sizes(
            self.journal.log_bytes(),
            self.journal.bytes_since_snapshot(),
        );
        let turns = &self.shared.journal_snapshots;
        if !(due || turns.wanted()) || !turns.begin() {
            return;
        }
        let at = match self.journal.snapshot_position() {
            Ok(at) => at,
            Err(error) => {
                self.shared.snapshot_end(Err(error.to_string()));
                return self.failed(&error);
            }
        };
        let job = {
            // Between commits everything admitted is visible or not yet in the log, so what is
            // visible now is exactly what the log holds up to `at`.
            let mut engine = self.shared.store.lock();
            let (cursor, head) = engine.snapshot_open();
            let pin = crate::store::Pin::new(&self.shared.store, &mut engine, cursor.pin());
            SnapshotJob {
                at,
                cursor,
                head,
                pin,
            }
        };
        let data = self.shared.store.lock().sizes().total_bytes as u64;
        self.snapshot_after_bytes = self.shared.snapshot_after_bytes(data);
        self.shared.spawn_snapshot(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_not_tried_again_at_once() {
        let (start, pause) = (Instant::now(), Duration::from_secs(10));
        let at = |s| start + Duration::from_secs(s);
        let mut tries = Tries::default();
        assert!(!tries.now(false, at(0), pause));
        assert!(tries.now(true, at(1), pause));
        assert!(!tries.now(true, at(2), pause));
        assert!(!tries.now(true, at(10), pause));
        assert!(tries.now(true, at(11), pause));
        assert!(!tries.now(true, at(12), pause));
        // It succeeded: the next one is due when it is due.
        assert!(!tries.now(false, at(13), pause));
        assert!(tries.now(true, at(14), pause));
    }
}
