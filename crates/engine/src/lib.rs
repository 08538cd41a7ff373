//! orlop's store: etcd's MVCC semantics in memory.
//!
//! It holds the sequencer, index, history, watches, leases, compaction and hashes. It may
//! not do I/O, know an async runtime, or read a clock: callers pass time in and take
//! records out for the journal.

pub mod record;
