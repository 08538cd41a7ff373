//! Go's flag syntax, precedence, environment, and what is refused.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{error, parse, parse_as, run, run_with, warnings};
use config::{
    AutoCompaction, CipherSuite, ClusterState, LogFormat, LogLevel, LogOutput, Metrics, Parsed,
    Personality, Storage, TlsVersion,
};

#[test]
fn nothing_given_is_etcds_defaults() {
    let run = run(&[]);
    assert_eq!(run.notices, []);
    let config = run.config;
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.orlop"));
    assert_eq!(
        config.listen_client_urls[0].to_string(),
        "http://localhost:2379"
    );
    assert_eq!(
        config.listen_client_urls[0].socket_addr(),
        Some("127.0.0.1:2379".parse().unwrap())
    );
    assert_eq!(
        config.advertise_client_urls[0].to_string(),
        "http://localhost:2379"
    );
    assert_eq!(
        config.initial_advertise_peer_urls[0].to_string(),
        "http://localhost:2380"
    );
    assert_eq!(config.listen_metrics_urls, []);
    assert_eq!(config.client_tls, None);
    assert_eq!(config.quota_backend_bytes, 0);
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.max_txn_ops, 128);
    assert_eq!(config.max_request_bytes, 1_572_864);
    assert_eq!(config.max_concurrent_streams, u32::MAX);
    assert_eq!(config.grpc_keepalive_min_time, Duration::from_secs(5));
    assert_eq!(config.grpc_keepalive_interval, Duration::from_secs(7200));
    assert_eq!(config.grpc_keepalive_timeout, Duration::from_secs(20));
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(600)
    );
    assert_eq!(config.warning_apply_duration, Duration::from_millis(100));
    assert_eq!(
        config.warning_unary_request_duration,
        Duration::from_millis(300)
    );
    assert_eq!(config.log_level, LogLevel::Info);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.log_outputs, [LogOutput::Stderr]);
    assert_eq!(config.metrics, Metrics::Basic);
    assert_eq!(config.initial_cluster_state, ClusterState::New);
    assert_eq!(config.initial_cluster_token, "etcd-cluster");
    assert!(!config.unsafe_no_fsync);
    assert_eq!(config.threads, 0);
    assert_eq!(config.segment_bytes, 64 << 20);
    assert_eq!(config.storage, Storage::Default);
    assert_eq!((config.admin_socket, config.admin_tls), (None, None));
    assert_eq!(config.listen_admin_urls, []);
    assert_eq!(config.scheduled_snapshots, None);
}

#[test]
fn as_etcd_the_data_is_where_etcd_has_it() {
    let Ok(Parsed::Run(run)) = parse_as(Personality::Etcd, &["--name=m"], &[]) else {
        panic!()
    };
    assert_eq!(run.config.data_dir, PathBuf::from("m.etcd"));
    assert_eq!(
        warnings(&run),
        ["'data-dir' was empty; using default data-dir=m.etcd"]
    );
}

