//! A light gRPC client: h2 without TLS, prost, nothing between.
//!
//! The client shares the machine with the server that it measures, so what it spends is taken
//! from the server. One [`Connection`] a TCP connection, for one thread.

use crate::error::Error;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, Uri, Version, header};
use prost::Message;
use tokio::net::TcpStream;

/// Larger than what a round has in flight, so that flow control never holds the server back.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// The longest message accepted.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const PREFIX_BYTES: usize = 5;

/// The methods that workloads call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Put,
    Range,
    Txn,
    Watch,
    Status,
}

impl Call {
    const ALL: [Call; 5] = [Call::Put, Call::Range, Call::Txn, Call::Watch, Call::Status];

    fn path(self) -> &'static str {
        match self {
            Call::Put => "/etcdserverpb.KV/Put",
            Call::Range => "/etcdserverpb.KV/Range",
            Call::Txn => "/etcdserverpb.KV/Txn",
            Call::Watch => "/etcdserverpb.Watch/Watch",
            Call::Status => "/etcdserverpb.Maintenance/Status",
        }
    }

    fn fails(self, reason: impl ToString) -> Error {
        Error::Call {
            method: self.path().into(),
            reason: reason.to_string(),
        }
    }
}

/// One HTTP/2 connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    uris: [Uri; Call::ALL.len()],
}

impl Connection {
    /// Connects to `authority` (host and port). Must run inside a `LocalSet`, which then
    /// drives the connection.
    pub(crate) async fn open(authority: &str) -> Result<Connection, Error> {
        let fails = |reason: String| Error::Connect {
            endpoint: authority.into(),
            reason,
        };
        let tcp = TcpStream::connect(authority)
            .await
            .map_err(|e| fails(e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| fails(e.to_string()))?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(tcp)
            .await
            .map_err(|e| fails(e.to_string()))?;
        // Errors reach every call on the connection.
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        let uri = |call: Call| {
            Uri::builder()
                .scheme("http")
                .authority(authority)
                .path_and_query(call.path())
                .build()
                .map_err(|e| fails(e.to_string()))
        };
        let uris = [
            uri(Call::Put)?,
            uri(Call::Range)?,
            uri(Call::Txn)?,
            uri(Call::Watch)?,
            uri(Call::Status)?,
        ];
        Ok(Connection { send, uris })
    }

    /// One request, one response.
    pub(crate) async fn unary<A: Message + Default>(
        &self,
        call: Call,
        request: &impl Message,
    ) -> Result<A, Error> {
        let (response, _) = self.start(call, frame(request), true).await?;
        let mut messages = Messages::new(call, response)?;
        let first = messages
            .next()
            .await?
            .ok_or_else(|| call.fails("an empty response"))?;
        if messages.next().await?.is_some() {
            return Err(call.fails("two responses to one request"));
        }
        A::decode(first).map_err(|e| call.fails(e))
    }

    /// Opens a stream with its first message. Keep the sending half: dropping it ends the call.
    pub(crate) async fn stream(
        &self,
        call: Call,
        first: &impl Message,
    ) -> Result<(SendStream<Bytes>, Messages), Error> {
        let (response, sender) = self.start(call, frame(first), false).await?;
        Ok((sender, Messages::new(call, response)?))
    }

    async fn start(
        &self,
        call: Call,
        body: Bytes,
        last: bool,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>), Error> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uris[call as usize].clone();
        let headers = request.headers_mut();
        headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/grpc"),
        );
        let mut send = self.send.clone().ready().await.map_err(|e| call.fails(e))?;
        let (response, mut stream) = send
            .send_request(request, false)
            .map_err(|e| call.fails(e))?;
        stream.send_data(body, last).map_err(|e| call.fails(e))?;
        let response = response.await.map_err(|e| call.fails(e))?;
        Ok((response, stream))
    }
}

/// Messages of one response.
pub(crate) struct Messages {
    call: Call,
    body: RecvStream,
    unread: Bytes,
}

impl Messages {
    fn new(call: Call, response: Response<RecvStream>) -> Result<Messages, Error> {
        if response.status() != http::StatusCode::OK {
            return Err(call.fails(format!("HTTP status {}", response.status())));
        }
        // A response without a body has its status in the headers.
        if response.headers().contains_key("grpc-status") {
            check_status(call, response.headers())?;
        }
        Ok(Messages {
            call,
            body: response.into_body(),
            unread: Bytes::new(),
        })
    }

    /// The next message; none after a good end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(message) = split(&mut self.unread).map_err(|e| self.call.fails(e))? {
                return Ok(Some(message));
            }
            let Some(data) = self.body.data().await else {
                let trailers = self.body.trailers().await.map_err(|e| self.call.fails(e))?;
                if let Some(trailers) = trailers {
                    check_status(self.call, &trailers)?;
                }
                return Ok(None);
            };
            let data = data.map_err(|e| self.call.fails(e))?;
            let _ = self.body.flow_control().release_capacity(data.len());
            if self.unread.is_empty() {
                self.unread = data;
            } else {
                let mut joined = BytesMut::with_capacity(self.unread.len() + data.len());
                joined.put_slice(&self.unread);
                joined.put_slice(&data);
                self.unread = joined.freeze();
            }
        }
    }
}

fn check_status(call: Call, headers: &HeaderMap) -> Result<(), Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        code => Err(call.fails(format!(
            "gRPC status {}: {}",
            code.unwrap_or("missing"),
            text("grpc-message").unwrap_or_default()
        ))),
    }
}

/// A message with gRPC's prefix: not compressed, its length.
fn frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + len);
    out.put_u8(0);
    out.put_u32(len as u32);
    message.encode_raw(&mut out);
    out.freeze()
}

/// Takes the first message off `unread`, if it is all there.
fn split(unread: &mut Bytes) -> Result<Option<Bytes>, &'static str> {
    if unread.len() < PREFIX_BYTES {
        return Ok(None);
    }
    let len = (&unread[1..PREFIX_BYTES]).get_u32() as usize;
    if unread[0] != 0 {
        return Err("a compressed message that nobody asked for");
    }
    if len > MESSAGE_BYTES_MAX {
        return Err("a message of more than 64 MiB");
    }
    if unread.len() < PREFIX_BYTES + len {
        return Ok(None);
    }
    unread.advance(PREFIX_BYTES);
    Ok(Some(unread.split_to(len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_api::etcdserverpb::PutRequest;

    #[test]
    fn messages_are_found_whatever_the_cuts() {
        let put = PutRequest {
            key: Bytes::from_static(b"key"),
            ..Default::default()
        };
        let one = frame(&put);
        let two = [&one[..], &one[..]].concat();
        for cut in 0..=two.len() {
            let mut unread = Bytes::copy_from_slice(&two[..cut]);
            let mut found = 0;
            while let Some(message) = split(&mut unread).unwrap() {
                assert_eq!(PutRequest::decode(message).unwrap(), put);
                found += 1;
            }
            assert_eq!(found, cut / one.len());
            assert_eq!(unread.len(), cut % one.len());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(split(&mut Bytes::from_static(b"\x01\0\0\0\x01a")).is_err());
        assert!(split(&mut Bytes::from_static(b"\0\xff\xff\xff\xff")).is_err());
    }

    #[test]
    fn every_call_has_its_own_place() {
        for (place, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, place);
        }
    }
}
