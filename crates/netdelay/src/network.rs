//! The thread with its relays.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::delay::Delay;
use crate::pipe::{LINK_BYTES_MAX, Pipe};
use crate::timer::{Clock, Timer};
use crate::{Error, connect};

/// Connections that a network carries at once; more are closed as soon as they are accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take to name its peer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// After an accept that failed, as it does without a free file.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long bytes are held in each direction of a connection.
#[derive(Debug, Clone, Default)]
pub struct Delays {
    /// From who connects.
    pub forward: Delay,
    /// To it.
    pub backward: Delay,
}

impl Delays {
    fn round_trip(&self) -> Duration {
        self.forward.get() + self.backward.get()
    }
}

/// A peer that clients of a [`Network::egress`] can name.
#[derive(Debug, Clone)]
pub struct Route {
    /// The name: `HOST:PORT`, as clients write it. It need not exist anywhere.
    pub authority: String,
    /// Where that is.
    pub target: SocketAddr,
    /// The way there and back.
    pub delays: Delays,
}

/// A thread with relays. Dropped, all of their connections end.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
    shared: Shared,
}

#[derive(Debug, Clone)]
struct Shared {
    timer: Timer,
    room: Arc<Semaphore>,
}

impl Network {
    /// Starts the thread. It raises this process's limit on open files as far as it goes: a
    /// connection takes two.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn start() -> Result<Self, Error> {
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let clock = Clock::new().map_err(Error::Thread)?;
        let (handle, stop) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let timer = Timer::default();
        let (running, stopped) = (timer.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("netdelay".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = stopped.notified() => {}
                        // Without its timer it could only deliver too early.
                        _ = running.run(clock) => {}
                    }
                });
            })
            .map_err(Error::Thread)?;
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
            shared: Shared {
                timer,
                room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            },
        })
    }

    /// Listens on `listen` in the place of `target`.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn link(
        &self,
        listen: SocketAddr,
        target: SocketAddr,
        delays: Delays,
    ) -> Result<(), Error> {
        let listener = self.listener(listen)?;
        let shared = self.shared.clone();
        self.handle
            .spawn(accept(listener, shared.clone(), move |near| {
                shared.clone().relay(near, target, delays.clone())
            }));
        Ok(())
    }

    /// Listens on `listen` as an HTTP proxy, for one program that reaches its peers through it:
    /// it names them with CONNECT, and each has its own way. So delays can depend on who
    /// connects to whom.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn egress(&self, listen: SocketAddr, routes: Vec<Route>) -> Result<(), Error> {
        let listener = self.listener(listen)?;
        let (shared, routes) = (self.shared.clone(), Arc::new(routes));
        self.handle
            .spawn(accept(listener, shared.clone(), move |near| {
                shared.clone().named(near, Arc::clone(&routes))
            }));
        Ok(())
    }

    fn listener(&self, address: SocketAddr) -> Result<TcpListener, Error> {
        let fails = |source| Error::Listen { address, source };
        let listener = StdListener::bind(address).map_err(fails)?;
        listener.set_nonblocking(true).map_err(fails)?;
        let _in_runtime = self.handle.enter();
        TcpListener::from_std(listener).map_err(fails)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept<F>(listener: TcpListener, shared: Shared, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&shared.room).try_acquire_owned() else {
            continue;
        };
        let serving = serve(near);
        tokio::spawn(async move {
            // A connection that broke has ended at both ends, which is what they have to know.
            let _ = serving.await;
            drop(place);
        });
    }
}

impl Shared {
    /// Connects `near` with `target`.
    async fn relay(self, near: TcpStream, target: SocketAddr, delays: Delays) -> io::Result<()> {
        // The system took the connection at once. Over a distance it takes a round trip until
        // who connects may send.
        let opens = Instant::now() + delays.round_trip();
        let far = TcpStream::connect(target).await?;
        self.carry(near, far, delays, opens).await
    }

    /// Connects `near` with the peer that it names.
    async fn named(self, mut near: TcpStream, routes: Arc<Vec<Route>>) -> io::Result<()> {
        let asked = tokio::time::timeout(CONNECT_LIMIT, connect::authority(&mut near)).await??;
        let Some(route) = routes.iter().find(|route| route.authority == asked) else {
            return near.write_all(connect::UNKNOWN).await;
        };
        let opens = Instant::now() + route.delays.round_trip();
        let far = match TcpStream::connect(route.target).await {
            Ok(far) => far,
            Err(_) => {
                self.timer.until(opens).await;
                return near.write_all(connect::UNKNOWN).await;
            }
        };
        self.timer.until(opens).await;
        near.write_all(connect::CONNECTED).await?;
        self.carry(near, far, route.delays.clone(), opens).await
    }

    async fn carry(
        self,
        near: TcpStream,
        far: TcpStream,
        delays: Delays,
        opens: Instant,
    ) -> io::Result<()> {
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (from_near, to_near) = near.into_split();
        let (from_far, to_far) = far.into_split();
        let pipe = |delay| Pipe {
            timer: self.timer.clone(),
            delay,
            opens,
            bytes_max: LINK_BYTES_MAX,
        };
        let forward = pipe(delays.forward).carry(from_near, to_far);
        let backward = pipe(delays.backward).carry(from_far, to_near);
        tokio::try_join!(forward, backward).map(|_| ())
    }
}

/// Raises the soft limit on open files to the hard one, which needs no privilege.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Where it is refused, connections beyond the limit are.
    let _ = setrlimit(Resource::Nofile, raised);
}
