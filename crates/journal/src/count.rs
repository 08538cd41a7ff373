//! The log's frames in others' memory, as the journal's thread begins, counts and ends it.

use crate::error::{CommitError, OpenError};
use crate::hold::Hold;
use crate::holders::{Holder, HolderSet, HoldersNote, next_generation};
use crate::writer::Journal;
use std::sync::Arc;

/// Why a set of holders does not count.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// The log.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Its note in the directory.
    #[error(transparent)]
    Note(#[from] OpenError),
}

impl Journal {
    /// From here on what is not durable becomes visible when its frame, and every frame before
    /// it, is on disk or with all holders that count ([`count`](Journal::count)). Nobody counts
    /// yet. Returns what those need who send frames to holders.
    ///
    /// # Errors
    /// If the journal is poisoned, or is by this.
    pub fn hold(&mut self) -> Result<Arc<Hold>, CommitError> {
        if let Some(hold) = &self.log.end().hold {
            return Ok(hold.clone());
        }
        self.log.sync()?;
        let mut end = self.log.at_rest()?;
        let marks = end.marks;
        let hold = end.hold.get_or_insert_default().clone();
        hold.begin(marks.written(), marks.synced());
        Ok(hold)
    }

    /// Notes that a server that has holders begins, and returns how many did so far: for a
    /// directory that was made by this start. Others were told by [`recover`](crate::recover()).
    ///
    /// # Errors
    /// Those of the file system.
    pub fn next_generation(&mut self) -> Result<u64, OpenError> {
        let shared = &self.log.shared;
        next_generation(&*shared.fs, &shared.layout.dir)
    }

    /// From here on these count: frames that all of them have are safe. Returns the set, which
    /// begins after its [`after`](HolderSet::after): each is to be given all frames from there on
    /// that are not on disk. With no holders nothing is safe that is not on disk, and a start
    /// after a power loss has nobody to ask.
    ///
    /// It syncs, and notes the set in the directory, before anything counts on it; meanwhile
    /// nobody counts. `None` while no epoch is open: there is no room for its note.
    ///
    /// # Errors
    /// [`OpenError`] if the note cannot be written: then nobody counts, and after a power loss
    /// the set before this one is asked. A poisoned journal.
    pub fn count(
        &mut self,
        holders: Vec<Holder>,
        revision: impl Fn() -> i64,
    ) -> Result<Option<HolderSet>, CountError> {
        let hold = self.hold()?;
        self.upkeep(&revision)?;
        let after = {
            // Nothing is written meanwhile.
            let end = self.log.end();
            match end.epochs.covers(end.revision) {
                true => hold.keep(),
                false => return Ok(None),
            }
        };
        self.log.sync()?;
        let opened = {
            let end = self.log.end();
            let Some(epoch) = end.epochs.open() else {
                return Ok(None);
            };
            epoch.opened
        };
        let (fs, dir) = (&*self.log.shared.fs, &self.log.shared.layout.dir);
        let mut note = HoldersNote::read(fs, dir)?;
        note.last_set += 1;
        let set = HolderSet {
            number: note.last_set,
            opened,
            after,
            holders,
        };
        note.set = Some(set.clone());
        if self.log.guards.noted_set {
            note.write(fs, dir)?;
        }
        match set.holders.is_empty() {
            true => hold.disk_only(),
            false => hold.count(set.number, after),
        }
        Ok(Some(set))
    }

    /// Volatile writes become visible at once again. What was visible before is on disk.
    ///
    /// # Errors
    /// As [`count`](Journal::count); then frames are held as before, and nobody counts.
    pub fn hold_no_more(&mut self) -> Result<(), CountError> {
        {
            let end = self.log.end();
            let Some(hold) = &end.hold else { return Ok(()) };
            hold.disk_only();
        }
        drop(self.log.at_rest()?);
        self.log.sync()?;
        self.forget_set()?;
        let mut end = self.log.at_rest()?;
        end.hold = None;
        Ok(())
    }

    /// Nobody has to be asked for what was visible: the note says so.
    pub(crate) fn forget_set(&self) -> Result<(), OpenError> {
        let (fs, dir) = (&*self.log.shared.fs, &self.log.shared.layout.dir);
        let mut note = HoldersNote::read(fs, dir)?;
        match note.set.take() {
            Some(_) => note.write(fs, dir),
            None => Ok(()),
        }
    }

    /// The epoch is over, and its set with it, whatever the note says: one that stays costs the
    /// next start a look.
    pub(crate) fn forget_set_of_past(&self) {
        if self.log.end().hold.is_some() {
            let _ = self.forget_set();
        }
    }
}
