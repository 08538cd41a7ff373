//! The beginning of an HTTP proxy's connection: the CONNECT request that names a peer.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest request head.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// To a client whose peer is reached.
pub(crate) const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// To one that names a peer that there is not.
pub(crate) const UNKNOWN: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";

/// Reads a request's head and returns the authority (`HOST:PORT`) that it wants to be connected
/// to.
///
/// # Errors
/// If it is no such request, or too long, or has bytes behind it: a client may send nothing
/// before it has the answer.
pub(crate) async fn authority(from: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::with_capacity(512);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX || from.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    parse(&head).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(head: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(head).ok()?;
    let mut words = text.lines().next()?.split(' ');
    let (method, authority, version) = (words.next()?, words.next()?, words.next()?);
    let good = method == "CONNECT" && version.starts_with("HTTP/1.") && words.next().is_none();
    good.then(|| authority.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Option<String> {
        authority(&mut &bytes[..]).await.ok()
    }

    #[tokio::test]
    async fn a_connect_request_names_its_peer() {
        let request = b"CONNECT 192.0.2.2:2380 HTTP/1.1\r\nHost: 192.0.2.2:2380\r\nA: b\r\n\r\n";
        assert_eq!(read(request).await.as_deref(), Some("192.0.2.2:2380"));
    }

    #[tokio::test]
    async fn anything_else_is_none() {
        let long = [b"CONNECT a:1 HTTP/1.1\r\n".to_vec(), vec![b'x'; 20_000]].concat();
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"CONNECT a:1\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1 more\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n\r\nbytes",
            b"\xff\xfe\r\n\r\n",
            b"",
            &long,
        ] {
            assert_eq!(read(bad).await, None, "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
