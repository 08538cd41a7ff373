//! A TCP proxy that has every connection at the member of an etcd cluster that leads.
//!
//! It relays bytes and looks into none of them: TLS goes from the client to the member, end to
//! end. Who leads it is told by `upstream`'s view; a client that would ask a follower, which has to
//! ask the leader again, asks the leader. When the lead moves, connections are ended so that
//! clients come back and meet the new leader: in a gap, where no call is under way as far as can be
//! seen from outside.
//!
//! What is decided for one connection is in `life`, a state machine of time and route alone; who
//! carries it out is in `connection`, bytes move in `relay`, and `serve` has the threads.
//!
//! It may not terminate TLS, read what clients say beyond the first byte of a connection (which
//! tells TLS), or use the store's crates.

mod admin;
mod book;
mod connection;
mod error;
mod header;
mod keeper;
mod life;
#[cfg(test)]
mod model;
mod relay;
mod route;
mod serve;
mod settings;
#[cfg(test)]
mod simulation;
mod socket;

pub use admin::Admin;
pub use book::Suspect;
pub use error::Error;
pub use serve::Proxy;
pub use settings::{Fallback, Settings};
