//! From settings to a [`Config`]: what does not go together is refused here,
//! in etcd's order and with etcd's texts where it has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{
    AutoCompaction, ClusterState, Config, LogFormat, LogLevel, LogOutput, Metrics,
    ScheduledSnapshots, Storage,
};
use crate::gates::{self, GATES};
use crate::golang::{parse_duration, quote};
use crate::listen::Listen;
use crate::settings::Settings;
use crate::table::{self, FLAGS, Treatment};
use crate::tls::{admin_tls, client_tls, followers};
use crate::{Error, Notice, Personality, Run, Url};

const MAX_ELECTION_MS: u64 = 50_000;
const DEFAULT_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const DEFAULT_UNARY_WARNING: Duration = Duration::from_millis(300);
const RECOMMENDED_REQUEST_BYTES: u64 = 10 << 20;
/// Half of the journal's largest record, for what a request becomes there.
const MAX_REQUEST_BYTES: u64 = 512 << 20;
/// More would look like a hung disk.
const MAX_SYNC_DELAY: Duration = Duration::from_secs(10);
const MIN_SEGMENT_BYTES: u64 = 1 << 20;
const MAX_THREADS: usize = 1024;
const MIN_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn invalid<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::Invalid(text.into()))
}

fn refused<T>(flag: &'static str, why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused {
        flag,
        why: why.into(),
    })
}

/// Makes a configuration of what was set, and collects what to say about it.
pub(crate) fn build(personality: Personality, mut settings: Settings) -> Result<Run, Error> {
    let mut notices = std::mem::take(&mut settings.notices);
    if let Some(refusal) = settings.take_refusal() {
        return Err(refusal);
    }
    check_refused(&settings, &mut notices)?;
    let (log_level, log_format, log_outputs) = logging(&settings)?;
    let urls = Listen::read(&settings)?;
    check_cluster(&settings)?;
    let auto_compaction = auto_compaction(&settings)?;
    let feature_gates = feature_gates(&settings, &mut notices)?;
    let client_tls = client_tls(&settings, &urls, &mut notices)?;
    let admin_tls = admin_tls(&settings, &urls)?;
    let followers = followers(&settings, &urls)?;
    let storage = storage(&settings)?;
    warn_of_accepted(&settings, followers.is_some(), &mut notices);

    let name = settings.text("name");
    let config = Config {
        data_dir: data_dir(personality, &settings, &name, &mut notices),
        name,
        listen_client_urls: urls.client,
        listen_client_http_urls: urls.client_http,
        listen_metrics_urls: urls.metrics,
        advertise_client_urls: urls.advertise_client,
        initial_advertise_peer_urls: urls.advertise_peer,
        initial_cluster_token: settings.text("initial-cluster-token"),
        initial_cluster_state: match settings.text("initial-cluster-state").as_str() {
            "existing" => ClusterState::Existing,
            _ => ClusterState::New,
        },
        client_tls,
        quota_backend_bytes: settings.int("quota-backend-bytes"),
        auto_compaction,
        max_txn_ops: settings.uint("max-txn-ops"),
        max_request_bytes: max_request_bytes(&settings, &mut notices),
        max_concurrent_streams: u32::try_from(settings.uint("max-concurrent-streams"))
            .unwrap_or(u32::MAX),
        grpc_keepalive_min_time: duration(&settings, "grpc-keepalive-min-time")?,
        grpc_keepalive_interval: duration(&settings, "grpc-keepalive-interval")?,
        grpc_keepalive_timeout: duration(&settings, "grpc-keepalive-timeout")?,
        watch_progress_notify_interval: progress_interval(&settings, &mut notices)?,
        warning_apply_duration: duration(&settings, "warning-apply-duration")?,
        warning_unary_request_duration: match duration(&settings, "warning-unary-request-duration")?
        {
            Duration::ZERO => DEFAULT_UNARY_WARNING,
            given => given,
        },
        socket_reuse_port: settings.bool("socket-reuse-port"),
        socket_mode: socket_mode(&settings)?,
        unsafe_no_fsync: settings.bool("unsafe-no-fsync"),
        recover_without_shards: settings.bool("recover-without-shards"),
        log_level,
        log_format,
        log_outputs,
        // Like etcd, any other word is basic.
        metrics: match settings.text("metrics").as_str() {
            "extensive" => Metrics::Extensive,
            _ => Metrics::Basic,
        },
        feature_gates,
        history_budget_bytes: settings.uint("history-budget-bytes"),
        threads: threads(&settings)?,
        max_connections: positive(&settings, "max-connections")?,
        max_watches: positive(&settings, "max-watches")?,
        segment_bytes: segment_bytes(&settings)?,
        fault_sync_delay: fault_sync_delay(&settings)?,
        scheduled_snapshots: scheduled_snapshots(&settings)?,
        storage,
        kube_prefix: Some(settings.text("kube-prefix")).filter(|prefix| !prefix.is_empty()),
        admin_socket: path(&settings, "admin-socket"),
        listen_admin_urls: urls.admin,
        admin_tls,
        followers,
    };
    Ok(Run { config, notices })
}

