//! The one table of flags.

use crate::value::Kind;

/// What becomes of a flag here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It means what it means in etcd, but for what the note says.
    Same,
    /// It is taken and checked, and has no meaning here; a warning says so.
    Accepted,
    /// It is taken while it describes one member, this one, and refused
    /// otherwise.
    OneMember,
    /// It is refused, unless its value is the default.
    Refused,
}

/// Under which heading a flag is listed; etcd's, and orlop's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The server itself.
    Member,
    /// Its cluster.
    Clustering,
    /// TLS and HTTP origins.
    Security,
    /// Users and roles.
    Auth,
    /// Metrics and profiles.
    Monitoring,
    /// Logs.
    Logging,
    /// Traces.
    Tracing,
    /// Intervals and limits.
    Features,
    /// What can lose data.
    Unsafe,
    /// What etcd itself ignores.
    Ignored,
    /// What etcd does not have.
    Own,
}

impl Group {
    /// All of them, in the order of the listings.
    pub const ALL: [Self; 11] = [
        Self::Member,
        Self::Clustering,
        Self::Security,
        Self::Auth,
        Self::Monitoring,
        Self::Logging,
        Self::Tracing,
        Self::Features,
        Self::Unsafe,
        Self::Own,
        Self::Ignored,
    ];

    /// The heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Member => "Member",
            Self::Clustering => "Clustering",
            Self::Security => "Security",
            Self::Auth => "Auth",
            Self::Monitoring => "Profiling and Monitoring",
            Self::Logging => "Logging",
            Self::Tracing => "Distributed tracing",
            Self::Features => "Features",
            Self::Unsafe => "Unsafe feature",
            Self::Ignored => "Ignored by etcd too",
            Self::Own => "orlop's own",
        }
    }
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What form its value has.
    pub kind: Kind,
    /// Its default, as it would be written on a command line.
    pub default: &'static str,
    /// Where it is listed.
    pub group: Group,
    /// What becomes of it.
    pub treatment: Treatment,
    /// What it does here, or why it does nothing, or why it is refused.
    pub note: &'static str,
    /// Whether etcd does not have it; its variable is `ORLOP_*` then.
    pub own: bool,
}

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    group: Group,
    treatment: Treatment,
    note: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        group,
        treatment,
        note,
        own: false,
    }
}

const fn own(name: &'static str, kind: Kind, default: &'static str, note: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        group: Group::Own,
        treatment: Treatment::Same,
        note,
        own: true,
    }
}

const fn ignored(name: &'static str) -> Flag {
    flag(
        name,
        Kind::Ignored,
        "",
        Group::Ignored,
        Treatment::Accepted,
        "etcd ignores it too.",
    )
}

use Group::{Auth, Clustering, Features, Logging, Member, Monitoring, Security, Tracing, Unsafe};
use Kind::{Bool, Choice, Choices, Duration, Gates, Int, List, Origins, Set, Text, Urls};
use Treatment::{Accepted, OneMember, Refused, Same};

const UINT: Kind = Kind::Uint { bits: 64 };
const UINT32: Kind = Kind::Uint { bits: 32 };
const LOG_ROTATION: &str =
    r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;
const STAGES: &[&str] = &[
    "not-yet",
    "write-only",
    "write-only-skip-check",
    "write-only-drop-data",
    "gone",
];

const RAFT: &str = "One member needs no Raft: there is nobody to agree with.";
const NO_PEERS: &str = "No peer port is opened, so there is nothing to secure on it.";
const PEER_PORT: &str =
    "Secures the peer URLs where `--max-followers` opens them; else nothing listens there.";
const BBOLT: &str = "There is no bbolt file.";
const DISCOVERY: &str = "Discovery finds other members, and there is one member: leave it out.";
const DISCOVERY_DETAIL: &str = "A detail of discovery, which finds other members.";
const NO_AUTH: &str = "Users and roles are not offered; use client certificates.";
const NO_TRACES: &str = "No traces are sent.";
const COMPARES_PEERS: &str = "There are no peers to compare data with.";
const LOG_FILES: &str =
    "Logs go to standard error or output: let the supervisor write and rotate files.";

