//! Segments ahead of their use, and after it.
//!
//! One segment is made ahead on a thread of the caller's, so that a commit finds it there,
//! zeroed, synced and with its room reserved: running out of space shows here, where
//! nothing depends on it yet. No error here ends the log: none of these files holds a frame,
//! so what failed is made anew. A retired segment is used again (its old frames name another
//! segment), up to a few; the others are removed.

use crate::dir::{Layout, spare_path};
use crate::error::CommitError;
use crate::frame::PAGE;
use crate::segment::{self, SegmentHeader};
use crate::{Lsn, Position, snapshot};
use files::{File, FileSystem, is_no_space};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Zeros are written and synced in pieces of this size, so that commits never wait behind
/// a long queue of them.
const ZERO_BYTES: usize = 1 << 20;
/// The smallest segment that is made. Those after it are as long as the log is by then, so
/// that a small store takes little room and a busy one seldom goes on to a next segment.
const FIRST_SEGMENT_BYTES: u64 = 256 << 10;
/// Room that is kept for a start that must note something and finds the disk full: a segment
/// with a header and a frame of three pages.
pub(crate) const RESERVE_BYTES: u64 = 4 * PAGE;
/// How long to wait before the first new try after an error. It doubles with each.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// A segment that is ready for use.
pub(crate) struct Ready {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    pub(crate) bytes: u64,
}

/// A segment that gets no more frames.
pub(crate) struct Closed {
    pub(crate) id: u64,
    pub(crate) last_lsn: Lsn,
    /// Bytes of disk that it takes.
    pub(crate) bytes: u64,
    /// Whether it has all its room, written once: one found at a start may have holes.
    pub(crate) whole: bool,
}

#[derive(Default)]
struct State {
    ready: Option<Ready>,
    next_id: u64,
    /// The segment last taken into use.
    in_use: u64,
    spares: Vec<(u64, u64)>,
    closed: Vec<Closed>,
    /// Files without use, with their bytes, that are still to be removed. No more are made
    /// while one of them stays.
    leftovers: Vec<(PathBuf, u64)>,
    /// The reserve is there.
    reserve: bool,
    stopped: bool,
    /// Why there is no next segment, since the last try.
    problem: Option<CommitError>,
    poison: Option<CommitError>,
}

