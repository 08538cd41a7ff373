//! The engine's lock, and how long it is held.
//!
//! Everybody waits for it, so nobody may hold it for long. How long holds are is in the metrics;
//! a long one is in the log, with the place in the code that had it.

use crate::store::Waiter;
use engine::Engine;
use metrics::Histogram;
use parking_lot::{Mutex, MutexGuard};
use rustix::time::{ClockId, clock_gettime};
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use telemetry::{GoDuration, Throttle};

/// A hold this long is told in the log.
const LONG: Duration = Duration::from_millis(50);
static LONG_LINE: Throttle = Throttle::new(Duration::from_secs(10));
/// Holds within one tick of the clock are handed to the histogram so many at a time.
const SHORT_AT_ONCE: u64 = 256;

/// The engine behind its lock.
pub(crate) struct EngineLock {
    engine: Mutex<Engine<Waiter>>,
    holds: Holds,
}

/// How long holds were.
struct Holds {
    seen: Histogram,
    /// Short ones that the histogram does not have yet. Changed only by who has the lock.
    short: AtomicU64,
}

/// The engine while this thread has it. A panic meanwhile ends the process before anybody else
/// can see what it left.
pub(crate) struct Locked<'a> {
    // Ends first: while the lock is held.
    hold: Hold<'a>,
    engine: MutexGuard<'a, Engine<Waiter>>,
}

/// One hold, which ends where this is dropped.
struct Hold<'a> {
    holds: &'a Holds,
    since: Duration,
    by: &'static Location<'static>,
    _critical: threads::Critical,
}

impl EngineLock {
    /// `seen` observes how long holds are.
    pub(crate) fn new(engine: Engine<Waiter>, seen: Histogram) -> Self {
        EngineLock {
            engine: Mutex::new(engine),
            holds: Holds {
                seen,
                short: AtomicU64::new(0),
            },
        }
    }

    /// The engine, for a moment.
    #[track_caller]
    pub(crate) fn lock(&self) -> Locked<'_> {
        let by = Location::caller();
        let engine = self.engine.lock();
        Locked {
            hold: Hold {
                holds: &self.holds,
                since: now(),
                by,
                _critical: threads::critical(),
            },
            engine,
        }
    }
}

impl Locked<'_> {
    /// Gives the engine to whoever waits for it, even if this thread asks for it again at once.
    pub(crate) fn unlock_fair(self) {
        let Locked { hold, engine } = self;
        drop(hold);
        MutexGuard::unlock_fair(engine);
    }
}

impl Deref for Locked<'_> {
    type Target = Engine<Waiter>;

    fn deref(&self) -> &Engine<Waiter> {
        &self.engine
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Engine<Waiter> {
        &mut self.engine
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let took = now().saturating_sub(self.since);
        if took.is_zero() {
            self.holds.short();
        } else {
            self.holds.seen.observe(took);
            if took >= LONG {
                self.tell(took);
            }
        }
    }
}

impl Holds {
    fn short(&self) {
        let short = self.short.load(Ordering::Relaxed) + 1;
        let keep = if short < SHORT_AT_ONCE { short } else { 0 };
        if keep == 0 {
            self.seen.observe_times(0.0, short);
        }
        self.short.store(keep, Ordering::Relaxed);
    }
}

impl Hold<'_> {
    #[cold]
    fn tell(&self, took: Duration) {
        if let Some(suppressed) = LONG_LINE.allow() {
            tracing::warn!(
                took = %GoDuration(took),
                "expected-duration" = %GoDuration(LONG),
                by = %self.by,
                suppressed,
                "the store's lock was held for long, and everybody waited"
            );
        }
    }
}

/// The time of the clock's last tick: some milliseconds coarse, for a fraction of what an exact
/// one costs.
fn now() -> Duration {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Limits;

    fn lock() -> EngineLock {
        let metrics = metrics::Metrics::new(&metrics::Options {
            extensive: false,
            shards: 1,
            server_version: String::new(),
            cluster_version: String::new(),
            orlop_version: String::new(),
            member_id: 1,
        });
        EngineLock::new(Engine::new(Limits::default()), metrics.lock_hold)
    }

    #[test]
    fn every_hold_is_counted() {
        let lock = lock();
        for _ in 0..3 * SHORT_AT_ONCE {
            drop(lock.lock());
        }
        let seen = lock.holds.seen.count() + lock.holds.short.load(Ordering::Relaxed);
        assert_eq!(seen, 3 * SHORT_AT_ONCE);
    }

    #[test]
    fn a_long_hold_is_seen_as_long() {
        let lock = lock();
        let held = lock.lock();
        std::thread::sleep(LONG + Duration::from_millis(20));
        assert!(held.hold.by.file().ends_with("engine_lock.rs"));
        held.unlock_fair();
        assert_eq!(lock.holds.seen.count(), 1);
        assert!(lock.holds.seen.sum() >= LONG.as_secs_f64());
    }
}
