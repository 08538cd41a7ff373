//! The crate's error: everything that can go wrong before serving starts.

use std::io;
use std::path::PathBuf;

/// Why a listener, its TLS files or a worker could not be set up. Texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listen address could not be understood or resolved.
    #[error("cannot listen on {address}: {reason}")]
    Address {
        /// The address as configured.
        address: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The operating system refused a listen address.
    #[error("cannot listen on {address}: {source}{advice}")]
    Bind {
        /// The address as configured.
        address: String,
        /// The system's error.
        source: io::Error,
        /// What to do, if we know; begins with a separator.
        advice: &'static str,
    },
    /// A TLS file cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    TlsRead {
        /// Which file: "certificate file" and so on.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A TLS file was read but cannot be used.
    #[error("the {what} {} cannot be used: {reason}", path.display())]
    TlsFile {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS settings that contradict each other or that this server does not offer.
    #[error("TLS settings: {0}")]
    TlsSettings(String),
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
    /// A worker's thread or runtime could not be made.
    #[error("cannot start a serving thread: {0} (check the limits on threads and open files)")]
    Worker(#[source] io::Error),
}

/// Advice for an error of `bind` or `listen`.
pub(crate) fn bind_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process serves there: stop it, or choose another address"
        }
        io::ErrorKind::PermissionDenied => {
            "; use a port above 1023 or a directory that this user may write to, or grant \
             CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this machine has that address: check the listen URL"
        }
        _ => "",
    }
}
