//! Series that nobody counts: constants, what a scrape hands over, and the
//! process.

use crate::doubling;
use crate::exponential::NANOS;
use crate::registry::{Kind, Origin, Registry, Source};
use crate::{Options, ScrapeInput};
use ledger::Account;

/// Series whose value is known at start: identity, and what one member never does.
pub(crate) fn declare_constants(r: &mut Registry, options: &Options) {
    let mut one = |name, labels, values: &[&str], origin, help| {
        let mut family = r.family(name, Kind::Gauge, labels, origin, help);
        family.sample(values, Source::Constant(1.0));
        family.done();
    };
    one(
        "etcd_server_version",
        &["server_version"],
        &[&options.server_version],
        Origin::Equivalent,
        "1, labelled with the etcd version whose API orlop offers, as in /version.",
    );
    one(
        "etcd_cluster_version",
        &["cluster_version"],
        &[&options.cluster_version],
        Origin::Etcd,
        "1, labelled with the cluster version.",
    );
    one(
        "etcd_server_id",
        &["server_id"],
        &[&format!("{:x}", options.member_id)],
        Origin::Etcd,
        "1, labelled with the member id in hexadecimal.",
    );
    one(
        "orlop_build_info",
        &["version"],
        &[&options.orlop_version],
        Origin::Orlop,
        "1, labelled with orlop's version.",
    );

    let zero = [
        (
            "etcd_server_is_learner",
            Kind::Gauge,
            "Whether the member is a learner. Always 0: one member votes.",
        ),
        (
            "etcd_server_learner_promote_successes",
            Kind::Counter,
            "Learners promoted. Always 0: there are none.",
        ),
        (
            "etcd_server_heartbeat_send_failures_total",
            Kind::Counter,
            "Heartbeats that were not sent in time. Always 0: there is no peer to send them to.",
        ),
        (
            "etcd_server_snapshot_apply_in_progress_total",
            Kind::Gauge,
            "Whether a snapshot of the leader is being applied. Always 0: there is no other leader.",
        ),
    ];
    for (name, kind, help) in zero {
        r.family(name, kind, &[], Origin::Equivalent, help)
            .one(Source::Constant(0.0));
    }
    // Only a member that receives a database from its leader observes these.
    for (name, start, count, help) in [
        (
            "etcd_snap_db_fsync_duration_seconds",
            0.001,
            14,
            "How long the sync of a received database took. Always empty: none is received.",
        ),
        (
            "etcd_snap_db_save_total_duration_seconds",
            0.1,
            10,
            "How long saving a received database took. Always empty: none is received.",
        ),
    ] {
        r.histogram(
            name,
            Origin::Equivalent,
            &doubling(start, count, NANOS),
            help,
        );
    }
}

/// A value of account `I` of the ledger.
type OfAccount = fn(&ScrapeInput) -> f64;

/// One function an account: sources are functions of the input alone.
macro_rules! of_accounts {
    ($field:ident) => {{
        fn of<const I: usize>(input: &ScrapeInput) -> f64 {
            input.ledger[I].$field as f64
        }
        const ALL: [OfAccount; Account::ALL.len()] = [
            of::<0>, of::<1>, of::<2>, of::<3>, of::<4>, of::<5>, of::<6>, of::<7>, of::<8>,
        ];
        ALL
    }};
}

/// Where memory is that is held for clients.
fn declare_ledger(r: &mut Registry) {
    let mut one = |name, kind, read: [OfAccount; Account::ALL.len()], help| {
        let mut family = r.family(name, kind, &["account"], Origin::Orlop, help);
        for (account, read) in Account::ALL.into_iter().zip(read) {
            family.sample(&[account.name()], Source::Input(read));
        }
        family.done();
    };
    one(
        "orlop_ledger_bytes",
        Kind::Gauge,
        of_accounts!(held_bytes),
        "Memory held for clients beyond a call's turn, by what it is held for.",
    );
    one(
        "orlop_ledger_limit_bytes",
        Kind::Gauge,
        of_accounts!(limit_bytes),
        "The most that may be held so.",
    );
    one(
        "orlop_ledger_refused_total",
        Kind::Counter,
        of_accounts!(refused),
        "What was refused because an account was full.",
    );
    one(
        "orlop_ledger_shed_total",
        Kind::Counter,
        of_accounts!(shed),
        "Connections and readers that were ended to make room in an account.",
    );
}

