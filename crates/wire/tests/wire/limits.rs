//! Hostile and clumsy clients: they get limits and errors, and others get their service.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ledger::{Account, Ledger, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::{Address, Config, ListenerConfig, Serves, TlsConfig};

use crate::certs::Authority;
use crate::common::{
    Client, Running, eventually, next_chunk, no_body, request, start, start_on, unfinished, whole,
    wire_bytes,
};

/// Everyone else's service goes on, and in good time.
async fn others_are_served(running: &Running) {
    let begun = Instant::now();
    let mut client = Client::connect(running.address).await;
    assert_eq!(
        client.unary("Echo", b"fine").await.body,
        wire_bytes(b"fine")
    );
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "took {:?}",
        begun.elapsed()
    );
}

/// Reads until the server closes; bytes that came.
async fn read_to_close(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = socket.read_to_end(&mut bytes);
    // A reset is a close too.
    let _ = tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("it stayed open");
    bytes
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let config = Config {
        first_bytes_timeout: Duration::from_millis(200),
        ..Config::default()
    };
    let running = start(config);
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    let mut half_preface = TcpStream::connect(running.address).await.unwrap();
    half_preface.write_all(b"PRI * HT").await.unwrap();
    let mut half_head = TcpStream::connect(running.address).await.unwrap();
    half_head
        .write_all(b"GET / HTTP/1.1\r\nhost")
        .await
        .unwrap();
    others_are_served(&running).await;
    for socket in [&mut silent, &mut half_preface, &mut half_head] {
        read_to_close(socket).await;
    }
    eventually("all are gone", || running.server.counts().open() <= 1).await;
}

#[tokio::test]
async fn garbage_is_refused() {
    let authority = Authority::new();
    let server = authority.issue("server", "server", &["localhost"], 1);
    let address = Address::Tcp("127.0.0.1:0".to_owned());
    let tls = Some(TlsConfig::new(&server.cert, &server.key));
    let config = Config {
        handshake_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let secure = start_on(config, ListenerConfig::new(address, tls));
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"\x16\x03\x01\x40\x00garbage",
    ] {
        let mut socket = TcpStream::connect(secure.address).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        read_to_close(&mut socket).await;
    }
    let mut slow = TcpStream::connect(secure.address).await.unwrap();
    read_to_close(&mut slow).await;

    let plain = start(Config::default());
    let huge_frame = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), vec![0xff; 64]].concat();
    for garbage in [
        &[0u8; 100][..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &huge_frame,
    ] {
        let mut socket = TcpStream::connect(plain.address).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        read_to_close(&mut socket).await;
    }
    others_are_served(&plain).await;
    eventually("all are gone", || secure.server.counts().open() == 0).await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed() {
    let running = start(Config {
        max_connections: 3,
        ..Config::default()
    });
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(running.address).await;
        assert_eq!(client.unary("Echo", b"").await.code(), 0);
        kept.push(client);
    }
    let mut fourth = TcpStream::connect(running.address).await.unwrap();
    assert!(read_to_close(&mut fourth).await.is_empty());
    assert_eq!(kept[0].unary("Echo", b"").await.code(), 0);
    kept.clear();
    eventually("there is room", || running.server.counts().open() == 0).await;
    others_are_served(&running).await;
}

#[tokio::test]
async fn calls_over_the_limit_are_refused() {
    let running = start(Config {
        max_calls_per_connection: 10,
        ..Config::default()
    });
    let mut client = Client::connect(running.address).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let (tx, opening) = client.stream("Wait").await;
        open.push((tx, opening.await.unwrap()));
    }
    let answer = client.unary("Echo", b"").await;
    assert_eq!(answer.code(), 8);
    assert!(
        answer.text().starts_with("too many calls"),
        "{}",
        answer.text()
    );
    others_are_served(&running).await;
    open.pop();
    eventually("one is gone", || {
        running.counts.streams_open.load(Ordering::SeqCst) == 9
    })
    .await;
    assert_eq!(client.unary("Echo", b"").await.code(), 0);
}

