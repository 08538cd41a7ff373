//! What tests do with a Kubernetes control plane. The control plane itself, its
//! store and its certificates come from the `playground` crate; here are nodes
//! without kubelets, checks of what a watch promises, and scenarios.
//!
//! Logs are printed when a test panics. This module may not know anything of
//! orlop but its command line: it speaks to Kubernetes as a user does, and to the
//! store through etcdctl.

pub mod ledger;
pub mod node;
pub mod proc;
pub mod reflector;
pub mod scenarios;
pub mod steps;

pub use playground::{
    Error, Result, api, binaries, control_plane, ensure, etcdctl, eventually, fail, http, metrics,
    pki, store,
};
