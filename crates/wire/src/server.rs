//! The server as a whole: the acceptor's thread, its workers, and their end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ledger::Account;
use socket2::{SockRef, TcpKeepalive};
use telemetry::Throttle;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::WorkerId;
use crate::config::Config;
use crate::conn::{Accepted, AcceptedSocket, ListenerShared};
use crate::error::Error;
use crate::files;
use crate::handler::{Handler, Method};
use crate::listener::{BoundListener, BoundSocket, ListenerId, Pool};
use crate::memory::CONNECTION_BYTES;
use crate::service::Routes;
use crate::worker::{self, Order, WorkerHandle};

/// How long the acceptor rests when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// As etcd's listeners have it: a peer that is gone is found within minutes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Connections of a listener that serves plain HTTP only: metrics, probes.
const HTTP_CONNECTIONS: usize = 512;

/// The same warning is logged this often at most.
pub(crate) const LINE_EVERY: Duration = Duration::from_secs(1);

/// A running server. Dropping it ends it without grace.
pub struct Server {
    workers: Arc<[WorkerHandle]>,
    threads: Vec<JoinHandle<()>>,
    acceptor: Option<Acceptor>,
    urls: Vec<String>,
    counts: Counts,
}

/// Numbers of connections, readable from any thread.
#[derive(Clone)]
pub struct Counts {
    workers: Arc<[WorkerHandle]>,
    refused: Arc<AtomicU64>,
}

impl Counts {
    /// Open connections.
    pub fn open(&self) -> usize {
        open_connections(&self.workers)
    }

    /// Connections closed at once because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts")
            .field("open", &self.open())
            .field("refused", &self.refused())
            .finish()
    }
}

struct Acceptor {
    /// Dropped to stop it.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts the workers and begins to accept.
    ///
    /// `factory` makes each worker's handler, on that worker's thread, inside its runtime: it may
    /// call `tokio::task::spawn_local`. Errors: settings that cannot work, or no thread to be had.
    pub fn start<H: Handler>(
        listeners: Vec<BoundListener>,
        config: Config,
        methods: &'static [Method],
        factory: impl Fn(WorkerId) -> H + Send + Sync + 'static,
    ) -> Result<Server, Error> {
        config.check()?;
        let max_connections = max_connections(&config);
        let count = config.workers;
        let config = Arc::new(config);
        let routes = Arc::new(Routes::new(methods));
        let factory: Arc<dyn Fn(WorkerId) -> H + Send + Sync> = Arc::new(factory);
        let mut workers = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for id in 0..count {
            let (handle, thread) = worker::spawn(
                id,
                Arc::clone(&config),
                Arc::clone(&routes),
                Arc::clone(&factory),
            )
            .map_err(Error::Worker)?;
            workers.push(handle);
            threads.push(thread);
        }
        let workers: Arc<[WorkerHandle]> = workers.into();
        let urls = listeners.iter().map(BoundListener::url).collect();
        let counts = Counts {
            workers: Arc::clone(&workers),
            refused: Arc::default(),
        };
        let acceptor =
            start_acceptor(listeners, counts.clone(), max_connections).map_err(Error::Worker)?;
        Ok(Server {
            workers,
            threads,
            acceptor: Some(acceptor),
            urls,
            counts,
        })
    }

