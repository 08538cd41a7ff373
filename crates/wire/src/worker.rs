//! Serving threads: each runs one single-threaded runtime and all its connections.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use telemetry::Throttle;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::WorkerId;
use crate::config::Config;
use crate::conn::{Accepted, Rejected, handle};
use crate::half_open::HalfOpens;
use crate::handler::Handler;
use crate::local::{Flag, WakerSet};
use crate::memory::WorkerMemory;
use crate::server::LINE_EVERY;
use crate::service::{Routes, WorkerState};
use crate::{shed, turn};

thread_local! {
    static CURRENT: Cell<Option<WorkerId>> = const { Cell::new(None) };
}

/// The worker whose thread this is; `None` on any other thread.
pub fn current_worker() -> Option<WorkerId> {
    CURRENT.get()
}

/// What a worker is told.
pub(crate) enum Order {
    /// Serve this connection.
    Serve(Accepted),
    /// Finish what is under way, but drop it at this time.
    Close(Instant),
}

/// A worker as the acceptor sees it.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    /// Bounded by the server's limit on connections.
    pub(crate) orders: UnboundedSender<Order>,
    pub(crate) connections: Arc<AtomicUsize>,
}

/// Starts a worker's thread. `factory` runs on it.
pub(crate) fn spawn<H: Handler>(
    worker: WorkerId,
    config: Arc<Config>,
    routes: Arc<Routes>,
    factory: Arc<dyn Fn(WorkerId) -> H + Send + Sync>,
) -> io::Result<(WorkerHandle, JoinHandle<()>)> {
    let (orders, inbox) = unbounded_channel();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let (ready, started) = std::sync::mpsc::channel();
    let run = move || {
        CURRENT.set(Some(worker));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_unpark(turn::woke)
            .build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                // The starter waits for this word.
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        runtime.block_on(async {
            let handler = Rc::new(factory(worker));
            let told = Rc::clone(&handler);
            turn::observe(Rc::new(move |took| told.turn_took(took)));
            let closing = Rc::new(Flag::default());
            let memory = WorkerMemory::new(&config);
            tokio::task::spawn_local(shed::run(Rc::clone(&memory)));
            let state = Rc::new(WorkerState {
                handler,
                routes,
                half_open: HalfOpens::new(config.max_half_open / config.workers),
                config,
                closing,
                memory,
            });
            serve_orders(state, inbox, count).await;
        });
        // Dropping the runtime drops what is still under way.
    };
    let thread = threads::spawn_vital(&format!("wire-{worker}"), run)?;
    match started.recv() {
        Ok(Ok(())) => Ok((
            WorkerHandle {
                orders,
                connections,
            },
            thread,
        )),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the thread ended at once")),
    }
}

async fn serve_orders<H: Handler>(
    state: Rc<WorkerState<H>>,
    mut inbox: UnboundedReceiver<Order>,
    connections: Arc<AtomicUsize>,
) {
    let ended = Rc::new(WakerSet::default());
    // Of each reason apart: one that comes often hides no other.
    let rejected: Rc<[Throttle; Rejected::REASONS]> =
        Rc::new([const { Throttle::new(LINE_EVERY) }; Rejected::REASONS]);
    let drop_at = loop {
        match inbox.recv().await {
            Some(Order::Serve(accepted)) => {
                let open = OpenConnection(Arc::clone(&connections), Rc::clone(&ended));
                let (state, rejected) = (Rc::clone(&state), Rc::clone(&rejected));
                tokio::task::spawn_local(async move {
                    let _open = open;
                    let url = accepted.listener.url.clone();
                    let remote = accepted.socket.remote();
                    if let Err(error) = handle(state, accepted).await
                        && let Some(suppressed) = rejected[error.reason()].allow()
                    {
                        tracing::warn!(
                            "remote-addr" = %remote, listener = %url, %error, suppressed,
                            "rejected connection on client endpoint"
                        );
                    }
                });
            }
            Some(Order::Close(drop_at)) => break drop_at,
            None => break Instant::now(),
        }
    };
    state.closing.raise();
    let all_ended = ended.wait(|| (connections.load(Ordering::Relaxed) == 0).then_some(()));
    // At the time-out the rest is dropped with the runtime.
    let _ = tokio::time::timeout_at(drop_at, all_ended).await;
}

/// Counts a connection while its task lives.
struct OpenConnection(Arc<AtomicUsize>, Rc<WakerSet>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        self.1.wake_all();
    }
}
