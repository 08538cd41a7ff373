//! What can go wrong.

use std::path::PathBuf;

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The UDP socket.
    #[error(
        "cannot listen for probes on UDP {address}: {source}; is another agent running, or is --listen wrong?"
    )]
    Listen {
        /// Where it should listen.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of peers that cannot be read.
    #[error("cannot read the peers of {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A peer that cannot be understood.
    #[error(
        "peer {text:?} {place}: {why}; a peer is NAME ADDRESS [ZONE], the address with or without a port"
    )]
    Peer {
        /// What was given.
        text: String,
        /// Where.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting that is out of its range.
    #[error("{name} is {value}; it must be {range}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// No way to the cluster's API.
    #[error(
        "no cluster is configured: {0}; give --kubeconfig, or --peers FILE to run without a cluster"
    )]
    Cluster(String),
    /// The pages.
    #[error(transparent)]
    Pages(#[from] wire::Error),
}
