//! A server in this process, asked over the network.
#![allow(clippy::unwrap_used)] // a test

use config::{Config, Parsed, Personality};
use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::lease_client::LeaseClient;
use etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use prost::Message;
use server::{Closed, Passing, ReadGate, Server};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

struct Running {
    server: Server,
    dir: tempfile::TempDir,
    address: String,
}

impl Running {
    fn start(flags: &[&str]) -> Running {
        Running::start_in(tempfile::tempdir().unwrap(), flags, None)
    }

    fn start_in(
        dir: tempfile::TempDir,
        flags: &[&str],
        read_gate: Option<Arc<dyn ReadGate>>,
    ) -> Running {
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
        let server = Server::start_gated(&run.config, None, read_gate).unwrap();
        let url = &server.started().client_urls[0];
        let address = url.strip_prefix("http://").unwrap().to_owned();
        Running {
            server,
            dir,
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
    let running = Running::start(&[
        "--warning-apply-duration=1ns",
        "--warning-unary-request-duration=1ns",
    ]);
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
    assert_eq!(slow.len(), 2, "one of each, the rest is held back: {text}");
    assert_eq!(slow[1]["prefix"], "read-only txn ");
    let txn = r#"compare:<> success:<request_range:<key:"a" range_end:"c" limit:5>> failure:<>"#;
    assert_eq!(slow[1]["request"], txn);
    assert_eq!(slow[0]["prefix"], "read-only range ");
    assert_eq!(slow[0]["request"], r#"key:"a" range_end:"c" limit:5"#);
    assert_eq!(slow[0]["expected-duration"], "1ns");
    let response = slow[0]["response"].as_str().unwrap();
    let size = response.strip_prefix("range_response_count:2 size:");
    assert!(size.unwrap().parse::<u32>().unwrap() > 20, "{response}");
    // And a line for each method of which a call was slow.
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let calls: Vec<serde_json::Value> = lines
        .filter(|line: &serde_json::Value| line["msg"] == "request stats")
        .collect();
    let methods: Vec<&str> = calls
        .iter()
        .map(|call| call["response type"].as_str().unwrap())
        .collect();
    let names = ["Put", "Range", "Txn"].map(|name| format!("/etcdserverpb.KV/{name}"));
    assert_eq!(methods, names, "{text}");
    assert_eq!(calls[0]["request content"], r#"key:"a" value_size:0"#);
    assert_eq!(calls[1]["request content"], slow[0]["request"]);
    assert_eq!(calls[2]["request content"], txn);
    for call in calls {
        let remote = call["remote"].as_str().unwrap();
        assert!(remote.starts_with("127.0.0.1:"), "{remote}");
        assert!(call["request size"].as_u64().unwrap() > 2);
        assert!(call["response size"].as_u64().unwrap() > 10);
        assert_eq!(call["outcome"], "OK");
    }
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

#[test]
fn a_write_may_be_as_large_as_etcd_lets_it_and_a_read_as_a_message() {
    let running = Running::start(&[]);
    running.ask(async |channel| {
        let mut kv = KvClient::new(channel);
        let limit = 1_572_864;
        let put = |bytes: usize| pb::PutRequest {
            key: "k".into(),
            value: vec![b'v'; bytes].into(),
            ..Default::default()
        };
        kv.put(put(limit - 30)).await.unwrap();
        let refused = kv.put(put(limit - 20)).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: request is too large");
        let compare = pb::Compare {
            key: "k".into(),
            target: pb::compare::CompareTarget::Value as i32,
            target_union: Some(pb::compare::TargetUnion::Value(
                vec![b'v'; 1_600_000].into(),
            )),
            ..Default::default()
        };
        let read = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(pb::RangeRequest {
                key: "k".into(),
                keys_only: true,
                ..Default::default()
            })),
        };
        let mut txn = pb::TxnRequest {
            compare: vec![compare],
            failure: vec![read],
            ..Default::default()
        };
        let answer = kv.txn(txn.clone()).await.unwrap().into_inner();
        assert!(!answer.succeeded && answer.responses.len() == 1);
        // With another transaction inside it goes the way of the writes.
        txn.success = vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestTxn(Default::default())),
        }];
        let refused = kv.txn(txn).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: request is too large");
    });
    running.server.stop();
}

