//! Group commit: the durable side of the log, its syncs and its epochs.

use crate::allocator::{Allocator, Shared};
use crate::choice::{InDirectory, RulesKeeper};
use crate::dir::{self, Format, Identity, Role};
use crate::end::Content;
use crate::error::{CommitError, OpenError};
use crate::frame::{FLAG_CLOSE, FLAG_PLACED, PAGE};
use crate::log::Log;
use crate::open::Options;
use crate::record::{Followed, Note};
use crate::status::VolatileStatus;
use crate::steps::{self, Appended, NotOrdered, Ordered, Point};
use crate::tap::Follower;
use crate::volatile::VolatileWriter;
use crate::{Lsn, Position};
use engine::record::Record;
use files::Lock;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
    format: Format,
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
            format: format.clone(),
            _lock: lock,
        }
    }

    /// Where a choice of storage rules outlives a restart: in the directory, beside the log.
    pub fn rules_keeper(&self) -> Arc<dyn RulesKeeper> {
        let shared = &self.log.shared;
        Arc::new(InDirectory::new(shared.fs.clone(), &shared.layout.dir))
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
    /// These are the three steps [`append`](Journal::append), [`order`](Journal::order) and
    /// [`release`](Ordered::release) with a [`settle`](Journal::settle) after the first, for who
    /// has one frame at a time and nothing to do in between.
    ///
    /// # Errors
    /// After [`CommitError::NoSpace`], [`CommitError::NoSegment`] and [`CommitError::TooLarge`]
    /// the log is as before. After [`CommitError::Poisoned`] nothing is known of these records
    /// until the next start, and every later call fails the same.
    pub fn commit<T>(
        &mut self,
        records: &[Record],
        revision: impl Fn() -> i64,
        publish: impl FnOnce() -> T,
    ) -> Result<(CommitInfo, T), CommitError> {
        let appended = self.append(records, &revision)?;
        self.finish(appended, revision, publish)
    }

    /// The first step of a durable write: puts its records into the log's file. Nothing is
    /// visible, and nothing is on disk before the next [`sync`](Journal::sync). More than one
    /// may be on its way. `revision` is the store's.
    ///
    /// What is not taken through the other steps is visible after the next start.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn append<R: AsRef<[Record]>>(
        &mut self,
        records: R,
        revision: impl Fn() -> i64,
    ) -> Result<Appended<R>, CommitError> {
        steps::append(&self.log, None, records, revision)
    }

    /// [`commit`](Journal::commit) for a log that follows a server's: the frame says too how far
    /// in that server's stream the log is with it, and a start tells
    /// [`Replay::followed`](crate::Replay::followed). There may be no records.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn commit_followed<T>(
        &mut self,
        records: &[Record],
        followed: Followed,
        revision: impl Fn() -> i64,
        publish: impl FnOnce() -> T,
    ) -> Result<(CommitInfo, T), CommitError> {
        let own = Some(Note::Followed(followed));
        let appended = steps::append(&self.log, own, records, &revision)?;
        self.finish(appended, revision, publish)
    }

    /// What is left of a commit.
    fn finish<R: AsRef<[Record]>, T>(
        &mut self,
        appended: Appended<R>,
        revision: impl Fn() -> i64,
        publish: impl FnOnce() -> T,
    ) -> Result<(CommitInfo, T), CommitError> {
        let synced = self.settle()?;
        let ordered = self.order(appended, &revision);
        let ordered = ordered.map_err(|not_ordered| *not_ordered.reason)?;
        let (mut info, published) = ordered.release(publish);
        info.sync_us = synced.map_or(0, |took| took.as_micros() as u64);
        Ok((info, published))
    }

    /// Notes on disk that the store's revision is `to` from here on, and that all at and below it
    /// is compacted: what may have been shown above `revision` is never shown again.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn jump(&mut self, revision: i64, to: i64) -> Result<(), CommitError> {
        let own = Some(Note::Jump { revision: to });
        let none: &[Record] = &[];
        let appended = steps::append(&self.log, own, none, || revision)?;
        self.finish(appended, || revision, || ())?;
        self.log.end().revision = to;
        Ok(())
    }

    /// A snapshot of another store stands at the log's end now: the store is at `revision`, and
    /// nothing before it is of use.
    pub fn restarted_at(&mut self, revision: i64) {
        self.log.end().revision = revision;
    }

    /// Whose directory it is.
    pub fn identity(&self) -> &Identity {
        &self.format.identity
    }

    /// Makes the directory one of another term or role; on disk when this returns.
    ///
    /// # Errors
    /// Those of the file system; then it is as before, or as asked for.
    pub fn set_identity(&mut self, raft_term: u64, role: Role) -> Result<(), OpenError> {
        let mut format = self.format.clone();
        format.identity.raft_term = raft_term;
        format.identity.role = role;
        let shared = &self.log.shared;
        dir::replace_format(&*shared.fs, &shared.layout, &format)?;
        self.format = format;
        Ok(())
    }

    /// Between the first step and the second: puts all that was appended on disk, unless commits
    /// are not synced, and lets volatile writes go on up to a bound that was noted with it.
    /// Returns how long the sync took, if there was one.
    ///
    /// # Errors
    /// If the journal is poisoned, or is by this.
    pub fn settle(&mut self) -> Result<Option<Duration>, CommitError> {
        let synced = match self.log.no_fsync {
            true => None,
            false => self.log.sync()?,
        };
        self.log.settle_epoch()?;
        Ok(synced)
    }

    /// The second step, once the frame is on disk: fixes the revisions that its records get,
    /// those after `revision`, and their place among all others. Until the third step nothing
    /// else is written or becomes visible.
    ///
    /// Within an epoch frames may be ordered otherwise than they were written; the log says how.
    ///
    /// # Errors
    /// [`NotOrdered`], which gives the frame back: [`CommitError::Unordered`] if it is not
    /// synced, or comes before one that must be visible before it;
    /// [`CommitError::NoSpace`] or [`CommitError::NoSegment`] if the log has to say how it is
    /// ordered and there is no room; [`CommitError::Poisoned`].
    pub fn order<R: AsRef<[Record]>>(
        &self,
        appended: Appended<R>,
        revision: impl Fn() -> i64,
    ) -> Result<Ordered<'_, R>, NotOrdered<R>> {
        steps::order(&self.log, appended, revision)
    }

    /// Follows all records from here on, in the order in which they become visible. `open` is
    /// called while nothing is written or becomes visible: what it sees, and what the follower
    /// is given, is all there is. At most `limit_bytes` of records wait for the follower.
    pub fn follow<T>(&self, limit_bytes: u64, open: impl FnOnce() -> T) -> (Follower, T) {
        let mut end = self.end_at_rest();
        (end.tap.follow(limit_bytes), open())
    }

    /// The point at which the tap is, and what `open` sees there. `None` while a frame is in the
    /// log and not visible.
    pub fn point<T>(&self, open: impl FnOnce() -> T) -> Option<(Point, T)> {
        let end = self.log.at_rest().ok()?;
        end.nothing_in_flight().ok()?;
        let point = Point {
            sequence: end.tap.fed(),
            position: end.position(),
        };
        Some((point, open()))
    }

    /// When [`upkeep`](Journal::upkeep) next has something to do; `None` until a volatile
    /// write calls the waker.
    pub fn due(&self) -> Option<Instant> {
        let end = self.log.end();
        let wanted = end.hold.as_ref().is_some_and(|hold| hold.wants_sync());
        if end.epochs.is_wanted() || wanted {
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
            let wanted = end.hold.as_ref().is_some_and(|hold| hold.wants_sync());
            (noted || due || wanted, noted)
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
            if !end.epochs.is_wanted() {
                return Ok(false);
            }
            let revision_before = end.revision_now(revision());
            let Some(note @ Note::Epoch { .. }) = end.epochs.note_due(revision_before) else {
                return Ok(end.epochs.is_noted());
            };
            let noted = end.may_note(&note).and_then(|()| {
                end.append(Content {
                    notes: &[note],
                    revision_before,
                    flags: FLAG_PLACED,
                    ..Content::default()
                })
            });
            let Err(hindrance) = noted else {
                return Ok(true);
            };
            drop(end);
            match self.log.clear(hindrance) {
                Ok(()) => {}
                Err(error) if error.is_no_room() => {
                    let mut end = self.log.end();
                    end.epochs.no_room();
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
        end.epochs.allow();
    }

    fn end_at_rest(&self) -> std::sync::MutexGuard<'_, crate::end::End> {
        // A poisoned log has nothing more to show.
        self.log.at_rest().unwrap_or_else(|_| self.log.end())
    }

    /// Whether nothing is ordered and not visible yet, so that a call that needs that does not
    /// wait. For tests.
    #[doc(hidden)]
    pub fn is_at_rest(&self) -> bool {
        self.log.end().unreleased.is_none()
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
            self.forget_set_of_past();
            self.log.remove_marker();
        }
        result
    }

    /// Refuses volatile writes and writes the note that ends the epoch, if one is open.
    fn end_epoch(&self, revision: impl Fn() -> i64) -> Result<(), CommitError> {
        loop {
            let mut end = self.log.at_rest()?;
            end.epochs.refuse();
            if end.epochs.open().is_none() {
                return Ok(());
            }
            end.nothing_in_flight()?;
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
        if !room || end.marks.marked() >= end.marks.synced() || !end.marks.is_synced() {
            return self.log.shared.poison().map_or(Ok(()), Err);
        }
        let revision_before = end.revision_now(revision());
        let appended = end.append(Content {
            revision_before,
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
            let end = self.log.at_rest()?;
            // It would be taken for a part of the snapshot.
            end.nothing_in_flight()?;
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

    /// Files that the log is in, those ready and spare left out.
    pub fn segments(&self) -> usize {
        self.log.shared.closed_segments() + self.log.end().behind.len() + 1
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
        self.log.end().nothing_in_flight()?;
        // Volatile writes may have gone on until now.
        let revision = self.log.end().revision.max(revision);
        let ended = self.end_epoch(|| revision);
        self.log.sync()?;
        if ended.is_ok() {
            self.forget_set_of_past();
            self.log.remove_marker();
        }
        while ended.is_ok() {
            let mut end = self.log.end();
            if end.closed_at == Some(end.marks.written()) {
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
        self.log.end().marks.written()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        {
            let mut end = self.log.end();
            end.closed = true;
            end.tap.close();
        }
        self.log.changed.notify_all();
        self.log.shared.stop();
    }
}
