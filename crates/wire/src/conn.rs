//! One connection: TLS, which protocol it speaks, and hyper's loop over it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep, timeout};

use crate::config::Config;
use crate::half_open::HalfOpen;
use crate::handler::{Handler, Peer};
use crate::io::Io;
use crate::listener::{ListenerId, PoolPlace, Serves};
use crate::local::{Flag, WakerSet};
use crate::memory::ConnMemory;
use crate::pings::PingPolicy;
use crate::service::{Connection, WorkerState, serve};
use crate::tls::{ClientRefused, TlsSource};
use crate::turn;

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
    /// Its place among the listener's connections.
    pub(crate) place: PoolPlace,
}

#[derive(Debug)]
pub(crate) enum AcceptedSocket {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

/// What a connection must know of its listener.
#[derive(Debug)]
pub(crate) struct ListenerShared {
    pub(crate) id: ListenerId,
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
    #[error("TLS handshake: {}", crate::tls::of_handshake(.0))]
    Handshake(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] ClientRefused),
    #[error("the client speaks TLS to a listener without it; use an http:// address")]
    TlsToPlain,
    #[error("the client speaks HTTP/1 to a listener that serves gRPC only")]
    Http1ToGrpc,
    #[error("too many clients connect and send no request: this one waited longest")]
    Crowded,
}

impl Rejected {
    /// How many reasons there are.
    pub(crate) const REASONS: usize = 8;

    /// The reason's number, to throttle the log line of each apart.
    pub(crate) fn reason(&self) -> usize {
        match self {
            Rejected::Io(_) => 0,
            Rejected::Silent(_) => 1,
            Rejected::SlowHandshake(_) => 2,
            Rejected::Handshake(_) => 3,
            Rejected::Client(_) => 4,
            Rejected::TlsToPlain => 5,
            Rejected::Http1ToGrpc => 6,
            Rejected::Crowded => 7,
        }
    }
}

/// Why a connection is not waited for any more.
enum Given {
    /// Its worker closes, and it has no request.
    Closing,
    /// Newer ones need its place.
    Crowded,
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
    let Accepted {
        socket,
        listener,
        place,
    } = accepted;
    // Held until the connection ends.
    let _place = place;
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
    let half_open = worker.half_open.enter(listener.id);
    let Some(tls) = &listener.tls else {
        return run(worker, &listener, stream, peer, half_open).await;
    };
    let limit = worker.config.handshake_timeout;
    let handshake = timeout(limit, tls.acceptor().accept(stream));
    let shaken = match unless_given_up(&worker.closing, &half_open, handshake).await {
        Ok(shaken) => shaken,
        Err(Given::Closing) => return Ok(()),
        Err(Given::Crowded) => return Err(Rejected::Crowded),
    };
    let stream = shaken
        .map_err(|_| Rejected::SlowHandshake(limit.as_secs()))?
        .map_err(Rejected::Handshake)?;
    let tls = Some(tls.check_client(stream.get_ref().1.peer_certificates())?);
    run(worker, &listener, stream, Peer { tls, ..peer }, half_open).await
}

async fn run<H: Handler, S: Transport>(
    worker: Rc<WorkerState<H>>,
    listener: &ListenerShared,
    mut stream: S,
    peer: Peer,
    half_open: HalfOpen,
) -> Result<(), Rejected> {
    let limit = worker.config.first_bytes_timeout;
    let detected = timeout(limit, detect(&mut stream, peer.tls.is_some()));
    let detected = match unless_given_up(&worker.closing, &half_open, detected).await {
        Ok(detected) => detected,
        Err(Given::Closing) => return Ok(()),
        Err(Given::Crowded) => return Err(Rejected::Crowded),
    };
    drop(half_open);
    let (lead, protocol) = detected.map_err(|_| Rejected::Silent(limit.as_secs()))??;
    let memory = worker.memory.connection(&worker.config, &peer.address);
    let connection = Rc::new(Connection {
        peer: Rc::new(peer),
        serves: listener.serves,
        memory: Rc::clone(&memory),
        worker: Rc::clone(&worker),
    });
    let policy = || PingPolicy::new(worker.config.keepalive_min_time);
    let pings = matches!(protocol, Protocol::Http2).then(policy);
    let io = Io::new(stream, lead, pings, Rc::clone(&memory.written_bytes));
    let service = service_fn(|request| serve(&connection, request));
    let driver = Driver {
        closing: &worker.closing,
        memory: &memory,
        peer: &connection.peer,
        io: &io,
        unread_timeout: None,
    };
    match protocol {
        Protocol::Nothing => {}
        Protocol::Http2 => {
            let served =
                http2_builder(&worker.config).serve_connection(TokioIo::new(io.clone()), service);
            driver.drive(served, |conn| conn.graceful_shutdown()).await;
        }
        Protocol::Http1 if !listener.serves.http => return Err(Rejected::Http1ToGrpc),
        Protocol::Http1 => {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limit)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(io.clone()), service);
            let driver = Driver {
                unread_timeout: Some(worker.config.unread_timeout),
                ..driver
            };
            driver.drive(served, |conn| conn.graceful_shutdown()).await;
        }
    }
    Ok(())
}

