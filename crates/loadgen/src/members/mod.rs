//! `orlop bench members`: what it is worth to a client of several etcd members to call the one
//! that leads.
//!
//! Real members of etcd on this machine, as far apart as asked for, are called in different
//! ways in turn: spread over all of them as etcd's client does, through `orlop proxy`, or
//! straight. Rounds alternate, so that ratios are of neighbours in time.

pub mod cli;
pub(crate) mod report;
mod run;
mod tool;

pub use cli::{Args, run};
