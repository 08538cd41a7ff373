//! Listeners and connections, from accept to drain.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use wire::ServerTls;

use crate::body::Body;
use crate::entry::{self, From};
use crate::router::Router;
use crate::{Error, owner, peers};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
/// After an accept that failed (no files left) nothing is accepted for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a request's head, and headers in it.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
/// Requests under way on one connection of a client, and of a router.
const STREAMS_MAX: u32 = 250;
const PEER_STREAMS_MAX: u32 = 10_000;
/// Bytes under way on a stream of HTTP/2, and on a client's connection.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
/// Streams that a client may begin and reset before it is shut out.
const RESETS_MAX: usize = 50;
/// How long a connection that was told to end may take where nothing is under way on it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Phases of a router, which go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It serves.
    Serving,
    /// It accepts nothing; what is under way ends.
    Draining,
    /// It is over: what is left is broken off.
    Over,
}

/// Listens.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let make = || {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    make().map_err(|source| Error::Listen { address, source })
}

/// Whose connections a listener takes.
#[derive(Clone)]
pub(crate) enum Door {
    /// Clients'.
    Clients(Option<ServerTls>),
    /// Other routers'.
    Routers(ServerTls),
}

/// What happens on a connection.
struct Activity {
    began: Instant,
    /// Requests under way.
    now: AtomicU32,
    /// Microseconds after `began` when the last one ended, and whether there was one: 0 if not.
    last_us: AtomicU64,
}

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            now: AtomicU32::new(0),
            last_us: AtomicU64::new(0),
        })
    }

    fn request(self: &Arc<Self>) -> UnderWay {
        self.now.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Whether nothing has been under way for longer than it may.
    fn is_idle(&self, head: Duration, idle: Duration) -> bool {
        if self.now.load(Ordering::Relaxed) > 0 {
            return false;
        }
        match self.last_us.load(Ordering::Relaxed) {
            0 => self.began.elapsed() > head,
            last => self.began.elapsed() > Duration::from_micros(last) + idle,
        }
    }
}

/// Counts a request on its connection, until its answer was given away.
struct UnderWay(Arc<Activity>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now_us = owner::micros(self.0.began.elapsed()).max(1);
        self.0.last_us.store(now_us, Ordering::Relaxed);
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until the drain, then waits for the connections to end.
pub(crate) async fn run(
    router: Arc<Router>,
    listener: TcpListener,
    door: Door,
    mut phase: watch::Receiver<Phase>,
) {
    let permits = Arc::new(Semaphore::new(router.limits.connections));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase >= Phase::Draining) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            router
                .counts
                .connections_refused
                .fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (router, door, phase) = (router.clone(), door.clone(), phase.clone());
        connections.spawn(async move {
            router.counts.connections.fetch_add(1, Ordering::Relaxed);
            connection(&router, stream, from, door, phase).await;
            router.counts.connections.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
    drop(listener);
    let over = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Over).await;
    };
    tokio::pin!(over);
    loop {
        tokio::select! {
            joined = connections.join_next() => if joined.is_none() { return },
            () = &mut over => break,
        }
    }
    connections.shutdown().await;
}

async fn connection(
    router: &Arc<Router>,
    stream: TcpStream,
    from: SocketAddr,
    door: Door,
    phase: watch::Receiver<Phase>,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match door {
        Door::Clients(None) => {
            clients(
                router,
                stream,
                From {
                    address: from,
                    tls: false,
                },
                phase,
            )
            .await
        }
        Door::Clients(Some(tls)) => {
            if let Some(stream) = shake_hands(router, &tls, stream, from).await {
                clients(
                    router,
                    stream,
                    From {
                        address: from,
                        tls: true,
                    },
                    phase,
                )
                .await;
            }
        }
        Door::Routers(tls) => {
            if let Some(stream) = shake_hands(router, &tls, stream, from).await {
                routers(router, stream, phase).await;
            }
        }
    }
}

async fn shake_hands(
    router: &Router,
    tls: &ServerTls,
    stream: TcpStream,
    from: SocketAddr,
) -> Option<impl AsyncRead + AsyncWrite + Unpin + Send + 'static + use<>> {
    let shaken = tokio::time::timeout(router.limits.head_timeout, tls.accept(stream)).await;
    match shaken {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(client = %from, %error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

async fn clients<S>(router: &Arc<Router>, stream: S, from: From, phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(router.limits.head_timeout.max(router.limits.idle_timeout))
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let (served, counted) = (router.clone(), activity.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, under_way) = (served.clone(), counted.request());
        async move {
            let answer = entry::request(router, request, from, Box::new(under_way)).await;
            Ok::<Response<Body>, Infallible>(answer)
        }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let end = end(router, &activity, phase);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = end => connection.as_mut().graceful_shutdown(),
    }
    finish(router, &activity, connection).await;
}

async fn routers<S>(router: &Arc<Router>, stream: S, phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::new();
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(PEER_STREAMS_MAX)
        .initial_stream_window_size(peers::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(peers::CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(peers::STREAM_WINDOW_BYTES as usize)
        .max_header_list_size(peers::HEAD_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .enable_connect_protocol();
    let (served, counted) = (router.clone(), activity.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, under_way) = (served.clone(), counted.request());
        async move {
            let answer = owner::peer_request(router, request, Box::new(under_way)).await;
            Ok::<Response<Body>, Infallible>(answer)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let end = end(router, &activity, phase);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = end => connection.as_mut().graceful_shutdown(),
    }
    finish(router, &activity, connection).await;
}

/// Until a connection has to end: the router drains, or nothing is under way.
async fn end(router: &Router, activity: &Activity, mut phase: watch::Receiver<Phase>) {
    let (head, idle) = (router.limits.head_timeout, router.limits.idle_timeout);
    let idle_for_long = async {
        let mut look = tokio::time::interval(head.min(idle).min(Duration::from_secs(5)) / 2);
        loop {
            look.tick().await;
            if activity.is_idle(head, idle) {
                return;
            }
        }
    };
    tokio::select! {
        _ = phase.wait_for(|phase| *phase >= Phase::Draining) => {}
        () = idle_for_long => {}
    }
}

/// What is under way ends; a client that does nothing is not waited for.
async fn finish<E>(
    router: &Router,
    activity: &Activity,
    connection: impl Future<Output = Result<(), E>>,
) {
    let patience = CLOSE_TIMEOUT.min(router.limits.head_timeout);
    let mut connection = std::pin::pin!(connection);
    loop {
        match tokio::time::timeout(patience, connection.as_mut()).await {
            Ok(_) => return,
            Err(_) if activity.is_idle(patience, patience) => return,
            Err(_) => {}
        }
    }
}
