//! What can go wrong in a benchmark, in words for whoever runs it.

use std::path::PathBuf;

/// Why a benchmark ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked to stop.
    #[error("interrupted: everything that was started has been stopped")]
    Interrupted,
    /// An argument that makes no sense with the others.
    #[error("{0}")]
    Argument(String),
    /// No connection to the server.
    #[error("no connection to {endpoint}: {reason}; is a server listening there, without TLS?")]
    Connect {
        /// Host and port.
        endpoint: String,
        /// What the system or HTTP/2 said.
        reason: String,
    },
    /// A call failed; under a closed loop none should.
    #[error("{method}: {reason}")]
    Call {
        /// The gRPC method's path.
        method: String,
        /// The status, or what broke below gRPC.
        reason: String,
    },
    /// A response that contradicts what was written before.
    #[error("{0}: the server answered wrongly, so its speed says nothing")]
    Wrong(String),
    /// The server went silent.
    #[error("no end after {seconds} s while {what}: the server is stuck or far too slow")]
    Stuck {
        /// What was waited for.
        what: &'static str,
        /// How long, in seconds.
        seconds: u64,
    },
    /// A client thread panicked: a bug here.
    #[error("a client thread of the benchmark panicked; this is a bug in the benchmark")]
    Panicked,
    /// A server to compare did not start.
    #[error("{program} did not start: {reason}")]
    Start {
        /// Which server.
        program: String,
        /// Its last words.
        reason: String,
    },
    /// No etcd to compare with.
    #[error(
        "no etcd found ({0}); name one with --etcd-bin, put it on PATH, or build the pinned one: `orlop playground --store etcd --build-only`"
    )]
    NoEtcd(String),
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
    Apiserver(String),
    /// Bytes of the apiserver that are not what they should be.
    #[error("an answer of the apiserver cannot be read: {0}")]
    Decode(String),
    /// The count of a run on Kubernetes is not what was asked for, or something is stuck: its
    /// figures say nothing. Others may be good.
    #[error("the run failed: {0}")]
    Count(String),
    /// A control plane did not start or did not go on, or refused a request.
    #[error(transparent)]
    Cluster(#[from] playground::Error),
    /// A file or directory.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something that the system refused, not about one file.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::System { what, source }
    }
}
