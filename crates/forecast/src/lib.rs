//! How well each member of an etcd cluster would lead it: measured from outside, classified,
//! recorded, learned from, and, if told to, acted on.
//!
//! | modules | |
//! |---|---|
//! | [`schema`], [`dataset`], [`rate`] | what is known of a member at a time, and data sets of that |
//! | `page`, `scrape`, `probe`, [`collect`] | where it is from: `/metrics`, Status, reads of our own |
//! | [`history`], [`cost`], [`thresholds`] | what a commit costs with each member as the leader, and what is wrong with each, without learning |
//! | [`experiment`] | which states members are put in, to learn from |
//! | [`decide`], [`guard`], `actor` | whether the lead moves, and that one process moves it |
//! | [`run`], [`admin`], [`check`] | the process that watches, its pages, and whether it fits a cluster |
//!
//! It is a client of an etcd like any other, and has no Kubernetes in it. The store's own crates
//! may not use it.

mod actor;
pub mod admin;
pub mod check;
pub mod collect;
pub mod cost;
pub mod dataset;
pub mod decide;
mod error;
pub mod experiment;
pub mod guard;
pub mod history;
mod page;
mod probe;
pub mod rate;
pub mod run;
pub mod schema;
mod scrape;
pub mod thresholds;

pub use error::Error;
