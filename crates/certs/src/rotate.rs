//! An authority is changed in three steps, so that at no moment somebody shows a certificate that
//! somebody else does not trust yet.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::AuthorityKind;

/// Where the change of an authority stands. The directories are the state: `KIND` signs,
/// `KIND.next` is trusted already, `KIND.previous` is trusted still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One authority signs, and it alone is trusted.
    Settled,
    /// The next one is trusted, and signs nothing yet.
    Announced,
    /// It signs; the previous one is trusted still.
    Switched,
}

/// A step of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the next authority, and trust it.
    Announce,
    /// Have it sign.
    Switch,
    /// Trust the previous one no more.
    Finish,
    /// Go back from [`Phase::Announced`].
    Cancel,
}

impl Phase {
    /// Where a step leads, or what to do instead.
    pub(crate) fn after(self, step: Step) -> Result<Self, &'static str> {
        match (self, step) {
            (Self::Settled, Step::Announce) => Ok(Self::Announced),
            (Self::Announced, Step::Switch) => Ok(Self::Switched),
            (Self::Switched, Step::Finish) | (Self::Announced, Step::Cancel) => Ok(Self::Settled),
            (Self::Settled, _) => Err("no change is under way: announce one first"),
            (Self::Announced, _) => Err(
                "the next one is announced: once every machine has the new trust files, switch; \
                 or cancel",
            ),
            (Self::Switched, _) => Err(
                "the next one signs already: once every machine has its new certificate, finish",
            ),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settled => "settled",
            Self::Announced => "the next one is announced",
            Self::Switched => "switched, the previous one is trusted still",
        })
    }
}

/// Where the directories of an authority are.
pub(crate) struct Places {
    /// The one that signs.
    pub(crate) current: PathBuf,
    pub(crate) next: PathBuf,
    pub(crate) previous: PathBuf,
}

impl Places {
    pub(crate) fn of(pki: &Path, kind: AuthorityKind) -> Self {
        let ca = pki.join("ca");
        Self {
            current: ca.join(kind.as_str()),
            next: ca.join(format!("{kind}.next")),
            previous: ca.join(format!("{kind}.previous")),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.previous.exists() {
            Phase::Switched
        } else if self.next.exists() {
            Phase::Announced
        } else {
            Phase::Settled
        }
    }

    /// Whether a switch was interrupted between its two renames.
    pub(crate) fn is_half_switched(&self) -> bool {
        !self.current.exists() && self.next.exists() && self.previous.exists()
    }

    /// Those that are trusted, the one that signs first.
    pub(crate) fn trusted(&self) -> Vec<&Path> {
        let all = [&self.current, &self.next, &self.previous];
        all.into_iter()
            .filter(|dir| dir.exists())
            .map(PathBuf::as_path)
            .collect()
    }
}
