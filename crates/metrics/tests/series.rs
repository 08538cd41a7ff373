//! The text as a whole: what dashboards and alerts need is there, and what is
//! written is what Prometheus reads.

#![expect(clippy::expect_used, reason = "a test's parser fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use metrics::{ApplyOp, Check, GrpcMethod, Metrics, Options, Probe, ScrapeInput};

fn metrics(extensive: bool) -> Metrics {
    Metrics::new(&Options {
        extensive,
        shards: 2,
        server_version: "3.7.3".to_owned(),
        cluster_version: "3.7".to_owned(),
        orlop_version: "0.1.0".to_owned(),
        member_id: 0x8e9e_05c5_2164_694d,
    })
}

/// One parsed line.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A parser of the text format as strict as this writer needs: types before
/// samples, no family twice, no sample twice.
fn parse(text: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut types = BTreeMap::new();
    let mut seen = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("# TYPE ") {
            let (name, kind) = header
                .split_once(' ')
                .expect("a type line has a name and a type");
            assert!(
                types.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{name} twice"
            );
            continue;
        }
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(
                help.contains(' ') && !help.contains('\\'),
                "bad help: {line}"
            );
            continue;
        }
        assert!(!line.starts_with('#'), "unknown comment: {line}");
        let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
        assert!(seen.insert(series.to_owned()), "{series} twice");
        let (name, labels) = match series.split_once('{') {
            None => (series, BTreeMap::new()),
            Some((name, labels)) => {
                let labels = labels.strip_suffix('}').expect("labels end");
                let labels = labels.split("\",").map(|label| {
                    let (name, value) = label.split_once("=\"").expect("a label has a value");
                    (name.to_owned(), value.trim_end_matches('"').to_owned())
                });
                (name, labels.collect())
            }
        };
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| {
                name.strip_suffix(suffix)
                    .filter(|base| types.contains_key(*base))
            })
            .unwrap_or(name);
        assert!(types.contains_key(family), "{name} has no type");
        let value = if value == "+Inf" {
            f64::INFINITY
        } else {
            value.parse().expect("a number")
        };
        samples.push(Sample {
            name: name.to_owned(),
            labels,
            value,
        });
    }
    samples
}

/// Every series that the dashboards and alerts of etcd's mixin read (as of
/// etcd 3.7), with the labels that they select or group by and values that
/// they select; peer series excepted. `up` is Prometheus' own.
const MIXIN: &[(&str, &[(&str, &str)])] = &[
    ("etcd_server_has_leader", &[]),
    ("etcd_server_leader_changes_seen_total", &[]),
    ("etcd_server_proposals_failed_total", &[]),
    ("etcd_server_proposals_pending", &[]),
    ("etcd_server_proposals_committed_total", &[]),
    ("etcd_server_proposals_applied_total", &[]),
    ("etcd_server_quota_backend_bytes", &[]),
    ("etcd_mvcc_db_total_size_in_bytes", &[]),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", &[]),
    (
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        &[("le", "0.512")],
    ),
    (
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        &[("le", "+Inf")],
    ),
    (
        "etcd_disk_backend_commit_duration_seconds_bucket",
        &[("le", "0.256")],
    ),
    (
        "etcd_disk_backend_commit_duration_seconds_bucket",
        &[("le", "+Inf")],
    ),
    ("etcd_network_client_grpc_received_bytes_total", &[]),
    ("etcd_network_client_grpc_sent_bytes_total", &[]),
    ("process_resident_memory_bytes", &[]),
    ("grpc_server_started_total", &[("grpc_type", "unary")]),
    (
        "grpc_server_started_total",
        &[
            ("grpc_service", "etcdserverpb.Watch"),
            ("grpc_type", "bidi_stream"),
        ],
    ),
    (
        "grpc_server_started_total",
        &[
            ("grpc_service", "etcdserverpb.Lease"),
            ("grpc_type", "bidi_stream"),
        ],
    ),
    (
        "grpc_server_handled_total",
        &[
            ("grpc_service", "etcdserverpb.Watch"),
            ("grpc_type", "bidi_stream"),
        ],
    ),
    (
        "grpc_server_handled_total",
        &[
            ("grpc_service", "etcdserverpb.Lease"),
            ("grpc_type", "bidi_stream"),
        ],
    ),
    (
        "grpc_server_handled_total",
        &[
            ("grpc_type", "unary"),
            ("grpc_code", "Unknown"),
            ("grpc_method", "Put"),
        ],
    ),
    (
        "grpc_server_handled_total",
        &[("grpc_type", "unary"), ("grpc_code", "FailedPrecondition")],
    ),
    (
        "grpc_server_handled_total",
        &[("grpc_type", "unary"), ("grpc_code", "ResourceExhausted")],
    ),
    (
        "grpc_server_handled_total",
        &[("grpc_type", "unary"), ("grpc_code", "Internal")],
    ),
    (
        "grpc_server_handled_total",
        &[("grpc_type", "unary"), ("grpc_code", "Unavailable")],
    ),
    (
        "grpc_server_handled_total",
        &[("grpc_type", "unary"), ("grpc_code", "DataLoss")],
    ),
    (
        "grpc_server_handled_total",
        &[("grpc_type", "unary"), ("grpc_code", "DeadlineExceeded")],
    ),
    (
        "grpc_server_handling_seconds_bucket",
        &[
            ("grpc_type", "unary"),
            ("grpc_method", "Range"),
            ("le", "0.1"),
        ],
    ),
];

