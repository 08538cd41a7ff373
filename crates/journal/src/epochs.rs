//! Epochs as this process sees them: whether volatile records may be shown now, and up to
//! which revision. `docs/decisions/0006-volatile-records.md` says what an epoch is for.

use crate::record::Note;
use crate::{Epoch, Lsn};

/// Revisions that an epoch reserves. A power loss skips as many at most.
const RESERVE: i64 = 4_000_000;
/// It is renewed when fewer are left.
const RENEW_BELOW: i64 = 2_000_000;

/// Where the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No epoch is open.
    #[default]
    Closed,
    /// The last process left one open, and nothing says yet that it is over.
    LeftOpen(Epoch),
    /// The note that opens one is in the log, in the frame that it names, and not known synced.
    Opening(Epoch),
    /// Revisions up to its bound may be shown.
    Open(Epoch),
    /// A note with a higher bound is in frame `noted_in`, and not known synced: until then the
    /// old bound holds.
    Renewing {
        epoch: Epoch,
        bound: i64,
        noted_in: Lsn,
    },
}

/// What volatile writers want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Demand {
    /// They are refused.
    #[default]
    Refused,
    /// They have all that they need, or none asked.
    Content,
    /// One waits for an epoch, or soon will.
    Wanted,
}

/// What came true with a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Nothing.
    Nothing,
    /// This epoch is open: volatile records may come.
    Opened(Epoch),
    /// It goes on with a higher bound.
    Renewed,
}

/// The epoch that is open, if one is, and what is asked of it. Its methods are the only way
/// from one state to the next.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    phase: Phase,
    demand: Demand,
    refusals: u64,
}

impl Epochs {
    /// A log that was read up to its end.
    pub(crate) fn found(open: Option<Epoch>) -> Epochs {
        Epochs {
            phase: open.map_or(Phase::Closed, Phase::LeftOpen),
            ..Epochs::default()
        }
    }

    /// The epoch that is open in the log.
    pub(crate) fn open(&self) -> Option<Epoch> {
        match self.phase {
            Phase::Closed => None,
            Phase::LeftOpen(epoch) | Phase::Opening(epoch) | Phase::Open(epoch) => Some(epoch),
            Phase::Renewing { epoch, bound, .. } => Some(Epoch { bound, ..epoch }),
        }
    }

    /// The highest revision that volatile writes may show.
    fn reserved(&self) -> Option<i64> {
        match self.phase {
            Phase::Closed | Phase::LeftOpen(_) | Phase::Opening(_) => None,
            Phase::Open(epoch) | Phase::Renewing { epoch, .. } => Some(epoch.bound),
        }
    }

    /// Whether volatile writes are taken.
    pub(crate) fn accepts(&self) -> bool {
        self.demand != Demand::Refused
    }

    /// Whether a volatile writer waits for a note.
    pub(crate) fn is_wanted(&self) -> bool {
        self.demand == Demand::Wanted
    }

    /// Whether volatile writes may show `revision` now.
    pub(crate) fn covers(&self, revision: i64) -> bool {
        self.reserved().is_some_and(|reserved| revision <= reserved)
    }

    /// How often there was no room to give what was wanted.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Takes volatile writes from now on.
    pub(crate) fn allow(&mut self) {
        if self.reserved().is_none() {
            self.demand = Demand::Wanted;
        } else if !self.accepts() {
            self.demand = Demand::Content;
        }
    }

    /// Takes no more of them.
    pub(crate) fn refuse(&mut self) {
        self.demand = Demand::Refused;
    }

    /// A volatile writer that is taken needs an epoch, or a higher bound.
    pub(crate) fn want(&mut self) {
        if self.accepts() {
            self.demand = Demand::Wanted;
        }
    }

    /// Asks for a higher bound in good time, if `revision` is near the one there is. True if that
    /// is news.
    pub(crate) fn want_in_time(&mut self, revision: i64) -> bool {
        let low = match self.phase {
            Phase::Open(epoch) => epoch.bound - revision < RENEW_BELOW,
            _ => false,
        };
        let news = low && self.demand == Demand::Content;
        if news {
            self.demand = Demand::Wanted;
        }
        news
    }

