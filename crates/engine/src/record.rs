//! What the log keeps of an operation: its effects, not its request.
//!
//! Recovery evaluates nothing: it applies these in log order. The journal encodes
//! them, the engine makes and replays them; neither knows how the other works.

use bytes::Bytes;

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Sets `key` to `value`; create revision and version follow from what is there.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// The lease that the key is attached to, 0 for none.
        lease: i64,
    },
    /// Deletes `key`, which exists.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Effect {
    /// The key that it changes.
    pub fn key(&self) -> &[u8] {
        match self {
            Effect::Put { key, .. } | Effect::Delete { key } => key,
        }
    }
}

/// One entry of the log, applied whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The effects of one Put, DeleteRange or Txn: one revision, with a sub-revision an effect.
    /// Never empty.
    Txn(Vec<Effect>),
    /// A lease was granted.
    LeaseGrant {
        /// Lease id, not 0.
        id: i64,
        /// Time to live in seconds.
        ttl_s: i64,
    },
    /// A lease was revoked or has expired; the keys attached to it go in one revision
    /// (none, and no revision, if there are no keys).
    LeaseRevoke {
        /// Lease id.
        id: i64,
        /// The keys to delete, in key order.
        keys: Vec<Bytes>,
    },
    /// History at and below `revision` may be forgotten.
    Compact {
        /// The compact revision.
        revision: i64,
    },
    /// An alarm was set or cleared by a client (etcd's `AlarmType` number).
    Alarm {
        /// etcd's `AlarmType` number: 1 NOSPACE, 2 CORRUPT.
        alarm: i32,
        /// Set or cleared.
        active: bool,
    },
}

impl Record {
    /// Whether applying this record takes a revision.
    pub fn takes_revision(&self) -> bool {
        match self {
            Record::Txn(effects) => !effects.is_empty(),
            Record::LeaseRevoke { keys, .. } => !keys.is_empty(),
            Record::LeaseGrant { .. } | Record::Compact { .. } | Record::Alarm { .. } => false,
        }
    }
}

/// A revision as etcd counts: `main` a transaction, `sub` an operation in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The store's revision at which the change became visible.
    pub main: i64,
    /// Position within the transaction, from 0.
    pub sub: i64,
}

impl Revision {
    /// After the last change that a transaction at `main` can have made.
    pub fn end_of(main: i64) -> Self {
        Revision {
            main,
            sub: i64::MAX,
        }
    }
}

/// One retained version of a key, as snapshots carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionItem {
    /// The revision that made it.
    pub revision: Revision,
    /// `None` for a tombstone.
    pub put: Option<PutItem>,
}

/// The fields of a version that a put made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutItem {
    /// Revision of the key's creation.
    pub create_revision: i64,
    /// Number of puts since the creation.
    pub version: i64,
    /// The lease attached by that put, 0 for none.
    pub lease: i64,
    /// The value.
    pub value: Bytes,
}

/// One item of a snapshot of the store. A snapshot is a [`SnapshotMeta`], then items in
/// this order: leases by id, alarms, keys in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotItem {
    /// A lease.
    Lease {
        /// Lease id.
        id: i64,
        /// Granted time to live in seconds.
        ttl_s: i64,
    },
    /// An active alarm (etcd's `AlarmType` number).
    Alarm {
        /// etcd's `AlarmType` number.
        alarm: i32,
    },
    /// A key with its retained versions, ascending by revision, at least one.
    Key {
        /// The key; empty for a bump record (a revision with nothing in it), whose versions'
        /// fields are all 0.
        key: Bytes,
        /// Its versions.
        versions: Vec<VersionItem>,
    },
}

/// What a snapshot is a snapshot of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The store's revision.
    pub revision: i64,
    /// The store's compact revision, -1 if it was never compacted.
    pub compact_revision: i64,
}