#[test]
fn alarms_are_of_this_member_and_corrupt_leaves_reads() {
    use pb::alarm_request::AlarmAction::{Activate, Deactivate, Get};
    let running = Running::start(&[]);
    running.ask(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        kv.put(put("a".into(), 0)).await.unwrap();
        let mut client = MaintenanceClient::new(channel);
        let status = client.status(pb::StatusRequest {}).await.unwrap();
        let ours = status.into_inner().leader;
        let mut alarm = async |action: pb::alarm_request::AlarmAction, member_id| {
            let request = pb::AlarmRequest {
                action: action.into(),
                member_id,
                alarm: pb::AlarmType::Corrupt.into(),
            };
            let answer = client.alarm(request).await;
            answer.map(|answer| answer.into_inner().alarms.len())
        };
        let unknown = alarm(Activate, 12345).await.unwrap_err();
        assert_eq!(unknown.message(), "etcdserver: member not found");
        assert_eq!(alarm(Get, 0).await.unwrap(), 0);
        assert_eq!(alarm(Activate, ours).await.unwrap(), 1);
        // Another's is not there to be cleared.
        for other in [0, 12345] {
            assert_eq!(alarm(Deactivate, other).await.unwrap(), 0);
            assert_eq!(alarm(Get, 0).await.unwrap(), 1);
        }
        let range = pb::RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        let read = kv.range(range).await.unwrap().into_inner();
        assert_eq!(read.count, 1, "reads go on, as in etcd 3.7");
        let refused = kv.put(put("a".into(), 0)).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: corrupt cluster");
        assert_eq!(alarm(Deactivate, ours).await.unwrap(), 1);
        kv.put(put("a".into(), 0)).await.unwrap();
    });
    running.server.stop();
}

/// Puts `count` keys of 1 KiB.
async fn fill(kv: &mut KvClient<Channel>, prefix: &str, count: usize) {
    for part in 0..count / 100 {
        let puts = (0..100).map(|n| pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                key: format!("{prefix}/{part:04}{n:02}").into(),
                value: vec![b'v'; 1024].into(),
                ..Default::default()
            })),
        });
        let txn = pb::TxnRequest {
            success: puts.collect(),
            ..Default::default()
        };
        kv.txn(txn).await.unwrap();
    }
}

fn all_of(prefix: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: format!("{prefix}/").into(),
        range_end: format!("{prefix}0").into(),
        ..Default::default()
    }
}

#[test]
fn a_slow_reader_of_a_stream_does_not_keep_history_over_its_budget() {
    let budget = 4 << 20;
    let running = Running::start(&[&format!("--history-budget-bytes={budget}")]);
    let status = running.ask(async |channel| {
        let mut kv = KvClient::new(channel);
        fill(&mut kv, "a", 30_000).await;
        let mut stream = kv.range_stream(all_of("a")).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        // All that is streamed is replaced, more than once.
        for _ in 0..3 {
            fill(&mut kv, "a", 30_000).await;
        }
        for _ in 0..200 {
            if running.metric("orlop_history_bytes") <= budget as f64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    });
    let status = status.unwrap();
    assert_eq!(status.code(), tonic::Code::OutOfRange);
    let text = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(status.message(), text);
    assert!(running.metric("orlop_history_bytes") <= budget as f64);
    assert_eq!(running.metric("orlop_pins_broken_total"), 1.0);
    assert_eq!(running.metric("orlop_pins"), 0.0);
    running.server.stop();
}

#[test]
fn long_ranges_in_a_write_transaction_see_it_and_a_physical_compaction_frees() {
    let running = Running::start(&[]);
    running.ask(async |channel| {
        let mut kv = KvClient::new(channel).max_decoding_message_size(64 << 20);
        fill(&mut kv, "a", 10_000).await;
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        use pb::request_op::Request;
        use pb::response_op::Response;
        let list = || {
            op(Request::RequestRange(pb::RangeRequest {
                keys_only: true,
                ..all_of("a")
            }))
        };
        let delete = pb::DeleteRangeRequest {
            key: "a/0050".into(),
            range_end: "a/0051".into(),
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            success: vec![
                list(),
                op(Request::RequestPut(put("a/1".into(), 0))),
                list(),
                op(Request::RequestDeleteRange(delete)),
                list(),
            ],
            ..Default::default()
        };
        let answer = kv.txn(txn).await.unwrap().into_inner();
        let counts = answer.responses.iter().filter_map(|r| match &r.response {
            Some(Response::ResponseRange(r)) => {
                assert_eq!(r.count, r.kvs.len() as i64);
                Some(r.count)
            }
            _ => None,
        });
        assert_eq!(counts.collect::<Vec<_>>(), [10_000, 10_001, 9_901]);
        let revision = answer.header.unwrap().revision;
        fill(&mut kv, "a", 10_000).await;
        let request = pb::CompactionRequest {
            revision: revision + 100,
            physical: true,
        };
        kv.compact(request).await.unwrap();
    });
    let freed = running.metric("etcd_debugging_mvcc_db_compaction_keys_total");
    assert!(freed >= 9_900.0, "{freed}");
    running.server.stop();
}

#[test]
fn http_answers_as_gos_server_does() {
    let running = Running::start(&[]);
    let ask = |head: &str| {
        let mut stream = TcpStream::connect(&running.address).unwrap();
        let request = format!("{head}\r\nhost: orlop\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    };
    let text = |head: &str| String::from_utf8(ask(head)).unwrap();
    let moved = text("GET //health?exclude=NOSPACE HTTP/1.1");
    assert!(moved.starts_with("HTTP/1.1 307 "), "{moved}");
    assert!(
        moved.contains("location: /health?exclude=NOSPACE\r\n"),
        "{moved}"
    );
    let vars = text("GET /debug/vars HTTP/1.1");
    assert!(vars.contains("\"file_descriptor_limit\": "), "{vars}");
    assert!(text("POST /debug/vars HTTP/1.1").starts_with("HTTP/1.1 405 "));
    let plain = ask("GET /metrics HTTP/1.1");
    let gzip = ask("GET /metrics HTTP/1.1\r\naccept-encoding: gzip");
    let body = gzip.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(gzip[body..body + 2], [0x1f, 0x8b]);
    assert!(
        gzip.len() * 4 < plain.len(),
        "{} {}",
        gzip.len(),
        plain.len()
    );
    running.server.stop();
}

#[test]
fn a_clients_unix_socket_has_the_mode_that_was_asked_for() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("client.sock");
    let urls = format!(
        "--listen-client-urls=http://127.0.0.1:0,unix://{}",
        socket.display()
    );
    for (flags, mode) in [(vec![], 0o600), (vec!["--socket-mode=0660"], 0o660)] {
        let running = Running::start(&[vec![urls.as_str()], flags].concat());
        let found = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode);
        running.server.stop();
    }
}

/// A gate of a journal that others write to: reads wait until it is told.
#[derive(Default)]
struct Elsewhere {
    asked: AtomicUsize,
    waiting: Mutex<Vec<tokio::sync::oneshot::Sender<Result<(), Closed>>>>,
}

impl ReadGate for Elsewhere {
    fn pass(&self) -> Option<Passing> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (tell, told) = tokio::sync::oneshot::channel();
        self.waiting.lock().unwrap().push(tell);
        Some(Box::pin(async move { told.await.unwrap() }))
    }
}

