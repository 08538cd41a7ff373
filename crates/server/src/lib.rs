//! The etcd v3 API on the engine and the journal.
//!
//! It turns requests into the engine's operations, takes the engine's batches to the
//! journal, and answers when they are durable and visible; it serves watches, health and
//! metrics. It may not hold a lock across an await, do file I/O other than
//! through the journal's file system, or
//! decide what etcd's semantics are: that is the engine's.
//!
//! A put goes `kv` → `write` → engine's sequencer → `commit_log` → journal, and back.

mod admin;
mod backup;
mod commit_log;
mod encode;
mod engine_lock;
mod error;
mod expiry;
mod followers;
mod http;
mod kv;
mod lease;
mod lifecycle;
mod maintenance;
mod memory;
mod offload;
mod permissions;
mod rates;
mod read;
mod read_gate;
mod service;
mod settings;
mod shards;
mod shared;
mod start;
mod status;
mod storage;
mod store;
mod switch;
mod sync;
mod upkeep;
mod watch;
mod write;

pub use admin::ADMIN_SOCKET;
pub use error::Error;
pub use read_gate::{Closed, Passing, ReadGate};
pub use start::{Server, Started};
pub use storage::RulesError;
