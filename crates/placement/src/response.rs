//! R = P + L, and the weights made of it.

use crate::serving::UnqueuedTimes;
use crate::{Node, RoundTrips, ServingTimes, Settings};

/// Expected response times of one service.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// L.
    pub round_trips: &'a RoundTrips,
    /// P.
    pub serving: &'a ServingTimes,
    /// P of a service of which nothing is known: the cluster's mean, in ms.
    pub prior_ms: f64,
    /// Floor and priors.
    pub settings: &'a Settings,
}

impl Response<'_> {
    /// `R[from][to] = P[to] + L[from][to]` in ms, at least the floor. `None` when the link is
    /// down.
    #[must_use]
    pub fn ms(&self, from: Node, to: Node) -> Option<f64> {
        let way = self.round_trips.ms(from, to, self.settings)?;
        let serving = self.serving.or_prior(to, self.prior_ms);
        Some((serving + way).max(self.settings.floor_ms))
    }
}

/// Response times of one service without queueing: what decides where pods are. Made once a
/// decision, which looks at many.
#[derive(Clone, Debug)]
pub(crate) struct Unqueued<'a> {
    round_trips: &'a RoundTrips,
    serving: UnqueuedTimes,
    settings: &'a Settings,
}

impl<'a> Unqueued<'a> {
    pub(crate) fn new(
        round_trips: &'a RoundTrips,
        serving: UnqueuedTimes,
        settings: &'a Settings,
    ) -> Self {
        Self {
            round_trips,
            serving,
            settings,
        }
    }

    /// `R[from][to]` in ms, at least the floor. `None` when the link is down.
    pub(crate) fn ms(&self, from: Node, to: Node) -> Option<f64> {
        let way = self.round_trips.ms(from, to, self.settings)?;
        Some((self.serving.on(to) + way).max(self.settings.floor_ms))
    }

    /// No R is less than this: a round trip is never negative.
    pub(crate) fn least_ms(&self) -> f64 {
        self.serving.least().max(self.settings.floor_ms)
    }
}

/// `w[from][j] = 100 (1 / R[from][j]) / sum_k (1 / R[from][k])` over `ready`, the nodes with ready
/// pods, in percent. A node that cannot be reached has no weight. With no ready pod within reach
/// the node serves itself: 100 % to `from`.
#[must_use]
pub fn weights(response: &Response<'_>, from: Node, ready: &[Node]) -> Vec<(Node, f64)> {
    let inverse: Vec<(Node, f64)> = ready
        .iter()
        .filter_map(|&to| Some((to, 1.0 / response.ms(from, to)?)))
        .collect();
    let sum: f64 = inverse.iter().map(|(_, value)| value).sum();
    if inverse.is_empty() {
        return vec![(from, 100.0)];
    }
    inverse
        .into_iter()
        .map(|(to, value)| (to, 100.0 * value / sum))
        .collect()
}