#[tokio::test]
async fn thousands_of_idle_streams_hurt_nobody() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let mut open = Vec::new();
    for _ in 0..3000 {
        let (tx, opening) = client.stream("Bidi").await;
        open.push((tx, tokio::spawn(opening)));
    }
    eventually("all are open", || {
        running.counts.streams_open.load(Ordering::SeqCst) == 3000
    })
    .await;
    others_are_served(&running).await;
    for (_, task) in &open {
        task.abort();
    }
    eventually("all are gone", || {
        running.counts.streams_open.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn slow_readers_cost_a_bounded_queue() {
    let queue = 512 * 1024;
    let running = start(Config {
        stream_queue_bytes: queue,
        ..Config::default()
    });
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(running.address).await;
        let (tx, opening) = client.stream("Flood").await;
        let mut body = opening.await.unwrap().into_body();
        next_chunk(&mut body).await.unwrap().unwrap();
        kept.push((tx, body, client));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = || running.counts.sent_bytes.load(Ordering::SeqCst);
    let before = sent();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sent(), before, "the queues are full, yet more is queued");
    assert!(running.counts.flood_queued_max.load(Ordering::SeqCst) <= queue);
    others_are_served(&running).await;
    drop(kept);
    eventually("all are gone", || {
        running.counts.streams_open.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn incomplete_requests_are_bounded_in_size_and_time() {
    let running = start(Config {
        max_partial_bytes: 100_000,
        body_timeout: Duration::from_millis(300),
        ..Config::default()
    });
    let mut client = Client::connect(running.address).await;
    // Each announces 1 MB, sends 30 kB and stalls.
    let mut part = b"\0\0\x0f\0\0".to_vec();
    part.resize(30_000, b'x');
    let mut open = Vec::new();
    for _ in 0..10 {
        let (tx, opening) = client.stream("Echo").await;
        tx.send(Bytes::from(part.clone())).unwrap();
        open.push((tx, tokio::spawn(opening)));
    }
    let mut codes = Vec::new();
    for (_tx, task) in open {
        let head = task.await.unwrap().unwrap();
        codes.push(head.headers()["grpc-status"].to_str().unwrap().to_owned());
    }
    codes.sort();
    // Three fit into the budget and time out; seven did not fit.
    assert_eq!(codes, [vec!["14"; 3], vec!["8"; 7]].concat());
    assert_eq!(client.unary("Echo", b"fine").await.code(), 0);
}

#[tokio::test]
async fn requests_that_wait_for_a_client_to_read_are_bounded() {
    let running = start(Config {
        max_partial_bytes: 100_000,
        max_unread_bytes: 50_000,
        ..Config::default()
    });
    // Nothing of an answer but its head gets through.
    let socket = TcpStream::connect(running.address).await.unwrap();
    let mut http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    http2.initial_stream_window_size(0u32);
    let (send, connection) = http2.handshake(TokioIo::new(socket)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = Client { send };
    let echo = |len| request("/test.Echo/Echo").body(whole(wire_bytes(&vec![b'x'; len])));
    let unread = client.send(echo(60_000).unwrap()).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        client.send.ready().await.unwrap();
        waiting.push(Box::pin(client.send.send_request(echo(30_000).unwrap())));
    }
    // Three fit; seven are refused, and with them the client learns why.
    let mut refused = 0;
    for answer in &mut waiting {
        let answer = tokio::time::timeout(Duration::from_millis(300), answer).await;
        if let Ok(answer) = answer {
            assert_eq!(answer.unwrap().headers()["grpc-status"], "8");
            refused += 1;
        }
    }
    assert_eq!(refused, 7);
    others_are_served(&running).await;
    drop((unread, waiting, client));
    connection.abort();
    eventually("all calls ended", || {
        running.counts.started.load(Ordering::SeqCst)
            == running.counts.handled.load(Ordering::SeqCst)
    })
    .await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection_or_do_no_harm() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    for _ in 0..5000 {
        let asked = request("/test.Echo/Hang")
            .body(whole(wire_bytes(b"x")))
            .unwrap();
        if client.send.ready().await.is_err() {
            break;
        }
        drop(client.send.send_request(asked));
        if client.send.is_closed() {
            break;
        }
    }
    others_are_served(&running).await;
    drop(client);
    eventually("all calls ended", || {
        running.counts.started.load(Ordering::SeqCst)
            == running.counts.handled.load(Ordering::SeqCst)
    })
    .await;
}

#[tokio::test]
async fn split_listeners_serve_their_half_only() {
    let listener = |grpc, http| ListenerConfig {
        serves: Serves { grpc, http },
        ..ListenerConfig::new(Address::Tcp("127.0.0.1:0".to_owned()), None)
    };
    let grpc_only = start_on(Config::default(), listener(true, false));
    let mut socket = TcpStream::connect(grpc_only.address).await.unwrap();
    socket
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(read_to_close(&mut socket).await.is_empty());
    let mut client = Client::connect(grpc_only.address).await;
    assert_eq!(client.unary("Echo", b"").await.code(), 0);
    let asked = http::Request::get("http://a/health")
        .body(whole(Bytes::new()))
        .unwrap();
    let answer = client.ask(asked).await;
    assert_eq!((answer.http.as_u16(), answer.code()), (415, 3));
    assert_eq!(answer.text(), "invalid gRPC request content-type \"\"");

    let http_only = start_on(Config::default(), listener(false, true));
    let mut client = Client::connect(http_only.address).await;
    let answer = client.unary("Echo", b"").await;
    assert!(answer.headers.get("grpc-status").is_none());
    assert!(answer.body.starts_with(b"POST http://test/test.Echo/Echo"));
}

#[tokio::test]
async fn clients_that_ping_too_often_are_told_to_calm_down() {
    let running = start(Config::default());
    let mut socket = TcpStream::connect(running.address).await.unwrap();
    let ping = b"\0\0\x08\x06\0\0\0\0\0pingpong";
    let hello = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        ping,
    ]
    .concat();
    socket.write_all(&hello).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        socket.write_all(ping).await.unwrap();
    }
    let bytes = read_to_close(&mut socket).await;
    let goaway = b"\0\0\0\x0btoo_many_pings";
    assert!(
        bytes.windows(goaway.len()).any(|part| part == goaway),
        "{bytes:?}"
    );
    others_are_served(&running).await;
}

/// A client whose windows let nothing of an answer through but its head.
async fn blind_client(running: &Running) -> (Client, tokio::task::JoinHandle<hyper::Result<()>>) {
    let socket = TcpStream::connect(running.address).await.unwrap();
    let mut http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    http2.initial_stream_window_size(0u32);
    let (send, connection) = http2.handshake(TokioIo::new(socket)).await.unwrap();
    (Client { send }, tokio::spawn(connection))
}

fn with_limit(account: Account, bytes: usize) -> Config {
    Config {
        ledger: Ledger::new(Limits::none().with(account, bytes)),
        ..Config::default()
    }
}

fn call(name: &str, payload: &[u8]) -> http::Request<crate::common::RequestBody> {
    let request = request(&format!("/test.Echo/{name}"));
    request.body(whole(wire_bytes(payload))).unwrap()
}

#[tokio::test]
async fn who_reads_nothing_of_a_large_answer_makes_room_for_others() {
    let config = with_limit(Account::Answers, 40 << 20);
    let ledger = config.ledger.clone();
    let running = start(config);
    // The first gets one of any size. The others wait for theirs: it is known how large they
    // would be, and nothing is built.
    let mut blind = Vec::new();
    for _ in 0..3 {
        let (mut client, connection) = blind_client(&running).await;
        client.send.ready().await.unwrap();
        let asked = client.send.send_request(call("Large", b"60000000"));
        blind.push((client, tokio::spawn(asked), connection));
    }
    eventually("one answer is there", || {
        ledger.held_bytes(Account::Answers) > 60_000_000
    })
    .await;
    assert!(ledger.held_bytes(Account::Answers) < 61_000_000);
    // Small answers go on beside it, and a large one gets its turn.
    others_are_served(&running).await;
    let begun = Instant::now();
    let mut good = Client::connect(running.address).await;
    let answer = good.unary("Large", b"50000000").await;
    assert_eq!((answer.code(), answer.body.len()), (0, 50_000_005));
    assert!(ledger.shed(Account::Answers) >= 1);
    assert!(begun.elapsed() < Duration::from_secs(30));
    drop(blind);
    eventually("all was given back", || {
        ledger.held_bytes(Account::Answers) == 0
    })
    .await;
}

#[tokio::test]
async fn who_reads_is_not_ended_for_others() {
    let config = with_limit(Account::Answers, 20 << 20);
    let ledger = config.ledger.clone();
    let running = start(config);
    let mut answers = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(running.address).await;
        answers.push(tokio::spawn(async move {
            let mut lens = Vec::new();
            for _ in 0..3 {
                let answer = client.unary("Large", b"15000000").await;
                lens.push((answer.code(), answer.body.len()));
            }
            lens
        }));
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap(), [(0, 15_000_005); 3]);
    }
    assert_eq!(ledger.shed(Account::Answers), 0);
}

