//! P: serving times of one service by node.

use std::collections::BTreeMap;

use crate::damped::Damped;
use crate::{Node, Settings};

/// Part of the way to the prior that a node's serving time goes in a round without requests
/// there: what was measured on a node is forgotten in some minutes.
const FORGET: f64 = 0.01;

/// Serving times of one service by node, measured at the pods' node, without the network, with
/// queueing. Queueing depends on what was decided, so a new value counts for a part only.
#[derive(Clone, Debug, Default)]
pub struct ServingTimes {
    known: BTreeMap<Node, Damped>,
    mean: Damped,
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
        self.mean.value()
    }

    /// The serving time on `node`, if it was measured there.
    #[must_use]
    pub fn on(&self, node: Node) -> Option<f64> {
        self.known.get(&node).and_then(Damped::value)
    }

    /// The serving time on `node`; while nothing is known of it, the service's mean, else
    /// `prior_ms`, the cluster's.
    #[must_use]
    pub fn or_prior(&self, node: Node, prior_ms: f64) -> f64 {
        self.on(node).or(self.mean_ms()).unwrap_or(prior_ms)
    }
}
