//! What goes into a decision, and its reasons.

use crate::{Node, Resources, RoundTrips, Settings};

/// What all services have in common in a round.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// L.
    pub round_trips: &'a RoundTrips,
    /// Mean serving time of all services in ms; stands for a service that has none yet.
    pub prior_ms: f64,
    /// Settings.
    pub settings: &'a Settings,
}

/// Pods of a service on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// That are wanted there: what the last decision said.
    pub wanted: u32,
    /// That are ready.
    pub ready: u32,
}

/// Requests that entered at a node. That it is a count, and no rate, says how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entered {
    /// The node.
    pub node: Node,
    /// How many; a rate times its window where nobody counted.
    pub requests: f64,
    /// In so many seconds; above 0.
    pub over_s: f64,
}

/// One service in a round.
#[derive(Clone, Debug)]
pub struct ServiceView<'a> {
    /// Requests that entered at each node, counted over the window.
    pub entries: &'a [Entered],
    /// From one round to the next, in seconds; above 0.
    pub round_s: f64,
    /// Its pods. Nodes with none may be left out.
    pub pods: &'a [(Node, Pods)],
    /// Requests that a pod serves at once; above 0.
    pub concurrency: f64,
    /// What a pod asks for.
    pub request: Resources,
    /// By node: whether the template may run there. Nodes beyond the end may not.
    pub allowed: &'a [bool],
    /// By node: whether it is lost. Its pods are wanted elsewhere.
    pub lost: &'a [bool],
    /// By node: whether it holds the image.
    pub image_on: &'a [bool],
    /// Nodes that could not run what was wanted there: what is not ready is taken back, and they
    /// get nothing.
    pub blocked: &'a [Node],
    /// Most pods on a node.
    pub max_per_node: Option<u32>,
    /// Fewest pods in all.
    pub min_pods: u32,
    /// Most pods in all.
    pub max_pods: Option<u32>,
}

/// Why a pod was added, taken away or moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Traffic of a node had no pod with time for it.
    Unserved {
        /// Whose traffic.
        traffic_of: Node,
        /// R from there, in ms.
        response_ms: f64,
    },
    /// Traffic of a node was served much farther away.
    Nearer {
        /// Whose traffic.
        traffic_of: Node,
        /// R from there to the new pod, in ms.
        response_ms: f64,
    },
    /// The least number of pods.
    Minimum,
    /// The others bear the traffic.
    NotNeeded,
    /// More than the most that is allowed.
    Maximum,
    /// The node is lost.
    NodeLost,
    /// The node could not run it.
    NodeBlocked,
}

/// A change of the wanted number of pods of one node by one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// The node.
    pub node: Node,
    /// Whether a pod is added; else one is taken away.
    pub add: bool,
    /// Why.
    pub reason: Reason,
}
