//! Where a service's pods should be, and how near each node is to them.
//!
//! For a request that enters at node `i` and is served at node `j`, the expected response time is
//! `R[i][j] = P[j] + L[i][j]`: the serving time on `j`, and the round trip between the two.
//! [`weights`] spreads a node's traffic by `1 / R`; [`decide`] adds and takes away pods.
//!
//! This crate is pure: no clock, no I/O, no randomness. The same input gives the same decision,
//! in the simulator and in a cluster. It knows no Kubernetes object; who calls it translates.
//! Nodes are small numbers ([`Node`]) that the caller gives out.

mod assign;
mod damped;
mod decide;
mod demand;
mod fit;
mod numbers;
mod response;
mod room;
mod round_trips;
mod route;
mod serving;
mod settings;
mod view;

pub use decide::{Decision, Memory, decide};
pub use fit::{
    Constraints, Effect, Labels, Operator, Requirement, Taint, Term, Toleration, misfit,
};
pub use numbers::Numbers;
pub use response::{Response, weights};
pub use room::{NodeState, Resources, Room};
pub use round_trips::{Link, RoundTrips};
pub use route::{Target, choose, expected_ms};
pub use serving::ServingTimes;
pub use settings::{Settings, SettingsError};
pub use view::{Cluster, Entered, Move, Pods, Reason, ServiceView};

/// A node of the cluster: an index that the caller gives out, from 0, without large gaps.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Node(pub u32);

impl Node {
    /// The index into tables by node.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
