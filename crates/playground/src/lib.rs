//! A real Kubernetes control plane on loopback: a store (orlop, etcd, or several members of
//! etcd, as far apart as asked for), the released kube-apiserver, kube-controller-manager and kube-scheduler, and hollow nodes.
//!
//! The library behind `orlop playground`, under the end-to-end tests and `orlop bench kube`.
//! Everything runs in one directory and ends with the value that owns it. It may not know
//! anything of orlop but its command line: it speaks to Kubernetes as a user does, and to
//! the store as an etcd client does.

pub mod api;
pub mod args;
pub mod backend;
pub mod bins;
pub mod cli;
pub mod cluster;
pub mod control_plane;
pub mod etcdctl;
pub mod guard;
pub mod http;
pub mod kwok;
pub mod members;
pub mod metrics;
pub mod pki;
pub mod proc;
pub mod proxy;
pub mod shards;
pub mod store;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What can go wrong while driving a control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A check failed, or a program did not do what it should; the text says it all.
    #[error("{0}")]
    Failed(String),
    /// No answer, or half of one, from a server.
    #[error("no answer: {0}")]
    Transport(String),
    /// An answer that is not a success.
    #[error("{method} {path}: HTTP {status}: {message}")]
    Status {
        /// HTTP method.
        method: String,
        /// Path with its query.
        path: String,
        /// HTTP status code.
        status: u16,
        /// The `message` of Kubernetes' Status object, or the body.
        message: String,
    },
    /// A file or process could not be worked with.
    #[error("input/output: {0}")]
    Io(#[from] std::io::Error),
    /// A delayed link cannot be made.
    #[error(transparent)]
    Link(#[from] netdelay::Error),
    /// An answer that is not JSON.
    #[error("not the JSON expected: {0}")]
    Json(#[from] serde_json::Error),
    /// A certificate could not be made.
    #[error("certificate: {0}")]
    Cert(#[from] rcgen::Error),
}

impl Error {
    /// HTTP status of the answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// An [`Error::Failed`] as a result, for checks.
///
/// # Errors
/// Always.
pub fn fail<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Failed(text.into()))
}

/// Fails with `text` unless `ok`.
///
/// # Errors
/// [`Error::Failed`] when `ok` is false.
pub fn ensure(ok: bool, text: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { fail(text()) }
}

/// Calls `check` until it gives a value, for at most `timeout`; between calls it
/// waits a little. Errors count as "not yet"; the last one is reported.
///
/// # Errors
/// [`Error::Failed`] when the time is over, naming `what` was awaited.
pub async fn eventually<T, F, Fut>(what: &str, timeout: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let began = Instant::now();
    let mut last = String::from("the condition does not hold");
    loop {
        match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = error.to_string(),
        }
        if began.elapsed() > timeout {
            return fail(format!(
                "{what}: not within {} s: {last}",
                timeout.as_secs()
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Directory of the binaries of a pinned set (`etcd`, `kube-1.37`, ...).
///
/// # Errors
/// [`Error::Failed`] with what to run when the set is not built.
pub fn binaries(set: &str) -> Result<PathBuf> {
    let set = bins::set(set)?;
    let dir = set.bin_dir()?;
    ensure(dir.is_dir(), || {
        format!(
            "{name} is not built: run e2e/build-bins {name}",
            name = set.name
        )
    })?;
    Ok(dir)
}
