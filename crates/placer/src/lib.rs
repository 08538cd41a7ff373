//! The loop that decides on which nodes the pods of services are.
//!
//! Each round it takes what is known (round trips, traffic, serving times, nodes, pods), has
//! [`placement::decide`] decide, and writes the wanted pods of each node into the service's Seika.
//! [`state`] is a round without I/O and without a clock; [`objects`] and [`quantity`] make of
//! Kubernetes' objects what it needs; the `election` crate says who of several loops acts. [`prometheus`]
//! reads what was measured, [`run`] does the rest that touches the world, [`pages`] and
//! [`explain`] show it.
//!
//! It makes no pods: that is Seika's controller. Where something that it decides by is missing or
//! old, it changes nothing and says so.

mod error;
pub mod explain;
pub mod hold;
pub mod input;
pub mod objects;
pub mod pages;
pub mod prometheus;
pub mod quantity;
pub mod run;
pub mod state;
mod tell;

pub use error::Error;
