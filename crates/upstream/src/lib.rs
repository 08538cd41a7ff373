//! An etcd cluster from outside: its members, who of them leads, and calls to the right one.
//!
//! It is for commands that are clients of an etcd: they read the [`View`] that is published, or
//! call through it. It may not serve anything, and the store's own crates may not use it.

mod endpoint;
mod view;

pub use endpoint::{Endpoint, InvalidEndpoint, Scheme};
pub use view::{Health, Leader, MemberView, RoundTrip, View};
