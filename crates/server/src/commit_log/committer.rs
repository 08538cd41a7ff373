//! The committer: one thread that takes the sequencer's durable batches to the journal and
//! makes them visible. One write and one fdatasync a batch; while it syncs, the next batch
//! fills. It also syncs what the volatile writer (`volatile`) has written, when that is due.

use super::checkpoint::Checkpoint;
use super::errands::{AtPoint, Errand, Pending};
use super::{CommitLog, MAX_BATCH_BYTES};
use engine::sequencer::{Answers, Batch};
use engine::{Error, Lane};
use journal::{CommitError, CountError, Holder, HolderSet, Journal, Role};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use telemetry::Throttle;

/// After so long without a write the journal notes what is synced.
const IDLE_MARK_AFTER: Duration = Duration::from_secs(5);
/// How often a full disk is tried again.
const ROOM_RETRY: Duration = Duration::from_secs(1);
/// After a checkpoint that failed, the next is not tried sooner: on a full disk each would take
/// the room that the log waits for.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(10);
/// etcd warns of a sync that takes longer.
const SLOW_SYNC: Duration = Duration::from_secs(1);
static SLOW_SYNC_LINE: Throttle = Throttle::new(Duration::from_secs(10));

/// So many files are no reason for a checkpoint, however small they are.
const MANY_SEGMENTS: u64 = 64;

/// How often a stop looks whether the volatile writer has ended.
const STOP_LOOK: Duration = Duration::from_millis(1);

/// The committer's thread.
pub(super) struct Committer {
    log: Arc<CommitLog>,
    journal: Journal,
    volatile: JoinHandle<()>,
    volatile_lane: VolatileLane,
    idle_marked: bool,
    /// Checkpoints wait until the log has grown by this much.
    checkpoint_after_bytes: u64,
    checkpoint_tries: Tries,
}

