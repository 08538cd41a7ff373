//! From a configuration to a running server, and back to nothing.

use crate::durability::Committer;
use crate::encode::Ids;
use crate::error::Error;
use crate::memory;
use crate::replay::Feed;
use crate::scheduled::Scheduled;
use crate::service::{METHODS, Service};
use crate::shared::{CLUSTER_MINOR_VERSION, ETCD_VERSION, Parts, Shared};
use crate::store::Store;
use crate::upkeep::Upkeep;
use config::{Config, Url};
use engine::{Engine, Limits};
use journal::fs::FileSystem;
use journal::fs::real::RealFs;
use journal::{Journal, NewDirectory, Options};
use metrics::Metrics;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::{Address, BoundListener, ListenerConfig, Mailboxes, Serves};

/// How long a stop waits for calls under way.
const GRACE: Duration = Duration::from_secs(2);
/// What etcd allows a request besides `--max-request-bytes`.
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;
/// etcd's raft term after the first election of a lone member; it never changes here.
const RAFT_TERM: u64 = 2;

/// What happened at the start, for the operator.
#[derive(Clone, Debug)]
pub struct Started {
    /// Where clients are served, with the ports really taken.
    pub client_urls: Vec<String>,
    /// Where only health and metrics are served.
    pub metrics_urls: Vec<String>,
    /// The member's name as the data directory has it.
    pub name: String,
    /// Whether the data directory is new.
    pub created: bool,
    /// The store's revision.
    pub revision: i64,
    /// Keys that exist.
    pub keys: usize,
    /// What opening and replay took.
    pub took: Duration,
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    wire: wire::Server,
    committer: JoinHandle<()>,
    upkeep: JoinHandle<()>,
    started: Started,
}

impl Server {
    /// Binds, recovers the data directory, and begins to serve.
    ///
    /// `log_counters` is shown in the metrics. Errors are sentences for the operator.
    pub fn start(
        config: &Config,
        log_counters: Option<telemetry::LogCounters>,
    ) -> Result<Server, Error> {
        let began = Instant::now();
        config.check_data_dir()?;
        // Before replay: an address in use shows at once.
        let listeners = wire::bind(listeners(config))?;
        let mut client_urls: Vec<String> = listeners.iter().map(BoundListener::url).collect();
        let metrics_urls = client_urls.split_off(config.listen_client_urls.len());

        let budget = memory::budget(
            memory::available_bytes(),
            config.quota_backend_bytes,
            config.history_budget_bytes,
        );
        tracing::info!(
            "memory-bytes" = budget.memory_bytes,
            "quota-bytes" = budget.quota_bytes,
            "history-budget-bytes" = budget.history_bytes,
            "memory limits"
        );
        if budget.quota_bytes.saturating_add(budget.history_bytes) > budget.memory_bytes / 4 * 3 {
            tracing::warn!(
                "quota and history budget together come close to the memory there is; the OOM killer may come before NOSPACE: lower --quota-backend-bytes or --history-budget-bytes, or add memory"
            );
        }

        if !config.fault_sync_delay.is_zero() {
            tracing::warn!(
                delay = %telemetry::GoDuration(config.fault_sync_delay),
                "each sync is made slower, as --fault-sync-delay asks: not for production"
            );
        }
        let files: Arc<dyn FileSystem> =
            Arc::new(RealFs::new().with_sync_delay(config.fault_sync_delay));
        let limits = Limits {
            quota_bytes: budget.quota_bytes as usize,
            max_held_bytes: budget.held_bytes as usize,
            ..Limits::default()
        };
        let mut feed = Feed::new(Engine::new(limits));
        let (journal, report) =
            Journal::open(files.clone(), &config.data_dir, options(config), &mut feed)?;
        for w in &report.warnings {
            tracing::warn!(warning = %w, "while opening the data directory");
        }
        if let Some(cut) = &report.cut_short {
            tracing::info!(cut = %cut, "the log ended in an unfinished write that was never acknowledged; it is left out");
        }
        if let Some(w) = journal::fs_warning(&config.data_dir) {
            tracing::warn!("data-dir" = %config.data_dir.display(), "{w}");
        }
        let mut engine = feed.engine;
        engine.set_compaction_hashes(true);
        engine.renew_leases(0);
        engine.set_disk_full(report.no_space);
        engine.check_quota();
        let (revision, keys) = (engine.revision(), engine.keys());

        let workers = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let identity = &report.identity;
        let ids = Ids {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            raft_term: RAFT_TERM,
        };
        let metrics = Metrics::new(&metrics::Options {
            extensive: config.metrics == config::Metrics::Extensive,
            shards: workers + 2,
            server_version: ETCD_VERSION.into(),
            cluster_version: CLUSTER_MINOR_VERSION.into(),
            orlop_version: env!("CARGO_PKG_VERSION").into(),
            member_id: ids.member_id,
        });
        metrics.leader_changes.inc();
        let max_request_bytes = config.max_request_bytes as usize;
        let shared = Arc::new(Shared::new(
            config,
            Parts {
                store: Arc::new(Store::new(engine, Mailboxes::new(workers))),
                metrics,
                ids,
                name: identity.name.clone(),
                client_urls: config
                    .advertise_client_urls
                    .iter()
                    .map(Url::to_string)
                    .collect(),
                quota_bytes: budget.quota_bytes,
                history_budget_bytes: budget.history_bytes,
                files,
                allocator: journal.allocator(),
                log_counters,
                fragment_bytes: max_request_bytes + MESSAGE_OVERHEAD_BYTES,
            },
        ));
        shared.committed(report.position.lsn(), 0);

        let allocator = journal.allocator();
        shared.keep_thread(spawn("allocator", move || allocator.run())?);
        let committer = Committer::new(shared.clone(), journal, report.no_space);
        let committer = spawn("committer", move || committer.run())?;
        let upkeep = Upkeep::new(shared.clone(), config.auto_compaction);
        let upkeep = spawn("upkeep", move || upkeep.run())?;
        if let Some(scheduled) = &config.scheduled_snapshots {
            let scheduled = Scheduled::new(shared.clone(), scheduled);
            shared.keep_thread(spawn("scheduled", move || scheduled.run())?);
        }

        let wire_config = wire::Config {
            workers,
            max_message_bytes: max_request_bytes + MESSAGE_OVERHEAD_BYTES,
            max_connections: config.max_connections,
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive_interval: config.grpc_keepalive_interval,
            keepalive_timeout: config.grpc_keepalive_timeout,
            keepalive_min_time: config.grpc_keepalive_min_time,
            ..wire::Config::default()
        };
        let for_workers = shared.clone();
        let wire = wire::Server::start(listeners, wire_config, &METHODS, move |worker| {
            // There are as many mailboxes as workers, each opened once.
            let Some(slots) = for_workers.store.mailboxes.open(worker) else {
                unreachable!("worker {worker} has no mailbox")
            };
            let service = Service::new(for_workers.clone(), slots);
            tokio::task::spawn_local(crate::watch::run_pump(
                service.hub.clone(),
                service.slots.clone(),
            ));
            service
        })?;
        shared.serving(wire.counts());
        let started = Started {
            client_urls,
            metrics_urls,
            name: identity.name.clone(),
            created: report.created,
            revision,
            keys,
            took: began.elapsed(),
        };
        Ok(Server {
            shared,
            wire,
            committer,
            upkeep,
            started,
        })
    }

