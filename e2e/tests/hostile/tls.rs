//! The same at the TLS port.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::differential::rng::Rng;
use e2e::hostile::node::Node;
use e2e::hostile::raw;
use e2e::kube::http::Client;
use e2e::kube::pki::Authority;
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure};

use crate::PATIENCE;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_and_silence_before_tls() {
    let dir = tempfile::tempdir().unwrap();
    let result = garbage(dir.path()).await;
    conclude(dir, result);
}

/// The first bytes of a TLS 1.2 ClientHello of 512 bytes.
const HALF_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];

async fn garbage(dir: &Path) -> Result<()> {
    let pki = Authority::new(dir, "ca")?;
    let pair = pki.sign("server")?;
    let mut node = Node::new("orlop", dir, &[])?;
    node.scheme = "https";
    node.args = vec![
        format!("--cert-file={}", pair.cert.display()),
        format!("--key-file={}", pair.key.display()),
    ];
    node.run().await?;
    let before = node.resident_bytes()?;
    let mut random = Rng::new(1);
    let mut open = Vec::new();
    let mut longest = Duration::ZERO;
    for n in 0..900 {
        let bytes = match n % 4 {
            0 => raw::garbage(&mut random, 2000),
            1 => HALF_HELLO.to_vec(),
            2 => raw::hello(),
            _ => Vec::new(),
        };
        open.push(raw::open(node.port(), &bytes).await?);
        if n % 30 == 0 {
            // Each time a new connection, with a handshake of its own.
            let client = Client::tls(node.port(), &pki.cert, "")?;
            let began = Instant::now();
            let (status, text) = client.page("/health").await?;
            longest = longest.max(began.elapsed());
            ensure(status == 200, || format!("/health: {status} {text}"))?;
        }
    }
    node.check_running()?;
    let after = node.resident_bytes()?;
    println!(
        "{} connections, a handshake and /health took {longest:?} at most; memory {} -> {} MiB",
        open.len(),
        before >> 20,
        after >> 20
    );
    ensure(longest < PATIENCE, || format!("/health took {longest:?}"))?;
    ensure(after < before + (128 << 20), || {
        format!("memory went from {before} to {after} bytes")
    })?;
    node.stop().map(drop)
}
