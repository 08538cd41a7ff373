//! The committer: one thread that takes the sequencer's durable batches to the journal and
//! makes them visible. One write and one fdatasync a batch; while it syncs, the next batch
//! fills. It also syncs what the volatile writer (`volatile`) has written, when that is due.

use crate::shared::Shared;
use crate::store::{Open, Waiter};
use crate::switch::{Order, Request};
use engine::record::SnapshotMeta;
use engine::sequencer::{Answers, Batch};
use engine::snapshot::SnapshotCursor;
use engine::{Error, Lane};
use journal::{CommitError, Journal, Position};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A batch holds at most about so many bytes, so that one commit cannot take for ever.
pub(crate) const MAX_BATCH_BYTES: usize = 8 << 20;
/// After so long without a write the journal notes what is synced.
const IDLE_MARK_AFTER: Duration = Duration::from_secs(5);
/// How often a full disk is tried again.
const ROOM_RETRY: Duration = Duration::from_secs(1);
/// After a snapshot of the journal that failed, the next is not tried sooner: on a full disk
/// each would take the room that the log waits for.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(10);
/// etcd warns of a sync that takes longer.
const SLOW_SYNC: Duration = Duration::from_secs(1);

/// How often a stop looks whether the volatile writer has ended.
const STOP_LOOK: Duration = Duration::from_millis(1);

/// A flag that threads raise and one thread waits for.
#[derive(Default)]
pub(crate) struct Signal {
    raised: AtomicBool,
    sleeping: Mutex<bool>,
    wake: Condvar,
}

