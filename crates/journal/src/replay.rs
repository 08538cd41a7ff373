//! Who takes what a journal holds.

use crate::record::Followed;
use engine::Engine;
use engine::record::{Record, SnapshotItem, SnapshotMeta};

/// Events of compacted history freed at a time.
const COMPACT_EVENTS: usize = 4096;

/// Takes what a journal holds, in order. An error ends the start with its text.
pub trait Replay {
    /// A snapshot begins; at most once, before everything else.
    ///
    /// # Errors
    /// A sentence why the store does not take it.
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String>;
    /// The next item of the snapshot.
    ///
    /// # Errors
    /// A sentence why the store does not take it.
    fn item(&mut self, item: SnapshotItem) -> Result<(), String>;
    /// The snapshot was complete.
    ///
    /// # Errors
    /// A sentence why the store does not take it.
    fn end_of_snapshot(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// The next record.
    ///
    /// # Errors
    /// A sentence why the store does not take it.
    fn record(&mut self, record: Record) -> Result<(), String>;
    /// The store's revision now. Compared with what each frame says came before it.
    fn revision(&self) -> i64;
    /// The store's revision is `revision` now, by a bump record as etcd has it, and all at and
    /// below it is compacted.
    ///
    /// # Errors
    /// A sentence why the store does not take it.
    fn jump(&mut self, revision: i64) -> Result<(), String>;
    /// With the records of the next frame the store holds all of another server's records up to
    /// there. Nothing to a store that follows nobody.
    fn followed(&mut self, followed: Followed) {
        let _ = followed;
    }
}

/// Compacted history is freed on the way, so that a replay needs no more memory than serving.
impl<W> Replay for Engine<W> {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.restore_begin(meta);
        Ok(())
    }

    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        self.restore_item(item);
        Ok(())
    }

    fn end_of_snapshot(&mut self) -> Result<(), String> {
        self.restore_end();
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        self.apply(record);
        while self.compaction_due() {
            self.compact_step(COMPACT_EVENTS);
        }
        Ok(())
    }

    fn revision(&self) -> i64 {
        Engine::revision(self)
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        Engine::jump(self, revision)
    }
}
