//! The proxy as a whole: its acceptor, its relaying threads, and its end.

use std::fmt;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::{ProxyEnd, ProxyMetrics, ProxyRefusal};
use telemetry::Throttle;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use upstream::View;

use crate::book::{Accepted, Book, Suspect, Waiting};
use crate::connection::{Connection, Ended, header};
use crate::error::Error;
use crate::keeper::keep;
use crate::life::End;
use crate::route::{Route, Service, why_nobody_leads};
use crate::settings::Settings;
use crate::socket::{Liveness, TcpDial};

/// How long the acceptor rests when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The same warning is logged this often at most.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Sockets of a connection: the client's and the member's.
const FILES_PER_CONNECTION: usize = 2;
/// More than a connection's last bytes may linger.
const LAST_WORDS: Duration = Duration::from_millis(1500);

/// A running proxy. Dropping it ends it without grace.
pub struct Proxy {
    shared: Arc<Shared>,
    service: watch::Sender<Service>,
    acceptor: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    workers: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// What threads of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) listens: Vec<SocketAddr>,
    pub(crate) book: Arc<Book>,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) service: watch::Receiver<Service>,
    routes: watch::Receiver<Arc<Route>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("listens", &self.shared.listens)
            .finish_non_exhaustive()
    }
}

/// An accepted connection on its way to its thread.
struct Arrival {
    socket: StdTcpStream,
    client: SocketAddr,
    place: Accepted,
    waiting: Waiting,
}

impl Proxy {
    /// Begins to accept on `listeners`, each of which is a `host:port`. `views` says who leads;
    /// `suspect` is called for members that a connection to failed.
    ///
    /// # Errors
    /// Settings that cannot work, an address that cannot be listened on, or no thread.
    pub fn start(
        mut settings: Settings,
        listeners: &[String],
        views: watch::Receiver<Arc<View>>,
        suspect: Suspect,
        metrics: Arc<ProxyMetrics>,
    ) -> Result<Proxy, Error> {
        settings.check()?;
        let listeners = bind(listeners)?;
        settings.max_connections = max_connections(settings.max_connections);
        let book = Book::new(metrics, suspect);
        let first = Route::of(&views.borrow(), Service::On);
        let (route_sender, routes) = watch::channel(Arc::new(first));
        let (service, service_receiver) = watch::channel(Service::On);
        let listens = listeners.iter().filter_map(|l| l.local_addr().ok());
        let shared = Arc::new(Shared {
            listens: listens.collect(),
            book,
            views,
            service: service_receiver,
            routes,
            settings,
        });
        let mut workers = Vec::new();
        let mut queues = Vec::new();
        for _ in 0..shared.settings.workers {
            // Bounded by the limit on connections.
            let (queue, arrivals) = mpsc::unbounded_channel();
            let (stop, stopped) = oneshot::channel();
            let of_worker = Arc::clone(&shared);
            let runtime = runtime()?;
            let run = move || runtime.block_on(work(of_worker, arrivals, stopped));
            let thread = threads::spawn_vital("proxy-relay", run).map_err(Error::Thread)?;
            workers.push((stop, thread));
            queues.push(queue);
        }
        let (stop, stopped) = oneshot::channel();
        let of_acceptor = Arc::clone(&shared);
        let runtime = runtime()?;
        let run = move || {
            runtime.block_on(accept(
                of_acceptor,
                listeners,
                queues,
                route_sender,
                stopped,
            ));
        };
        let thread = threads::spawn_vital("proxy-accept", run).map_err(Error::Thread)?;
        Ok(Proxy {
            shared,
            service,
            acceptor: Some((stop, thread)),
            workers,
        })
    }