/// Refuses what the table refuses; `--auto-tls` is left out when certificates
/// are given, as etcd does.
fn check_refused(settings: &Settings, notices: &mut Vec<Notice>) -> Result<(), Error> {
    for flag in FLAGS
        .iter()
        .filter(|flag| flag.treatment == Treatment::Refused)
    {
        let default = flag.kind.parse_default(flag.default).ok();
        if !settings.is_set(flag.name) || Some(settings.value(flag.name)) == default {
            continue;
        }
        let certificates = [settings.text("cert-file"), settings.text("key-file")];
        if flag.name == "auto-tls" && certificates.iter().any(|file| !file.is_empty()) {
            notices.push(Notice::warn("ignoring client auto TLS since certs given"));
            continue;
        }
        let empty_words = settings.list(flag.name).iter().all(String::is_empty);
        if matches!(settings.value(flag.name), crate::value::Value::List(_)) && empty_words {
            continue;
        }
        return refused(flag.name, flag.note);
    }
    Ok(())
}

/// Flags that mean something where followers are let in.
const PEER_PORT: [&str; 7] = [
    "peer-cert-file",
    "peer-key-file",
    "peer-trusted-ca-file",
    "peer-client-cert-auth",
    "peer-crl-file",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
];

fn warn_of_accepted(settings: &Settings, followed: bool, notices: &mut Vec<Notice>) {
    let without_meaning: Vec<_> = settings
        .names()
        .filter(|name| table::find(name).is_some_and(|flag| flag.treatment == Treatment::Accepted))
        .filter(|name| !(followed && PEER_PORT.contains(name)))
        .map(|name| format!("--{name}"))
        .collect();
    // etcd's own words for the two it deprecates.
    for (name, text) in [
        (
            "max-snapshots",
            "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
        ),
        (
            "v2-deprecation",
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value \
             is enforced, ignoring user input.",
        ),
    ] {
        if settings.is_set(name) {
            notices.push(Notice::warn(text));
        }
    }
    if !without_meaning.is_empty() {
        notices.push(
            Notice::warn("ignoring flags that have no meaning here")
                .with("flags", without_meaning.join(" ")),
        );
    }
}

fn data_dir(
    personality: Personality,
    settings: &Settings,
    name: &str,
    notices: &mut Vec<Notice>,
) -> PathBuf {
    if let Some(given) = path(settings, "data-dir") {
        return given;
    }
    match personality {
        Personality::Orlop => PathBuf::from(format!("{name}.orlop")),
        Personality::Etcd => {
            let default = format!("{name}.etcd");
            notices.push(
                Notice::warn("'data-dir' was empty; using default").with("data-dir", &default),
            );
            PathBuf::from(default)
        }
    }
}

