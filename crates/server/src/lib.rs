//! The etcd v3 API on the engine and the journal.
//!
//! It turns requests into the engine's operations, takes the engine's batches to the
//! journal, and answers when they are durable and visible; it serves watches, health and
//! metrics. It may not hold a lock across an await, do file I/O other than
//! through the journal's file system, or
//! decide what etcd's semantics are: that is the engine's.
//!
//! A put goes `kv` → `write` → engine's sequencer → `durability` (or, if it is volatile,
//! `volatile`) → journal, and back.

mod admin;
mod backup;
mod beside;
mod durability;
mod encode;
mod error;
mod expiry;
mod http;
mod kv;
mod lease;
mod maintenance;
mod memory;
mod pace;
mod permissions;
mod rates;
mod read;
mod scheduled;
mod service;
mod shared;
mod start;
mod status;
mod storage;
mod store;
mod switch;
mod transfer;
mod turns;
mod upkeep;
mod volatile;
mod watch;
mod write;

pub use admin::ADMIN_SOCKET;
pub use error::Error;
pub use shared::ETCD_VERSION;
pub use start::{Server, Started};
pub use storage::RulesError;
