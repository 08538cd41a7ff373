//! Everything retained at one revision, in revision order: what HashKV is a hash of, and
//! what etcd's `key` bucket holds after a finished compaction.
//!
//! Collected in key order, in slices under the store's lock, and sorted outside of it. Only
//! keys and versions that are there already are held, not copies of them: the memory goes
//! with the number of entries. Once all is collected nothing needs to be pinned.

use crate::Engine;
use crate::error::Error;
use crate::pin::{Pin, Strength};
use crate::record::Revision;
use crate::tail::{self, Key};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::{Bound, Deref};
use std::sync::Arc;

/// Entries in a part: one long list would have to be copied to grow.
const PART: usize = 1 << PART_BITS;
const PART_BITS: u32 = 12;

/// One retained version of a key, or a bump record: the version of the empty key.
#[derive(Debug)]
pub struct Stored {
    /// The revision that made it.
    pub revision: Revision,
    /// The key; empty for a bump record.
    pub key: Key,
    /// The encoded version; `None` for a tombstone, empty for a bump record.
    pub tail: Option<Arc<[u8]>>,
    /// Whether it is what the key is at the revision collected.
    pub(crate) current: bool,
}

/// A revision as etcd's `key` bucket has it: main, `_`, sub, and `t` behind a tombstone's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketKey {
    bytes: [u8; 18],
    len: u8,
}

impl BucketKey {
    /// The bucket key of a revision.
    pub fn new(revision: Revision, tombstone: bool) -> Self {
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&revision.main.to_be_bytes());
        bytes[8] = b'_';
        bytes[9..17].copy_from_slice(&revision.sub.to_be_bytes());
        bytes[17] = b't';
        let len = if tombstone { 18 } else { 17 };
        BucketKey { bytes, len }
    }
}

impl Deref for BucketKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Stored {
    /// Whether it is a delete.
    pub fn is_tombstone(&self) -> bool {
        self.tail.is_none()
    }

    /// Whether it is a revision jump: a revision with an empty value, of no key.
    pub fn is_bump(&self) -> bool {
        self.key.is_empty()
    }

    /// Its key in etcd's `key` bucket.
    pub fn bucket_key(&self) -> BucketKey {
        BucketKey::new(self.revision, self.is_tombstone())
    }

    fn tail(&self) -> &[u8] {
        self.tail.as_deref().unwrap_or_default()
    }

    /// Bytes of its value in etcd's `key` bucket: an encoded `mvccpb.KeyValue`, or nothing.
    pub fn value_len(&self) -> usize {
        if self.is_bump() {
            return 0;
        }
        tail::kv_len(&self.key, self.tail())
    }

    /// Appends that value.
    pub fn value_into(&self, out: &mut Vec<u8>) {
        self.value_head_into(out);
        out.extend_from_slice(self.tail());
    }

    /// Appends what comes before the tail in that value.
    pub(crate) fn value_head_into(&self, out: &mut Vec<u8>) {
        if !self.is_bump() {
            tail::encode_kv(&self.key, &[], out);
        }
    }
}

/// Where the collecting stands.
#[derive(Debug)]
pub struct VersionsCursor {
    /// The revision collected at.
    pub revision: i64,
    /// The compact revision that says what is retained; -1 for never compacted.
    pub compact_revision: i64,
    /// The version visited last.
    at: Option<(Key, Revision)>,
    /// What came since [`VersionsCursor::settle`], with the last entry before it.
    slice: Vec<Stored>,
    parts: Vec<Vec<Stored>>,
    done: bool,
    /// What compaction has left is collected, superseded or not.
    pin: Option<Pin>,
}

