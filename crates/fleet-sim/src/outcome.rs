//! What a run gave.

use std::time::Duration;

use crate::Policy;

/// Pods and moves of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Simulated time, in s.
    pub at_s: f64,
    /// Pods added in this round.
    pub added: u32,
    /// Pods taken away.
    pub removed: u32,
    /// Pods that are ready.
    pub ready: u32,
    /// Pods that are wanted and have no room: they wait without end.
    pub stuck: u32,
}

/// What one run of one policy gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The policy.
    pub policy: Policy,
    /// The seed.
    pub seed: u64,
    /// Requests sent after the warm-up.
    pub sent: u64,
    /// Of those, answered within the deadline.
    pub completed: u64,
    /// Latency of those in microseconds, sorted.
    pub latencies_us: Vec<u32>,
    /// Answered requests that had entered at the edge.
    pub edge_completed: u64,
    /// Those of them that were fast.
    pub edge_fast: u64,
    /// Every round.
    pub rounds: Vec<Sample>,
    /// Moves after the warm-up.
    pub moves: u64,
    /// Values of R that the decisions looked at, the most of a round.
    pub most_steps_a_round: u64,
    /// Processor time of all decisions.
    pub decision_cpu: Duration,
}

impl Outcome {
    /// A latency percentile in ms, `part` from 0 to 1.
    #[must_use]
    pub fn percentile_ms(&self, part: f64) -> f64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.latencies_us
            .get(at)
            .map_or(0.0, |us| f64::from(*us) / 1000.0)
    }

    /// Completed of sent, from 0 to 1.
    #[must_use]
    pub fn completion(&self) -> f64 {
        self.completed as f64 / self.sent.max(1) as f64
    }

    /// Fast answers of all at the edge, from 0 to 1.
    #[must_use]
    pub fn fast_at_edge(&self) -> f64 {
        self.edge_fast as f64 / self.edge_completed.max(1) as f64
    }

    /// Cores that decisions took on the average.
    #[must_use]
    pub fn decision_cores(&self, duration_s: f64) -> f64 {
        self.decision_cpu.as_secs_f64() / duration_s
    }
}
