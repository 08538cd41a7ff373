//! Every method and path, asked by clients that let nothing of the answer through, next to
//! nothing, that never finish asking, or take for ever: the server's memory stays within the
//! formula of `docs/operating/limits.md`.

use std::path::Path;
use std::time::Duration;

use bytes::BufMut as _;
use e2e::hostile::call::METHODS;
use e2e::hostile::load::put_all;
use e2e::hostile::node::Node;
use e2e::hostile::raw::{self, whole};
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure};
use etcd_api::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::survives_with;

/// What the server is told that it may use: each account then has its least limit.
const MEMORY_BYTES: u64 = 1 << 30;
/// The least limits of the accounts that clients can fill: connections, calls, requests,
/// answers, streams, writes.
const ACCOUNTS_BYTES: u64 = (32 + 32 + 32 + 64 + 64 + 16) << 20;
/// Keys of 1 MiB that a Range of all answers with.
const KEYS: usize = 20;
/// What the formula adds: data and history (twice over, for the watches' events), two answers in
/// the making, and what the allocator has not given back.
const BESIDE_BYTES: u64 = ((2 + 2 * 2) * KEYS as u64 + 128) << 20;
/// Connections of each attack, and streams of each.
const CONNECTIONS: usize = 6;
const STREAMS: usize = 600;
const ATTACK: Duration = Duration::from_secs(4);
/// Plain HTTP's paths.
const PATHS: [&str; 6] = [
    "/metrics", "/health", "/livez", "/readyz", "/version", "/none",
];

/// How a client does not let the server be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// No stream's window lets anything through.
    ZeroWindow,
    /// One byte.
    TinyWindow,
    /// Requests are not finished.
    NoEnd,
    /// A byte of each request now and then.
    Trickle,
}

impl Way {
    const ALL: [Way; 4] = [Way::ZeroWindow, Way::TinyWindow, Way::NoEnd, Way::Trickle];

    /// How the connection begins.
    fn hello(self) -> Vec<u8> {
        let window: u32 = match self {
            Way::ZeroWindow => 0,
            Way::TinyWindow => 1,
            Way::NoEnd | Way::Trickle => 65_535,
        };
        // INITIAL_WINDOW_SIZE
        let mut settings = vec![0, 4];
        settings.put_u32(window);
        [raw::PREFACE, &whole(raw::SETTINGS, 0, 0, &settings)].concat()
    }

    /// One call, and what may follow of it.
    fn call(self, stream: u32, headers: &[u8], message: &[u8]) -> (Vec<u8>, Option<u8>) {
        let headers = whole(raw::HEADERS, raw::END_HEADERS, stream, headers);
        let (data, more) = match self {
            Way::ZeroWindow | Way::TinyWindow => {
                let message = raw::message(message.len() as u32, message);
                (whole(raw::DATA, raw::END_STREAM, stream, &message), None)
            }
            Way::NoEnd => {
                // All of them fit into the connection's window.
                let part = raw::message(1 << 20, &[b'n'; 4000]);
                (whole(raw::DATA, 0, stream, &part), None)
            }
            Way::Trickle => (whole(raw::DATA, 0, stream, &[0, 0]), Some(0)),
        };
        ([headers, data].concat(), more)
    }
}

/// A request of a method that asks for much.
fn message(method: &str) -> Vec<u8> {
    let range = pb::RangeRequest {
        key: b"large/".to_vec().into(),
        range_end: b"large0".to_vec().into(),
        ..Default::default()
    };
    match method.rsplit('/').next() {
        Some("Range" | "RangeStream") => range.encode_to_vec(),
        Some("Put") => pb::PutRequest {
            key: b"small".to_vec().into(),
            prev_kv: true,
            ..Default::default()
        }
        .encode_to_vec(),
        Some("Watch") if method.contains("etcdserverpb") => pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: b"large/".to_vec().into(),
                range_end: b"large0".to_vec().into(),
                start_revision: 1,
                ..Default::default()
            })),
        }
        .encode_to_vec(),
        _ => Vec::new(),
    }
}

