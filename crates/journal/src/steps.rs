//! The three steps of a durable write: append, order, release. Each is a value that the next one
//! takes, so that none can be left out or done twice.

use crate::end::{self, Content, End, Hindrance, Written};
use crate::error::CommitError;
use crate::frame::{FLAG_PLACED, MAX_PAYLOAD_BYTES};
use crate::log::Log;
use crate::record::Note;
use crate::tap::Lane;
use crate::writer::CommitInfo;
use crate::{Lsn, Position};
use engine::record::Record;
use std::fmt;
use std::sync::MutexGuard;

/// Durable records that are in the log's file, and neither known to be on disk nor visible.
#[must_use = "what is in the log has to become visible"]
pub struct Appended<R> {
    records: R,
    written: Written,
    /// The store's revision when it was written.
    before: i64,
    /// Revisions that the records take.
    taken: i64,
    /// It was written outside an epoch: its revisions follow from its place in the log.
    placed: bool,
}

impl<R> Appended<R> {
    /// The frame: it may be ordered once all up to it is synced.
    pub fn lsn(&self) -> Lsn {
        self.written.position.lsn
    }

    /// The log's end after it.
    pub fn position(&self) -> Position {
        self.written.position
    }
}

/// A frame that could not be ordered, and why; it can be tried again.
pub struct NotOrdered<R> {
    /// The frame.
    pub appended: Appended<R>,
    /// Why.
    pub reason: Box<CommitError>,
}

impl<R> NotOrdered<R> {
    fn new(appended: Appended<R>, reason: CommitError) -> Self {
        NotOrdered {
            appended,
            reason: Box::new(reason),
        }
    }
}

impl<R> fmt::Debug for NotOrdered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}: {}", self.appended.lsn(), self.reason)
    }
}

/// Records whose revisions and place are fixed, and that nobody has seen: nothing else becomes
/// visible before they are.
#[must_use = "nothing else is written until it is released"]
pub struct Ordered<'a, R> {
    log: &'a Log,
    end: MutexGuard<'a, End>,
    appended: Appended<R>,
    revision_before: i64,
    stamped: bool,
}

/// A place between two entries of the tap, with all before it visible and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The last [`Entry::sequence`](crate::Entry::sequence) before it.
    pub sequence: u64,
    /// The log's end then. What is not visible may be in the log before it.
    pub position: Position,
}

impl<R> Ordered<'_, R> {
    /// The place that the records have in the tap; what somebody else holds by then holds them.
    pub fn sequence(&self) -> u64 {
        self.end.tap.fed()
    }

    /// The point before these records, and what `open` sees there.
    pub fn point<T>(&self, open: impl FnOnce() -> T) -> (Point, T) {
        let point = Point {
            sequence: self.sequence().saturating_sub(1),
            position: self.end.position(),
        };
        (point, open())
    }

    /// The revision that the store has to have now; the records take those after it.
    pub fn revision_before(&self) -> i64 {
        self.revision_before
    }

    /// The third step: calls `publish`, which makes the records visible and answers.
    pub fn release<T>(mut self, publish: impl FnOnce() -> T) -> (CommitInfo, T) {
        let Appended { written, taken, .. } = self.appended;
        self.end.in_flight.remove(written.position.lsn);
        self.end.show(self.revision_before, taken);
        let published = publish();
        drop(self.end);
        self.log.changed.notify_all();
        let info = CommitInfo {
            position: written.position,
            bytes: written.bytes,
            write_us: written.write_us,
            sync_us: 0,
            stamped: self.stamped,
        };
        (info, published)
    }
}

