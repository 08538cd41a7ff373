//! Volatile records: visible when they are in the log's file, on disk a little later.

use crate::Lsn;
use crate::end::{self, Content, End, RENEW_BELOW};
use crate::error::CommitError;
use crate::frame::{FLAG_PLACED, FLAG_VOLATILE};
use crate::log::Log;
use engine::record::Record;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The shortest and longest time that records may be promised to be on disk within.
const WITHIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(30));
/// A waiting writer looks again after so long, whatever it was told.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A [`Turn`] is for so many revisions at most.
const TURN_REVISIONS: i64 = 100_000;
/// What the segment in use has to have left for a [`Turn`] if there is no other.
const TURN_ROOM_BYTES: u64 = 128 << 10;

/// What a volatile write did and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolatileInfo {
    /// Its frame.
    pub lsn: Lsn,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Time in the writes of the frame and the marker, in microseconds.
    pub write_us: u64,
    /// Time that it was held back, in microseconds: for an epoch, or by an overdue sync.
    pub waited_us: u64,
}

/// What a power loss would take now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolatileStatus {
    /// An epoch is open: after a power loss revisions go on above this, and watchers relist.
    pub epoch_bound: Option<i64>,
    /// Volatile frames that are not on disk.
    pub unsynced_frames: u64,
    /// Their bytes.
    pub unsynced_bytes: u64,
    /// When the oldest of them was written.
    pub oldest_unsynced: Option<Instant>,
    /// The marker in memory. Without one, a start after a killed process is as one after a
    /// power loss: nothing is missing, but watchers relist.
    pub marker: Option<PathBuf>,
}

impl VolatileStatus {
    pub(crate) fn of(log: &Log) -> Self {
        let end = log.end();
        let (unsynced_frames, unsynced_bytes, oldest_unsynced) = end.unsynced.totals();
        VolatileStatus {
            epoch_bound: end.epochs.open.map(|epoch| epoch.bound),
            unsynced_frames,
            unsynced_bytes,
            oldest_unsynced,
            marker: end.marker.as_ref().map(|m| m.path.clone()),
        }
    }
}

/// Writes volatile records into a journal's log. It never syncs.
#[derive(Clone)]
pub struct VolatileWriter {
    pub(crate) log: Arc<Log>,
}

impl VolatileWriter {
    /// Puts records into the log's file, all or none, and calls `publish` to make them
    /// visible. A process that is killed then loses none of them; a power loss takes at most
    /// those whose time `sync_within` (1 ms to 30 s) is not yet over. `revision` is the
    /// store's. Both closures are called while the log's end is locked.
    ///
    /// It waits only until the journal's thread has opened or renewed the epoch, and while
    /// the disk is late: when records are not synced that were to be, nothing more is promised.
    ///
    /// # Errors
    /// [`CommitError::NoSpace`], [`CommitError::TooLarge`], [`CommitError::Strict`] and
    /// [`CommitError::Closed`]: nothing was written. [`CommitError::Poisoned`]: as for
    /// [`Journal::commit`](crate::Journal::commit).
    pub fn write<T>(
        &self,
        records: &[Record],
        sync_within: Duration,
        revision: impl Fn() -> i64,
        publish: impl FnOnce() -> T,
    ) -> Result<(VolatileInfo, T), CommitError> {
        end::check_size(records)?;
        let taken = end::revisions(records);
        let began = Instant::now();
        let log = &*self.log;
        let mut end = log.end();
        let refusals = end.epochs.refusals;
        let mut waited = false;
        let revision_before = loop {
            if let Some(error) = log.shared.poison() {
                return Err(error);
            }
            if end.closed {
                return Err(CommitError::Closed);
            }
            if !end.epochs.accepting {
                return Err(CommitError::Strict);
            }
            let before = revision();
            if may_go(log, &mut end, before + taken) {
                break before;
            }
            if waited && end.epochs.refusals != refusals {
                return Err(CommitError::NoSpace {
                    path: log.shared.layout.log.clone(),
                });
            }
            drop(end);
            log.wake();
            end = log.end();
            if waited || !may_go(log, &mut end, before + taken) {
                end = log
                    .changed
                    .wait_timeout(end, LOOK_AGAIN)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            waited = true;
        };
        let waited_us = if waited { end::micros(began) } else { 0 };
        let turn = Turn {
            log,
            end,
            revision_before,
        };
        let (info, published) = turn.put(records, taken, sync_within, publish)?;
        Ok((VolatileInfo { waited_us, ..info }, published))
    }

    /// The log's end, if a write would go there now without waiting for another writer, an epoch,
    /// an overdue sync, or a segment that is still to be made; for a thread that may not wait.
    /// `revision` is the store's.
    ///
    /// Nobody else writes or makes anything visible until the turn is used or dropped: that has
    /// to be soon.
    pub fn turn(&self, revision: impl Fn() -> i64) -> Option<Turn<'_>> {
        let log = &*self.log;
        let mut end = log.try_end()?;
        if refuses(log, &end) {
            return None;
        }
        let revision_before = revision();
        if !may_go(log, &mut end, revision_before + TURN_REVISIONS) {
            drop(end);
            log.wake();
            return None;
        }
        // Without fsync, going on to the next segment syncs this one.
        let goes_on = !log.no_fsync && log.shared.has_ready();
        (goes_on || end.room_bytes() >= TURN_ROOM_BYTES).then_some(Turn {
            log,
            end,
            revision_before,
        })
    }

