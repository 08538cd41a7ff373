//! The engine's errors. Each is an answer etcd gives; the server adds code and text.

/// Why an operation was not carried out. Nothing of it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The revision asked for is at or below what compaction left.
    #[error("the required revision has been compacted")]
    Compacted,
    /// The revision asked for does not exist yet.
    #[error("the required revision is a future revision")]
    FutureRevision,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("the key does not exist")]
    KeyNotFound,
    /// The lease does not exist, or has expired.
    #[error("the lease does not exist")]
    LeaseNotFound,
    /// A lease with that id exists already.
    #[error("the lease exists already")]
    LeaseExists,
    /// The time to live is above etcd's maximum of 9,000,000,000 s.
    #[error("the lease's time to live is too large")]
    LeaseTtlTooLarge,
    /// Its keys and values are more than a commit can hold.
    #[error("the write's keys and values are more than a commit can hold")]
    TooLarge,
    /// Data is over the quota, or the journal's disk is full.
    #[error("no space: over the quota, or the journal's disk is full")]
    NoSpace,
    /// A CORRUPT alarm is set.
    #[error("a CORRUPT alarm is set")]
    Corrupt,
    /// The operation waited too long behind others on its keys.
    #[error("the request timed out behind other writes to its keys")]
    TimedOut,
    /// Too many operations wait already.
    #[error("too many operations are waiting")]
    TooManyRequests,
    /// The compares of a transaction look at too many keys.
    #[error("the compares of the transaction look at too many keys")]
    TooManyOps,
    /// The store is stopping, or its journal has failed.
    #[error("the store has stopped")]
    Stopped,
}
