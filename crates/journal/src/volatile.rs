//! Volatile records: visible when they are in the log's file, on disk a little later.

use crate::Lsn;
use crate::end::{self, Content, End, Hindrance, Written};
use crate::error::CommitError;
use crate::frame::{FLAG_PLACED, FLAG_VOLATILE, MAX_PAYLOAD_BYTES, PAGE};
use crate::hold::Hold;
use crate::log::{LOOK_AGAIN, Log};
use crate::status::VolatileStatus;
use crate::tap::Lane;
use engine::record::Record;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The shortest and longest time that records may be promised to be on disk within.
const WITHIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(30));
/// A [`Turn`] is for so many revisions at most.
const TURN_REVISIONS: i64 = 100_000;
/// And for so many bytes of the log: there is room for them when it is given.
const TURN_BYTES: u64 = 128 << 10;

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
    /// While frames are held elsewhere too ([`Journal::hold`](crate::Journal::hold)), it waits
    /// until these are safe, and then nobody loses them with the power either.
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
        end::check_size(records, MAX_PAYLOAD_BYTES)?;
        let taken = end::revisions(records);
        let began = Instant::now();
        let log = &*self.log;
        let mut end = log.end();
        let refusals = end.epochs.refusals();
        let mut waited = false;
        loop {
            if end.unreleased.is_some() {
                end = log
                    .changed
                    .wait_timeout(end, LOOK_AGAIN)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            }
            if let Some(error) = log.shared.poison() {
                return Err(error);
            }
            if end.closed {
                return Err(CommitError::Closed);
            }
            if !end.epochs.accepts() {
                return Err(CommitError::Strict);
            }
            let revision_before = revision();
            if may_go(log, &mut end, revision_before + taken) {
                let turn = Turn {
                    log,
                    end,
                    revision_before,
                };
                match turn.append(records) {
                    Ok(written) => {
                        let waited_us = if waited { end::micros(began) } else { 0 };
                        let (info, published) = match written.hold() {
                            Some(hold) => {
                                let placed = written.place(records, sync_within, hold);
                                placed.wait(log)?;
                                placed.release(log, records, publish)
                            }
                            None => written.show(records, sync_within, publish),
                        };
                        return Ok((VolatileInfo { waited_us, ..info }, published));
                    }
                    Err(hindrance) => {
                        log.clear(hindrance)?;
                        end = log.end();
                        waited = true;
                        continue;
                    }
                }
            }
            if waited && end.epochs.refusals() != refusals {
                return Err(CommitError::NoSpace {
                    path: log.shared.layout.log.clone(),
                });
            }
            drop(end);
            log.wake();
            end = log.end();
            if waited || !may_go(log, &mut end, revision_before + taken) {
                end = log
                    .changed
                    .wait_timeout(end, LOOK_AGAIN)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            waited = true;
        }
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
        if refuses(log, &end) || end.hold.is_some() {
            return None;
        }
        let revision_before = revision();
        if !may_go(log, &mut end, revision_before + TURN_REVISIONS) {
            drop(end);
            log.wake();
            return None;
        }
        let room = end.room_bytes() >= TURN_BYTES || log.shared.has_ready_of(PAGE + TURN_BYTES);
        room.then_some(Turn {
            log,
            end,
            revision_before,
        })
    }

    /// The first half of [`write`](VolatileWriter::write) while frames are held elsewhere too, for
    /// a test that has no second thread: puts records into the log's file. They become visible by
    /// [`Placed::release`], once they are safe.
    ///
    /// # Errors
    /// As [`write`](VolatileWriter::write); it never waits, and gives
    /// [`CommitError::Unordered`] where that would.
    #[doc(hidden)]
    pub fn place(
        &self,
        records: &[Record],
        sync_within: Duration,
        revision: impl Fn() -> i64,
    ) -> Result<Placed, CommitError> {
        let log = &*self.log;
        loop {
            let mut end = log.end();
            let lsn = end.marks.written() + 1;
            let revision_before = revision();
            let taken = end::revisions(records);
            let Some(hold) = end.hold.clone() else {
                return Err(CommitError::Unordered { lsn });
            };
            if end.unreleased.is_some()
                || refuses(log, &end)
                || !may_go(log, &mut end, revision_before + taken)
            {
                return Err(CommitError::Unordered { lsn });
            }
            let turn = Turn {
                log,
                end,
                revision_before,
            };
            match turn.append(records) {
                Ok(written) => return Ok(written.place(records, sync_within, hold)),
                Err(hindrance) => log.clear(hindrance)?,
            }
        }
    }

    /// The second half, once the records are safe.
    #[doc(hidden)]
    pub fn release<T>(
        &self,
        placed: Placed,
        records: &[Record],
        publish: impl FnOnce() -> T,
    ) -> (VolatileInfo, T) {
        placed.release(&self.log, records, publish)
    }

    /// Whether a write of these records would wait. For tests.
    #[doc(hidden)]
    pub fn would_wait(&self, records: &[Record], revision: i64) -> bool {
        let Some(mut end) = self.log.try_end() else {
            return true;
        };
        if refuses(&self.log, &end) {
            return false;
        }
        let frame_bytes = end::frame_bytes_at_most(records);
        let made =
            end.room_bytes() >= frame_bytes || self.log.shared.is_at_rest(PAGE + frame_bytes);
        !made || !may_go(&self.log, &mut end, revision + end::revisions(records))
    }

    /// What a power loss would take now.
    pub fn status(&self) -> VolatileStatus {
        self.log.status.volatile()
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
    /// does. They take 100,000 revisions at most.
    ///
    /// It waits for the disk only where the write meets a full one that had not said so
    /// before: then what got there is taken back, and synced.
    ///
    /// # Errors
    /// As [`VolatileWriter::write`]; [`CommitError::TooLarge`] above 128 KiB.
    pub fn write<T>(
        self,
        records: &[Record],
        sync_within: Duration,
        publish: impl FnOnce() -> T,
    ) -> Result<(VolatileInfo, T), CommitError> {
        end::check_size(records, TURN_BYTES - PAGE)?;
        let log = self.log;
        match self.append(records) {
            Ok(written) => Ok(written.show(records, sync_within, publish)),
            // There was room when the turn was given; should there be none, it can be tried again.
            Err(hindrance) => Err(log.clear(hindrance).err().unwrap_or(CommitError::NoSpace {
                path: log.shared.layout.log.clone(),
            })),
        }
    }
}

