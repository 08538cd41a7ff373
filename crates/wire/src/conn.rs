//! One connection: TLS, which protocol it speaks, and hyper's loop over it.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::Config;
use crate::handler::{Handler, Peer};
use crate::io::Io;
use crate::listener::Serves;
use crate::local::{Flag, WakerSet};
use crate::message::Budget;
use crate::pings::PingPolicy;
use crate::service::{Connection, WorkerState, serve};
use crate::tls::{ClientRefused, TlsSource};
use crate::unread::Unread;

/// How every HTTP/2 connection begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams that a client may have reset before we took them up. Go clients cancel many calls at
/// once; a rapid-reset attack goes far beyond.
const MAX_PENDING_RESETS: usize = 1_000;

/// Streams of one connection that we may reset for the client's errors before it is closed.
const MAX_LOCAL_RESETS: usize = 10_000;

/// An accepted connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: AcceptedSocket,
    pub(crate) listener: Arc<ListenerShared>,
}

#[derive(Debug)]
pub(crate) enum AcceptedSocket {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

/// What a connection must know of its listener.
#[derive(Debug)]
pub(crate) struct ListenerShared {
    pub(crate) url: String,
    pub(crate) tls: Option<Arc<TlsSource>>,
    pub(crate) serves: Serves,
}

/// Why a connection ended before it was served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejected {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the client sent no complete request for {0} s")]
    Silent(u64),
    #[error("TLS handshake took longer than {0} s")]
    SlowHandshake(u64),
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] ClientRefused),
    #[error("the client speaks TLS to a listener without it; use an http:// address")]
    TlsToPlain,
    #[error("the client speaks HTTP/1 to a listener that serves gRPC only")]
    Http1ToGrpc,
}

/// A connection's transport.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Transport for T {}

/// Serves one connection to its end.
pub(crate) async fn handle<H: Handler>(
    worker: Rc<WorkerState<H>>,
    accepted: Accepted,
) -> Result<(), Rejected> {
    if worker.closing.is_raised() {
        return Ok(());
    }
    let Accepted { socket, listener } = accepted;
    match socket {
        AcceptedSocket::Tcp(socket, address) => {
            let peer = Peer {
                address: address.to_string(),
                tls: None,
            };
            begin(worker, listener, TcpStream::from_std(socket)?, peer).await
        }
        AcceptedSocket::Unix(socket) => {
            let peer = Peer {
                address: "@".to_owned(),
                tls: None,
            };
            begin(worker, listener, UnixStream::from_std(socket)?, peer).await
        }
    }
}

async fn begin<H: Handler, S: Transport>(
    worker: Rc<WorkerState<H>>,
    listener: Arc<ListenerShared>,
    stream: S,
    peer: Peer,
) -> Result<(), Rejected> {
    let Some(tls) = &listener.tls else {
        return run(worker, &listener, stream, peer).await;
    };
    let limit = worker.config.handshake_timeout;
    let handshake = timeout(limit, tls.acceptor().accept(stream));
    let Some(shaken) = unless_closing(&worker.closing, handshake).await else {
        return Ok(());
    };
    let stream = shaken
        .map_err(|_| Rejected::SlowHandshake(limit.as_secs()))?
        .map_err(Rejected::Handshake)?;
    let tls = Some(tls.check_client(stream.get_ref().1.peer_certificates())?);
    run(worker, &listener, stream, Peer { tls, ..peer }).await
}

async fn run<H: Handler, S: Transport>(
    worker: Rc<WorkerState<H>>,
    listener: &ListenerShared,
    mut stream: S,
    peer: Peer,
) -> Result<(), Rejected> {
    let limit = worker.config.first_bytes_timeout;
    let detected = timeout(limit, detect(&mut stream, peer.tls.is_some()));
    let Some(detected) = unless_closing(&worker.closing, detected).await else {
        return Ok(());
    };
    let (lead, protocol) = detected.map_err(|_| Rejected::Silent(limit.as_secs()))??;
    let connection = Rc::new(Connection {
        peer: Rc::new(peer),
        serves: listener.serves,
        open_calls: Cell::new(0),
        partial_budget: Budget::new(worker.config.max_partial_bytes),
        unread: Unread::new(
            &worker.unread,
            worker.config.max_unread_bytes,
            worker.config.max_worker_unread_bytes,
        ),
        worker: Rc::clone(&worker),
    });
    let min_time = worker.config.keepalive_min_time;
    let judged = matches!(protocol, Protocol::Http2) && !min_time.is_zero();
    let io = Io::new(stream, lead, judged.then(|| PingPolicy::new(min_time)));
    let service = service_fn(|request| serve(&connection, request));
    match protocol {
        Protocol::Nothing => {}
        Protocol::Http2 => {
            let served =
                http2_builder(&worker.config).serve_connection(TokioIo::new(io.clone()), service);
            drive(&worker.closing, &io, served, |conn| {
                conn.graceful_shutdown()
            })
            .await;
        }
        Protocol::Http1 if !listener.serves.http => return Err(Rejected::Http1ToGrpc),
        Protocol::Http1 => {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limit)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(io.clone()), service);
            drive(&worker.closing, &io, served, |conn| {
                conn.graceful_shutdown()
            })
            .await;
        }
    }
    Ok(())
}

