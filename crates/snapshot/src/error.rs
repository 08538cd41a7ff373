//! What can be wrong with a snapshot, in sentences for an operator.

use std::io;
use std::path::PathBuf;

/// Why a snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a database, or its pages are damaged.
    #[error("{}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        source: bbolt::Error,
    },
    /// A database, but not etcd's.
    #[error(
        "{} is a database file, but not etcd's: it has no bucket \"{missing}\" ({found})",
        path.display()
    )]
    NotEtcd {
        /// The file.
        path: PathBuf,
        /// The bucket that is missing.
        missing: String,
        /// What there is instead.
        found: String,
    },
    /// The SHA-256 at its end is not that of the file.
    #[error(
        "{}: the SHA-256 at its end is {stated}, that of its {bytes} bytes is {found}: bytes were \
         lost or changed after it was saved; take another copy of the snapshot",
        path.display()
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// What the file says.
        stated: String,
        /// What it is.
        found: String,
        /// Bytes of the database.
        bytes: u64,
    },
    /// The length is that of no snapshot.
    #[error(
        "{} has {bytes} bytes, which is neither whole pages nor whole pages and a SHA-256 (32 \
         bytes): it is cut off, or no etcd snapshot",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// An item of a bucket is not what etcd would write.
    #[error(
        "{}: in bucket \"{bucket}\", page {page}, file offset {offset}: {what}; the file is \
         damaged or not etcd's",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// The bucket.
        bucket: String,
        /// The page in the file.
        page: u64,
        /// The offset in the file, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Written by an etcd that this version does not know.
    #[error(
        "{} follows etcd {found}; this orlop knows up to etcd 3.7: use a newer orlop",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// An etcd has the file open.
    #[error(
        "{} is in use by a running etcd, whose newest writes are not in it yet: stop that etcd, \
         or take a snapshot of it (etcdctl snapshot save)",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The bytes to be written are not those that were planned.
    #[error("cannot write the snapshot: {0}")]
    Write(bbolt::Error),
}
