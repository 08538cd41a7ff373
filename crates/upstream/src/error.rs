//! Why a cluster cannot be reached, and why a call failed.

use crate::endpoint::Endpoint;
use tonic::Status;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("no endpoint is named")]
    NoEndpoint,
    /// https without an authority.
    #[error("{0}: an https endpoint needs the CA that signed the servers' certificates")]
    NoAuthority(Endpoint),
    /// Certificates for a plain endpoint.
    #[error("{0}: certificates are named, but the endpoint is not https")]
    NotHttps(Endpoint),
    /// A TLS file.
    #[error(transparent)]
    Tls(#[from] wire::Error),
}

/// What is known of a failed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was not made, and never will be.
    No,
    /// It may have been made, or may still be.
    Maybe,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No member could be asked.
    #[error("no member of the cluster answers ({0})")]
    Nobody(String),
    /// The last attempt failed.
    #[error("{endpoint}: {}", explain(.status))]
    Failed {
        /// Where.
        endpoint: Endpoint,
        /// The answer, or what stands for it.
        status: Box<Status>,
        /// Whether a write may have been made, by this attempt or one before.
        done: Done,
    },
}

impl CallError {
    /// Whether a write may have been made.
    #[must_use]
    pub fn done(&self) -> Done {
        match self {
            CallError::Nobody(_) => Done::No,
            CallError::Failed { done, .. } => *done,
        }
    }
}

/// A status for an operator: code, text, and the causes below, where TLS faults hide.
#[must_use]
pub fn explain(status: &Status) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    telemetry::and_causes(text, status)
}
