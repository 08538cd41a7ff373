//! Waiting until a moment, exact to the kernel's timers. Tokio's own timer rounds up to
//! milliseconds, which is as much as a delay of one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

/// Who waits, by when they are due. Each direction of a connection waits for one moment at a
/// time, so there are at most twice as many entries as connections were open within the
/// longest delay.
#[derive(Debug, Default)]
struct Waiting {
    by_due: BinaryHeap<Reverse<(Instant, u64)>>,
    wakers: std::collections::HashMap<u64, oneshot::Sender<()>>,
    next: u64,
}

/// The timer of one runtime. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timer {
    waiting: Arc<Mutex<Waiting>>,
    /// The first moment has changed.
    changed: Arc<Notify>,
}

impl Timer {
    /// Returns when `due` has come.
    pub(crate) async fn until(&self, due: Instant) {
        if due <= Instant::now() {
            return;
        }
        let (waker, woken) = oneshot::channel();
        let first = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let number = waiting.next;
            waiting.next += 1;
            waiting.wakers.insert(number, waker);
            waiting.by_due.push(Reverse((due, number)));
            waiting
                .by_due
                .peek()
                .is_some_and(|Reverse((_, at))| *at == number)
        };
        if first {
            self.changed.notify_one();
        }
        // An error is the end of the thread, which ends this task too.
        let _ = woken.await;
    }

    /// Wakes all that are due at `now`; the next moment, if there is one.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Reverse((due, number)) = *waiting.by_due.peek()?;
            if due > now {
                return Some(due);
            }
            waiting.by_due.pop();
            if let Some(waker) = waiting.wakers.remove(&number) {
                // Who went away meanwhile needs no waking.
                let _ = waker.send(());
            }
        }
    }

    /// Wakes whoever waits, for as long as it is polled.
    pub(crate) async fn run(&self, clock: Clock) -> io::Result<()> {
        #[allow(
            deprecated,
            reason = "it is sound for an OwnedFd, which stays open as long as it lives; what \
                      replaces it takes unsafe code"
        )]
        let clock = AsyncFd::new(clock.0)?;
        loop {
            match self.wake(Instant::now()) {
                None => self.changed.notified().await,
                Some(due) => {
                    arm(
                        clock.get_ref(),
                        due.saturating_duration_since(Instant::now()),
                    )?;
                    tokio::select! {
                        () = self.changed.notified() => {}
                        ready = clock.readable() => {
                            let mut ready = ready?;
                            let mut expirations = [0; 8];
                            let _ = rustix::io::read(clock.get_ref(), &mut expirations);
                            ready.clear_ready();
                        }
                    }
                }
            }
        }
    }
}

/// The kernel's timer under a [`Timer`].
#[derive(Debug)]
pub(crate) struct Clock(OwnedFd);

impl Clock {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }
}

fn arm(clock: &OwnedFd, after: Duration) -> io::Result<()> {
    // Zero would disarm it.
    let after = after.max(Duration::from_nanos(1));
    let value = Timespec {
        tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: after.subsec_nanos().into(),
    };
    let once = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: value,
    };
    timerfd_settime(clock, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_in_order_and_not_early() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let timer = Timer::default();
            let running = timer.clone();
            tokio::spawn(async move { running.run(Clock::new().unwrap()).await });
            let began = Instant::now();
            let waits = [7_u64, 1, 4, 0, 1].map(|ms| {
                let timer = timer.clone();
                tokio::spawn(async move {
                    let due = began + Duration::from_millis(ms);
                    timer.until(due).await;
                    (due, Instant::now())
                })
            });
            for wait in waits {
                let (due, at) = wait.await.unwrap();
                assert!(at >= due, "{:?} early", due - at);
                assert!(at - due < Duration::from_millis(500), "{:?} late", at - due);
            }
        });
    }
}
