//! HashKV: the same value as etcd 3.7 for the same history.
//!
//! etcd hashes, with CRC-32C and in revision order, the name of its bucket and each
//! retained revision's bucket key and encoded `KeyValue`. At and below the compact
//! revision only what is still current at the hashed revision counts (if anything is
//! current at all: else everything retained), and a tombstone there never does.
//!
//! A compaction leaves a hash behind: of all revisions from the last compaction to its
//! own, as they were before it freed any. etcd answers HashKV at a revision that was
//! compacted at with that hash, and so must we ([`Engine::hash_cached`]).

use crate::Engine;
use crate::error::Error;
use crate::record::Revision;
use crate::tail::{self, Key};
use std::ops::Bound;
use std::sync::Arc;

/// How many hashes of compactions are kept, as in etcd.
pub const CACHED_HASHES: usize = 10;

/// A hash with what it is a hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    /// The CRC-32C.
    pub hash: u32,
    /// The revision hashed.
    pub revision: i64,
    /// The compact revision that it is relative to.
    pub compact_revision: i64,
}

/// Entries in a part.
const PART: usize = 4096;

/// Hashes of compactions.
#[derive(Debug, Default)]
pub(crate) struct CompactionHashes {
    enabled: bool,
    /// The compaction that is to be hashed, as (previous compact revision, its own).
    wanted: Option<(i64, i64)>,
    /// Those that are done, ascending by revision.
    done: Vec<KvHash>,
}

/// Where a sliced hash stands.
#[derive(Debug)]
pub struct HashCursor {
    /// The revision hashed.
    pub revision: i64,
    /// The compact revision that the hash is relative to.
    pub compact_revision: i64,
    /// The store's revision when it began.
    pub header_revision: i64,
    /// The version visited last.
    at: Option<(Key, Revision)>,
    /// In parts: one long list would have to be copied to grow.
    entries: Vec<Vec<Entry>>,
    /// A compaction's hash takes a tombstone at its own revision for current.
    of_compaction: bool,
    tombstone_at_revision: bool,
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
    /// Opens a hash at `revision` (0: now). Pin [`HashCursor::pin`] while it runs.
    pub fn hash_open(&self, revision: i64) -> Result<HashCursor, Error> {
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
        Ok(self.cursor(revision, self.compact_revision, false))
    }

    fn cursor(&self, revision: i64, compact_revision: i64, of_compaction: bool) -> HashCursor {
        HashCursor {
            revision,
            compact_revision,
            header_revision: self.revision,
            at: None,
            entries: Vec::new(),
            of_compaction,
            tombstone_at_revision: false,
            done: false,
        }
    }

    /// Collects on, visiting at most `max_versions` versions; returns true at the end.
    pub fn hash_step(&self, c: &mut HashCursor, max_versions: usize) -> bool {
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
        c.done
    }

    /// Whether compactions leave hashes behind. Off until asked for, since someone must
    /// then compute them ([`Engine::compaction_hash_open`]): nothing is freed before.
    pub fn set_compaction_hashes(&mut self, enabled: bool) {
        self.compaction_hashes.enabled = enabled;
    }

    /// A compaction has become visible: have its hash computed. As in etcd there is none
    /// for a compaction that comes before the last one's is done.
    pub(crate) fn want_compaction_hash(&mut self, previous: i64) {
        let h = &mut self.compaction_hashes;
        if h.enabled && h.wanted.is_none() {
            h.wanted = Some((previous, self.compact_revision));
            self.pin(previous.max(0));
        }
    }

    /// The hash that a compaction is waiting for, if one is. Step and finish it
    /// ([`HashCursor::finish_hash`]), then hand it to [`Engine::compaction_hash_done`];
    /// until then nothing that it needs is freed, so it needs no pin.
    pub fn compaction_hash_open(&self) -> Option<HashCursor> {
        let (previous, own) = self.compaction_hashes.wanted?;
        Some(self.cursor(own, previous, true))
    }

    /// Keeps a compaction's hash and lets the compaction free.
    pub fn compaction_hash_done(&mut self, hash: KvHash) {
        let h = &mut self.compaction_hashes;
        if h.wanted != Some((hash.compact_revision, hash.revision)) {
            return;
        }
        h.wanted = None;
        h.done.push(hash);
        h.done.sort_by_key(|h| h.revision);
        if h.done.len() > CACHED_HASHES {
            h.done.remove(0);
        }
        self.unpin(hash.compact_revision.max(0));
    }

    /// What HashKV answers at a revision that was compacted at, instead of a new hash
    /// (and before any check of the revision, as in etcd).
    pub fn hash_cached(&self, revision: i64) -> Option<KvHash> {
        let done = &self.compaction_hashes.done;
        done.iter().find(|h| h.revision == revision).copied()
    }
}

impl HashCursor {
    /// The revision to pin while it runs: what compaction has left above this one is
    /// hashed, superseded or not.
    pub fn pin(&self) -> i64 {
        self.compact_revision.max(0)
    }

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
            let main = v.revision.main;
            if main > self.revision {
                break;
            }
            let compacted = main <= self.compact_revision;
            let same_key = |e: &&mut Entry| Arc::ptr_eq(&e.key, key);
            if self.entries.last().is_none_or(|part| part.len() == PART) {
                // The last entry moves along: it may be of the same key.
                let last = self.entries.last_mut().and_then(Vec::pop);
                let mut part = Vec::with_capacity(PART);
                part.extend(last);
                self.entries.push(part);
            }
            let Some(part) = self.entries.last_mut() else {
                continue;
            };
            if let Some(before) = part.last_mut().filter(same_key) {
                before.current = false;
                if compacted {
                    // Put and deleted at the compact revision itself.
                    part.pop();
                }
            }
            if v.tail.is_none() {
                self.tombstone_at_revision |= main == self.revision;
                if compacted {
                    continue;
                }
            }
            part.push(Entry {
                revision: v.revision,
                key: key.clone(),
                current: v.tail.is_some(),
                tail: v.tail,
            });
        }
        true
    }

    /// Sorts and hashes what was collected. Needs no lock.
    pub fn finish(self) -> u32 {
        let mut entries: Vec<Entry> = self.entries.into_iter().flatten().collect();
        entries.sort_unstable_by_key(|e| e.revision);
        let any_current =
            entries.iter().any(|e| e.current) || (self.of_compaction && self.tombstone_at_revision);
        let mut crc = crc32c::crc32c(b"key");
        let mut head = Vec::new();
        for e in &entries {
            let main = e.revision.main;
            if main <= self.compact_revision && any_current && !e.current {
                continue;
            }
            head.clear();
            head.extend_from_slice(&main.to_be_bytes());
            head.push(b'_');
            head.extend_from_slice(&e.revision.sub.to_be_bytes());
            if e.tail.is_none() {
                head.push(b't');
            }
            tail::encode_kv(&e.key, &[], &mut head);
            crc = crc32c::crc32c_append(crc, &head);
            if let Some(tail) = &e.tail {
                crc = crc32c::crc32c_append(crc, tail);
            }
        }
        crc
    }

    /// The same, with what it is a hash of.
    pub fn finish_hash(self) -> KvHash {
        KvHash {
            revision: self.revision,
            compact_revision: self.compact_revision,
            hash: self.finish(),
        }
    }
}
