//! gRPC and HTTP transport on hyper: listeners, TLS, per-core runtimes, framing, limits.
//!
//! It serves any gRPC service and knows nothing of etcd: a user gives it a table of [`Method`]s and
//! a [`Handler`] a worker. Each worker is one thread with one single-threaded runtime; a connection
//! lives on one worker from its first byte to its last, so handlers need neither locks nor `Send`.
//! Each request is a task of its own, so that the replies of one turn share one write.
//!
//! It may not decode messages, and it may not hold a lock across an await.
//!
//! **Panics.** A panic of a handler fails its call, with INTERNAL or 500: what a handler shares with
//! others it changes in sections that the `threads` crate knows as critical, and a panic in those
//! ends the process, so nothing half done is ever served. Any other panic on the acceptor's or a
//! worker's thread ends the process too: a worker that is silently missing is worse than a restart.

mod config;
mod conn;
mod error;
pub mod files;
mod grpc;
mod half_open;
mod handler;
mod io;
mod listener;
mod local;
pub mod mailbox;
mod memory;
mod message;
mod pages;
mod pings;
mod server;
mod service;
mod shed;
mod stream;
mod tls;
mod transfer;
mod turn;
mod unary;
mod worker;

pub use config::Config;
pub use error::Error;
pub use grpc::{Code, Frame, MAX_MESSAGE_BYTES, Status};
pub use handler::{
    Call, Event, Handler, HttpRequest, Kind, LocalFuture, Method, Peer, PeerTls, Reply,
};
pub use listener::{Address, BoundListener, ListenerConfig, Serves, bind};
pub use local::Closing;
pub use mailbox::{Mailboxes, Pending, SlotId, Slots};
pub use memory::{Claim, Room, Unread};
pub use pages::{Page, Pages};
pub use server::{Counts, Server};
pub use stream::{Closed, Inbound, Outbound, Refused};
pub use tls::{
    Certificate, ClientCheck, ClientTls, ClientTlsConfig, ServerTls, TlsConfig, TlsVersion,
    check_client_certificate, check_client_certificate_at, names_issuer,
};
pub use transfer::{Slow, Transfer};
pub use turn::timed;
pub use worker::current_worker;

/// The number of a worker, from 0.
pub type WorkerId = usize;
