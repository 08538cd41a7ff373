//! The crate's error.

use std::io;

/// Why a proxy could not start. Texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that contradict each other or cannot work.
    #[error("{0}")]
    Settings(String),
    /// An address that cannot be listened on.
    #[error(transparent)]
    Listen(#[from] wire::Error),
    /// A thread or its runtime could not be made.
    #[error("cannot start a relaying thread: {0} (check the limits on threads and open files)")]
    Thread(#[source] io::Error),
}
