//! Which pods serve whose traffic, if each request goes to the nearest pod that has time.

use crate::Node;
use crate::demand::Load;
use crate::response::Unqueued;

/// Pairs of a source and a node with pods up to which every pair is looked at; above it each
/// source looks at its nearest [`NEAREST`] nodes first.
const ALL_PAIRS: usize = 4096;
const NEAREST: usize = 8;
/// Cost of demand that nobody serves, in ms.
const UNSERVED_MS: f64 = 10_000.0;
/// Less demand than this is none.
pub(crate) const EPSILON: f64 = 1e-6;

/// Demand of a source that a node's pods serve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// Index of the source.
    pub(crate) source: usize,
    /// R between the two.
    pub(crate) ms: f64,
    /// In pods.
    pub(crate) amount: f64,
}

/// Who serves whom.
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    /// All flows.
    pub(crate) flows: Vec<Flow>,
    /// What nobody serves, by index of the source, in pods.
    pub(crate) unserved: Vec<f64>,
    /// What is used of each node's pods, in the order of `pods`.
    pub(crate) used: Vec<f64>,
}

impl Assignment {
    /// Demand times response time.
    pub(crate) fn cost(&self) -> f64 {
        let served: f64 = self.flows.iter().map(|flow| flow.amount * flow.ms).sum();
        let unserved: f64 = self.unserved.iter().sum();
        served + unserved * UNSERVED_MS
    }
}

/// R of sources and nodes with pods, in order. One decision assigns the same sources to almost the
/// same pods again and again: only what is added is looked at anew.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sources: Vec<Node>,
    /// In order.
    nodes: Vec<Node>,
    /// R, index of the source, index of the node; the nearest first.
    pairs: Vec<(f64, u32, u32)>,
}

impl Table {
    /// Has at least these sources and pods.
    fn prepare(
        &mut self,
        response: &Unqueued<'_>,
        sources: &[Load],
        pods: &[(Node, u32)],
        steps: &mut u64,
    ) {
        let same = self.sources.iter().eq(sources.iter().map(|(node, _)| node));
        let has = |node: &Node| self.nodes.binary_search(node).is_ok();
        if same && pods.iter().all(|(node, _)| has(node)) {
            return;
        }
        let mut nodes: Vec<Node> = pods.iter().map(|(node, _)| *node).collect();
        if same && sources.len() * (self.nodes.len() + nodes.len()) <= ALL_PAIRS {
            nodes.append(&mut self.nodes);
            nodes.sort_unstable();
            nodes.dedup();
        }
        let all: Vec<(Node, u32)> = nodes.iter().map(|node| (*node, 1)).collect();
        self.pairs = pairs(response, sources, &all, usize::MAX, steps);
        self.pairs.sort_unstable_by(nearest_first);
        self.sources = sources.iter().map(|(node, _)| *node).collect();
        self.nodes = nodes;
    }

    fn assign(&self, sources: &[Load], pods: &[(Node, u32)]) -> Assignment {
        let mut left = vec![0.0; self.nodes.len()];
        // Both are in order.
        let mut at = 0;
        let places = pods.iter().map(|(node, count)| {
            while self.nodes[at] != *node {
                at += 1;
            }
            left[at] = f64::from(*count);
            at
        });
        let places: Vec<usize> = places.collect();
        let mut unserved: Vec<f64> = sources.iter().map(|(_, demand)| *demand).collect();
        let mut flows = Vec::with_capacity(sources.len() + pods.len());
        fill(&self.pairs, &mut unserved, &mut left, &mut flows);
        let used = pods.iter().zip(places);
        let used = used.map(|((_, count), at)| f64::from(*count) - left[at]);
        Assignment {
            used: used.collect(),
            flows,
            unserved,
        }
    }
}

/// Gives demand to pods, the nearest pairs first. That is the one stable matching of the two, so
/// a further pod makes it worse for no source.
///
/// `sources` have a demand in pods, `pods` a number of pods each and are in order; `steps` counts the
/// values of R looked at.
pub(crate) fn assign(
    table: &mut Table,
    response: &Unqueued<'_>,
    sources: &[Load],
    pods: &[(Node, u32)],
    steps: &mut u64,
) -> Assignment {
    if sources.len() * pods.len() <= ALL_PAIRS {
        table.prepare(response, sources, pods, steps);
        return table.assign(sources, pods);
    }
    let mut left: Vec<f64> = pods.iter().map(|(_, count)| f64::from(*count)).collect();
    let mut unserved: Vec<f64> = sources.iter().map(|(_, demand)| *demand).collect();
    let mut flows = Vec::new();
    let mut pairs = pairs(response, sources, pods, NEAREST, steps);
    pairs.sort_unstable_by(nearest_first);
    fill(&pairs, &mut unserved, &mut left, &mut flows);
    if unserved.iter().any(|demand| *demand > EPSILON) {
        // Whose nearest are full looks at everybody who is not.
        let open: Vec<usize> = (0..pods.len()).filter(|&j| left[j] > EPSILON).collect();
        let mut rest = Vec::new();
        for (k, (from, _)) in sources.iter().enumerate() {
            if unserved[k] <= EPSILON {
                continue;
            }
            *steps += open.len() as u64;
            for &j in &open {
                if let Some(ms) = response.ms(*from, pods[j].0) {
                    rest.push((ms, k as u32, j as u32));
                }
            }
        }
        rest.sort_unstable_by(nearest_first);
        fill(&rest, &mut unserved, &mut left, &mut flows);
    }
    let used = pods
        .iter()
        .zip(&left)
        .map(|((_, count), left)| f64::from(*count) - left)
        .collect();
    Assignment {
        flows,
        unserved,
        used,
    }
}

/// By R; of equals the lower source, then the lower node.
fn nearest_first(a: &(f64, u32, u32), b: &(f64, u32, u32)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
}

fn pairs(
    response: &Unqueued<'_>,
    sources: &[Load],
    pods: &[(Node, u32)],
    nearest: usize,
    steps: &mut u64,
) -> Vec<(f64, u32, u32)> {
    let mut pairs = Vec::new();
    let mut row: Vec<(f64, u32, u32)> = Vec::with_capacity(pods.len());
    for (k, (from, _)) in sources.iter().enumerate() {
        row.clear();
        *steps += pods.len() as u64;
        for (j, (to, count)) in pods.iter().enumerate() {
            if *count == 0 {
                continue;
            }
            if let Some(ms) = response.ms(*from, *to) {
                row.push((ms, k as u32, j as u32));
            }
        }
        if row.len() > nearest {
            row.select_nth_unstable_by(nearest, |a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
            row.truncate(nearest);
        }
        pairs.extend_from_slice(&row);
    }
    pairs
}

fn fill(pairs: &[(f64, u32, u32)], unserved: &mut [f64], left: &mut [f64], flows: &mut Vec<Flow>) {
    for &(ms, source, node) in pairs.iter() {
        let (source, node) = (source as usize, node as usize);
        let amount = unserved[source].min(left[node]);
        if amount > 0.0 {
            unserved[source] -= amount;
            left[node] -= amount;
            flows.push(Flow { source, ms, amount });
        }
    }
}
