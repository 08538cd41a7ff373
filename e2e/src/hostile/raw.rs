//! Connections that speak HTTP/2, or do not, as no client should.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::differential::rng::Rng;

/// What an HTTP/2 connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types of RFC 9113.
pub const DATA: u8 = 0;
/// Headers.
pub const HEADERS: u8 = 1;
/// Reset of a stream.
pub const RST_STREAM: u8 = 3;
/// Settings.
pub const SETTINGS: u8 = 4;
/// Ping.
pub const PING: u8 = 6;
/// Window update.
pub const WINDOW_UPDATE: u8 = 8;
/// More of a stream's headers.
pub const CONTINUATION: u8 = 9;
/// The flag that ends a stream.
pub const END_STREAM: u8 = 1;
/// The flag that ends headers.
pub const END_HEADERS: u8 = 4;

/// A frame, whose header may claim another length than the payload has.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, claimed: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![(claimed >> 16) as u8, (claimed >> 8) as u8, claimed as u8];
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A frame that is as long as it says.
#[must_use]
pub fn whole(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(kind, flags, stream, payload.len(), payload)
}

/// The start of a connection: preface and empty settings.
#[must_use]
pub fn hello() -> Vec<u8> {
    [PREFACE, &whole(SETTINGS, 0, 0, b"")].concat()
}

/// Headers of a gRPC call to `path`, in HPACK without compression.
#[must_use]
pub fn call_headers(path: &str) -> Vec<u8> {
    // Indexed: `:method POST` and `:scheme http`.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len().min(126) as u8);
            block.extend(&text.as_bytes()[..text.len().min(126)]);
        }
    }
    block
}

/// A gRPC message's bytes, whose prefix may claim another length than it has.
#[must_use]
pub fn message(claimed: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(claimed.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Connects to a loopback port, sends `bytes`, and returns the open connection. What the
/// server thinks of it is not our business.
///
/// # Errors
/// If there is no connection.
pub async fn open(port: u16, bytes: &[u8]) -> std::io::Result<TcpStream> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    drop(connection.write_all(bytes).await);
    Ok(connection)
}

/// Sends `bytes` again and again until the server ends the connection or `time` is over;
/// reads nothing. Returns the bytes sent.
pub async fn pour(connection: &mut TcpStream, bytes: &[u8], time: Duration) -> u64 {
    let mut sent = 0;
    let pouring = async {
        while connection.write_all(bytes).await.is_ok() {
            sent += bytes.len() as u64;
        }
    };
    drop(tokio::time::timeout(time, pouring).await);
    sent
}

/// The same, but reads and forgets what comes, so that the server is never held up.
pub async fn pour_and_drain(connection: TcpStream, bytes: &[u8], time: Duration) -> u64 {
    let mut sent = 0;
    let (mut from, mut to) = connection.into_split();
    let pouring = async {
        while to.write_all(bytes).await.is_ok() {
            sent += bytes.len() as u64;
        }
    };
    let draining = async {
        let mut buffer = vec![0; 1 << 16];
        while from.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    };
    let both = async { tokio::join!(pouring, draining) };
    drop(tokio::time::timeout(time, both).await);
    sent
}

/// Bytes without meaning.
#[must_use]
pub fn garbage(random: &mut Rng, most: usize) -> Vec<u8> {
    let count = 1 + random.below(most);
    (0..count).map(|_| random.bits() as u8).collect()
}
