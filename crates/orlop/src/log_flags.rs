//! How a command that runs on logs.

use clap::ValueEnum;

/// Log lines wait in at most so many bytes of memory.
const LOG_QUEUE_BYTES: usize = 1 << 20;

/// The least severe lines that are logged.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Everything.
    Debug,
    /// What changes, and what comes of it.
    Info,
    /// What went wrong.
    Warn,
    /// What must not go wrong.
    Error,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For programs.
    Json,
    /// For people.
    Console,
}

/// A log on stderr.
pub(crate) fn log_options(level: Level, format: Format) -> telemetry::Options {
    telemetry::Options {
        level: match level {
            Level::Debug => telemetry::Level::Debug,
            Level::Info => telemetry::Level::Info,
            Level::Warn => telemetry::Level::Warn,
            Level::Error => telemetry::Level::Error,
        },
        format: match format {
            Format::Json => telemetry::Format::Json,
            Format::Console => telemetry::Format::Human,
        },
        outputs: vec![telemetry::Output::Stderr],
        queue_bytes: LOG_QUEUE_BYTES,
    }
}
