//! A snapshot into an engine.

use crate::contents::Contents;
use crate::error::Error;
use crate::file::Snapshot;
use crate::names::KEY;
use crate::revision;
use engine::Engine;
use engine::restore::Restore;
use engine::tail;

/// What was put into an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What the file says besides keys.
    pub contents: Contents,
    /// Versions of keys in the file, deletions included.
    pub entries: u64,
    /// The newest bump record's revision, if there is one.
    pub bumped_to: Option<i64>,
}

impl Snapshot {
    /// Puts leases and keys into an empty engine, as an etcd that starts with the file would
    /// have them: what was compacted is left out. Alarms are left to the caller: etcd's
    /// NOSPACE is about etcd's disk. All pages of the file are verified on the way; its
    /// SHA-256 is not.
    ///
    /// # Errors
    /// [`Error::Database`] with the page that is damaged, [`Error::Content`] with the place of
    /// what is not as etcd writes it, [`Error::Newer`].
    pub fn load<W>(&self, engine: Engine<W>) -> Result<(Restore<W>, Loaded), Error> {
        let contents = self.contents()?;
        let mut restore = Restore::new(engine, contents.compact_revision);
        for &(id, ttl_s) in &contents.leases {
            restore.lease(id, ttl_s);
        }
        let (mut entries, mut bumped_to) = (0, None);
        self.each_verified(KEY, |key, value| {
            let (revision, tombstone) = revision::decode(key).ok_or("its key is not a revision")?;
            entries += 1;
            if value.is_empty() && !tombstone && revision.sub == 0 {
                bumped_to = Some(revision.main);
                return restore.bump(revision.main).map_err(|e| e.to_string());
            }
            let (key, fields) = tail::decode_kv(value)
                .map_err(|error| format!("revision {}.{}: {error}", revision.main, revision.sub))?;
            let put = (!tombstone).then_some(&fields);
            restore
                .version(revision, key, put)
                .map_err(|e| e.to_string())
        })?;
        let loaded = Loaded {
            contents,
            entries,
            bumped_to,
        };
        Ok((restore, loaded))
    }
}
