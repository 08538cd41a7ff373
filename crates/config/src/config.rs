//! The configuration a server runs with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::{CipherSuite, Error, Url};

/// Whether the member starts a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Start from nothing, or from what the data directory holds.
    New,
    /// Only from what the data directory holds.
    Existing,
}

/// What `--auto-compaction-mode` and `--auto-compaction-retention` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Nothing is compacted by itself.
    Off,
    /// Keep the revisions of the last so much time.
    Periodic {
        /// How long.
        retention: Duration,
    },
    /// Keep the last so many revisions.
    Revision {
        /// How many.
        retention: u64,
    },
}

/// How detailed the metrics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// Counters and gauges.
    Basic,
    /// Histograms of call durations too.
    Extensive,
}

/// From which level on lines are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// The default.
    Info,
    /// Warnings and worse.
    Warn,
    /// Errors and worse.
    Error,
    /// Only what ends the process.
    Panic,
    /// Only what ends the process.
    Fatal,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object, as zap writes it.
    Json,
    /// Columns for people.
    Console,
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// TLS towards clients, for https and unixs URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// `--cert-file`.
    pub cert_file: PathBuf,
    /// `--key-file`.
    pub key_file: PathBuf,
    /// `--trusted-ca-file`. Given whenever a client certificate is required.
    pub trusted_ca_file: Option<PathBuf>,
    /// `--client-cert-auth`, as given; see [`Self::requires_client_cert`].
    pub client_cert_auth: bool,
    /// `--client-crl-file`.
    pub crl_file: Option<PathBuf>,
    /// The common names that client certificates may have; empty for any.
    pub allowed_cns: Vec<String>,
    /// The host names and addresses, for one of which client certificates must be
    /// valid; empty for any. Not both this and the common names.
    pub allowed_hostnames: Vec<String>,
    /// `--tls-min-version`.
    pub min_version: TlsVersion,
    /// `--tls-max-version`; not below the minimum.
    pub max_version: TlsVersion,
    /// The suites to offer, empty for all that rustls has. As in Go the list
    /// restricts TLS 1.2; TLS 1.3's suites are always on.
    pub cipher_suites: Vec<CipherSuite>,
}

impl ClientTls {
    /// Whether clients must present a certificate: etcd wants one too as soon
    /// as it is told whom to trust.
    #[must_use]
    pub fn requires_client_cert(&self) -> bool {
        self.client_cert_auth || self.trusted_ca_file.is_some()
    }
}

/// Which rules decide how durable a write is, unless a choice at run time says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nothing was said: everything is durable.
    Default,
    /// `--profile`: a profile's name.
    Profile(String),
    /// `--rules`: a file.
    Rules(PathBuf),
}

/// TLS of the admin endpoint on TCP; a client certificate is always required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTls {
    /// `--cert-file`.
    pub cert_file: PathBuf,
    /// `--key-file`.
    pub key_file: PathBuf,
    /// `--admin-trusted-ca-file`.
    pub trusted_ca_file: PathBuf,
}

/// Who may have a copy of the server's data, and how they come to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followers {
    /// `--listen-peer-urls`: https, at least one.
    pub listen_urls: Vec<Url>,
    /// `--peer-cert-file`.
    pub cert_file: PathBuf,
    /// `--peer-key-file`.
    pub key_file: PathBuf,
    /// `--peer-trusted-ca-file`; a client certificate is always required.
    pub trusted_ca_file: PathBuf,
    /// `--peer-crl-file`.
    pub crl_file: Option<PathBuf>,
    /// `--peer-cert-allowed-cn`; empty for any.
    pub allowed_cns: Vec<String>,
    /// `--peer-cert-allowed-hostname`; empty for any. Not both this and the common names.
    pub allowed_hostnames: Vec<String>,
    /// `--max-followers`; 0 if only shards may connect.
    pub max: usize,
    /// `--followers-backlog-bytes`. 0: the server decides.
    pub backlog_bytes: u64,
    /// `--max-shards` and what goes with it; `None` if none may connect.
    pub shards: Option<Shards>,
}

/// Those who hold the newest records in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// `--max-shards`, at least 1.
    pub max: usize,
    /// `--shard-health-timeout`: a shard that acknowledges nothing for so long is lost.
    pub health_timeout: Duration,
    /// `--shard-recovery-timeout`: how long a start after a power loss waits for one.
    pub recovery_timeout: Duration,
}

/// Snapshots in etcd's format that the server saves by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledSnapshots {
    /// `--snapshot-dir`.
    pub dir: PathBuf,
    /// `--snapshot-interval`, at least a second.
    pub interval: Duration,
    /// `--snapshot-keep`, at least 1.
    pub keep: usize,
}

