//! What others may know of the log without waiting for it: numbers that who holds the log's
//! end leaves here, each right by itself.

use crate::end::End;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// No epoch is open.
const NO_EPOCH: i64 = i64::MIN;
/// Nothing is unsynced.
const NONE: u64 = u64::MAX;

/// The numbers. They are written while the log's end is held, and read by anybody.
#[derive(Debug)]
pub(crate) struct Status {
    began: Instant,
    epoch_bound: AtomicI64,
    unsynced_frames: AtomicU64,
    unsynced_bytes: AtomicU64,
    /// Microseconds after `began`.
    oldest_us: AtomicU64,
    /// Changes with an epoch; nothing is done while it is locked.
    marker: Mutex<Option<PathBuf>>,
}

impl Status {
    pub(crate) fn new() -> Status {
        Status {
            began: Instant::now(),
            epoch_bound: AtomicI64::new(NO_EPOCH),
            unsynced_frames: AtomicU64::new(0),
            unsynced_bytes: AtomicU64::new(0),
            oldest_us: AtomicU64::new(NONE),
            marker: Mutex::new(None),
        }
    }

    /// Takes over the end's numbers.
    pub(crate) fn publish(&self, end: &End) {
        let (frames, bytes, oldest) = end.unsynced.totals();
        let bound = end.epochs.open().map_or(NO_EPOCH, |epoch| epoch.bound);
        let oldest_us = oldest.map_or(NONE, |at| {
            at.saturating_duration_since(self.began).as_micros() as u64
        });
        self.epoch_bound.store(bound, Ordering::Relaxed);
        self.unsynced_frames.store(frames, Ordering::Relaxed);
        self.unsynced_bytes.store(bytes, Ordering::Relaxed);
        self.oldest_us.store(oldest_us, Ordering::Relaxed);
    }

    fn marker(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.marker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The marker was made, or is gone.
    pub(crate) fn set_marker(&self, path: Option<&Path>) {
        *self.marker() = path.map(Path::to_owned);
    }

    pub(crate) fn volatile(&self) -> VolatileStatus {
        let bound = self.epoch_bound.load(Ordering::Relaxed);
        let oldest_us = self.oldest_us.load(Ordering::Relaxed);
        VolatileStatus {
            epoch_bound: (bound != NO_EPOCH).then_some(bound),
            unsynced_frames: self.unsynced_frames.load(Ordering::Relaxed),
            unsynced_bytes: self.unsynced_bytes.load(Ordering::Relaxed),
            oldest_unsynced: (oldest_us != NONE)
                .then(|| self.began + Duration::from_micros(oldest_us)),
            marker: self.marker().clone(),
        }
    }
}
