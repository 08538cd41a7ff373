//! Group commit: the durable side of the log, its syncs and its epochs.

use crate::allocator::{Allocator, Shared};
use crate::dir::Format;
use crate::end::{self, Content, End, Hindrance, Written};
use crate::error::CommitError;
use crate::frame::{FLAG_CLOSE, FLAG_PLACED, MAX_PAYLOAD_BYTES, PAGE};
use crate::log::Log;
use crate::open::Options;
use crate::record::Note;
use crate::status::VolatileStatus;
use crate::volatile::VolatileWriter;
use crate::{Lsn, Position};
use engine::record::Record;
use files::Lock;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

/// What a commit did and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// The log's end after its frame.
    pub position: Position,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Time in the write, in microseconds.
    pub write_us: u64,
    /// Time in the syncs, in microseconds.
    pub sync_us: u64,
    /// Volatile writes became visible while it synced, and a frame says which revisions it got.
    pub stamped: bool,
}

/// A log open for writing. One thread owns it: it commits durable records, and does all
/// syncs, those of volatile records among them.
///
/// `revision` and `publish` closures are called while the log's end is locked, so that what
/// they say and do is in the log's order: whoever calls the journal must not hold a lock
/// that they take.
pub struct Journal {
    pub(crate) log: Arc<Log>,
    _lock: Box<dyn Lock>,
}

impl Journal {
    pub(crate) fn start(
        shared: Shared,
        lock: Box<dyn Lock>,
        format: &Format,
        options: &Options,
    ) -> Self {
        let log = Log::new(
            shared,
            format,
            options.no_fsync,
            options.guards,
            options.marker_dir.clone(),
        );
        Journal {
            log: Arc::new(log),
            _lock: lock,
        }
    }

    /// Sets what a volatile write calls when there is something to do for this journal's
    /// thread: [`due`](Journal::due) has changed. It must not block. The first one stays.
    pub fn set_waker(&mut self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.log.waker.set(Box::new(wake));
    }

    /// Puts records on disk, all or none: one write and one sync. When it returns they are
    /// there after any crash. `revision` is the store's; `publish` makes the records visible
    /// and is called when they are on disk. Between the two volatile records may become
    /// visible; then a further frame, not synced, notes which revisions these records get.
    ///
    /// # Errors
    /// After [`CommitError::NoSpace`] and [`CommitError::TooLarge`] the log is as before.
    /// After [`CommitError::Poisoned`] nothing is known of these records until the next start,
    /// and every later call fails the same.
    pub fn commit<T>(
        &mut self,
        records: &[Record],
        revision: impl Fn() -> i64,
        publish: impl FnOnce() -> T,
    ) -> Result<(CommitInfo, T), CommitError> {
        end::check_size(records, MAX_PAYLOAD_BYTES)?;
        let taken = end::revisions(records);
        let log = &self.log;
        let (written, before, noted) = loop {
            let mut end = log.end();
            let before = revision();
            let note = end.note_due(before + taken);
            let appended = end.append(Content {
                notes: note.as_slice(),
                records,
                revision_before: before,
                flags: 0,
            });
            match appended {
                Ok(written) => {
                    end.epochs.pending = taken;
                    break (written, before, note.is_some());
                }
                Err(hindrance) => {
                    drop(end);
                    log.clear(hindrance)?;
                }
            }
        };
        let synced = if log.no_fsync { None } else { log.sync()? };
        if noted {
            log.settle_epoch()?;
        }
        let (mut end, stamped) = stamp(log, &written, (before, taken), revision)?;
        end.epochs.pending = 0;
        end.show(before, taken);
        let published = publish();
        drop(end);
        log.changed.notify_all();
        let info = CommitInfo {
            position: written.position,
            bytes: written.bytes,
            write_us: written.write_us,
            sync_us: synced.map_or(0, |took| took.as_micros() as u64),
            stamped,
        };
        Ok((info, published))
    }

    /// When [`upkeep`](Journal::upkeep) next has something to do; `None` until a volatile
    /// write calls the waker.
    pub fn due(&self) -> Option<Instant> {
        let end = self.log.end();
        if end.epochs.wanted {
            return Some(Instant::now());
        }
        end.unsynced.due()
    }

