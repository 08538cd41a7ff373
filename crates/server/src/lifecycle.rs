//! Whether the server goes on, and which threads to wait for when it does not.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// From the start to the stop.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    stopping: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Lifecycle {
    /// Whether the server is to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Says so. Who sleeps must be woken besides.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// A thread that a stop waits for.
    pub(crate) fn keep(&self, thread: JoinHandle<()>) {
        let mut threads = self.threads.lock();
        threads.retain(|t| !t.is_finished());
        threads.push(thread);
    }

    /// Waits for all threads, those too that were begun meanwhile.
    pub(crate) fn join(&self) {
        loop {
            let threads = std::mem::take(&mut *self.threads.lock());
            if threads.is_empty() {
                return;
            }
            for thread in threads {
                // Jobs say what came of them; others do not panic: that ends the process.
                let _ = thread.join();
            }
        }
    }
}