    /// Where it listens, as URLs.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// A handle on the numbers of connections, for metrics.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// Stops: no new connections, the [`crate::Closing`] signal to handlers, GOAWAY to clients;
    /// then waits until all connections have ended, at most `grace`, and drops the rest.
    ///
    /// Blocks the calling thread, which must not be a worker's.
    pub fn shutdown(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(Acceptor { stop, thread }) = self.acceptor.take() {
            drop(stop);
            // A panic was printed; there is nothing to add.
            let _ = thread.join();
        }
        let drop_at = Instant::now() + grace;
        for worker in self.workers.iter() {
            // One that is gone needs no order.
            let _ = worker.orders.send(Order::Close(drop_at));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

fn open_connections(workers: &[WorkerHandle]) -> usize {
    workers
        .iter()
        .map(|worker| worker.connections.load(Ordering::Relaxed))
        .sum()
}

/// Accepts on a thread of its own, so that a busy worker does not keep new clients waiting.
fn start_acceptor(
    listeners: Vec<BoundListener>,
    counts: Counts,
    max_connections: usize,
) -> std::io::Result<Acceptor> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let run = move || {
        runtime.block_on(async {
            let of_grpc = Pool::new(max_connections);
            for (id, listener) in listeners.into_iter().enumerate() {
                let pool = match listener.serves.grpc {
                    true => Arc::clone(&of_grpc),
                    false => Pool::new(max_connections.min(HTTP_CONNECTIONS)),
                };
                tokio::spawn(accept_all(ListenerId(id), listener, counts.clone(), pool));
            }
            // Ends when the server drops its side.
            let _ = stopped.await;
        });
    };
    let thread = threads::spawn_vital("wire-accept", run)?;
    Ok(Acceptor { stop, thread })
}

/// What was asked for, within what the limits on open files and on memory allow.
fn max_connections(config: &Config) -> usize {
    let memory = config.ledger.limit_bytes(Account::Connections) / CONNECTION_BYTES;
    let files = files::raise_limit();
    let by_files = files.map_or(usize::MAX, files::for_connections);
    let most = config.max_connections.min(memory).min(by_files).max(1);
    if most < config.max_connections {
        tracing::warn!(
            asked = config.max_connections as u64,
            "max-connections" = most as u64,
            "open-files-limit" = files.unwrap_or(u64::MAX),
            "fewer connections than asked for: raise the limit on open files (ulimit -n, \
             LimitNOFILE=), or the memory, for more"
        );
    }
    most
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    async fn accept(&self) -> std::io::Result<AcceptedSocket> {
        match self {
            Listening::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                socket.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(TCP_KEEPALIVE)
                    .with_interval(TCP_KEEPALIVE);
                SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
                Ok(AcceptedSocket::Tcp(socket.into_std()?, address))
            }
            Listening::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                Ok(AcceptedSocket::Unix(socket.into_std()?))
            }
        }
    }
}

async fn accept_all(id: ListenerId, listener: BoundListener, counts: Counts, pool: Arc<Pool>) {
    let workers = &counts.workers;
    let url = listener.url();
    let shared = Arc::new(ListenerShared {
        id,
        url: url.clone(),
        tls: listener.tls.clone(),
        serves: listener.serves,
    });
    // `listener` stays: its drop removes a Unix socket's file.
    let listening = match &listener.socket {
        BoundSocket::Tcp(socket) => socket
            .try_clone()
            .and_then(TcpListener::from_std)
            .map(Listening::Tcp),
        BoundSocket::Unix(socket) => socket
            .try_clone()
            .and_then(UnixListener::from_std)
            .map(Listening::Unix),
    };
    let listening = match listening {
        Ok(listening) => listening,
        Err(error) => {
            tracing::error!(listener = %url, %error, "cannot accept connections");
            return;
        }
    };
    let (failures, refusals) = (Throttle::new(LINE_EVERY), Throttle::new(LINE_EVERY));
    loop {
        let socket = match listening.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                if let Some(suppressed) = failures.allow() {
                    tracing::warn!(
                        listener = %url, %error, suppressed,
                        "cannot accept a connection; if files ran out, raise the limit (ulimit -n)"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = pool.take() else {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            if let Some(suppressed) = refusals.allow() {
                tracing::warn!(
                    listener = %url, remote_addr = %socket.remote(),
                    max_connections = pool.limit, suppressed,
                    "connection refused: the limit on connections is reached"
                );
            }
            continue;
        };
        let least = workers
            .iter()
            .min_by_key(|worker| worker.connections.load(Ordering::Relaxed));
        if let Some(worker) = least {
            worker.connections.fetch_add(1, Ordering::Relaxed);
            let order = Order::Serve(Accepted {
                socket,
                listener: Arc::clone(&shared),
                place,
            });
            if worker.orders.send(order).is_err() {
                worker.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
