//! Every Prometheus series of orlop: etcd's names where they mean the same,
//! `orlop_*` for the rest.
//!
//! One [`Metrics`] is made at start. Its fields are resolved handles: to count
//! is one relaxed addition to a cell of the thread's own shard, without a
//! lookup or a lock. What the engine and the journal know anyway is not counted
//! again but handed over at a scrape, in a [`ScrapeInput`].
//!
//! **The encoder is our own, and small.** `prometheus-client` writes
//! OpenMetrics, which is another format than etcd's `/metrics`: it appends
//! `_total` to every counter (`etcd_server_health_success` has none), ends with
//! `# EOF`, and has other `le` labels than Go (`1048576.0` for
//! `1.048576e+06`), so that a bucket would be another series than etcd's.
//! etcd does not offer OpenMetrics, whatever a client asks for; nor does this.
//!
//! This crate may read `/proc` at a scrape. It does no other I/O, starts no
//! thread, logs nothing and knows nothing of the engine or the server.
//!
//! Facts on names, types, labels and buckets: etcd 3.7.3's own `/metrics` and
//! the declarations behind it (`server/etcdserver`, `server/storage`,
//! `server/lease`, `server/etcdserver/api`). The help texts are ours.

mod cells;
mod doc;
mod fixed;
pub mod forecast;
mod grpc;
mod keeper;
mod labelled;
pub mod latency;
mod page;
pub mod placement;
mod process;
mod proxy;
mod registry;
pub mod router;
mod scrape;
pub mod seika;
mod shard;

use std::sync::Arc;

pub use cells::{Counter, Gauge, Histogram};
pub use grpc::{GRPC_CODES, Grpc, GrpcKind, GrpcMethod};
pub use keeper::{KeeperInput, keeper_page};
pub use labelled::{
    ApplyDurations, ApplyOp, ByClass, Check, ClientRequests, Direction, Healthchecks, Outcome,
    Probe, RequestDurations, RequestType, StreamApi, StreamFailures,
};
pub use proxy::{ProxyEnd, ProxyInput, ProxyMember, ProxyMetrics, ProxyRefusal};
pub use registry::{Family, Kind, Origin};
pub use scrape::{AccountInput, ScrapeInput};
pub use shard::{ShardInput, shard_page};

use cells::Shape;
use exponential::{MILLIS, NANOS, WHOLE};
use registry::Registry;

/// The `Content-Type` of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--metrics=extensive`: `grpc_server_handling_seconds` too.
    pub extensive: bool,
    /// Threads that count often; 0 is one a core. More threads than this share.
    pub shards: usize,
    /// The etcd version that orlop claims to be, as in `/version`.
    pub server_version: String,
    /// The cluster version, `3.7`.
    pub cluster_version: String,
    /// orlop's own version.
    pub orlop_version: String,
    /// The member's id.
    pub member_id: u64,
}

/// Histogram bounds by Go's rule: each is the one before times two.
mod exponential {
    /// Sums of seconds are kept in nanoseconds.
    pub(crate) const NANOS: f64 = 1e9;
    /// Sums of milliseconds are kept in nanoseconds too.
    pub(crate) const MILLIS: f64 = 1e6;
    /// Sums of whole numbers.
    pub(crate) const WHOLE: f64 = 1.0;

    pub(crate) fn doubling(start: f64, count: i32) -> Vec<f64> {
        (0..count).map(|nth| start * 2f64.powi(nth)).collect()
    }
}

fn shape(bounds: Vec<f64>, sum_steps: f64) -> Arc<Shape> {
    Arc::new(Shape { bounds, sum_steps })
}

fn doubling(start: f64, count: i32, sum_steps: f64) -> Arc<Shape> {
    shape(exponential::doubling(start, count), sum_steps)
}

/// All series. Share it in an `Arc`, or clone the handles.
#[derive(Debug)]
pub struct Metrics {
    families: Vec<Family>,

    /// `grpc_server_*`
    pub grpc: Grpc,
    /// `etcd_network_client_grpc_received_bytes_total`: bytes of messages.
    pub client_received_bytes: Counter,
    /// `etcd_network_client_grpc_sent_bytes_total`: bytes of messages.
    pub client_sent_bytes: Counter,
    /// `etcd_network_server_stream_failures_total`
    pub stream_failures: StreamFailures,
    /// `etcd_server_client_requests_total`
    pub client_requests: ClientRequests,

