//! P: serving times of one service by node.

use std::collections::BTreeMap;

use crate::damped::Damped;
use crate::{Node, Settings};

/// Part of the way to the prior that a node's serving time goes in a round without requests
/// there: what was measured on a node is forgotten in some minutes.
const FORGET: f64 = 0.01;

/// Part of the way to what is measured now that the least one goes in a round: code that has become
/// slower for good is known in some minutes.
const RISE: f64 = 0.001;
/// Samples in which the least one is learned. Before, it is used as it is; after, it is one more
/// value that noise must not move. A minute: a queue that was there at the start is over by then.
const LEARNING: u8 = 30;

/// A serving time with queueing, and the least that it was: how long it is without.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    serving: Damped,
    least: f64,
    /// The least one as it is decided with: it follows when that leaves a band.
    least_in_use: f64,
    samples: u8,
}

impl Known {
    fn measured(&mut self, ms: f64, settings: &Settings) {
        self.serving.measured(ms, settings);
        self.samples = self.samples.saturating_add(1);
        self.follow(settings);
    }

    fn go_to(&mut self, ms: f64, part: f64, settings: &Settings) {
        self.serving.go_to(ms, part, settings);
        self.follow(settings);
    }

    fn follow(&mut self, settings: &Settings) {
        let Some(now) = self.serving.damped() else {
            return;
        };
        if !self.serving.is_settled() {
            (self.least, self.least_in_use) = (now, now);
            return;
        }
        self.least = now.min(self.least + RISE * (now - self.least));
        let off = (self.least - self.least_in_use).abs();
        if !self.is_learned() || off > settings.dead_band * self.least_in_use {
            self.least_in_use = self.least;
        }
    }

    fn is_learned(&self) -> bool {
        self.samples > LEARNING
    }

    /// The time without queueing. More than what pods that are as busy as planned make of it (a
    /// queue with random arrivals and serving times) is no queueing.
    fn unqueued(&self, settings: &Settings) -> Option<f64> {
        let now = self.serving.value()?;
        Some(
            self.least_in_use
                .max(now * (1.0 - settings.target_utilization)),
        )
    }
}

/// Serving times of one service by node, measured at the pods' node, without the network, with
/// queueing. Queueing depends on what was decided, so a new value counts for a part only.
#[derive(Clone, Debug, Default)]
pub struct ServingTimes {
    known: BTreeMap<Node, Known>,
    mean: Known,
}

impl ServingTimes {
    /// Takes what a round measured: node, mean serving time in ms, number of requests. Samples
    /// without requests, and values that are no time, are left out.
    pub fn measured(&mut self, samples: &[(Node, f64, f64)], prior_ms: f64, settings: &Settings) {
        let (mut sum, mut weight) = (0.0, 0.0);
        let mut heard = Vec::with_capacity(samples.len());
        for &(node, ms, requests) in samples {
            let sound = ms.is_finite() && ms >= 0.0 && requests.is_finite() && requests > 0.0;
            if !sound {
                continue;
            }
            heard.push(node);
            sum += ms * requests;
            weight += requests;
            self.known.entry(node).or_default().measured(ms, settings);
        }
        if weight > 0.0 {
            self.mean.measured(sum / weight, settings);
        }
        let prior = self.mean_ms().unwrap_or(prior_ms);
        for (node, known) in &mut self.known {
            if !heard.contains(node) {
                known.go_to(prior, FORGET, settings);
            }
        }
    }

    /// Forgets a node.
    pub fn forget(&mut self, node: Node) {
        self.known.remove(&node);
    }

    /// The mean over all nodes, if there were requests.
    #[must_use]
    pub fn mean_ms(&self) -> Option<f64> {
        self.mean.serving.value()
    }

    /// The serving time on `node`, if it was measured there.
    #[must_use]
    pub fn on(&self, node: Node) -> Option<f64> {
        self.known.get(&node)?.serving.value()
    }

    /// The serving time on `node`; while nothing is known of it, the service's mean, else
    /// `prior_ms`, the cluster's.
    #[must_use]
    pub fn or_prior(&self, node: Node, prior_ms: f64) -> f64 {
        self.on(node).or(self.mean_ms()).unwrap_or(prior_ms)
    }

    /// The mean over all nodes without queueing, if there were requests.
    #[must_use]
    pub fn unqueued_mean_ms(&self, settings: &Settings) -> Option<f64> {
        self.mean.unqueued(settings)
    }

    /// The serving times without queueing, as they are decided with; `prior_ms`, the cluster's, while
    /// nothing is known. Where a pod is wanted is decided by these: adding and taking away pods changes
    /// the queues, and would undo its own reason.
    #[must_use]
    pub(crate) fn unqueued(&self, prior_ms: f64, settings: &Settings) -> UnqueuedTimes {
        let mean_ms = self.unqueued_mean_ms(settings).unwrap_or(prior_ms);
        // Nodes are taken for equal until one is clearly not: else the noise of each would decide
        // which one is nearer. A few values are no reason either.
        let learned = self.known.iter().filter(|(_, known)| known.is_learned());
        let own = learned.filter_map(|(node, known)| {
            let own = known.unqueued(settings)?;
            ((own - mean_ms).abs() > settings.dead_band * mean_ms).then_some((*node, own))
        });
        UnqueuedTimes {
            mean_ms,
            own: own.collect(),
        }
    }
}

/// Serving times of one service without queueing: one for all nodes, but for those that clearly
/// differ.
#[derive(Clone, Debug)]
pub(crate) struct UnqueuedTimes {
    mean_ms: f64,
    /// By node.
    own: Vec<(Node, f64)>,
}

impl UnqueuedTimes {
    /// That of a node, in ms.
    pub(crate) fn on(&self, node: Node) -> f64 {
        if self.own.is_empty() {
            return self.mean_ms;
        }
        let at = self.own.binary_search_by_key(&node, |(of, _)| *of);
        at.map_or(self.mean_ms, |at| self.own[at].1)
    }

    /// The least of any node, in ms.
    pub(crate) fn least(&self) -> f64 {
        let own = self.own.iter().map(|(_, ms)| *ms);
        own.fold(self.mean_ms, f64::min)
    }
}
