//! What ends the controller.

/// What ends the controller, or keeps it from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pages cannot be served.
    #[error("cannot serve metrics and probes: {0}; choose another --metrics-addr")]
    Pages(#[source] wire::Error),
}
