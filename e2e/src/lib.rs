//! End-to-end tests of orlop with real clients.

pub mod differential;
pub mod kube;
