//! A flag that threads raise and one thread waits for.

use crate::sync::{AtomicBool, Condvar, Mutex};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A flag that threads raise and one thread waits for.
#[derive(Default)]
pub(crate) struct Signal {
    raised: AtomicBool,
    sleeping: Mutex<bool>,
    wake: Condvar,
}

impl Signal {
    /// Raises the flag; costs a swap while the thread is busy.
    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) && *self.sleeping.lock() {
            self.wake.notify_one();
        }
    }

    /// Takes the flag down, waiting for it at most `timeout`. True if it was raised.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        if self.raised.swap(false, Ordering::AcqRel) {
            return true;
        }
        let deadline = Instant::now() + timeout;
        let mut sleeping = self.sleeping.lock();
        *sleeping = true;
        let mut raised = self.raised.swap(false, Ordering::AcqRel);
        while !raised && !self.wake.wait_until(&mut sleeping, deadline).timed_out() {
            raised = self.raised.swap(false, Ordering::AcqRel);
        }
        *sleeping = false;
        raised || self.raised.swap(false, Ordering::AcqRel)
    }
}