#[test]
fn every_typed_field_follows_its_flag() {
    let config = run(&[
        "--name=n",
        "--data-dir=/d",
        "--listen-client-urls=https://10.0.0.1:2379,unixs:///s,http://127.0.0.1:2379",
        "--listen-client-http-urls=http://127.0.0.1:2378",
        "--listen-metrics-urls=http://127.0.0.1:2381",
        "--advertise-client-urls=https://10.0.0.1:2379",
        "--initial-advertise-peer-urls=https://10.0.0.1:2380",
        "--initial-cluster=n=https://10.0.0.1:2380",
        "--initial-cluster-token=t",
        "--initial-cluster-state=existing",
        "--cert-file=c",
        "--key-file=k",
        "--trusted-ca-file=ca",
        "--client-cert-auth",
        "--client-crl-file=crl",
        "--client-cert-allowed-cn=a,b",
        "--tls-min-version=TLS1.2",
        "--tls-max-version=TLS1.2",
        "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "--quota-backend-bytes=-1",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=1000",
        "--max-txn-ops=1",
        "--max-request-bytes=2",
        "--max-concurrent-streams=3",
        "--grpc-keepalive-min-time=4s",
        "--grpc-keepalive-interval=5s",
        "--grpc-keepalive-timeout=6s",
        "--watch-progress-notify-interval=7s",
        "--warning-apply-duration=8s",
        "--warning-unary-request-duration=9s",
        "--socket-reuse-port",
        "--socket-mode=0660",
        "--unsafe-no-fsync",
        "--log-level=debug",
        "--log-format=console",
        "--log-outputs=stdout,stderr",
        "--metrics=extensive",
        "--feature-gates=InitialCorruptCheck=true",
        "--history-budget-bytes=10",
        "--threads=11",
        "--max-connections=12",
        "--max-watches=13",
        "--segment-bytes=2097152",
        "--fault-sync-delay=8ms",
        "--snapshot-dir=/backup",
        "--snapshot-interval=30m",
        "--snapshot-keep=48",
        "--profile=balanced",
        "--kube-prefix=/k8s",
        "--admin-socket=/run/a.sock",
        "--listen-admin-urls=https://127.0.0.1:2999",
        "--admin-trusted-ca-file=admin-ca",
    ])
    .config;
    let texts = |urls: &[config::Url]| urls.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(config.name, "n");
    assert_eq!(config.data_dir, PathBuf::from("/d"));
    assert_eq!(
        texts(&config.listen_client_urls),
        [
            "http://127.0.0.1:2379",
            "https://10.0.0.1:2379",
            "unixs:///s"
        ]
    );
    assert_eq!(
        texts(&config.http_only_urls()),
        ["http://127.0.0.1:2378", "http://127.0.0.1:2381"]
    );
    assert_eq!(
        texts(&config.advertise_client_urls),
        ["https://10.0.0.1:2379"]
    );
    assert_eq!(
        texts(&config.initial_advertise_peer_urls),
        ["https://10.0.0.1:2380"]
    );
    assert_eq!(config.initial_cluster_token, "t");
    assert_eq!(config.initial_cluster_state, ClusterState::Existing);
    let tls = config.client_tls.unwrap();
    assert_eq!(tls.cert_file, PathBuf::from("c"));
    assert_eq!(tls.key_file, PathBuf::from("k"));
    assert_eq!(tls.trusted_ca_file, Some(PathBuf::from("ca")));
    assert!(tls.client_cert_auth && tls.requires_client_cert());
    assert_eq!(tls.crl_file, Some(PathBuf::from("crl")));
    assert_eq!(tls.allowed_cns, ["a", "b"]);
    assert!(tls.allowed_hostnames.is_empty());
    assert_eq!(
        (tls.min_version, tls.max_version),
        (TlsVersion::Tls12, TlsVersion::Tls12)
    );
    assert_eq!(tls.cipher_suites, [CipherSuite::EcdheRsaAes128GcmSha256]);
    assert_eq!(config.quota_backend_bytes, -1);
    assert_eq!(
        config.auto_compaction,
        AutoCompaction::Revision { retention: 1000 }
    );
    assert_eq!(
        (
            config.max_txn_ops,
            config.max_request_bytes,
            config.max_concurrent_streams
        ),
        (1, 2, 3)
    );
    assert_eq!(config.grpc_keepalive_min_time, Duration::from_secs(4));
    assert_eq!(config.grpc_keepalive_interval, Duration::from_secs(5));
    assert_eq!(config.grpc_keepalive_timeout, Duration::from_secs(6));
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(7)
    );
    assert_eq!(config.warning_apply_duration, Duration::from_secs(8));
    assert_eq!(
        config.warning_unary_request_duration,
        Duration::from_secs(9)
    );
    assert!(config.socket_reuse_port && config.socket_mode == 0o660 && config.unsafe_no_fsync);
    assert_eq!(config.log_level, LogLevel::Debug);
    assert_eq!(config.log_format, LogFormat::Console);
    assert_eq!(config.log_outputs, [LogOutput::Stderr, LogOutput::Stdout]);
    assert_eq!(config.metrics, Metrics::Extensive);
    assert!(config.feature_gates["InitialCorruptCheck"]);
    assert_eq!((config.history_budget_bytes, config.threads), (10, 11));
    assert_eq!((config.max_connections, config.max_watches), (12, 13));
    assert_eq!(config.segment_bytes, 2 << 20);
    assert_eq!(config.storage, Storage::Profile("balanced".to_owned()));
    assert_eq!(config.kube_prefix.as_deref(), Some("/k8s"));
    assert_eq!(config.admin_socket, Some(PathBuf::from("/run/a.sock")));
    assert_eq!(texts(&config.listen_admin_urls), ["https://127.0.0.1:2999"]);
    let tls = config.admin_tls.unwrap();
    assert_eq!(tls.trusted_ca_file, PathBuf::from("admin-ca"));
    assert_eq!(
        (tls.cert_file, tls.key_file),
        (PathBuf::from("c"), PathBuf::from("k"))
    );
    assert_eq!(config.fault_sync_delay, Duration::from_millis(8));
    let scheduled = config.scheduled_snapshots.unwrap();
    assert_eq!(scheduled.dir, PathBuf::from("/backup"));
    assert_eq!(scheduled.interval, Duration::from_secs(1800));
    assert_eq!(scheduled.keep, 48);
}