/// Gauges that are read from [`ScrapeInput`](crate::ScrapeInput).
pub(crate) fn declare_input(r: &mut Registry, member_id: u64) {
    use Origin::{Equivalent, Etcd, Orlop};
    let flag = "etcd_server_has_leader";
    r.input(
        flag,
        Etcd,
        |i| f64::from(i.has_leader),
        "Whether the member serves writes: 1 if so.",
    );
    r.input(
        "etcd_server_is_leader",
        Etcd,
        |i| f64::from(i.is_leader),
        "Whether the member is the leader: 1 as soon as it serves.",
    );
    r.input(
        "etcd_server_proposals_committed_total",
        Equivalent,
        |i| i.proposals_committed as f64,
        "Writes that are durable in the journal.",
    );
    r.input(
        "etcd_server_proposals_applied_total",
        Equivalent,
        |i| i.proposals_applied as f64,
        "Writes that are applied and visible.",
    );
    r.input(
        "etcd_server_proposals_pending",
        Equivalent,
        |i| i.proposals_pending as f64,
        "Writes that wait to be durable.",
    );
    r.input(
        "etcd_server_quota_backend_bytes",
        Etcd,
        |i| i.quota_bytes as f64,
        "The quota in force, in bytes, as Status.dbSizeQuota; negative if there is none.",
    );
    r.input(
        "etcd_mvcc_db_total_size_in_bytes",
        Equivalent,
        |i| i.db_total_bytes as f64,
        "Memory of data and history together; the same as Status.dbSize. NOSPACE is raised when data alone is over the quota.",
    );
    r.input(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        Equivalent,
        |i| i.db_in_use_bytes as f64,
        "The same as etcd_mvcc_db_total_size_in_bytes and Status.dbSizeInUse: nothing is kept apart to be reused.",
    );
    r.input(
        "etcd_mvcc_db_open_read_transactions",
        Equivalent,
        |i| i.open_read_transactions as f64,
        "Long reads of one revision that are under way.",
    );
    r.input(
        "etcd_debugging_mvcc_current_revision",
        Etcd,
        |i| i.current_revision as f64,
        "The store's revision.",
    );
    r.input(
        "etcd_debugging_mvcc_compact_revision",
        Etcd,
        |i| i.compact_revision as f64,
        "The revision of the last compaction, -1 before the first.",
    );
    r.input(
        "etcd_debugging_mvcc_db_compaction_last",
        Etcd,
        |i| i.compact_last_unix_s as f64,
        "When the last compaction ended, in Unix seconds; 0 if there was none.",
    );
    r.input(
        "etcd_debugging_mvcc_keys_total",
        Etcd,
        |i| i.keys as f64,
        "Keys that exist now.",
    );
    r.input(
        "etcd_debugging_mvcc_watcher_total",
        Etcd,
        |i| i.watchers as f64,
        "Watches that are open.",
    );
    r.input(
        "etcd_debugging_mvcc_slow_watcher_total",
        Etcd,
        |i| i.slow_watchers as f64,
        "Watches that are served from history because they are not up to date.",
    );
    r.input(
        "etcd_debugging_mvcc_pending_events_total",
        Etcd,
        |i| i.pending_events as f64,
        "Always 0: events wait in history, not in a queue of each watch.",
    );

    let mut family = r.family(
        "etcd_debugging_server_alarms",
        Kind::Gauge,
        &["alarm_type", "server_id"],
        Etcd,
        "Whether each alarm is raised: 1 if so.",
    );
    let id = format!("{member_id:x}");
    family.sample(
        &["CORRUPT", &id],
        Source::Input(|i| f64::from(i.alarm_corrupt)),
    );
    family.sample(
        &["NOSPACE", &id],
        Source::Input(|i| f64::from(i.alarm_nospace)),
    );
    family.done();

    r.input(
        "orlop_connections",
        Orlop,
        |i| i.connections as f64,
        "Client connections that are open.",
    );
    let mut family = r.family(
        "orlop_connections_refused_total",
        Kind::Counter,
        &[],
        Orlop,
        "Connections closed at once because --max-connections were open.",
    );
    family.sample(&[], Source::Input(|i| i.connections_refused as f64));
    family.done();
    declare_ledger(r);
    r.input(
        "orlop_waiting_operations",
        Orlop,
        |i| i.waiting_operations as f64,
        "Calls that wait for another call's write to their keys.",
    );
    r.input(
        "orlop_pins",
        Orlop,
        |i| i.open_read_transactions as f64,
        "Reads of one revision that are under way and keep it from being freed; the same as etcd_mvcc_db_open_read_transactions.",
    );
    r.input(
        "orlop_pin_oldest_age_seconds",
        Orlop,
        |i| i.pin_oldest_age_s,
        "How long the oldest of these reads is under way; 0 if there is none.",
    );
    r.input(
        "orlop_pinned_bytes",
        Orlop,
        |i| i.pinned_bytes as f64,
        "Compacted history that these reads keep from being freed, about.",
    );
    r.input(
        "orlop_snapshots_sending",
        Orlop,
        |i| i.snapshots_sending as f64,
        "Snapshots that are being sent to clients.",
    );
    r.input(
        "orlop_snapshots_held_bytes",
        Orlop,
        |i| i.snapshots_held_bytes as f64,
        "The most that these snapshots keep in memory: what is replaced or deleted while they are sent.",
    );
    r.input(
        "orlop_leases",
        Orlop,
        |i| i.leases as f64,
        "Leases that are alive.",
    );
    r.input(
        "orlop_data_bytes",
        Orlop,
        |i| i.data_bytes as f64,
        "Memory of the keys and values that exist now.",
    );
    r.input(
        "orlop_history_bytes",
        Orlop,
        |i| i.history_bytes as f64,
        "Memory of older revisions that are not yet compacted.",
    );
    r.input(
        "orlop_history_budget_bytes",
        Orlop,
        |i| i.history_budget_bytes as f64,
        "The most that history may take before its oldest part is compacted early.",
    );
    r.input(
        "orlop_journal_segments",
        Orlop,
        |i| i.journal_segments as f64,
        "Segment files of the journal.",
    );
    r.input(
        "orlop_journal_bytes",
        Orlop,
        |i| i.journal_bytes as f64,
        "Bytes of all files of the journal, snapshots and allocated segments included.",
    );
    r.input(
        "orlop_journal_snapshot_lag_bytes",
        Orlop,
        |i| i.journal_snapshot_lag_bytes as f64,
        "Bytes of the journal since its last snapshot: what a start has to replay.",
    );
    r.input(
        "orlop_journal_last_snapshot_timestamp_seconds",
        Orlop,
        |i| i.journal_last_snapshot_unix_s,
        "When the last snapshot of the journal was complete, in Unix seconds; 0 if there is none.",
    );
    r.input(
        "orlop_storage_strict",
        Orlop,
        |i| f64::from(i.storage_strict),
        "Whether every write is durable under the storage rules in force: 1 if so.",
    );
    r.input(
        "orlop_epoch_open",
        Orlop,
        |i| f64::from(i.epoch_open),
        "Whether a power loss would make every watcher list again: 1 while the journal takes volatile writes.",
    );
    r.input(
        "orlop_unsynced_bytes",
        Orlop,
        |i| i.unsynced_bytes as f64,
        "Bytes of volatile writes that are not on disk yet: what a power loss would take now.",
    );
    r.input(
        "orlop_unsynced_age_seconds",
        Orlop,
        |i| i.unsynced_age_s,
        "How long the oldest volatile write has waited to be on disk.",
    );
    r.input(
        "orlop_followers_max",
        Orlop,
        |i| i.followers_max as f64,
        "Keepers that may follow this server at once; 0 if nobody may.",
    );
    r.input(
        "orlop_followers",
        Orlop,
        |i| i.followers as f64,
        "Keepers that follow this server now.",
    );
    r.input(
        "orlop_followers_lag_records",
        Orlop,
        |i| i.followers_lag_records as f64,
        "Records that the follower that is furthest behind does not have on its disk; 0 if nobody follows.",
    );
    r.input(
        "orlop_followers_lag_bytes",
        Orlop,
        |i| i.followers_lag_bytes as f64,
        "Bytes of those records.",
    );
    r.input(
        "orlop_followers_lag_seconds",
        Orlop,
        |i| i.followers_lag_s,
        "For how long the oldest of those records has waited.",
    );
    r.input(
        "orlop_shards_max",
        Orlop,
        |i| i.shards_max as f64,
        "Shards that may connect at once; 0 if none may.",
    );
    r.input(
        "orlop_shards",
        Orlop,
        |i| i.shards as f64,
        "Shards that are connected.",
    );
    r.input(
        "orlop_shards_copies",
        Orlop,
        |i| i.shards_copies as f64,
        "How many shards are to hold each replicated write, by the storage rules in force; 0 if no rule asks for any.",
    );
    r.input(
        "orlop_shards_counting",
        Orlop,
        |i| f64::from(u8::from(i.shards_counting)),
        "1 while replicated writes are answered when shards have them; 0 while they wait for the disk.",
    );
    r.input(
        "orlop_shards_kept_bytes",
        Orlop,
        |i| i.shards_kept_bytes as f64,
        "Bytes of records that are not on the disk yet, kept for shards.",
    );
    for (name, source, help) in [
        (
            "orlop_shards_lost_total",
            Source::Input(|i| i.shards_lost as f64),
            "How often a shard of those that count was lost, left, or was replaced by one in another failure domain; writes waited for the disk until the next ones counted.",
        ),
        (
            "orlop_followers_cut_off_total",
            Source::Input(|i| i.followers_cut_off as f64),
            "Followers that were cut off because they were further behind than is kept for them.",
        ),
        (
            "orlop_followers_snapshots_total",
            Source::Input(|i| i.followers_snapshots as f64),
            "Snapshots that followers were sent: to begin with, and after they were cut off or the server was started anew.",
        ),
    ] {
        let mut family = r.family(name, Kind::Counter, &[], Orlop, help);
        family.sample(&[], source);
        family.done();
    }
    r.input(
        "orlop_watchers_behind",
        Orlop,
        |i| i.watchers_behind as f64,
        "Watches that have not been sent everything up to the store's revision.",
    );
    r.input(
        "orlop_certificate_not_after_timestamp_seconds",
        Orlop,
        |i| i.certificate_not_after_unix_s as f64,
        "When the server's certificate, or another of its chain, expires, in Unix seconds; the earliest of all listeners; 0 without TLS.",
    );
    let mut family = r.family(
        "orlop_log_lines_dropped_total",
        Kind::Counter,
        &[],
        Orlop,
        "Log lines dropped because the log's output did not take them in time.",
    );
    family.sample(&[], Source::Input(|i| i.log_lines_dropped as f64));
    family.done();
    let mut family = r.family(
        "orlop_panics_total",
        Kind::Counter,
        &[],
        Orlop,
        "Bugs that ended one call or one job, and not the process: each is in the log, at level panic.",
    );
    family.sample(&[], Source::Input(|i| i.panics as f64));
    family.done();
}