    /// Does what is due: the sync of volatile records whose time has come, and an epoch for
    /// volatile writers to go on. Returns how long it synced, in microseconds, if it did.
    ///
    /// # Errors
    /// If the journal is poisoned. On a full disk volatile writers are told.
    pub fn upkeep(&mut self, revision: impl Fn() -> i64) -> Result<Option<u64>, CommitError> {
        let log = &self.log;
        let (sync, noted) = {
            let noted = self.note_epoch(revision)?;
            let end = log.end();
            let due = end.unsynced.due().is_some_and(|due| due <= Instant::now());
            (noted || due, noted)
        };
        let synced = if sync { log.sync()? } else { None };
        if noted {
            log.settle_epoch()?;
        }
        Ok(synced.map(|took| took.as_micros() as u64))
    }

    /// Writes the frame that opens or renews an epoch, if one is wanted; false if there is no
    /// need or no room.
    fn note_epoch(&self, revision: impl Fn() -> i64) -> Result<bool, CommitError> {
        loop {
            let mut end = self.log.end();
            if !end.epochs.wanted {
                return Ok(false);
            }
            let revision_before = revision();
            let Some(note @ Note::Epoch { .. }) = end.epochs.note_due(revision_before) else {
                return Ok(end.epochs.noted_in != 0);
            };
            let appended = match end.may_note(&note) {
                true => end.append(Content {
                    notes: &[note],
                    revision_before,
                    flags: FLAG_PLACED,
                    ..Content::default()
                }),
                false => Err(Hindrance::Reserve),
            };
            let Err(hindrance) = appended else {
                return Ok(true);
            };
            drop(end);
            match self.log.clear(hindrance) {
                Ok(()) => {}
                Err(error) if error.is_no_room() => {
                    let mut end = self.log.end();
                    end.epochs.wanted = false;
                    end.epochs.refusals += 1;
                    self.log.changed.notify_all();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Syncs all that was written before the call.
    ///
    /// # Errors
    /// If the journal is poisoned, or is by this.
    pub fn sync(&mut self) -> Result<(), CommitError> {
        self.log.sync().map(drop)
    }

    /// Accepts volatile writes from now on; a journal that was just opened does not. The next
    /// [`upkeep`](Journal::upkeep), due at once, opens an epoch, for which they wait.
    pub fn allow_volatile(&mut self) {
        let mut end = self.log.end();
        end.epochs.accepting = true;
        end.epochs.wanted |= end.epochs.reserved == 0;
    }

    /// Ends volatile writing: refuses further volatile writes, puts all that was written on
    /// disk, and closes the epoch, so that a power loss is not noticed any more.
    ///
    /// # Errors
    /// After [`CommitError::NoSpace`] all is on disk, but the epoch is still open: a power
    /// loss makes watchers relist. Any other error poisons the journal.
    pub fn close_epoch(&mut self, revision: impl Fn() -> i64) -> Result<(), CommitError> {
        let result = self.end_epoch(revision);
        self.log.sync()?;
        self.log.changed.notify_all();
        if result.is_ok() {
            self.log.remove_marker();
        }
        result
    }

    /// Refuses volatile writes and writes the note that ends the epoch, if one is open.
    fn end_epoch(&self, revision: impl Fn() -> i64) -> Result<(), CommitError> {
        loop {
            let mut end = self.log.end();
            end.epochs.accepting = false;
            end.epochs.wanted = false;
            if end.epochs.open.is_none() {
                return Ok(());
            }
            let Err(hindrance) = end.append(Content {
                notes: &[Note::EpochEnd],
                revision_before: revision(),
                flags: FLAG_PLACED,
                ..Content::default()
            }) else {
                return Ok(());
            };
            drop(end);
            self.log.clear(hindrance)?;
        }
    }

    /// Notes in the log that its end is synced, so that damage to the last commit is told
    /// from a torn one. To be called when no commit has come for a while; it is not synced
    /// itself, and does nothing if there is nothing to note.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn mark(&mut self, revision: impl FnOnce() -> i64) -> Result<(), CommitError> {
        let mut end = self.log.end();
        let room = end
            .current
            .as_ref()
            .is_some_and(|c| c.offset + PAGE <= c.bytes);
        if !room || end.marked >= end.synced || end.synced < end.lsn {
            return self.log.shared.poison().map_or(Ok(()), Err);
        }
        let appended = end.append(Content {
            revision_before: revision(),
            ..Content::default()
        });
        drop(end);
        // There is room, so that nothing has to be made for it.
        appended
            .map(drop)
            .or_else(|hindrance| self.log.clear(hindrance))
    }

    /// The log's end.
    pub fn position(&self) -> Position {
        self.log.end().position()
    }

    /// The position for a snapshot of the store as it is when `open` is called: all visible
    /// then, and nothing else, is in the log before it. What came before it is synced: a
    /// snapshot says that it was.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn snapshot_position<T>(
        &mut self,
        open: impl FnOnce() -> T,
    ) -> Result<(Position, T), CommitError> {
        let (position, opened) = {
            let end = self.log.end();
            (end.position(), open())
        };
        self.log.sync()?;
        Ok((position, opened))
    }

    /// Sees to it that a next segment is ready; so, whether a full disk has room again.
    ///
    /// # Errors
    /// [`CommitError::NoSpace`] or [`CommitError::NoSegment`] if not, or the error that ended
    /// the journal.
    pub fn ensure_room(&mut self) -> Result<(), CommitError> {
        let shared = &self.log.shared;
        if shared.has_ready() && shared.has_reserve() {
            return shared.poison().map_or(Ok(()), Err);
        }
        shared.prepare_all()
    }

    /// What writes volatile records, for another thread.
    pub fn volatile(&self) -> VolatileWriter {
        VolatileWriter {
            log: self.log.clone(),
        }
    }

    /// What a power loss would take now.
    pub fn volatile_status(&self) -> VolatileStatus {
        self.log.status.volatile()
    }

    /// What makes segments ahead, for a thread of the caller's.
    pub fn allocator(&self) -> Allocator {
        Allocator(self.log.shared.clone())
    }

    /// Bytes of frames since the latest snapshot; what a start would have to replay.
    pub fn bytes_since_snapshot(&self) -> u64 {
        let snapshot = self.log.shared.snapshot_bytes.load(Ordering::Relaxed);
        self.log.end().bytes.saturating_sub(snapshot)
    }

    /// Bytes of the log's files, those ready and spare included.
    pub fn log_bytes(&self) -> u64 {
        self.log.shared.log_bytes.load(Ordering::Relaxed)
    }

    /// The error that ended all commits, if one did.
    pub fn poisoned(&self) -> Option<CommitError> {
        self.log.shared.poison()
    }

    /// Closes the log: a last frame says that all before it is synced and nothing follows.
    /// Volatile writes fail from the call on.
    ///
    /// # Errors
    /// If the journal was poisoned before, or is by this. Where there is no room for that frame
    /// it is left out, which is no error.
    pub fn close(mut self, revision: i64) -> Result<(), CommitError> {
        self.close_frame(revision)
    }

    pub(crate) fn close_frame(&mut self, revision: i64) -> Result<(), CommitError> {
        self.log.end().closed = true;
        // Volatile writes may have gone on until now.
        let revision = self.log.end().revision.max(revision);
        let ended = self.end_epoch(|| revision);
        self.log.sync()?;
        if ended.is_ok() {
            self.log.remove_marker();
        }
        while ended.is_ok() {
            let mut end = self.log.end();
            if end.closed_at == Some(end.lsn) {
                break;
            }
            let appended = end.append(Content {
                revision_before: revision,
                flags: FLAG_CLOSE,
                ..Content::default()
            });
            drop(end);
            match appended.map_err(|hindrance| self.log.clear(hindrance)) {
                Ok(_) => {
                    self.log.sync()?;
                    break;
                }
                Err(Ok(())) => {}
                Err(Err(error)) if error.is_no_room() => break,
                Err(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The last frame, for tests.
    #[doc(hidden)]
    pub fn last_lsn(&self) -> Lsn {
        self.log.end().lsn
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.log.end().closed = true;
        self.log.changed.notify_all();
        self.log.shared.stop();
    }
}

/// Notes the revisions that a commit gets, if volatile writes took those it would have got.
/// Without it they follow from the log's order, as long as all of the log is there: if there
/// is no room, only a power loss makes a difference, and gives them new ones. The end is
/// returned, so that nothing else becomes visible in between.
fn stamp<'a>(
    log: &'a Log,
    written: &Written,
    (before, taken): (i64, i64),
    revision: impl Fn() -> i64,
) -> Result<(MutexGuard<'a, End>, bool), CommitError> {
    let lsn = written.position.lsn;
    loop {
        let mut end = log.end();
        if taken == 0 || end.lsn == lsn || end.epochs.open.is_none() || !log.guards.stamp {
            return Ok((end, false));
        }
        let revision_before = revision();
        if revision_before == before {
            return Ok((end, false));
        }
        let Err(hindrance) = end.append(Content {
            notes: &[Note::Stamp {
                lsn,
                revision_before,
            }],
            revision_before,
            flags: FLAG_PLACED,
            ..Content::default()
        }) else {
            return Ok((end, true));
        };
        drop(end);
        match log.clear(hindrance) {
            Ok(()) => {}
            Err(error) if error.is_no_room() => return Ok((log.end(), false)),
            Err(error) => return Err(error),
        }
    }
}