/// Headers of a GET, in HPACK without compression.
fn get_headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(":path", path), (":authority", "localhost")] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What is asked: every method, or every path.
fn asked(plain: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    match plain {
        true => PATHS
            .iter()
            .map(|path| (get_headers(path), Vec::new()))
            .collect(),
        false => METHODS
            .iter()
            // It ends what others would hold.
            .filter(|method| !method.ends_with("Compact"))
            .map(|method| (raw::call_headers(method), message(method)))
            .collect(),
    }
}

/// One client: asks, and reads no more than the frames' heads make it.
async fn client(port: u16, way: Way, plain: bool) -> Result<()> {
    let connection = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut from, mut to) = connection.into_split();
    let asked = asked(plain);
    let ask = async {
        let mut trickling = Vec::new();
        let mut bytes = way.hello();
        for n in 0..STREAMS {
            let stream = 1 + 2 * n as u32;
            let (headers, message) = &asked[n % asked.len()];
            let (call, more) = way.call(stream, headers, message);
            bytes.extend(call);
            trickling.extend(more.map(|byte| whole(raw::DATA, 0, stream, &[byte])));
            if bytes.len() > 32_000 {
                to.write_all(&bytes).await?;
                bytes.clear();
            }
        }
        to.write_all(&bytes).await?;
        loop {
            for byte in &trickling {
                to.write_all(byte).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        #[expect(unreachable_code, reason = "it names the error's type")]
        Ok::<(), std::io::Error>(())
    };
    let drain = async {
        let mut buffer = vec![0; 1 << 16];
        while from.read(&mut buffer).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // The server may end it: what it thinks of it is not our business.
    let both = async { tokio::join!(ask, drain) };
    drop(tokio::time::timeout(ATTACK, both).await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_within_its_formula() {
    let dir = tempfile::tempdir().unwrap();
    let result = memory(dir.path()).await;
    conclude(dir, result);
}

async fn memory(dir: &Path) -> Result<()> {
    let mut node = Node::new("orlop", dir, &[])?;
    let limit = MEMORY_BYTES.to_string();
    node.env.push(("ORLOP_MEMORY_BYTES".to_owned(), limit));
    node.run().await?;
    let channel = node.channel()?;
    put_all(&channel, KEYS, |n| pb::PutRequest {
        key: format!("large/{n}").into_bytes().into(),
        value: vec![b'v'; 1 << 20].into(),
        ..Default::default()
    })
    .await?;
    let ports = [("clients", node.port()), ("metrics", node.metrics_port())];
    for (listener, port) in ports {
        for plain in [false, true] {
            // gRPC means nothing to a listener of plain HTTP.
            if listener == "metrics" && !plain {
                continue;
            }
            for way in Way::ALL {
                let what = if plain { "paths" } else { "methods" };
                let name = format!("{way:?}, all {what}, {listener}");
                let bound = ACCOUNTS_BYTES + BESIDE_BYTES;
                survives_with(&mut node, &name, bound, async move {
                    let mut clients = tokio::task::JoinSet::new();
                    for _ in 0..CONNECTIONS {
                        clients.spawn(async move {
                            client(port, way, plain).await.map_err(|e| e.to_string())
                        });
                    }
                    let mut served = 0;
                    while let Some(done) = clients.join_next().await {
                        served += usize::from(matches!(done, Ok(Ok(()))));
                    }
                    Ok(format!("{served} connections of {STREAMS} streams"))
                })
                .await?;
            }
        }
    }
    settled(&node).await?;
    node.stop().map(drop)
}

/// When they are gone, the accounts say so.
async fn settled(node: &Node) -> Result<()> {
    let mut held = 0.0;
    for _ in 0..100 {
        let metrics = node.metrics().await?;
        held = metrics.sum("orlop_ledger_bytes", &[]);
        // The scrape's own connection, and the good client's.
        if held < 1e6 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure(false, || format!("{held} bytes are still held"))
}
