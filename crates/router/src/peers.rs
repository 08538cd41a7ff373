//! Other nodes' routers: one connection to each, and whether it answers.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use placement::Node;
use routing::{Health, Peer, PeerTimes};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use wire::ClientTls;

use crate::body::{self, Body};
use crate::head;

/// What a peer is asked for.
pub(crate) const HEALTH: &str = "/orlop/health";
/// Connecting takes no longer, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A question that is not answered by then is not waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing comes is asked after so long, and closed after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Bytes under way on a stream and on a connection.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 128 << 10;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of a head.
pub(crate) const HEAD_BYTES_MAX: u32 = 80 << 10;

/// The way to one peer.
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) node: Node,
    peer: Mutex<Peer>,
    way: Mutex<Option<Way>>,
    /// The last round trip that was measured, until it is taken.
    round_trip_ms: Mutex<Option<f64>>,
    keeper: Mutex<Option<AbortHandle>>,
}

struct Way {
    sender: SendRequest<Body>,
    /// `true` breaks the connection off, with all that is under way on it. Without that it ends
    /// when nothing is under way any more.
    cut: watch::Sender<bool>,
}

/// Runs a connection's parts, until it is cut.
#[derive(Clone)]
struct UntilCut(watch::Receiver<bool>);

impl<F> hyper::rt::Executor<F> for UntilCut
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, part: F) {
        let mut cut = self.0.clone();
        tokio::spawn(async move {
            let is_cut = async {
                // Nobody is left who could.
                if cut.wait_for(|cut| *cut).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = part => {}
                () = is_cut => {}
            }
        });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
        // Without its senders a connection ends with what is under way on it.
    }
}

/// What changed by an answer.
pub(crate) type Changed = Arc<dyn Fn() + Send + Sync>;

impl Link {
    /// Connects and asks, for as long as it is there. `changed` is called when it answers again.
    pub(crate) fn start(
        name: String,
        address: SocketAddr,
        node: Node,
        tls: Arc<ClientTls>,
        began: Instant,
        changed: Changed,
    ) -> Arc<Self> {
        let now_us = began.elapsed().as_micros() as u64;
        let link = Arc::new(Self {
            name,
            address,
            node,
            peer: Mutex::new(Peer::new(now_us)),
            way: Mutex::default(),
            round_trip_ms: Mutex::default(),
            keeper: Mutex::default(),
        });
        let weak = Arc::downgrade(&link);
        let (name, times) = (link.name.clone(), PeerTimes::default());
        let keeper: JoinHandle<()> = tokio::spawn(async move {
            loop {
                if let Ok((sender, cut)) = connect(&name, address, &tls).await {
                    let Some(link) = weak.upgrade() else { return };
                    *link.way.lock() = Some(Way {
                        sender: sender.clone(),
                        cut,
                    });
                    drop(link);
                    let end = ask(sender, &times, |answered| {
                        let Some(link) = weak.upgrade() else { return };
                        link.heard(answered, began, &changed);
                    })
                    .await;
                    let Some(link) = weak.upgrade() else { return };
                    let way = link.way.lock().take();
                    // What is under way on a connection that only leaves may end there.
                    if let (End::Silent, Some(way)) = (end, way) {
                        way.cut.send_replace(true);
                    }
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        });
        *link.keeper.lock() = Some(keeper.abort_handle());
        link
    }

    fn heard(&self, answer: Heard, began: Instant, changed: &Changed) {
        let now_us = began.elapsed().as_micros() as u64;
        let mut peer = self.peer.lock();
        match answer {
            Heard::Leaves => peer.leaves(now_us),
            Heard::Up(round_trip) => {
                let was_used = peer.is_used() && peer.health() == Health::Up;
                peer.answered(now_us);
                drop(peer);
                *self.round_trip_ms.lock() = Some(round_trip.as_secs_f64() * 1e3);
                if !was_used {
                    tracing::info!(node = %self.name, address = %self.address, "a node's router answers");
                    changed();
                }
            }
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&self, now_us: u64, times: &PeerTimes) {
        let mut peer = self.peer.lock();
        let is_down = peer.tick(now_us, times);
        let is_lost = !peer.is_used() && peer.silent_us(now_us) > times.lost_after_us;
        drop(peer);
        if is_down {
            tracing::warn!(
                node = %self.name, address = %self.address,
                "a node's router does not answer: nothing is sent there"
            );
        }
        if is_lost {
            // What is under way there fails now.
            if let Some(way) = self.way.lock().take() {
                way.cut.send_replace(true);
            }
        }
    }

    /// Whether requests go there.
    pub(crate) fn is_used(&self) -> bool {
        self.peer.lock().is_used()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.peer.lock().health() == Health::Up
    }

    /// The round trip in ms that was measured since the last call.
    pub(crate) fn take_round_trip_ms(&self) -> Option<f64> {
        self.round_trip_ms.lock().take()
    }

    /// A way to send a request, if there is a connection.
    pub(crate) fn sender(&self) -> Option<SendRequest<Body>> {
        let way = self.way.lock();
        way.as_ref()
            .map(|way| way.sender.clone())
            .filter(|sender| !sender.is_closed())
    }
}

/// What a peer said.
enum Heard {
    /// It answered, after so long.
    Up(Duration),
    /// It ends.
    Leaves,
}

async fn connect(
    name: &str,
    address: SocketAddr,
    tls: &ClientTls,
) -> std::io::Result<(SendRequest<Body>, watch::Sender<bool>)> {
    let (cut, cuts) = watch::channel(false);
    let parts = UntilCut(cuts);
    let way = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = tls.connect(name, stream).await?;
        http2::Builder::new(parts.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
            .max_header_list_size(HEAD_BYTES_MAX)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)
    };
    let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let made = tokio::time::timeout(CONNECT_TIMEOUT, way)
        .await
        .map_err(timed_out);
    let (sender, connection) = match made.and_then(|made| made) {
        Ok(made) => made,
        Err(error) => {
            tracing::debug!(node = name, %address, %error, "no connection to a node's router");
            return Err(error);
        }
    };
    hyper::rt::Executor::execute(&parts, async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a node's router broke");
        }
    });
    Ok((sender, cut))
}

/// Why a connection is of no use any more.
enum End {
    /// It broke, or the peer ends it.
    Closed,
    /// Nothing comes.
    Silent,
}

/// Asks until the connection is of no use.
async fn ask(
    mut sender: SendRequest<Body>,
    times: &PeerTimes,
    mut heard: impl FnMut(Heard),
) -> End {
    let every = Duration::from_micros(times.every_us);
    loop {
        let began = Instant::now();
        let mut request = Request::new(body::empty());
        *request.uri_mut() = http::Uri::from_static("http://router/orlop/health");
        let answer = tokio::time::timeout(ASK_TIMEOUT, sender.send_request(request)).await;
        let answer: Response<Incoming> = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return End::Closed,
            Err(_) => return End::Silent,
        };
        if answer.headers().contains_key(head::LEAVES) {
            heard(Heard::Leaves);
        } else if answer.status() == StatusCode::OK {
            heard(Heard::Up(began.elapsed()));
        }
        tokio::time::sleep(every.saturating_sub(began.elapsed())).await;
    }
}
