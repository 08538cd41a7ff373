//! Demand in pods, and how far it may be off.
//!
//! What is counted in a window is one draw of what arrives: `n` arrivals say that the mean is
//! `n`, give or take `sqrt(n)` (the standard error of a Poisson count). A pod is added only if it
//! would be wanted at the least that demand may be, and goes only if it would not be at the most.

use std::collections::BTreeMap;

use crate::{Entered, Node, Settings};

/// Demand of a node's traffic, in pods.
pub(crate) type Load = (Node, f64);

/// Requests a second below which a node has no traffic.
const NO_TRAFFIC: f64 = 1e-9;
/// Windows over which arrivals are averaged at most: what is too little to be seen in one window
/// shows in more.
const MOST_WINDOWS: f64 = 7.0;
/// Part of the demand that is never doubted: without it a first request, or the only one of a
/// node that reaches no pod, would not get one.
const LEAST_PART: f64 = 0.1;

/// Arrivals of one node.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// A second, in the last window.
    now: f64,
    /// That window, in seconds.
    over_s: f64,
    /// A second, on average over `mean_over_s`.
    mean: f64,
    mean_over_s: f64,
    /// That average as it is decided with: it follows when the average leaves what its error
    /// explains.
    in_use: f64,
}

impl Rate {
    /// What the rate is at least: what one window shows, or what more of them show and the last
    /// one does not deny. Each is taken less so many of its standard errors.
    fn least(&self, errors: f64) -> f64 {
        let shown = |rate: f64, over_s: f64| rate - errors * (rate.max(0.0) / over_s).sqrt();
        let in_window = shown(self.now, self.over_s);
        in_window.max(shown(self.in_use, self.mean_over_s).min(self.now))
    }

    /// What it is at most: what one window shows and so many errors more, and `factor` times what
    /// more of them show.
    fn most(&self, errors: f64, factor: f64) -> f64 {
        let in_window = self.now + errors * (self.now / self.over_s).sqrt();
        in_window.max(self.in_use * factor)
    }

    /// Whether the last window contradicts those before: the rate has changed.
    fn has_changed(&self, errors: f64) -> bool {
        let variance = self.now.max(self.mean) * (1.0 / self.over_s + 1.0 / self.mean_over_s);
        (self.now - self.mean).abs() > errors * variance.sqrt()
    }
}

/// Arrivals of one service by node, over a window and over more than one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrivals {
    by_node: BTreeMap<Node, Rate>,
}

impl Arrivals {
    /// Takes what a round's window has counted. Rounds are `round_s` apart.
    /// Where a window contradicts the mean by so many `errors` (standard errors), the mean begins anew.
    pub(crate) fn counted(&mut self, entries: &[Entered], round_s: f64, errors: f64) {
        for rate in self.by_node.values_mut() {
            rate.now = 0.0;
        }
        for entered in entries {
            let now = entered.requests / entered.over_s;
            if !now.is_finite() || now <= NO_TRAFFIC || entered.over_s <= 0.0 {
                continue;
            }
            let rate = self.by_node.entry(entered.node).or_insert(Rate {
                now: 0.0,
                over_s: entered.over_s,
                mean: now,
                mean_over_s: 0.0,
                in_use: now,
            });
            (rate.now, rate.over_s) = (now, entered.over_s);
        }
        for rate in self.by_node.values_mut() {
            if rate.mean_over_s == 0.0 || rate.has_changed(errors) {
                (rate.mean, rate.mean_over_s) = (rate.now, rate.over_s);
                rate.in_use = rate.mean;
                continue;
            }
            // Windows overlap: each tells only its part that is new.
            let most_s = MOST_WINDOWS * rate.over_s;
            rate.mean_over_s = (rate.mean_over_s + round_s).min(most_s);
            rate.mean += (rate.now - rate.mean) * (round_s / rate.mean_over_s).clamp(0.0, 1.0);
            let error = (2.0 * rate.in_use / rate.mean_over_s).sqrt();
            if rate.mean_over_s < most_s || (rate.mean - rate.in_use).abs() > errors * error {
                rate.in_use = rate.mean;
            }
        }
        // Nobody is remembered of whom nothing is left.
        self.by_node
            .retain(|_, rate| rate.now > NO_TRAFFIC || rate.mean * rate.mean_over_s > 0.1);
    }
}

/// Demand of all nodes' traffic in pods, greatest first: as it was counted, and between what it
/// is with all certainty that is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    /// As counted in the last window.
    pub(crate) counted: Vec<Load>,
    /// Each node's at least.
    pub(crate) at_least: Vec<Load>,
    /// Each node's part of what all together is at least: sums are surer than their parts.
    pub(crate) at_least_together: Vec<Load>,
    /// Each node's at most.
    pub(crate) at_most: Vec<Load>,
    /// Each node's part of what all together is at most.
    pub(crate) at_most_together: Vec<Load>,
}

impl Demand {
    /// `pods_s` is what one request a second occupies, in pods.
    pub(crate) fn new(arrivals: &Arrivals, pods_s: f64, settings: &Settings) -> Self {
        let mut rates: Vec<(Node, Rate)> = arrivals
            .by_node
            .iter()
            .filter(|(_, rate)| rate.now > NO_TRAFFIC)
            .map(|(node, rate)| (*node, *rate))
            .collect();
        rates.sort_by(|a, b| b.1.now.total_cmp(&a.1.now).then(a.0.cmp(&b.0)));
        let errors = settings.noise_factor;
        let sum = |of: fn(&Rate) -> f64| rates.iter().map(|(_, rate)| of(rate)).sum::<f64>();
        let shortest = |of: fn(&Rate) -> f64| {
            let over_s = rates.iter().map(|(_, rate)| of(rate));
            over_s.fold(f64::INFINITY, f64::min)
        };
        let together = Rate {
            now: sum(|rate| rate.now),
            over_s: shortest(|rate| rate.over_s),
            mean: sum(|rate| rate.mean),
            mean_over_s: shortest(|rate| rate.mean_over_s),
            in_use: sum(|rate| rate.in_use),
        };
        let together_least = (together.least(errors) / together.now).max(LEAST_PART);
        let together_most = together.most(errors, settings.down_factor) / together.now;
        let loads = |of: &dyn Fn(&Rate) -> f64| -> Vec<Load> {
            rates
                .iter()
                .map(|(node, rate)| (*node, of(rate) * pods_s))
                .collect()
        };
        let up = 1.0 / settings.up_factor;
        Self {
            counted: loads(&|rate| rate.now),
            at_least: loads(&|rate| rate.least(errors).min(rate.now * up).max(0.0)),
            at_least_together: loads(&|rate| rate.now * together_least.min(up)),
            at_most: loads(&|rate| rate.most(errors, settings.down_factor)),
            at_most_together: loads(&|rate| rate.now * together_most),
        }
    }
}
