//! What ends the controller.

/// What ends the controller, or keeps it from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No apiserver is named.
    #[error(
        "no apiserver is known: {0}; run in a pod with a ServiceAccount, or set KUBECONFIG or \
         --kubeconfig"
    )]
    NoCluster(String),
    /// The client cannot be made.
    #[error("cannot make a client of the apiserver: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The pages cannot be served.
    #[error("cannot serve metrics and probes: {0}; choose another --metrics-addr")]
    Pages(#[source] wire::Error),
}
