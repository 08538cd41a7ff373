//! The store as a stream of items at one revision, in slices, and back.

use crate::Engine;
use crate::history::Event;
use crate::index::Version;
use crate::pin::{Pin, Strength};
use crate::record::{PutItem, Revision, SnapshotItem, SnapshotMeta, VersionItem};
use crate::tail::{self, Fields, Key};
use bytes::Bytes;
use std::ops::Bound;
use std::sync::Arc;

/// Where a sliced snapshot stands.
#[derive(Debug)]
pub struct SnapshotCursor {
    /// What it is a snapshot of.
    pub meta: SnapshotMeta,
    /// The key visited last, with its versions so far if there are more.
    at: Option<Key>,
    part: Vec<Version>,
    done: bool,
    /// Everything that compaction has left is part of it, superseded or not.
    pin: Option<Pin>,
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

impl SnapshotCursor {
    /// Collects a key's versions; returns false if `left` ran out before the end.
    fn visit(
        &mut self,
        key: &Key,
        versions: impl Iterator<Item = Version>,
        left: &mut usize,
        out: &mut Vec<KeyVersions>,
    ) -> bool {
        for v in versions.take_while(|v| v.revision.main <= self.meta.revision) {
            if *left == 0 && !self.part.is_empty() {
                return false;
            }
            *left = left.saturating_sub(1);
            self.part.push(v);
        }
        let versions = std::mem::take(&mut self.part);
        if !versions.is_empty() {
            out.push(KeyVersions {
                key: key.clone(),
                versions,
            });
        }
        true
    }
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
                at: None,
                part: Vec::new(),
                done: false,
                pin: Some(self.pin(meta.compact_revision.max(0), Strength::Firm)),
            },
            head,
        )
    }

    /// Reads on, visiting at most `max_versions` versions; returns true at the end.
    pub fn snapshot_step(
        &self,
        c: &mut SnapshotCursor,
        max_versions: usize,
        out: &mut Vec<KeyVersions>,
    ) -> bool {
        let mut left = max_versions.max(1);
        if let Some(last) = c.part.last()
            && let Some(key) = c.at.clone()
            && let Some(entry) = self.index.get(&key)
            && !c.visit(&key, entry.versions_after(last.revision), &mut left, out)
        {
            return c.done;
        }
        let from = c.at.clone();
        let start = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for entry in self.index.range(start, Bound::Unbounded) {
            if left == 0 {
                return c.done;
            }
            c.at = Some(entry.key().clone());
            let versions = entry.retained(c.meta.compact_revision);
            if !c.visit(entry.key(), versions, &mut left, out) {
                return c.done;
            }
        }
        c.done = true;
        c.pin = None;
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
                let bump = key.is_empty();
                let to_version = |v: VersionItem| Version {
                    revision: v.revision,
                    tail: v.put.map(|p| {
                        if bump {
                            return Arc::from(&[][..]);
                        }
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
        let mut events: Vec<Arc<Event>> = Vec::new();
        for entry in self.index.range(Bound::Unbounded, Bound::Unbounded) {
            // The newest version, and the newest of an earlier main revision.
            let mut last: Option<Version> = None;
            let mut before: Option<Version> = None;
            for v in entry.retained(self.compact_revision) {
                if last.as_ref().map(|l| l.revision.main) != Some(v.revision.main) {
                    before = last.take();
                }
                if v.revision.main >= self.compact_revision {
                    let created = v
                        .fields()
                        .is_some_and(|f| f.create_revision == f.mod_revision);
                    events.push(Arc::new(Event {
                        revision: v.revision,
                        key: entry.key().clone(),
                        tail: v.tail.clone(),
                        prev: before
                            .as_ref()
                            .filter(|_| !created)
                            .and_then(|p| p.tail.clone()),
                    }));
                }
                last = Some(v);
            }
        }
        events.sort_unstable_by_key(|e| -> Revision { e.revision });
        self.history.restore(events);
    }
}