impl Signal {
    /// Raises the flag; costs a swap while the thread is busy.
    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) && *self.sleeping.lock() {
            self.wake.notify_one();
        }
    }

    /// Takes the flag down, waiting for it at most `timeout`. True if it was raised.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
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
    volatile: JoinHandle<()>,
    /// Volatile writes may come, and give revisions of their own.
    two_lanes: bool,
    /// The epoch is to be closed, and there was no room for it.
    close_wanted: bool,
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
    /// `volatile` is the volatile writer's thread, which ends first.
    pub(crate) fn new(shared: Arc<Shared>, journal: Journal, volatile: JoinHandle<()>) -> Self {
        let snapshot_after_bytes = shared.snapshot_after_bytes(0);
        let two_lanes = !shared.store.storage.is_strict();
        Committer {
            shared,
            journal,
            volatile,
            two_lanes,
            close_wanted: false,
            idle_marked: true,
            snapshot_after_bytes,
            snapshot_tries: Tries::default(),
        }
    }

    /// Runs until the server stops; then closes the journal.
    pub(crate) fn run(mut self) {
        loop {
            threads::fault_point("committer");
            let stopping = self.shared.stopping();
            let batch = {
                let mut engine = self.shared.store.lock();
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
            self.take_orders();
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
        let full = self.shared.disk_full();
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
        if self.shared.store.commit.wait(timeout) {
            return;
        }
        if full {
            if self.journal.ensure_room().is_ok() {
                self.shared.set_disk_full(false);
            }
        } else if !self.idle_marked && began.elapsed() >= IDLE_MARK_AFTER {
            self.idle_marked = true;
            let shared = self.shared.clone();
            let result = self.journal.mark(|| shared.store.lock().revision());
            self.check(result);
        }
    }

    /// Syncs volatile writes that are due, and opens their epoch.
    fn upkeep(&mut self) {
        let shared = self.shared.clone();
        let result = self.journal.upkeep(|| shared.store.lock().revision());
        if let Ok(Some(sync_us)) = result {
            self.observe_sync(Duration::from_micros(sync_us));
            self.idle_marked = false;
        }
        self.check(result);
        if self.close_wanted && !self.shared.disk_full() {
            self.close_epoch();
        }
    }

    fn observe_sync(&self, sync: Duration) {
        self.shared.metrics.wal_fsync.observe(sync);
        if sync > SLOW_SYNC {
            self.shared.warn_slow_sync(sync);
        }
    }

    fn take_orders(&mut self) {
        for Request { order, done } in self.shared.orders() {
            match order {
                Order::Allow => {
                    self.close_wanted = false;
                    self.two_lanes = true;
                    self.journal.allow_volatile();
                }
                Order::Sync => {
                    let result = self.journal.sync();
                    self.check(result);
                }
                Order::Close => {
                    self.close_wanted = true;
                    self.close_epoch();
                }
            }
            // Who asked may have gone.
            let _ = done.send(());
        }
    }

    fn close_epoch(&mut self) {
        let shared = self.shared.clone();
        let result = self.journal.close_epoch(|| shared.store.lock().revision());
        if result.is_ok() {
            self.close_wanted = false;
            self.two_lanes = false;
        }
        self.check(result);
    }

    fn commit(&mut self, batch: Batch, revision_before: i64) {
        let started = Instant::now();
        let shared = self.shared.clone();
        let (m, store) = (&shared.metrics, &shared.store);
        let mut answers = Answers::new();
        let two_lanes = self.two_lanes;
        let revision = || match two_lanes {
            true => store.lock().revision(),
            false => revision_before,
        };
        let publish = || publish(&shared, batch.ticket, &mut answers);
        let result = self.journal.commit(&batch.records, revision, publish);
        m.commit_batch_size
            .observe_value(batch.records.len() as f64);
        match result {
            Ok((info, published)) => {
                store.deliver(&mut answers);
                store.raise(published.open);
                store.admit_ready(published.open);
                m.backend_commit.observe(started.elapsed());
                self.idle_marked = false;
                let records = batch.records.len() as u64;
                shared.committed(info.position.lsn(), records);
                store.storage.synced(batch.tags);
                self.observe_sync(Duration::from_micros(info.sync_us));
                m.wal_write.observe(Duration::from_micros(info.write_us));
                m.wal_write_bytes.add(info.bytes);
                m.writes.durable.add(records);
                m.write_bytes.durable.add(info.bytes);
                published.report(&shared, batch.records.len());
            }
            Err(error) => {
                let open = refuse(&shared, &batch, &error);
                store.admit_ready(open);
            }
        }
    }

    fn check<T>(&self, result: Result<T, CommitError>) {
        match result {
            Ok(_) => {}
            Err(error) if error.is_no_room() => self.shared.set_disk_full(true),
            Err(error) => self.failed(&error),
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
        // Between commits, and while the journal keeps volatile writes out, everything admitted
        // is visible or not yet in the log: what is visible is what the log holds up to there.
        let store = self.shared.store.clone();
        let open = || store.lock().snapshot_open();
        let (at, (cursor, head)) = match self.journal.snapshot_position(open) {
            Ok(opened) => opened,
            Err(error) => {
                self.shared.snapshot_end(Err(error.to_string()));
                return self.failed(&error);
            }
        };
        let job = SnapshotJob { at, cursor, head };
        let data = self.shared.store.lock().sizes().total_bytes as u64;
        self.snapshot_after_bytes = self.shared.snapshot_after_bytes(data);
        self.shared.spawn_snapshot(job);
    }
}

/// What making a batch visible brought.
pub(crate) struct Published {
    pub(crate) open: Open,
    quota_changed: bool,
    took: Duration,
}

/// Makes a batch visible. The journal calls this while it keeps the other lane out.
pub(crate) fn publish(shared: &Shared, ticket: u64, answers: &mut Answers<Waiter>) -> Published {
    let began = Instant::now();
    let now_ms = shared.store.now_ms();
    let mut engine = shared.store.lock();
    threads::fault_point("publish");
    if shared.disk_full() {
        // There was room for it: what waited for it need not be refused.
        engine.set_disk_full(false);
    }
    if let Err(error) = engine.complete(ticket, now_ms, answers) {
        shared.die(&error.to_string());
    }
    Published {
        quota_changed: engine.check_quota(),
        open: Open::of(&engine),
        took: began.elapsed(),
    }
}

impl Published {
    /// Says what an operator should know.
    pub(crate) fn report(&self, shared: &Shared, records: usize) {
        if shared.disk_full() {
            shared.set_disk_full(false);
        }
        if self.quota_changed {
            shared.log_quota();
        }
        if self.took > shared.warning_apply {
            shared.warn_slow_apply(self.took, records);
        }
    }
}

/// Answers a batch that the journal did not take. After a failed sync nothing may be answered,
/// since whether the writes are on the disk is unknown: the process ends.
pub(crate) fn refuse(shared: &Shared, batch: &Batch, error: &CommitError) -> Open {
    shared
        .metrics
        .proposals_failed
        .add(batch.records.len() as u64);
    let answer = match error {
        CommitError::NoSpace { .. } | CommitError::NoSegment { .. } => Error::NoSpace,
        // The engine admits no write of which that could be said.
        CommitError::TooLarge { .. } => Error::TooLarge,
        CommitError::Strict | CommitError::Closed => Error::Stopped,
        CommitError::Poisoned { .. } => shared.die(&error.to_string()),
    };
    if error.is_no_room() && !shared.disk_full() {
        tracing::error!(%error, "the journal has no room: writes are refused with NOSPACE until there is");
        shared.set_disk_full(true);
    }
    let mut answers = Answers::new();
    let open = {
        let mut engine = shared.store.lock();
        if let Err(error) = engine.fail(batch.ticket, answer, &mut answers) {
            shared.die(&error.to_string());
        }
        Open::of(&engine)
    };
    shared.store.deliver(&mut answers);
    shared.store.raise(open);
    open
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
