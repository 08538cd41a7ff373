//! Which node a single request goes to, by what its own node knows at that moment.

use crate::Node;

/// A node that could serve a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The node.
    pub node: Node,
    /// Round trip to it in ms.
    pub round_trip_ms: f64,
    /// Time that a request takes in a pod there, in ms.
    pub serving_ms: f64,
    /// Requests that its ready pods serve at once, all together; above 0.
    pub slots: f64,
    /// Requests that are there or on their way, as far as the sender knows.
    pub in_flight: f64,
}

/// When a request sent now is expected to be answered, in ms: the round trip, the serving time,
/// and the turns of others before it if all slots are taken.
#[must_use]
pub fn expected_ms(target: &Target) -> f64 {
    let turns = ((target.in_flight + 1.0) / target.slots).max(1.0);
    target.round_trip_ms + target.serving_ms * turns
}

/// The target with the least expected response time; the first one of equals.
#[must_use]
pub fn choose(targets: &[Target]) -> Option<Node> {
    let mut best: Option<(Node, f64)> = None;
    for target in targets {
        let ms = expected_ms(target);
        if best.is_none_or(|(_, least)| ms < least) {
            best = Some((target.node, ms));
        }
    }
    best.map(|(node, _)| node)
}
