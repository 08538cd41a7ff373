//! What a user of this crate implements, and what its calls carry.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use crate::grpc::{Code, Frame, Status};
use crate::local::{Closing, Flag};
use crate::memory::Unread;
use crate::stream::{Inbound, Outbound};

/// A boxed future that stays on its thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// The shape of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response: the fast path.
    Unary,
    /// Either side may send many messages.
    Stream,
}

/// One method that a server offers. The table of all methods is given to [`crate::Server::start`].
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// Full service name, such as `etcdserverpb.KV`.
    pub service: &'static str,
    /// Method name, such as `Put`.
    pub name: &'static str,
    /// Its shape.
    pub kind: Kind,
    /// The handler's own number for it, to dispatch and count by.
    pub id: u16,
}

/// Handles the requests of one worker.
///
/// There is one object a worker, made on the worker's thread, so it may hold `Rc` and `RefCell`;
/// what workers share, it holds in an `Arc`. All methods run on that thread and must not block it:
/// every connection of the worker waits meanwhile.
pub trait Handler: 'static {
    /// The request headers that the handler looks at. A call that has to wait keeps only these;
    /// others may be gone when the handler gets it.
    const HEADERS: &'static [&'static str] = &[];

    /// Answers a unary call.
    ///
    /// `message` is complete but not decoded, and usually a slice of a receive buffer that it keeps
    /// in memory: copy what is kept for long. A [`Reply::Later`] is dropped when its client goes
    /// away, and not before: a deadline that passes does not end it, since what it asked for may
    /// have been done.
    fn unary(self: &Rc<Self>, call: Call, message: Bytes) -> Reply;

    /// Serves a streaming call until it returns; its result ends the stream.
    ///
    /// The future runs as a task of its own and is dropped when the client resets the stream, goes
    /// away, or the call's deadline passes. Response headers leave with the first frame.
    fn stream(
        self: &Rc<Self>,
        call: Call,
        inbound: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>>;

    /// Answers an HTTP/1.1 or HTTP/2 request that is not gRPC.
    fn http(self: &Rc<Self>, request: HttpRequest) -> LocalFuture<http::Response<Bytes>>;

    /// Called after each turn of a task on the worker that took a tick of a coarse clock (some
    /// milliseconds) or more, for metrics: while one task has its turn, all others wait.
    fn turn_took(&self, took: Duration) {
        let _ = took;
    }

    /// Called at each [`Event`] of a call, for metrics. Must be cheap.
    fn observe(&self, method: &'static Method, event: Event) {
        let _ = (method, event);
    }
}

/// The answer to a unary call.
pub enum Reply {
    /// Known at once: the cheapest.
    Now(Result<Frame, Status>),
    /// Known when the future is ready.
    Later(LocalFuture<Result<Frame, Status>>),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Now(result) => f.debug_tuple("Now").field(result).finish(),
            Reply::Later(_) => f.write_str("Later"),
        }
    }
}

/// What happens in a call, as told to [`Handler::observe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The call's method is known; its first message may still be on its way.
    Started,
    /// A message arrived.
    Received {
        /// Its length in bytes, without the gRPC prefix, decompressed.
        bytes: usize,
    },
    /// A message was handed to the transport.
    Sent {
        /// Its length in bytes, without the gRPC prefix.
        bytes: usize,
    },
    /// The call ended; told once for every `Started`.
    Handled {
        /// How; [`Code::Canceled`] if the client went away first.
        code: Code,
        /// When the call started.
        started: Instant,
    },
}

/// One gRPC call.
#[derive(Debug)]
pub struct Call {
    /// Which method was called.
    pub method: &'static Method,
    /// The request's headers (gRPC metadata).
    pub headers: HeaderMap,
    /// Who calls.
    pub peer: Rc<Peer>,
    /// When the call's headers were handled.
    pub started: Instant,
    /// When the caller stops waiting, from `grpc-timeout`. The transport ends streams by it, and
    /// unary calls that no handler has.
    pub deadline: Option<Instant>,
    pub(crate) closing: Rc<Flag>,
    pub(crate) unread: Unread,
}

impl Call {
    /// Makes a call that lives for long small: its headers keep their receive buffer, and a client
    /// may send thousands. Only those with these names stay.
    pub(crate) fn settle(&mut self, names: &[&'static str]) {
        let mut kept = HeaderMap::new();
        for name in names {
            for value in self.headers.get_all(*name) {
                if let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes()) {
                    kept.append(*name, value);
                }
            }
        }
        self.headers = kept;
    }

    /// What the caller's connection has not read yet.
    pub fn unread(&self) -> Unread {
        self.unread.clone()
    }

    /// The shutdown signal of this worker.
    pub fn closing(&self) -> Closing {
        Closing(Rc::clone(&self.closing))
    }
}

/// A request that is not gRPC, its body complete and within the configured limit.
#[derive(Debug)]
pub struct HttpRequest {
    /// Method, path, headers and body.
    pub request: http::Request<Bytes>,
    /// Who asks.
    pub peer: Rc<Peer>,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `address:port`, or `@` for a Unix socket.
    pub address: String,
    /// What TLS tells about it; `None` on a plain connection.
    pub tls: Option<PeerTls>,
}

/// What TLS tells about a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// Common name of the verified client certificate, if there is one.
    pub common_name: Option<String>,
    /// That certificate (DER), where the listener keeps it
    /// ([`TlsConfig::keep_certificate`](crate::TlsConfig::keep_certificate)).
    pub certificate: Option<Bytes>,
}