impl<'a> Turn<'a> {
    /// Puts records into the log's file, and lets go of the end if that fails.
    fn append(mut self, records: &[Record]) -> Result<InFile<'a>, Hindrance> {
        let written = self.end.append(Content {
            records,
            revision_before: self.revision_before,
            flags: FLAG_PLACED | FLAG_VOLATILE,
            ..Content::default()
        })?;
        let marking = Instant::now();
        self.end.mark_reached()?;
        Ok(InFile {
            turn: self,
            written,
            marked: marking,
            write_us: written.write_us + end::micros(marking),
        })
    }
}

/// Volatile records that are in the log's file and in the marker, and not visible yet.
struct InFile<'a> {
    turn: Turn<'a>,
    written: Written,
    marked: Instant,
    write_us: u64,
}

impl InFile<'_> {
    /// What decides when they are safe, if they become visible only then.
    fn hold(&self) -> Option<Arc<Hold>> {
        self.turn.end.hold.clone()
    }

    /// Fixes their place and revisions; they become visible when they are safe.
    fn place(mut self, records: &[Record], sync_within: Duration, hold: Arc<Hold>) -> Placed {
        let (lsn, taken) = (self.written.position.lsn, end::revisions(records));
        let within = sync_within.clamp(WITHIN.0, WITHIN.1);
        let Turn {
            log,
            end,
            revision_before,
        } = &mut self.turn;
        let wake = end.unsynced.add(self.written.bytes, self.marked, within);
        end.show(*revision_before, taken);
        end.unreleased = Some(lsn);
        hold.set_waiting(Some(lsn));
        end.publish();
        let (log, revision_before) = (*log, *revision_before);
        let (written, write_us) = (self.written, self.write_us);
        drop(self);
        if wake || hold.wants_sync() {
            log.wake();
        }
        Placed {
            hold,
            written,
            revision_before,
            write_us,
        }
    }

    /// Makes them visible.
    fn show<T>(
        self,
        records: &[Record],
        sync_within: Duration,
        publish: impl FnOnce() -> T,
    ) -> (VolatileInfo, T) {
        let taken = end::revisions(records);
        let Turn {
            log,
            mut end,
            revision_before,
        } = self.turn;
        let within = sync_within.clamp(WITHIN.0, WITHIN.1);
        // Without fsync nothing is promised.
        let mut wake = !log.no_fsync && end.unsynced.add(self.written.bytes, self.marked, within);
        end.feed(&self.written, revision_before, Lane::Volatile, records);
        end.show(revision_before, taken);
        let published = publish();
        // In good time, so that nobody has to wait for it.
        wake |= log.guards.epoch && end.epochs.want_in_time(revision_before + taken);
        end.publish();
        drop(end);
        if wake {
            log.wake();
        }
        let info = VolatileInfo {
            lsn: self.written.position.lsn,
            bytes: self.written.bytes,
            write_us: self.write_us,
            waited_us: 0,
        };
        (info, published)
    }
}

