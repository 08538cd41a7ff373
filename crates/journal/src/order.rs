//! The order in which a log's records are applied: that of their revisions.
//!
//! Frames are in the order of their writing. A durable frame of an epoch became visible when
//! its sync had ended, and volatile frames behind it may have been visible before: it is held
//! back here until something says when its turn came. That is a stamp, or the revision that a
//! later frame was written at: it says how much was visible by then.

use crate::frame::{FLAG_PLACED, FrameHeader, KNOWN_FLAGS};
use crate::record::{self, DecodeError, Entry, Note};
use crate::replay::Replay;
use crate::{Epoch, Lsn};
use engine::record::Record;
use std::collections::VecDeque;

/// Why a frame's records were not taken.
pub(crate) struct Refusal(pub(crate) String);

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Refusal(error.to_string())
    }
}

/// A durable frame that is on disk, and not known to have become visible.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) lsn: Lsn,
    pub(crate) records: Vec<Record>,
}

impl Held {
    pub(crate) fn apply(self, store: &mut dyn Replay) -> Result<(), Refusal> {
        self.records
            .into_iter()
            .try_for_each(|record| store.record(record))
            .map_err(Refusal)
    }
}

/// What is known between two frames.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The epoch that is open.
    pub(crate) epoch: Option<Epoch>,
    /// Frames held back, in log order, which is theirs among themselves unless stamps say
    /// otherwise. There are as many as a server has commits under way.
    pub(crate) held: VecDeque<Held>,
}

impl Order {
    /// Takes the next frame.
    pub(crate) fn frame(
        &mut self,
        store: &mut dyn Replay,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        if header.flags & !KNOWN_FLAGS != 0 {
            return Err(Refusal(format!(
                "its flags {:#x} are not known to this version of orlop; a newer one wrote it",
                header.flags
            )));
        }
        while store.revision() < header.revision_before
            && let Some(held) = self.held.pop_front()
        {
            held.apply(store)?;
        }
        let revision = store.revision();
        if revision != header.revision_before {
            return Err(Refusal(format!(
                "it was written at revision {}, and the store is at revision {revision}",
                header.revision_before
            )));
        }
        let placed = header.flags & FLAG_PLACED != 0;
        let mut records = Vec::new();
        record::decode_all(payload, header.records, |entry| match entry {
            Entry::Record(record) if placed || self.epoch.is_none() => {
                store.record(record).map_err(Refusal)
            }
            Entry::Record(record) => {
                records.push(record);
                Ok(())
            }
            Entry::Note(note) => self.note(store, header.lsn, note),
        })?;
        if records.is_empty() {
            return Ok(());
        }
        let takes_revisions = records.iter().any(Record::takes_revision);
        let held = Held {
            lsn: header.lsn,
            records,
        };
        if takes_revisions {
            self.held.push_back(held);
            Ok(())
        } else {
            // Locks kept everything that could tell the difference from it until it was visible.
            held.apply(store)
        }
    }

    fn note(&mut self, store: &mut dyn Replay, lsn: Lsn, note: Note) -> Result<(), Refusal> {
        match note {
            Note::Stamp {
                lsn: stamped,
                revision_before,
            } => {
                let revision = store.revision();
                let at = self.held.binary_search_by_key(&stamped, |held| held.lsn);
                let held = at.ok().filter(|_| revision == revision_before);
                let Some(held) = held.and_then(|at| self.held.remove(at)) else {
                    return Err(Refusal(format!(
                        "it gives frame {stamped} the revisions after {revision_before}, and that \
                         one has them, or the store is at revision {revision}"
                    )));
                };
                held.apply(store)
            }
            Note::Epoch { bound, opened } => {
                let opened = if opened == 0 { lsn } else { opened };
                self.epoch = Some(Epoch { bound, opened });
                Ok(())
            }
            Note::EpochEnd if self.held.is_empty() => {
                self.epoch = None;
                Ok(())
            }
            Note::EpochEnd => Err(Refusal(
                "it ends an epoch before all of its frames were visible".to_owned(),
            )),
            Note::Jump { revision } => store.jump(revision).map_err(Refusal),
            Note::Followed(followed) => {
                store.followed(followed);
                Ok(())
            }
        }
    }
}
