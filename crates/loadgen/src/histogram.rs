//! Latencies: recorded a thread, merged at the end.

use serde::Serialize;
use std::time::Duration;

/// The longest latency told apart from longer ones, in microseconds (100 s).
const HIGHEST_US: u64 = 100_000_000;

/// Latencies in microseconds, to three significant digits. One a thread; [`Histogram::merge`]
/// adds them up, so that percentiles are over all operations and never averages of percentiles.
pub struct Histogram(Option<hdrhistogram::Histogram<u64>>);

impl Histogram {
    /// An empty one.
    pub fn new() -> Self {
        // The bounds are constants that the crate accepts; a test shows it.
        Histogram(hdrhistogram::Histogram::new_with_bounds(1, HIGHEST_US, 3).ok())
    }

    /// Adds one latency; what is longer than 100 s counts as 100 s.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(HIGHEST_US);
        if let Some(inner) = &mut self.0 {
            inner.saturating_record(us);
        }
    }

    /// Adds all of another's latencies.
    pub fn merge(&mut self, other: &Histogram) {
        if let (Some(inner), Some(other)) = (&mut self.0, &other.0) {
            // Both have the same bounds, so nothing of `other` is out of range.
            let _ = inner.add(other);
        }
    }

    /// Number of latencies recorded.
    pub fn len(&self) -> u64 {
        self.0.as_ref().map_or(0, hdrhistogram::Histogram::len)
    }

    /// Whether none was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The percentiles that reports show.
    pub fn latency(&self) -> Latency {
        let at = |quantile: f64| {
            self.0
                .as_ref()
                .map_or(0, |h| h.value_at_quantile(quantile).min(h.max())) as f64
        };
        Latency {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles of latency in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the operations took at most this.
    pub p50_us: f64,
    /// 90 in a hundred.
    pub p90_us: f64,
    /// 99 in a hundred.
    pub p99_us: f64,
    /// 999 in a thousand.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(latencies_us: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        for us in latencies_us {
            histogram.record(Duration::from_micros(us));
        }
        histogram
    }

    fn near(value: f64, expected: f64) {
        assert!(
            (value - expected).abs() <= expected * 0.001 + 1.0,
            "{value} is not {expected}"
        );
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let latency = of(1..=10_000).latency();
        near(latency.p50_us, 5_000.0);
        near(latency.p90_us, 9_000.0);
        near(latency.p99_us, 9_900.0);
        near(latency.p999_us, 9_990.0);
        near(latency.max_us, 10_000.0);
    }

    #[test]
    fn merging_equals_recording_in_one() {
        let mut merged = of((1..=10_000).filter(|n| n % 3 == 0));
        merged.merge(&of((1..=10_000).filter(|n| n % 3 != 0)));
        assert_eq!(merged.len(), 10_000);
        assert_eq!(merged.latency(), of(1..=10_000).latency());
    }

    #[test]
    fn extremes_are_kept_and_counted() {
        let histogram = of([0, 1_000_000_000]);
        assert_eq!(histogram.len(), 2);
        near(histogram.latency().max_us, HIGHEST_US as f64);
    }

    #[test]
    fn an_empty_one_is_all_zero() {
        let empty = Histogram::new();
        assert!(empty.is_empty());
        near(empty.latency().max_us, 0.0);
    }
}