    /// `etcd_mvcc_put_total`: put operations, those in transactions included.
    pub put: Counter,
    /// `etcd_mvcc_delete_total`: delete operations, not keys.
    pub delete: Counter,
    /// `etcd_mvcc_range_total`: range operations, those in transactions included.
    pub range: Counter,
    /// `etcd_mvcc_txn_total`: requests that ran more than one operation.
    pub txn: Counter,
    /// `etcd_debugging_mvcc_total_put_size_in_bytes`: keys and values put since the start.
    pub put_bytes: Gauge,
    /// `etcd_server_range_duration_seconds`
    pub range_duration: Outcome<Histogram>,
    /// `etcd_server_apply_duration_seconds`
    pub apply_duration: ApplyDurations,
    /// `etcd_server_request_duration_seconds`
    pub request_duration: RequestDurations,
    /// `etcd_server_slow_apply_total`
    pub slow_apply: Counter,
    /// `etcd_server_slow_read_indexes_total`
    pub slow_read_indexes: Counter,
    /// `etcd_server_read_indexes_failed_total`
    pub read_indexes_failed: Counter,
    /// `etcd_server_proposals_failed_total`
    pub proposals_failed: Counter,
    /// `etcd_server_leader_changes_seen_total`: one, once serving began.
    pub leader_changes: Counter,

    /// `etcd_debugging_mvcc_events_total`: events sent to watches.
    pub watch_events: Counter,
    /// `etcd_debugging_mvcc_watch_stream_total`: watch streams open now.
    pub watch_streams: Gauge,
    /// `etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds`
    pub watch_send: Histogram,
    /// `etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds`
    pub watch_send_per_event: Histogram,
    /// `etcd_debugging_server_watch_send_loop_control_stream_duration_seconds`
    pub watch_control_send: Histogram,
    /// `etcd_debugging_server_watch_send_loop_progress_duration_seconds`
    pub watch_progress_send: Histogram,

    /// `etcd_debugging_lease_granted_total`
    pub lease_granted: Counter,
    /// `etcd_debugging_lease_revoked_total`
    pub lease_revoked: Counter,
    /// `etcd_debugging_lease_renewed_total`
    pub lease_renewed: Counter,
    /// `etcd_debugging_server_lease_expired_total`
    pub lease_expired: Counter,
    /// `etcd_debugging_lease_ttl_total`: the TTL of each grant, in seconds.
    pub lease_ttl_s: Histogram,

    /// `etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds`
    pub compaction_index_pause_ms: Histogram,
    /// `etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds`
    pub compaction_pause_ms: Histogram,
    /// `etcd_debugging_mvcc_db_compaction_total_duration_milliseconds`
    pub compaction_total_ms: Histogram,
    /// `etcd_debugging_mvcc_db_compaction_keys_total`: revisions of keys dropped.
    pub compaction_keys: Counter,
    /// `etcd_mvcc_hash_duration_seconds`
    pub hash: Histogram,
    /// `etcd_mvcc_hash_rev_duration_seconds`
    pub hash_rev: Histogram,
    /// `etcd_disk_backend_defrag_duration_seconds`
    pub defrag: Histogram,
    /// `etcd_disk_defrag_inflight`
    pub defrag_inflight: Gauge,
    /// `etcd_disk_backend_snapshot_duration_seconds`
    pub backend_snapshot: Histogram,

    /// `etcd_disk_wal_fsync_duration_seconds`: the fdatasync of a batch.
    pub wal_fsync: Histogram,
    /// `etcd_disk_wal_write_duration_seconds`: the write of a batch.
    pub wal_write: Histogram,
    /// `etcd_disk_wal_write_bytes_total`
    pub wal_write_bytes: Counter,
    /// `etcd_disk_backend_commit_duration_seconds`: a batch, from its closing
    /// until it is on disk, applied and visible.
    pub backend_commit: Histogram,
    /// `etcd_debugging_snap_save_total_duration_seconds`: a whole snapshot of the journal.
    pub snap_save: Histogram,
    /// `etcd_snap_fsync_duration_seconds`: the sync of a snapshot of the journal.
    pub snap_fsync: Histogram,
    /// `orlop_engine_lock_hold_seconds`: how long the engine's lock was held at a time.
    pub lock_hold: Histogram,
    /// Turns of workers that took a tick of the clock or more.
    pub worker_turn: Histogram,
    /// `orlop_journal_commit_batch_size`: writes in a batch.
    pub commit_batch_size: Histogram,
    /// `orlop_journal_snapshot_duration_seconds`
    pub journal_snapshot: Histogram,