    /// There is no room for what was wanted: who waits for it is told.
    pub(crate) fn no_room(&mut self) {
        if self.is_wanted() {
            self.demand = Demand::Content;
        }
        self.refusals += 1;
    }

    /// The note that a frame after which the revision is `revision` should carry: an epoch
    /// is wanted, or its revisions run low, or it was left open.
    pub(crate) fn note_due(&self, revision: i64) -> Option<Note> {
        let opened = match self.phase {
            Phase::LeftOpen(_) if !self.is_wanted() => return Some(Note::EpochEnd),
            Phase::Opening(_) | Phase::Renewing { .. } => return None,
            Phase::Open(epoch) if epoch.bound - revision < RENEW_BELOW => epoch.opened,
            _ if !self.is_wanted() => return None,
            Phase::Open(epoch) => epoch.opened,
            Phase::Closed | Phase::LeftOpen(_) => 0,
        };
        Some(Note::Epoch {
            bound: revision.saturating_add(RESERVE),
            opened,
        })
    }

    /// Whether a note is in the log that is not known synced.
    pub(crate) fn is_noted(&self) -> bool {
        matches!(self.phase, Phase::Opening(_) | Phase::Renewing { .. })
    }

    /// A note is in frame `lsn`. True if no epoch is open any more.
    pub(crate) fn noted(&mut self, note: &Note, lsn: Lsn) -> bool {
        match (*note, self.phase) {
            (Note::Stamp { .. } | Note::Jump { .. } | Note::Followed(_), _) => return false,
            (Note::EpochEnd, _) => {
                self.phase = Phase::Closed;
                if self.is_wanted() {
                    self.demand = Demand::Content;
                }
                return true;
            }
            (Note::Epoch { bound, .. }, Phase::Open(epoch) | Phase::Renewing { epoch, .. }) => {
                self.phase = Phase::Renewing {
                    epoch,
                    bound,
                    noted_in: lsn,
                };
            }
            (Note::Epoch { bound, .. }, _) => {
                self.phase = Phase::Opening(Epoch { bound, opened: lsn });
            }
        }
        false
    }