#[test]
fn a_linearizable_read_waits_at_the_gate_and_others_do_not() {
    let gate = Arc::new(Elsewhere::default());
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start_in(dir, &[], Some(gate.clone()));
    running.ask(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        kv.put(put("a/1".into(), 0)).await.unwrap();
        let serializable = pb::RangeRequest {
            serializable: true,
            ..all_of("a")
        };
        let answer = kv.range(serializable).await.unwrap().into_inner();
        assert_eq!((answer.count, gate.asked.load(Ordering::SeqCst)), (1, 0));
        for end in [Ok(()), Err("somebody else leads")] {
            let mut other = KvClient::new(channel.clone());
            let read = tokio::spawn(async move { other.range(all_of("a")).await });
            let tell = loop {
                if let Some(tell) = gate.waiting.lock().unwrap().pop() {
                    break tell;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            // What becomes visible meanwhile is what the read has to see.
            kv.put(put("a/2".into(), 0)).await.unwrap();
            assert!(!read.is_finished());
            let reason = |reason: &str| Closed {
                reason: reason.to_owned(),
            };
            tell.send(end.map_err(reason)).unwrap();
            match (read.await.unwrap(), end) {
                (Ok(answer), Ok(())) => assert_eq!(answer.into_inner().count, 2),
                (Err(status), Err(reason)) => {
                    assert_eq!(status.code(), tonic::Code::Unavailable);
                    assert_eq!(status.message(), reason);
                }
                (answer, end) => unreachable!("{answer:?} at {end:?}"),
            }
        }
    });
    running.server.stop();
}

#[test]
fn many_restarts_leave_few_files() {
    let mut dir = tempfile::tempdir().unwrap();
    for _ in 0..70 {
        let running = Running::start_in(dir, &[], None);
        running.ask(async |channel| {
            KvClient::new(channel)
                .put(put("a".into(), 0))
                .await
                .unwrap();
        });
        running.server.stop();
        dir = running.dir;
    }
    let running = Running::start_in(dir, &[], None);
    let log = running.dir.path().join("data/log");
    let files = || std::fs::read_dir(&log).unwrap().count();
    let mut left = files();
    for _ in 0..200 {
        if left < 10 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        left = files();
    }
    assert!(left < 10, "{left} files");
    running.server.stop();
}