    /// Whether a write of these records would wait. For tests.
    #[doc(hidden)]
    pub fn would_wait(&self, records: &[Record], revision: i64) -> bool {
        let Some(mut end) = self.log.try_end() else {
            return true;
        };
        !refuses(&self.log, &end)
            && !may_go(&self.log, &mut end, revision + end::revisions(records))
    }

    /// What a power loss would take now.
    pub fn status(&self) -> VolatileStatus {
        VolatileStatus::of(&self.log)
    }
}

/// The log's end, and leave to write there.
pub struct Turn<'a> {
    log: &'a Log,
    end: MutexGuard<'a, End>,
    revision_before: i64,
}

impl Turn<'_> {
    /// Puts records into the log's file and makes them visible, as [`VolatileWriter::write`]
    /// does. They take 100,000 revisions at most, and should not take more than some 100 KiB.
    ///
    /// # Errors
    /// As [`VolatileWriter::write`].
    pub fn write<T>(
        self,
        records: &[Record],
        sync_within: Duration,
        publish: impl FnOnce() -> T,
    ) -> Result<(VolatileInfo, T), CommitError> {
        end::check_size(records)?;
        self.put(records, end::revisions(records), sync_within, publish)
    }

    /// The same for records that fit into a frame and take `taken` revisions.
    fn put<T>(
        self,
        records: &[Record],
        taken: i64,
        sync_within: Duration,
        publish: impl FnOnce() -> T,
    ) -> Result<(VolatileInfo, T), CommitError> {
        let Turn {
            log,
            mut end,
            revision_before,
        } = self;
        let written = end.append(Content {
            records,
            revision_before,
            flags: FLAG_PLACED | FLAG_VOLATILE,
            ..Content::default()
        })?;
        let marking = Instant::now();
        end.mark_reached()?;
        let write_us = written.write_us + end::micros(marking);
        let within = sync_within.clamp(WITHIN.0, WITHIN.1);
        // Without fsync nothing is promised.
        let mut wake = !log.no_fsync && end.unsynced.add(written.bytes, marking, within);
        end.show(revision_before, taken);
        let published = publish();
        // In good time, so that nobody has to wait for it.
        let epochs = &mut end.epochs;
        let left = epochs.reserved - revision_before - taken;
        if left < RENEW_BELOW && !epochs.wanted && epochs.noted_in == 0 && log.guards.epoch {
            epochs.wanted = true;
            wake = true;
        }
        drop(end);
        if wake {
            log.wake();
        }
        let info = VolatileInfo {
            lsn: written.position.lsn,
            bytes: written.bytes,
            write_us,
            waited_us: 0,
        };
        Ok((info, published))
    }
}

/// Whether a volatile write would fail.
fn refuses(log: &Log, end: &End) -> bool {
    end.closed || !end.epochs.accepting || log.shared.poison().is_some()
}

/// Whether a volatile write may show `revision` now. If an epoch is in the way, asks for one.
fn may_go(log: &Log, end: &mut End, revision: i64) -> bool {
    let epochs = &mut end.epochs;
    if log.guards.epoch && revision + epochs.pending > epochs.reserved {
        epochs.wanted = true;
        return false;
    }
    log.no_fsync || !end.unsynced.overdue(Instant::now())
}
