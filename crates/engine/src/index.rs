//! Keys and their retained versions: a hash for lookups, a sorted list for order.
//!
//! An update touches the hash and one slot; only new and forgotten keys touch the order.
//! Nothing here ever grows by copying all of itself: a store of millions of keys must not
//! stop a writer for that.

use crate::key_order::KeyOrder;
use crate::op::KeyRange;
use crate::record::Revision;
use crate::slab::Slab;
use crate::tail::{self, Fields, Key, KeyValue};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::collections::VecDeque;
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

/// A key's newest version, and where the others are. 48 bytes: there is one a key.
#[derive(Debug)]
struct Slot {
    key: Key,
    tail: Option<Arc<[u8]>>,
    main: i64,
    sub: u32,
    /// Number of the older versions plus one, 0 if there are none: most keys have none.
    older: u32,
}

impl Slot {
    fn newest(&self) -> Version {
        Version {
            revision: self.revision(),
            tail: self.tail.clone(),
        }
    }

    fn revision(&self) -> Revision {
        Revision {
            main: self.main,
            sub: i64::from(self.sub),
        }
    }

    fn tail_len(&self) -> usize {
        self.tail.as_ref().map_or(0, |t| t.len())
    }
}

/// Versions of a key before its newest, oldest first.
type Older = VecDeque<Version>;

/// A key with its retained versions.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    slot: &'a Slot,
    older: Option<&'a Older>,
}

impl<'a> Entry<'a> {
    /// The key.
    pub fn key(&self) -> &'a Key {
        &self.slot.key
    }

    /// The newest version's encoding, `None` for a tombstone.
    pub fn newest_tail(&self) -> Option<&'a Arc<[u8]>> {
        self.slot.tail.as_ref()
    }

    /// The versions that a compaction at `compact_revision` leaves, oldest first, whether
    /// it has freed the others yet or not: those at or above it, and the one that stood
    /// when it came.
    pub fn retained(&self, compact_revision: i64) -> impl Iterator<Item = Version> + 'a {
        let slot = self.slot;
        let stood = |v: &Version| v.tail.is_some();
        let mut first = None;
        let mut from = self.older.map_or(0, VecDeque::len);
        let mut newest = true;
        if slot.main < compact_revision {
            newest = slot.tail.is_some();
        } else if let Some(older) = self.older {
            from = older.partition_point(|v| v.revision.main < compact_revision);
            let next = older.get(from).map_or(slot.main, |v| v.revision.main);
            if next > compact_revision {
                first = from.checked_sub(1).and_then(|i| older.get(i));
            }
        }
        let older = self.older.into_iter().flat_map(move |o| o.range(from..));
        let older = first.filter(|v| stood(v)).into_iter().chain(older).cloned();
        older.chain(newest.then(|| slot.newest()))
    }

    /// The versions after `after`, oldest first.
    pub fn versions_after(&self, after: Revision) -> impl Iterator<Item = Version> + 'a {
        let slot = self.slot;
        let older = self.older.map(|o| {
            let n = o.partition_point(|v| v.revision <= after);
            o.range(n..).cloned()
        });
        let newest = (slot.revision() > after).then(|| slot.newest());
        older.into_iter().flatten().chain(newest)
    }

    /// The encoding of the version that stood at `revision`, unless the key did not exist
    /// then.
    pub fn live_at(&self, revision: i64) -> Option<&'a Arc<[u8]>> {
        self.standing_at(Revision::end_of(revision))
    }

    /// The same after one change of a transaction.
    pub fn standing_at(&self, at: Revision) -> Option<&'a Arc<[u8]>> {
        if self.slot.revision() <= at {
            return self.slot.tail.as_ref();
        }
        let older = self.older?;
        let n = older.partition_point(|v| v.revision <= at);
        older.get(n.checked_sub(1)?)?.tail.as_ref()
    }
}

/// Bytes that a key, a version and a history event cost beyond key and value; the
/// measure of the quota and of the history budget.
pub const KEY_OVERHEAD_BYTES: usize = 96;
/// See [`KEY_OVERHEAD_BYTES`].
pub const VERSION_OVERHEAD_BYTES: usize = 48;

/// Number of hash tables. Each is small, so that none takes long to grow.
const TABLES: usize = 1024;

/// What [`Index::push`] found and made.
#[derive(Debug)]
pub struct Pushed {
    /// The shared key.
    pub key: Key,
    /// What the key was before the pushed version's main revision, if it existed.
    pub prev: Option<Arc<[u8]>>,
}

