//! A server in this process, asked over the network.
#![allow(clippy::unwrap_used)] // a test

use config::{Config, Parsed, Personality};
use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::lease_client::LeaseClient;
use etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use prost::Message;
use server::Server;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

struct Running {
    server: Server,
    _dir: tempfile::TempDir,
    address: String,
}

impl Running {
    fn start(flags: &[&str]) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec![
            format!("--data-dir={}", dir.path().join("data").display()),
            "--listen-client-urls=http://127.0.0.1:0".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        ];
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let args = args.into_iter().map(Into::into);
        let parsed = Config::from_args(Personality::Orlop, args, std::iter::empty());
        let Parsed::Run(run) = parsed.unwrap() else {
            unreachable!("help was not asked for")
        };
        let server = Server::start(&run.config, None).unwrap();
        let url = &server.started().client_urls[0];
        let address = url.strip_prefix("http://").unwrap().to_owned();
        Running {
            server,
            _dir: dir,
            address,
        }
    }

    fn ask<T>(&self, question: impl AsyncFnOnce(Channel) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
            let endpoint = endpoint.timeout(Duration::from_secs(20));
            question(endpoint.connect().await.unwrap()).await
        })
    }

    /// A series without labels.
    fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: orlop\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap()
    }
}

fn put(key: String, lease: i64) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        lease,
        ..Default::default()
    }
}

#[test]
fn a_negative_quota_is_none_and_shown_as_etcd_shows_it() {
    let running = Running::start(&["--quota-backend-bytes=-1"]);
    let status = running.ask(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        kv.put(put("a".into(), 0)).await.unwrap();
        let mut maintenance = MaintenanceClient::new(channel);
        let status = maintenance.status(pb::StatusRequest {}).await;
        status.unwrap().into_inner()
    });
    assert_eq!(status.db_size_quota, -1);
    assert_eq!(running.metric("etcd_server_quota_backend_bytes"), -1.0);
    running.server.stop();
}

#[test]
fn a_slow_read_is_logged_as_etcd_does_and_counted() {
    let logs = tempfile::tempdir().unwrap();
    let path = logs.path().join("log");
    let options = telemetry::Options {
        outputs: vec![telemetry::Output::File(path.clone())],
        ..Default::default()
    };
    let guard = telemetry::init(&options).unwrap();
    let running = Running::start(&["--warning-apply-duration=1ns"]);
    let range = pb::RangeRequest {
        key: "a".into(),
        range_end: "c".into(),
        limit: 5,
        ..Default::default()
    };
    running.ask(async |channel| {
        let mut kv = KvClient::new(channel);
        for key in ["a", "b"] {
            kv.put(put(key.into(), 0)).await.unwrap();
        }
        for _ in 0..3 {
            kv.range(range.clone()).await.unwrap();
        }
    });
    let before = running.metric("etcd_server_slow_apply_total");
    running.ask(async |channel| {
        let read = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(range.clone())),
        };
        let txn = pb::TxnRequest {
            success: vec![read],
            ..Default::default()
        };
        KvClient::new(channel).txn(txn).await.unwrap();
    });
    let after = running.metric("etcd_server_slow_apply_total");
    assert_eq!(after - before, 1.0, "the transaction");
    running.server.stop();
    assert!(guard.flush(Duration::from_secs(5)));
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let slow: Vec<serde_json::Value> = lines
        .filter(|line: &serde_json::Value| {
            line["msg"] == "apply request took too long" && line["prefix"].is_string()
        })
        .collect();
    assert_eq!(slow.len(), 1, "the rest is held back: {text}");
    assert_eq!(slow[0]["prefix"], "read-only range ");
    assert_eq!(slow[0]["request"], r#"key:"a" range_end:"c" limit:5"#);
    assert_eq!(slow[0]["expected-duration"], "1ns");
    let response = slow[0]["response"].as_str().unwrap();
    let size = response.strip_prefix("range_response_count:2 size:");
    assert!(size.unwrap().parse::<u32>().unwrap() > 20, "{response}");
}

#[test]
fn a_lease_shows_all_of_its_many_keys() {
    let running = Running::start(&[]);
    let (shown, gone) = running.ask(async |channel| {
        let mut lease = LeaseClient::new(channel.clone());
        let grant = pb::LeaseGrantRequest { ttl: 600, id: 7 };
        lease.lease_grant(grant).await.unwrap();
        let mut kv = KvClient::new(channel);
        for part in 0..10 {
            let puts = (0..100).map(|n| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(put(
                    format!("k{part}{n:02}"),
                    7,
                ))),
            });
            let txn = pb::TxnRequest {
                success: puts.collect(),
                ..Default::default()
            };
            kv.txn(txn).await.unwrap();
        }
        let mut ask = async |id| {
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            lease
                .lease_time_to_live(request)
                .await
                .unwrap()
                .into_inner()
        };
        (ask(7).await, ask(8).await)
    });
    let want: Vec<String> = (0..1000).map(|n| format!("k{n:03}")).collect();
    assert_eq!(shown.keys, want);
    assert!(shown.ttl > 500 && shown.granted_ttl == 600);
    assert_eq!((gone.ttl, gone.keys.len()), (-1, 0));
    running.server.stop();
}

#[test]
fn a_write_whose_answer_is_too_large_is_executed_once_and_says_so() {
    let running = Running::start(&[]);
    let (status, bytes, version) = running.ask(async |channel| {
        let mut kv = KvClient::new(channel).max_decoding_message_size(64 << 20);
        for n in 0..17 {
            let value = pb::PutRequest {
                key: format!("large/{n:02}").into(),
                value: vec![b'v'; 1 << 20].into(),
                ..Default::default()
            };
            kv.put(value).await.unwrap();
        }
        let large = pb::RangeRequest {
            key: "large/".into(),
            range_end: "large0".into(),
            ..Default::default()
        };
        let mut once = kv.range(large.clone()).await.unwrap().into_inner();
        let read = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(large)),
        };
        let mark = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(put("mark".into(), 0))),
        };
        let mut success = vec![read; 127];
        success.push(mark);
        let txn = pb::TxnRequest {
            success,
            ..Default::default()
        };
        let status = kv.txn(txn).await.unwrap_err();

        // What the answer would have been.
        let header = once.header.take().unwrap();
        let header_at = |revision| pb::ResponseHeader { revision, ..header };
        let inner = |revision| {
            Some(pb::ResponseHeader {
                revision,
                ..Default::default()
            })
        };
        once.header = inner(header.revision);
        let range = pb::ResponseOp {
            response: Some(pb::response_op::Response::ResponseRange(once)),
        };
        let mut responses = vec![range; 127];
        responses.push(pb::ResponseOp {
            response: Some(pb::response_op::Response::ResponsePut(pb::PutResponse {
                header: inner(header.revision + 1),
                prev_kv: None,
            })),
        });
        let answer = pb::TxnResponse {
            header: Some(header_at(header.revision + 1)),
            succeeded: true,
            responses,
        };
        let mark = pb::RangeRequest {
            key: "mark".into(),
            ..Default::default()
        };
        let mark = kv.range(mark).await.unwrap().into_inner();
        (status, answer.encoded_len(), mark.kvs[0].version)
    });
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let text = format!("grpc: trying to send message larger than max ({bytes} vs. 2147483647)");
    assert_eq!(status.message(), text);
    assert_eq!(version, 1);
    running.server.stop();
}
