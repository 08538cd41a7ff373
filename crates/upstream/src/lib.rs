//! An etcd cluster from outside: its members, who of them leads, and calls to the right one.
//!
//! [`watch`] asks the members and publishes a [`View`]; [`Client`] makes calls by it. What is
//! thought of a cluster is in [`Cluster`], which has no input and output of its own.
//!
//! It is for commands that are clients of an etcd, or of a server of ours: [`Dialer`] is how they
//! connect. It may not serve anything, and the store's own crates may not use it.

mod auth;
mod client;
mod cluster;
mod endpoint;
mod error;
mod line;
pub mod plain;
mod prober;
mod settings;
mod view;

pub use client::{Attempt, Client, Headed, Pinned, Policy, Routes, Watch, Work};
pub use cluster::{Agreed, Answer, Cluster, Failure, Hint, Listed, Timing};
pub use endpoint::{Endpoint, InvalidEndpoint, Scheme};
pub use error::{CallError, Done, Error, explain};
pub use line::{Dialer, Line};
pub use prober::{Handle, watch};
pub use settings::{Settings, User};
pub use view::{Health, Leader, MemberView, RoundTrip, View};