#[tokio::test]
async fn small_unread_answers_have_a_limit() {
    let config = with_limit(Account::Answers, 4 << 20);
    let ledger = config.ledger.clone();
    let running = start(config);
    let (mut client, connection) = blind_client(&running).await;
    let mut asked = Vec::new();
    for _ in 0..2000 {
        if client.send.ready().await.is_err() {
            break;
        }
        asked.push(client.send.send_request(call("Echo", b"small")));
    }
    // Three quarters of it, and the answer that passes that.
    eventually("some wait", || {
        let (started, sent) = (&running.counts.started, &running.counts.sent_bytes);
        started.load(Ordering::SeqCst) >= 2000 && sent.load(Ordering::SeqCst) > 0
    })
    .await;
    assert!(ledger.held_bytes(Account::Answers) <= (3 << 20) + (6 << 10));
    assert!(running.counts.sent_bytes.load(Ordering::SeqCst) < 1000 * 5);
    others_are_served(&running).await;
    drop((asked, client));
    connection.abort();
    eventually("all was given back", || {
        ledger.held_bytes(Account::Answers) + ledger.held_bytes(Account::Calls) == 0
    })
    .await;
}

#[tokio::test]
async fn unread_plain_http_has_a_limit() {
    let config = with_limit(Account::Answers, 1 << 20);
    let ledger = config.ledger.clone();
    let running = start(config);
    let (mut client, connection) = blind_client(&running).await;
    let mut refused = 0;
    let mut kept = Vec::new();
    for _ in 0..500 {
        let asked = http::Request::get("http://a/metrics");
        let answer = client.send(asked.body(no_body()).unwrap()).await.unwrap();
        refused += usize::from(answer.status() == 503);
        kept.push(answer);
    }
    assert!(refused > 300 && refused < 500, "{refused}");
    assert!(ledger.held_bytes(Account::Answers) <= 1 << 20);
    assert!(ledger.refused(Account::Answers) >= 300);
    let mut other = Client::connect(running.address).await;
    let asked = http::Request::get("http://a/livez");
    let answer = other.ask(asked.body(whole(Bytes::new())).unwrap()).await;
    assert_eq!(answer.http, 200);
    drop((kept, client));
    connection.abort();
    eventually("all was given back", || {
        ledger.held_bytes(Account::Answers) == 0
    })
    .await;
}

