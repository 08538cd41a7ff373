//! Policies on objects as Kubernetes stores them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod fields;
mod objects;
mod robust;
mod rules;
mod stored;
mod surgery;
