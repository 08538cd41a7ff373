//! What all threads of the server share, in a few parts.

use crate::commit_log::CommitLog;
use crate::encode::Ids;
use crate::lifecycle::Lifecycle;
use crate::read_gate::ReadGate;
use crate::settings::Settings;
use crate::store::Store;
use config::{Config, Url};
use ledger::Ledger;
use metrics::Metrics;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Shared state.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) log: Arc<CommitLog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ids: Ids,
    pub(crate) member: Member,
    pub(crate) settings: Settings,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) watches: Watches,
    /// What linearizable reads wait for, with a journal that others write to.
    pub(crate) read_gate: Option<Arc<dyn ReadGate>>,
    pub(crate) rates: crate::rates::Rates,
    pub(crate) sending_snapshots: Arc<backups::Sending>,
    /// Who keeps copies.
    pub(crate) followers: crate::followers::Followers,
    /// Who holds the newest frames in memory; `None` if nobody may.
    pub(crate) shards: Option<Arc<crate::shards::Shards>>,
    pub(crate) health_told: crate::http::HealthTold,
    /// Of the listeners for clients and metrics.
    pub(crate) certificates: Vec<wire::Certificate>,
    pub(crate) log_counters: Option<telemetry::LogCounters>,
    pub(crate) last_compaction_unix_s: AtomicU64,
    pub(crate) connections: OnceLock<wire::Counts>,
    /// Memory that is held for clients.
    pub(crate) ledger: Ledger,
}

/// What the server says of itself as a member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) client_urls: Vec<String>,
}

impl Member {
    /// A member of that name, with the URLs that a configuration advertises.
    pub(crate) fn new(name: &str, config: &Config) -> Self {
        let texts = |urls: &[Url]| urls.iter().map(Url::to_string).collect();
        Member {
            name: name.to_owned(),
            peer_urls: texts(&config.initial_advertise_peer_urls),
            client_urls: texts(&config.advertise_client_urls),
        }
    }
}

/// How many watches there are, on all workers.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    open: AtomicI64,
    behind: AtomicI64,
}

impl Watches {
    /// So many more are open; negative for fewer.
    pub(crate) fn opened(&self, more: i64) {
        self.open.fetch_add(more, Ordering::Relaxed);
    }

    /// So many more have not been sent everything; negative for fewer.
    pub(crate) fn fell_behind(&self, more: i64) {
        self.behind.fetch_add(more, Ordering::Relaxed);
    }

    /// How many are open.
    pub(crate) fn open(&self) -> i64 {
        self.open.load(Ordering::Relaxed)
    }

    /// How many of them have not been sent everything.
    pub(crate) fn behind(&self) -> i64 {
        self.behind.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Whether the server is to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.lifecycle.stopping()
    }

    /// Stops what has no connections, and wakes who sleeps.
    pub(crate) fn stop(&self) {
        self.lifecycle.stop();
        self.store.commit.raise();
        self.store.volatile.raise();
    }

    pub(crate) fn compacted_now(&self) {
        self.last_compaction_unix_s
            .store(unix_ms() / 1000, Ordering::Relaxed);
    }

    /// Open connections, and those refused so far.
    pub(crate) fn connections(&self) -> (u64, u64) {
        self.connections
            .get()
            .map_or((0, 0), |c| (c.open() as u64, c.refused()))
    }
}

/// The time, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
