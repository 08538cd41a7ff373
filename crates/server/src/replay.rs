//! The journal's contents back into the engine, at start.

use crate::store::Waiter;
use engine::Engine;
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use journal::Replay;

/// Events freed at a time.
const COMPACT_EVENTS: usize = 4096;
/// Records between looks for compacted history.
const LOOK_EVERY: u64 = 4096;

/// Feeds an engine. Replay needs no more memory than serving: compacted history is freed
/// on the way.
pub(crate) struct Feed {
    pub(crate) engine: Engine<Waiter>,
    records: u64,
}

impl Feed {
    pub(crate) fn new(engine: Engine<Waiter>) -> Self {
        Feed { engine, records: 0 }
    }
}

impl Replay for Feed {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.engine.restore_begin(meta);
        Ok(())
    }

    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        self.engine.restore_item(item);
        Ok(())
    }

    fn end_of_snapshot(&mut self) -> Result<(), String> {
        self.engine.restore_end();
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        let compacts = matches!(record, Record::Compact { .. });
        self.engine.apply(record);
        self.records += 1;
        if compacts || self.records.is_multiple_of(LOOK_EVERY) {
            while self.engine.compaction_due() {
                self.engine.compact_step(COMPACT_EVENTS);
            }
        }
        Ok(())
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.engine.jump(revision)
    }

    fn revision(&self) -> i64 {
        self.engine.revision()
    }
}
