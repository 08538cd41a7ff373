//! What a subcommand says: lines of progress, and why it ended without a result.

/// A subcommand's error; its text is for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The snapshot file.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// A data directory.
    #[error(transparent)]
    Directory(#[from] journal::OpenError),
    /// Writing to the new data directory.
    #[error(transparent)]
    Commit(#[from] journal::CommitError),
    /// The server that data is taken from.
    #[error(transparent)]
    Source(#[from] crate::import_source::SourceError),
    /// A file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It was refused, with the reason.
    #[error("{0}")]
    Refused(String),
    /// A signal came before there was a result.
    #[error("stopped by a signal; nothing is left of it")]
    Interrupted,
}

impl Failure {
    /// For `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Failure + use<> {
        let path = path.to_owned();
        move |source| Failure::Io {
            action,
            path,
            source,
        }
    }
}

/// Prints a line. A reader that has gone away (`| head`) ends no work.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}
pub(crate) use say;
