//! What all threads of the server share.

use crate::durability::SnapshotJob;
use crate::encode::Ids;
use crate::memory::Quota;
use crate::store::Store;
use crate::switch::Request;
use crate::turns::Turns;
use journal::{Allocator, VolatileWriter};
use metrics::Metrics;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use telemetry::Throttle;
use threads::Panicked;

/// The release of etcd whose behaviour and version the server shows to clients:
/// Kubernetes decides by it which features to use.
pub const ETCD_VERSION: &str = "3.7.3";
/// Its cluster version, as `/version` shows it.
pub(crate) const CLUSTER_VERSION: &str = "3.7.0";
/// The same as metrics and Downgrade show it.
pub(crate) const CLUSTER_MINOR_VERSION: &str = "3.7";

/// The log grows by at least this much between snapshots, in bytes.
const SNAPSHOT_MIN_BYTES: u64 = 256 << 20;
/// And by at least so many segments.
pub(crate) const SNAPSHOT_MIN_SEGMENTS: u64 = 4;

/// Shared state.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) ids: Ids,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) client_urls: Vec<String>,
    pub(crate) max_txn_ops: usize,
    pub(crate) max_request_bytes: usize,
    pub(crate) fragment_bytes: usize,
    pub(crate) max_watches: i64,
    pub(crate) progress_interval: Duration,
    pub(crate) warning_apply: Duration,
    pub(crate) warning_unary: Duration,
    pub(crate) quota: Quota,
    pub(crate) history_budget_bytes: u64,
    pub(crate) files: Arc<dyn files::FileSystem>,
    pub(crate) allocator: Allocator,
    pub(crate) segment_bytes: u64,
    pub(crate) log_counters: Option<telemetry::LogCounters>,
    /// Of the listeners for clients and metrics.
    pub(crate) certificates: Vec<wire::Certificate>,
    /// For its state, and for workers; the volatile writer's thread has its own.
    pub(crate) volatile: VolatileWriter,
    pub(crate) here: crate::volatile::Here,
    pub(crate) rates: crate::rates::Rates,
    pub(crate) health_told: crate::http::HealthTold,
    orders: Mutex<Vec<Request>>,
    disk_full: AtomicBool,
    stopping: AtomicBool,
    committed_lsn: AtomicU64,
    committed_records: AtomicU64,
    watchers: AtomicI64,
    behind: AtomicI64,
    log_bytes: AtomicU64,
    snapshot_lag_bytes: AtomicU64,
    last_snapshot_unix_ms: AtomicU64,
    last_compaction_unix_s: AtomicU64,
    pub(crate) journal_snapshots: Turns,
    pub(crate) sending_snapshots: crate::backup::Sending,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    connections: OnceLock<wire::Counts>,
}

static SLOW_SYNC: Throttle = Throttle::new(Duration::from_secs(10));
static SLOW_APPLY: Throttle = Throttle::new(Duration::from_secs(10));

/// What [`Shared::new`] takes besides the defaults.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) ids: Ids,
    pub(crate) name: String,
    pub(crate) client_urls: Vec<String>,
    pub(crate) quota: Quota,
    pub(crate) history_budget_bytes: u64,
    pub(crate) files: Arc<dyn files::FileSystem>,
    pub(crate) allocator: Allocator,
    pub(crate) log_counters: Option<telemetry::LogCounters>,
    pub(crate) certificates: Vec<wire::Certificate>,
    pub(crate) fragment_bytes: usize,
    pub(crate) volatile: VolatileWriter,
    pub(crate) disk_full: bool,
}

