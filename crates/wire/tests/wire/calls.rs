//! gRPC as clients see it: unary calls, errors, streams, cancellation, deadlines, HTTP beside it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::common::{
    Client, eventually, next_chunk, request, start, unfinished, whole, wire_bytes,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::Config;

#[tokio::test]
async fn unary_calls_are_answered() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    for name in ["Echo", "Later"] {
        let answer = client.unary(name, b"hello").await;
        assert_eq!(
            (answer.http.as_u16(), answer.code(), answer.text()),
            (200, 0, "")
        );
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert!(!answer.headers.contains_key("content-length"));
        assert!(!answer.headers.contains_key("date"));
        assert_eq!(answer.body, wire_bytes(b"hello"));
    }
    let large = vec![b'x'; 1_500_000];
    assert_eq!(client.unary("Echo", &large).await.body, wire_bytes(&large));
    assert_eq!(client.unary("Echo", b"").await.body, wire_bytes(b""));
    let counts = &running.counts;
    assert_eq!(counts.started.load(Ordering::SeqCst), 4);
    assert_eq!(counts.handled.load(Ordering::SeqCst), 4);
    assert_eq!(counts.received_bytes.load(Ordering::SeqCst), 1_500_010);
    assert_eq!(counts.sent_bytes.load(Ordering::SeqCst), 1_500_010);
}

#[tokio::test]
async fn many_calls_at_once() {
    let running = start(Config {
        workers: 2,
        ..Config::default()
    });
    let mut tasks = Vec::new();
    for connection in 0..4 {
        let client = Client::connect(running.address).await;
        for call in 0..50 {
            let mut client = client.clone();
            tasks.push(tokio::spawn(async move {
                let payload = format!("{connection}-{call}");
                let answer = client.unary("Later", payload.as_bytes()).await;
                assert_eq!(answer.body, wire_bytes(payload.as_bytes()));
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn connections_spread_over_workers() {
    let running = start(Config {
        workers: 2,
        ..Config::default()
    });
    let mut seen = std::collections::BTreeSet::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(running.address).await;
        let answer = client.unary("Who", b"").await;
        seen.insert(*answer.body.last().unwrap());
        clients.push(client);
    }
    assert_eq!(seen.len(), 2);
    assert_eq!(running.server.counts().open(), 4);
}

#[tokio::test]
async fn errors_are_trailers_only() {
    let running = start(Config {
        max_message_bytes: 1000,
        ..Config::default()
    });
    let mut client = Client::connect(running.address).await;
    let answer = client.unary("Fail", b"x").await;
    assert_eq!((answer.http.as_u16(), answer.code()), (200, 11));
    assert_eq!(answer.text(), "50%25 gone: %C3%BC");
    assert!(answer.trailers.is_empty() && answer.body.is_empty());

    let answer = client.unary("Echo", &[0; 1001]).await;
    assert_eq!(answer.code(), 8);
    assert_eq!(
        answer.text(),
        "grpc: received message larger than max (1001 vs. 1000)"
    );

    let answer = client.unary("Nope", b"").await;
    assert_eq!(
        (answer.code(), answer.text()),
        (12, "unknown method Nope for service test.Echo")
    );
    let mut ask = async |path: &str| {
        client
            .ask(request(path).body(whole(wire_bytes(b""))).unwrap())
            .await
    };
    assert_eq!(
        ask("/other.Service/M").await.text(),
        "unknown service other.Service"
    );
    assert_eq!(ask("/odd").await.text(), "malformed method name: \"/odd\"");

    let answer = client
        .ask(
            request("/test.Echo/Echo")
                .header("grpc-encoding", "snappy")
                .body(whole(wire_bytes(b"")))
                .unwrap(),
        )
        .await;
    assert_eq!(answer.code(), 12);
    assert_eq!(
        answer.text(),
        "grpc: Decompressor is not installed for grpc-encoding \"snappy\""
    );
    let cut = request("/test.Echo/Echo").body(whole(Bytes::from_static(b"\0\0\0\0\x09half")));
    assert_eq!(client.ask(cut.unwrap()).await.code(), 13);
    let answer = client.unary("Echo", b"still fine").await;
    assert_eq!(answer.code(), 0);
}

#[tokio::test]
async fn deadlines_end_streams_and_calls_that_no_handler_has() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let incomplete = Bytes::from_static(b"\0\0\0\0\x09half");
    for timeout in ["50m", "0n", "50000u"] {
        let begun = Instant::now();
        let asked = request("/test.Echo/Echo")
            .header("grpc-timeout", timeout)
            .body(unfinished(incomplete.clone()));
        let answer = client.ask(asked.unwrap()).await;
        assert_eq!(
            (answer.code(), answer.text()),
            (4, "context deadline exceeded")
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    let asked = request("/test.Echo/Wait")
        .header("grpc-timeout", "100m")
        .body(whole(wire_bytes(b"")));
    let answer = client.ask(asked.unwrap()).await;
    assert_eq!(
        (answer.code(), &answer.body[..]),
        (4, &wire_bytes(b"ready")[..])
    );
    let asked = request("/test.Echo/Echo")
        .header("grpc-timeout", "9x")
        .body(whole(wire_bytes(b"")));
    assert_eq!(client.ask(asked.unwrap()).await.code(), 13);
}

/// Go's client of etcd repeats what ends in DeadlineExceeded while its caller waits: what a
/// handler has may have been carried out.
#[tokio::test]
async fn a_call_that_a_handler_has_runs_to_its_answer() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let asked = request("/test.Echo/Later")
        .header("grpc-timeout", "1m")
        .body(whole(wire_bytes(b"done")));
    let answer = client.ask(asked.unwrap()).await;
    assert_eq!((answer.code(), answer.body), (0, wire_bytes(b"done")));
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_its_call_for_good() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let answer = client.unary("Huge", b"").await;
    assert_eq!(
        (answer.code(), answer.text()),
        (
            8,
            "grpc: trying to send message larger than max (2147483648 vs. 2147483647)"
        )
    );
    let (_tx, opening) = client.stream("HugeStream").await;
    let mut body = opening.await.unwrap().into_body();
    let first = next_chunk(&mut body).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), wire_bytes(b"first"));
    let end = next_chunk(&mut body).await.unwrap().unwrap();
    let trailers = end.into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "8");
    assert_eq!(
        trailers["grpc-message"],
        "trying to send message larger than max (2147483648 vs. 2147483647)"
    );
}

#[tokio::test]
async fn bidi_streams_echo() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let (tx, opening) = client.stream("Bidi").await;
    tx.send(wire_bytes(b"one")).unwrap();
    let mut body = opening.await.unwrap().into_body();
    let chunk = next_chunk(&mut body).await.unwrap().unwrap();
    assert_eq!(chunk.into_data().unwrap(), wire_bytes(b"one"));
    // Two messages in one chunk, then one over two chunks.
    let mut both = wire_bytes(b"two").to_vec();
    both.extend_from_slice(&wire_bytes(b"three"));
    let rest = both.split_off(5);
    tx.send(both.into()).unwrap();
    tx.send(rest.into()).unwrap();
    for want in [&b"two"[..], b"three"] {
        let chunk = next_chunk(&mut body).await.unwrap().unwrap();
        assert_eq!(chunk.into_data().unwrap(), wire_bytes(want));
    }
    drop(tx);
    let trailers = next_chunk(&mut body)
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(next_chunk(&mut body).await.is_none());
    assert_eq!(running.counts.streams_open.load(Ordering::SeqCst), 0);
    assert_eq!(running.counts.received_bytes.load(Ordering::SeqCst), 11);
}

#[tokio::test]
async fn refused_streams_are_trailers_only() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let answer = client.unary("Refuse", b"").await;
    assert_eq!((answer.code(), answer.text()), (7, "not you"));
    assert!(answer.trailers.is_empty());
}

