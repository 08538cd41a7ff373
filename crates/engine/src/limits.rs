//! What the engine refuses to exceed.

/// Limits, all set by the caller.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Data above this raises NOSPACE, in bytes (etcd's `quota-backend-bytes`).
    pub quota_bytes: usize,
    /// At most so many operations wait for others on their keys.
    pub max_waiting: usize,
    /// Writes that wait, for others or for the log, hold at most about so many bytes
    /// ([`crate::Engine::held_bytes`]), and one write: a disk that stands still must not fill
    /// the memory.
    pub max_held_bytes: usize,
    /// [`crate::Engine::admit_ready`] ends after about so many steps.
    pub ready_steps: u64,
    /// The keys and values that one write changes take at most about so many bytes: it is
    /// logged whole.
    pub max_record_bytes: usize,
    /// How long an operation waits for others on its keys, in milliseconds.
    pub wait_timeout_ms: u64,
    /// Keys that the ranges inside the transactions of one batch visit in one go, about; what
    /// they have yet to visit is left to the caller ([`crate::op::Reply::Unfinished`]).
    pub txn_range_keys: usize,
    /// Shortest time to live of a lease, in seconds: shorter ones are lengthened, as etcd
    /// does.
    pub min_lease_ttl_s: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            quota_bytes: 2 << 30,
            max_waiting: 10_000,
            max_held_bytes: 128 << 20,
            max_record_bytes: 512 << 20,
            ready_steps: 20_000,
            wait_timeout_ms: 7_000,
            txn_range_keys: 4096,
            min_lease_ttl_s: 2,
        }
    }
}