impl<W> Engine<W> {
    /// Begins to collect at `revision` (0: now).
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`].
    pub fn versions_open(&self, revision: i64) -> Result<VersionsCursor, Error> {
        if revision > 0 && revision < self.compact_revision {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let revision = if revision == 0 {
            self.revision
        } else {
            revision
        };
        Ok(self.versions_cursor(revision, self.compact_revision))
    }

    pub(crate) fn versions_cursor(&self, revision: i64, compact_revision: i64) -> VersionsCursor {
        VersionsCursor {
            revision,
            compact_revision,
            at: None,
            slice: Vec::new(),
            parts: Vec::new(),
            done: false,
            pin: Some(self.pin(compact_revision.max(0), Strength::Firm)),
        }
    }

    /// Collects on, visiting at most `max_versions` versions; returns true at the end. Call
    /// [`VersionsCursor::settle`] in between, without the lock.
    pub fn versions_step(&self, c: &mut VersionsCursor, max_versions: usize) -> bool {
        let mut left = max_versions.max(1);
        if let Some((key, revision)) = c.at.clone()
            && let Some(entry) = self.index.get(&key)
            && !c.visit(entry.key(), entry.versions_after(revision), &mut left)
        {
            return c.done;
        }
        let from = c.at.as_ref().map(|x| x.0.clone());
        let start = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for entry in self.index.range(start, Bound::Unbounded) {
            if !c.visit(entry.key(), entry.retained(c.compact_revision), &mut left) {
                return c.done;
            }
        }
        c.done = true;
        c.pin = None;
        true
    }
}

impl VersionsCursor {
    /// Collects a key's versions; returns false if `left` ran out before the end.
    fn visit(
        &mut self,
        key: &Key,
        versions: impl Iterator<Item = crate::index::Version>,
        left: &mut usize,
    ) -> bool {
        for v in versions {
            if *left == 0 {
                return false;
            }
            *left -= 1;
            self.at = Some((key.clone(), v.revision));
            if v.revision.main > self.revision {
                break;
            }
            self.take(key, v);
        }
        true
    }

    fn take(&mut self, key: &Key, v: crate::index::Version) {
        let same_key = |e: &&mut Stored| Arc::ptr_eq(&e.key, key);
        let compacted = v.revision.main <= self.compact_revision;
        if let Some(before) = self.slice.last_mut().filter(same_key) {
            before.current = false;
            if compacted {
                // Changed twice at the compact revision itself: the last one stays.
                self.slice.pop();
            }
        }
        self.slice.push(Stored {
            revision: v.revision,
            key: key.clone(),
            current: v.tail.is_some(),
            tail: v.tail,
        });
    }

    /// Puts away what a step collected. Fresh memory is slow at its first touch: this keeps
    /// it out of the lock.
    pub fn settle(&mut self) {
        // The last one may have a successor of the same key.
        let last = self.slice.pop();
        self.put_away();
        self.slice.extend(last);
    }

    fn put_away(&mut self) {
        for stored in self.slice.drain(..) {
            match self.parts.last_mut() {
                Some(part) if part.len() < PART => part.push(stored),
                _ => {
                    let mut part = Vec::with_capacity(PART);
                    part.push(stored);
                    self.parts.push(part);
                }
            }
        }
    }

    /// Sorts what was collected. Needs no lock; `rest` is called now and then, so that the
    /// caller can make it give way to others.
    pub fn finish(mut self, rest: &mut dyn FnMut()) -> Versions {
        self.put_away();
        let mut parts = self.parts;
        let mut order = Vec::with_capacity(parts.iter().map(Vec::len).sum());
        // The next entry of each part, the oldest first.
        let mut heap = BinaryHeap::with_capacity(parts.len());
        for (n, part) in parts.iter_mut().enumerate() {
            part.sort_unstable_by_key(|e| e.revision);
            heap.extend(part.first().map(|e| Reverse((e.revision, n, 0))));
            rest();
        }
        while let Some(mut top) = heap.peek_mut() {
            let Reverse((_, n, i)) = *top;
            order.push((n << PART_BITS | i) as u32);
            match parts[n].get(i + 1) {
                Some(e) => *top = Reverse((e.revision, n, i + 1)),
                None => {
                    PeekMut::pop(top);
                }
            }
            if order.len() % PART == 0 {
                rest();
            }
        }
        Versions {
            revision: self.revision,
            compact_revision: self.compact_revision,
            parts,
            order,
        }
    }
}

/// Everything retained at a revision, in revision order.
#[derive(Debug)]
pub struct Versions {
    /// The revision.
    pub revision: i64,
    /// The compact revision that says what is retained; -1 for never compacted.
    pub compact_revision: i64,
    parts: Vec<Vec<Stored>>,
    /// Part and place of each entry.
    order: Vec<u32>,
}

impl Versions {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Entry `i` in revision order.
    pub fn get(&self, i: usize) -> Option<&Stored> {
        let at = *self.order.get(i)? as usize;
        self.parts.get(at >> PART_BITS)?.get(at & (PART - 1))
    }

    /// The entries, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        (0..self.order.len()).filter_map(|i| self.get(i))
    }

    /// Gives all of it back, with rests in between.
    pub fn free(self, rest: &mut dyn FnMut()) {
        for part in self.parts {
            drop(part);
            rest();
        }
    }

    /// Whether any entry is what its key is at the revision.
    pub(crate) fn any_current(&self) -> bool {
        self.parts.iter().flatten().any(|e| e.current)
    }
}

/// What a snapshot in etcd's format says of the store besides its versions, taken at the
/// same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreHead {
    /// The store's revision.
    pub revision: i64,
    /// The compact revision, -1 if there was no compaction.
    pub compact_revision: i64,
    /// Leases by id, each with its granted time to live in seconds.
    pub leases: Vec<(i64, i64)>,
    /// Alarms that are set (etcd's `AlarmType` numbers).
    pub alarms: Vec<i32>,
}

impl<W> Engine<W> {
    /// Begins to collect everything that a snapshot in etcd's format holds.
    pub fn export_open(&self) -> (VersionsCursor, StoreHead) {
        let head = StoreHead {
            revision: self.revision,
            compact_revision: self.compact_revision,
            leases: self.leases.all(),
            alarms: self.alarms.iter().copied().collect(),
        };
        (
            self.versions_cursor(self.revision, self.compact_revision),
            head,
        )
    }
}
