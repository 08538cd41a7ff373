//! A server's snapshot on its way into a copy: into a store in memory, and into a snapshot of the
//! copy's own log, which takes the place of all before it once it is whole.

use crate::error::Error;
use crate::kept::{Store, new_store};
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use files::FileSystem;
use journal::{Position, Replay, SnapshotWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) struct Reseed {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    at: Position,
    store: Store,
    out: Option<SnapshotWriter>,
    whole: bool,
}

impl Reseed {
    /// One that will stand at `at` of the copy's log.
    pub(crate) fn new(fs: Arc<dyn FileSystem>, dir: &Path, at: Position) -> Self {
        Reseed {
            fs,
            dir: dir.to_owned(),
            at,
            store: new_store(),
            out: None,
            whole: false,
        }
    }

    /// The store, now that all of it is on disk under its name.
    pub(crate) fn finish(self) -> Result<Store, Error> {
        match self.out {
            Some(out) if self.whole => {
                out.finish()?;
                Ok(self.store)
            }
            _ => Err(Error::OutOfOrder("the snapshot has no end")),
        }
    }
}

impl Replay for Reseed {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        let out = SnapshotWriter::create(self.fs.clone(), &self.dir, meta, self.at);
        self.out = Some(out.map_err(|error| error.to_string())?);
        Replay::snapshot(&mut self.store, meta)
    }

    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        if let Some(out) = &mut self.out {
            out.push(&item).map_err(|error| error.to_string())?;
        }
        Replay::item(&mut self.store, item)
    }

    fn end_of_snapshot(&mut self) -> Result<(), String> {
        self.whole = true;
        Replay::end_of_snapshot(&mut self.store)
    }

    fn record(&mut self, _: Record) -> Result<(), String> {
        Err("a snapshot has no records".to_owned())
    }

    fn revision(&self) -> i64 {
        self.store.revision()
    }

    fn jump(&mut self, _: i64) -> Result<(), String> {
        Err("a snapshot has no jumps".to_owned())
    }
}
