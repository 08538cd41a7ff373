//! Clients and routers that mean harm.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use e2e::kube::proc::conclude;
use e2e::kube::{Error, Result, ensure};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::rig::{self, PATIENCE, Rig, certificate, get, request, send};
use crate::{CART, HOST, quick};

/// Sends bytes and reads all that comes until the end, which must be the router's.
async fn raw(port: u16, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let read = read.map_err(|_| Error::Failed("the connection stays open".to_owned()))?;
    // A reset after the answer is as good an end.
    let _ = read;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_http_is_refused_bounded_and_hurts_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "--head-timeout-ms=1000",
        "--idle-timeout-ms=2000",
        "--body-timeout-ms=1000",
        "--max-connections=40",
    ];
    let result = async {
        let rig = Rig::start(dir.path(), &["a", "b"], &flags).await?;
        let pod = Backend::start("p", quick()).await;
        let lines = format!("{CART}concurrency = 1");
        rig.apply(&[(&lines, &[(&pod, "b")])]).await?;
        smuggling(&rig, &pod).await?;
        slow(&rig).await?;
        unread(&rig).await?;
        too_many(&rig).await
    };
    let result = result.await;
    conclude(dir, result);
}

async fn smuggling(rig: &Rig, pod: &Backend) -> Result<()> {
    let port = rig.nodes[0].port;
    let inner = "GET /smuggled HTTP/1.1\r\nhost: cart.shop\r\n\r\n";
    let head = format!("POST /echo HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n");
    // (what is sent, whether it may be served: at most once, and never the inner request)
    for (name, bytes, statuses) in [
        (
            "length and chunks",
            format!(
                "{head}content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
                inner.len() + 5
            ),
            &["200", "400"][..],
        ),
        (
            "two lengths",
            format!("{head}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
            &["400"],
        ),
        (
            "a signed length",
            format!("{head}content-length: +3\r\n\r\nabc"),
            &["400"],
        ),
        (
            "a strange coding",
            format!("{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
            &["400"],
        ),
        (
            "chunked not last",
            format!("{head}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
            &["400"],
        ),
        (
            "chunks of HTTP/1.0",
            format!(
                "POST / HTTP/1.0\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            &["400"],
        ),
        (
            "a name with a space",
            format!("{head}transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
            &["400"],
        ),
        (
            "a folded header",
            format!("{head}x: a\r\n b\r\n\r\n"),
            &["400"],
        ),
        (
            "two hosts",
            format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"),
            &["400"],
        ),
        (
            "no host",
            "GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(),
            &["400"],
        ),
        (
            "CONNECT",
            format!("CONNECT {HOST}:80 HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"),
            &["400"],
        ),
        (
            "many headers",
            format!("{head}{}\r\n", "x: y\r\n".repeat(101)),
            &["431"],
        ),
        (
            "a large header",
            format!("{head}x: {}\r\n\r\n", "y".repeat(100 << 10)),
            &["431"],
        ),
    ] {
        let before = pod.all();
        let answer = raw(port, bytes.as_bytes()).await?;
        let status = answer.get(9..12).unwrap_or_default();
        // The end of a flood may be a reset that takes the answer with it.
        let reset = answer.is_empty() && name == "a large header";
        ensure(statuses.contains(&status) || reset, || {
            format!("{name}: {answer}")
        })?;
        let served = u32::from(status == "200");
        ensure(pod.all() - before == served, || {
            format!("{name}: the pod saw {}", pod.all() - before)
        })?;
        ensure(answer.matches("HTTP/1.1 ").count() <= 1, || {
            format!("{name}: {answer}")
        })?;
    }
    let good = get(port, "/", HOST).await?;
    ensure(good.status == 200, || format!("{good:?}"))
}

async fn slow(rig: &Rig) -> Result<()> {
    let port = rig.nodes[0].port;
    // Nothing, half a preface of HTTP/2, half a head: each is closed. So is a body that stops.
    for start in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: a\r\nx-"] {
        raw(port, start.as_bytes()).await?;
    }
    let body = format!("POST /echo HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nabc");
    raw(port, body.as_bytes()).await?;
    let good = get(port, "/", HOST).await?;
    ensure(good.status == 200, || format!("{good:?}"))
}

async fn unread(rig: &Rig) -> Result<()> {
    let port = rig.nodes[0].port;
    // The pod serves one at a time: answers that nobody reads would shut everybody out.
    let ask = || {
        request("GET", "/large", HOST)
            .header("bytes", "67108864")
            .body(Full::<bytes::Bytes>::default())
    };
    let stream = TokioIo::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let mut raw = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!("GET /large HTTP/1.1\r\nhost: {HOST}\r\nbytes: 67108864\r\n\r\n");
    raw.write_all(head.as_bytes()).await?;
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
    let (mut sender, connection) = made.map_err(|error| Error::Failed(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let mut unread = ask().unwrap();
    *unread.uri_mut() = http::Uri::from_static("http://cart.shop/large");
    let answer = tokio::spawn(async move { sender.send_request(unread).await });
    // Both are in the way of this one, until they are broken off.
    let good = send(
        port,
        request("GET", "/", HOST)
            .body(Full::<bytes::Bytes>::default())
            .unwrap(),
        false,
    )
    .await?;
    ensure(good.status == 200, || format!("{good:?}"))?;
    rig.until(0, "unread answers are broken off", |page| {
        page.sum("orlop_router_unread_answers_total", &[]) >= 1.0
            && page.sum("orlop_router_in_flight", &[]) == 0.0
    })
    .await?;
    drop((raw, answer));
    connection.abort();
    Ok(())
}

async fn too_many(rig: &Rig) -> Result<()> {
    let port = rig.nodes[0].port;
    let mut open = Vec::new();
    for _ in 0..60 {
        open.push(TcpStream::connect(("127.0.0.1", port)).await?);
    }
    rig.until(0, "connections are refused", |page| {
        page.sum("orlop_router_connections_refused_total", &[]) >= 1.0
    })
    .await?;
    drop(open);
    let began = std::time::Instant::now();
    while get(port, "/", HOST).await.is_err() {
        ensure(began.elapsed() < PATIENCE, || {
            "nobody is served again".to_owned()
        })?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Shakes hands at a router's door and asks it something, as whoever has this certificate.
async fn as_router(dir: &Path, port: u16, who: Option<&str>, ca: &str) -> Result<u16> {
    let failed = |error: &dyn std::fmt::Display| Error::Failed(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(dir.join(ca)).map_err(|e| failed(&e))?;
    roots.add(ca).map_err(|e| failed(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(&e))?
        .with_root_certificates(roots);
    let mut config = match who {
        None => builder.with_no_client_auth(),
        Some(who) => {
            let cert = CertificateDer::from_pem_file(dir.join(format!("{who}.crt")));
            let key = PrivateKeyDer::from_pem_file(dir.join(format!("{who}.key")));
            let (cert, key) = (cert.map_err(|e| failed(&e))?, key.map_err(|e| failed(&e))?);
            builder
                .with_client_auth_cert(vec![cert], key)
                .map_err(|e| failed(&e))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(if ca_is_served(who) { "localhost" } else { "a" }.to_owned());
    let name = name.map_err(|e| failed(&e))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = made.await.map_err(|e| failed(&e))?;
    tokio::spawn(connection);
    let ask = http::Request::get("http://cart.shop/").body(Full::<bytes::Bytes>::default());
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(ask.unwrap())).await;
    let answer = answer.map_err(|_| Error::Failed("silence".to_owned()))?;
    Ok(answer.map_err(|e| failed(&e))?.status().as_u16())
}

/// Clients' own door is for `localhost`.
fn ca_is_served(who: Option<&str>) -> bool {
    who == Some("anybody")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_router_comes_in_at_the_routers_door() {
    let dir = tempfile::tempdir().unwrap();
    let result = async {
        let rig = Rig::start(dir.path(), &["a"], &[]).await?;
        let (dir, port) = (dir.path(), rig.nodes[0].peer_port);
        certificate(&rig.ca, dir, "router", "other", None);
        certificate(&rig.ca, dir, "shard", "n7", Some("orlop://shard/n7"));
        certificate(&rig::authority(), dir, "stranger", "other", None);
        certificate(&rig.ca, dir, "anybody", "anybody", None);
        // A router is let in, and told that this is no request of a router's.
        let status = as_router(dir, port, Some("router"), "ca.crt").await?;
        ensure(status == 400, || format!("HTTP {status}"))?;
        for who in [None, Some("shard"), Some("stranger")] {
            let came = as_router(dir, port, who, "ca.crt").await;
            ensure(came.is_err(), || format!("{who:?} came in"))?;
        }
        // At the clients' door, with TLS and HTTP/2 agreed on in the handshake.
        let pod = Backend::start("p", quick()).await;
        rig.apply(&[(CART, &[(&pod, "a")])]).await?;
        let status = as_router(dir, rig.nodes[0].tls_port, Some("anybody"), "ca.crt").await?;
        ensure(status == 200, || format!("HTTP {status}"))
    };
    let result = result.await;
    conclude(dir, result);
}