fn path(settings: &Settings, name: &str) -> Option<PathBuf> {
    let text = settings.text(name);
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// The rules themselves are the server's to read.
fn storage(settings: &Settings) -> Result<Storage, Error> {
    let profile = settings.text("profile");
    match (profile.is_empty(), path(settings, "rules")) {
        (false, Some(_)) => {
            invalid("--profile and --rules exclude each other: a profile is a file of rules")
        }
        (false, None) => Ok(Storage::Profile(profile)),
        (true, Some(file)) => Ok(Storage::Rules(file)),
        (true, None) => Ok(Storage::Default),
    }
}

fn logging(settings: &Settings) -> Result<(LogLevel, LogFormat, Vec<LogOutput>), Error> {
    match settings.text("logger").as_str() {
        "zap" => {}
        "capnslog" => return invalid("--logger=capnslog is removed in v3.5"),
        other => return invalid(format!("unknown logger option {}", quote(other))),
    }
    let words = settings.list("log-outputs");
    let words = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.is_empty());
    let words: BTreeSet<_> = words.collect();
    if words.len() > 1 && words.contains("default") {
        return invalid("multi logoutput for \"default\" is not supported yet");
    }
    let mut outputs = Vec::new();
    for word in words {
        let output = match word {
            "stdout" => LogOutput::Stdout,
            "default" | "stderr" | "systemd/journal" => LogOutput::Stderr,
            file => {
                let why = format!(
                    "{} is a file, and log files are not written: log to stderr or stdout and \
                     let the supervisor keep the lines",
                    quote(file)
                );
                return refused("log-outputs", why);
            }
        };
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    if outputs.is_empty() {
        outputs.push(LogOutput::Stderr);
    }
    let level = match settings.text("log-level").as_str() {
        "debug" | "DEBUG" => LogLevel::Debug,
        "info" | "INFO" | "" => LogLevel::Info,
        "warn" | "WARN" => LogLevel::Warn,
        "error" | "ERROR" => LogLevel::Error,
        "dpanic" | "DPANIC" | "panic" | "PANIC" => LogLevel::Panic,
        "fatal" | "FATAL" => LogLevel::Fatal,
        other => {
            return invalid(format!(
                "unrecognized level: {} (--log-level takes debug, info, warn, error, panic and \
                 fatal)",
                quote(other)
            ));
        }
    };
    let format = match settings.text("log-format").as_str() {
        "json" | "" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => {
            return invalid(format!(
                "unknown log format: {other}, supported values json, console"
            ));
        }
    };
    Ok((level, format, outputs))
}

/// One member only: this one.
fn check_cluster(settings: &Settings) -> Result<(), Error> {
    let (tick_ms, election_ms) = (
        settings.uint("heartbeat-interval"),
        settings.uint("election-timeout"),
    );
    if tick_ms == 0 {
        return invalid("--heartbeat-interval must be >0 (set to 0ms)");
    }
    if election_ms == 0 {
        return invalid("--election-timeout must be >0 (set to 0ms)");
    }
    if tick_ms.saturating_mul(5) > election_ms {
        return invalid(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as \
             --heartbeat-interval[{tick_ms}ms]"
        ));
    }
    if election_ms > MAX_ELECTION_MS {
        return invalid(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than \
             {MAX_ELECTION_MS}ms"
        ));
    }
    if settings.duration_ns("compact-hash-check-time") <= 0 {
        return invalid("--compact-hash-check-time must be >0");
    }
    let cluster = settings.text("initial-cluster");
    if !settings.is_set("initial-cluster") || cluster.is_empty() {
        return Ok(());
    }
    let own = settings.text("name");
    let members = members(&cluster)?;
    match members
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [name] if *name == own => Ok(()),
        [] | [_] => invalid(format!(
            "couldn't find local name {} in the initial cluster configuration",
            quote(&own)
        )),
        several => refused(
            "initial-cluster",
            format!(
                "it names {} members ({}), and orlop is one server without replicas; for a new \
                 store name only {own}, or leave it out; a further control plane node runs no \
                 store of its own but uses the first one's (kubeadm: etcd.external.endpoints)",
                several.len(),
                several.join(", ")
            ),
        ),
    }
}

/// The names in `NAME=URL,NAME=URL`.
fn members(cluster: &str) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for part in cluster.split(',').filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').unwrap_or((part, ""));
        if let Err(why) = Url::parse(url) {
            return invalid(format!("error setting up initial cluster: {why}"));
        }
        names.insert(name.to_owned());
    }
    Ok(names)
}

fn auto_compaction(settings: &Settings) -> Result<AutoCompaction, Error> {
    let mode = settings.text("auto-compaction-mode");
    let periodic = match mode.as_str() {
        "periodic" => true,
        "revision" => false,
        "" => return invalid("undefined auto-compaction-mode"),
        _ => return invalid(format!("unknown auto-compaction-mode {}", quote(&mode))),
    };
    let text = settings.text("auto-compaction-retention");
    let negative = "--auto-compaction-retention must not be negative";
    // Go's Atoi: decimal digits, and a sign.
    if let Ok(number) = text.parse::<i64>() {
        let Ok(number) = u64::try_from(number) else {
            return invalid(negative);
        };
        return match (number, periodic) {
            (0, _) => Ok(AutoCompaction::Off),
            (revisions, false) => Ok(AutoCompaction::Revision {
                retention: revisions,
            }),
            (hours, true) => match hours
                .checked_mul(3600)
                .filter(|s| *s <= i64::MAX as u64 / 1_000_000_000)
            {
                Some(seconds) => Ok(AutoCompaction::Periodic {
                    retention: Duration::from_secs(seconds),
                }),
                None => invalid(format!(
                    "--auto-compaction-retention is too long: {text} hours"
                )),
            },
        };
    }
    let ns = parse_duration(&text)
        .map_err(|why| Error::Invalid(format!("error parsing CompactionRetention: {why}")))?;
    if !periodic {
        return invalid(format!(
            "--auto-compaction-retention is a number of revisions when --auto-compaction-mode is \
             revision, not the duration {}",
            quote(&text)
        ));
    }
    match u64::try_from(ns) {
        Ok(0) => Ok(AutoCompaction::Off),
        Ok(ns) => Ok(AutoCompaction::Periodic {
            retention: Duration::from_nanos(ns),
        }),
        Err(_) => invalid(negative),
    }
}

