//! A node's agent: it measures the round trips from its node to the others by a UDP echo of its
//! own, answers theirs, and publishes what it saw.
//!
//! The core is pure: [`packet`], [`limit`], [`targets`], [`window`] and [`prober`] have no sockets
//! and no clock; time is a number of microseconds that never goes back. [`agent`] puts sockets
//! around it, [`roster`] follows the nodes of a cluster or of a file, [`pages`] publishes.
//!
//! It decides nothing, and knows nothing of pods or of placement.

pub mod agent;
mod error;
pub mod limit;
pub mod packet;
pub mod pages;
pub mod prober;
pub mod roster;
pub mod targets;
pub mod window;

pub use error::Error;

/// Name of a node, as Kubernetes has it.
pub type NodeName = std::sync::Arc<str>;