/// Every flag: etcd 3.7's, by group, then orlop's own.
#[rustfmt::skip]
pub static FLAGS: &[Flag] = &[
    flag("name", Text, "default", Member, Same, "The member's name, as the member list shows it."),
    flag("data-dir", Text, "", Member, Same, "The directory of the journal. By default the name with `.orlop` behind it; with `.etcd` when started under the name etcd. An etcd data directory is refused."),
    flag("wal-dir", Text, "", Member, Refused, "The journal is all there is on disk and lives in the data directory: point `--data-dir` at the fast disk."),
    flag("snapshot-count", UINT, "10000", Member, Accepted, "The journal's size decides when it is compressed, not a count of writes."),
    flag("heartbeat-interval", UINT, "100", Member, Accepted, RAFT),
    flag("election-timeout", UINT, "1000", Member, Accepted, RAFT),
    flag("initial-election-tick-advance", Bool, "true", Member, Accepted, RAFT),
    flag("listen-peer-urls", Urls, "http://localhost:2380", Member, OneMember, "Checked, but nothing listens there unless `--max-followers` is above 0: then those who keep copies of this server's data connect there ([copies](../concepts/copies.md)). https only then."),
    flag("listen-client-urls", Urls, "http://localhost:2379", Member, Same, "Where clients are served: http, https, unix, unixs, several separated by commas; localhost means 127.0.0.1."),
    flag("listen-client-http-urls", Urls, "", Member, Same, "Where only HTTP (health, metrics, version) is served to clients; the client URLs then serve gRPC only."),
    flag("max-snapshots", UINT, "5", Member, Accepted, "The journal keeps what it needs and deletes the rest."),
    flag("max-wals", UINT, "5", Member, Accepted, "The journal keeps what it needs and deletes the rest."),
    flag("memory-mlock", Bool, "false", Member, Accepted, "Memory is not locked; turn swap off instead."),
    flag("quota-backend-bytes", Int, "0", Member, Same, "How many bytes of data raise the NOSPACE alarm. 0 is not etcd's 2 GiB but what the memory of the machine or cgroup allows, printed at start. A negative number: no quota."),
    flag("backend-bbolt-freelist-type", Text, "", Member, Accepted, BBOLT),
    flag("backend-batch-interval", Duration, "0s", Member, Accepted, BBOLT),
    flag("backend-batch-limit", Int, "0", Member, Accepted, BBOLT),
    flag("max-txn-ops", UINT, "128", Member, Same, "How many operations one level of a transaction may have. Nested ones and compares included it may have 8,192, or three times this if that is more ([limits](../operating/limits.md#everything-else))."),
    flag("max-request-bytes", UINT, "1572864", Member, Same, "How large a request may be; 512 MiB at most."),
    flag("max-concurrent-streams", UINT32, "4294967295", Member, Same, "How many streams a client may have open on one connection; as in etcd, 0 for any number. Above 100,000 calls are refused."),
    flag("grpc-keepalive-min-time", Duration, "5s", Member, Same, "How long a client should wait between pings."),
    flag("grpc-keepalive-interval", Duration, "2h", Member, Same, "After how long without traffic a client is pinged. As in etcd, 0 here or as the timeout means the defaults of both."),
    flag("grpc-keepalive-timeout", Duration, "20s", Member, Same, "How long a ping may remain unanswered before the connection is closed."),
    flag("socket-reuse-port", Bool, "false", Member, Same, "Sets SO_REUSEPORT on the listening sockets."),
    flag("socket-reuse-address", Bool, "false", Member, Accepted, "SO_REUSEADDR is always set on the listening sockets, as Go always does."),
    flag("enable-grpc-gateway", Bool, "true", Member, Accepted, "The JSON gateway is not offered yet."),
    flag("raft-read-timeout", Duration, "5s", Member, Accepted, RAFT),
    flag("raft-write-timeout", Duration, "5s", Member, Accepted, RAFT),
    flag("feature-gates", Gates, "", Member, Same, "Feature gates; see below for each."),
    flag("config-file", Text, "", Member, Same, "A YAML file to read everything from; other flags and variables are then ignored. Durations in it are whole nanoseconds, as in etcd."),
    flag("version", Bool, "false", Member, Same, "Prints the version and exits."),

    flag("initial-advertise-peer-urls", Urls, "http://localhost:2380", Clustering, OneMember, "Shown as the member's peer URLs in the member list; nothing listens there."),
    flag("initial-cluster", Text, "default=http://localhost:2380", Clustering, OneMember, "May name this member only; unlike etcd, orlop looks at it at every start."),
    flag("initial-cluster-state", Choice(&["new", "existing"]), "new", Clustering, OneMember, "`existing` is refused on an empty data directory: there is no cluster to join."),
    flag("initial-cluster-token", Text, "etcd-cluster", Clustering, OneMember, "Taken; it keeps clusters apart, and there is one member."),
    flag("advertise-client-urls", Urls, "http://localhost:2379", Clustering, Same, "The member's client URLs in the member list; required when the client URLs are given."),
    flag("discovery-token", Text, "", Clustering, Refused, DISCOVERY),
    flag("discovery-endpoints", Set, "", Clustering, Refused, DISCOVERY),
    flag("discovery-dial-timeout", Duration, "2s", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-request-timeout", Duration, "5s", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-keepalive-time", Duration, "2s", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-keepalive-timeout", Duration, "6s", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-insecure-transport", Bool, "true", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-insecure-skip-tls-verify", Bool, "false", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-cert", Text, "", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-key", Text, "", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-cacert", Text, "", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-user", Text, "", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-password", Text, "", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("discovery-fallback", Choice(&["exit", "proxy"]), "exit", Clustering, Refused, "There is no v2 proxy to fall back to, in etcd either."),
    flag("discovery-srv", Text, "", Clustering, Refused, DISCOVERY),
    flag("discovery-srv-name", Text, "", Clustering, Accepted, DISCOVERY_DETAIL),
    flag("strict-reconfig-check", Bool, "true", Clustering, Accepted, "Members cannot be added or removed."),
    flag("pre-vote", Bool, "true", Clustering, Accepted, RAFT),
    flag("auto-compaction-retention", Text, "0", Clustering, Same, "How much history to keep: hours or a duration, or a number of revisions; 0 keeps all that the history budget allows."),
    flag("auto-compaction-mode", Text, "periodic", Clustering, Same, "Whether the retention is a time (`periodic`) or a number (`revision`)."),
    flag("v2-deprecation", Choices(STAGES), "", Clustering, Accepted, "There is no v2 store; etcd 3.7 ignores it too."),

    flag("cert-file", Text, "", Security, Same, "The server's certificate, for https and unixs."),
    flag("key-file", Text, "", Security, Same, "The key of that certificate."),
    flag("client-cert-auth", Bool, "false", Security, Same, "Requires a client certificate; needs `--trusted-ca-file`."),
    flag("client-cert-file", Text, "", Security, Accepted, "orlop is no client of itself."),
    flag("client-key-file", Text, "", Security, Accepted, "orlop is no client of itself."),
    flag("client-crl-file", Text, "", Security, Same, "A list of revoked certificates, DER or PEM; needs `--trusted-ca-file`. As in etcd, serial numbers alone decide."),
    flag("client-cert-allowed-hostname", List, "", Security, Same, "The host names and addresses, for one of which a client certificate must be valid; needs `--trusted-ca-file`, and excludes `--client-cert-allowed-cn`. A list without a name is refused."),
    flag("trusted-ca-file", Text, "", Security, Same, "The authorities whose client certificates are valid; requires one of every client, as in etcd. A certificate that names a role of `orlop certs` other than server, client and proxy is refused."),
    flag("auto-tls", Bool, "false", Security, Refused, "A server makes no certificates for itself: make them with `orlop certs`, and give `--cert-file` and `--key-file`."),
    flag("peer-cert-file", Text, "", Security, Accepted, PEER_PORT),
    flag("peer-key-file", Text, "", Security, Accepted, PEER_PORT),
    flag("peer-client-cert-auth", Bool, "false", Security, Accepted, "Where `--max-followers` opens the peer URLs, a follower always has to show a certificate; else nothing listens there."),
    flag("peer-client-cert-file", Text, "", Security, Accepted, NO_PEERS),
    flag("peer-client-key-file", Text, "", Security, Accepted, NO_PEERS),
    flag("peer-trusted-ca-file", Text, "", Security, Accepted, PEER_PORT),
    flag("peer-cert-allowed-cn", List, "", Security, Accepted, PEER_PORT),
    flag("peer-cert-allowed-hostname", List, "", Security, Accepted, PEER_PORT),
    flag("peer-auto-tls", Bool, "false", Security, Accepted, NO_PEERS),
    flag("peer-crl-file", Text, "", Security, Accepted, PEER_PORT),
    flag("peer-skip-client-san-verification", Bool, "false", Security, Accepted, NO_PEERS),
    flag("self-signed-cert-validity", UINT, "1", Security, Accepted, "A server makes no certificates for itself; `orlop certs make` has `--days`."),
    flag("cipher-suites", List, "", Security, Same, "The TLS 1.2 cipher suites, by Go's names. Those that rustls leaves out as unsafe are dropped with a warning while one remains; TLS 1.3's are always on."),
    flag("cors", Origins, "*", Security, Accepted, "Nothing is offered to browsers."),
    flag("host-whitelist", Set, "*", Security, Accepted, "Nothing is offered to browsers: keys are served by gRPC only."),
    flag("tls-min-version", Text, "TLS1.2", Security, Same, "TLS1.2 or TLS1.3."),
    flag("tls-max-version", Text, "", Security, Same, "TLS1.2 or TLS1.3; empty for the latest."),

    flag("auth-token", Text, "simple", Auth, Accepted, NO_AUTH),
    flag("bcrypt-cost", UINT, "10", Auth, Accepted, NO_AUTH),
    flag("auth-token-ttl", UINT, "300", Auth, Accepted, NO_AUTH),

    flag("enable-pprof", Bool, "false", Monitoring, Accepted, "There is no Go runtime to profile; use perf."),
    flag("metrics", Text, "basic", Monitoring, Same, "`extensive` adds histograms of how long calls take."),
    flag("listen-metrics-urls", Urls, "", Monitoring, Same, "Where health and metrics are served besides the client URLs; https uses the server's certificate."),

    flag("logger", Text, "zap", Logging, Same, "Only zap's form of log lines, as in etcd."),
    flag("log-outputs", Set, "default", Logging, Same, "`stderr` or `stdout`; `default` and `systemd/journal` are standard error. Files are refused: let the supervisor write them."),
    flag("log-level", Text, "info", Logging, Same, "debug, info, warn, error, panic or fatal."),
    flag("log-format", Text, "json", Logging, Same, "json or console."),
    flag("enable-log-rotation", Bool, "false", Logging, Refused, LOG_FILES),
    flag("log-rotation-config-json", Text, LOG_ROTATION, Logging, Accepted, LOG_FILES),
    flag("warning-unary-request-duration", Duration, "300ms", Logging, Same, "How long a unary call may take before a warning is logged."),

    flag("enable-distributed-tracing", Bool, "false", Tracing, Accepted, NO_TRACES),
    flag("distributed-tracing-address", Text, "localhost:4317", Tracing, Accepted, NO_TRACES),
    flag("distributed-tracing-service-name", Text, "etcd", Tracing, Accepted, NO_TRACES),
    flag("distributed-tracing-instance-id", Text, "", Tracing, Accepted, NO_TRACES),
    flag("distributed-tracing-sampling-rate", Int, "0", Tracing, Accepted, NO_TRACES),

    flag("corrupt-check-time", Duration, "0s", Features, Accepted, COMPARES_PEERS),
    flag("compact-hash-check-time", Duration, "1m", Features, Accepted, COMPARES_PEERS),
    flag("compaction-batch-limit", Int, "0", Features, Accepted, "Compaction happens in memory and chooses its own steps."),
    flag("compaction-sleep-interval", Duration, "0s", Features, Accepted, "Compaction happens in memory and chooses its own steps."),
    flag("watch-progress-notify-interval", Duration, "0s", Features, Same, "How often an idle watch that asked for it hears of progress; 0 is ten minutes, and 100ms the least."),
    flag("warning-apply-duration", Duration, "100ms", Features, Same, "How long applying a request may take before a warning is logged."),
    flag("bootstrap-defrag-threshold-megabytes", UINT, "0", Features, Accepted, BBOLT),
    flag("max-learners", Int, "1", Features, Accepted, "Members cannot be added, learners neither."),
    flag("downgrade-check-time", Duration, "5s", Features, Accepted, "Downgrades concern several members."),
    flag("snapshot-catchup-entries", UINT, "5000", Features, Accepted, "There are no followers to catch up."),

    flag("force-new-cluster", Bool, "false", Unsafe, Accepted, "There is one member anyway."),
    flag("unsafe-no-fsync", Bool, "false", Unsafe, Same, "Does not sync the journal: a crash of the machine loses acknowledged writes."),

    own("client-cert-allowed-cn", List, "", "The common names that client certificates may have; needs `--trusted-ca-file`. A list without a name is refused. etcd has it in its configuration file only, as `allowed-cn` under `client-transport-security`."),
    own("history-budget-bytes", UINT, "0", "How many bytes old revisions may take before the oldest are compacted early; 0 for what the memory of the machine or cgroup allows, printed at start."),
    own("threads", UINT, "0", "How many threads serve clients, 1024 at most; 0 for one every two cores."),
    own("socket-mode", Text, "0600", "The permission bits, in octal, of the Unix sockets among the client and metrics URLs: who may write to one may connect. `0660` lets its group in."),
    own("max-connections", UINT, "10000", "How many client connections may be open at once on URLs that serve gRPC; fewer if open files or memory allow no more, and 512 on each URL that serves plain HTTP only."),
    own("max-watches", UINT, "100000", "How many watches may be open at once. The last tenth is kept for connections with fewer than 1,000."),
    own("segment-bytes", UINT, "67108864", "How large a segment file of the journal is, once the log is as long; before, they are smaller."),
    own("fault-sync-delay", Duration, "0s", "Makes each sync of the journal take this much longer, as on a slower disk: for tests and benchmarks. The data is synced all the same. At most 10s."),
    own("snapshot-dir", Text, "", "A directory, which must exist, for snapshots in etcd's format that are saved by themselves; empty for none. See [backup](../operating/backup.md)."),
    own("snapshot-interval", Duration, "1h", "How much time lies between two of those snapshots."),
    own("snapshot-keep", UINT, "24", "How many of them are kept; older ones of this cluster are deleted after each new one."),
    own("profile", Text, "", "The storage profile: `strict` (everything durable; the default), `shared` (with shards), `balanced`, `ephemeral` or `ci`. A choice made with `orlop profile set` or `orlop rules apply` wins until `orlop profile reset`."),
    own("rules", Text, "", "A file of storage rules, instead of `--profile`; see [rules](rules.md)."),
    own("kube-prefix", Text, "", "kube-apiserver's `--etcd-prefix`, below which storage rules find Kubernetes objects; `/registry` unless the rules say otherwise."),
    own("admin-socket", Text, "", "Where the admin endpoint's Unix socket is; `admin.sock` in the data directory by default."),
    own("listen-admin-urls", Urls, "", "Where the admin endpoint is served besides its socket: https only, and a client certificate is required; needs `--cert-file`, `--key-file` and `--admin-trusted-ca-file`."),
    own("max-followers", UINT, "0", "How many followers (`orlop keeper`) may have a copy of this server's data at once, 64 at most. Above 0 the peer URLs are served, to clients with a certificate of `--peer-trusted-ca-file` only; needs `--peer-cert-file` and `--peer-key-file` too. With 0 no peer port is opened."),
    own("followers-backlog-bytes", UINT, "0", "How many bytes of the newest records are kept in memory while anybody follows, for all followers together; one that is further behind is cut off, and gets a snapshot when it comes back. 0 for a thirty-second part of the memory, 64 MiB at least and 1 GiB at most."),
    own("max-shards", UINT, "0", "How many shards (`orlop shard`) may hold the newest writes in memory at once, 64 at most, for rules with `durability = \"replicated\"` ([shards](../start/shards.md)). Above 0 the peer URLs are served as with `--max-followers`. With 0 such writes are durable."),
    own("shard-health-timeout", Duration, "1s", "A shard that owes an acknowledgement for so long is lost: writes wait for the disk instead, and the shard has to connect anew. 50ms at least."),
    own("shard-recovery-timeout", Duration, "30s", "How long a start after a power loss waits for a shard that holds the newest writes. Without one it is refused then."),
    own("recover-without-shards", Bool, "false", "Starts after a power loss although no shard that held the newest writes is there: acknowledged `replicated` writes of the last moments may be missing, revisions jump, and every watcher lists again. For one start; it changes nothing where no shard has to be asked."),
    own("admin-trusted-ca-file", Text, "", "The authorities whose client certificates may administer; apart from `--trusted-ca-file`, so that who may write keys may not change their durability. A certificate that names a role of `orlop certs` other than admin is refused."),

    ignored("cluster-active-size"),
    ignored("cluster-remove-delay"),
    ignored("cluster-sync-interval"),
    ignored("config"),
    ignored("force"),
    ignored("max-result-buffer"),
    ignored("max-retry-attempts"),
    ignored("peer-election-timeout"),
    ignored("peer-heartbeat-interval"),
    ignored("retry-interval"),
    ignored("snapshot"),
    ignored("test.coverprofile"),
    ignored("test.outputdir"),
    ignored("v"),
    ignored("vv"),
];

/// The flag of this name.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The names of all flags that etcd 3.7 registers, so that a test can compare
/// them with a real etcd's.
#[must_use]
pub fn all_etcd_flag_names() -> Vec<&'static str> {
    let etcds = FLAGS.iter().filter(|flag| !flag.own);
    etcds.map(|flag| flag.name).collect()
}

/// Flags whose values nobody may read in a log.
const SECRET: [&str; 6] = [
    "discovery",
    "discovery-password",
    "discovery-proxy",
    "discovery-token",
    "discovery-user",
    "discovery-endpoints",
];

/// What a log shows of a flag's value.
pub(crate) fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if SECRET.contains(&name) {
        "(not shown)"
    } else {
        value
    }
}
