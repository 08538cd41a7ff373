//! Which pods serve whose traffic, if each request goes to the nearest pod that has time.

use crate::demand::Load;
use crate::{Node, Response};

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

/// Gives demand to pods, the nearest pairs first. That is the one stable matching of the two, so
/// a further pod makes it worse for no source.
///
/// `sources` have a demand in pods, `pods` a number of pods; `steps` counts the values of R looked
/// at.
pub(crate) fn assign(
    response: &Response<'_>,
    sources: &[Load],
    pods: &[(Node, u32)],
    steps: &mut u64,
) -> Assignment {
    let mut left: Vec<f64> = pods.iter().map(|(_, count)| f64::from(*count)).collect();
    let mut unserved: Vec<f64> = sources.iter().map(|(_, demand)| *demand).collect();
    let mut flows = Vec::new();
    let all = sources.len() * pods.len() <= ALL_PAIRS;
    let mut pairs = pairs(
        response,
        sources,
        pods,
        if all { usize::MAX } else { NEAREST },
        steps,
    );
    fill(&mut pairs, &mut unserved, &mut left, &mut flows);
    if !all && unserved.iter().any(|demand| *demand > EPSILON) {
        // Whose nearest are full looks at everybody who is not.
        let open: Vec<usize> = (0..pods.len()).filter(|&j| left[j] > EPSILON).collect();
        let mut rest = Vec::new();
        for (k, (from, _)) in sources.iter().enumerate() {
            if unserved[k] <= EPSILON {
                continue;
            }
            *steps += open.len() as u64;
            for &j in &open {
                if let Some(ms) = response.unqueued_ms(*from, pods[j].0) {
                    rest.push((ms, k as u32, j as u32));
                }
            }
        }
        fill(&mut rest, &mut unserved, &mut left, &mut flows);
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

fn pairs(
    response: &Response<'_>,
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
            if let Some(ms) = response.unqueued_ms(*from, *to) {
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

fn fill(
    pairs: &mut [(f64, u32, u32)],
    unserved: &mut [f64],
    left: &mut [f64],
    flows: &mut Vec<Flow>,
) {
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
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
