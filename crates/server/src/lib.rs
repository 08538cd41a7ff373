//! The etcd v3 API on the engine and the journal.
