//! A stopped server's data directory into an engine, without changing it.

use crate::failure::Failure;
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use engine::{Engine, Limits};
use journal::fs::real::RealFs;
use journal::{CheckReport, Replay};
use std::path::Path;
use std::sync::Arc;

/// Events freed at a time.
const COMPACT_EVENTS: usize = 4096;
/// Records between looks for compacted history.
const LOOK_EVERY: u64 = 4096;

/// A directory, read.
pub(crate) struct Read {
    pub(crate) engine: Engine<()>,
    pub(crate) report: CheckReport,
}

/// Reads all of a directory that no server has open.
pub(crate) fn read(dir: &Path) -> Result<Read, Failure> {
    let mut feed = Feed::new();
    let marker_dir = journal::default_marker_dir();
    let files = Arc::new(RealFs::new());
    let report = journal::read(files, dir, marker_dir.as_deref(), &mut feed)?;
    Ok(Read {
        engine: feed.engine,
        report,
    })
}

/// Feeds an engine, and frees compacted history on the way.
pub(crate) struct Feed {
    pub(crate) engine: Engine<()>,
    records: u64,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Feed {
            engine: Engine::new(Limits::default()),
            records: 0,
        }
    }

    /// Applies a record, and frees what a compaction left.
    pub(crate) fn apply(&mut self, record: Record) {
        let compacts = matches!(record, Record::Compact { .. });
        self.engine.apply(record);
        self.records += 1;
        if compacts || self.records.is_multiple_of(LOOK_EVERY) {
            while self.engine.compaction_due() {
                self.engine.compact_step(COMPACT_EVENTS);
            }
        }
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
        self.apply(record);
        Ok(())
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.engine.jump(revision)
    }

    fn revision(&self) -> i64 {
        self.engine.revision()
    }
}