    /// Where it listens, with the ports that were really taken.
    pub fn listens(&self) -> &[SocketAddr] {
        &self.shared.listens
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Stops: accepts nothing more, ends connections in gaps, and after `Settings::drain` the rest.
    /// Blocks until they have ended.
    pub fn stop(mut self) {
        let by = Instant::now() + self.shared.settings.drain;
        let (accepted, waiting) = self.shared.book.numbers();
        tracing::info!(
            connections = accepted as u64,
            waiting = waiting as u64,
            "closing connections as they pause"
        );
        self.service.send_replace(Service::DrainBy(by));
        let end = by + LAST_WORDS;
        while self.shared.book.numbers().0 > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = self.shared.book.numbers().0;
        self.end();
        tracing::info!(left = left as u64, "connections are closed");
    }

    fn end(&mut self) {
        for (stop, thread) in self
            .acceptor
            .take()
            .into_iter()
            .chain(self.workers.drain(..))
        {
            drop(stop);
            // A panic ended the process.
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end();
    }
}

fn runtime() -> Result<Runtime, Error> {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().map_err(Error::Thread)
}

fn bind(addresses: &[String]) -> Result<Vec<StdTcpListener>, Error> {
    let listeners = addresses
        .iter()
        .map(|address| wire::ListenerConfig::new(wire::Address::Tcp(address.clone()), None));
    let bound = wire::bind(listeners.collect())?;
    Ok(bound
        .into_iter()
        .filter_map(wire::BoundListener::into_tcp)
        .collect())
}

/// What was asked for, within what the limit on open files allows.
fn max_connections(asked: usize) -> usize {
    let files = wire::files::raise_limit();
    let by_files = files.map_or(usize::MAX, wire::files::for_connections);
    let most = asked.min(by_files / FILES_PER_CONNECTION).max(1);
    if most < asked {
        tracing::warn!(
            asked = asked as u64,
            "max-connections" = most as u64,
            "open-files-limit" = files.unwrap_or(u64::MAX),
            "fewer connections than asked for: raise the limit on open files (ulimit -n, \
             LimitNOFILE=) for more"
        );
    }
    most
}

async fn accept(
    shared: Arc<Shared>,
    listeners: Vec<StdTcpListener>,
    queues: Vec<mpsc::UnboundedSender<Arrival>>,
    routes: watch::Sender<Arc<Route>>,
    stopped: oneshot::Receiver<()>,
) {
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let (shared, queues) = (Arc::clone(&shared), queues.clone());
            tokio::spawn(accept_all(shared, listener, queues))
        })
        .collect();
    let mut service = shared.service.clone();
    let keep = keep(
        shared.views.clone(),
        shared.service.clone(),
        routes,
        Arc::clone(&shared.book),
        shared.settings.handover_limit,
    );
    let closes = async {
        // The listeners go as soon as the proxy is to stop.
        let draining = |service: &Service| matches!(service, Service::DrainBy(_));
        if service.wait_for(draining).await.is_ok() {
            accepting.iter().for_each(tokio::task::JoinHandle::abort);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = stopped => {}
        () = async { tokio::join!(keep, closes); } => {}
    }
}

async fn accept_all(
    shared: Arc<Shared>,
    listener: StdTcpListener,
    queues: Vec<mpsc::UnboundedSender<Arrival>>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot accept connections");
            return;
        }
    };
    let failures = Throttle::new(LINE_EVERY);
    let mut turn = 0;
    loop {
        let accepted = listener.accept().await;
        let (socket, client) = match accepted.and_then(|(s, c)| Ok((s.into_std()?, c))) {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(suppressed) = failures.allow() {
                    tracing::warn!(
                        %error, suppressed,
                        "cannot accept a connection; if files ran out, raise the limit (ulimit -n)"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        shared.book.metrics.accepted.inc();
        let Some(place) = shared.book.accept(shared.settings.max_connections) else {
            refuse(&shared, client, ProxyRefusal::Connections, None);
            continue;
        };
        let Some(waiting) = shared.book.wait(shared.settings.max_waiting) else {
            refuse(&shared, client, ProxyRefusal::Waiting, None);
            continue;
        };
        let arrival = Arrival {
            socket,
            client,
            place,
            waiting,
        };
        // In turn: connections of an apiserver are alike.
        turn = (turn + 1) % queues.len();
        if queues[turn].send(arrival).is_err() {
            return;
        }
    }
}

/// Counts a refusal, and says why at most once a second for each reason.
fn refuse(shared: &Shared, client: SocketAddr, why: ProxyRefusal, error: Option<&std::io::Error>) {
    static LINES: [Throttle; 4] = [const { Throttle::new(LINE_EVERY) }; 4];
    shared.book.metrics.refused(why).inc();
    let Some(suppressed) = LINES[why as usize].allow() else {
        return;
    };
    let settings = &shared.settings;
    match why {
        ProxyRefusal::Connections => tracing::warn!(
            %client, "max-connections" = settings.max_connections as u64, suppressed,
            "connection refused: the limit on connections is reached"
        ),
        ProxyRefusal::Waiting => tracing::warn!(
            %client, "max-waiting" = settings.max_waiting as u64, suppressed,
            members = %why_nobody_leads(&shared.views.borrow()),
            "connection refused: too many wait for a leader already"
        ),
        ProxyRefusal::NoLeader => tracing::warn!(
            %client, "waited-ms" = settings.wait.as_millis() as u64, suppressed,
            members = %why_nobody_leads(&shared.views.borrow()),
            "connection refused: nobody led in time"
        ),
        ProxyRefusal::Unreachable => tracing::warn!(
            %client, "waited-ms" = settings.wait.as_millis() as u64, suppressed,
            leader = %leader(&shared.views.borrow()),
            error = %error.map_or_else(|| "no answer".to_owned(), ToString::to_string),
            "connection refused: the leader could not be connected to in time"
        ),
    }
}

fn leader(view: &View) -> String {
    let leader = view.leader.as_ref();
    leader.map_or_else(|| "none".to_owned(), |leader| leader.endpoint.to_string())
}

/// Relays on one thread.
async fn work(
    shared: Arc<Shared>,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    stopped: oneshot::Receiver<()>,
) {
    let serves = async {
        while let Some(arrival) = arrivals.recv().await {
            tokio::spawn(serve(Arc::clone(&shared), arrival));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = stopped => {}
        () = serves => {}
    }
}

async fn serve(shared: Arc<Shared>, arrival: Arrival) {
    let Arrival {
        socket,
        client,
        place,
        waiting,
    } = arrival;
    let settings = &shared.settings;
    let liveness = Liveness {
        keepalive: settings.keepalive,
        user_timeout: settings.user_timeout,
    };
    let opened = TcpStream::from_std(socket).and_then(|socket| {
        liveness.set(&socket)?;
        Ok(socket)
    });
    let socket = match opened {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%client, %error, "a connection was gone at once");
            return;
        }
    };
    let local = socket.local_addr().ok();
    let header = header(settings.proxy_protocol, client, local);
    let dial = TcpDial(liveness);
    let connection = Connection::new(socket, header, &dial, &shared.book, settings, waiting);
    let ended = connection.run(shared.routes.clone()).await;
    drop(place);
    tell(&shared, client, &ended);
}

/// Counts an end, and says what an operator may want to know of it.
fn tell(shared: &Shared, client: SocketAddr, ended: &Ended) {
    let error = ended.error.as_ref();
    let end = match ended.end {
        End::NoLeader => return refuse(shared, client, ProxyRefusal::NoLeader, error),
        End::Unreachable => return refuse(shared, client, ProxyRefusal::Unreachable, error),
        End::Done => ProxyEnd::Done,
        End::ClientFailed => ProxyEnd::ClientFailed,
        End::MemberFailed => ProxyEnd::MemberFailed,
        End::Gap => ProxyEnd::Gap,
        End::Limit => ProxyEnd::Limit,
        End::MemberLost => ProxyEnd::MemberLost,
        End::Idle => ProxyEnd::Idle,
        End::Drain => ProxyEnd::Drain,
    };
    shared.book.metrics.ended(end).inc();
    let member = ended.member.as_ref().map(ToString::to_string);
    let member = member.unwrap_or_else(|| "none".to_owned());
    static LINES: Throttle = Throttle::new(LINE_EVERY);
    match (end, error) {
        (ProxyEnd::MemberFailed, Some(error)) => {
            if let Some(suppressed) = LINES.allow() {
                tracing::warn!(%client, %member, %error, suppressed, "the member's side of a connection failed");
            }
        }
        (_, Some(error)) => {
            tracing::debug!(%client, %member, %error, end = ?end, "connection ended")
        }
        (_, None) => tracing::debug!(%client, %member, end = ?end, "connection ended"),
    }
}