    /// All up to `synced` is on disk.
    pub(crate) fn synced(&mut self, synced: Lsn) -> Settled {
        let settled = match self.phase {
            Phase::Opening(epoch) if epoch.opened <= synced => {
                self.phase = Phase::Open(epoch);
                Settled::Opened(epoch)
            }
            Phase::Renewing {
                epoch,
                bound,
                noted_in,
            } if noted_in <= synced => {
                self.phase = Phase::Open(Epoch { bound, ..epoch });
                Settled::Renewed
            }
            _ => return Settled::Nothing,
        };
        if self.is_wanted() {
            self.demand = Demand::Content;
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: i64 = RESERVE + 10;

    fn epoch(bound: i64) -> Epoch {
        Epoch { bound, opened: 5 }
    }

    fn phases() -> [Phase; 5] {
        [
            Phase::Closed,
            Phase::LeftOpen(epoch(BOUND)),
            Phase::Opening(epoch(BOUND)),
            Phase::Open(epoch(BOUND)),
            Phase::Renewing {
                epoch: epoch(BOUND),
                bound: 2 * BOUND,
                noted_in: 9,
            },
        ]
    }

    fn at(phase: Phase, demand: Demand) -> Epochs {
        Epochs {
            phase,
            demand,
            refusals: 0,
        }
    }

    /// For each phase: what is open, what is covered, what the next frame should carry when
    /// nobody wants anything, when one does, and when revisions run low.
    #[test]
    fn each_phase_says_what_is_open_and_what_is_due() {
        let end = Some(Note::EpochEnd);
        let note = |revision: i64, opened| {
            let bound = revision + RESERVE;
            Some(Note::Epoch { bound, opened })
        };
        let low = BOUND - 7;
        let expected = [
            (None, false, None, note(10, 0), None),
            (Some(BOUND), false, end, note(10, 0), end),
            (Some(BOUND), false, None, None, None),
            (Some(BOUND), true, None, note(10, 5), note(low, 5)),
            (Some(2 * BOUND), true, None, None, None),
        ];
        for (phase, (open, covers, content, wanted, runs_low)) in phases().into_iter().zip(expected)
        {
            let epochs = at(phase, Demand::Content);
            assert_eq!(epochs.open().map(|epoch| epoch.bound), open, "{phase:?}");
            assert_eq!(epochs.covers(BOUND), covers, "{phase:?}");
            assert!(!epochs.covers(BOUND + 1), "{phase:?}");
            assert_eq!(epochs.note_due(10), content, "{phase:?}");
            assert_eq!(epochs.note_due(low), runs_low, "{phase:?}");
            assert_eq!(at(phase, Demand::Wanted).note_due(10), wanted, "{phase:?}");
        }
    }

    /// For each phase: where a note of an epoch, its end, and syncs up to frames 8 and 9 lead.
    #[test]
    fn each_phase_goes_on_by_notes_and_syncs() {
        let note = Note::Epoch {
            bound: 3 * BOUND,
            opened: 0,
        };
        let opening = Phase::Opening(Epoch {
            bound: 3 * BOUND,
            opened: 8,
        });
        let renewing = Phase::Renewing {
            epoch: epoch(BOUND),
            bound: 3 * BOUND,
            noted_in: 8,
        };
        let [closed, left_open, _, open, renewed] = phases();
        let opened = Settled::Opened(epoch(BOUND));
        let expected = [
            (
                opening,
                (closed, Settled::Nothing),
                (closed, Settled::Nothing),
            ),
            (
                opening,
                (left_open, Settled::Nothing),
                (left_open, Settled::Nothing),
            ),
            (opening, (open, opened), (open, opened)),
            (renewing, (open, Settled::Nothing), (open, Settled::Nothing)),
            (
                renewing,
                (renewed, Settled::Nothing),
                (Phase::Open(epoch(2 * BOUND)), Settled::Renewed),
            ),
        ];
        for (phase, (noted, by_8, by_9)) in phases().into_iter().zip(expected) {
            let mut epochs = at(phase, Demand::Wanted);
            assert!(!epochs.noted(&note, 8));
            assert_eq!(
                (epochs.phase, epochs.demand),
                (noted, Demand::Wanted),
                "{phase:?}"
            );
            let mut epochs = at(phase, Demand::Wanted);
            assert!(epochs.noted(&Note::EpochEnd, 8));
            assert_eq!(
                (epochs.phase, epochs.demand),
                (closed, Demand::Content),
                "{phase:?}"
            );
            for (synced, (after, settled)) in [(8, by_8), (9, by_9)] {
                let mut epochs = at(phase, Demand::Wanted);
                assert_eq!(epochs.synced(synced), settled, "{phase:?} {synced}");
                assert_eq!(epochs.phase, after, "{phase:?} {synced}");
                assert_eq!(epochs.is_wanted(), settled == Settled::Nothing, "{phase:?}");
            }
        }
    }

    #[test]
    fn each_demand_goes_on() {
        let [closed, _, _, open, _] = phases();
        let after = |phase, demand, change: fn(&mut Epochs)| {
            let mut epochs = at(phase, demand);
            change(&mut epochs);
            (epochs.demand, epochs.refusals)
        };
        use Demand::{Content, Refused, Wanted};
        for demand in [Refused, Content, Wanted] {
            assert_eq!(after(closed, demand, Epochs::allow), (Wanted, 0));
            let kept = if demand == Refused { Content } else { demand };
            assert_eq!(after(open, demand, Epochs::allow), (kept, 0));
            assert_eq!(after(open, demand, Epochs::refuse), (Refused, 0));
            let wanted = if demand == Refused { Refused } else { Wanted };
            assert_eq!(after(closed, demand, Epochs::want), (wanted, 0));
            let told = if demand == Wanted { Content } else { demand };
            assert_eq!(after(closed, demand, Epochs::no_room), (told, 1));
        }
        let mut epochs = at(open, Content);
        assert!(!epochs.want_in_time(10));
        assert!(epochs.want_in_time(BOUND - 3) && !epochs.want_in_time(BOUND - 3));
    }
}
