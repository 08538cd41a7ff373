//! orlop's store: etcd's MVCC semantics in memory.
//!
//! It holds the sequencer, index, history, leases, compaction and hashes. It may not do
//! I/O, know an async runtime, or read a clock: callers pass time in and take records out
//! for the journal. A put goes [`Engine::submit`] → [`Engine::take_batch`] → (journal) →
//! [`Engine::complete`].

mod attached;
mod batch;
mod compaction;
mod compare;
pub mod cover;
pub mod error;
mod execute;
mod footprint;
pub mod hash;
mod held_keys;
pub mod history;
pub mod index;
pub mod interval;
mod key_order;
pub mod lane;
pub mod lease;
pub mod limits;
mod lock;
pub mod op;
pub mod pin;
mod plan;
pub mod range;
pub mod read_txn;
pub mod record;
pub mod restore;
pub mod sequencer;
mod slab;
pub mod snapshot;
mod state;
mod steps;
pub mod tail;
pub mod versions;
mod waiting;

pub use error::Error;
pub use lane::Lane;
pub use limits::Limits;
pub use state::{Engine, Sizes};
