//! gRPC and HTTP transport on hyper: listeners, TLS, per-core runtimes, framing, limits.