    /// What happened at the start.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Stops: streams are told, calls under way finish, the journal is closed. Leases stay.
    pub fn stop(self) {
        self.wire.shutdown(GRACE);
        self.shared.stop();
        // A thread that panicked has said so.
        let _ = self.committer.join();
        let _ = self.upkeep.join();
        self.shared.join_threads();
    }
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, std::io::Error> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

fn options(config: &Config) -> Options {
    let random = |salt: u64| RandomState::new().hash_one((salt, Instant::now())).max(1);
    let mut options = Options::new(NewDirectory {
        cluster_id: random(1),
        member_id: random(2),
        name: config.name.clone(),
        salt: random(3),
    });
    options.segment_bytes = config.segment_bytes;
    // What a snapshot frees is used again, instead of made anew.
    options.spare_segments = crate::shared::SNAPSHOT_MIN_SEGMENTS as usize;
    options.no_fsync = config.unsafe_no_fsync;
    options
}

fn listeners(config: &Config) -> Vec<ListenerConfig> {
    let split = !config.listen_client_http_urls.is_empty();
    let clients = Serves {
        grpc: true,
        http: !split,
    };
    let http = Serves {
        grpc: false,
        http: true,
    };
    let one = |url: &Url, serves: Serves| {
        let address = match url.unix_path() {
            Some(path) => Address::Unix(path),
            None => Address::Tcp(match url.socket_addr() {
                Some(a) => a.to_string(),
                None => format!("{}:{}", url.host(), url.port().unwrap_or(0)),
            }),
        };
        let tls = if url.is_tls() {
            config.client_tls.as_ref().map(tls)
        } else {
            None
        };
        ListenerConfig {
            serves,
            reuse_port: config.socket_reuse_port,
            reuse_address: true,
            ..ListenerConfig::new(address, tls)
        }
    };
    let clients = config.listen_client_urls.iter().map(|u| one(u, clients));
    clients
        .chain(config.http_only_urls().iter().map(|u| one(u, http)))
        .collect()
}

fn tls(t: &config::ClientTls) -> wire::TlsConfig {
    let version = |v| match v {
        config::TlsVersion::Tls12 => wire::TlsVersion::V12,
        config::TlsVersion::Tls13 => wire::TlsVersion::V13,
    };
    wire::TlsConfig {
        client_ca_file: t
            .requires_client_cert()
            .then(|| t.trusted_ca_file.clone())
            .flatten(),
        allowed_common_names: t.allowed_cns.clone(),
        min_version: version(t.min_version),
        max_version: version(t.max_version),
        cipher_suites: t.cipher_suites.iter().map(|s| s.iana_id()).collect(),
        ..wire::TlsConfig::new(&t.cert_file, &t.key_file)
    }
}