fn has(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> bool {
    samples.iter().any(|sample| {
        sample.name == name
            && labels.iter().all(|(label, value)| {
                sample
                    .labels
                    .get(*label)
                    .is_some_and(|found| found == value)
            })
    })
}

#[test]
fn everything_that_the_mixin_reads_is_there_before_the_first_call() {
    let samples = parse(&metrics(true).encode(&ScrapeInput::default()));
    for (name, labels) in MIXIN {
        assert!(has(&samples, name, labels), "{name} {labels:?} is missing");
    }
}

/// Others that operators' own dashboards read, with etcd's labels.
const ALSO: &[(&str, &[(&str, &str)])] = &[
    ("etcd_server_is_leader", &[]),
    ("etcd_server_is_learner", &[]),
    ("etcd_server_slow_apply_total", &[]),
    ("etcd_server_slow_read_indexes_total", &[]),
    ("etcd_server_read_indexes_failed_total", &[]),
    ("etcd_server_heartbeat_send_failures_total", &[]),
    ("etcd_server_health_success", &[]),
    ("etcd_server_health_failures", &[]),
    ("etcd_server_version", &[("server_version", "3.7.3")]),
    ("etcd_cluster_version", &[("cluster_version", "3.7")]),
    ("etcd_server_id", &[("server_id", "8e9e05c52164694d")]),
    (
        "etcd_debugging_server_alarms",
        &[("alarm_type", "NOSPACE"), ("server_id", "8e9e05c52164694d")],
    ),
    ("etcd_mvcc_db_open_read_transactions", &[]),
    ("etcd_mvcc_put_total", &[]),
    ("etcd_mvcc_delete_total", &[]),
    ("etcd_mvcc_range_total", &[]),
    ("etcd_mvcc_txn_total", &[]),
    ("etcd_mvcc_hash_duration_seconds_count", &[]),
    ("etcd_mvcc_hash_rev_duration_seconds_count", &[]),
    ("etcd_debugging_mvcc_keys_total", &[]),
    ("etcd_debugging_mvcc_watcher_total", &[]),
    ("etcd_debugging_mvcc_watch_stream_total", &[]),
    ("etcd_debugging_mvcc_slow_watcher_total", &[]),
    ("etcd_debugging_mvcc_pending_events_total", &[]),
    ("etcd_debugging_mvcc_events_total", &[]),
    ("etcd_debugging_mvcc_current_revision", &[]),
    ("etcd_debugging_mvcc_compact_revision", &[]),
    ("etcd_debugging_mvcc_db_compaction_keys_total", &[]),
    ("etcd_debugging_mvcc_db_compaction_last", &[]),
    (
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count",
        &[],
    ),
    (
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count",
        &[],
    ),
    (
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds_count",
        &[],
    ),
    ("etcd_debugging_lease_granted_total", &[]),
    ("etcd_debugging_lease_revoked_total", &[]),
    ("etcd_debugging_lease_renewed_total", &[]),
    (
        "etcd_debugging_lease_ttl_total_bucket",
        &[("le", "1.048576e+06")],
    ),
    ("etcd_debugging_server_lease_expired_total", &[]),
    ("etcd_disk_wal_write_bytes_total", &[]),
    ("etcd_disk_wal_write_duration_seconds_count", &[]),
    ("etcd_disk_backend_snapshot_duration_seconds_count", &[]),
    ("etcd_disk_backend_defrag_duration_seconds_count", &[]),
    ("etcd_disk_defrag_inflight", &[]),
    ("etcd_snap_fsync_duration_seconds_count", &[]),
    ("process_cpu_seconds_total", &[]),
    ("process_virtual_memory_bytes", &[]),
    ("process_virtual_memory_max_bytes", &[]),
    ("process_open_fds", &[]),
    ("process_max_fds", &[]),
    ("process_start_time_seconds", &[]),
    ("os_fd_used", &[]),
    ("os_fd_limit", &[]),
    (
        "grpc_server_msg_received_total",
        &[
            ("grpc_method", "Watch"),
            ("grpc_service", "grpc.health.v1.Health"),
            ("grpc_type", "server_stream"),
        ],
    ),
    (
        "grpc_server_msg_sent_total",
        &[
            ("grpc_method", "RangeStream"),
            ("grpc_service", "etcdserverpb.KV"),
            ("grpc_type", "server_stream"),
        ],
    ),
    ("orlop_history_bytes", &[]),
    ("orlop_history_budget_bytes", &[]),
    ("orlop_history_compactions_forced_total", &[]),
    ("orlop_data_bytes", &[]),
    ("orlop_journal_segments", &[]),
    ("orlop_journal_bytes", &[]),
    ("orlop_journal_snapshot_lag_bytes", &[]),
    ("orlop_journal_snapshot_duration_seconds_count", &[]),
    ("orlop_journal_last_snapshot_timestamp_seconds", &[]),
    ("orlop_engine_lock_hold_seconds_count", &[]),
    ("orlop_journal_commit_batch_size_count", &[]),
    ("orlop_watchers_behind", &[]),
    ("orlop_connections", &[]),
    ("orlop_connections_refused_total", &[]),
    ("orlop_waiting_operations", &[]),
    ("orlop_pins", &[]),
    ("orlop_pin_oldest_age_seconds", &[]),
    ("orlop_pinned_bytes", &[]),
    ("orlop_pins_broken_total", &[]),
    ("orlop_snapshots_sending", &[]),
    ("orlop_snapshots_held_bytes", &[]),
    ("orlop_streams", &[]),
    ("orlop_certificate_not_after_timestamp_seconds", &[]),
    ("orlop_log_lines_dropped_total", &[]),
    ("orlop_panics_total", &[]),
    ("orlop_build_info", &[("version", "0.1.0")]),
];

#[test]
fn everything_promised_is_there_before_the_first_call() {
    let samples = parse(&metrics(false).encode(&ScrapeInput::default()));
    for (name, labels) in ALSO {
        assert!(has(&samples, name, labels), "{name} {labels:?} is missing");
    }
    assert!(
        !samples
            .iter()
            .any(|sample| sample.name.starts_with("grpc_server_handling_seconds"))
    );
}

#[test]
fn every_method_and_code_is_there_at_zero() {
    let samples = parse(&metrics(false).encode(&ScrapeInput::default()));
    let handled = samples
        .iter()
        .filter(|sample| sample.name == "grpc_server_handled_total");
    assert_eq!(handled.count(), 45 * 17);
    let started = samples
        .iter()
        .filter(|sample| sample.name == "grpc_server_started_total");
    assert!(started.clone().all(|sample| sample.value == 0.0));
    assert_eq!(started.count(), 45);
}

#[test]
fn what_is_counted_is_what_is_scraped() {
    let metrics = metrics(true);
    metrics.grpc.started(GrpcMethod::KvPut);
    metrics.grpc.handled(GrpcMethod::KvPut, 8);
    metrics.grpc.handling(GrpcMethod::KvPut, 0.3);
    metrics.put.inc();
    metrics.put_bytes.add(1024);
    metrics.wal_write_bytes.add(4096);
    metrics.streams.inc();
    metrics.wal_fsync.observe_s(0.003);
    metrics.wal_fsync.observe_s(20.0);
    metrics
        .apply_duration
        .get(ApplyOp::Txn, false)
        .observe_s(0.001);
    metrics
        .healthchecks
        .record(Probe::Readyz, Check::DataCorruption, false);
    metrics.client_requests.unary(Some("3.7")).inc();
    let input = ScrapeInput {
        connections: 12,
        compact_revision: -1,
        alarm_nospace: true,
        ..ScrapeInput::default()
    };
    let text = metrics.encode(&input);
    parse(&text);
    for line in [
        r#"grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_handled_total{grpc_code="ResourceExhausted",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_handling_seconds_bucket{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary",le="0.25"} 0"#,
        r#"grpc_server_handling_seconds_bucket{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary",le="0.5"} 1"#,
        r#"grpc_server_handling_seconds_sum{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 0.3"#,
        "etcd_mvcc_put_total 1",
        "# TYPE etcd_debugging_mvcc_total_put_size_in_bytes gauge",
        "etcd_debugging_mvcc_total_put_size_in_bytes 1024",
        "# TYPE etcd_disk_wal_write_bytes_total gauge",
        "etcd_disk_wal_write_bytes_total 4096",
        "orlop_connections 12",
        "orlop_streams 1",
        r#"etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 0"#,
        r#"etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} 1"#,
        r#"etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 2"#,
        "etcd_disk_wal_fsync_duration_seconds_sum 20.003",
        "etcd_disk_wal_fsync_duration_seconds_count 2",
        r#"etcd_server_apply_duration_seconds_count{op="Txn",success="false",version="v3"} 1"#,
        r#"etcd_server_healthcheck{name="data_corruption",type="readyz"} 0"#,
        r#"etcd_server_healthchecks_total{name="data_corruption",status="error",type="readyz"} 1"#,
        r#"etcd_server_client_requests_total{client_api_version="3.7",type="unary"} 1"#,
        "etcd_debugging_mvcc_compact_revision -1",
        r#"etcd_debugging_server_alarms{alarm_type="NOSPACE",server_id="8e9e05c52164694d"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "missing: {line}");
    }
}

/// The bounds of etcd 3.7.3, as its `/metrics` prints them.
#[test]
fn buckets_are_etcds() {
    let text = metrics(true).encode(&ScrapeInput::default());
    let samples = parse(&text);
    let bounds = |name: &str| {
        let mut bounds: Vec<String> = Vec::new();
        for sample in samples
            .iter()
            .filter(|sample| sample.name == format!("{name}_bucket"))
        {
            let bound = sample.labels["le"].clone();
            if bounds.contains(&bound) {
                break;
            }
            bounds.push(bound);
        }
        bounds.join(" ")
    };
    let disk =
        "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 +Inf";
    for (name, expected) in [
        ("etcd_disk_wal_fsync_duration_seconds", disk),
        ("etcd_disk_wal_write_duration_seconds", disk),
        ("etcd_disk_backend_commit_duration_seconds", disk),
        ("etcd_snap_fsync_duration_seconds", disk),
        (
            "etcd_disk_backend_defrag_duration_seconds",
            "0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6 51.2 102.4 204.8 409.6 +Inf",
        ),
        (
            "etcd_disk_backend_snapshot_duration_seconds",
            "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92 163.84 327.68 655.36 +Inf",
        ),
        (
            "etcd_mvcc_hash_rev_duration_seconds",
            "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92 163.84 +Inf",
        ),
        (
            "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
            "0.5 1 2 4 8 16 32 64 128 256 512 1024 2048 4096 +Inf",
        ),
        (
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
            "100 200 400 800 1600 3200 6400 12800 25600 51200 102400 204800 409600 819200 +Inf",
        ),
        (
            "etcd_debugging_lease_ttl_total",
            "1 2 4 8 16 32 64 128 256 512 1024 2048 4096 8192 16384 32768 65536 131072 262144 524288 1.048576e+06 2.097152e+06 4.194304e+06 8.388608e+06 +Inf",
        ),
        (
            "grpc_server_handling_seconds",
            "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 +Inf",
        ),
    ] {
        assert_eq!(bounds(name), expected, "{name}");
    }
}

#[test]
fn the_reference_page_is_current() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/metrics.md"
    );
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == metrics::reference_markdown(),
        "docs/reference/metrics.md is out of date: run `cargo run -p metrics --example metrics-md`"
    );
}