impl Shared {
    pub(crate) fn new(config: &config::Config, p: Parts) -> Self {
        Shared {
            store: p.store,
            metrics: p.metrics,
            ids: p.ids,
            name: p.name,
            data_dir: config.data_dir.clone(),
            peer_urls: config
                .initial_advertise_peer_urls
                .iter()
                .map(|u| u.to_string())
                .collect(),
            client_urls: p.client_urls,
            max_txn_ops: config.max_txn_ops as usize,
            max_request_bytes: config.max_request_bytes as usize,
            fragment_bytes: p.fragment_bytes,
            max_watches: config.max_watches as i64,
            progress_interval: config.watch_progress_notify_interval,
            warning_apply: config.warning_apply_duration,
            warning_unary: config.warning_unary_request_duration,
            quota: p.quota,
            history_budget_bytes: p.history_budget_bytes,
            files: p.files,
            allocator: p.allocator,
            segment_bytes: config.segment_bytes,
            log_counters: p.log_counters,
            certificates: p.certificates,
            volatile: p.volatile,
            here: crate::volatile::Here::default(),
            rates: crate::rates::Rates::default(),
            health_told: crate::http::HealthTold::default(),
            orders: Mutex::new(Vec::new()),
            disk_full: AtomicBool::new(p.disk_full),
            stopping: AtomicBool::new(false),
            committed_lsn: AtomicU64::new(0),
            committed_records: AtomicU64::new(0),
            watchers: AtomicI64::new(0),
            behind: AtomicI64::new(0),
            log_bytes: AtomicU64::new(0),
            snapshot_lag_bytes: AtomicU64::new(0),
            last_snapshot_unix_ms: AtomicU64::new(0),
            last_compaction_unix_s: AtomicU64::new(0),
            journal_snapshots: Turns::default(),
            sending_snapshots: crate::backup::Sending::default(),
            threads: Mutex::new(Vec::new()),
            connections: OnceLock::new(),
        }
    }

