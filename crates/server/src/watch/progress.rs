//! Progress that a client asked for, and progress that it is told of now and then.

use super::watchers::{StreamId, WatcherId, Watchers};

/// A stream's requests for progress. However many there are, two numbers hold them: one answer
/// serves all that were asked for before it, each at a revision that it shows or passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// None is open.
    Idle,
    /// One is open, from when the store was at this revision.
    Asked {
        /// That revision.
        at: i64,
        /// Where the store was at the last request, if there were more.
        last: i64,
    },
}

impl Progress {
    /// A request comes when the store is at a revision.
    pub(super) fn ask(&mut self, current: i64) {
        *self = match *self {
            Progress::Idle => Progress::Asked {
                at: current,
                last: current,
            },
            // The first is not put off by what comes after it.
            Progress::Asked { at, .. } => Progress::Asked { at, last: current },
        };
    }

    /// The revision that an answer must reach.
    pub(super) fn asked_at(&self) -> Option<i64> {
        match self {
            Progress::Idle => None,
            Progress::Asked { at, .. } => Some(*at),
        }
    }

    /// An answer showed a revision.
    pub(super) fn answered(&mut self, revision: i64) {
        *self = match *self {
            Progress::Asked { last, .. } if last > revision => Progress::Asked { at: last, last },
            _ => Progress::Idle,
        };
    }
}

/// A round of notifications to a stream's watchers, after a tick of its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// None is under way.
    Done,
    /// Its watchers up to this id have had theirs.
    After(Option<i64>),
}

impl Round {
    /// A tick. One that is under way goes on.
    pub(super) fn begin(&mut self) {
        if self.is_done() {
            *self = Round::After(None);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        *self == Round::Done
    }

    /// The next watcher of the round.
    pub(super) fn next(
        &mut self,
        watchers: &Watchers,
        stream: StreamId,
    ) -> Option<(i64, WatcherId)> {
        let Round::After(after) = *self else {
            return None;
        };
        let next = watchers.next_of(stream, after);
        *self = next.map_or(Round::Done, |(watch_id, _)| Round::After(Some(watch_id)));
        next
    }
}
