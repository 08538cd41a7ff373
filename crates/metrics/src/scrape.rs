//! What the server reads from the engine and the journal at a scrape.

/// Values that exist anyway, read when somebody scrapes. The default is all
/// zero: an empty store without a quota.
#[derive(Clone, Debug, Default)]
pub struct ScrapeInput {
    /// The member serves (etcd: knows a leader).
    pub has_leader: bool,
    /// This member is the leader; with one member, as `has_leader`.
    pub is_leader: bool,
    /// Writes that are durable (etcd: the committed Raft index).
    pub proposals_committed: u64,
    /// Writes that are applied and visible.
    pub proposals_applied: u64,
    /// Writes that wait to be durable.
    pub proposals_pending: u64,
    /// The quota in force; negative if there is none, as `Status.dbSizeQuota`.
    pub quota_bytes: i64,
    /// Memory of data and history, as `Status.dbSize`.
    pub db_total_bytes: u64,
    /// That size without what defragmentation could give back, as `Status.dbSizeInUse`.
    pub db_in_use_bytes: u64,
    /// Reads of a revision that are under way over several turns (long lists).
    pub open_read_transactions: u64,
    /// How long the oldest of them is under way, in seconds.
    pub pin_oldest_age_s: f64,
    /// Compacted history that they keep from being freed, in bytes.
    pub pinned_bytes: u64,
    /// Snapshots that are being sent to clients.
    pub snapshots_sending: u64,
    /// Bytes of keys and values that those hold at most.
    pub snapshots_held_bytes: u64,
    /// The store's revision.
    pub current_revision: i64,
    /// The compacted revision, -1 before the first compaction.
    pub compact_revision: i64,
    /// When the last compaction ended, in Unix seconds; 0 if there was none.
    pub compact_last_unix_s: u64,
    /// Keys that exist now.
    pub keys: u64,
    /// Watches that are open.
    pub watchers: u64,
    /// Watches that read history because they are behind.
    pub slow_watchers: u64,
    /// Always 0: events wait in history, not in a queue of each watch.
    pub pending_events: u64,
    /// The NOSPACE alarm is raised.
    pub alarm_nospace: bool,
    /// The CORRUPT alarm is raised.
    pub alarm_corrupt: bool,
    /// Client connections that are open.
    pub connections: u64,
    /// Connections closed at once because the limit was reached, since the start.
    pub connections_refused: u64,
    /// Accounts of memory held for clients, in the order of [`ledger::Account::ALL`].
    pub ledger: [AccountInput; ledger::Account::ALL.len()],
    /// Calls that wait for another call's write to their keys.
    pub waiting_operations: u64,
    /// Leases that are alive.
    pub leases: u64,
    /// Memory of the keys and values that exist now.
    pub data_bytes: u64,
    /// Memory of older revisions that are not compacted.
    pub history_bytes: u64,
    /// The history budget in force.
    pub history_budget_bytes: u64,
    /// Segment files of the journal.
    pub journal_segments: u64,
    /// Bytes of all files of the journal.
    pub journal_bytes: u64,
    /// Bytes written since the last snapshot began: what a start replays.
    pub journal_snapshot_lag_bytes: u64,
    /// When the last snapshot was complete, in Unix seconds; 0 if there is none.
    pub journal_last_snapshot_unix_s: f64,
    /// Those who may follow at once.
    pub followers_max: u64,
    /// Those who follow now.
    pub followers: u64,
    /// Records that the one that is furthest behind does not have on its disk.
    pub followers_lag_records: u64,
    /// Their bytes.
    pub followers_lag_bytes: u64,
    /// For how long the oldest of them has waited, in seconds.
    pub followers_lag_s: f64,
    /// Followers that were cut off because they were too far behind, since the start.
    pub followers_cut_off: u64,
    /// Snapshots that followers were sent, since the start.
    pub followers_snapshots: u64,
    /// Shards that may connect at once.
    pub shards_max: u64,
    /// Shards that are connected.
    pub shards: u64,
    /// How many shards are to hold each write, by the rules in force; 0 if none.
    pub shards_copies: u64,
    /// Writes are answered when shards have them.
    pub shards_counting: bool,
    /// Bytes of frames that are kept for shards.
    pub shards_kept_bytes: u64,
    /// How often a set of shards was lost, since the start.
    pub shards_lost: u64,
    /// Watches that are behind the store's revision.
    pub watchers_behind: u64,
    /// Every write is durable under the storage rules in force.
    pub storage_strict: bool,
    /// An epoch of volatile writes is open in the journal.
    pub epoch_open: bool,
    /// Bytes of volatile writes that are not on disk yet.
    pub unsynced_bytes: u64,
    /// How long the oldest of them has waited, in seconds.
    pub unsynced_age_s: f64,
    /// When the first certificate of a listener expires, in Unix seconds; 0 without TLS.
    pub certificate_not_after_unix_s: i64,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
    /// Panics that ended a piece of work and not the process.
    pub panics: u64,
}

/// What one account of the ledger holds and has held.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccountInput {
    /// What it holds, in bytes.
    pub held_bytes: u64,
    /// What it may hold, in bytes.
    pub limit_bytes: u64,
    /// What was refused because it was full, since the start.
    pub refused: u64,
    /// Holders that were ended to make room in it, since the start.
    pub shed: u64,
}

impl AccountInput {
    /// Reads all accounts of a ledger.
    pub fn all(ledger: &ledger::Ledger) -> [AccountInput; ledger::Account::ALL.len()] {
        ledger::Account::ALL.map(|account| AccountInput {
            held_bytes: ledger.held_bytes(account) as u64,
            limit_bytes: ledger.limit_bytes(account) as u64,
            refused: ledger.refused(account),
            shed: ledger.shed(account),
        })
    }
}