/// The configuration a server runs with. Fields have the names of etcd's
/// flags; those that have no meaning here are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The member's name.
    pub name: String,
    /// The data directory, never empty.
    pub data_dir: PathBuf,
    /// Where clients are served; all can be bound to.
    pub listen_client_urls: Vec<Url>,
    /// Where only HTTP is served to clients. When there are any, the client
    /// URLs serve gRPC only.
    pub listen_client_http_urls: Vec<Url>,
    /// Where health and metrics are served besides.
    pub listen_metrics_urls: Vec<Url>,
    /// The client URLs in the member list.
    pub advertise_client_urls: Vec<Url>,
    /// The peer URLs in the member list; nothing listens there.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// The cluster's token.
    pub initial_cluster_token: String,
    /// Whether the data directory must hold data already; see
    /// [`Self::check_data_dir`].
    pub initial_cluster_state: ClusterState,
    /// TLS towards clients: there whenever a client or metrics URL needs it.
    pub client_tls: Option<ClientTls>,
    /// How many bytes of data raise NOSPACE. 0: the server decides; below 0:
    /// no quota.
    pub quota_backend_bytes: i64,
    /// What is compacted by itself.
    pub auto_compaction: AutoCompaction,
    /// How many operations a transaction may have.
    pub max_txn_ops: u64,
    /// How many bytes a request may have.
    pub max_request_bytes: u64,
    /// How many streams one connection may have.
    pub max_concurrent_streams: u32,
    /// How long a client should wait between pings.
    pub grpc_keepalive_min_time: Duration,
    /// After how long without traffic a client is pinged; zero: never.
    pub grpc_keepalive_interval: Duration,
    /// How long a ping may remain unanswered; zero: for ever.
    pub grpc_keepalive_timeout: Duration,
    /// How often an idle watch that asked for it hears of progress; at least
    /// 100 ms.
    pub watch_progress_notify_interval: Duration,
    /// How long applying a request may take before a warning.
    pub warning_apply_duration: Duration,
    /// How long a unary call may take before a warning.
    pub warning_unary_request_duration: Duration,
    /// Whether to set `SO_REUSEPORT` on listening sockets.
    pub socket_reuse_port: bool,
    /// Permission bits of the Unix sockets that clients connect to.
    pub socket_mode: u32,
    /// Whether syncing is left out; a crash of the machine then loses data.
    pub unsafe_no_fsync: bool,
    /// `--recover-without-shards`: a start after a power loss does not ask shards.
    pub recover_without_shards: bool,
    /// From which level on lines are logged.
    pub log_level: LogLevel,
    /// What log lines look like.
    pub log_format: LogFormat,
    /// Where log lines go; never empty.
    pub log_outputs: Vec<LogOutput>,
    /// How detailed the metrics are.
    pub metrics: Metrics,
    /// The feature gates that were set.
    pub feature_gates: BTreeMap<String, bool>,
    /// How many bytes old revisions may take. 0: the server decides.
    pub history_budget_bytes: u64,
    /// How many threads serve clients, 1024 at most. 0: one every two cores.
    pub threads: usize,
    /// How many client connections may be open.
    pub max_connections: usize,
    /// How many watches may be open.
    pub max_watches: usize,
    /// How many bytes a journal segment has.
    pub segment_bytes: u64,
    /// A fault for tests and benchmarks: how much longer each sync of the journal takes.
    pub fault_sync_delay: Duration,
    /// The snapshots that are saved by themselves, if any are.
    pub scheduled_snapshots: Option<ScheduledSnapshots>,
    /// The storage rules.
    pub storage: Storage,
    /// `--kube-prefix`; `None` leaves it to the rules.
    pub kube_prefix: Option<String>,
    /// `--admin-socket`; `None` for the one in the data directory.
    pub admin_socket: Option<PathBuf>,
    /// Where the admin endpoint is served besides its socket; https only.
    pub listen_admin_urls: Vec<Url>,
    /// There whenever there are admin URLs.
    pub admin_tls: Option<AdminTls>,
    /// Who may follow; `None` for nobody.
    pub followers: Option<Followers>,
}

impl Config {
    /// Where HTTP but no gRPC is served: metrics URLs and HTTP-only client
    /// URLs, without duplicates.
    #[must_use]
    pub fn http_only_urls(&self) -> Vec<Url> {
        let mut urls = self.listen_metrics_urls.clone();
        urls.extend_from_slice(&self.listen_client_http_urls);
        urls.sort();
        urls.dedup();
        urls
    }

    /// Checks that `--initial-cluster-state=existing` does not start with
    /// nothing: it would be a second, empty cluster under the name of one that
    /// is lost. To be called before the data directory is opened.
    ///
    /// # Errors
    /// The directory is missing, empty or unreadable, and the state is
    /// `existing`.
    pub fn check_data_dir(&self) -> Result<(), Error> {
        if self.initial_cluster_state == ClusterState::New {
            return Ok(());
        }
        let fail = |reason: String| {
            Err(Error::DataDir {
                path: self.data_dir.clone(),
                reason,
            })
        };
        match std::fs::read_dir(&self.data_dir).map(|mut entries| entries.next()) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => fail(NOTHING_TO_CONTINUE.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fail(NOTHING_TO_CONTINUE.to_owned())
            }
            Err(error) => fail(format!("cannot be listed: {error}")),
        }
    }
}

const NOTHING_TO_CONTINUE: &str = "it is empty or missing, and --initial-cluster-state=existing \
     asks to join a cluster; orlop is one member and joins none. Give --initial-cluster-state=new \
     to start with no data, or --data-dir to name the directory that holds some";
