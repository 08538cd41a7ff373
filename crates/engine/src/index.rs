//! Keys and their retained versions: a hash for lookups, a B-tree for order.
//!
//! An update touches the hash and one slot; only new and forgotten keys touch the tree.

use crate::op::KeyRange;
use crate::record::Revision;
use crate::tail::{self, Fields, Key, KeyValue};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::Arc;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The revision that made it.
    pub revision: Revision,
    /// The encoded version; `None` for a tombstone.
    pub tail: Option<Arc<[u8]>>,
}

impl Version {
    /// The decoded fields, unless it is a tombstone.
    pub fn fields(&self) -> Option<Fields<'_>> {
        self.tail.as_deref().map(tail::decode)
    }

    fn tail_len(&self) -> usize {
        self.tail.as_ref().map_or(0, |t| t.len())
    }
}

/// A key's retained versions, oldest first.
#[derive(Debug)]
pub struct Slot {
    /// The key.
    pub key: Key,
    /// All but the newest. Boxed: most keys have none.
    #[allow(clippy::box_collection)] // 8 bytes instead of 24 in every slot
    older: Option<Box<Vec<Version>>>,
    newest: Version,
}

impl Slot {
    /// The newest version.
    pub fn newest(&self) -> &Version {
        &self.newest
    }

    /// The older versions, ascending.
    pub fn older(&self) -> &[Version] {
        self.older.as_ref().map_or(&[], |v| v.as_slice())
    }

    /// The version that stood at `revision`, tombstones included.
    pub fn at(&self, revision: i64) -> Option<&Version> {
        if self.newest.revision.main <= revision {
            return Some(&self.newest);
        }
        let older = self.older();
        let n = older.partition_point(|v| v.revision.main <= revision);
        n.checked_sub(1).map(|i| &older[i])
    }

    /// The version that stood at `revision` unless the key did not exist then.
    pub fn live_at(&self, revision: i64) -> Option<&Version> {
        self.at(revision).filter(|v| v.tail.is_some())
    }
}

/// Bytes that a key, a version and a history event cost beyond key and value; the
/// measure of the quota and of the history budget.
pub const KEY_OVERHEAD_BYTES: usize = 96;
/// See [`KEY_OVERHEAD_BYTES`].
pub const VERSION_OVERHEAD_BYTES: usize = 48;

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    hash: HashTable<u32>,
    hasher: DefaultHashBuilder,
    order: BTreeMap<Key, u32>,
    live_keys: usize,
    live_bytes: usize,
    total_bytes: usize,
}

impl Index {
    /// Number of keys that exist now.
    pub fn live_keys(&self) -> usize {
        self.live_keys
    }

