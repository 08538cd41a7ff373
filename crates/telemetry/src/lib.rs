//! What orlop says to its operator: log lines, and `sd_notify` to systemd.
//!
//! The rest of the code logs with [`tracing`]'s macros. [`init`] makes the
//! process's only subscriber, which writes each event as one line: as etcd
//! writes it ([`Format::Json`], [`Format::Console`]), so that tools that read
//! etcd's log read orlop's, or for people ([`Format::Human`]).
//!
//! **A log output that does not take lines stalls nobody.** A line goes to a
//! bounded queue and a thread of its own writes it; when the queue is full the
//! line is dropped and counted, and when the output takes lines again one of
//! them says how many are missing. Only a [`FATAL`] line is waited for.
//!
//! This crate may start one thread for each output and set the panic hook. It
//! ends no process, knows nothing of the server and has no opinion on what is
//! worth saying; a warning that may repeat goes through a [`Throttle`], and what
//! other crates repeat is counted here.
//!
//! Facts on the shape of a line: etcd 3.7.3's own log, its
//! `client/pkg/logutil` and `server/embed/config_logging.go`, and zap 1.27.

mod causes;
mod format;
mod notify;
mod output;
mod repeats;
mod subscriber;
mod throttle;
mod value;

use std::io;
use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use causes::{and_causes, with_causes};
pub use notify::{Notify, notify};
pub use throttle::Throttle;
pub use value::{GoDuration, Strings};

use output::{Queue, Sink};
use subscriber::LineSubscriber;

/// The target of an event that ends the process: its level is written as
/// `fatal`. Logging it ends nothing, but waits until the line is written, at
/// most a second; a full queue takes it all the same.
pub const FATAL: &str = "orlop::fatal";

/// The target of a panic: its level is written as `panic`.
pub const PANIC: &str = "orlop::panic";

/// How long the last lines may take when the process ends or panics.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What can go wrong when logging or notification is set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process has a subscriber already.
    #[error("logging is already set up")]
    AlreadySet,
    /// An output cannot be opened.
    #[error("cannot open the log output {path}: {source}; check --log-outputs")]
    Open {
        /// The file, or the name of the stream.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The thread that writes an output did not start.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// systemd was not told.
    #[error("cannot notify systemd at NOTIFY_SOCKET={socket}: {source}")]
    Notify {
        /// The value of `NOTIFY_SOCKET`.
        socket: String,
        /// Why.
        source: io::Error,
    },
}

/// The least severe level that is logged, by etcd's `--log-level` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything; of other crates' events only warnings and errors.
    Debug,
    /// The default.
    #[default]
    Info,
    /// Warnings and worse.
    Warn,
    /// Errors and worse.
    Error,
    /// Panics and fatal errors.
    Panic,
    /// Only what ends the process.
    Fatal,
}

impl Level {
    /// The word in a line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Panic => "panic",
            Level::Fatal => "fatal",
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, as etcd's `--log-format=json`.
    #[default]
    Json,
    /// Time, level, caller, message and fields, separated by tabs, as etcd's
    /// `--log-format=console`.
    Console,
    /// Time, level, message and `key=value`, for people.
    Human,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, appended to. It is not rotated.
    File(PathBuf),
}

/// How to log.
#[derive(Clone, Debug)]
pub struct Options {
    /// The least severe level that is logged.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
    /// Where lines go, each to all of them; none means standard error.
    pub outputs: Vec<Output>,
    /// How many bytes may wait for each output. Up to as many again are being
    /// written.
    pub queue_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            level: Level::default(),
            format: Format::default(),
            outputs: vec![Output::Stderr],
            queue_bytes: 1 << 20,
        }
    }
}

/// Keeps logging. Dropping it gives the last lines up to a second to be
/// written; lines logged later may be lost when the process ends.
#[derive(Debug)]
pub struct Guard {
    queues: Arc<[Arc<Queue>]>,
}

/// A handle that reads the log's own counters.
#[derive(Clone, Debug)]
pub struct LogCounters {
    queues: Arc<[Arc<Queue>]>,
}

impl LogCounters {
    /// Lines dropped since the start, over all outputs.
    pub fn dropped_lines(&self) -> u64 {
        self.queues.iter().map(|queue| queue.dropped()).sum()
    }
}

impl Guard {
    /// Waits until all that was logged is written, at most `timeout`. Returns
    /// whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        flush(&self.queues, timeout)
    }

    /// Lines dropped since the start, over all outputs.
    pub fn dropped_lines(&self) -> u64 {
        self.counters().dropped_lines()
    }

    /// A handle for whoever reports the counters.
    pub fn counters(&self) -> LogCounters {
        LogCounters {
            queues: self.queues.clone(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.flush(LAST_WORDS);
    }
}

fn flush(queues: &[Arc<Queue>], timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    // Every output gets its chance, whatever the others do.
    let mut all = true;
    for queue in queues {
        all &= queue.flush(deadline);
    }
    all
}

/// Sets up logging for the process, panics included. Call it once, early.
///
/// # Errors
/// If it was called before, an output cannot be opened, or a thread does not
/// start.
pub fn init(options: &Options) -> Result<Guard, Error> {
    let outputs = match options.outputs.as_slice() {
        [] => &[Output::Stderr],
        outputs => outputs,
    };
    let mut queues = Vec::with_capacity(outputs.len());
    for output in outputs {
        let sink = Sink::open(output)?;
        queues.push(Queue::start(sink, options.queue_bytes, options.format)?);
    }
    let queues: Arc<[Arc<Queue>]> = queues.into();
    let subscriber = LineSubscriber::new(options.level, options.format, queues.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::AlreadySet)?;
    let of_hook = queues.clone();
    std::panic::set_hook(Box::new(move |info| {
        log_panic(info);
        flush(&of_hook, LAST_WORDS);
    }));
    Ok(Guard { queues })
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info
        .payload_as_str()
        .unwrap_or("a panic whose payload is not text");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        tracing::error!(target: PANIC, location, thread, stacktrace = %backtrace, "{message}");
    } else {
        tracing::error!(target: PANIC, location, thread, "{message}");
    }
}
