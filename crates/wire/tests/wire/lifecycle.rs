//! Start and end: Unix sockets, graceful shutdown.

use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wire::{Address, Config, Error, ListenerConfig};

use crate::common::{Client, eventually, next_chunk, start, start_on, wire_bytes};

#[tokio::test]
async fn unix_sockets_replace_stale_ones_and_clean_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a stale socket is there");
    let running = start_on(
        Config::default(),
        ListenerConfig::new(Address::Unix(path.clone()), None),
    );
    assert_eq!(
        running.server.urls(),
        [format!("unix://{}", path.display())]
    );
    let socket = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut client = Client::try_over(socket).await.unwrap();
    let answer = client.unary("Who", b"").await;
    assert_eq!(answer.body, wire_bytes(b"nobody@@#0"));
    let second = wire::bind(vec![ListenerConfig::new(Address::Unix(path.clone()), None)]);
    assert!(matches!(second, Err(Error::Bind { .. })) && path.exists());
    running.server.shutdown(Duration::ZERO);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = wire::bind(vec![ListenerConfig::new(Address::Unix(path.clone()), None)]);
    assert!(matches!(error, Err(Error::Address { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn shutdown_tells_streams_and_waits_for_calls() {
    let running = start(Config {
        workers: 2,
        ..Config::default()
    });
    let mut client = Client::connect(running.address).await;
    let (_tx, opening) = client.stream("Wait").await;
    let mut body = opening.await.unwrap().into_body();
    next_chunk(&mut body).await.unwrap().unwrap();
    let mut caller = client.clone();
    let call = tokio::spawn(async move { caller.unary("Later", b"last").await });
    eventually("the call starts", || {
        running.counts.started.load(Ordering::SeqCst) == 2
    })
    .await;
    let address = running.address;
    let server = running.server;
    let begun = Instant::now();
    let ended = tokio::task::spawn_blocking(move || server.shutdown(Duration::from_secs(8)));
    let trailers = next_chunk(&mut body)
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    assert_eq!(trailers["grpc-message"], "server stopped");
    assert_eq!(call.await.unwrap().body, wire_bytes(b"last"));
    drop(client);
    ended.await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it waited for its whole grace"
    );
    tokio::net::TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn shutdown_does_not_wait_beyond_its_grace() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    let call = tokio::spawn(async move {
        let request = crate::common::request("/test.Echo/Hang")
            .body(crate::common::whole(wire_bytes(b"")))
            .unwrap();
        client.send(request).await.map(|_| ())
    });
    eventually("the call starts", || {
        running.counts.started.load(Ordering::SeqCst) == 1
    })
    .await;
    let begun = Instant::now();
    let server = running.server;
    tokio::task::spawn_blocking(move || server.shutdown(Duration::from_millis(300)))
        .await
        .unwrap();
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300) && waited < Duration::from_secs(4));
    call.await.unwrap().unwrap_err();
    assert_eq!(running.counts.canceled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_panic_in_a_handler_fails_its_call_and_no_other() {
    let running = start(Config::default());
    let mut client = Client::connect(running.address).await;
    assert_eq!(client.unary("Echo", b"panic now").await.code(), 13);
    assert_eq!(client.unary("Echo", b"calm").await.code(), 0);
}
