//! What an operator can set of the decision.

use serde::{Deserialize, Serialize};

/// A setting is out of its range.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingsError {
    /// Name of the setting.
    pub name: &'static str,
    /// What it may be.
    pub range: &'static str,
    /// What it was.
    pub value: f64,
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "placement setting {} is {}; it must be {}",
            self.name, self.value, self.range
        )
    }
}

impl std::error::Error for SettingsError {}

/// Numbers of the decision. The defaults are for a round every 2 s over a window of 10 s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Least value of R, in ms: below it one node is as near as another.
    pub floor_ms: f64,
    /// Serving time while nothing is known of any service, in ms.
    pub prior_serving_ms: f64,
    /// Round trip while nothing at all was measured, in ms.
    pub prior_round_trip_ms: f64,
    /// A node is nearer only if R there is less by this part of it ...
    pub hysteresis_ratio: f64,
    /// ... and by this many ms.
    pub hysteresis_ms: f64,
    /// Nodes whose R is within this part of the best are a near tie: one with the image wins.
    pub near_tie_ratio: f64,
    /// Part of a pod's concurrency that is planned with, above 0, at most 1.
    pub target_utilization: f64,
    /// Traffic of a node that is served far away gets a pod near it from this demand on, in pods.
    pub near_demand: f64,
    /// Demand must pass what there is by this factor before a pod is added.
    pub up_factor: f64,
    /// What is left must bear this many times the demand before a pod is taken away.
    pub down_factor: f64,
    /// What changes must show in the counts of arrivals by this many of their standard errors.
    pub noise_factor: f64,
    /// Rounds in a row in which a pod was not needed before it is taken away.
    pub down_rounds: u32,
    /// Weight of a new value against the damped one, above 0, at most 1.
    pub damping: f64,
    /// A damped value replaces the one in use when it differs by more than this part of it.
    pub dead_band: f64,
    /// Most pods that a round adds to one service, and most that it takes.
    pub moves_a_round: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            floor_ms: 1.0,
            prior_serving_ms: 50.0,
            prior_round_trip_ms: 1.0,
            hysteresis_ratio: 0.3,
            hysteresis_ms: 2.0,
            near_tie_ratio: 0.1,
            target_utilization: 0.7,
            near_demand: 0.05,
            up_factor: 1.1,
            down_factor: 1.3,
            noise_factor: 3.0,
            down_rounds: 5,
            damping: 0.2,
            dead_band: 0.25,
            moves_a_round: 32,
        }
    }
}

impl Settings {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let above_0 = |v: f64| v.is_finite() && v > 0.0;
        let from_0 = |v: f64| v.is_finite() && v >= 0.0;
        let part = |v: f64| v > 0.0 && v <= 1.0;
        let from_1 = |v: f64| v.is_finite() && v >= 1.0;
        let all = [
            ("floor_ms", self.floor_ms, "above 0", above_0(self.floor_ms)),
            (
                "prior_serving_ms",
                self.prior_serving_ms,
                "above 0",
                above_0(self.prior_serving_ms),
            ),
            (
                "prior_round_trip_ms",
                self.prior_round_trip_ms,
                "0 or more",
                from_0(self.prior_round_trip_ms),
            ),
            (
                "hysteresis_ratio",
                self.hysteresis_ratio,
                "0 or more",
                from_0(self.hysteresis_ratio),
            ),
            (
                "hysteresis_ms",
                self.hysteresis_ms,
                "0 or more",
                from_0(self.hysteresis_ms),
            ),
            (
                "near_tie_ratio",
                self.near_tie_ratio,
                "0 or more",
                from_0(self.near_tie_ratio),
            ),
            (
                "target_utilization",
                self.target_utilization,
                "above 0, at most 1",
                part(self.target_utilization),
            ),
            (
                "near_demand",
                self.near_demand,
                "above 0",
                above_0(self.near_demand),
            ),
            (
                "up_factor",
                self.up_factor,
                "1 or more",
                from_1(self.up_factor),
            ),
            (
                "down_factor",
                self.down_factor,
                "1 or more",
                from_1(self.down_factor),
            ),
            (
                "noise_factor",
                self.noise_factor,
                "0 or more",
                from_0(self.noise_factor),
            ),
            (
                "damping",
                self.damping,
                "above 0, at most 1",
                part(self.damping),
            ),
            (
                "dead_band",
                self.dead_band,
                "0 or more",
                from_0(self.dead_band),
            ),
            (
                "moves_a_round",
                f64::from(self.moves_a_round),
                "1 or more",
                self.moves_a_round >= 1,
            ),
        ];
        for (name, value, range, ok) in all {
            if !ok {
                return Err(SettingsError { name, range, value });
            }
        }
        Ok(())
    }

    /// Whether a response time is so much better than another that it is worth a pod.
    #[must_use]
    pub(crate) fn much_nearer(&self, better_ms: f64, worse_ms: f64) -> bool {
        worse_ms > better_ms * (1.0 + self.hysteresis_ratio) + self.hysteresis_ms
    }
}
