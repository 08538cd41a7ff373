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
use crate::pin::{Pin, Strength};
use crate::versions::{Stored, Versions, VersionsCursor};

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

/// Bytes hashed between two rests: some tenths of a millisecond.
const REST_BYTES: usize = 1 << 20;
/// What an entry costs besides its value's bytes, in bytes hashed.
const ENTRY_BYTES: usize = 256;

/// Hashes of compactions.
#[derive(Debug, Default)]
pub(crate) struct CompactionHashes {
    enabled: bool,
    wanted: Option<Wanted>,
    /// Those that are done, ascending by revision.
    done: Vec<KvHash>,
}

/// A compaction that is to be hashed.
#[derive(Debug)]
struct Wanted {
    /// The compact revision before it.
    previous: i64,
    own: i64,
    /// Keeps what it compacts until then.
    _pin: Pin,
}

/// Where a sliced hash stands.
#[derive(Debug)]
pub struct HashCursor {
    /// The store's revision when it began.
    pub header_revision: i64,
    versions: VersionsCursor,
    /// A compaction's hash takes a tombstone at its own revision for current.
    of_compaction: bool,
}

impl<W> Engine<W> {
    /// Opens a hash at `revision` (0: now).
    pub fn hash_open(&self, revision: i64) -> Result<HashCursor, Error> {
        Ok(HashCursor {
            header_revision: self.revision,
            versions: self.versions_open(revision)?,
            of_compaction: false,
        })
    }

    /// Collects on, visiting at most `max_versions` versions; returns true at the end.
    pub fn hash_step(&self, c: &mut HashCursor, max_versions: usize) -> bool {
        self.versions_step(&mut c.versions, max_versions)
    }

    /// Whether compactions leave hashes behind. Off until asked for, since someone must
    /// then compute them ([`Engine::compaction_hash_open`]): nothing is freed before.
    pub fn set_compaction_hashes(&mut self, enabled: bool) {
        self.compaction_hashes.enabled = enabled;
    }

    /// A compaction has become visible: have its hash computed. As in etcd there is none
    /// for a compaction that comes before the last one's is done.
    pub(crate) fn want_compaction_hash(&mut self, previous: i64) {
        if self.compaction_hashes.enabled && self.compaction_hashes.wanted.is_none() {
            self.compaction_hashes.wanted = Some(Wanted {
                previous,
                own: self.compact_revision,
                _pin: self.pin(previous.max(0), Strength::Firm),
            });
        }
    }

    /// The hash that a compaction is waiting for, if one is. Step and finish it
    /// ([`HashCursor::finish_hash`]), then hand it to [`Engine::compaction_hash_done`];
    /// until then nothing that it needs is freed.
    pub fn compaction_hash_open(&self) -> Option<HashCursor> {
        let Wanted { previous, own, .. } = *self.compaction_hashes.wanted.as_ref()?;
        Some(HashCursor {
            header_revision: self.revision,
            versions: self.versions_cursor(own, previous),
            of_compaction: true,
        })
    }

    /// Whether a compaction waits for its hash.
    pub fn is_compaction_hash_due(&self) -> bool {
        self.compaction_hashes.wanted.is_some()
    }

    /// Keeps a compaction's hash and lets the compaction free.
    pub fn compaction_hash_done(&mut self, hash: KvHash) {
        let h = &mut self.compaction_hashes;
        let of_it = |w: &Wanted| (w.previous, w.own) == (hash.compact_revision, hash.revision);
        if !h.wanted.as_ref().is_some_and(of_it) {
            return;
        }
        h.wanted = None;
        h.done.push(hash);
        h.done.sort_by_key(|h| h.revision);
        if h.done.len() > CACHED_HASHES {
            h.done.remove(0);
        }
    }

    /// What HashKV answers at a revision that was compacted at, instead of a new hash
    /// (and before any check of the revision, as in etcd).
    pub fn hash_cached(&self, revision: i64) -> Option<KvHash> {
        let done = &self.compaction_hashes.done;
        done.iter().find(|h| h.revision == revision).copied()
    }
}

impl HashCursor {
    /// Puts away what a step collected; see [`VersionsCursor::settle`].
    pub fn settle(&mut self) {
        self.versions.settle();
    }

    /// Sorts and hashes what was collected. Needs no lock; `rest` is called now and then, so
    /// that the caller can make it give way to others.
    pub fn finish(self, rest: &mut dyn FnMut()) -> u32 {
        let versions = self.versions.finish(rest);
        let hash = versions.hash(self.of_compaction, rest);
        versions.free(rest);
        hash
    }

    /// The same, with what it is a hash of.
    pub fn finish_hash(self, rest: &mut dyn FnMut()) -> KvHash {
        KvHash {
            revision: self.versions.revision,
            compact_revision: self.versions.compact_revision,
            hash: self.finish(rest),
        }
    }
}

impl Versions {
    fn hash(&self, of_compaction: bool, rest: &mut dyn FnMut()) -> u32 {
        let deleted_now = |e: &Stored| e.is_tombstone() && e.revision.main == self.revision;
        let any_current = self.any_current() || (of_compaction && self.iter().any(deleted_now));
        let mut crc = crc32c::crc32c(b"key");
        let mut head = Vec::new();
        let mut unrested_bytes = 0;
        for e in self.iter() {
            let compacted = e.revision.main <= self.compact_revision;
            if compacted && (e.is_tombstone() || (any_current && !e.current)) {
                continue;
            }
            crc = crc32c::crc32c_append(crc, &e.bucket_key());
            head.clear();
            e.value_head_into(&mut head);
            crc = crc32c::crc32c_append(crc, &head);
            if let Some(tail) = &e.tail {
                crc = crc32c::crc32c_append(crc, tail);
                unrested_bytes += tail.len();
            }
            unrested_bytes += ENTRY_BYTES;
            if unrested_bytes >= REST_BYTES {
                unrested_bytes = 0;
                rest();
            }
        }
        crc
    }
}
