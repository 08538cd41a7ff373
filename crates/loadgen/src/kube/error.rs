//! What can go wrong in `orlop bench kube`, in words for whoever runs it.

use std::path::PathBuf;

/// Why a benchmark ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked to stop.
    #[error("interrupted: everything that was started has been stopped, there is no result")]
    Interrupted,
    /// An argument that makes no sense with the others.
    #[error("{0}")]
    Argument(String),
    /// A kubeconfig that cannot be used.
    #[error("kubeconfig {path}: {why}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No answer from the apiserver.
    #[error("no answer from the apiserver: {0}")]
    Transport(String),
    /// An answer that is not a success.
    #[error("{method} {path}: HTTP {status}: {message}")]
    Status {
        /// HTTP method.
        method: String,
        /// Path and query.
        path: String,
        /// HTTP status.
        status: u16,
        /// What Kubernetes says.
        message: String,
    },
    /// Bytes that are not what they should be.
    #[error("an answer of the apiserver cannot be read: {0}")]
    Decode(String),
    /// The count is not what was asked for, or something is stuck: the figures say nothing.
    #[error("the run failed: {0}")]
    Count(String),
    /// The control plane did not start or did not go on.
    #[error(transparent)]
    Cluster(#[from] playground::Error),
    /// A file, a process, a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// Result of everything here.
pub(crate) type Result<T> = std::result::Result<T, Error>;
