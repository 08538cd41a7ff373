//! Reads and bulk-writes bbolt database files, the format of etcd's `member/snap/db` and
//! of its snapshots (bbolt 1.3 to 1.5, file version 2).
//!
//! [`Database`] reads a file that came from anywhere: it never panics, holds one page run
//! a tree level in memory, ends on every input, and says which page and byte is wrong.
//! [`Planner`] and [`Writer`] write a new file front to back in two passes over the same
//! items, so that its size is known before its first byte and memory does not grow with
//! it.
//!
//! The crate knows pages, buckets and keys. It knows nothing of etcd's buckets, nor of the
//! SHA-256 behind a snapshot. It changes no existing file, and uses no memory map.
//!
//! Source of the format: `page.go`, `meta.go`, `bucket.go` and `tx_check.go` of
//! `go.etcd.io/bbolt`.

mod check;
mod cursor;
mod database;
mod error;
mod format;
mod layout;
mod node;
mod source;
mod writer;

pub use check::Report;
pub use cursor::{Cursor, Entry};
pub use database::{Bucket, Database};
pub use error::Error;
pub use format::{DEFAULT_PAGE_SIZE, MAX_KEY_BYTES, MAX_RUN_BYTES, MAX_VALUE_BYTES, Meta};
pub use source::ReadAt;
pub use writer::{Plan, Planner, Writer};
