//! A mean of times that goes up at once and down slowly.

/// Peak EWMA: a time above the mean replaces it, one below counts by how long ago the last was.
/// So a pod that has become slow is known after one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PeakEwma {
    known: Option<(f64, u64)>,
}

impl PeakEwma {
    /// After so long an old value counts for 1/e.
    pub const DECAY_US: u64 = 10_000_000;

    /// A request took `ms`.
    pub fn observe(&mut self, ms: f64, now_us: u64) {
        if !ms.is_finite() || ms < 0.0 {
            return;
        }
        let value = match self.known {
            Some((old, at_us)) if ms < old => {
                let age_us = now_us.saturating_sub(at_us) as f64;
                let part = (-age_us / Self::DECAY_US as f64).exp();
                old * part + ms * (1.0 - part)
            }
            _ => ms,
        };
        self.known = Some((value, now_us));
    }

    /// The mean in ms, if there was a request.
    #[must_use]
    pub fn ms(&self) -> Option<f64> {
        self.known.map(|(value, _)| value)
    }

    /// What a pod with so many requests in flight costs: the mean times what it would have then.
    /// One of which nothing is known is tried first, but not by all at once.
    #[must_use]
    pub fn cost(&self, in_flight: u32) -> f64 {
        (self.ms().unwrap_or(0.0) + 0.1) * f64::from(in_flight + 1)
    }
}