/// What the journal and its allocator share.
pub(crate) struct Shared {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) layout: Layout,
    /// Cluster id and salt, for segment headers.
    identity: (u64, u64),
    segment_bytes: u64,
    spare_segments: usize,
    state: Mutex<State>,
    wake: Condvar,
    /// Held while files are made, renamed or removed: one at a time.
    work: Mutex<()>,
    poisoned: AtomicBool,
    /// [`Position::bytes`] of the latest snapshot.
    pub(crate) snapshot_bytes: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    /// Frame bytes since the snapshot that the start began with.
    frame_bytes: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        fs: Arc<dyn FileSystem>,
        layout: Layout,
        identity: (u64, u64),
        (segment_bytes, spare_segments): (u64, usize),
        next_id: u64,
        in_use: u64,
    ) -> Self {
        Shared {
            fs,
            layout,
            identity,
            segment_bytes,
            spare_segments,
            state: Mutex::new(State {
                next_id,
                in_use,
                ..State::default()
            }),
            wake: Condvar::new(),
            work: Mutex::new(()),
            poisoned: AtomicBool::new(false),
            snapshot_bytes: AtomicU64::new(0),
            log_bytes: AtomicU64::new(0),
            frame_bytes: AtomicU64::new(0),
        }
    }

    /// Every change of the state is a single step, so one that a panic left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> MutexGuard<'_, ()> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that ended all commits, if one did.
    pub(crate) fn poison(&self) -> Option<CommitError> {
        if !self.poisoned.load(Ordering::Acquire) {
            return None;
        }
        self.state().poison.clone()
    }

    /// Ends all commits; the first reason stays.
    pub(crate) fn set_poison(&self, file: &Path, source: io::Error) -> CommitError {
        let error = CommitError::Poisoned {
            file: file.to_owned(),
            source: Arc::new(source),
        };
        let first = self.state().poison.get_or_insert(error).clone();
        self.poisoned.store(true, Ordering::Release);
        first
    }

    /// Ends all work on files, that under way included: the next owner of the directory is
    /// not to meet it.
    pub(crate) fn stop(&self) {
        self.state().stopped = true;
        self.wake.notify_all();
        drop(self.work());
    }

    fn stopped(&self) -> bool {
        self.state().stopped
    }

    pub(crate) fn add_closed(&self, closed: Closed) {
        self.state().closed.push(closed);
    }

    pub(crate) fn closed_segments(&self) -> usize {
        self.state().closed.len()
    }

    pub(crate) fn add_spare(&self, id: u64, bytes: u64) {
        self.state().spares.push((id, bytes));
    }

    /// How many spare segments of `bytes` may be kept: none while the log is short.
    pub(crate) fn spare_limit(&self, bytes: u64) -> usize {
        match bytes == self.segment_bytes && self.next_bytes() == bytes {
            true => self.spare_segments,
            false => 0,
        }
    }

    /// The log is so long now.
    pub(crate) fn set_frame_bytes(&self, bytes: u64) {
        self.frame_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the next segment.
    pub(crate) fn next_bytes(&self) -> u64 {
        let log_bytes = self.frame_bytes.load(Ordering::Relaxed);
        let first = FIRST_SEGMENT_BYTES.min(self.segment_bytes);
        log_bytes
            .clamp(first, self.segment_bytes)
            .next_power_of_two()
            .min(self.segment_bytes)
    }

    /// Takes the segment made ahead into use, if it has `min_bytes` or more.
    pub(crate) fn take_ready(&self, min_bytes: u64) -> Option<Ready> {
        let mut state = self.state();
        let ready = state.ready.take_if(|ready| ready.bytes >= min_bytes)?;
        state.in_use = ready.id;
        drop(state);
        self.wake.notify_all();
        Some(ready)
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.has_ready_of(0)
    }

    /// Whether a segment of `bytes` or more is ready.
    pub(crate) fn has_ready_of(&self, bytes: u64) -> bool {
        let state = self.state();
        state
            .ready
            .as_ref()
            .is_some_and(|ready| ready.bytes >= bytes)
    }

    /// Sees to it that a next segment and the reserve are there.
    pub(crate) fn prepare_all(&self) -> Result<(), CommitError> {
        if !self.has_ready() {
            self.prepare(self.next_bytes())?;
        }
        let _work = self.work();
        self.reserve()
    }

    /// The same at a start, which takes what the last process left ready, whatever its size.
    pub(crate) fn prepare_first(&self) -> Result<(), CommitError> {
        let left = self.state().spares.first().map(|(_, bytes)| *bytes);
        self.prepare(left.unwrap_or(self.next_bytes()))?;
        self.prepare_all()
    }

    /// Sees to it that a segment with room for `min_bytes` is ready.
    pub(crate) fn prepare_of(&self, min_bytes: u64) -> Result<(), CommitError> {
        if self.has_ready_of(min_bytes) {
            return Ok(());
        }
        self.prepare(min_bytes.max(self.next_bytes()))
    }

    /// Whether a segment of `bytes` or more is ready, or nobody is at work who would have to be
    /// waited for before one is made.
    pub(crate) fn is_at_rest(&self, bytes: u64) -> bool {
        self.has_ready_of(bytes) || self.work.try_lock().is_ok()
    }

    /// Sees to it that a segment of `bytes` or more is ready. A smaller one that is ready
    /// stays so until then.
    ///
    /// # Errors
    /// [`CommitError::NoSpace`], [`CommitError::NoSegment`], or the error that ended the log.
    pub(crate) fn prepare(&self, bytes: u64) -> Result<(), CommitError> {
        let _work = self.work();
        if let Some(error) = self.poison() {
            return Err(error);
        }
        if self.has_ready_of(bytes) {
            return Ok(());
        }
        let mut failed_on = self.layout.log.clone();
        let made = self
            .remove_leftovers(&mut failed_on)
            .and_then(|()| self.make(bytes, &mut failed_on));
        if self.stopped() {
            return Err(CommitError::Closed);
        }
        let mut state = self.state();
        match made {
            Ok(ready) => {
                state.problem = None;
                if let Some(outgrown) = state.ready.replace(ready) {
                    state.leftovers.push((outgrown.path, outgrown.bytes));
                }
                Ok(())
            }
            Err(error) => {
                let error = CommitError::unprepared(&failed_on, error);
                state.problem = Some(error.clone());
                Err(error)
            }
        }
    }

    /// A file that is in the log's directory and has no use: it goes before the next is made.
    fn add_leftover(&self, path: &Path, bytes: u64) {
        self.state().leftovers.push((path.to_owned(), bytes));
    }

    fn remove_leftovers(&self, failed_on: &mut PathBuf) -> io::Result<()> {
        loop {
            let Some((path, bytes)) = self.state().leftovers.last().cloned() else {
                return Ok(());
            };
            *failed_on = path;
            match self.fs.remove(failed_on) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.log_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.state().leftovers.pop();
        }
    }

    /// Makes a segment from a spare one or anew.
    fn make(&self, bytes: u64, failed_on: &mut PathBuf) -> io::Result<Ready> {
        let spare = {
            let mut state = self.state();
            let fit = state.spares.iter().position(|(_, size)| *size >= bytes);
            fit.map(|at| state.spares.swap_remove(at))
        };
        let file = spare.map(|(id, bytes)| (spare_path(&self.layout.log, id), bytes));
        let made = self.make_of(file, bytes, failed_on);
        if let Some((id, bytes)) = spare
            && made.is_err()
        {
            let path = spare_path(&self.layout.log, id);
            let mut state = self.state();
            if state
                .leftovers
                .iter()
                .all(|(leftover, _)| *leftover != path)
            {
                state.spares.push((id, bytes));
            }
        }
        made
    }

    /// Makes a segment from `file`, which has no use any more, or anew, and gives it the next
    /// id. If that fails, `file` is as it was, or one of the leftovers.
    fn make_of(
        &self,
        file: Option<(PathBuf, u64)>,
        bytes: u64,
        failed_on: &mut PathBuf,
    ) -> io::Result<Ready> {
        let fs = &*self.fs;
        let (id, in_use) = {
            let mut state = self.state();
            state.next_id += 1;
            (state.next_id - 1, state.in_use)
        };
        let bytes = file.as_ref().map_or(bytes, |(_, bytes)| *bytes);
        let mut page = vec![0; PAGE as usize];
        let (cluster_id, salt) = self.identity;
        SegmentHeader {
            id,
            cluster_id,
            previous: in_use,
            bytes,
            ..SegmentHeader::default()
        }
        .encode(salt, &mut page);
        let (source, file) = match file {
            Some((source, _)) => {
                *failed_on = source.clone();
                let file = fs.open(&source, true)?;
                file.write_at(&page, 0)?;
                // What a sync failed on is not used again, unless it only found no room.
                file.sync_data().inspect_err(|error| {
                    if !is_no_space(error) {
                        self.add_leftover(&source, bytes);
                    }
                })?;
                (source, file)
            }
            None => {
                let temporary = self.layout.log.join("next.tmp");
                *failed_on = temporary.clone();
                let file = self
                    .make_zeroed(&temporary, &page, bytes)
                    .inspect_err(|_| {
                        // Gives back what room it took; else the next try removes it.
                        let _ = fs.remove(&temporary);
                    })?;
                self.log_bytes.fetch_add(bytes, Ordering::Relaxed);
                (temporary, file)
            }
        };
        let path = segment::path(&self.layout.log, id);
        fs.rename(&source, &path)
            .inspect_err(|_| self.add_leftover(&source, bytes))?;
        *failed_on = path.clone();
        fs.sync_dir(&self.layout.log)
            .inspect_err(|_| self.add_leftover(&path, bytes))?;
        Ok(Ready {
            id,
            path,
            file,
            bytes,
        })
    }

    pub(crate) fn has_reserve(&self) -> bool {
        self.state().reserve
    }

    /// There is a reserve from before.
    pub(crate) fn adopt_reserve(&self) {
        self.state().reserve = true;
    }

    /// Sees to it that there is a reserve.
    fn reserve(&self) -> Result<(), CommitError> {
        if self.has_reserve() {
            return Ok(());
        }
        let (temporary, path) = (self.layout.log.join("reserve.tmp"), self.layout.reserve());
        let made = self
            .make_zeroed(&temporary, &[0; PAGE as usize], RESERVE_BYTES)
            .and_then(|_| self.fs.rename(&temporary, &path))
            .and_then(|()| self.fs.sync_dir(&self.layout.log));
        let mut state = self.state();
        match made {
            Ok(()) => state.reserve = true,
            Err(error) => {
                let error = CommitError::unprepared(&path, error);
                state.problem = Some(error.clone());
                return Err(error);
            }
        }
        self.log_bytes.fetch_add(RESERVE_BYTES, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a segment ready out of the reserve.
    pub(crate) fn use_reserve(&self) -> Result<(), CommitError> {
        let _work = self.work();
        let path = self.layout.reserve();
        if !std::mem::take(&mut self.state().reserve) {
            return Err(CommitError::NoSpace { path });
        }
        let file = (path.clone(), RESERVE_BYTES);
        let mut failed_on = path.clone();
        let made = match self.make_of(Some(file), RESERVE_BYTES, &mut failed_on) {
            // Copy-on-write file systems need room to change what is there: that of the file.
            Err(error) if is_no_space(&error) => self
                .fs
                .remove(&path)
                .and_then(|()| self.fs.sync_dir(&self.layout.log))
                .and_then(|()| self.make_of(None, RESERVE_BYTES, &mut failed_on)),
            made => made,
        };
        let ready = made.map_err(|error| CommitError::unprepared(&failed_on, error))?;
        self.state().ready = Some(ready);
        Ok(())
    }

    fn make_zeroed(&self, path: &Path, page: &[u8], bytes: u64) -> io::Result<Arc<dyn File>> {
        if self.fs.kind(path)?.is_some() {
            self.fs.remove(path)?;
        }
        let file = self.fs.create(path)?;
        match file.allocate(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => other?,
        }
        // Written, not only reserved: else each sync of a frame would have to note in the
        // file system's own journal that its blocks hold data now.
        let mut offset = 0;
        while offset < bytes {
            if self.stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let piece = (bytes - offset).min(ZERO_BYTES as u64) as usize;
            file.write_zeros(offset, piece)?;
            if offset == 0 {
                file.write_at(page, 0)?;
            }
            file.sync_data()?;
            offset += piece as u64;
        }
        Ok(file)
    }

    /// Sets segments that end at or before `upto`, and older snapshots, aside.
    pub(crate) fn retire(&self, upto: Position) -> io::Result<Retired> {
        let _work = self.work();
        if self.stopped() {
            return Err(io::Error::other("the journal is closed"));
        }
        let fs = &*self.fs;
        let mut retired = Retired::default();
        if fs
            .kind(&snapshot::path(&self.layout.snap, upto.lsn))?
            .is_none()
        {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "there is no snapshot of this position to take the log's place",
            ));
        }
        fs.sync_dir(&self.layout.snap)?;
        self.snapshot_bytes.fetch_max(upto.bytes, Ordering::Relaxed);
        let (snapshots, _) = snapshot::list(fs, &self.layout)?;
        for lsn in snapshots.into_iter().filter(|lsn| *lsn < upto.lsn) {
            fs.remove(&snapshot::path(&self.layout.snap, lsn))?;
        }
        let mut spared = Vec::new();
        loop {
            let (closed, kept) = {
                let mut state = self.state();
                let Some(at) = state.closed.iter().position(|c| c.last_lsn <= upto.lsn) else {
                    break;
                };
                let kept = state.spares.len() + spared.len();
                (state.closed.remove(at), kept)
            };
            let path = segment::path(&self.layout.log, closed.id);
            let result = if closed.whole && kept < self.spare_limit(closed.bytes) {
                fs.rename(&path, &spare_path(&self.layout.log, closed.id))
                    .map(|()| {
                        spared.push((closed.id, closed.bytes));
                    })
            } else {
                fs.remove(&path).map(|()| {
                    self.log_bytes.fetch_sub(closed.bytes, Ordering::Relaxed);
                })
            };
            if let Err(error) = result {
                self.add_closed(closed);
                return Err(error);
            }
            retired.segments += 1;
        }
        if retired.segments > 0 {
            // Only then may a spare be overwritten: its old name must not come back.
            fs.sync_dir(&self.layout.log)?;
        }
        self.state().spares.extend(spared);
        Ok(retired)
    }
}

