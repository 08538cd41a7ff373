//! The store as a stream of items at one revision, in slices, and back.

use crate::Engine;
use crate::history::Event;
use crate::index::Version;
use crate::record::{PutItem, Revision, SnapshotItem, SnapshotMeta, VersionItem};
use crate::tail::{self, Fields, Key};
use bytes::Bytes;
use std::ops::Bound;

/// Where a sliced snapshot stands.
#[derive(Debug)]
pub struct SnapshotCursor {
    /// What it is a snapshot of. Pin `meta.revision` is not needed: it reads everything
    /// retained, and [`SnapshotCursor::pin`] says what to pin.
    pub meta: SnapshotMeta,
    next: Option<Key>,
    done: bool,
}

impl SnapshotCursor {
    /// The revision to pin while it runs.
    pub fn pin(&self) -> i64 {
        self.meta.compact_revision.max(0)
    }
}

/// A key with versions, taken under the lock; turn it into an item outside.
#[derive(Debug)]
pub struct KeyVersions {
    key: Key,
    versions: Vec<Version>,
}

impl KeyVersions {
    /// The item. Copies the values.
    pub fn into_item(self) -> SnapshotItem {
        let versions = self.versions.iter().map(|v| VersionItem {
            revision: v.revision,
            put: v.fields().map(|f| PutItem {
                create_revision: f.create_revision,
                version: f.version,
                lease: f.lease,
                value: Bytes::copy_from_slice(f.value),
            }),
        });
        SnapshotItem::Key {
            key: Bytes::copy_from_slice(&self.key),
            versions: versions.collect(),
        }
    }
}

/// Drops what compaction has made unreachable but not freed yet.
fn drop_compacted(versions: &mut Vec<Version>, compact_revision: i64) {
    let below = versions.partition_point(|v| v.revision.main <= compact_revision);
    let gone = |i: usize, v: &Version| {
        v.revision.main < compact_revision && (i + 1 < below || v.tail.is_none())
    };
    let mut i = 0;
    versions.retain(|v| {
        i += 1;
        i > below || !gone(i - 1, v)
    });
}

impl<W> Engine<W> {
    /// Opens a snapshot of the visible state; returns it with what comes before the keys.
    pub fn snapshot_open(&self) -> (SnapshotCursor, Vec<SnapshotItem>) {
        let meta = SnapshotMeta {
            revision: self.revision,
            compact_revision: self.compact_revision,
        };
        let leases = self.leases.all().into_iter();
        let leases = leases.map(|(id, ttl_s)| SnapshotItem::Lease { id, ttl_s });
        let alarms = self
            .alarms
            .iter()
            .map(|&alarm| SnapshotItem::Alarm { alarm });
        let head = leases.chain(alarms).collect();
        (
            SnapshotCursor {
                meta,
                next: None,
                done: false,
            },
            head,
        )
    }

    /// Reads on, visiting at most `max_keys` keys; returns true at the end.
    pub fn snapshot_step(
        &self,
        c: &mut SnapshotCursor,
        max_keys: usize,
        out: &mut Vec<KeyVersions>,
    ) -> bool {
        if c.done {
            return true;
        }
        let from = c.next.take();
        let start = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for slot in self.index.range(start, Bound::Unbounded).take(max_keys) {
            c.next = Some(slot.key.clone());
            let all = slot.older().iter().chain([slot.newest()]);
            let mut versions: Vec<_> = all
                .filter(|v| v.revision.main <= c.meta.revision)
                .cloned()
                .collect();
            drop_compacted(&mut versions, c.meta.compact_revision);
            if !versions.is_empty() {
                out.push(KeyVersions {
                    key: slot.key.clone(),
                    versions,
                });
            }
        }
        c.done = c.next.is_none();
        c.done
    }

    /// Begins a restore into an empty store.
    pub fn restore_begin(&mut self, meta: SnapshotMeta) {
        self.revision = meta.revision;
        self.compact_revision = meta.compact_revision;
    }

    /// Restores one item.
    pub fn restore_item(&mut self, item: SnapshotItem) {
        match item {
            SnapshotItem::Lease { id, ttl_s } => self.leases.grant(id, ttl_s, self.now_ms),
            SnapshotItem::Alarm { alarm } => {
                self.alarms.insert(alarm);
            }
            SnapshotItem::Key { key, versions } => {
                let key = Key::from(key.as_ref());
                let to_version = |v: VersionItem| Version {
                    revision: v.revision,
                    tail: v.put.map(|p| {
                        tail::encode(&Fields {
                            create_revision: p.create_revision,
                            mod_revision: v.revision.main,
                            version: p.version,
                            value: &p.value,
                            lease: p.lease,
                        })
                    }),
                };
                let versions: Vec<Version> = versions.into_iter().map(to_version).collect();
                if let Some(f) = versions.last().and_then(Version::fields)
                    && f.lease != 0
                {
                    self.leases.attach(f.lease, key.clone());
                }
                self.index.restore(key, versions);
            }
        }
    }

    /// Ends a restore: rebuilds the history ring from the versions.
    pub fn restore_end(&mut self) {
        let mut events: Vec<Event> = Vec::new();
        for slot in self.index.range(Bound::Unbounded, Bound::Unbounded) {
            let mut prev: Option<&Version> = None;
            for v in slot.older().iter().chain([slot.newest()]) {
                if v.revision.main >= self.compact_revision {
                    events.push(Event {
                        revision: v.revision,
                        key: slot.key.clone(),
                        tail: v.tail.clone(),
                        prev: prev.and_then(|p| p.tail.clone()),
                    });
                }
                prev = Some(v);
            }
        }
        events.sort_unstable_by_key(|e| -> Revision { e.revision });
        for e in events {
            self.history.push(e);
        }
    }
}
