//! etcd's YAML configuration file.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{file_error, parse, parse_file, run_file, warnings};
use config::{AutoCompaction, CipherSuite, Parsed};

/// Every key that etcd's sample file has, set to something.
const LIKE_ETCDS_SAMPLE: &str = "
name: 'm'
data-dir: /var/lib/m
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 8589934592
listen-peer-urls: http://localhost:2380
listen-client-urls: https://127.0.0.1:2379,http://127.0.0.1:2378
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: https://m:2379
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster:
initial-cluster-token: 'tok'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
proxy-failure-wait: 5000
client-transport-security:
  cert-file: /c
  key-file: /k
  client-cert-auth: yes
  trusted-ca-file: /ca
  auto-tls: false
  allowed-cn: [a, b]
peer-transport-security:
  cert-file: /pc
  key-file:
  client-cert-auth: false
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: '1'
cipher-suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
watch-progress-notify-interval: 5000000000
experimental-initial-corrupt-check: true
socket-options:
  reuse-port: true
threads: 2
";

#[test]
fn reads_etcds_sample() {
    let run = run_file(LIKE_ETCDS_SAMPLE);
    let config = &run.config;
    assert_eq!(
        (config.name.as_str(), config.initial_cluster_token.as_str()),
        ("m", "tok")
    );
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/m"));
    assert_eq!(config.quota_backend_bytes, 8 << 30);
    assert_eq!(config.listen_client_urls.len(), 2);
    let tls = config.client_tls.as_ref().unwrap();
    assert!(tls.client_cert_auth);
    assert_eq!(tls.allowed_cns, ["a", "b"]);
    assert_eq!(tls.cipher_suites, [CipherSuite::EcdheRsaAes128GcmSha256]);
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
    assert_eq!(
        config.auto_compaction,
        AutoCompaction::Periodic {
            retention: Duration::from_secs(3600)
        }
    );
    assert!(config.feature_gates["InitialCorruptCheck"]);
    assert!(config.socket_reuse_port);
    assert_eq!(config.threads, 2);
    assert!(
        run.notices[0]
            .message
            .starts_with("loaded server configuration, other configuration"),
        "{:?}",
        run.notices
    );
    let warned = warnings(&run);
    assert!(
        warned.contains(
            &"ignoring an unknown key of the configuration file, as etcd does \
              key=discovery-fallback"
                .to_owned()
        ),
        "{warned:?}"
    );
}

#[test]
fn a_file_replaces_flags_and_variables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.yaml");
    std::fs::write(&path, "name: f\n").unwrap();
    let path = path.to_str().unwrap();
    let named = |args: &[&str], env: &[(&str, &str)]| match parse(args, env) {
        Ok(Parsed::Run(run)) => (run.config.name, run.config.threads),
        other => panic!("{other:?}"),
    };
    let f = ("f".to_owned(), 0);
    assert_eq!(
        named(
            &["--config-file", path, "--name=c", "--threads=4"],
            &[("ETCD_NAME", "e")]
        ),
        f
    );
    assert_eq!(
        named(
            &["--name=c"],
            &[("ETCD_CONFIG_FILE", path), ("ETCD_MAX_TXN_OPS", "x")]
        ),
        f
    );
    // The flag wins over the variable.
    assert_eq!(
        named(&["--config-file", path], &[("ETCD_CONFIG_FILE", "/none")]),
        f
    );
    // And flags must still be well formed.
    assert!(parse(&["--config-file", path, "--nope"], &[]).is_err());
}

#[test]
fn listening_needs_no_advertising_in_a_file() {
    let config = run_file("listen-client-urls: http://127.0.0.1:1\n").config;
    assert_eq!(
        config.advertise_client_urls[0].to_string(),
        "http://localhost:2379"
    );
}

#[test]
fn empty_files_are_defaults() {
    assert_eq!(run_file("").config, run_file("# nothing\n").config);
    assert_eq!(
        run_file("Name: n\n").config.name,
        "n",
        "keys match whatever their case"
    );
    assert_eq!(
        run_file("initial-cluster: ''\ninitial-cluster-state: ''\n")
            .config
            .name,
        "default"
    );
}

#[test]
fn wrong_types_name_the_key() {
    for (yaml, part) in [
        (
            "name: 12",
            "name: expected a string; put it in quotes, found the number 12",
        ),
        (
            "watch-progress-notify-interval: 5s",
            "watch-progress-notify-interval: expected a duration in whole nanoseconds, such as \
             5000000000 for 5s (etcd's rule), found the string \"5s\"",
        ),
        (
            "heartbeat-interval: -1",
            "expected a whole number from 0 up, found the number -1",
        ),
        (
            "max-concurrent-streams: 4294967296",
            "expected a whole number from 0 up",
        ),
        (
            "log-outputs: stderr",
            "expected a list of strings, found the string \"stderr\"",
        ),
        ("log-outputs: [1]", "expected a list of strings"),
        ("- a", "expected `key: value` lines, found a list"),
        ("hello", "found the string \"hello\""),
        (
            "client-transport-security: 3",
            "invalid client-transport-security",
        ),
        (
            "peer-transport-security:",
            "invalid peer-transport-security",
        ),
        (
            "client-transport-security: {cert-file: [a]}",
            "client-transport-security.cert-file: expected a string",
        ),
        (
            "unsafe-no-fsync: 1",
            "unsafe-no-fsync: expected true or false",
        ),
        (
            "listen-client-urls: foo",
            "unexpected error setting up listen-client-urls: URL scheme",
        ),
        (
            "initial-cluster-state: foo",
            "unexpected clusterState \"foo\"",
        ),
        ("feature-gates: Foo=true", "unrecognized feature gate: Foo"),
        (
            "discovery-config: {token: x}",
            "--discovery-token is not supported",
        ),
        (
            "discovery-config: {client: {endpoints: [x]}}",
            "--discovery-endpoints is not supported",
        ),
        ("proxy: 'on'", "--proxy is not supported"),
        ("name: [", "configuration file "),
    ] {
        let text = file_error(yaml);
        assert!(text.contains(part), "{yaml}: {text}");
    }
    run_file("client-transport-security:\nname: n\n");
}

#[test]
fn unreadable_files() {
    let failed = parse(&["--config-file=/no/such/file"], &[]).unwrap_err();
    assert!(
        failed
            .to_string()
            .starts_with("cannot read the configuration file /no/such/file: ")
    );
    assert_eq!(failed.exit_code(), 1);
    assert!(parse(&["--config-file=/"], &[]).is_err());
    let long = format!("# {}\n", "x".repeat(2 << 20));
    assert!(
        parse_file(&long)
            .unwrap_err()
            .to_string()
            .contains("larger than")
    );
}

#[test]
fn keys_in_the_wrong_place_warn() {
    let run = run_file("cert-file: c\nraft-read-timeout: 1\ngrpc-additional-server-options: []\n");
    assert_eq!(run.config.client_tls, None);
    assert_eq!(warnings(&run).len(), 3);
}
