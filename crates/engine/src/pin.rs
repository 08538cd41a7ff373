//! Pins: what keeps history from being freed while something reads it.
//!
//! A cursor that is not done holds one. Compaction moves on at once, and frees nothing that a
//! pin still needs, until the pin is dropped, or broken: one whose reader's pace is a client's
//! would else let history grow without end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether a pin may be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Its reader comes to an end by itself.
    Firm,
    /// Its reader goes as fast as a client takes what is read.
    Revocable,
}

/// What is pinned, for who watches over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinStatus {
    /// Pins held.
    pub count: usize,
    /// When the oldest of them was taken, on the engine's clock, in milliseconds.
    pub oldest_ms: Option<u64>,
    /// About how many bytes of compacted history they keep from being freed.
    pub kept_bytes: usize,
}

#[derive(Debug)]
struct Held {
    strength: Strength,
    since_ms: u64,
    broken: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Table {
    /// By the revision that they keep, and a number of their own.
    held: BTreeMap<(i64, u64), Held>,
    next: u64,
}

/// All pins of a store.
#[derive(Debug, Default)]
pub(crate) struct Pins(Arc<Mutex<Table>>);

fn locked(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // Whoever panicked was not in the middle of a change: each is one call.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what can be seen at a revision, and all above it, until its last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Pin(Arc<Entry>);

#[derive(Debug)]
struct Entry {
    table: Arc<Mutex<Table>>,
    at: (i64, u64),
    broken: Arc<AtomicBool>,
}

impl Pin {
    /// Whether what it kept may be gone.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }
}

impl PartialEq for Pin {
    fn eq(&self, other: &Pin) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Pin {}

impl Drop for Entry {
    fn drop(&mut self) {
        locked(&self.table).held.remove(&self.at);
    }
}

impl Pins {
    pub(crate) fn pin(&self, revision: i64, strength: Strength, now_ms: u64) -> Pin {
        let broken = Arc::new(AtomicBool::new(false));
        let mut table = locked(&self.0);
        let at = (revision, table.next);
        table.next += 1;
        let held = Held {
            strength,
            since_ms: now_ms,
            broken: broken.clone(),
        };
        table.held.insert(at, held);
        Pin(Arc::new(Entry {
            table: self.0.clone(),
            at,
            broken,
        }))
    }

    /// The lowest revision that is kept.
    pub(crate) fn lowest(&self) -> Option<i64> {
        locked(&self.0).held.keys().next().map(|at| at.0)
    }

    /// Breaks the pins of the lowest revision, if that is below `revision` and all of them may
    /// be broken; returns how many that were.
    pub(crate) fn break_lowest(&self, revision: i64) -> usize {
        let mut table = locked(&self.0);
        let Some(lowest) = table.held.keys().next().map(|at| at.0) else {
            return 0;
        };
        let last = (lowest, u64::MAX);
        let mut of_it = table.held.range(..=last).map(|(_, held)| held.strength);
        if lowest >= revision || of_it.any(|s| s == Strength::Firm) {
            return 0;
        }
        let above = table.held.split_off(&(lowest, u64::MAX));
        let broken = std::mem::replace(&mut table.held, above);
        for held in broken.values() {
            held.broken.store(true, Ordering::Release);
        }
        broken.len()
    }

    /// Number of pins, and since when the oldest is held.
    pub(crate) fn ages(&self) -> (usize, Option<u64>) {
        let table = locked(&self.0);
        let oldest = table.held.values().map(|held| held.since_ms).min();
        (table.held.len(), oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_pins_break_when_all_of_them_may() {
        let pins = Pins::default();
        let firm = pins.pin(5, Strength::Firm, 1);
        let slow = [(); 2].map(|()| pins.pin(5, Strength::Revocable, 2));
        let later = pins.pin(7, Strength::Revocable, 0);
        assert_eq!((pins.lowest(), pins.ages()), (Some(5), (4, Some(0))));
        // Nothing would be freed: the firm one keeps the same.
        assert_eq!(pins.break_lowest(100), 0);
        drop(firm);
        assert_eq!(pins.break_lowest(5), 0, "nothing at 5 is compacted");
        assert_eq!(pins.break_lowest(6), 2);
        assert!(slow.iter().all(Pin::is_broken) && !later.is_broken());
        assert_eq!((pins.lowest(), pins.ages()), (Some(7), (1, Some(0))));
        drop(slow);
        assert_eq!(pins.ages().0, 1);
        drop(later);
        assert_eq!((pins.lowest(), pins.ages()), (None, (0, None)));
        assert_eq!(pins.break_lowest(100), 0);
    }
}
