//! Makes long background work give way.

use std::time::{Duration, Instant};

/// Work between two rests, at least. A thread that never rests keeps a processor for whole
/// scheduler slices, and each wake-up on a write's way may wait for one: some milliseconds.
const WORK: Duration = Duration::from_micros(300);
/// Longest rest: after work that itself had to wait, for a disk say.
const LONGEST_REST: Duration = Duration::from_millis(2);

/// Rests as long as it works: a background thread takes half a processor at most.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
}

impl Pace {
    /// Counts work from now on.
    #[must_use]
    pub fn start() -> Self {
        Pace {
            since: Instant::now(),
        }
    }

    /// Counts work from now on: what came before was waiting.
    pub fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Rests if there has been enough work. To be called without a lock held.
    pub fn rest(&mut self) {
        let worked = self.since.elapsed();
        if worked >= WORK {
            std::thread::sleep(worked.min(LONGEST_REST));
            self.since = Instant::now();
        }
    }
}
