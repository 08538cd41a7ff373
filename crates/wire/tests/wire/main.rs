//! The transport as clients see it, over real sockets on the loopback.

mod calls;
mod common;
