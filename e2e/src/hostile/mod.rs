//! Means to treat a server badly, and to see how it takes that: a server process whose
//! flags, environment and end the test decides ([`node`]), data to fill it with ([`load`]),
//! a client that behaves and measures meanwhile ([`good`]), calls with any bytes for a
//! message ([`call`]), connections that speak HTTP/2 wrongly ([`raw`]), and what large
//! operations cost others ([`stalls`], and [`watch_stalls`] for what watches do).

pub mod call;
pub mod good;
pub mod load;
pub mod node;
pub mod raw;
pub mod stalls;
mod stalls_txn;
pub mod watch_stalls;
