//! Segments ahead of their use, and after it.
//!
//! One segment is made ahead on a thread of the caller's, so that a commit finds it there,
//! zeroed, synced and with its room reserved: running out of space shows here, where
//! nothing depends on it yet. A retired segment is used again (its old frames name another
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
/// How long to wait before asking a full disk again.
const RETRY: Duration = Duration::from_secs(1);

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
    stopped: bool,
    no_space: bool,
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

    pub(crate) fn add_spare(&self, id: u64, bytes: u64) {
        self.state().spares.push((id, bytes));
    }

    /// How many spare segments may be kept.
    pub(crate) fn spare_limit(&self) -> usize {
        self.spare_segments
    }

    /// Whether a file of `bytes` is worth keeping as a spare segment.
    pub(crate) fn fits_spare(&self, bytes: u64) -> bool {
        bytes == self.segment_bytes
    }

    /// Takes the segment made ahead, making one of `min_bytes` or more if there is none.
    pub(crate) fn take_ready(&self, min_bytes: u64) -> Result<Ready, CommitError> {
        loop {
            {
                let mut state = self.state();
                if state
                    .ready
                    .as_ref()
                    .is_some_and(|ready| ready.bytes >= min_bytes)
                {
                    let ready = state.ready.take();
                    self.wake.notify_all();
                    if let Some(ready) = ready {
                        state.in_use = ready.id;
                        return Ok(ready);
                    }
                }
            }
            self.prepare(min_bytes.max(self.segment_bytes))?;
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.state().ready.is_some()
    }

    pub(crate) fn prepare_default(&self) -> Result<(), CommitError> {
        self.prepare(self.segment_bytes)
    }

    /// Sees to it that a segment of `bytes` or more is ready.
    pub(crate) fn prepare(&self, bytes: u64) -> Result<(), CommitError> {
        let _work = self.work();
        if let Some(error) = self.poison() {
            return Err(error);
        }
        let outgrown = {
            let mut state = self.state();
            if state.stopped {
                return Ok(());
            }
            match &state.ready {
                Some(ready) if ready.bytes >= bytes => return Ok(()),
                _ => state.ready.take(),
            }
        };
        let mut failed_on = self.layout.log.clone();
        let result = (|| {
            if let Some(ready) = outgrown {
                // Ids go up along the log: a larger one comes next, this one goes.
                failed_on = ready.path;
                self.fs.remove(&failed_on)?;
                self.log_bytes.fetch_sub(ready.bytes, Ordering::Relaxed);
            }
            self.make(bytes, &mut failed_on)
        })();
        match result {
            Ok(ready) => {
                let mut state = self.state();
                state.ready = Some(ready);
                state.no_space = false;
                Ok(())
            }
            Err(_) if self.stopped() => Ok(()),
            Err(error) if is_no_space(&error) => {
                self.state().no_space = true;
                Err(CommitError::NoSpace { path: failed_on })
            }
            Err(error) => Err(self.set_poison(&failed_on, error)),
        }
    }

    /// Makes a segment file from a spare one or anew, and gives it the next id.
    fn make(&self, bytes: u64, failed_on: &mut PathBuf) -> io::Result<Ready> {
        let fs = &*self.fs;
        let (spare, id, in_use) = {
            let mut state = self.state();
            let fit = state.spares.iter().position(|(_, size)| *size >= bytes);
            state.next_id += 1;
            (
                fit.map(|at| state.spares.swap_remove(at)),
                state.next_id - 1,
                state.in_use,
            )
        };
        let bytes = spare.map_or(bytes, |(_, size)| size);
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
        let (source, file) = match spare {
            Some((spare_id, _)) => {
                let source = spare_path(&self.layout.log, spare_id);
                *failed_on = source.clone();
                let reuse = || -> io::Result<_> {
                    let file = fs.open(&source, true)?;
                    file.write_at(&page, 0)?;
                    file.sync_data()?;
                    Ok(file)
                };
                match reuse() {
                    Ok(file) => (source, file),
                    Err(error) => {
                        self.add_spare(spare_id, bytes);
                        return Err(error);
                    }
                }
            }
            None => {
                let temporary = self.layout.log.join("next.tmp");
                *failed_on = temporary.clone();
                let file = self
                    .make_zeroed(&temporary, &page, bytes)
                    .inspect_err(|_| {
                        // Gives back what room it took; else the next start removes it.
                        let _ = fs.remove(&temporary);
                    })?;
                self.log_bytes.fetch_add(bytes, Ordering::Relaxed);
                (temporary, file)
            }
        };
        let path = segment::path(&self.layout.log, id);
        *failed_on = path.clone();
        fs.rename(&source, &path)?;
        fs.sync_dir(&self.layout.log)?;
        Ok(Ready {
            id,
            path,
            file,
            bytes,
        })
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
            let (closed, spare) = {
                let mut state = self.state();
                let Some(at) = state.closed.iter().position(|c| c.last_lsn <= upto.lsn) else {
                    break;
                };
                let spare = state.spares.len() + spared.len() < self.spare_segments;
                (state.closed.remove(at), spare)
            };
            let path = segment::path(&self.layout.log, closed.id);
            let result = if spare && closed.whole && self.fits_spare(closed.bytes) {
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
    /// Returns when the journal is closed, dropped or poisoned. While the disk is full it asks again every second.
    pub fn run(&self) {
        loop {
            let result = self.step();
            let shared = &self.0;
            let state = shared.state();
            if state.stopped || state.poison.is_some() {
                return;
            }
            if result.is_err() {
                drop(shared.wake.wait_timeout(state, RETRY));
            } else if state.ready.is_some() {
                drop(shared.wake.wait(state));
            }
        }
    }

    /// Makes the next segment if there is none; says whether it did.
    ///
    /// # Errors
    /// [`CommitError::NoSpace`], or the error that ended the journal.
    pub fn step(&self) -> Result<bool, CommitError> {
        if self.0.has_ready() {
            return Ok(false);
        }
        self.0.prepare_default()?;
        Ok(true)
    }

    /// Whether the last attempt to make a segment found no room.
    pub fn no_space(&self) -> bool {
        self.0.state().no_space
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
