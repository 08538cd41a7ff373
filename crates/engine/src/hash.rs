//! HashKV: the same value as etcd 3.7 for the same history.
//!
//! etcd hashes, with CRC-32C and in revision order, the name of its bucket and each
//! retained revision's bucket key and encoded `KeyValue`. Below the compact revision only
//! what is still current at the hashed revision counts (if anything is), and a tombstone
//! at the compact revision itself never does.

use crate::Engine;
use crate::error::Error;
use crate::record::Revision;
use crate::tail::{self, Key};
use std::ops::Bound;
use std::sync::Arc;

/// Where a sliced hash stands.
#[derive(Debug)]
pub struct HashCursor {
    /// The revision hashed.
    pub revision: i64,
    /// The compact revision that the hash is relative to.
    pub compact_revision: i64,
    /// The store's revision when it began.
    pub header_revision: i64,
    next: Option<Key>,
    entries: Vec<Entry>,
    done: bool,
}

#[derive(Debug)]
struct Entry {
    revision: Revision,
    key: Key,
    tail: Option<Arc<[u8]>>,
    current: bool,
}

impl<W> Engine<W> {
    /// Opens a hash at `revision` (0: now). Pin `revision` while it runs.
    pub fn hash_open(&self, revision: i64) -> Result<HashCursor, Error> {
        if revision > 0 && revision < self.compact_revision {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        Ok(HashCursor {
            revision: if revision == 0 {
                self.revision
            } else {
                revision
            },
            compact_revision: self.compact_revision,
            header_revision: self.revision,
            next: None,
            entries: Vec::new(),
            done: false,
        })
    }

    /// Collects on, visiting at most `max_keys` keys.
    pub fn hash_step(&self, c: &mut HashCursor, max_keys: usize) -> bool {
        if c.done {
            return true;
        }
        let from = c.next.take();
        let start = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for (n, slot) in self.index.range(start, Bound::Unbounded).enumerate() {
            if n == max_keys {
                break;
            }
            c.next = Some(slot.key.clone());
            let versions = slot.older().iter().chain([slot.newest()]);
            let mut last: Option<usize> = None;
            let first = c.entries.len();
            for v in versions.take_while(|v| v.revision.main <= c.revision) {
                let below = v.revision.main <= c.compact_revision;
                // Not yet freed, but compacted: superseded at or below the compact revision.
                if below {
                    let same_main = |e: &Entry| {
                        e.revision.main == v.revision.main && e.revision.main == c.compact_revision
                    };
                    if c.entries.len() > first && !c.entries.last().is_some_and(same_main) {
                        c.entries.pop();
                    }
                    if v.tail.is_none() && v.revision.main < c.compact_revision {
                        last = None;
                        continue;
                    }
                }
                last = Some(c.entries.len());
                c.entries.push(Entry {
                    revision: v.revision,
                    key: slot.key.clone(),
                    tail: v.tail.clone(),
                    current: false,
                });
            }
            if let Some(e) = last.and_then(|i| c.entries.get_mut(i)) {
                e.current = e.tail.is_some();
            }
        }
        // A pass that visited nothing leaves `next` unset: the end.
        c.done = c.next.is_none();
        c.done
    }
}

impl HashCursor {
    /// Sorts and hashes what was collected. Needs no lock.
    pub fn finish(mut self) -> u32 {
        self.entries.sort_unstable_by_key(|e| e.revision);
        let keep_is_empty = !self.entries.iter().any(|e| e.current);
        let mut crc = crc32c::crc32c(b"key");
        let mut kv = Vec::new();
        for e in &self.entries {
            let main = e.revision.main;
            if main <= self.compact_revision && !keep_is_empty && !e.current {
                continue;
            }
            if main == self.compact_revision && e.tail.is_none() {
                continue;
            }
            let mut id = Vec::with_capacity(18);
            id.extend_from_slice(&main.to_be_bytes());
            id.push(b'_');
            id.extend_from_slice(&e.revision.sub.to_be_bytes());
            if e.tail.is_none() {
                id.push(b't');
            }
            crc = crc32c::crc32c_append(crc, &id);
            kv.clear();
            tail::encode_kv(&e.key, e.tail.as_deref().unwrap_or(&[]), &mut kv);
            crc = crc32c::crc32c_append(crc, &kv);
        }
        crc
    }
}
