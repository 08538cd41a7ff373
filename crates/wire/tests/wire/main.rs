//! The transport as clients see it, over real sockets on the loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by a panic"
)]

mod calls;
mod certs;
mod common;
mod lifecycle;
mod limits;
mod tls;
