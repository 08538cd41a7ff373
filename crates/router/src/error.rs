//! What stops a router from running.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why there is no router.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of services cannot be read.
    #[error("cannot read the services of {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It cannot be used.
    #[error("the services of {} cannot be used: {why}", path.display())]
    Services {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// Nobody can connect.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// TLS or pages.
    #[error(transparent)]
    Wire(#[from] wire::Error),
}