    /// `orlop_scheduled_snapshot_last_success_timestamp_seconds`
    pub scheduled_snapshot_last_unix_s: Gauge,
    /// `orlop_scheduled_snapshot_failures_total`
    pub scheduled_snapshot_failures: Counter,
    /// `orlop_scheduled_snapshot_duration_seconds`
    pub scheduled_snapshot: Histogram,
    /// `orlop_scheduled_snapshot_size_bytes`
    pub scheduled_snapshot_bytes: Gauge,

    /// `etcd_server_health_success`
    pub health_success: Counter,
    /// `etcd_server_health_failures`
    pub health_failures: Counter,
    /// `etcd_server_healthcheck` and `etcd_server_healthchecks_total`
    pub healthchecks: Healthchecks,

    /// `orlop_streams`
    pub streams: Gauge,
    /// `orlop_writes_total`
    pub writes: ByClass<Counter>,
    /// `orlop_write_bytes_total`
    pub write_bytes: ByClass<Counter>,
    /// `orlop_write_duration_seconds`
    pub write_duration: ByClass<Histogram>,
    /// `orlop_history_compactions_forced_total`
    pub history_compactions_forced: Counter,
    /// `orlop_pins_broken_total`
    pub pins_broken: Counter,
    /// `orlop_watches_cancelled_slow_total`
    pub watch_cancelled_slow: Counter,
}

impl Metrics {
    /// Makes all series, at zero.
    pub fn new(options: &Options) -> Self {
        let shards = match options.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            shards => shards,
        };
        let r = &mut Registry::new(shards);
        use Origin::{Equivalent, Etcd, Orlop};

        fixed::declare_constants(r, options);
        fixed::declare_input(r, options.member_id);
        fixed::declare_process(r);

        // etcd's buckets: 1 ms to 8.192 s for the disk, 0.1 ms to 52.4 s for an apply.
        let disk = doubling(0.001, 14, NANOS);
        let apply = doubling(0.0001, 20, NANOS);
        let hash = doubling(0.01, 15, NANOS);
        let snapshot = doubling(0.01, 17, NANOS);

