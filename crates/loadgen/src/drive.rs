//! Client threads through connecting, warming up, the measured span and the end.

use crate::error::Error;
use crate::histogram::{Histogram, Latency};
use crate::interrupt::Interrupt;
use crate::procfs::{self, Cpu};
use crate::rpc::Connection;
use crate::watch::{self, Watcher};
use crate::workload::{self, Workload};
use bytes::Bytes;
use rand::Rng;
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

/// Connecting and reading what is there.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// Filling, and a span bounded by requests.
const LONG_LIMIT: Duration = Duration::from_secs(600);
/// Answers outstanding at the end of a span.
const END_LIMIT: Duration = Duration::from_secs(15);
/// How often a waiting client thread looks at the phase.
const POLL: Duration = Duration::from_millis(5);

/// One workload with its sizes.
#[derive(Debug, Clone, Serialize)]
pub struct Load {
    /// What the clients do.
    pub workload: Workload,
    /// TCP connections, spread over the endpoints.
    pub connections: usize,
    /// Operations in flight, over all connections.
    pub in_flight: usize,
    /// Client threads, each with its share of the connections.
    pub client_threads: usize,
    /// Number of keys.
    pub keys: usize,
    /// Length of a key in bytes.
    pub key_bytes: usize,
    /// Length of a value in bytes.
    pub value_bytes: usize,
    /// Watchers, over all connections (`watch` only).
    pub watchers: usize,
    /// Puts a second (`watch` only); 0: the next one when all watchers have the last.
    pub watch_rate: u32,
}

/// How long to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Span {
    /// Load that is not measured, before.
    pub warmup: Duration,
    /// The measured time.
    pub duration: Duration,
    /// If given, measure until so many operations are done instead (at most ten minutes).
    pub requests: Option<u64>,
}

/// What one span showed.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Length of the measured span in seconds.
    pub seconds: f64,
    /// Operations in it; for `watch`, events delivered, over all watchers.
    pub operations: u64,
    /// Operations a second.
    pub operations_per_second: f64,
    /// Percentiles over all of them.
    pub latency: Latency,
    /// What the server used, if its process is known.
    pub server: Option<Usage>,
    /// Processor time of the benchmark itself an operation, in microseconds.
    pub client_cpu_us: f64,
}

/// What a server used in a span.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    /// Processor time an operation in microseconds, in the program.
    pub user_us: f64,
    /// The same in the kernel.
    pub kernel_us: f64,
    /// Resident memory at the end of the span, in bytes.
    pub memory_bytes: u64,
    /// The most that it ever was.
    pub memory_peak_bytes: u64,
}

impl Usage {
    /// Processor time an operation in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.user_us + self.kernel_us
    }
}

const CONNECTING: u8 = 0;
const WARMING: u8 = 1;
const MEASURING: u8 = 2;
const ENDING: u8 = 3;

/// A counter on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Count(AtomicU64);

/// What the threads of a run share.
pub(crate) struct Control {
    /// Times in values count from here.
    pub(crate) start: Instant,
    phase: AtomicU8,
    /// Workers that have what they need.
    ready: AtomicUsize,
    counts: Vec<Count>,
    next_key: AtomicUsize,
    delivered: AtomicUsize,
    delivery: Notify,
    error: Mutex<Option<Error>>,
}

