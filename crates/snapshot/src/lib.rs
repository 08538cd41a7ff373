//! etcd's snapshot files: what its buckets hold, written and read.
//!
//! A snapshot is etcd's database file, a bbolt file, and after it the SHA-256 of all of it.
//! This crate knows the buckets and what is in them; pages are the `bbolt` crate's. It may
//! not open a network connection, start a thread, or change a file that it reads.
//!
//! - [`Encoder`]: what an engine holds, to the bytes of such a file.
//! - [`Snapshot`]: such a file, or the `member/snap/db` of an etcd that was stopped; what it
//!   says, what `etcdutl` would say of it, and all of it into an engine.
//! - [`wal`]: whether etcd's write-ahead log has more than its database.
//!
//! Source of the schema: etcd 3.7's `server/storage/schema` and `server/storage/mvcc`.

mod contents;
mod encode;
mod error;
mod file;
mod load;
mod revision;
mod status;
mod version;
pub mod wal;

pub use contents::{Auth, Contents};
pub use encode::{Encoder, Origin, write_file};
pub use error::Error;
pub use file::Snapshot;
pub use load::Loaded;
pub use status::{Status, human_bytes};
pub use version::StorageVersion;

/// Names of buckets and of the keys in them.
mod names {
    pub(crate) const ALARM: &[u8] = b"alarm";
    pub(crate) const AUTH: &[u8] = b"auth";
    pub(crate) const AUTH_ROLES: &[u8] = b"authRoles";
    pub(crate) const AUTH_USERS: &[u8] = b"authUsers";
    pub(crate) const CLUSTER: &[u8] = b"cluster";
    pub(crate) const KEY: &[u8] = b"key";
    pub(crate) const LEASE: &[u8] = b"lease";
    pub(crate) const MEMBERS: &[u8] = b"members";
    pub(crate) const MEMBERS_REMOVED: &[u8] = b"members_removed";
    pub(crate) const META: &[u8] = b"meta";

    pub(crate) const AUTH_ENABLED: &[u8] = b"authEnabled";
    pub(crate) const AUTH_REVISION: &[u8] = b"authRevision";
    pub(crate) const CLUSTER_VERSION: &[u8] = b"clusterVersion";
    pub(crate) const CONF_STATE: &[u8] = b"confState";
    pub(crate) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
    pub(crate) const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";
    pub(crate) const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
    pub(crate) const STORAGE_VERSION: &[u8] = b"storageVersion";
    pub(crate) const TERM: &[u8] = b"term";
}
