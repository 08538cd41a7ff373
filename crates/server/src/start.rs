//! From a configuration to a running server, and back to nothing.

use crate::backup;
use crate::commit_log::{self, Around};
use crate::encode::Ids;
use crate::engine_lock::EngineLock;
use crate::error::Error;
use crate::followers::{self, Followers, PeerHost};
use crate::http::HealthTold;
use crate::lifecycle::Lifecycle;
use crate::memory;
use crate::rates::Rates;
use crate::read_gate::ReadGate;
use crate::service::{METHODS, Service};
use crate::settings::Settings;
use crate::shards::Shards;
use crate::shared::{Member, Shared, Watches};
use crate::storage::Storage;
use crate::store::{Store, Waiter};
use crate::upkeep::Upkeep;
use backups::Sending;
use config::{Config, Url};
use engine::{Engine, Limits};
use etcd_api::{CLUSTER_MINOR_VERSION, ETCD_VERSION};
use files::FileSystem;
use files::real::RealFs;
use ledger::{Account, Ledger};
use metrics::Metrics;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use threads::{CriticalTurns, spawn_vital};
use wire::{Address, BoundListener, ListenerConfig, Mailboxes, Serves};

/// How long a stop waits for calls under way.
const GRACE: Duration = Duration::from_secs(2);
/// How long a stop waits for followers to have everything.
const FOLLOWERS_GRACE: Duration = Duration::from_secs(5);
/// What is kept for shards at most, about: what is not on the disk yet.
const KEPT_FOR_SHARDS_BYTES: u64 = 64 << 20;
/// Few people administer at once.
const MAX_ADMIN_CONNECTIONS: usize = 64;
const HTTP_ONLY: Serves = Serves {
    grpc: false,
    http: true,
};

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
    /// The storage rules in force, by name.
    pub profile: String,
    /// Where the rules come from, in words.
    pub profile_source: String,
    /// Where the admin endpoint is served.
    pub admin_urls: Vec<String>,
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    wire: wire::Server,
    admin: Option<wire::Server>,
    peers: Option<wire::Server>,
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
        Server::start_gated(config, log_counters, None)
    }

    /// The same with a gate for linearizable reads, as a journal that others write to needs.
    /// The journal of today has none.
    #[doc(hidden)]
    pub fn start_gated(
        config: &Config,
        log_counters: Option<telemetry::LogCounters>,
        read_gate: Option<Arc<dyn ReadGate>>,
    ) -> Result<Server, Error> {
        let began = Instant::now();
        config.check_data_dir()?;
        // Before replay: an address in use shows at once.
        let listeners = wire::bind(listeners(config))?;
        let mut client_urls: Vec<String> = listeners.iter().map(BoundListener::url).collect();
        let metrics_urls = client_urls.split_off(config.listen_client_urls.len());
        let peers = match &config.followers {
            Some(followers) => followers::bind(followers)?,
            None => Vec::new(),
        };
        let certificates = listeners
            .iter()
            .chain(&peers)
            .filter_map(BoundListener::certificate)
            .collect();

        let budget = memory::budget(
            memory::available_bytes(),
            config.quota_backend_bytes,
            config.history_budget_bytes,
        );
        tell_memory(&budget);
        if !config.fault_sync_delay.is_zero() {
            tracing::warn!(
                delay = %telemetry::GoDuration(config.fault_sync_delay),
                "each sync is made slower, as --fault-sync-delay asks: not for production"
            );
        }
        let files: Arc<dyn FileSystem> =
            Arc::new(RealFs::new().with_sync_delay(config.fault_sync_delay));
        let limits = Limits {
            quota_bytes: budget.quota.limit_bytes() as usize,
            max_held_bytes: budget.held_bytes as usize,
            ..Limits::default()
        };
        let mut engine: Engine<Waiter> = Engine::new(limits);
        let of_shards = config.followers.as_ref().and_then(|of| of.shards);
        let shards = of_shards.map(|settings| Arc::new(Shards::new(settings)));
        let may_follow = config.followers.as_ref().map_or(0, |of| of.max);
        let may_hold = of_shards.map_or(0, |of| of.max);
        let peer_host = PeerHost::new(shards.clone(), may_follow + may_hold);
        // Before replay: it may need what shards hold.
        let peers = match peers.is_empty() {
            true => None,
            false => Some(followers::listen(&peer_host, peers)?),
        };
        let opened = commit_log::open(config, files.clone(), &mut engine, shards.as_deref())?;
        // After the journal: whose directory it is, is known now, and that nobody else uses it.
        let storage = Storage::open(config, opened.rules_keeper())?;
        let rules = storage.current();
        tracing::info!(
            profile = rules.policy.name(),
            rules = %format_args!("{:016x}", rules.policy.digest()),
            source = %rules.source,
            "command-line" = storage.flag_name(),
            "storage rules in force"
        );
        rules.warn();
        if let Some(w) = crate::permissions::warning(&config.data_dir) {
            tracing::warn!("data-dir" = %config.data_dir.display(), "{w}");
        }
        engine.set_compaction_hashes(true);
        engine.renew_leases(0);
        engine.check_quota();
        let (revision, keys) = (engine.revision(), engine.keys());

        // The committer and the apiserver beside us want the other cores: with all of them busy,
        // fewer workers mean fewer switches (docs/performance.md, "One worker or two").
        let workers = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
            n => n,
        };
        let (identity, created) = (opened.identity().clone(), opened.created());
        let ids = Ids {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            raft_term: identity.raft_term,
        };
        let metrics = Arc::new(Metrics::new(&metrics::Options {
            extensive: config.metrics == config::Metrics::Extensive,
            shards: workers + 2,
            server_version: ETCD_VERSION.into(),
            cluster_version: CLUSTER_MINOR_VERSION.into(),
            orlop_version: env!("CARGO_PKG_VERSION").into(),
            member_id: ids.member_id,
        }));
        metrics.leader_changes.inc();
        let settings = Settings::new(config, &budget);
        let engine = EngineLock::new(engine, metrics.lock_hold.clone());
        let store = Arc::new(Store::new(engine, Mailboxes::new(workers), storage));
        let lifecycle = Arc::new(Lifecycle::default());
        let log = opened.run(Around {
            store: store.clone(),
            metrics: metrics.clone(),
            lifecycle: lifecycle.clone(),
            quota: settings.quota,
            warning_apply: settings.warning_apply,
            shards: shards.clone(),
        })?;
        let sending_snapshots = Arc::new(Sending::new(budget.snapshots_bytes));
        let (max_followers, backlog_bytes) = match &config.followers {
            Some(followers) => (
                followers.max,
                budget.followers_bytes(followers.backlog_bytes),
            ),
            None => (0, 0),
        };
        let queues = max_followers + may_hold;
        let queues_bytes = (queues * wire::Config::default().stream_queue_bytes) as u64;
        let kept_bytes = shards.as_ref().map_or(0, |_| KEPT_FOR_SHARDS_BYTES);
        let ledger = ledger(
            &budget,
            &store,
            &sending_snapshots,
            backlog_bytes + queues_bytes + kept_bytes,
        );
        let followers = Followers::new(max_followers, backlog_bytes);
        let shared = Arc::new(Shared {
            store,
            log,
            metrics,
            ids,
            member: Member::new(&identity.name, config),
            settings,
            lifecycle,
            watches: Watches::default(),
            read_gate,
            rates: Rates::default(),
            sending_snapshots,
            followers,
            shards,
            health_told: HealthTold::default(),
            certificates,
            ledger,
            log_counters,
            last_compaction_unix_s: AtomicU64::new(0),
            connections: OnceLock::new(),
        });

        let of_ledger = Arc::downgrade(&shared);
        shared.ledger.counted_by(Account::Followers, move || {
            let held = of_ledger.upgrade().map(|shared| {
                let shards = shared.shards.as_ref();
                shared.followers.held_bytes() + shards.map_or(0, |of| of.kept_bytes())
            });
            usize::try_from(held.unwrap_or(0)).unwrap_or(usize::MAX)
        });

        let upkeep = Upkeep::new(shared.clone(), config.auto_compaction);
        let upkeep = spawn_vital("upkeep", move || upkeep.run())?;
        shared.lifecycle.keep(upkeep);
        if let Some(scheduled) = &config.scheduled_snapshots {
            let scheduled = backup::scheduled(&shared, files, scheduled);
            let scheduled = spawn_vital("scheduled", move || scheduled.run())?;
            shared.lifecycle.keep(scheduled);
        }

        let wire_config = wire::Config {
            workers,
            max_message_bytes: shared.settings.max_message_bytes,
            max_connections: config.max_connections,
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive_interval: config.grpc_keepalive_interval,
            keepalive_timeout: config.grpc_keepalive_timeout,
            keepalive_min_time: config.grpc_keepalive_min_time,
            ledger: shared.ledger.clone(),
            ..wire::Config::default()
        };
        let for_workers = shared.clone();
        let wire = wire::Server::start(listeners, wire_config, &METHODS, move |worker| {
            // There are as many mailboxes as workers, each opened once.
            let Some(slots) = for_workers.store.mailboxes.open(worker) else {
                unreachable!("worker {worker} has no mailbox")
            };
            let service = Service::new(for_workers.clone(), slots);
            // A task's panic would end the task alone, and watches would wait for ever.
            let pump = crate::watch::run_pump(service.hub.clone(), service.slots.clone());
            let pump = wire::timed("watches", CriticalTurns(Box::pin(pump)));
            tokio::task::spawn_local(pump);
            service
        })?;
        // Set once: a server starts once.
        let _ = shared.connections.set(wire.counts());
        let admin = admin(config, &shared)?;
        peer_host.follow(&shared);
        if let Some(shards) = &shared.shards {
            let (shared, shards) = (shared.clone(), shards.clone());
            let of_thread = shared.clone();
            let watch = move || crate::shards::watch(&of_thread, &shards);
            shared.lifecycle.keep(spawn_vital("shards", watch)?);
        }
        let started = Started {
            client_urls,
            metrics_urls,
            name: identity.name.clone(),
            created,
            revision,
            keys,
            took: began.elapsed(),
            profile: rules.policy.name().to_owned(),
            profile_source: rules.source.to_string(),
            admin_urls: admin.as_ref().map_or(Vec::new(), |a| a.urls().to_vec()),
        };
        Ok(Server {
            shared,
            wire,
            admin,
            peers,
            started,
        })
    }

    /// What happened at the start.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Looks at the files of certificates, keys, authorities and revocation lists now, instead of
    /// within a second. Waits for the disk.
    pub fn look_at_certificates(&self) {
        for certificate in &self.shared.certificates {
            certificate.look();
        }
    }

    /// Stops: streams are told, calls under way finish, the journal is closed. Leases stay.
    pub fn stop(self) {
        self.wire.shutdown(GRACE);
        if let Some(admin) = self.admin {
            admin.shutdown(Duration::ZERO);
        }
        self.shared.stop();
        self.shared.lifecycle.join();
        if let Some(peers) = self.peers {
            // Nothing more becomes visible: whoever has this has all.
            self.shared.followers.drain(FOLLOWERS_GRACE);
            peers.shutdown(Duration::ZERO);
        }
    }
}