    /// Bytes of the keys that exist now.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Bytes of everything retained.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let h = self.hasher.hash_one(key);
        self.hash.find(h, |&i| self.key_of(i) == Some(key)).copied()
    }

    fn key_of(&self, i: u32) -> Option<&[u8]> {
        self.slots[i as usize].as_ref().map(|s| s.key.as_ref())
    }

    /// The slot of `key`, also if only a tombstone is left.
    pub fn get(&self, key: &[u8]) -> Option<&Slot> {
        self.find(key).and_then(|i| self.slots[i as usize].as_ref())
    }

    /// The version of `key` that exists now.
    pub fn live(&self, key: &[u8]) -> Option<(&Key, &Version)> {
        let slot = self.get(key)?;
        slot.newest
            .tail
            .is_some()
            .then_some((&slot.key, &slot.newest))
    }

    /// `key` as it is now.
    pub fn live_kv(&self, key: &[u8]) -> Option<KeyValue> {
        let (key, v) = self.live(key)?;
        Some(KeyValue {
            key: key.clone(),
            tail: v.tail.clone()?,
        })
    }

    /// The slots of a range in key order, those with nothing but a tombstone included.
    pub fn range<'a>(
        &'a self,
        start: Bound<&'a [u8]>,
        end: Bound<&'a [u8]>,
    ) -> impl Iterator<Item = &'a Slot> + 'a {
        // BTreeMap::range panics on an inverted range; etcd answers it with nothing.
        let empty = match (start, end) {
            (Bound::Included(s), Bound::Excluded(e)) => s >= e,
            (Bound::Excluded(s), Bound::Excluded(e)) => s >= e,
            _ => false,
        };
        let range = (!empty).then(|| self.order.range::<[u8], _>((start, end)));
        range
            .into_iter()
            .flatten()
            .filter_map(|(_, &i)| self.slots[i as usize].as_ref())
    }

    /// The slots of an etcd range.
    pub fn range_of<'a>(&'a self, range: &'a KeyRange) -> Box<dyn Iterator<Item = &'a Slot> + 'a> {
        if range.is_one() {
            return Box::new(self.get(&range.key).into_iter());
        }
        let end = range.upper().map_or(Bound::Unbounded, Bound::Excluded);
        Box::new(self.range(Bound::Included(&range.key), end))
    }

    /// Appends a version to `key`; returns the shared key and the version it follows.
    /// Revisions of one key must rise.
    pub fn push(&mut self, key: &[u8], version: Version) -> (Key, Option<Version>) {
        let live_now = version.tail.is_some();
        let tail_len = version.tail_len();
        self.total_bytes += tail_len + VERSION_OVERHEAD_BYTES;
        let (shared, prev) = match self.find(key) {
            Some(i) => {
                let slot = self.slots[i as usize].as_mut();
                // `find` returns only occupied slots.
                let Some(slot) = slot else {
                    return (Key::from(key), None);
                };
                debug_assert!(slot.newest.revision < version.revision);
                let prev = std::mem::replace(&mut slot.newest, version);
                slot.older.get_or_insert_default().push(prev.clone());
                (slot.key.clone(), Some(prev))
            }
            None => {
                let shared = Key::from(key);
                self.insert_slot(Slot {
                    key: shared.clone(),
                    older: None,
                    newest: version,
                });
                (shared, None)
            }
        };
        let was = prev.as_ref().filter(|p| p.tail.is_some());
        if let Some(p) = was {
            self.live_keys -= 1;
            self.live_bytes -= key.len() + KEY_OVERHEAD_BYTES + p.tail_len();
        }
        if live_now {
            self.live_keys += 1;
            self.live_bytes += key.len() + KEY_OVERHEAD_BYTES + tail_len;
        }
        (shared, prev)
    }

    fn insert_slot(&mut self, slot: Slot) {
        self.total_bytes += slot.key.len() + KEY_OVERHEAD_BYTES;
        let key = slot.key.clone();
        let i = match self.free.pop() {
            Some(i) => i,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[i as usize] = Some(slot);
        let (slots, hasher) = (&self.slots, &self.hasher);
        let h = hasher.hash_one(key.as_ref());
        self.hash.insert_unique(h, i, |&j| {
            slots[j as usize]
                .as_ref()
                .map_or(0, |s| hasher.hash_one(s.key.as_ref()))
        });
        self.order.insert(key, i);
    }

    /// Restores a key with all its versions (ascending, not empty); its key must be new.
    pub fn restore(&mut self, key: Key, mut versions: Vec<Version>) {
        let Some(newest) = versions.pop() else { return };
        for v in versions.iter().chain([&newest]) {
            self.total_bytes += v.tail_len() + VERSION_OVERHEAD_BYTES;
        }
        if newest.tail.is_some() {
            self.live_keys += 1;
            self.live_bytes += key.len() + KEY_OVERHEAD_BYTES + newest.tail_len();
        }
        let older = (!versions.is_empty()).then(|| Box::new(versions));
        self.insert_slot(Slot { key, older, newest });
    }

    /// Forgets the versions of `key` that nothing at or above `revision` can see: those
    /// followed by another at or below `revision`, and a tombstone below it. A tombstone
    /// at `revision` itself stays, since a watch may start there (as in etcd).
    /// Returns how many versions went.
    pub fn forget(&mut self, key: &[u8], revision: i64) -> usize {
        let Some(i) = self.find(key) else { return 0 };
        let Some(slot) = self.slots[i as usize].as_mut() else {
            return 0;
        };
        let mut removed = 0;
        if let Some(older) = slot.older.as_mut() {
            let visible = older.partition_point(|v| v.revision.main <= revision);
            let mut cut = if slot.newest.revision.main <= revision {
                older.len()
            } else {
                visible.saturating_sub(1)
            };
            // Several versions at exactly `revision` (a put and a delete in one Txn) all stay.
            while cut > 0 && older[cut - 1].revision.main == revision {
                cut -= 1;
            }
            let last_is_gone = |v: &Version| v.tail.is_none() && v.revision.main < revision;
            if cut < older.len() && cut + 1 == visible && last_is_gone(&older[cut]) {
                cut += 1;
            }
            for v in older.drain(..cut) {
                self.total_bytes -= v.tail_len() + VERSION_OVERHEAD_BYTES;
                removed += 1;
            }
            if older.is_empty() {
                slot.older = None;
            } else if older.capacity() > 2 * older.len() + 4 {
                older.shrink_to_fit();
            }
        }
        if slot.older.is_none()
            && slot.newest.tail.is_none()
            && slot.newest.revision.main < revision
        {
            self.remove_slot(i);
            removed += 1;
        }
        removed
    }

    fn remove_slot(&mut self, i: u32) {
        let Some(slot) = self.slots[i as usize].take() else {
            return;
        };
        self.total_bytes -= slot.key.len() + KEY_OVERHEAD_BYTES + VERSION_OVERHEAD_BYTES;
        let h = self.hasher.hash_one(slot.key.as_ref());
        if let Ok(entry) = self.hash.find_entry(h, |&j| j == i) {
            entry.remove();
        }
        self.order.remove(&slot.key);
        self.free.push(i);
    }
}