/// Waits for a connection's first request, unless there is a reason to give it up.
async fn unless_given_up<T>(
    closing: &Flag,
    half_open: &HalfOpen,
    future: impl Future<Output = T>,
) -> Result<T, Given> {
    tokio::select! {
        biased;
        value = future => Ok(value),
        () = closing.wait() => Err(Given::Closing),
        () = half_open.given_up() => Err(Given::Crowded),
    }
}

fn http2_builder(config: &Config) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    let (interval, timeout) = config.keepalive();
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .adaptive_window(false)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_concurrent_streams(config.announced_streams())
        .max_send_buf_size(config.max_send_buffer_bytes)
        .max_header_list_size(config.max_header_bytes)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_interval(interval)
        .keep_alive_timeout(timeout);
    builder
}

/// What it takes to run a connection.
struct Driver<'a, S> {
    closing: &'a Flag,
    memory: &'a ConnMemory,
    peer: &'a Rc<Peer>,
    io: &'a Io<S>,
    /// How long the client may read nothing of what waits for it, if that is limited.
    unread_timeout: Option<Duration>,
}

impl<S: Transport> Driver<'_, S> {
    /// Runs a connection; once the worker closes, asks it to finish what is under way.
    async fn drive<C>(self, conn: C, shut: impl Fn(Pin<&mut C>))
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut conn = pin!(conn);
        let mut closing = Registration::new(&self.closing.waiting);
        let mut end = Registration::new(&self.memory.end.waiting);
        let mut told = false;
        let mut stalled = None;
        let ended = std::future::poll_fn(|cx| {
            self.io.begin_turn();
            if !told && self.closing.is_raised() {
                told = true;
                shut(conn.as_mut());
            }
            closing.register(cx);
            end.register(cx);
            let ended = match self.memory.end.is_raised() {
                true => Poll::Ready(Err("its memory is needed".to_owned())),
                false => conn.as_mut().poll(cx).map_err(|error| error.to_string()),
            };
            let drained = self.io.poll_drain(cx);
            let ended = match drained {
                Poll::Ready(Err(error)) if ended.is_pending() => {
                    Poll::Ready(Err(error.to_string()))
                }
                Poll::Pending if ended.is_pending() => self.poll_stalled(&mut stalled, cx),
                Poll::Pending | Poll::Ready(_) => {
                    stalled = None;
                    ended
                }
            };
            turn::ended(|| turn::Who::connection("connection", self.peer));
            ended
        });
        if let Err(error) = ended.await {
            // Clients come and go; their broken connections are no event.
            tracing::debug!(%error, "connection ended");
        }
    }

    /// The end of a connection whose socket has taken nothing for too long.
    fn poll_stalled(
        &self,
        stalled: &mut Option<Stalled>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), String>> {
        let Some(limit) = self.unread_timeout else {
            return Poll::Pending;
        };
        let written_bytes = self.memory.written_bytes.get();
        let stalled = match stalled {
            Some(stalled) if stalled.written_bytes == written_bytes => stalled,
            _ => stalled.insert(Stalled {
                written_bytes,
                timer: Box::pin(sleep(limit)),
            }),
        };
        let timer = stalled.timer.as_mut();
        timer
            .poll(cx)
            .map(|()| Err("the client does not read".to_owned()))
    }
}

/// A socket that takes nothing.
struct Stalled {
    /// What it had taken before.
    written_bytes: u64,
    timer: Pin<Box<Sleep>>,
}

struct Registration<'a> {
    set: &'a WakerSet,
    key: Option<usize>,
}

impl<'a> Registration<'a> {
    fn new(set: &'a WakerSet) -> Self {
        Registration { set, key: None }
    }

    /// A task's waker stays the same: once is enough.
    fn register(&mut self, cx: &Context<'_>) {
        if self.key.is_none() {
            self.set.register(&mut self.key, cx.waker());
        }
    }
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
