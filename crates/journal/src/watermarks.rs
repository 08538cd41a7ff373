//! How far the log has got.

use crate::Lsn;

/// LSNs up to which all is written, on disk, and said to be on disk by the log itself. None goes
/// back, and each is at or below the one before. What followers have copied is another such mark,
/// and is theirs to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watermarks {
    written: Lsn,
    synced: Lsn,
    marked: Lsn,
}

impl Watermarks {
    /// Of a log that was read up to there: what a start found is on disk.
    pub(crate) fn found(end: Lsn) -> Self {
        Watermarks {
            written: end,
            synced: end,
            marked: end,
        }
    }

    /// The last frame in the log's file.
    pub(crate) fn written(&self) -> Lsn {
        self.written
    }

    /// The last frame that is known to be on disk, with all before it.
    pub(crate) fn synced(&self) -> Lsn {
        self.synced
    }

    /// The last frame of which the log says that it is on disk.
    pub(crate) fn marked(&self) -> Lsn {
        self.marked
    }

    /// Frames that are not known to be on disk.
    pub(crate) fn unsynced_frames(&self) -> u64 {
        self.written - self.synced
    }

    /// Whether all that is written is on disk.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced == self.written
    }

    /// The next frame was written; it says how far the log is on disk.
    pub(crate) fn wrote_next(&mut self) {
        self.written += 1;
        self.marked = self.synced;
    }

    /// A sync ended that was begun when the log reached `target`.
    pub(crate) fn synced_up_to(&mut self, target: Lsn) {
        debug_assert!(target <= self.written);
        self.synced = self.synced.max(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_only_grow_and_stay_in_order() {
        let mut marks = Watermarks::found(7);
        assert!(marks.is_synced());
        for _ in 0..3 {
            marks.wrote_next();
        }
        assert_eq!(
            (marks.written(), marks.synced(), marks.marked()),
            (10, 7, 7)
        );
        assert_eq!(marks.unsynced_frames(), 3);
        marks.synced_up_to(9);
        // One that was begun earlier ends later.
        marks.synced_up_to(8);
        assert_eq!((marks.synced(), marks.marked()), (9, 7));
        marks.wrote_next();
        assert_eq!((marks.written(), marks.marked()), (11, 9));
        assert!(!marks.is_synced());
    }
}