/// Series about the process.
pub(crate) fn declare_process(r: &mut Registry) {
    use Kind::{Counter, Gauge};
    r.process(
        "process_cpu_seconds_total",
        Counter,
        |p| p.cpu_s,
        "CPU time used, user and system.",
    );
    r.process(
        "process_resident_memory_bytes",
        Gauge,
        |p| p.resident_bytes,
        "Memory that is resident.",
    );
    r.process(
        "process_virtual_memory_bytes",
        Gauge,
        |p| p.virtual_bytes,
        "Address space in use.",
    );
    r.process(
        "process_virtual_memory_max_bytes",
        Gauge,
        |p| p.virtual_max_bytes,
        "The limit of the address space.",
    );
    r.process(
        "process_open_fds",
        Gauge,
        |p| p.open_fds,
        "File descriptors that are open.",
    );
    r.process(
        "process_max_fds",
        Gauge,
        |p| p.max_fds,
        "The limit of file descriptors.",
    );
    r.process(
        "process_start_time_seconds",
        Gauge,
        |p| p.start_unix_s,
        "When the process started, in Unix seconds.",
    );
    r.process(
        "process_network_receive_bytes_total",
        Counter,
        |p| p.network_receive_bytes,
        "Bytes that the process's network namespace received over IP.",
    );
    r.process(
        "process_network_transmit_bytes_total",
        Counter,
        |p| p.network_transmit_bytes,
        "Bytes that the process's network namespace sent over IP.",
    );
    r.process(
        "os_fd_used",
        Gauge,
        |p| p.open_fds,
        "File descriptors that are open.",
    );
    r.process(
        "os_fd_limit",
        Gauge,
        |p| p.max_fds,
        "The limit of file descriptors.",
    );
}