    // --- stopping and failing

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.store.commit.raise();
        self.store.volatile.raise();
    }

    /// Ends the process: the journal has failed, and nothing more may be acknowledged.
    pub(crate) fn die(&self, error: &str) -> ! {
        tracing::error!(
            target: telemetry::FATAL,
            error,
            "the journal has failed; the server ends without answering what was being written, so that nothing unsure is acknowledged"
        );
        // The line is written by now: a fatal one waits for that.
        std::process::exit(1);
    }

    // --- orders to the committer

    pub(crate) fn order(&self, request: Request) {
        self.orders.lock().push(request);
        self.store.commit.raise();
    }

    pub(crate) fn orders(&self) -> Vec<Request> {
        std::mem::take(&mut *self.orders.lock())
    }

    // --- a full disk

    pub(crate) fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Acquire)
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        let was = {
            // Both at once: committer and volatile writer may find different things.
            let mut engine = self.store.lock();
            engine.set_disk_full(full);
            self.disk_full.swap(full, Ordering::AcqRel)
        };
        if was && !full {
            tracing::info!("the journal has room again: writes are accepted");
        }
        // A full disk is tried again by the committer.
        if full {
            self.store.commit.raise();
        }
    }

    pub(crate) fn keep_thread(&self, handle: std::thread::JoinHandle<()>) {
        let mut threads = self.threads.lock();
        threads.retain(|t| !t.is_finished());
        threads.push(handle);
    }

    pub(crate) fn join_threads(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for t in threads {
            // A thread that panicked has said so.
            let _ = t.join();
        }
    }

    // --- counters that answers and metrics show

    pub(crate) fn committed(&self, lsn: u64, records: u64) {
        self.committed_lsn.fetch_max(lsn, Ordering::Relaxed);
        self.committed_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn committed_lsn(&self) -> u64 {
        self.committed_lsn.load(Ordering::Relaxed)
    }

    pub(crate) fn committed_records(&self) -> u64 {
        self.committed_records.load(Ordering::Relaxed)
    }

    pub(crate) fn watchers(&self, by: i64) {
        self.watchers.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn watcher_count(&self) -> i64 {
        self.watchers.load(Ordering::Relaxed)
    }

    pub(crate) fn watchers_behind(&self, by: i64) {
        self.behind.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn behind_count(&self) -> i64 {
        self.behind.load(Ordering::Relaxed)
    }

    pub(crate) fn journal_sizes(&self, log_bytes: u64, lag_bytes: u64) {
        self.log_bytes.store(log_bytes, Ordering::Relaxed);
        self.snapshot_lag_bytes.store(lag_bytes, Ordering::Relaxed);
    }

    pub(crate) fn journal_bytes(&self) -> (u64, u64) {
        (
            self.log_bytes.load(Ordering::Relaxed),
            self.snapshot_lag_bytes.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn compacted_now(&self) {
        self.last_compaction_unix_s
            .store(unix_ms() / 1000, Ordering::Relaxed);
    }

    pub(crate) fn last_compaction_unix_s(&self) -> u64 {
        self.last_compaction_unix_s.load(Ordering::Relaxed)
    }

    pub(crate) fn serving(&self, connections: wire::Counts) {
        // Set once: a server starts once.
        let _ = self.connections.set(connections);
    }

    /// Open connections, and those refused so far.
    pub(crate) fn connections(&self) -> (u64, u64) {
        self.connections
            .get()
            .map_or((0, 0), |c| (c.open() as u64, c.refused()))
    }

    // --- log lines that more than one place writes

    pub(crate) fn warn_slow_sync(&self, took: Duration) {
        if let Some(suppressed) = SLOW_SYNC.allow() {
            tracing::warn!(
                took = %telemetry::GoDuration(took),
                "expected-duration" = "1s",
                suppressed,
                "slow fdatasync"
            );
        }
    }

    pub(crate) fn warn_slow_apply(&self, took: Duration, records: usize) {
        self.metrics.slow_apply.inc();
        if let Some(suppressed) = SLOW_APPLY.allow() {
            tracing::warn!(
                took = %telemetry::GoDuration(took),
                "expected-duration" = %telemetry::GoDuration(self.warning_apply),
                records = records as u64,
                suppressed,
                "apply request took too long"
            );
        }
    }

    pub(crate) fn log_quota(&self) {
        let (sizes, full) = {
            let engine = self.store.lock();
            (engine.sizes(), engine.no_space())
        };
        let (data, quota) = (sizes.data_bytes as u64, self.quota.shown_bytes());
        if full {
            tracing::warn!(
                "data-bytes" = data,
                "quota-bytes" = quota,
                "alarm NOSPACE raised: data is over the quota; puts are refused until keys are deleted or --quota-backend-bytes is raised"
            );
        } else {
            tracing::info!(
                "data-bytes" = data,
                "quota-bytes" = quota,
                "alarm NOSPACE cleared: there is room again"
            );
        }
    }

    // --- snapshots of the journal

    /// How much the log grows before the next snapshot: as much as the data, so that no
    /// byte is written more than about twice for it.
    pub(crate) fn snapshot_after_bytes(&self, data_bytes: u64) -> u64 {
        SNAPSHOT_MIN_BYTES
            .max(SNAPSHOT_MIN_SEGMENTS * self.segment_bytes)
            .max(data_bytes)
    }

    /// Ends a snapshot of the journal, with what it took, or why there is none.
    pub(crate) fn snapshot_end(&self, result: Result<Duration, String>) {
        if let Ok(took) = &result {
            self.last_snapshot_unix_ms
                .store(unix_ms(), Ordering::Relaxed);
            self.metrics.journal_snapshot.observe(*took);
            self.metrics.snap_save.observe(*took);
        }
        if self.journal_snapshots.end(result.map(drop)) {
            self.store.commit.raise();
        }
    }

    pub(crate) fn last_snapshot_unix_s(&self) -> f64 {
        self.last_snapshot_unix_ms.load(Ordering::Relaxed) as f64 / 1000.0
    }

    /// Asks for a snapshot of the journal that begins from now on; returns its number.
    pub(crate) fn want_snapshot(&self) -> u64 {
        let number = self.journal_snapshots.want();
        self.store.commit.raise();
        number
    }

    pub(crate) fn spawn_snapshot(self: &Arc<Self>, job: SnapshotJob) {
        let (this, at_end) = (self.clone(), self.clone());
        let work = move || crate::upkeep::snapshot(&this, job);
        let ended = move |result: Result<(), Panicked>| {
            if let Err(error) = result {
                tracing::error!(%error, "failed to save a snapshot of the journal; the log is kept and it is tried again later");
                at_end.snapshot_end(Err(error.to_string()));
            }
        };
        match threads::spawn_job("snapshot", work, ended) {
            Ok(handle) => self.keep_thread(handle),
            Err(error) => {
                tracing::warn!(%error, "cannot start the snapshot thread; tried again later");
                self.snapshot_end(Err(error.to_string()));
            }
        }
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
