//! Verification of a stopped server's directory, in plain words. Changes nothing.

use crate::Lsn;
use crate::dir::{self, FIRST_RAFT_TERM, Identity, Role};
use crate::error::OpenError;
use crate::holders::{Holder, HolderSet, HoldersNote};
use crate::open::Guards;
use crate::recover::names;
use crate::recovery;
use crate::replay::Replay;
use crate::settle::{self, EpochReport};
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use files::FileSystem;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a directory that can be started from holds.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The directory.
    pub dir: PathBuf,
    /// Whose it is.
    pub identity: Identity,
    /// The frame that the snapshot stands after that a start would use: 0 for the one that
    /// a restore made; `None` if there is no snapshot.
    pub snapshot_lsn: Option<Lsn>,
    /// Items in it.
    pub snapshot_items: u64,
    /// Bytes of its file.
    pub snapshot_bytes: u64,
    /// Segments in use.
    pub segments: usize,
    /// Frames after the snapshot.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// The last frame.
    pub last_lsn: Lsn,
    /// The store's revision.
    pub revision: i64,
    /// The log was closed by a clean stop.
    pub closed: bool,
    /// Frames that nothing in the log proves synced.
    pub unproven_frames: u64,
    /// What a start would make of an open epoch of volatile writes.
    pub epoch: Option<EpochReport>,
    /// Shards that hold, or may hold, what is missing: a start asks them first.
    pub holders: Option<Vec<Holder>>,
    /// A torn end, if there is one, as a sentence.
    pub cut_short: Option<String>,
    /// Faults without harm, in sentences.
    pub warnings: Vec<String>,
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            cluster_id,
            member_id,
            name,
            raft_term,
            role,
        } = &self.identity;
        match role {
            Role::Replaced => writeln!(
                f,
                "{} is whole, and its server was replaced by another one: nothing starts from it.",
                self.dir.display()
            )?,
            Role::Server => writeln!(f, "{} can be started from.", self.dir.display())?,
            Role::Keeper => writeln!(
                f,
                "{} is a keeper's copy of a server's data; a server starts from it after `orlop \
                 promote`.",
                self.dir.display()
            )?,
        }
        writeln!(
            f,
            "  cluster {cluster_id:x}, member {member_id:x}, made as \"{name}\""
        )?;
        if *raft_term != FIRST_RAFT_TERM {
            writeln!(
                f,
                "  term {raft_term}: it was taken over from another server"
            )?;
        }
        match self.snapshot_lsn {
            None => writeln!(f, "  no snapshot yet: the log is whole from its beginning")?,
            Some(lsn) => {
                match lsn {
                    0 => write!(f, "  snapshot from a restore: ")?,
                    lsn => write!(f, "  snapshot up to frame {lsn}: ")?,
                }
                writeln!(
                    f,
                    "{} items, {} bytes, all checksums right",
                    self.snapshot_items, self.snapshot_bytes
                )?;
            }
        }
        writeln!(
            f,
            "  log: {} segments in use, {} frames with {} records to replay, up to frame {}",
            self.segments, self.frames, self.records, self.last_lsn
        )?;
        writeln!(f, "  the store's revision is {}", self.revision)?;
        match (&self.cut_short, self.closed) {
            (Some(sentence), _) => writeln!(f, "  {sentence}")?,
            (None, true) => writeln!(f, "  the last process closed the log")?,
            (None, false) => writeln!(f, "  the last process did not close the log")?,
        }
        if let Some(holders) = &self.holders {
            writeln!(
                f,
                "  the machine lost power, and shards held the newest writes in memory: {}. A start \
                 asks them, and with what any one of them has it goes on where the last process \
                 ended; without any it is refused. What follows is what --recover-without-shards \
                 would come to",
                names(holders)
            )?;
        }
        if let Some(epoch) = &self.epoch {
            fmt_epoch(f, epoch)?;
            writeln!(
                f,
                "  of {} frames at the end nothing in the log proves that they were synced; a start \
                 writes them again",
                self.unproven_frames
            )?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "  warning: {warning}"))
    }
}

fn fmt_epoch(f: &mut fmt::Formatter<'_>, epoch: &EpochReport) -> fmt::Result {
    writeln!(
        f,
        "  volatile writes were going on (an epoch is open, with revisions up to {}): {}",
        epoch.bound, epoch.reason
    )?;
    match epoch.jumped_to {
        None => writeln!(
            f,
            "  a start goes on where the last process ended; no watcher relists"
        ),
        Some(to) => {
            writeln!(
                f,
                "  volatile writes of the last moments may be missing; durable ones are not. A \
                 start goes on at revision {to}, compacted there, and every watcher relists"
            )?;
            if epoch.restamped_frames > 0 {
                writeln!(
                    f,
                    "  durable writes in {} frames get new revisions: those that they were \
                     answered with, if they were, are not on disk",
                    epoch.restamped_frames
                )?;
            }
            Ok(())
        }
    }
}

/// Follows the revision; keeps nothing else.
pub(crate) struct Counter {
    pub(crate) revision: i64,
}

impl Replay for Counter {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.revision = meta.revision;
        Ok(())
    }

    fn item(&mut self, _: SnapshotItem) -> Result<(), String> {
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        self.revision += i64::from(record.takes_revision());
        Ok(())
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.revision = revision;
        Ok(())
    }
}

/// Reads all that a start would read, and says what it found. `marker_dir` is as in
/// [`Options::marker_dir`](crate::Options::marker_dir).
///
/// # Errors
/// The error that a start would end with, among them that a server has the directory open.
pub fn check(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    marker_dir: Option<&Path>,
) -> Result<CheckReport, OpenError> {
    // An empty store is at revision 1, as in etcd.
    read(fs, dir, marker_dir, &mut Counter { revision: 1 })
}

/// The same, with all that it reads given to `store`, as a start would.
///
/// # Errors
/// As [`check`].
pub fn read(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    marker_dir: Option<&Path>,
    store: &mut dyn Replay,
) -> Result<CheckReport, OpenError> {
    let opened = dir::open_read_only(&*fs, dir)?;
    let Some(format) = &opened.format else {
        return Err(OpenError::mismatch(
            dir,
            "it has no file `format`: no orlop finished making it, or the file is missing",
        ));
    };
    let guards = Guards::default();
    let note = HoldersNote::read(&*fs, dir)?;
    let mut found = recovery::read(&*fs, &opened.layout, format, guards, store)?;
    let set = note.of_epoch(found.order.epoch);
    let complete = set.as_ref().and_then(HolderSet::nobody);
    let settled = settle::settle(
        &*fs,
        &opened.layout,
        format,
        (marker_dir, guards, complete.as_ref()),
        &mut found,
        store,
    )?;
    let untrusted = settled.as_ref().is_some_and(|s| !s.report.trusted);
    drop(opened.lock);
    Ok(CheckReport {
        dir: dir.to_owned(),
        identity: format.identity.clone(),
        snapshot_lsn: found.snapshot.as_ref().map(|s| s.header.lsn),
        snapshot_items: found.snapshot.as_ref().map_or(0, |s| s.items),
        snapshot_bytes: found.snapshot.as_ref().map_or(0, |s| s.bytes),
        segments: found.chain.len(),
        frames: found.frames,
        records: found.records,
        last_lsn: found.end.lsn(),
        revision: store.revision(),
        closed: found.closed,
        unproven_frames: found.tail.len() as u64,
        epoch: settled.map(|settled| settled.report),
        holders: set.filter(|_| untrusted).map(|set| set.holders),
        cut_short: found.cut_short,
        warnings: found.warnings,
    })
}
