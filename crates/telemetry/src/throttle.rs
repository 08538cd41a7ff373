//! A limit on how often the same warning is logged.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Lets one line through in a period and counts those that it holds back. It
/// is made for a `static` next to the line:
///
/// ```
/// # use std::time::Duration;
/// static SLOW: telemetry::Throttle = telemetry::Throttle::new(Duration::from_secs(10));
/// if let Some(suppressed) = SLOW.allow() {
///     tracing::warn!(suppressed, "slow fdatasync");
/// }
/// ```
#[derive(Debug)]
pub struct Throttle {
    period_ms: u64,
    /// When the next line may pass, in ms of this process's clock.
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    /// At most one line a `period`.
    pub const fn new(period: Duration) -> Self {
        Self {
            period_ms: period.as_millis() as u64,
            next_ms: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// `Some(n)`: log now; `n` lines were held back since the last one.
    /// `None`: keep quiet.
    pub fn allow(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        let now = START.get_or_init(Instant::now).elapsed();
        self.allow_at(now.as_millis() as u64)
    }

    fn allow_at(&self, now_ms: u64) -> Option<u64> {
        let next = self.next_ms.load(Relaxed);
        let passes = now_ms >= next
            && self
                .next_ms
                .compare_exchange(next, now_ms + self.period_ms, Relaxed, Relaxed)
                .is_ok();
        if passes {
            Some(self.suppressed.swap(0, Relaxed))
        } else {
            self.suppressed.fetch_add(1, Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_period_and_the_rest_counted() {
        let throttle = Throttle::new(Duration::from_secs(10));
        assert_eq!(throttle.allow_at(0), Some(0));
        assert_eq!(throttle.allow_at(1), None);
        assert_eq!(throttle.allow_at(9_999), None);
        assert_eq!(throttle.allow_at(10_000), Some(2));
        assert_eq!(throttle.allow_at(10_001), None);
        assert_eq!(throttle.allow_at(90_000), Some(1));
    }

    #[test]
    fn many_threads_get_one_line() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        let passed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| throttle.allow())).collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap())
                .count()
        });
        assert_eq!(passed, 1);
    }
}
