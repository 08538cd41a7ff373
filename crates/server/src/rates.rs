//! How much is written a second, by storage class, over the last minute.

use metrics::Metrics;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(1);
/// How far back rates look.
const WINDOW: usize = 60;

/// Totals at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    totals: [u64; 5],
}

/// What happened a second, on average over the window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    pub(crate) seconds: f64,
    pub(crate) durable_writes: f64,
    pub(crate) volatile_writes: f64,
    pub(crate) durable_bytes: f64,
    pub(crate) volatile_bytes: f64,
    pub(crate) syncs: f64,
}

/// Samples of the last minute.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<VecDeque<Sample>>);

fn take(m: &Metrics) -> Sample {
    Sample {
        at: Instant::now(),
        totals: [
            m.writes.durable.get(),
            m.writes.volatile.get(),
            m.write_bytes.durable.get(),
            m.write_bytes.volatile.get(),
            m.wal_fsync.count(),
        ],
    }
}

impl Rates {
    /// Takes a sample if it is time.
    pub(crate) fn tick(&self, m: &Metrics) {
        let mut samples = self.0.lock();
        if samples.back().is_none_or(|s| s.at.elapsed() >= EVERY) {
            samples.push_back(take(m));
            if samples.len() > WINDOW + 1 {
                samples.pop_front();
            }
        }
    }

    /// The rates up to now.
    pub(crate) fn now(&self, m: &Metrics) -> Rate {
        let Some(&first) = self.0.lock().front() else {
            return Rate::default();
        };
        let last = take(m);
        let seconds = last.at.duration_since(first.at).as_secs_f64().max(0.001);
        let per_second = |n: usize| (last.totals[n] - first.totals[n]) as f64 / seconds;
        Rate {
            seconds,
            durable_writes: per_second(0),
            volatile_writes: per_second(1),
            durable_bytes: per_second(2),
            volatile_bytes: per_second(3),
            syncs: per_second(4),
        }
    }
}