/// What [`Allocator::retire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Segments that went, or were set aside to be used again.
    pub segments: usize,
}

/// Makes segments ahead of their use and retires them after; see [`Journal::allocator`].
///
/// [`Journal::allocator`]: crate::Journal::allocator
#[derive(Clone)]
pub struct Allocator(pub(crate) Arc<Shared>);

impl Allocator {
    /// The body of a thread: makes each next segment when the one before is taken into use.
    /// Returns when the journal is closed, dropped or poisoned. After an error it tries again,
    /// after 100 ms at first and 5 s at last. `tell` is called with the first error of a row,
    /// and with none when a segment could be made again.
    pub fn run(&self, tell: impl Fn(Option<&CommitError>)) {
        let mut retry = None;
        loop {
            let result = self.step();
            let shared = &self.0;
            let state = shared.state();
            if state.stopped || state.poison.is_some() {
                return;
            }
            match result {
                Err(error) => {
                    let pause =
                        retry.map_or(RETRY_FIRST, |last: Duration| (last * 2).min(RETRY_LAST));
                    if retry.replace(pause).is_none() {
                        drop(state);
                        tell(Some(&error));
                        drop(shared.wake.wait_timeout(shared.state(), pause));
                    } else {
                        drop(shared.wake.wait_timeout(state, pause));
                    }
                }
                Ok(_) if retry.take().is_some() => {
                    drop(state);
                    tell(None);
                }
                Ok(_) if state.ready.is_some() && state.reserve => drop(shared.wake.wait(state)),
                Ok(_) => {}
            }
        }
    }

    /// Makes the next segment if there is none; says whether it did.
    ///
    /// # Errors
    /// [`CommitError::NoSpace`], [`CommitError::NoSegment`], or the error that ended the
    /// journal.
    pub fn step(&self) -> Result<bool, CommitError> {
        if self.0.has_ready() && self.0.has_reserve() {
            return Ok(false);
        }
        self.0.prepare_all()?;
        Ok(true)
    }

    /// Why the last attempt to make a segment failed, if it did.
    pub fn problem(&self) -> Option<CommitError> {
        self.0.state().problem.clone()
    }

    /// Lets go what a finished snapshot at `upto` replaces: older snapshots, and the
    /// segments that end at or before it. Not for the committing thread: removing files
    /// can take milliseconds.
    ///
    /// # Errors
    /// If there is no such snapshot, or those of the file system. Nothing needed is lost
    /// then, and the next call goes on.
    pub fn retire(&self, upto: Position) -> io::Result<Retired> {
        self.0.retire(upto)
    }
}