/// The accounts of memory held for clients, with who counts what is not a connection's.
fn ledger(
    budget: &memory::Budget,
    store: &Arc<Store>,
    sending: &Arc<Sending>,
    followers_bytes: u64,
) -> Ledger {
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let limits = ledger::Limits::of_memory(budget.memory_bytes)
        .with(Account::Writes, bytes(budget.held_bytes))
        .with(Account::Pins, bytes(budget.history_bytes))
        .with(Account::Snapshots, bytes(budget.snapshots_bytes))
        .with(Account::Followers, bytes(followers_bytes));
    let ledger = Ledger::new(limits);
    let (writes, pins, sending) = (store.clone(), store.clone(), sending.clone());
    ledger.counted_by(Account::Writes, move || writes.lock().held_bytes());
    ledger.counted_by(Account::Pins, move || pins.lock().pinned().kept_bytes);
    ledger.counted_by(Account::Snapshots, move || bytes(sending.held_bytes()));
    ledger
}

/// Says what memory there is, and whether the limits leave room.
fn tell_memory(budget: &memory::Budget) {
    tracing::info!(
        "memory-bytes" = budget.memory_bytes,
        "quota-bytes" = budget.quota.shown_bytes(),
        "history-budget-bytes" = budget.history_bytes,
        "memory limits"
    );
    let quota_bytes = budget.quota.limit_bytes();
    if budget.quota.shown_bytes() < 0 {
        tracing::warn!(
            "there is no quota, since --quota-backend-bytes is negative: data may grow until the OOM killer ends the server"
        );
    } else if quota_bytes.saturating_add(budget.history_bytes) > budget.memory_bytes / 4 * 3 {
        tracing::warn!(
            "quota and history budget together come close to the memory there is; the OOM killer may come before NOSPACE: lower --quota-backend-bytes or --history-budget-bytes, or add memory"
        );
    }
}

