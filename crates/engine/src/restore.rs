//! A store from what etcd's `key` bucket holds: its entries in revision order.

use crate::Engine;
use crate::record::{Revision, SnapshotItem, SnapshotMeta};
use crate::tail::{self, Fields, Key};
use std::ops::Bound;
use std::sync::Arc;

/// Why an entry is not part of a store's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Revisions must rise, and be 1 or more.
    #[error(
        "revision {}.{} does not come after revision {}.{}",
        at.main, at.sub, last.main, last.sub
    )]
    NotAscending {
        /// The entry's revision.
        at: Revision,
        /// That of the one before.
        last: Revision,
    },
    /// A key has no empty name.
    #[error("revision {}.{} is of a key without a name", at.main, at.sub)]
    NoKey {
        /// The entry's revision.
        at: Revision,
    },
    /// The fields do not belong to that revision.
    #[error(
        "revision {}.{} has mod revision {mod_revision}, create revision {create_revision} and version {version}, which cannot be",
        at.main, at.sub
    )]
    Fields {
        /// The entry's revision.
        at: Revision,
        /// Its mod revision.
        mod_revision: i64,
        /// Its create revision.
        create_revision: i64,
        /// Its version.
        version: i64,
    },
}

/// A restore under way. Leases come before the entries that name them.
#[derive(Debug)]
pub struct Restore<W> {
    engine: Engine<W>,
    last: Revision,
    /// Marked compacted after entries below that had been taken.
    unswept: bool,
}

impl<W> Restore<W> {
    /// Begins with an empty store. `compact_revision` is -1 for a source that was never
    /// compacted, else the revision that its last compaction was asked for, finished or not:
    /// what it makes unreachable is dropped on the way.
    pub fn new(mut engine: Engine<W>, compact_revision: i64) -> Self {
        engine.restore_begin(SnapshotMeta {
            revision: engine.revision.max(compact_revision),
            compact_revision,
        });
        Restore {
            engine,
            last: Revision::default(),
            unswept: false,
        }
    }

    /// The store so far.
    pub fn engine(&self) -> &Engine<W> {
        &self.engine
    }

    /// Adds a lease with its granted time to live in seconds.
    pub fn lease(&mut self, id: i64, ttl_s: i64) {
        self.engine.restore_item(SnapshotItem::Lease { id, ttl_s });
    }

    /// Sets an alarm (etcd's `AlarmType` number).
    pub fn alarm(&mut self, alarm: i32) {
        self.engine.restore_item(SnapshotItem::Alarm { alarm });
    }

    /// Adds a key's version, a tombstone without `put`. The store's revision follows.
    ///
    /// # Errors
    /// [`RestoreError`]; the entry is left out.
    pub fn version(
        &mut self,
        at: Revision,
        key: &[u8],
        put: Option<&Fields<'_>>,
    ) -> Result<(), RestoreError> {
        if key.is_empty() {
            return Err(RestoreError::NoKey { at });
        }
        if let Some(f) = put
            && (f.mod_revision != at.main
                || f.version < 1
                || !(1..=at.main).contains(&f.create_revision))
        {
            return Err(RestoreError::Fields {
                at,
                mod_revision: f.mod_revision,
                create_revision: f.create_revision,
                version: f.version,
            });
        }
        self.push(at, key, put.map(tail::encode))
    }

    /// Adds a bump record: a revision with nothing in it.
    ///
    /// # Errors
    /// [`RestoreError`]; the entry is left out.
    pub fn bump(&mut self, revision: i64) -> Result<(), RestoreError> {
        let at = Revision {
            main: revision,
            sub: 0,
        };
        self.push(at, &[], Some(Arc::from(&[][..])))
    }

    fn push(
        &mut self,
        at: Revision,
        key: &[u8],
        tail: Option<Arc<[u8]>>,
    ) -> Result<(), RestoreError> {
        if at <= self.last || at.main < 1 || at.sub < 0 || u32::try_from(at.sub).is_err() {
            let last = self.last;
            return Err(RestoreError::NotAscending { at, last });
        }
        self.last = at;
        let engine = &mut self.engine;
        let lease = tail.as_deref().map_or(0, |t| tail::decode(t).lease);
        let mut old_lease = 0;
        let pushed = engine.index.push(key, at, |old| {
            old_lease = old.map_or(0, |t| tail::decode(t).lease);
            tail
        });
        if old_lease != lease {
            engine.leases.detach(old_lease, key);
            engine.leases.attach(lease, pushed.key);
        }
        let compacted = engine.compact_revision;
        if at.main <= compacted {
            engine.index.forget(key, compacted.min(at.main + 1));
        }
        engine.revision = engine.revision.max(at.main);
        Ok(())
    }

    /// Marks everything up to `revision` compacted. The store's revision is at least that.
    pub fn compacted(&mut self, revision: i64) {
        let engine = &mut self.engine;
        if revision > engine.compact_revision {
            engine.compact_revision = revision;
            engine.revision = engine.revision.max(revision);
            self.unswept = true;
        }
    }

    /// The store, ready to serve.
    pub fn finish(mut self) -> Engine<W> {
        let engine = &mut self.engine;
        if self.unswept {
            let entries = engine.index.range(Bound::Unbounded, Bound::Unbounded);
            let keys: Vec<Key> = entries.map(|e| e.key().clone()).collect();
            for key in keys {
                engine.index.forget(&key, engine.compact_revision);
            }
        }
        engine.restore_end();
        self.engine
    }
}
