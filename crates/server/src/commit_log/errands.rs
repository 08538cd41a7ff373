//! What others have the committer do between two batches.

use super::CommitLog;
use engine::record::SnapshotItem;
use engine::snapshot::SnapshotCursor;
use journal::{Follower, Hold, Holder, HolderSet, Point};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often one that waits for the committer looks whether the server stops.
const STOP_LOOK: Duration = Duration::from_millis(100);

/// Something for the committer to do.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Volatile writes may come from now on.
    AllowVolatile,
    /// All that is in the log is to be on disk.
    Sync,
    /// The same, and no volatile write comes any more: the epoch ends.
    EndVolatile,
    /// Somebody follows from now on: the tap with a limit in bytes.
    Follow {
        /// Bytes of records that wait at most.
        limit_bytes: u64,
        /// Where it goes.
        to: Sender<Follower>,
    },
    /// The store as it is at a point of the tap.
    Point(Sender<AtPoint>),
    /// Frames are held elsewhere too from now on.
    Hold(Sender<Arc<Hold>>),
    /// These count from now on, once that is noted.
    Count {
        /// They; none if nobody does.
        holders: Vec<Holder>,
        /// Where the set goes that counts.
        to: Sender<Option<HolderSet>>,
    },
    /// Frames are held nowhere else any more.
    HoldNoMore,
    /// Another server has taken this one's place: no start from this directory any more.
    Replaced,
}

/// The store at a point of the tap, to be read in slices.
#[derive(Debug)]
pub(crate) struct AtPoint {
    pub(crate) point: Point,
    pub(crate) cursor: SnapshotCursor,
    pub(crate) head: Vec<SnapshotItem>,
}

/// The server stops: the errand may not have been run.
#[derive(Debug)]
pub(crate) struct Stopping;

/// An errand, and whom to tell when it has run.
pub(super) struct Pending {
    pub(super) errand: Errand,
    pub(super) done: Sender<()>,
}

/// Errands that the committer has not taken. Each is somebody who waits: switches of rules, one at
/// a time.
#[derive(Default)]
pub(super) struct Errands(Mutex<Vec<Pending>>);

impl Errands {
    pub(super) fn take(&self) -> Vec<Pending> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl CommitLog {
    /// Has the committer run an errand, and waits for that.
    ///
    /// # Errors
    /// The server stops.
    pub(crate) fn order(&self, errand: Errand) -> Result<(), Stopping> {
        let (done, wait) = channel();
        self.errands.0.lock().push(Pending { errand, done });
        self.store.commit.raise();
        loop {
            match wait.recv_timeout(STOP_LOOK) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if !self.lifecycle.stopping() => {}
                Err(_) => return Err(Stopping),
            }
        }
    }
}