/// Records whose place and revisions are fixed, and that become visible when they are safe. Until
/// then nothing else is ordered.
#[must_use = "nothing else becomes visible before it"]
pub struct Placed {
    hold: Arc<Hold>,
    written: Written,
    revision_before: i64,
    write_us: u64,
}

impl Placed {
    /// Their frame.
    pub fn lsn(&self) -> Lsn {
        self.written.position.lsn
    }

    /// Waits until they are safe.
    fn wait(&self, log: &Log) -> Result<(), CommitError> {
        let lsn = self.lsn();
        while log.guards.held && !self.hold.wait_safe(lsn, LOOK_AGAIN) {
            log.shared.poison().map_or(Ok(()), Err)?;
            if self.hold.wants_sync() {
                log.wake();
            }
        }
        Ok(())
    }

    /// Makes them visible.
    fn release<T>(
        self,
        log: &Log,
        records: &[Record],
        publish: impl FnOnce() -> T,
    ) -> (VolatileInfo, T) {
        let lsn = self.lsn();
        debug_assert!(self.hold.is_safe(lsn) || !log.guards.held);
        let mut end = log.end();
        end.feed(&self.written, self.revision_before, Lane::Volatile, records);
        let published = publish();
        let revision = end.revision;
        let wake = log.guards.epoch && end.epochs.want_in_time(revision);
        end.unreleased = None;
        self.hold.set_waiting(None);
        end.publish();
        drop(end);
        log.changed.notify_all();
        if wake {
            log.wake();
        }
        let info = VolatileInfo {
            lsn,
            bytes: self.written.bytes,
            write_us: self.write_us,
            waited_us: 0,
        };
        (info, published)
    }
}

/// Whether a volatile write would fail.
fn refuses(log: &Log, end: &End) -> bool {
    end.closed || !end.epochs.accepts() || log.shared.poison().is_some()
}

/// Whether a volatile write may show `revision` now. If an epoch is in the way, asks for one.
fn may_go(log: &Log, end: &mut End, revision: i64) -> bool {
    if log.guards.epoch && !end.epochs.covers(revision + end.in_flight.revisions()) {
        end.epochs.want();
        return false;
    }
    log.no_fsync || !end.unsynced.overdue(Instant::now())
}
