//! Why a server does not start.

/// Why a server does not start. The text is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration and the data directory do not fit.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The data directory cannot be opened.
    #[error(transparent)]
    Open(#[from] journal::OpenError),
    /// A listener cannot be set up.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The storage rules cannot be used.
    #[error(transparent)]
    Rules(#[from] crate::storage::RulesError),
    /// The log fails at once.
    #[error(transparent)]
    Log(#[from] journal::CommitError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}; raise the limit on processes (ulimit -u, pids.max)")]
    Thread(#[from] std::io::Error),
}