impl Control {
    fn new(threads: usize) -> Control {
        Control {
            start: Instant::now(),
            phase: AtomicU8::new(CONNECTING),
            ready: AtomicUsize::new(0),
            counts: (0..threads).map(|_| Count::default()).collect(),
            next_key: AtomicUsize::new(0),
            delivered: AtomicUsize::new(0),
            delivery: Notify::new(),
            error: Mutex::new(None),
        }
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Ordering::SeqCst);
    }

    fn operations(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.0.load(Ordering::Relaxed))
            .sum()
    }

    /// Ends the run; the first error is the one reported.
    pub(crate) fn fail(&self, error: Error) {
        // Calls under way when the run ends may break; that is no failure.
        if self.phase() == ENDING {
            return;
        }
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.enter(ENDING);
    }

    fn take_error(&self) -> Result<(), Error> {
        match self
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub(crate) fn next_key(&self) -> usize {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts one event at one of `watchers`.
    pub(crate) fn delivered(&self, watchers: usize) {
        let so_far = self.delivered.fetch_add(1, Ordering::AcqRel) + 1;
        if so_far.is_multiple_of(watchers) {
            self.delivery.notify_one();
        }
    }

    /// Waits for the `count`th delivery.
    pub(crate) async fn all_delivered(&self, count: usize) {
        while self.delivered.load(Ordering::Acquire) < count {
            self.delivery.notified().await;
        }
    }
}

/// A client thread's view of a run.
pub(crate) struct Seat {
    pub(crate) control: Arc<Control>,
    pub(crate) load: Arc<Load>,
    pub(crate) keys: Arc<[Bytes]>,
    thread: usize,
    histogram: RefCell<Histogram>,
}

impl Seat {
    /// Whether to send another operation.
    pub(crate) fn running(&self) -> bool {
        self.control.phase() != ENDING
    }

    /// Says that this worker is, and waits until all are.
    pub(crate) async fn ready(&self) {
        self.control.ready.fetch_add(1, Ordering::SeqCst);
        while self.control.phase() == CONNECTING {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Counts an operation that began at `start`, if the span is on.
    pub(crate) fn done(&self, start: Instant) {
        if self.control.phase() == MEASURING {
            self.control.counts[self.thread]
                .0
                .fetch_add(1, Ordering::Relaxed);
            self.histogram.borrow_mut().record(start.elapsed());
        }
    }

    pub(crate) fn random_key(&self) -> &Bytes {
        &self.keys[rand::rng().random_range(0..self.keys.len())]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    Fill,
    Measure,
}

/// A run's threads. Dropped, they end.
struct Threads {
    control: Arc<Control>,
    handles: Vec<JoinHandle<Histogram>>,
}

impl Threads {
    fn start(job: Job, load: &Load, endpoints: &[String]) -> Result<Threads, Error> {
        let threads = load.client_threads.clamp(1, load.connections);
        let control = Arc::new(Control::new(threads));
        let keys: Arc<[Bytes]> = workload::keys(load.workload, load.keys, load.key_bytes).into();
        let load = Arc::new(load.clone());
        let mut all = Threads {
            control: Arc::clone(&control),
            handles: Vec::new(),
        };
        for thread in 0..threads {
            let (control, load, keys) =
                (Arc::clone(&control), Arc::clone(&load), Arc::clone(&keys));
            let endpoints = endpoints.to_vec();
            let handle = std::thread::Builder::new()
                .name(format!("client-{thread}"))
                .spawn(move || {
                    let histogram = RefCell::default();
                    let seat = Rc::new(Seat {
                        control,
                        load,
                        keys,
                        thread,
                        histogram,
                    });
                    if let Err(error) = run_thread(job, &seat, threads, &endpoints) {
                        seat.control.fail(error);
                    }
                    seat.histogram.take()
                })
                .map_err(Error::system("starting a thread"))?;
            all.handles.push(handle);
        }
        Ok(all)
    }

    fn finished(&self) -> bool {
        self.handles.iter().all(JoinHandle::is_finished)
    }

    /// Ends the run, and gives all latencies or the first error.
    fn end(mut self) -> Result<Histogram, Error> {
        self.control.enter(ENDING);
        let mut all = Histogram::new();
        for handle in self.handles.drain(..) {
            all.merge(&handle.join().map_err(|_| Error::Panicked)?);
        }
        self.control.take_error()?;
        Ok(all)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.control.enter(ENDING);
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

fn run_thread(
    job: Job,
    seat: &Rc<Seat>,
    threads: usize,
    endpoints: &[String],
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("starting a runtime"))?;
    LocalSet::new().block_on(&runtime, async {
        let work = async {
            let mut workers = hire(job, seat, threads, endpoints).await?;
            while let Some(ended) = workers.join_next().await {
                ended.map_err(|_| Error::Panicked)??;
            }
            Ok(())
        };
        tokio::select! {
            ended = work => ended,
            ended = the_end(seat) => ended,
        }
    })
}

/// Connects this thread's share of the connections and starts their workers.
async fn hire(
    job: Job,
    seat: &Rc<Seat>,
    threads: usize,
    endpoints: &[String],
) -> Result<JoinSet<Result<(), Error>>, Error> {
    let load = &seat.load;
    let watching = job == Job::Measure && load.workload == Workload::Watch;
    let mut workers = JoinSet::new();
    for number in (seat.thread..load.connections).step_by(threads) {
        let connection = Connection::open(&endpoints[number % endpoints.len()]).await?;
        let count = if watching {
            load.watchers
        } else {
            load.in_flight
        };
        for worker in (number..count).step_by(load.connections) {
            let (seat, connection) = (Rc::clone(seat), connection.clone());
            if watching {
                let watcher = Watcher::open(&connection).await?;
                seat.control.ready.fetch_add(1, Ordering::SeqCst);
                workers.spawn_local(watcher.run(seat));
            } else {
                workers.spawn_local(work(job, seat, connection, worker));
            }
        }
    }
    if watching && seat.thread == 0 {
        let connection = Connection::open(&endpoints[0]).await?;
        let seat = Rc::clone(seat);
        workers.spawn_local(async move {
            seat.ready().await;
            watch::write(seat, connection).await
        });
    }
    Ok(workers)
}

async fn work(
    job: Job,
    seat: Rc<Seat>,
    connection: Connection,
    worker: usize,
) -> Result<(), Error> {
    if job == Job::Fill {
        return workload::fill(seat, connection).await;
    }
    match seat.load.workload {
        Workload::Txn => return workload::txn(seat, connection, worker).await,
        Workload::Put | Workload::Range | Workload::Watch => seat.ready().await,
    }
    match seat.load.workload {
        Workload::Range => workload::range(seat, connection).await,
        _ => workload::put(seat, connection).await,
    }
}

/// Returns some time after the run's end: at once for a watch, which has no answer to wait for.
async fn the_end(seat: &Seat) -> Result<(), Error> {
    while seat.running() {
        tokio::time::sleep(POLL).await;
    }
    if seat.load.workload == Workload::Watch {
        return Ok(());
    }
    tokio::time::sleep(END_LIMIT).await;
    Err(Error::Stuck {
        what: "waiting for the last answers",
        seconds: END_LIMIT.as_secs(),
    })
}

/// Writes all keys of the load once.
pub(crate) fn fill(load: &Load, endpoints: &[String], interrupt: &Interrupt) -> Result<(), Error> {
    let threads = Threads::start(Job::Fill, load, endpoints)?;
    let filled = interrupt.wait(LONG_LIMIT, || threads.finished())?;
    threads.end()?;
    if filled {
        return Ok(());
    }
    Err(Error::Stuck {
        what: "filling",
        seconds: LONG_LIMIT.as_secs(),
    })
}

/// Puts the load on the endpoints and measures a span of it, and what the process
/// `server_pid` used in it.
pub(crate) fn measure(
    load: &Load,
    endpoints: &[String],
    span: &Span,
    server_pid: Option<u32>,
    interrupt: &Interrupt,
) -> Result<Outcome, Error> {
    let threads = Threads::start(Job::Measure, load, endpoints)?;
    let control = &threads.control;
    let failed = || control.phase() == ENDING;
    let expected = match load.workload {
        Workload::Watch => load.watchers + 1,
        _ => load.in_flight,
    };
    let all_ready = || failed() || control.ready.load(Ordering::SeqCst) == expected;
    if !interrupt.wait(CONNECT_LIMIT, all_ready)? {
        return Err(Error::Stuck {
            what: "connecting",
            seconds: CONNECT_LIMIT.as_secs(),
        });
    }
    if failed() {
        threads.end()?;
        return Err(Error::Panicked);
    }
    control.enter(WARMING);
    interrupt.wait(span.warmup, failed)?;

    let cpu = || {
        (
            server_pid.and_then(procfs::cpu),
            procfs::cpu(std::process::id()),
        )
    };
    let (server_before, client_before) = cpu();
    let start = Instant::now();
    // Not if it failed meanwhile.
    let _ = control
        .phase
        .compare_exchange(WARMING, MEASURING, Ordering::SeqCst, Ordering::SeqCst);
    let limit = if span.requests.is_some() {
        LONG_LIMIT
    } else {
        span.duration
    };
    let enough = || {
        span.requests
            .is_some_and(|requests| control.operations() >= requests)
    };
    interrupt.wait(limit, || failed() || enough())?;
    control.enter(ENDING);
    let elapsed = start.elapsed();
    let (server_after, client_after) = cpu();
    let memory = server_pid.and_then(procfs::memory);
    let operations = control.operations();
    let latencies = threads.end()?;
    if operations == 0 {
        return Err(Error::Stuck {
            what: "waiting for a first answer",
            seconds: elapsed.as_secs(),
        });
    }
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / operations as f64;
    let between = |before: Option<Cpu>, after: Option<Cpu>| Some(after?.since(before?));
    let server = between(server_before, server_after)
        .zip(memory)
        .map(|(cpu, memory)| Usage {
            user_us: each(cpu.user),
            kernel_us: each(cpu.kernel),
            memory_bytes: memory.0,
            memory_peak_bytes: memory.1,
        });
    Ok(Outcome {
        seconds: elapsed.as_secs_f64(),
        operations,
        operations_per_second: operations as f64 / elapsed.as_secs_f64(),
        latency: latencies.latency(),
        server,
        client_cpu_us: between(client_before, client_after)
            .map_or(0.0, |cpu| each(cpu.user + cpu.kernel)),
    })
}
