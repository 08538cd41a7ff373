//! Which pod a request goes to.

use std::collections::BTreeMap;

use placement::Node;

/// How a pod is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// A node by the weights `w[i][j]` of `placement`, then its pods in turn.
    #[default]
    LatencyWeighted,
    /// Of two pods at random the one that costs less ([`crate::PeakEwma::cost`]).
    LeastRequest,
    /// All pods in turn.
    RoundRobin,
    /// The own node's pods in turn; without one that can be used, as [`Policy::LatencyWeighted`].
    LocalFirst,
}

/// A pod that a request may go to: it is in nobody's way, its node's router answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The caller's number of the pod.
    pub pod: usize,
    /// Its node.
    pub node: Node,
    /// What it costs, for [`Policy::LeastRequest`].
    pub cost: f64,
}

/// Two random numbers, each from 0 to below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw(pub f64, pub f64);

/// The state of a service's policy.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    turn: usize,
    turns: BTreeMap<Node, usize>,
}

fn in_turn(turn: &mut usize, count: usize) -> usize {
    let at = *turn % count;
    *turn = at + 1;
    at
}

/// The one of `count` that a draw names.
fn drawn(draw: f64, count: usize) -> usize {
    ((draw * count as f64) as usize).min(count - 1)
}

impl Balancer {
    /// The pod for a request that enters at `here`. `weights` are those of `placement`; a node
    /// that has none there is not gone to, unless no node with a candidate has one.
    pub fn pick(
        &mut self,
        policy: Policy,
        here: Node,
        candidates: &[Candidate],
        weights: &[(Node, f64)],
        draw: Draw,
    ) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        match policy {
            Policy::RoundRobin => Some(candidates[in_turn(&mut self.turn, candidates.len())].pod),
            Policy::LeastRequest => Some(least(candidates, draw)),
            Policy::LocalFirst if candidates.iter().any(|c| c.node == here) => {
                self.of_node(here, candidates)
            }
            Policy::LatencyWeighted | Policy::LocalFirst => {
                let node = weighted(candidates, weights, draw.0);
                self.of_node(node, candidates)
            }
        }
    }

    fn of_node(&mut self, node: Node, candidates: &[Candidate]) -> Option<usize> {
        let count = candidates.iter().filter(|c| c.node == node).count();
        if count == 0 {
            return None;
        }
        let at = in_turn(self.turns.entry(node).or_default(), count);
        let mut of_node = candidates.iter().filter(|c| c.node == node);
        of_node.nth(at).map(|c| c.pod)
    }

    /// Forgets nodes that have no pod any more.
    pub fn keep(&mut self, has_pods: impl Fn(Node) -> bool) {
        self.turns.retain(|node, _| has_pods(*node));
    }
}

fn least(candidates: &[Candidate], draw: Draw) -> usize {
    let first = drawn(draw.0, candidates.len());
    if candidates.len() == 1 {
        return candidates[first].pod;
    }
    // Another one: so many steps from the first.
    let step = 1 + drawn(draw.1, candidates.len() - 1);
    let (a, b) = (
        candidates[first],
        candidates[(first + step) % candidates.len()],
    );
    if b.cost < a.cost { b.pod } else { a.pod }
}

fn weighted(candidates: &[Candidate], weights: &[(Node, f64)], draw: f64) -> Node {
    let usable = || {
        weights
            .iter()
            .filter(|(node, weight)| *weight > 0.0 && candidates.iter().any(|c| c.node == *node))
    };
    let sum: f64 = usable().map(|(_, weight)| weight).sum();
    let mut left = draw * sum;
    let mut last = None;
    for (node, weight) in usable() {
        last = Some(*node);
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last.unwrap_or_else(|| candidates[drawn(draw, candidates.len())].node)
}