        let metrics = Self {
            families: Vec::new(),
            // First, so that the counters of the busiest methods are adjacent.
            grpc: Grpc::declare(r, options.extensive),
            client_received_bytes: r.counter(
                "etcd_network_client_grpc_received_bytes_total",
                Etcd,
                "Bytes of messages received from gRPC clients.",
            ),
            client_sent_bytes: r.counter(
                "etcd_network_client_grpc_sent_bytes_total",
                Etcd,
                "Bytes of messages sent to gRPC clients.",
            ),
            stream_failures: StreamFailures::declare(r),
            client_requests: ClientRequests::declare(r),

            put: r.counter(
                "etcd_mvcc_put_total",
                Etcd,
                "Put operations, those in transactions included.",
            ),
            delete: r.counter(
                "etcd_mvcc_delete_total",
                Etcd,
                "Delete operations (of a key or a range), those in transactions included.",
            ),
            range: r.counter(
                "etcd_mvcc_range_total",
                Etcd,
                "Range operations, those in transactions included.",
            ),
            txn: r.counter(
                "etcd_mvcc_txn_total",
                Etcd,
                "Requests that ran more than one operation.",
            ),
            put_bytes: r.gauge(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                Etcd,
                "Bytes of keys and values put since the process started.",
            ),
            range_duration: labelled::range_duration(r, &apply),
            apply_duration: ApplyDurations::declare(r, &apply),
            request_duration: RequestDurations::declare(r, &disk),
            slow_apply: r.counter(
                "etcd_server_slow_apply_total",
                Etcd,
                "Requests that took longer than --warning-apply-duration.",
            ),
            slow_read_indexes: r.counter(
                "etcd_server_slow_read_indexes_total",
                Equivalent,
                "Linearizable reads that waited too long for pending writes. One member asks no other, so it stays at 0 as a rule.",
            ),
            read_indexes_failed: r.counter(
                "etcd_server_read_indexes_failed_total",
                Equivalent,
                "Linearizable reads that failed before they read. One member asks no other, so it stays at 0 as a rule.",
            ),
            proposals_failed: r.counter(
                "etcd_server_proposals_failed_total",
                Equivalent,
                "Writes that could not be made durable: the journal had no room, or a write or sync of it failed.",
            ),
            leader_changes: r.counter(
                "etcd_server_leader_changes_seen_total",
                Equivalent,
                "1 once the member serves: there is nobody to lose the lead to.",
            ),

            watch_events: r.counter(
                "etcd_debugging_mvcc_events_total",
                Etcd,
                "Events sent to watches.",
            ),
            watch_streams: r.gauge(
                "etcd_debugging_mvcc_watch_stream_total",
                Etcd,
                "Watch streams that are open.",
            ),
            watch_send: r.histogram(
                "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
                Etcd,
                &disk,
                "How long it took to hand one batch of events to a watch stream.",
            ),
            watch_send_per_event: r.histogram(
                "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
                Etcd,
                &disk,
                "As the whole duration, divided by the events of the batch.",
            ),
            watch_control_send: r.histogram(
                "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
                Etcd,
                &disk,
                "How long it took to send a watch stream its answer to a create, cancel or progress request.",
            ),
            watch_progress_send: r.histogram(
                "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
                Etcd,
                &disk,
                "How long it took to send a watch stream a progress notification.",
            ),

            lease_granted: r.counter(
                "etcd_debugging_lease_granted_total",
                Etcd,
                "Leases granted.",
            ),
            lease_revoked: r.counter(
                "etcd_debugging_lease_revoked_total",
                Etcd,
                "Leases revoked, expired ones included.",
            ),
            lease_renewed: r.counter(
                "etcd_debugging_lease_renewed_total",
                Etcd,
                "Leases renewed by a keep-alive.",
            ),
            lease_expired: r.counter(
                "etcd_debugging_server_lease_expired_total",
                Etcd,
                "Leases that expired.",
            ),
            lease_ttl_s: r.histogram(
                "etcd_debugging_lease_ttl_total",
                Etcd,
                &doubling(1.0, 24, WHOLE),
                "The TTL of each lease granted, in seconds.",
            ),

            compaction_index_pause_ms: r.histogram(
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
                Equivalent,
                &doubling(0.5, 14, MILLIS),
                "How long one step of a compaction kept writers out. The index and the values are one structure here; each step counts here and in the db series.",
            ),
            compaction_pause_ms: r.histogram(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                Etcd,
                &doubling(1.0, 13, MILLIS),
                "How long one step of a compaction kept writers out.",
            ),
            compaction_total_ms: r.histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                Etcd,
                &doubling(100.0, 14, MILLIS),
                "How long a whole compaction took.",
            ),
            compaction_keys: r.counter(
                "etcd_debugging_mvcc_db_compaction_keys_total",
                Etcd,
                "Old revisions of keys that compactions dropped.",
            ),
            hash: r.histogram(
                "etcd_mvcc_hash_duration_seconds",
                Etcd,
                &hash,
                "How long a Hash took.",
            ),
            hash_rev: r.histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                Etcd,
                &hash,
                "How long a HashKV took.",
            ),
            defrag: r.histogram(
                "etcd_disk_backend_defrag_duration_seconds",
                Equivalent,
                &doubling(0.1, 13, NANOS),
                "How long a Defragment took. It does not stop other requests here.",
            ),
            defrag_inflight: r.gauge(
                "etcd_disk_defrag_inflight",
                Etcd,
                "Whether a Defragment is under way: 1 if so.",
            ),
            backend_snapshot: r.histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                Etcd,
                &snapshot,
                "How long a Maintenance.Snapshot took, from the call until all of it was handed to the connection.",
            ),

            wal_fsync: r.histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                Etcd,
                &disk,
                "How long the fdatasync of one batch of the journal took.",
            ),
            wal_write: r.histogram(
                "etcd_disk_wal_write_duration_seconds",
                Etcd,
                &disk,
                "How long the write of one batch of the journal took.",
            ),
            wal_write_bytes: {
                // A gauge in etcd, whatever its name.
                let gauge = r.gauge(
                    "etcd_disk_wal_write_bytes_total",
                    Etcd,
                    "Bytes written to the journal since the process started.",
                );
                Counter(gauge.0)
            },
            backend_commit: r.histogram(
                "etcd_disk_backend_commit_duration_seconds",
                Equivalent,
                &disk,
                "How long one batch of writes took from its closing until it was on disk, applied and visible. There is no other backend than the journal.",
            ),
            snap_save: r.histogram(
                "etcd_debugging_snap_save_total_duration_seconds",
                Equivalent,
                &disk,
                "How long a snapshot of the journal took in all.",
            ),
            snap_fsync: r.histogram(
                "etcd_snap_fsync_duration_seconds",
                Equivalent,
                &disk,
                "Empty: the sync of a snapshot of the journal is not measured apart.",
            ),
            lock_hold: r.histogram(
                "orlop_engine_lock_hold_seconds",
                Orlop,
                &doubling(0.004, 10, NANOS),
                "How long the store's lock was held at a time, by a clock of 4 ms; one above 50 ms is in the log, with the place in the code. Short holds are added 256 at a time.",
            ),
            worker_turn: r.histogram(
                "orlop_worker_turn_seconds",
                Orlop,
                &doubling(0.008, 12, NANOS),
                "How long one task kept a worker from all others. Turns shorter than a tick of the system's coarse clock, some milliseconds, are not counted.",
            ),
            commit_batch_size: r.histogram(
                "orlop_journal_commit_batch_size",
                Orlop,
                &doubling(1.0, 13, WHOLE),
                "Writes that shared one sync of the journal.",
            ),
            journal_snapshot: r.histogram(
                "orlop_journal_snapshot_duration_seconds",
                Orlop,
                &snapshot,
                "How long a snapshot of the journal took, from its start until older segments may go.",
            ),

            scheduled_snapshot_last_unix_s: r.gauge(
                "orlop_scheduled_snapshot_last_success_timestamp_seconds",
                Orlop,
                "When the newest complete snapshot in --snapshot-dir was begun (the time in its name), in Unix seconds, also if an earlier process saved it; 0 if there is none.",
            ),
            scheduled_snapshot_failures: r.counter(
                "orlop_scheduled_snapshot_failures_total",
                Orlop,
                "Snapshots for --snapshot-dir that could not be saved.",
            ),
            scheduled_snapshot: r.histogram(
                "orlop_scheduled_snapshot_duration_seconds",
                Orlop,
                &snapshot,
                "How long a snapshot for --snapshot-dir took until it was complete.",
            ),
            scheduled_snapshot_bytes: r.gauge(
                "orlop_scheduled_snapshot_size_bytes",
                Orlop,
                "Bytes of the last snapshot that this process saved in --snapshot-dir.",
            ),

            health_success: r.counter(
                "etcd_server_health_success",
                Etcd,
                "Answers of /health that said healthy.",
            ),
            health_failures: r.counter(
                "etcd_server_health_failures",
                Etcd,
                "Answers of /health that said unhealthy.",
            ),
            healthchecks: Healthchecks::declare(r),

            streams: r.gauge(
                "orlop_streams",
                Orlop,
                "Streaming calls that are open: watches, lease keep-alives, streamed ranges, snapshots, health watches.",
            ),
            writes: labelled::counter_by_class(
                r,
                "orlop_writes_total",
                "Writes that were made, by storage class.",
            ),
            write_bytes: labelled::counter_by_class(
                r,
                "orlop_write_bytes_total",
                "Bytes written to the journal for them, padding included, by storage class.",
            ),
            write_duration: labelled::write_duration(r, &apply),
            history_compactions_forced: r.counter(
                "orlop_history_compactions_forced_total",
                Orlop,
                "Compactions that orlop made by itself because history was over its budget.",
            ),
            pins_broken: r.counter(
                "orlop_pins_broken_total",
                Orlop,
                "RangeStreams ended because their client was slow to read and history was over its budget.",
            ),
            watch_cancelled_slow: r.counter(
                "orlop_watches_cancelled_slow_total",
                Orlop,
                "Watches cancelled because what they had yet to read was compacted.",
            ),
        };
        let registry = std::mem::replace(r, Registry::new(1));
        Self {
            families: registry.finish(),
            ..metrics
        }
    }

    /// The text of a scrape, in the format of [`CONTENT_TYPE`]. Reads `/proc`.
    pub fn encode(&self, input: &ScrapeInput) -> String {
        registry::encode(&self.families, input, &process::read())
    }

    /// All families, by name.
    pub fn families(&self) -> &[Family] {
        &self.families
    }
}

/// `docs/reference/metrics.md`, from the table of series.
pub fn reference_markdown() -> String {
    let options = Options {
        extensive: true,
        shards: 1,
        server_version: String::new(),
        cluster_version: String::new(),
        orlop_version: String::new(),
        member_id: 0,
    };
    doc::markdown(
        Metrics::new(&options).families(),
        &[
            (doc::PROXY, proxy::families()),
            (doc::KEEPER, keeper::families()),
            (doc::SHARD, shard::families()),
            (doc::FORECAST, forecast::families()),
            (doc::SEIKA, seika::families()),
            (doc::LATENCY, latency::families()),
            (doc::PLACEMENT, placement::families()),
            (doc::ROUTER, router::families()),
        ],
    )
}
