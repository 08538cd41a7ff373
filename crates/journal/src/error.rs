//! What can go wrong, in sentences for an operator.

use crate::Lsn;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a data directory was not opened. Nothing in it has been changed, leftovers of an
/// unfinished operation aside.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refused a call.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// No room for a first segment, or to make the end of the log safe.
    #[error("no space left for {path}: free some space on its file system and start again")]
    NoSpace {
        /// The file that found no room.
        path: PathBuf,
    },
    /// The path is a file.
    #[error("{path} is not a directory; choose another --data-dir")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// An etcd has its data here.
    #[error(
        "{path} is an etcd data directory; orlop neither reads nor changes it: choose another \
         --data-dir (to take its data over: orlop import, or orlop snapshot restore)"
    )]
    EtcdDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Someone else has the directory open.
    #[error("{path} is in use by another orlop ({holder}); stop it, or choose another --data-dir")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who, as far as known.
        holder: String,
    },
    /// Written by a newer version.
    #[error(
        "{path} has format version {found}, and this orlop knows version {known}: start the \
         version that wrote it, or a newer one"
    )]
    UnknownVersion {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The version that this orlop reads and writes.
        known: u32,
    },
    /// The files do not make one whole log.
    #[error("the data directory {path} does not fit together: {reason}")]
    Mismatch {
        /// The directory or file.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// Others held the newest frames in memory, and none of them gave them back.
    #[error(
        "{path}: the machine lost power, and the newest writes of the class `replicated` may be in \
         the memory of shards: {holders}. {told} Nothing was changed. Any one of these shards is \
         enough: see that one runs that was not restarted since, and that it reaches this server \
         (--max-shards, --listen-peer-urls), and start again. If they are gone for good, start once \
         with --recover-without-shards: acknowledged writes of the last moments may be missing \
         then, revisions jump, and every watcher lists again"
    )]
    Holders {
        /// The directory.
        path: PathBuf,
        /// Whom to ask.
        holders: String,
        /// What came of it, in sentences.
        told: String,
    },
    /// Bytes that were on disk are gone or changed.
    #[error(transparent)]
    Damaged(Box<Damage>),
    /// The store did not take what the log holds.
    #[error(
        "{path}, offset {offset}, frame {lsn}: the log is intact but does not apply: {reason}. \
         Nothing was changed; restore a backup, or report this with the output of `orlop check`"
    )]
    Replay {
        /// The segment or snapshot.
        path: PathBuf,
        /// Byte offset in it.
        offset: u64,
        /// The frame, or the snapshot's LSN.
        lsn: Lsn,
        /// What the store or the decoder said.
        reason: String,
    },
}

/// Damage below what was known to be on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file} is damaged at offset {offset}: {what}. Lost: {lost}. Nothing was changed. What to do: \
     restore a backup or a copy of the whole directory; if this directory is itself a copy made \
     while orlop was running, make the copy again with orlop stopped; if the disk reports errors, \
     replace it first"
)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Byte offset of the first bad byte's page.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// What can no longer be read.
    pub lost: String,
}

/// Why a commit was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The disk or a quota is full. Nothing was written; the same commit may be tried again.
    #[error("no space left for {path}: free some space; writes return by themselves")]
    NoSpace {
        /// The file that found no room.
        path: PathBuf,
    },
    /// There is no segment to write to, and none can be made for another reason than a full
    /// disk: descriptors, memory, permissions, a disk that fails. Nothing was written; the
    /// same commit may be tried again.
    #[error(
        "cannot make {path}, the log's next file: {source}; writes are refused until it can be \
         made, and return by themselves"
    )]
    NoSegment {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// More than a frame can hold. Nothing was written.
    #[error("a commit of {bytes} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// The most that a commit can take.
        limit: u64,
    },
    /// A write or a sync failed, now or before: what is on disk is no longer known. The
    /// process has to end; the next start finds out.
    #[error(
        "writing {file} failed: {source}; nothing more is acknowledged, because what is on disk is \
         no longer known: check the disk, then start again"
    )]
    Poisoned {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Volatile writes are not accepted now: the profile has none. Nothing was written; give
    /// the records to [`Journal::commit`](crate::Journal::commit).
    #[error("volatile writes are not accepted: every write is durable now")]
    Strict,
    /// A frame is in the log and not visible yet, and that is in the way: it is not synced, or
    /// its place is behind another one, or the log is to be closed. Nothing was written.
    #[error("frame {lsn} is in the log and not visible yet: a fault in orlop")]
    Unordered {
        /// The frame.
        lsn: Lsn,
    },
    /// The journal was closed. Nothing was written.
    #[error("the journal is closed")]
    Closed,
}

/// Why a snapshot was not made. The log is unharmed, and no partial file is left.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused a call.
    #[error("cannot write the snapshot {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl CommitError {
    /// The error of making a file that holds no frames yet: passing, whatever it is.
    pub(crate) fn unprepared(path: &Path, source: io::Error) -> CommitError {
        let path = path.to_owned();
        if files::is_no_space(&source) {
            CommitError::NoSpace { path }
        } else {
            CommitError::NoSegment {
                path,
                source: Arc::new(source),
            }
        }
    }

    /// Whether there is no place for a frame now, and may be later: the log is as before.
    pub fn is_no_room(&self) -> bool {
        matches!(
            self,
            CommitError::NoSpace { .. } | CommitError::NoSegment { .. }
        )
    }
}

impl OpenError {
    /// For `map_err`: the error of `action` on `path`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.into();
        move |source| {
            if files::is_no_space(&source) {
                OpenError::NoSpace { path }
            } else {
                OpenError::Io {
                    action,
                    path,
                    source,
                }
            }
        }
    }

    pub(crate) fn mismatch(path: impl Into<PathBuf>, reason: impl Into<String>) -> OpenError {
        OpenError::Mismatch {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn damaged(
        file: impl Into<PathBuf>,
        offset: u64,
        what: impl Into<String>,
        lost: impl Into<String>,
    ) -> OpenError {
        OpenError::Damaged(Box::new(Damage {
            file: file.into(),
            offset,
            what: what.into(),
            lost: lost.into(),
        }))
    }
}
