//! Simulated nodes, links, users and pods, on which the placement decision is judged.
//!
//! A [`Scenario`] is run under each [`Policy`] with the same users. The policy `ours` calls the
//! crate `placement` as the controller does: [`placement::decide`] where pods go,
//! [`placement::choose`] where a request goes. Time is simulated; nothing is measured of the
//! machine but the processor time of the decisions. The same scenario, policy and seed give the
//! same outcome.
//!
//! What is simpler than reality: a node's pods of one service share one queue (as the router of
//! part 2 will have it), a link has no bandwidth, a pod has a start time and no image to pull.

mod engine;
mod error;
mod outcome;
mod place;
mod report;
mod route;
mod scenario;
mod service;

pub use engine::run;
pub use error::Error;
pub use outcome::{Outcome, Sample};
pub use report::{Summary, html, summarize, table};
pub use scenario::{Policy, Scenario};
