//! TCP links on loopback whose bytes arrive later, as they would over a distance.
//!
//! A [`Network`] is a thread with relays. A relay accepts connections in a program's place,
//! and holds every byte for the time of its direction ([`Delay`], which may change while
//! connections are open) before it hands it on. Many bytes are under way at once: a delay costs
//! no throughput, up to [`LINK_BYTES_MAX`] a direction. It knows no protocol but TCP and, where
//! a client has to name its peer, HTTP's CONNECT.
//!
//! What it is for: a cluster's members on one machine that act as if they were far apart, where
//! the kernel's own delays (netem) are not to be had. It may not know what runs over it.
//!
//! What is like a real distance: each direction's delay, the order of bytes, the end of each
//! direction, the round trip that opening a connection takes. What is not: no byte is lost, no
//! window grows slowly, and a connection to a port at which nobody listens is closed, not
//! refused.

mod connect;
mod delay;
mod network;
mod pipe;
mod timer;

pub use delay::Delay;
pub use network::{Delays, Network, Route};
pub use pipe::{LINK_BYTES_MAX, READ_BYTES_MAX};

use std::net::SocketAddr;

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread, its runtime or its timer cannot be made.
    #[error("no thread for delayed links: {0}")]
    Thread(std::io::Error),
    /// The address cannot be listened on.
    #[error("a delayed link cannot listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}
