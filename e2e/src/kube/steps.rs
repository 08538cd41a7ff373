//! What a long test has done so far.

use std::time::Instant;

/// Says what is done and how long it took; cargo shows it for a failed test.
#[derive(Debug)]
pub struct Steps {
    began: Instant,
    last: Instant,
}

impl Steps {
    /// Begins now.
    #[must_use]
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last: now,
        }
    }

    /// A step is done.
    pub fn done(&mut self, what: &str) {
        println!(
            "{:6.1} s (+{:.1}): {what}",
            self.began.elapsed().as_secs_f64(),
            self.last.elapsed().as_secs_f64()
        );
        self.last = Instant::now();
    }
}
