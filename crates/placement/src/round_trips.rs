//! L: round trips between nodes.

use crate::damped::Damped;
use crate::{Node, Settings};

/// What is known of the way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// Nobody has measured it yet: a prior is used.
    Unmeasured,
    /// The round trip in ms, damped.
    RoundTrip(f64),
    /// Probes are not answered: nothing is sent that way.
    Down,
}

#[derive(Clone, Copy, Debug, Default)]
enum Known {
    #[default]
    Nothing,
    Measured(Damped),
    Down,
}

/// Round trips between all nodes: damped, and changed only when the damped value leaves a band
/// around the one in use, so that noise changes nothing.
///
/// 16 bytes a pair of nodes: 4 MB for 500 nodes.
#[derive(Clone, Debug, Default)]
pub struct RoundTrips {
    nodes: usize,
    known: Vec<Known>,
    mean_ms: Option<f64>,
}

impl RoundTrips {
    /// A table for nodes 0 to `nodes` - 1, nothing measured.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            known: vec![Known::Nothing; nodes * nodes],
            mean_ms: None,
        }
    }

    /// Number of nodes that it has room for.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Makes room for nodes up to `nodes` - 1; what is known stays.
    pub fn grow(&mut self, nodes: usize) {
        if nodes <= self.nodes {
            return;
        }
        let mut grown = Self::new(nodes);
        for from in 0..self.nodes {
            let (old, new) = (from * self.nodes, from * nodes);
            grown.known[new..new + self.nodes].copy_from_slice(&self.known[old..old + self.nodes]);
        }
        grown.mean_ms = self.mean_ms;
        *self = grown;
    }

    fn at(&self, from: Node, to: Node) -> Option<usize> {
        let inside = from.index() < self.nodes && to.index() < self.nodes;
        inside.then(|| from.index() * self.nodes + to.index())
    }

    /// Takes a measured round trip in ms. Values that are no time are left out.
    pub fn measured(&mut self, from: Node, to: Node, ms: f64, settings: &Settings) {
        let Some(at) = self.at(from, to) else { return };
        if !ms.is_finite() || ms < 0.0 {
            return;
        }
        // After silence it begins anew.
        let mut damped = match self.known[at] {
            Known::Measured(damped) => damped,
            Known::Nothing | Known::Down => Damped::default(),
        };
        damped.measured(ms, settings);
        self.known[at] = Known::Measured(damped);
    }

    /// Probes from one to the other are not answered.
    pub fn down(&mut self, from: Node, to: Node) {
        if let Some(at) = self.at(from, to) {
            self.known[at] = Known::Down;
        }
    }

    /// Forgets all about a node, whose number may be given to another one then.
    pub fn forget(&mut self, node: Node) {
        for other in 0..self.nodes {
            let other = Node(other as u32);
            for at in [self.at(node, other), self.at(other, node)]
                .into_iter()
                .flatten()
            {
                self.known[at] = Known::Nothing;
            }
        }
    }

    /// Computes the mean of all measured links, which stands for those that nobody has measured.
    /// To be called once a round, after the measurements.
    pub fn settle(&mut self) {
        let (mut sum, mut count) = (0.0, 0_u64);
        for known in &self.known {
            if let Known::Measured(damped) = known
                && let Some(ms) = damped.value()
            {
                sum += ms;
                count += 1;
            }
        }
        self.mean_ms = (count > 0).then(|| sum / count as f64);
    }

    /// What is known of the way from one node to another; 0 ms to itself.
    #[must_use]
    pub fn link(&self, from: Node, to: Node) -> Link {
        if from == to {
            return Link::RoundTrip(0.0);
        }
        match self.at(from, to).map(|at| self.known[at]) {
            None | Some(Known::Nothing) => Link::Unmeasured,
            Some(Known::Down) => Link::Down,
            Some(Known::Measured(damped)) => {
                damped.value().map_or(Link::Unmeasured, Link::RoundTrip)
            }
        }
    }

    /// The round trip in ms with the prior for what is not measured; `None` for a link that is
    /// down.
    #[must_use]
    pub fn ms(&self, from: Node, to: Node, settings: &Settings) -> Option<f64> {
        match self.link(from, to) {
            Link::RoundTrip(ms) => Some(ms),
            Link::Down => None,
            Link::Unmeasured => Some(self.mean_ms.unwrap_or(settings.prior_round_trip_ms)),
        }
    }
}
