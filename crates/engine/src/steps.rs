//! What work under the store's lock is counted in.

use std::cell::Cell;

/// A count of steps: a key visited, an operation planned, a lock looked at. Time on a machine
/// varies; this does not, so that tests can bound it, and a call can end when it has done
/// enough for one hold of the lock.
#[derive(Debug, Default)]
pub(crate) struct Steps(Cell<u64>);

impl Steps {
    pub(crate) fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }
}
