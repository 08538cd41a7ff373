//! How long a direction holds its bytes, which can change while it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long one direction holds bytes. Clones share it: who keeps one can change it while
/// connections are open. Bytes that are under way keep the delay that they began with, and none
/// passes another.
#[derive(Debug, Clone, Default)]
pub struct Delay {
    shared_ns: Arc<AtomicU64>,
    more: Duration,
}

impl Delay {
    /// The delay now.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.shared_ns.load(Ordering::Relaxed)) + self.more
    }

    /// Changes the part that clones share, for bytes that come from now on. What
    /// [`Delay::plus`] has added stays.
    pub fn set(&self, delay: Duration) {
        let ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self.shared_ns.store(ns, Ordering::Relaxed);
    }

    /// One that is always longer than this one by `more`.
    #[must_use]
    pub fn plus(&self, more: Duration) -> Self {
        Self {
            shared_ns: Arc::clone(&self.shared_ns),
            more: self.more + more,
        }
    }
}

impl From<Duration> for Delay {
    fn from(delay: Duration) -> Self {
        let new = Self::default();
        new.set(delay);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_change_together_and_what_was_added_stays() {
        let ms = Duration::from_millis;
        let one = Delay::from(ms(5));
        let (clone, longer) = (one.clone(), one.plus(ms(3)));
        assert_eq!((clone.get(), longer.get()), (ms(5), ms(8)));
        longer.set(ms(40));
        assert_eq!(
            (one.get(), clone.get(), longer.get()),
            (ms(40), ms(40), ms(43))
        );
    }
}
