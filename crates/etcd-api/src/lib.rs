//! etcd v3 wire types and client stubs, generated from our own proto files.