/// `None` if the worker closes first: a connection without a request need not be waited for.
async fn unless_closing<T>(closing: &Flag, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = closing.wait() => None,
    }
}

fn http2_builder(config: &Config) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .adaptive_window(false)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_concurrent_streams(config.max_concurrent_streams.min(max_streams(config)))
        .max_send_buf_size(config.max_send_buffer_bytes)
        .max_header_list_size(config.max_header_bytes)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_timeout(config.keepalive_timeout);
    if !config.keepalive_interval.is_zero() {
        builder.keep_alive_interval(config.keepalive_interval);
    }
    builder
}

/// A call ends with its answer, a stream when the client has read it or gone: of answers too
/// small to be counted as unread this bounds the number. Twice the calls, so that the limit on
/// those refuses first, with a reason.
fn max_streams(config: &Config) -> u32 {
    let twice = config.max_calls_per_connection.saturating_mul(2);
    u32::try_from(twice).unwrap_or(u32::MAX)
}

/// Runs a connection; once the worker closes, asks it to finish what is under way.
async fn drive<C, S: Transport>(closing: &Flag, io: &Io<S>, conn: C, shut: impl Fn(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut conn = pin!(conn);
    let mut registration = Registration {
        set: &closing.waiting,
        key: None,
    };
    let mut told = false;
    let ended = std::future::poll_fn(|cx| {
        io.begin_turn();
        if !told && closing.is_raised() {
            told = true;
            shut(conn.as_mut());
        }
        if registration.key.is_none() {
            // A task's waker stays the same: once is enough.
            registration.set.register(&mut registration.key, cx.waker());
        }
        let ended = conn.as_mut().poll(cx).map_err(|error| error.to_string());
        match io.poll_drain(cx) {
            Poll::Ready(Err(error)) if ended.is_pending() => Poll::Ready(Err(error.to_string())),
            _ => ended,
        }
    });
    if let Err(error) = ended.await {
        // Clients come and go; their broken connections are no event.
        tracing::debug!(%error, "connection ended");
    }
}

struct Registration<'a> {
    set: &'a WakerSet,
    key: Option<usize>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.set.remove(key);
        }
    }
}

/// Spawns hyper's futures as tasks of the worker: one a request.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

enum Protocol {
    Http1,
    Http2,
    /// The client left without a word, as port checks do.
    Nothing,
}

/// Reads just enough to tell HTTP/2 from HTTP/1.
async fn detect(
    stream: &mut (impl AsyncRead + Unpin),
    is_tls: bool,
) -> Result<(Vec<u8>, Protocol), Rejected> {
    let mut lead = Vec::with_capacity(PREFACE.len());
    loop {
        let mut buf = [0; PREFACE.len()];
        let missing = PREFACE.len() - lead.len();
        let read = stream.read(&mut buf[..missing]).await?;
        if read == 0 {
            return Ok((lead, Protocol::Nothing));
        }
        lead.extend_from_slice(&buf[..read]);
        if lead[0] == 0x16 && !is_tls {
            return Err(Rejected::TlsToPlain);
        }
        if !PREFACE.starts_with(&lead) {
            return Ok((lead, Protocol::Http1));
        }
        if lead.len() == PREFACE.len() {
            return Ok((lead, Protocol::Http2));
        }
    }
}

impl AcceptedSocket {
    /// The other end, for log lines.
    pub(crate) fn remote(&self) -> String {
        match self {
            AcceptedSocket::Tcp(_, address) => address.to_string(),
            AcceptedSocket::Unix(_) => "@".to_owned(),
        }
    }
}