/// As kubeadm gives them, and what they mean once somebody may follow.
#[test]
fn peer_flags_are_idle_until_somebody_may_follow() {
    let peer = [
        "--listen-peer-urls=https://127.0.0.1:2380",
        "--peer-cert-file=pc",
        "--peer-key-file=pk",
        "--peer-trusted-ca-file=pca",
        "--peer-client-cert-auth=true",
    ];
    let idle = run(&peer);
    assert_eq!(idle.config.followers, None);
    assert!(warnings(&idle).join(" ").contains("ignoring flags"));
    let with = |more: &[&'static str]| -> Vec<&'static str> { [&peer[..], more].concat() };
    let run = run(&with(&["--max-followers=3", "--followers-backlog-bytes=9"]));
    assert!(!warnings(&run).join(" ").contains("ignoring flags"));
    let followers = run.config.followers.unwrap();
    assert_eq!((followers.max, followers.backlog_bytes), (3, 9));
    assert_eq!(
        followers.listen_urls[0].to_string(),
        "https://127.0.0.1:2380"
    );
    let files = [
        followers.cert_file,
        followers.key_file,
        followers.trusted_ca_file,
    ];
    assert_eq!(files, ["pc", "pk", "pca"].map(PathBuf::from));
    // Never in the clear, and never to anybody.
    assert!(error(&["--max-followers=1"]).contains("https URLs"));
    let without = &with(&["--max-followers=1"])[..3];
    let without = [without, &["--max-followers=1"]].concat();
    assert!(error(&without).contains("--peer-trusted-ca-file"));
    assert!(error(&with(&["--max-followers=65"])).contains("64 at most"));
    let both = [
        "--max-followers=1",
        "--peer-cert-allowed-cn=a",
        "--peer-cert-allowed-hostname=b",
    ];
    assert!(error(&with(&both)).contains("exclude each other"));
}

#[test]
fn storage_rules_and_admin_urls_are_checked() {
    assert_eq!(
        run(&["--rules=/r.toml"]).config.storage,
        Storage::Rules(PathBuf::from("/r.toml"))
    );
    assert!(error(&["--rules=r", "--profile=strict"]).contains("exclude each other"));
    assert!(error(&["--listen-admin-urls=http://127.0.0.1:1"]).contains("https URLs only"));
    assert!(
        error(&[
            "--listen-admin-urls=https://127.0.0.1:1",
            "--cert-file=c",
            "--key-file=k"
        ])
        .contains("--admin-trusted-ca-file")
    );
}

/// Texts taken from etcd 3.7.3's output; it ends with 2 on each.
#[test]
fn go_syntax_errors() {
    for (args, text) in [
        (&["--nope"][..], "flag provided but not defined: -nope"),
        (&["--name"], "flag needs an argument: -name"),
        (
            &["--client-cert-auth=maybe"],
            "invalid boolean value \"maybe\" for -client-cert-auth: parse error",
        ),
        (
            &["--max-txn-ops=x"],
            "invalid value \"x\" for flag -max-txn-ops: parse error",
        ),
        (
            &["--max-concurrent-streams=-1"],
            "invalid value \"-1\" for flag -max-concurrent-streams: strconv.ParseUint: parsing \
             \"-1\": invalid syntax",
        ),
        (
            &["--heartbeat-interval=99999999999999999999999"],
            "invalid value \"99999999999999999999999\" for flag -heartbeat-interval: value out of \
             range",
        ),
        (
            &["--initial-cluster-state=foo"],
            "invalid value \"foo\" for flag -initial-cluster-state: invalid value",
        ),
        (
            &["--feature-gates=Foo=true"],
            "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo",
        ),
        (
            &["--grpc-keepalive-timeout", "5"],
            "invalid value \"5\" for flag -grpc-keepalive-timeout: parse error",
        ),
        (
            &["--listen-client-urls=localhost:1"],
            "invalid value \"localhost:1\" for flag -listen-client-urls: URL scheme must be http, \
             https, unix, or unixs: localhost:1",
        ),
        (&["---name"], "bad flag syntax: ---name"),
        (&["--=x"], "bad flag syntax: --=x"),
    ] {
        let failed = parse(args, &[]).unwrap_err();
        assert_eq!(failed.to_string(), text);
        assert_eq!(failed.exit_code(), 2, "{text}");
    }
}

#[test]
fn go_syntax_corners() {
    assert_eq!(run(&["-name", "a"]).config.name, "a");
    assert_eq!(run(&["--name", "--threads"]).config.name, "--threads");
    assert_eq!(run(&["--name=a=b"]).config.name, "a=b");
    assert_eq!(run(&["--name=a", "--name=b", "--"]).config.name, "b");
    // A bool never takes the next argument.
    assert_eq!(
        error(&["--unsafe-no-fsync", "false"]),
        "\"false\" is not a valid flag"
    );
    assert_eq!(error(&["--", "foo"]), "\"foo\" is not a valid flag");
    assert_eq!(error(&["-"]), "\"-\" is not a valid flag");
    assert!(!run(&["--unsafe-no-fsync=F"]).config.unsafe_no_fsync);
    assert_eq!(run(&["--max-txn-ops=0x10"]).config.max_txn_ops, 16);
    assert_eq!(parse(&["foo"], &[]).unwrap_err().exit_code(), 1);
}

#[test]
fn help_and_version_are_found_in_order() {
    assert_eq!(parse(&["--help", "--nope"], &[]), Ok(Parsed::Help));
    assert_eq!(parse(&["-h"], &[]), Ok(Parsed::Help));
    assert!(parse(&["--nope", "--help"], &[]).is_err());
    assert_eq!(parse(&["--version", "--name=x"], &[]), Ok(Parsed::Version));
    assert!(parse(&["--version", "stray"], &[]).is_err());
    // etcd reads no other variables then, nor checks anything.
    assert_eq!(
        parse(&["--version"], &[("ETCD_NAME", "x")]),
        Ok(Parsed::Version)
    );
}

#[test]
fn variables_are_read_as_flags_are() {
    let run = run_with(
        &[],
        &[
            ("ETCD_NAME", "e"),
            ("ORLOP_THREADS", "3"),
            ("ETCD_DATA_DIR", ""),
        ],
    );
    assert_eq!((run.config.name.as_str(), run.config.threads), ("e", 3));
    assert_eq!(
        warnings(&run),
        ["unrecognized environment variable environment-variable=ETCD_DATA_DIR"]
    );
    let used = &run.notices[0];
    assert_eq!(used.message, "recognized and used environment variable");
    assert_eq!(
        used.fields[0],
        ("variable-name".to_owned(), "ETCD_NAME".to_owned())
    );
    let failed = parse(&[], &[("ETCD_MAX_TXN_OPS", "abc")]).unwrap_err();
    assert_eq!(
        failed.to_string(),
        "invalid value \"abc\" for ETCD_MAX_TXN_OPS: parse error"
    );
    assert_eq!(failed.exit_code(), 1);
}

#[test]
fn no_secret_is_printed() {
    let run = run_with(
        &[],
        &[
            ("ETCD_DISCOVERY_PASSWORD", "hunter2"),
            ("ETCD_DISCOVERY_USER", "hunter2"),
            ("ETCD_DISCOVERY_PROXY", "http://u:hunter2@proxy"),
        ],
    );
    let told = format!("{:?}", run.notices);
    assert!(told.contains("ETCD_DISCOVERY_PASSWORD"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    for flag in ["--discovery-token=hunter2", "--discovery=hunter2"] {
        assert!(!error(&[flag]).contains("hunter2"), "{flag}");
    }
}

#[test]
fn a_flag_and_its_variable_conflict() {
    for value in ["x", ""] {
        let failed = parse(&["--name=y"], &[("ETCD_NAME", value)]).unwrap_err();
        assert!(
            failed.to_string().starts_with(
                "conflicting environment variable is shadowed by corresponding command-line flag \
                 (either unset environment variable or disable flag))"
            ),
            "{failed}"
        );
        assert_eq!(failed.exit_code(), 1);
    }
}

#[test]
fn unknown_variables_only_warn() {
    let run = run_with(
        &[],
        &[
            ("ETCD_PORT", "tcp://10.0.0.1:2379"),
            ("ETCD_SERVICE_HOST", "10.0.0.1"),
            ("ETCD_VERSION", "3.7.3"),
            ("PATH", "/bin"),
        ],
    );
    assert_eq!(
        warnings(&run),
        [
            "cannot set special environment variable key=ETCD_VERSION value=3.7.3",
            "unrecognized environment variable environment-variable=ETCD_PORT",
            "unrecognized environment variable environment-variable=ETCD_SERVICE_HOST",
        ]
    );
}

const KUBEADM_COMMON: [&str; 16] = [
    "--advertise-client-urls=https://192.168.0.10:2379",
    "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
    "--client-cert-auth=true",
    "--data-dir=/var/lib/etcd",
    "--initial-advertise-peer-urls=https://192.168.0.10:2380",
    "--initial-cluster=cp=https://192.168.0.10:2380",
    "--key-file=/etc/kubernetes/pki/etcd/server.key",
    "--listen-client-urls=https://127.0.0.1:2379,https://192.168.0.10:2379",
    "--listen-metrics-urls=http://127.0.0.1:2381",
    "--listen-peer-urls=https://192.168.0.10:2380",
    "--name=cp",
    "--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt",
    "--peer-client-cert-auth=true",
    "--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
    "--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
    "--snapshot-count=10000",
];

#[test]
fn kubeadms_command_lines() {
    let ca = "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt";
    let now: &[&str] = &[
        "--feature-gates=InitialCorruptCheck=true",
        "--watch-progress-notify-interval=5s",
    ];
    let before_1_34: &[&str] = &[
        "--experimental-initial-corrupt-check=true",
        "--experimental-watch-progress-notify-interval=5s",
    ];
    let mut configs = Vec::new();
    for special in [now, before_1_34] {
        let args = [&KUBEADM_COMMON, &[ca][..], special].concat();
        let run = run(&args);
        let mut expected = vec![
            "ignoring flags that have no meaning here flags=--peer-cert-file \
             --peer-client-cert-auth --peer-key-file --peer-trusted-ca-file --snapshot-count"
                .to_owned(),
        ];
        if special == before_1_34 {
            expected.insert(
                0,
                "--experimental-initial-corrupt-check was removed in etcd 3.7; use \
                 --feature-gates=InitialCorruptCheck=true instead"
                    .to_owned(),
            );
            expected.insert(
                1,
                "--experimental-watch-progress-notify-interval was removed in etcd 3.7; use \
                 --watch-progress-notify-interval instead"
                    .to_owned(),
            );
        }
        assert_eq!(warnings(&run), expected);
        configs.push(run.config);
    }
    assert_eq!(configs[0], configs[1]);
    let config = &configs[0];
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
    assert!(config.feature_gates["InitialCorruptCheck"]);
    assert!(config.client_tls.as_ref().unwrap().requires_client_cert());
}

#[test]
fn a_cluster_of_several_is_refused() {
    assert_eq!(
        error(&[
            "--name=a",
            "--initial-cluster=a=http://1.1.1.1:2380,b=http://1.1.1.2:2380"
        ]),
        "--initial-cluster is not supported: it names 2 members (a, b), and orlop is one server \
         without replicas; for a new store name only a, or leave it out; a further control plane \
         node runs no store of its own but uses the first one's (kubeadm: \
         etcd.external.endpoints)"
    );
    assert_eq!(
        error(&["--initial-cluster=b=http://1.1.1.2:2380"]),
        "couldn't find local name \"default\" in the initial cluster configuration"
    );
    // One member may have several peer URLs.
    run(&[
        "--name=a",
        "--initial-cluster=a=http://1.1.1.1:2380,a=http://1.1.1.2:2380",
    ]);
    assert!(error(&["--discovery-srv=example.com"]).contains("--discovery-srv is not supported"));
    assert!(error(&["--discovery=https://discovery.etcd.io/x"]).contains("not supported"));
}

#[test]
fn existing_needs_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    let flag = format!("--data-dir={}", path.display());
    let config = run(&[&flag, "--initial-cluster-state=existing"]).config;
    assert!(
        config
            .check_data_dir()
            .unwrap_err()
            .to_string()
            .contains("empty or missing")
    );
    std::fs::create_dir(&path).unwrap();
    assert!(config.check_data_dir().is_err());
    assert!(run(&[&flag]).config.check_data_dir().is_ok());
    std::fs::write(path.join("member"), "").unwrap();
    assert_eq!(config.check_data_dir(), Ok(()));
}

#[test]
fn refused_flags_say_why_and_defaults_are_fine() {
    for args in [
        &["--wal-dir=/w"][..],
        &["--auto-tls"],
        &["--enable-log-rotation"],
        &["--discovery-fallback=proxy"],
        &["--log-outputs=/var/log/etcd.log"],
        &["--enable-v2"],
        &["--proxy=on"],
    ] {
        let text = error(args);
        assert!(
            text.contains("is not supported: ") && text.len() > 40,
            "{text}"
        );
    }
    run(&[
        "--wal-dir=",
        "--auto-tls=false",
        "--discovery-fallback=exit",
    ]);
    let run = run(&["--enable-v2=false", "--proxy=off", "--proxy-read-timeout=5"]);
    assert_eq!(
        warnings(&run)[0],
        "--enable-v2 was removed in etcd 3.6; it is ignored"
    );
    assert_eq!(warnings(&run).len(), 3);
}

#[test]
fn removed_flags_give_way_to_their_successors() {
    let run = run(&[
        "--experimental-warning-apply-duration=1s",
        "--warning-apply-duration=2s",
        "--feature-gates=InitialCorruptCheck=false",
        "--experimental-initial-corrupt-check",
    ]);
    assert_eq!(run.config.warning_apply_duration, Duration::from_secs(2));
    assert!(!run.config.feature_gates["InitialCorruptCheck"]);
    assert!(
        warnings(&run)[1]
            .ends_with("use --warning-apply-duration instead, which was given too and wins")
    );
    let by_env = run_with(
        &[],
        &[("ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", "5s")],
    );
    assert_eq!(
        by_env.config.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
}

#[test]
fn urls_are_checked_as_in_etcd() {
    assert_eq!(
        error(&["--listen-client-urls=http://127.0.0.1:1"]),
        "--advertise-client-urls is required when --listen-client-urls is set explicitly"
    );
    assert_eq!(
        error(&[
            "--listen-client-urls=http://foo:2379",
            "--advertise-client-urls=http://foo:2379"
        ]),
        "expected IP in URL for binding (http://foo:2379)"
    );
    assert_eq!(
        error(&["--advertise-client-urls=http://:2379"]),
        "--advertise-client-urls \"http://:2379\" must be in the format \"host:port\", \
         \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" (unexpected empty host \
         (http://:2379))"
    );
    // Empty leaves the default, and counts as given.
    let config = run(&[
        "--listen-client-urls=",
        "--advertise-client-urls=http://a:1",
    ])
    .config;
    assert_eq!(
        config.listen_client_urls[0].to_string(),
        "http://localhost:2379"
    );
    let advertise = "--advertise-client-urls=https://a:1";
    assert_eq!(
        error(&["--listen-client-urls=https://127.0.0.1:1", advertise]),
        "TLS key/cert (--cert-file, --key-file) must be provided for client url \
         https://127.0.0.1:1 with HTTPS scheme"
    );
    assert_eq!(
        error(&[
            "--listen-client-urls=https://127.0.0.1:1",
            advertise,
            "--cert-file=c"
        ]),
        "KeyFile and CertFile must both be present[key: , cert: c]"
    );
    let plain = run(&[
        "--cert-file=c",
        "--key-file=k",
        "--client-cert-auth",
        "--auto-tls",
    ]);
    assert_eq!(plain.config.client_tls, None);
    assert_eq!(warnings(&plain).len(), 3, "{:?}", warnings(&plain));
}

#[test]
fn compaction_retention() {
    let read = |mode: &str, retention: &str| {
        let mode = format!("--auto-compaction-mode={mode}");
        let retention = format!("--auto-compaction-retention={retention}");
        match parse(&[&mode, &retention], &[]) {
            Ok(Parsed::Run(run)) => Ok(run.config.auto_compaction),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    };
    let periodic = |seconds| {
        Ok(AutoCompaction::Periodic {
            retention: Duration::from_secs(seconds),
        })
    };
    assert_eq!(read("periodic", "0"), Ok(AutoCompaction::Off));
    assert_eq!(read("periodic", "5"), periodic(5 * 3600));
    assert_eq!(read("periodic", "5m"), periodic(300));
    assert_eq!(
        read("revision", "1000"),
        Ok(AutoCompaction::Revision { retention: 1000 })
    );
    assert_eq!(
        read("periodic", "x").unwrap_err(),
        "error parsing CompactionRetention: time: invalid duration \"x\""
    );
    assert_eq!(
        read("foo", "1").unwrap_err(),
        "unknown auto-compaction-mode \"foo\""
    );
    assert_eq!(read("", "1").unwrap_err(), "undefined auto-compaction-mode");
    for (mode, retention) in [
        ("revision", "5m"),
        ("periodic", "-5m"),
        ("periodic", "-5"),
        ("periodic", "9223372036854775807"),
    ] {
        assert!(read(mode, retention).is_err(), "{mode} {retention}");
    }
}

#[test]
fn tls_versions_and_suites() {
    assert_eq!(
        error(&["--tls-min-version=TLS1.1"]),
        "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"
    );
    assert_eq!(
        error(&["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"]),
        "min version (TLS1.3) is greater than max version (TLS1.2)"
    );
    assert_eq!(
        error(&["--cipher-suites=foo"]),
        "unexpected TLS cipher suite \"foo\""
    );
    assert_eq!(
        error(&[
            "--tls-min-version=TLS1.3",
            "--cipher-suites=TLS_AES_128_GCM_SHA256"
        ]),
        "cipher suites cannot be configured when only TLS1.3 is enabled"
    );
    assert!(
        error(&["--cipher-suites=TLS_RSA_WITH_AES_128_GCM_SHA256"])
            .contains("only suites that are left out")
    );
    let mixed = run(&["--cipher-suites=TLS_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256"]);
    assert_eq!(
        warnings(&mixed),
        ["ignoring cipher suites that are left out as unsafe \
          cipher-suites=TLS_RSA_WITH_AES_128_GCM_SHA256"]
    );
    for suite in CipherSuite::all() {
        assert!(suite.name().starts_with("TLS_") && suite.iana_id() > 0x1300);
        run(&[&format!("--cipher-suites={}", suite.name())]);
    }
    run(&["--cipher-suites=TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"]);
}

/// A server with TLS and these flags.
fn with_tls<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "--listen-client-urls=https://127.0.0.1:2379",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--cert-file=c",
        "--key-file=k",
    ];
    args.extend(flags);
    args
}

#[test]
fn a_check_of_client_certificates_is_never_left_out_in_silence() {
    let hosts = run(&with_tls(&[
        "--trusted-ca-file=ca",
        "--client-cert-allowed-hostname=node.example,10.0.0.1",
    ]));
    let tls = hosts.config.client_tls.unwrap();
    assert_eq!(tls.allowed_hostnames, ["node.example", "10.0.0.1"]);
    for flag in ["client-cert-allowed-cn", "client-cert-allowed-hostname"] {
        for names in ["", ",", ",,"] {
            let given = format!("--{flag}={names}");
            let text = error(&with_tls(&["--trusted-ca-file=ca", &given]));
            assert!(text.contains("holds no name"), "{given}: {text}");
        }
    }
    let unset = parse(
        &with_tls(&["--trusted-ca-file=ca"]),
        &[("ORLOP_CLIENT_CERT_ALLOWED_CN", "")],
    );
    assert!(unset.unwrap_err().to_string().contains("holds no name"));
    for flag in [
        "--client-cert-allowed-cn=a",
        "--client-cert-allowed-hostname=a",
        "--client-crl-file=crl",
    ] {
        let text = error(&with_tls(&[flag]));
        assert!(text.contains("need --trusted-ca-file"), "{flag}: {text}");
        let plain = run(&[flag]);
        let told = warnings(&plain);
        assert!(
            told[0].contains("everyone who reaches this URL"),
            "{told:?}"
        );
    }
    let both = error(&with_tls(&[
        "--trusted-ca-file=ca",
        "--client-cert-allowed-cn=a",
        "--client-cert-allowed-hostname=a",
    ]));
    assert!(both.contains("exclude each other"), "{both}");
}

#[test]
fn further_checks() {
    assert!(error(&["--threads=1025"]).contains("1024 at most"));
    for mode in ["", "1777", "0888", "+600", "rw"] {
        let text = error(&[&format!("--socket-mode={mode}")]);
        assert!(text.contains("octal"), "{mode}: {text}");
    }
    let huge = run(&["--max-request-bytes=18446744073709551615"]);
    assert_eq!(huge.config.max_request_bytes, 512 << 20);
    assert_eq!(huge.config.segment_bytes, 1 << 30);
    assert_eq!(warnings(&huge).len(), 1);
    assert_eq!(
        error(&["--log-level=foo"]).split(" (").next(),
        Some("unrecognized level: \"foo\"")
    );
    assert_eq!(
        error(&["--log-format=xml"]),
        "unknown log format: xml, supported values json, console"
    );
    assert_eq!(
        error(&["--logger=capnslog"]),
        "--logger=capnslog is removed in v3.5"
    );
    assert_eq!(
        error(&["--election-timeout=3"]),
        "--election-timeout[3ms] should be at least as 5 times as --heartbeat-interval[100ms]"
    );
    assert!(error(&["--warning-apply-duration=-1s"]).contains("must not be negative"));
    assert!(error(&["--max-watches=0"]).contains("at least 1"));
    assert!(
        error(&["--snapshot-interval=10ms"]).contains("--snapshot-interval must be at least 1s")
    );
    assert!(error(&["--snapshot-keep=0"]).contains("--snapshot-keep must be at least 1"));
    assert!(error(&["--segment-bytes=4096"]).contains("--segment-bytes must be at least 3145728"));
    assert_eq!(
        run(&["--max-request-bytes=104857600"]).config.segment_bytes,
        200 << 20
    );
    assert_eq!(
        error(&["--feature-gates=LeaseCheckpointPersist=true"]),
        "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
    );
    run(&["--feature-gates=AllAlpha=true"]);
    let short = run(&["--watch-progress-notify-interval=1ms"]);
    assert_eq!(
        short.config.watch_progress_notify_interval,
        Duration::from_millis(100)
    );
    assert_eq!(warnings(&short).len(), 1);
}