/// Whether volatile writes may come. While they may, or may have, they give revisions of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolatileLane {
    Off,
    On,
    /// None comes any more, and all are on disk; there was no room to say so in the log.
    Ending,
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
    /// `volatile` is the volatile writer's thread, which ends first.
    pub(super) fn new(
        log: Arc<CommitLog>,
        journal: Journal,
        volatile: JoinHandle<()>,
        volatile_lane: VolatileLane,
    ) -> Self {
        let checkpoint_after_bytes = log.checkpoint_after_bytes(0);
        Committer {
            log,
            journal,
            volatile,
            volatile_lane,
            idle_marked: true,
            checkpoint_after_bytes,
            checkpoint_tries: Tries::default(),
        }
    }

    /// Runs until the server stops; then closes the journal.
    pub(super) fn run(mut self) {
        loop {
            threads::fault_point("committer");
            let stopping = self.log.lifecycle.stopping();
            let batch = {
                let mut engine = self.log.store.lock();
                engine
                    .take_batch(Lane::Durable, MAX_BATCH_BYTES)
                    .map(|b| (b, engine.revision()))
            };
            match batch {
                Some((batch, revision_before)) => self.commit(batch, revision_before),
                None if stopping && self.volatile.is_finished() => break,
                None if stopping => std::thread::sleep(STOP_LOOK),
                None => self.idle(),
            }
            self.upkeep();
            self.run_errands();
            self.start_checkpoint_if_due();
        }
        let mut answers = Answers::new();
        let revision = {
            let mut engine = self.log.store.lock();
            engine.abandon(Error::Stopped, &mut answers);
            engine.revision()
        };
        self.log.store.deliver(&mut answers);
        if let Err(error) = self.journal.close(revision) {
            tracing::error!(%error, "failed to close the journal; the next start replays it as after a crash");
        }
    }

    fn idle(&mut self) {
        let full = self.log.disk_full();
        let mut timeout = if full {
            ROOM_RETRY
        } else if self.idle_marked {
            Duration::from_secs(3600)
        } else {
            IDLE_MARK_AFTER
        };
        if let Some(due) = self.journal.due() {
            timeout = timeout.min(due.saturating_duration_since(Instant::now()));
        }
        let began = Instant::now();
        if self.log.store.commit.wait(timeout) {
            return;
        }
        if full {
            if self.journal.ensure_room().is_ok() {
                self.log.set_disk_full(false);
            }
        } else if !self.idle_marked && began.elapsed() >= IDLE_MARK_AFTER {
            self.idle_marked = true;
            let log = self.log.clone();
            let result = self.journal.mark(|| log.store.lock().revision());
            self.check(result);
        }
    }

    /// Syncs volatile writes that are due, and opens their epoch.
    fn upkeep(&mut self) {
        let log = self.log.clone();
        let result = self.journal.upkeep(|| log.store.lock().revision());
        if let Ok(Some(sync_us)) = result {
            self.observe_sync(Duration::from_micros(sync_us));
            self.idle_marked = false;
        }
        self.check(result);
        if self.volatile_lane == VolatileLane::Ending && !self.log.disk_full() {
            self.close_epoch();
        }
    }

    fn observe_sync(&self, sync: Duration) {
        self.log.metrics.wal_fsync.observe(sync);
        if sync > SLOW_SYNC {
            warn_slow_sync(sync);
        }
    }

    fn run_errands(&mut self) {
        for Pending { errand, done } in self.log.errands.take() {
            match errand {
                Errand::AllowVolatile => {
                    self.volatile_lane = VolatileLane::On;
                    self.journal.allow_volatile();
                }
                Errand::Sync => {
                    let result = self.journal.sync();
                    self.check(result);
                }
                Errand::EndVolatile => self.close_epoch(),
                Errand::Follow { limit_bytes, to } => {
                    let (follower, ()) = self.journal.follow(limit_bytes, || ());
                    let _ = to.send(follower);
                }
                Errand::Point(to) => self.tell_point(&to),
                Errand::Hold(to) => {
                    let hold = self.journal.hold();
                    if let Ok(hold) = &hold {
                        let _ = to.send(hold.clone());
                    }
                    self.check(hold);
                }
                Errand::Count { holders, to } => {
                    // Who asked may have gone.
                    let _ = to.send(self.count(holders));
                }
                Errand::HoldNoMore => {
                    let ended = self.journal.hold_no_more();
                    self.check_note(ended);
                }
                Errand::Replaced => self.replaced(),
            }
            // Who asked may have gone.
            let _ = done.send(());
        }
    }

    fn count(&mut self, holders: Vec<Holder>) -> Option<HolderSet> {
        let log = self.log.clone();
        let revision = || log.store.lock().revision();
        let counted = self.journal.count(holders, revision);
        self.check_note(counted).flatten()
    }

    /// What came of a call that notes holders in the directory. Without the note nobody counts,
    /// which loses nothing.
    fn check_note<T>(&self, result: Result<T, CountError>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(CountError::Commit(error)) => self.check::<()>(Err(error)),
            Err(CountError::Note(error)) => {
                tracing::error!(%error, "cannot note which shards hold the newest writes: these wait for the disk");
            }
        }
        None
    }

    /// Between commits nothing is in the log and not visible, but for what the volatile lane has
    /// on its way, which the journal keeps out meanwhile.
    fn tell_point(&self, to: &Sender<AtPoint>) {
        let store = &self.log.store;
        let at = self.journal.point(|| store.lock().snapshot_open());
        if let Some((point, (cursor, head))) = at {
            // Who asked may have gone.
            let _ = to.send(AtPoint {
                point,
                cursor,
                head,
            });
        }
    }

    fn replaced(&mut self) {
        let term = self.journal.identity().raft_term;
        if let Err(error) = self.journal.set_identity(term, Role::Replaced) {
            tracing::error!(%error, "cannot note in the data directory that this server was replaced: see to it that nothing starts it again");
        }
        tracing::error!(
            target: telemetry::FATAL,
            "a follower has seen a server of a later term: this one was replaced by it, and must not take writes beside it; the server ends, and nothing starts from its directory any more"
        );
        std::process::exit(1);
    }

    fn close_epoch(&mut self) {
        let log = self.log.clone();
        let result = self.journal.close_epoch(|| log.store.lock().revision());
        self.volatile_lane = match result {
            Ok(()) => VolatileLane::Off,
            Err(_) => VolatileLane::Ending,
        };
        self.check(result);
    }

    fn commit(&mut self, batch: Batch, revision_before: i64) {
        let started = Instant::now();
        let log = self.log.clone();
        let (m, store) = (&log.metrics, &log.store);
        let mut answers = Answers::new();
        let lane = self.volatile_lane;
        let revision = || match lane {
            VolatileLane::Off => revision_before,
            VolatileLane::On | VolatileLane::Ending => store.lock().revision(),
        };
        let make_visible = || log.make_visible(batch.ticket, &mut answers);
        let result = self.journal.commit(&batch.records, revision, make_visible);
        m.commit_batch_size
            .observe_value(batch.records.len() as f64);
        match result {
            Ok((info, released)) => {
                store.admit_ready(log.answer(&released, &mut answers));
                m.backend_commit.observe(started.elapsed());
                self.idle_marked = false;
                let records = batch.records.len() as u64;
                log.committed(info.position.lsn(), records);
                store.storage.synced(batch.tags);
                self.observe_sync(Duration::from_micros(info.sync_us));
                m.wal_write.observe(Duration::from_micros(info.write_us));
                m.wal_write_bytes.add(info.bytes);
                m.writes.durable.add(records);
                m.write_bytes.durable.add(info.bytes);
                log.report(&released, batch.records.len());
            }
            Err(error) => {
                store.admit_ready(log.refuse(&batch, &error));
            }
        }
    }

    fn check<T>(&self, result: Result<T, CommitError>) {
        match result {
            Ok(_) => {}
            Err(error) if error.is_no_room() => self.log.set_disk_full(true),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &CommitError) {
        if matches!(error, CommitError::Poisoned { .. }) {
            self.log.die(&error.to_string());
        }
    }

    fn start_checkpoint_if_due(&mut self) {
        let since = self.journal.bytes_since_snapshot();
        let due = since >= self.checkpoint_after_bytes
            || too_many_segments(self.journal.segments(), since, self.log.segment_bytes);
        let due = self
            .checkpoint_tries
            .now(due, Instant::now(), CHECKPOINT_RETRY);
        let (sizes, log) = (&self.log.sizes, self.journal.log_bytes());
        sizes.log_bytes.store(log, Ordering::Relaxed);
        sizes.since_checkpoint_bytes.store(since, Ordering::Relaxed);
        let rounds = &self.log.rounds;
        if !(due || rounds.wanted()) || !rounds.begin() {
            return;
        }
        // Between commits, and while the journal keeps volatile writes out, everything admitted
        // is visible or not yet in the log: what is visible is what the log holds up to there.
        let store = self.log.store.clone();
        let open = || store.lock().snapshot_open();
        let (at, (cursor, head)) = match self.journal.snapshot_position(open) {
            Ok(opened) => opened,
            Err(error) => {
                self.log.checkpoint_ended(Err(error.to_string()));
                return self.failed(&error);
            }
        };
        let checkpoint = Checkpoint { at, cursor, head };
        let data = self.log.store.lock().sizes().total_bytes as u64;
        self.checkpoint_after_bytes = self.log.checkpoint_after_bytes(data);
        self.log.spawn_checkpoint(checkpoint);
    }
}

/// Whether the log is in many small files: each start after which something is written adds one.
fn too_many_segments(segments: usize, since_snapshot_bytes: u64, segment_bytes: u64) -> bool {
    let full = since_snapshot_bytes / segment_bytes.max(1);
    segments as u64 > MANY_SEGMENTS.max(4 * full)
}

fn warn_slow_sync(took: Duration) {
    if let Some(suppressed) = SLOW_SYNC_LINE.allow() {
        tracing::warn!(
            took = %telemetry::GoDuration(took),
            "expected-duration" = "1s",
            suppressed,
            "slow fdatasync"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_segments_are_a_reason_for_a_checkpoint_and_many_full_ones_are_none() {
        let segment = 64 << 20;
        assert!(!too_many_segments(64, 1 << 20, segment));
        assert!(too_many_segments(65, 1 << 20, segment));
        // A large store's log, between two snapshots.
        assert!(!too_many_segments(200, 199 * segment, segment));
        assert!(too_many_segments(801, 199 * segment, segment));
    }

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
