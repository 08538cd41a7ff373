//! The orlop command: an etcd v3 server for Kubernetes.

fn main() {}