/// The admin endpoint. Its own socket may be out of reach (a path that is too long, say): that
/// must not keep a store from starting, unless the operator named it.
fn admin(config: &Config, shared: &Arc<Shared>) -> Result<Option<wire::Server>, Error> {
    let path = match &config.admin_socket {
        Some(path) => path.clone(),
        None => config.data_dir.join(crate::admin::ADMIN_SOCKET),
    };
    let socket = ListenerConfig {
        serves: HTTP_ONLY,
        unix_mode: Some(0o600),
        ..ListenerConfig::new(Address::Unix(path), None)
    };
    let mut listeners = match wire::bind(vec![socket]) {
        Ok(bound) => bound,
        Err(error) if config.admin_socket.is_none() => {
            tracing::warn!(%error, "no admin endpoint on a Unix socket: name another place with --admin-socket");
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    for url in &config.listen_admin_urls {
        let Some(t) = &config.admin_tls else { continue };
        let tls = wire::TlsConfig {
            client_ca_file: Some(t.trusted_ca_file.clone()),
            client_check: Some(|der| certs::may_administer(der).map_err(|e| e.to_string())),
            ..wire::TlsConfig::new(&t.cert_file, &t.key_file)
        };
        listeners.extend(wire::bind(vec![ListenerConfig {
            serves: HTTP_ONLY,
            ..ListenerConfig::new(address(url), Some(tls))
        }])?);
    }
    if listeners.is_empty() {
        return Ok(None);
    }
    let wire_config = wire::Config {
        workers: 1,
        max_http_body_bytes: crate::storage::LIMIT_BYTES as usize,
        max_connections: MAX_ADMIN_CONNECTIONS,
        ..wire::Config::default()
    };
    let shared = shared.clone();
    let factory = move |_| crate::admin::Admin(shared.clone());
    Ok(Some(wire::Server::start(
        listeners,
        wire_config,
        &[],
        factory,
    )?))
}

fn address(url: &Url) -> Address {
    match url.unix_path() {
        Some(path) => Address::Unix(path),
        None => Address::Tcp(match url.socket_addr() {
            Some(a) => a.to_string(),
            None => format!("{}:{}", url.host(), url.port().unwrap_or(0)),
        }),
    }
}

fn listeners(config: &Config) -> Vec<ListenerConfig> {
    let split = !config.listen_client_http_urls.is_empty();
    let clients = Serves {
        grpc: true,
        http: !split,
    };
    let one = |url: &Url, serves: Serves| {
        let tls = if url.is_tls() {
            config.client_tls.as_ref().map(tls)
        } else {
            None
        };
        ListenerConfig {
            serves,
            unix_mode: Some(config.socket_mode),
            reuse_port: config.socket_reuse_port,
            ..ListenerConfig::new(address(url), tls)
        }
    };
    let clients = config.listen_client_urls.iter().map(|u| one(u, clients));
    clients
        .chain(config.http_only_urls().iter().map(|u| one(u, HTTP_ONLY)))
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
        crl_file: t.crl_file.clone(),
        allowed_common_names: t.allowed_cns.clone(),
        allowed_hostnames: t.allowed_hostnames.clone(),
        // A shard's certificate opens nothing here, whoever signed it.
        client_check: Some(|der| certs::may_be_client(der).map_err(|e| e.to_string())),
        min_version: version(t.min_version),
        max_version: version(t.max_version),
        cipher_suites: t.cipher_suites.iter().map(|s| s.iana_id()).collect(),
        ..wire::TlsConfig::new(&t.cert_file, &t.key_file)
    }
}
