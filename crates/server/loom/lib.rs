//! All interleavings of the threads that raise a signal and the one that waits for it, by loom.
//! The source is the server's: `sync` gives it loom's primitives instead of its own.
#![cfg(test)]
#![allow(clippy::unwrap_used)]

#[path = "../src/commit_log/signal.rs"]
mod signal;

/// What the server's `sync` has, made of loom's.
mod sync {
    pub(crate) use loom::sync::atomic::AtomicBool;
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    /// Empty while it is waited.
    pub(crate) struct Locked<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    #[derive(Default)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    pub(crate) struct WaitResult;

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> Locked<'_, T> {
            Locked(Some(self.0.lock().unwrap()))
        }
    }

    impl<T> Deref for Locked<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for Locked<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    impl WaitResult {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Never times out: a wake that is lost is a deadlock, which loom reports.
        pub(crate) fn wait_until<T>(&self, locked: &mut Locked<'_, T>, _: Instant) -> WaitResult {
            locked.0 = locked.0.take().map(|guard| self.0.wait(guard).unwrap());
            WaitResult
        }
    }
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use signal::Signal;
use std::time::Duration;

const FOR_EVER: Duration = Duration::from_secs(3600);

/// `raisers` threads raise it, each once, with at most so many preemptions in a run.
fn explore(raisers: usize, preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let shared = Arc::new((Signal::default(), AtomicUsize::new(0)));
        let threads: Vec<_> = (0..raisers)
            .map(|_| {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    shared.1.fetch_add(1, Ordering::Relaxed);
                    shared.0.raise();
                })
            })
            .collect();
        while shared.1.load(Ordering::Relaxed) < raisers {
            assert!(shared.0.wait(FOR_EVER));
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn no_raise_is_lost_and_who_waits_sees_what_was_done_before_it() {
    explore(1, 5);
    explore(2, 2);
}
