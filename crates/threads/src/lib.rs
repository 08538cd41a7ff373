//! Threads, and what a panic on one of them means for the process.
//!
//! A server that has lost a thread, or that goes on with what a panic left half done, lies to
//! its clients. So a panic ends the process, at once and before anything is unwound (no lock is
//! released, no other thread sees what was half done), if it happens
//!
//! - on a *vital* thread ([`spawn_vital`]): without it the server would accept work that it
//!   never does; or
//! - in a *critical* section ([`critical`]): what is shared may be half changed.
//!
//! Elsewhere it ends no more than the piece of work that it is in: a *job* ([`spawn_job`]), or
//! what is *contained* on a vital thread ([`contain`], [`Contained`]), a call say. Whoever
//! started that gets [`Panicked`] and says so to whoever waits.
//!
//! Long background work gives way to others by a [`Pace`]. It knows nothing of what the threads
//! do.

mod fault;
mod pace;

pub use fault::fault_point;
pub use pace::Pace;

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::pin::Pin;
use std::process::abort;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::{Builder, JoinHandle};

/// What a panic on this thread means now.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The thread's work cannot go on without it, and nothing contains what it does now.
    vital: bool,
    /// Critical sections that it is in.
    critical: u32,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State { vital: false, critical: 0 }) };
}

static SURVIVED: AtomicU64 = AtomicU64::new(0);

/// A piece of work panicked. The panic itself is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked {
    message: String,
}

impl Panicked {
    fn new(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Panicked {
            message: text.unwrap_or_else(|| "no text".to_owned()),
        }
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a bug in the server (panic: {})", self.message)
    }
}

impl std::error::Error for Panicked {}

/// Panics since the start that ended a piece of work and not the process.
pub fn survived() -> u64 {
    SURVIVED.load(Ordering::Relaxed)
}

/// Has panics end the process where they must. Whoever set a hook before is asked first, so the
/// panic's own message is written.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            before(info);
            let State { vital, critical } = STATE.get();
            if !vital && critical == 0 {
                SURVIVED.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let thread = std::thread::current();
            tracing::error!(
                target: telemetry::FATAL,
                thread = thread.name().unwrap_or("unnamed"),
                panic = info.payload_as_str().unwrap_or("no text"),
                location = %info.location().map(ToString::to_string).unwrap_or_default(),
                "a bug: a thread panicked that the server cannot go on without; the process ends, so that nothing half done is served, and the next start replays the log"
            );
            abort();
        }));
    });
}

/// Starts a thread that the process cannot go on without: a panic on it ends the process. Its name
/// is a [`fault_point`] as it starts.
///
/// # Errors
/// The system has no thread.
pub fn spawn_vital(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    install();
    let place = name.to_owned();
    Builder::new().name(name.to_owned()).spawn(move || {
        STATE.set(State {
            vital: true,
            critical: 0,
        });
        fault_point(&place);
        body();
    })
}

/// Starts a thread for a piece of work that may fail. `ended` runs on it afterwards, with what
/// came of the work.
///
/// # Errors
/// The system has no thread.
pub fn spawn_job<T>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
    ended: impl FnOnce(Result<T, Panicked>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    install();
    let body = move || ended(contain(work));
    Builder::new().name(name.to_owned()).spawn(body)
}

/// Runs something that may fail by itself, also on a vital thread. What it leaves behind when it
/// panics must be its own: what is shared belongs into a [`critical`] section.
///
/// # Errors
/// It panicked.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let before = STATE.get();
    STATE.set(State {
        vital: false,
        ..before
    });
    let result = catch_unwind(AssertUnwindSafe(work));
    STATE.set(before);
    result.map_err(|payload| Panicked::new(&*payload))
}

/// A future whose panics are [contained](contain). It is done after the first.
#[derive(Debug)]
pub struct Contained<F>(pub F);

impl<F: Future + Unpin> Future for Contained<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match contain(|| Pin::new(&mut self.0).poll(cx)) {
            Ok(poll) => poll.map(Ok),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

/// A future each turn of which is a [`critical`] section.
#[derive(Debug)]
pub struct CriticalTurns<F>(pub F);

impl<F: Future + Unpin> Future for CriticalTurns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let _critical = critical();
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A stretch in which a panic ends the process, whatever the thread.
#[derive(Debug)]
#[must_use = "it ends where it is dropped"]
pub struct Critical(PhantomData<*const ()>);

/// Begins a critical section, which ends where the value is dropped.
#[inline]
pub fn critical() -> Critical {
    let state = STATE.get();
    STATE.set(State {
        critical: state.critical + 1,
        ..state
    });
    Critical(PhantomData)
}

impl Drop for Critical {
    #[inline]
    fn drop(&mut self) {
        let state = STATE.get();
        STATE.set(State {
            critical: state.critical - 1,
            ..state
        });
    }
}

#[cfg(test)]
#[allow(clippy::panic)] // what the tests are about
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_contained_is_an_error() {
        assert_eq!(contain(|| 7), Ok(7));
        let before = survived();
        install();
        let failed = contain(|| panic!("{}", "why")).unwrap_err();
        assert_eq!(failed.to_string(), "a bug in the server (panic: why)");
        assert!(survived() > before);
        assert!(!STATE.get().vital && STATE.get().critical == 0);
    }

    #[test]
    fn a_job_tells_what_came_of_it() {
        let (tell, told) = std::sync::mpsc::channel();
        let also = tell.clone();
        let good = spawn_job("good", || 7, move |r| tell.send(r).unwrap());
        good.unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap(), Ok(7));
        let bad = || -> i32 { panic!("why") };
        let bad = spawn_job("bad", bad, move |r| also.send(r).unwrap());
        bad.unwrap().join().unwrap();
        assert!(told.recv().unwrap().is_err());
    }

    #[test]
    fn sections_may_end_in_any_order() {
        let first = critical();
        let second = critical();
        drop(first);
        assert_eq!(STATE.get().critical, 1);
        drop(second);
        assert_eq!(STATE.get().critical, 0);
    }

    #[test]
    fn what_is_contained_on_a_vital_thread_is_not_vital() {
        let thread = spawn_vital("vital", || {
            assert!(STATE.get().vital);
            let inside = contain(|| STATE.get().vital);
            assert_eq!(inside, Ok(false));
            // This one would otherwise end the test's process.
            assert!(contain(|| panic!("why")).is_err());
            assert!(STATE.get().vital);
        });
        thread.unwrap().join().unwrap();
    }
}