pub(crate) fn append<R: AsRef<[Record]>>(
    log: &Log,
    own: Option<Note>,
    records: R,
    revision: impl Fn() -> i64,
) -> Result<Appended<R>, CommitError> {
    end::check_size(records.as_ref(), MAX_PAYLOAD_BYTES)?;
    let taken = end::revisions(records.as_ref());
    loop {
        let mut end = log.end();
        let before = end.revision_now(revision());
        let in_flight = end.in_flight.revisions();
        let note = end.note_due(before + in_flight + taken);
        let opens = matches!(note, Some(Note::Epoch { .. }));
        let placed = end.epochs.open().is_none() && !opens;
        let both;
        let notes = match (&note, &own) {
            (Some(note), Some(own)) => {
                both = [*note, *own];
                &both[..]
            }
            (Some(_), None) => note.as_slice(),
            (None, _) => own.as_slice(),
        };
        let appended = end.append(Content {
            notes,
            records: records.as_ref(),
            // Outside an epoch frames become visible in the log's order.
            revision_before: if placed { before + in_flight } else { before },
            flags: 0,
        });
        match appended {
            Ok(written) => {
                end.in_flight.add(written.position.lsn, taken);
                return Ok(Appended {
                    records,
                    written,
                    before,
                    taken,
                    placed,
                });
            }
            Err(hindrance) => {
                drop(end);
                log.clear(hindrance)?;
            }
        }
    }
}

/// Whether a frame is ordered as a start would order it, or the log has to say how.
enum Place {
    /// As its place in the log says, or the frames after it.
    Told,
    /// Volatile writes took the revisions that it would have got.
    Passed,
    /// Before one that was written earlier.
    Earlier,
}

pub(crate) fn order<R: AsRef<[Record]>>(
    log: &Log,
    appended: Appended<R>,
    revision: impl Fn() -> i64,
) -> Result<Ordered<'_, R>, NotOrdered<R>> {
    let lsn = appended.lsn();
    loop {
        let mut end = match log.at_rest() {
            Ok(end) => end,
            Err(reason) => return Err(NotOrdered::new(appended, reason)),
        };
        if let Some(reason) = log.shared.poison() {
            return Err(NotOrdered::new(appended, reason));
        }
        let first = end.in_flight.first() == Some(lsn);
        // A holder's copy may end before a stamp: its order has to be the log's.
        let in_order = appended.placed || end.hold.is_some();
        if (end.marks.synced() < lsn && !log.no_fsync) || (in_order && !first) {
            return Err(NotOrdered::new(appended, CommitError::Unordered { lsn }));
        }
        let revision_before = revision();
        let place = if appended.taken == 0 || appended.placed || !log.guards.stamp {
            Place::Told
        } else if !first {
            Place::Earlier
        } else if end.marks.written() == lsn || revision_before == appended.before {
            Place::Told
        } else {
            Place::Passed
        };
        let noted = match place {
            Place::Told => Ok(false),
            Place::Passed => stamp(&mut end, lsn, revision_before),
            // Without its stamp a log that is trusted would be replayed in another order.
            Place::Earlier => stamp(&mut end, lsn, revision_before)
                .and_then(|stamped| Ok(end.mark_reached().map(|()| stamped)?)),
        };
        let hindrance = match noted {
            Ok(stamped) => return Ok(fed(log, end, appended, revision_before, stamped)),
            Err(hindrance) => hindrance,
        };
        drop(end);
        match (log.clear(hindrance), place) {
            (Ok(()), _) => {}
            // Without a stamp its revisions follow from the log's order, as long as all of the log
            // is there: only a power loss makes a difference, and gives it new ones.
            (Err(reason), Place::Passed) if reason.is_no_room() => {
                let end = match log.at_rest() {
                    Ok(end) => end,
                    Err(reason) => return Err(NotOrdered::new(appended, reason)),
                };
                return Ok(fed(log, end, appended, revision(), false));
            }
            (Err(reason), _) => return Err(NotOrdered::new(appended, reason)),
        }
    }
}

/// Notes which revisions frame `lsn` gets.
fn stamp(end: &mut End, lsn: Lsn, revision_before: i64) -> Result<bool, Hindrance> {
    end.append(Content {
        notes: &[Note::Stamp {
            lsn,
            revision_before,
        }],
        revision_before,
        flags: FLAG_PLACED,
        ..Content::default()
    })
    .map(|_| true)
}

/// The frame's place is fixed: whoever follows is told.
fn fed<'a, R: AsRef<[Record]>>(
    log: &'a Log,
    mut end: MutexGuard<'a, End>,
    appended: Appended<R>,
    revision_before: i64,
    stamped: bool,
) -> Ordered<'a, R> {
    let records = appended.records.as_ref();
    end.feed(&appended.written, revision_before, Lane::Durable, records);
    Ordered {
        log,
        end,
        appended,
        revision_before,
        stamped,
    }
}