#[tokio::test]
async fn cancelled_streams_and_calls_are_dropped() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let open = || running.counts.streams_open.load(Ordering::SeqCst);
    // Reset after the first frame.
    let (tx, opening) = client.stream("Wait").await;
    let body = opening.await.unwrap();
    assert_eq!(open(), 1);
    drop((body, tx));
    eventually("the stream is dropped", || open() == 0).await;
    // Reset before any frame.
    let (tx, opening) = client.stream("Bidi").await;
    let task = tokio::spawn(opening);
    eventually("the stream is open", || open() == 1).await;
    task.abort();
    eventually("the silent stream is dropped", || open() == 0).await;
    drop(tx);
    // A unary call.
    let mut other = client.clone();
    let task = tokio::spawn(async move { other.unary("Hang", b"").await });
    eventually("the call starts", || {
        running.counts.started.load(Ordering::SeqCst) == 3
    })
    .await;
    task.abort();
    eventually("all ended", || {
        running.counts.canceled.load(Ordering::SeqCst) == 3
    })
    .await;
    assert_eq!(running.counts.handled.load(Ordering::SeqCst), 3);
    assert_eq!(client.unary("Echo", b"alive").await.code(), 0);
}

#[tokio::test]
async fn lost_connections_end_their_streams() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let (_tx, opening) = client.stream("Wait").await;
    let body = opening.await.unwrap();
    drop((body, client, _tx));
    eventually("the stream is dropped", || {
        running.counts.streams_open.load(Ordering::SeqCst) == 0
    })
    .await;
    eventually("the connection ended", || {
        running.server.counts().open() == 0
    })
    .await;
}

#[tokio::test]
async fn http_is_served_on_the_same_port() {
    let running = start(Config {
        max_http_body_bytes: 100,
        ..Config::default()
    });
    let mut socket = tokio::net::TcpStream::connect(running.address)
        .await
        .unwrap();
    socket
        .write_all(b"GET /health?x=1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("GET /health?x=1 0"), "{text}");

    let mut socket = tokio::net::TcpStream::connect(running.address)
        .await
        .unwrap();
    let large = format!(
        "POST /v3/kv/put HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 101\r\n\r\n{}",
        "x".repeat(101)
    );
    socket.write_all(large.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");

    let mut client = Client::connect(running.address).await;
    let asked = http::Request::get("http://a/version")
        .body(whole(Bytes::new()))
        .unwrap();
    let answer = client.send(asked).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "GET http://a/version 0"
    );
}