/// The index.
#[derive(Debug)]
pub struct Index {
    slots: Slab<Slot>,
    older: Slab<Older>,
    hash: Vec<HashTable<u32>>,
    hasher: DefaultHashBuilder,
    order: KeyOrder,
    keys: usize,
    live_keys: usize,
    live_bytes: usize,
    total_bytes: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            slots: Slab::default(),
            older: Slab::default(),
            hash: (0..TABLES).map(|_| HashTable::new()).collect(),
            hasher: DefaultHashBuilder::default(),
            order: KeyOrder::default(),
            keys: 0,
            live_keys: 0,
            live_bytes: 0,
            total_bytes: 0,
        }
    }
}

/// Which table: bits that the tables themselves do not use.
fn table(hash: u64) -> usize {
    (hash >> 40) as usize % TABLES
}

fn key_of(slots: &Slab<Slot>, i: u32) -> &[u8] {
    slots.get(i).map_or(&[], |s| &s.key)
}

impl Index {
    /// Number of keys with a version, be it a tombstone.
    pub fn len(&self) -> usize {
        self.keys
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

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
        self.hash[table(h)]
            .find(h, |&i| key_of(&self.slots, i) == key)
            .copied()
    }

    fn entry(&self, i: u32) -> Option<Entry<'_>> {
        let slot = self.slots.get(i)?;
        let older = slot.older.checked_sub(1).and_then(|o| self.older.get(o));
        Some(Entry { slot, older })
    }

    /// `key` with its versions, also if only a tombstone is left.
    pub fn get(&self, key: &[u8]) -> Option<Entry<'_>> {
        self.entry(self.find(key)?)
    }

    /// `key` and the encoding of its version that exists now.
    pub fn live(&self, key: &[u8]) -> Option<(&Key, &Arc<[u8]>)> {
        let slot = self.slots.get(self.find(key)?)?;
        Some((&slot.key, slot.tail.as_ref()?))
    }

    /// The revision that made `key` what it is; 0 if it does not exist.
    pub fn mod_revision(&self, key: &[u8]) -> i64 {
        let slot = self.find(key).and_then(|i| self.slots.get(i));
        slot.filter(|s| s.tail.is_some()).map_or(0, |s| s.main)
    }

    /// `key` as it is now.
    pub fn live_kv(&self, key: &[u8]) -> Option<KeyValue> {
        let (key, tail) = self.live(key)?;
        Some(KeyValue {
            key: key.clone(),
            tail: tail.clone(),
        })
    }

    /// The keys of a range in order, those with nothing but a tombstone included. An
    /// inverted range holds none.
    pub fn range<'a>(
        &'a self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
    ) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let key = |i| key_of(&self.slots, i);
        let before = |i| match start {
            Bound::Included(s) => key(i) < s,
            Bound::Excluded(s) => key(i) <= s,
            Bound::Unbounded => false,
        };
        let within = |i| match end {
            Bound::Included(e) => key(i) <= e,
            Bound::Excluded(e) => key(i) < e,
            Bound::Unbounded => true,
        };
        self.order
            .between(self.order.seek(before), self.order.seek(within))
            .filter_map(|i| self.entry(i))
    }

    /// The keys of an etcd range.
    pub fn range_of<'a>(&'a self, range: &KeyRange) -> Box<dyn Iterator<Item = Entry<'a>> + 'a> {
        if range.is_one() {
            return Box::new(self.get(&range.key).into_iter());
        }
        let end = range.upper().map_or(Bound::Unbounded, Bound::Excluded);
        Box::new(self.range(Bound::Included(&range.key), end))
    }

    /// Appends a version to `key`, made from what the key is now. Revisions of one key
    /// must rise.
    pub fn push(
        &mut self,
        key: &[u8],
        at: Revision,
        make: impl FnOnce(Option<&Arc<[u8]>>) -> Option<Arc<[u8]>>,
    ) -> Pushed {
        let h = self.hasher.hash_one(key);
        let found = self.hash[table(h)]
            .find(h, |&i| key_of(&self.slots, i) == key)
            .copied();
        if let Some(slot) = found.and_then(|i| self.slots.get_mut(i)) {
            debug_assert!(slot.revision() < at);
            let tail = make(slot.tail.as_ref());
            let tail_len = tail.as_ref().map_or(0, |t| t.len());
            self.total_bytes += tail_len + VERSION_OVERHEAD_BYTES;
            if slot.tail.is_some() {
                self.live_keys -= 1;
                self.live_bytes -= key.len() + KEY_OVERHEAD_BYTES + slot.tail_len();
            }
            if tail.is_some() {
                self.live_keys += 1;
                self.live_bytes += key.len() + KEY_OVERHEAD_BYTES + tail_len;
            }
            let old = Version {
                revision: slot.revision(),
                tail: std::mem::replace(&mut slot.tail, tail),
            };
            (slot.main, slot.sub) = (at.main, at.sub as u32);
            let mut prev = old.tail.clone();
            let same_main = old.revision.main == at.main;
            match slot
                .older
                .checked_sub(1)
                .and_then(|o| self.older.get_mut(o))
            {
                Some(older) => older.push_back(old),
                None => slot.older = self.older.insert(VecDeque::from([old])) + 1,
            }
            let key = slot.key.clone();
            if same_main {
                // A second change in one transaction.
                let entry = found.and_then(|i| self.entry(i));
                prev = entry.and_then(|e| e.live_at(at.main - 1)).cloned();
            }
            return Pushed { key, prev };
        }
        let tail = make(None);
        self.total_bytes += tail.as_ref().map_or(0, |t| t.len()) + VERSION_OVERHEAD_BYTES;
        if let Some(t) = &tail {
            self.live_keys += 1;
            self.live_bytes += key.len() + KEY_OVERHEAD_BYTES + t.len();
        }
        let key = Key::from(key);
        self.insert_slot(
            h,
            Slot {
                key: key.clone(),
                tail,
                main: at.main,
                sub: at.sub as u32,
                older: 0,
            },
        );
        Pushed { key, prev: None }
    }

    fn insert_slot(&mut self, h: u64, slot: Slot) {
        self.keys += 1;
        self.total_bytes += slot.key.len() + KEY_OVERHEAD_BYTES;
        let key = slot.key.clone();
        let i = self.slots.insert(slot);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.hash[table(h)].insert_unique(h, i, |&j| hasher.hash_one(key_of(slots, j)));
        self.order.insert(&key, i, |j| key_of(slots, j));
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
        let older = if versions.is_empty() {
            0
        } else {
            self.older.insert(versions.into()) + 1
        };
        let h = self.hasher.hash_one(key.as_ref());
        self.insert_slot(
            h,
            Slot {
                key,
                tail: newest.tail,
                main: newest.revision.main,
                sub: newest.revision.sub as u32,
                older,
            },
        );
    }

    /// Forgets the versions of `key` that nothing at or above `revision` can see: those
    /// followed by another at or below `revision`, and a tombstone below it. Versions at
    /// `revision` itself stay, since a watch may start there (as in etcd).
    /// Returns how many versions went.
    pub fn forget(&mut self, key: &[u8], revision: i64) -> usize {
        let Some(i) = self.find(key) else { return 0 };
        let Some(slot) = self.slots.get_mut(i) else {
            return 0;
        };
        let mut removed = 0;
        if let Some(o) = slot.older.checked_sub(1)
            && let Some(older) = self.older.get_mut(o)
        {
            while let Some(v) = older.front() {
                let next = older.get(1).map_or(slot.main, |n| n.revision.main);
                let unseen = next <= revision || v.tail.is_none();
                if !unseen || v.revision.main >= revision {
                    break;
                }
                self.total_bytes -= v.tail_len() + VERSION_OVERHEAD_BYTES;
                older.pop_front();
                removed += 1;
            }
            if older.is_empty() {
                self.older.remove(o);
                slot.older = 0;
            } else if older.capacity() > 4 * older.len() + 4 {
                older.shrink_to(2 * older.len());
            }
        }
        if slot.older == 0 && slot.tail.is_none() && slot.main < revision {
            self.remove_slot(i);
            removed += 1;
        }
        removed
    }

    fn remove_slot(&mut self, i: u32) {
        let slots = &self.slots;
        let key = key_of(slots, i);
        let h = self.hasher.hash_one(key);
        if let Ok(entry) = self.hash[table(h)].find_entry(h, |&j| j == i) {
            entry.remove();
        }
        self.order.remove(key, i, |j| key_of(slots, j));
        if let Some(slot) = self.slots.remove(i) {
            self.keys -= 1;
            self.total_bytes -= slot.key.len() + KEY_OVERHEAD_BYTES + VERSION_OVERHEAD_BYTES;
        }
    }
}