#[tokio::test]
async fn unfinished_http_bodies_have_a_limit() {
    let config = with_limit(Account::Requests, 1 << 20);
    let ledger = config.ledger.clone();
    let running = start(config);
    let mut client = Client::connect(running.address).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        let asked = http::Request::post("http://a/rules");
        let body = unfinished(Bytes::from(vec![b'x'; 60_000]));
        client.send.ready().await.unwrap();
        open.push(tokio::spawn(
            client.send.send_request(asked.body(body).unwrap()),
        ));
    }
    let mut refused = 0;
    for asked in &mut open {
        let asked = tokio::time::timeout(Duration::from_millis(300), asked).await;
        if let Ok(answer) = asked {
            assert_eq!(answer.unwrap().unwrap().status(), 503);
            refused += 1;
        }
    }
    // Each is charged 60,000 bytes and 32 KiB; the connection gets three quarters of 1 MiB.
    assert!((30..=34).contains(&refused), "{refused}");
    assert!(ledger.held_bytes(Account::Requests) <= 768 << 10);
    others_are_served(&running).await;
}

#[tokio::test]
async fn a_worker_keeps_calls_for_those_who_have_few() {
    let config = with_limit(Account::Calls, 2000 * 8192);
    let running = start(config);
    let mut greedy = Client::connect(running.address).await;
    let mut other_greedy = Client::connect(running.address).await;
    let mut open = Vec::new();
    for i in 0..2400 {
        let client = if i % 2 == 0 {
            &mut greedy
        } else {
            &mut other_greedy
        };
        let (tx, opening) = client.stream("Bidi").await;
        open.push((tx, tokio::spawn(opening)));
    }
    eventually("each is open or refused", || {
        let refused = running.counts.handled.load(Ordering::SeqCst);
        refused + running.counts.streams_open.load(Ordering::SeqCst) == 2400
    })
    .await;
    assert_eq!(running.counts.streams_open.load(Ordering::SeqCst), 1750);
    others_are_served(&running).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_and_end_if_nobody_reads() {
    let config = with_limit(Account::Streams, 8 << 20);
    let ledger = config.ledger.clone();
    let running = start(config);
    let mut kept = Vec::new();
    for _ in 0..8 {
        let (mut client, _) = blind_client(&running).await;
        for _ in 0..20 {
            let (tx, opening) = client.stream("Flood").await;
            kept.push((tx, tokio::spawn(opening)));
        }
    }
    // 64 KiB frames: one a stream were 10 MiB, and their queues 640.
    eventually("it is full", || {
        ledger.held_bytes(Account::Streams) > 7 << 20
    })
    .await;
    let within = || ledger.held_bytes(Account::Streams) <= (8 << 20) + (64 << 10);
    assert!(within());
    let mut good = Client::connect(running.address).await;
    let (_tx, opening) = good.stream("Flood").await;
    let mut body = opening.await.unwrap().into_body();
    for _ in 0..100 {
        next_chunk(&mut body).await.unwrap().unwrap();
        assert!(within());
    }
    assert!(ledger.shed(Account::Streams) > 0);
}

#[tokio::test]
async fn silent_sockets_keep_nobody_out() {
    let running = start(Config {
        max_half_open: 50,
        ..Config::default()
    });
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(running.address).await.unwrap());
    }
    others_are_served(&running).await;
    eventually("the oldest lost their places", || {
        running.server.counts().open() <= 51
    })
    .await;
    read_to_close(&mut silent[0]).await;
}