fn feature_gates(
    settings: &Settings,
    notices: &mut Vec<Notice>,
) -> Result<BTreeMap<String, bool>, Error> {
    let set = settings.gates("feature-gates");
    let (checkpoint, persist) = (
        gates::enabled(&set, "LeaseCheckpoint"),
        gates::enabled(&set, "LeaseCheckpointPersist"),
    );
    if persist && !checkpoint {
        return invalid(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate \
             LeaseCheckpoint",
        );
    }
    let idle: Vec<_> = GATES
        .iter()
        .filter(|gate| !gate.inherent && set.contains_key(gate.name))
        .map(|gate| gate.name)
        .collect();
    if !idle.is_empty() {
        notices.push(
            Notice::warn("ignoring feature gates that have no meaning here")
                .with("feature-gates", idle.join(",")),
        );
    }
    Ok(set)
}

fn max_request_bytes(settings: &Settings, notices: &mut Vec<Notice>) -> u64 {
    let bytes = settings.uint("max-request-bytes");
    if bytes > MAX_REQUEST_BYTES {
        notices.push(
            Notice::warn("--max-request-bytes is held to what a record of the journal may have")
                .with("max-request-bytes", MAX_REQUEST_BYTES.to_string()),
        );
        return MAX_REQUEST_BYTES;
    }
    if bytes > RECOMMENDED_REQUEST_BYTES {
        notices.push(
            Notice::warn("exceeded recommended request limit")
                .with("max-request-bytes", bytes.to_string())
                .with(
                    "recommended-request-bytes",
                    RECOMMENDED_REQUEST_BYTES.to_string(),
                ),
        );
    }
    bytes
}

fn duration(settings: &Settings, name: &'static str) -> Result<Duration, Error> {
    u64::try_from(settings.duration_ns(name))
        .map(Duration::from_nanos)
        .map_err(|_| Error::Invalid(format!("--{name} must not be negative")))
}

fn progress_interval(settings: &Settings, notices: &mut Vec<Notice>) -> Result<Duration, Error> {
    let given = duration(settings, "watch-progress-notify-interval")?;
    if given.is_zero() {
        return Ok(DEFAULT_PROGRESS_INTERVAL);
    }
    if given < MIN_PROGRESS_INTERVAL {
        notices.push(
            Notice::warn("adjusting watch progress notify interval to minimum period")
                .with("min-watch-progress-notify-interval", "100ms"),
        );
    }
    Ok(given.max(MIN_PROGRESS_INTERVAL))
}

fn count(settings: &Settings, name: &str) -> usize {
    usize::try_from(settings.uint(name)).unwrap_or(usize::MAX)
}

fn positive(settings: &Settings, name: &'static str) -> Result<usize, Error> {
    match count(settings, name) {
        0 => invalid(format!("--{name} must be at least 1")),
        number => Ok(number),
    }
}

fn threads(settings: &Settings) -> Result<usize, Error> {
    match count(settings, "threads") {
        number if number <= MAX_THREADS => Ok(number),
        number => invalid(format!(
            "--threads is {number}: it may be {MAX_THREADS} at most, and more than there are cores \
             gain nothing"
        )),
    }
}

/// Octal, as `chmod` takes it.
fn socket_mode(settings: &Settings) -> Result<u32, Error> {
    let text = settings.text("socket-mode");
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => invalid(format!(
            "--socket-mode is {}: give permission bits in octal, such as 0600 or 0660",
            quote(&text)
        )),
    }
}

fn scheduled_snapshots(settings: &Settings) -> Result<Option<ScheduledSnapshots>, Error> {
    let (interval, keep) = (
        duration(settings, "snapshot-interval")?,
        positive(settings, "snapshot-keep")?,
    );
    if interval < MIN_SNAPSHOT_INTERVAL {
        return invalid("--snapshot-interval must be at least 1s");
    }
    let dir = path(settings, "snapshot-dir");
    Ok(dir.map(|dir| ScheduledSnapshots {
        dir,
        interval,
        keep,
    }))
}

fn fault_sync_delay(settings: &Settings) -> Result<Duration, Error> {
    let delay = duration(settings, "fault-sync-delay")?;
    if delay > MAX_SYNC_DELAY {
        return invalid(format!(
            "--fault-sync-delay is {} s: it may be {} s at most",
            delay.as_secs_f64(),
            MAX_SYNC_DELAY.as_secs()
        ));
    }
    Ok(delay)
}

/// A segment must hold the largest request with room to spare; by default it
/// grows with that.
fn segment_bytes(settings: &Settings) -> Result<u64, Error> {
    let bytes = settings.uint("segment-bytes");
    let least = settings
        .uint("max-request-bytes")
        .min(MAX_REQUEST_BYTES)
        .saturating_mul(2)
        .max(MIN_SEGMENT_BYTES);
    if bytes < least && settings.is_set("segment-bytes") {
        return invalid(format!(
            "--segment-bytes must be at least {least} (twice --max-request-bytes, and \
             {MIN_SEGMENT_BYTES})"
        ));
    }
    Ok(bytes.max(least))
}
