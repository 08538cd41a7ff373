//! The log as its two kinds of writers share it: the end behind its mutex, and syncs that run
//! without the mutex.

use crate::Epoch;
use crate::allocator::Shared;
use crate::dir::Format;
use crate::end::{self, End, Hindrance};
use crate::epochs::Settled;
use crate::error::CommitError;
use crate::hold::Waited;
use crate::marker::{self, Failed, Marker};
use crate::open::Guards;
use crate::status::Status;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Who waits for what others do looks again after so long, whatever it was told.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the journal and its volatile writers share.
pub(crate) struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) status: Arc<Status>,
    pub(crate) no_fsync: bool,
    pub(crate) guards: Guards,
    pub(crate) marker_dir: Option<PathBuf>,
    pub(crate) cluster_id: u64,
    end: Mutex<End>,
    /// Told when what a volatile writer may wait for has changed.
    pub(crate) changed: Condvar,
    pub(crate) waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Log {
    pub(crate) fn new(
        shared: Shared,
        format: &Format,
        no_fsync: bool,
        guards: Guards,
        marker_dir: Option<PathBuf>,
    ) -> Log {
        let shared = Arc::new(shared);
        let status = Arc::new(Status::new());
        let cluster_id = format.identity.cluster_id;
        Log {
            end: Mutex::new(End::new(shared.clone(), status.clone(), format, no_fsync)),
            status,
            shared,
            no_fsync,
            guards,
            marker_dir,
            cluster_id,
            changed: Condvar::new(),
            waker: OnceLock::new(),
        }
    }

    /// A frame that a panic kept from being finished is not counted in: what is there is whole.
    pub(crate) fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end, unless someone is at it.
    pub(crate) fn try_end(&self) -> Option<MutexGuard<'_, End>> {
        self.end.try_lock().ok()
    }

    /// The end, once nothing is ordered and not visible. Only for the committer: what only a sync
    /// makes safe is synced here.
    pub(crate) fn at_rest(&self) -> Result<MutexGuard<'_, End>, CommitError> {
        loop {
            let mut end = self.end();
            let Some((lsn, hold)) = end.unreleased.zip(end.hold.clone()) else {
                return Ok(end);
            };
            drop(end);
            self.shared.poison().map_or(Ok(()), Err)?;
            match hold.wait(lsn, LOOK_AGAIN) {
                Waited::NotYet => {}
                Waited::DiskOnly => {
                    self.sync()?;
                }
                Waited::Safe => {
                    end = self.end();
                    if end.unreleased == Some(lsn) {
                        // Its writer has been told, and needs the end.
                        let woken = self.changed.wait_timeout(end, LOOK_AGAIN);
                        drop(woken);
                    }
                }
            }
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }

    /// Removes what kept a frame from being written, as far as that can be; then it is to be
    /// tried anew. It may wait for the disk, and the end must not be held.
    pub(crate) fn clear(&self, hindrance: Hindrance) -> Result<(), CommitError> {
        match hindrance {
            Hindrance::Segment { min_bytes } => self.shared.prepare_of(min_bytes),
            Hindrance::Sync => self.sync().map(drop),
            Hindrance::Reserve => self.shared.prepare_all(),
            Hindrance::Full { path, taken_back } => {
                let Some(file) = taken_back else {
                    return Err(CommitError::NoSpace { path });
                };
                let synced = file.sync_data();
                let synced = synced.map_err(|error| self.shared.set_poison(&path, error));
                self.end().taking_back -= 1;
                self.changed.notify_all();
                synced.and(Err(CommitError::NoSpace { path }))
            }
            Hindrance::Refused(error) => Err(error),
        }
    }

    /// Syncs all that was written before the call; `None` if there was nothing to sync. Only
    /// for the committer: of two syncs of one file at a time, the kernel may tell only one
    /// of an error.
    pub(crate) fn sync(&self) -> Result<Option<Duration>, CommitError> {
        let (target, files) = {
            let mut end = self.end();
            if let Some(error) = self.shared.poison() {
                return Err(error);
            }
            if end.marks.is_synced() {
                return Ok(None);
            }
            end.unsynced.sync_begins();
            (end.marks.written(), end.unsynced_files())
        };
        let began = Instant::now();
        let result = end::sync_files(&self.shared, &files).map(|()| (began.elapsed(), self.end()));
        let result = result.and_then(|(took, mut end)| {
            // The sync of what is taken back may be told of the error that this one met.
            while end.taking_back > 0 {
                let woken = self.changed.wait(end);
                end = woken.unwrap_or_else(PoisonError::into_inner);
            }
            self.shared.poison().map_or(Ok(()), Err)?;
            end.note_synced(target, took);
            Ok(Some(took))
        });
        self.changed.notify_all();
        result
    }

    /// If the note of an epoch's bound is on disk now, lets volatile writes go on up to it.
    pub(crate) fn settle_epoch(&self) -> Result<(), CommitError> {
        let mut end = self.end();
        let end = &mut *end;
        let synced = if self.no_fsync {
            end.marks.written()
        } else {
            end.marks.synced()
        };
        match end.epochs.synced(synced) {
            Settled::Nothing => return Ok(()),
            Settled::Renewed => {}
            Settled::Opened(epoch) => {
                let marker = self.make_marker(end, epoch)?;
                end.set_marker(marker);
            }
        }
        end.publish();
        self.changed.notify_all();
        Ok(())
    }

    /// The epoch is over, and that is on disk.
    pub(crate) fn remove_marker(&self) {
        let shared = &self.shared;
        marker::remove(&*shared.fs, self.marker_dir.as_deref(), &shared.layout);
    }

    /// Without a marker, a killed process restarts as after a power loss: that is no reason
    /// not to write.
    fn make_marker(&self, end: &End, epoch: Epoch) -> Result<Option<Marker>, CommitError> {
        let (Some(current), Some(marker_dir)) = (&end.current, &self.marker_dir) else {
            return Ok(None);
        };
        let made = Marker::create(
            &*self.shared.fs,
            marker_dir,
            &self.shared.layout,
            (self.cluster_id, epoch.opened),
            current.id,
            end.marks.written(),
        );
        match made {
            Ok(marker) => Ok(Some(marker)),
            Err(Failed::Gone) => Ok(None),
            Err(Failed::Stuck(path, error)) => Err(self.shared.set_poison(&path, error)),
        }
    }
}