#[tokio::test]
async fn listeners_of_plain_http_have_connections_of_their_own() {
    let listener = |serves| ListenerConfig {
        serves,
        ..ListenerConfig::new(Address::Tcp("127.0.0.1:0".to_owned()), None)
    };
    let http = Serves {
        grpc: false,
        http: true,
    };
    let bound = wire::bind(vec![listener(Serves::ALL), listener(http)]).unwrap();
    let [clients, metrics] = [0, 1].map(|i| bound[i].local_addr().unwrap());
    let config = Config {
        max_connections: 2,
        ..Config::default()
    };
    let counts = std::sync::Arc::new(crate::common::Counts::default());
    let factory = move |_| crate::common::Echo(counts.clone());
    let server = wire::Server::start(bound, config, &crate::common::METHODS, factory).unwrap();
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(clients).await;
        assert_eq!(client.unary("Echo", b"").await.code(), 0);
        kept.push(client);
    }
    let mut third = TcpStream::connect(clients).await.unwrap();
    assert!(read_to_close(&mut third).await.is_empty());
    let mut probe = Client::connect(metrics).await;
    let asked = http::Request::get("http://a/livez");
    let answer = probe.ask(asked.body(whole(Bytes::new())).unwrap()).await;
    assert_eq!(answer.http, 200);
    assert_eq!(server.counts().refused(), 1);
}

#[tokio::test]
async fn http1_clients_that_do_not_read_are_left() {
    let running = start(Config {
        unread_timeout: Duration::from_millis(300),
        ..Config::default()
    });
    let mut socket = TcpStream::connect(running.address).await.unwrap();
    // Answers that repeat what was asked: megabytes of them, and none is read.
    let asked = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(30_000));
    let write = async {
        for _ in 0..2000 {
            if socket.write_all(asked.as_bytes()).await.is_err() {
                return;
            }
        }
    };
    let wrote = tokio::time::timeout(Duration::from_secs(2), write).await;
    let _ = wrote;
    eventually("it is gone", || running.server.counts().open() == 0).await;
}

#[tokio::test]
async fn stray_acknowledgements_end_the_connection() {
    let running = start(Config::default());
    let mut socket = TcpStream::connect(running.address).await.unwrap();
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    socket.write_all(hello).await.unwrap();
    let ack = b"\0\0\x08\x06\x01\0\0\0\0pingpong";
    // A reset may come while they are written.
    let _ = socket.write_all(&ack.repeat(100)).await;
    read_to_close(&mut socket).await;
    others_are_served(&running).await;
}

#[tokio::test]
async fn much_metadata_costs_its_call_and_no_other() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    for (kib, taken) in [(320, true), (1100, false)] {
        let value = "m".repeat(kib << 10);
        let asked = request("/test.Echo/Echo")
            .header("some-metadata", value)
            .body(whole(wire_bytes(b"fine")))
            .unwrap();
        client.send.ready().await.unwrap();
        let answer = client.send.send_request(asked).await;
        match answer {
            Ok(answer) => assert_eq!(answer.status() == 200, taken, "{kib} KiB"),
            // hyper's own client does not send what the server says it will not take.
            Err(error) => assert!(!taken, "{kib} KiB: {error}"),
        }
        assert_eq!(client.unary("Echo", b"other").await.code(), 0);
    }
}
