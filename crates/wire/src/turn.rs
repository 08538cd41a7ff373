//! How long the turns of workers are: while a task has its turn, all else on its worker waits.
//!
//! One reading of a coarse clock a turn, at its end: a turn begins where the one before ended, or
//! where the worker woke. So a turn is too long by what came between that nobody measures. The
//! clock's ticks, of some milliseconds, are enough to see a turn that is too long.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use telemetry::Throttle;

use crate::handler::{Method, Peer};
use crate::worker::current_worker;

/// A turn that takes longer is told in the log.
const LONG: Duration = Duration::from_millis(50);

/// The line is logged this often at most.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Told of turns.
type Observer = Rc<dyn Fn(Duration)>;

thread_local! {
    /// When the last turn of this thread ended, in ns of the coarse clock.
    static LAST_NS: Cell<u64> = const { Cell::new(0) };
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Has `observer` told of each turn of this thread that takes a tick of the clock or more.
pub(crate) fn observe(observer: Observer) {
    OBSERVER.set(Some(observer));
    woke();
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// This thread begins to work after it slept.
pub(crate) fn woke() {
    LAST_NS.set(now_ns());
}

/// A turn of this thread ends.
pub(crate) fn ended(who: impl FnOnce() -> Who) {
    let now = now_ns();
    let before = LAST_NS.replace(now);
    if now != before {
        took(Duration::from_nanos(now.saturating_sub(before)), who);
    }
}

#[cold]
fn took(took: Duration, who: impl FnOnce() -> Who) {
    let observer = OBSERVER.with_borrow(Clone::clone);
    if let Some(observer) = observer {
        observer(took);
    }
    static LINES: Throttle = Throttle::new(LINE_EVERY);
    if took >= LONG
        && let Some(suppressed) = LINES.allow()
    {
        let who = who();
        tracing::warn!(
            took = %telemetry::GoDuration(took),
            "expected-duration" = %telemetry::GoDuration(LONG),
            worker = current_worker().unwrap_or_default(),
            turn = %who,
            "remote-addr" = who.peer.as_ref().map_or("", |peer| &peer.address),
            suppressed,
            "a worker's turn took long: its other calls waited"
        );
    }
}

/// Whose turn it was.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    what: What,
    peer: Option<Rc<Peer>>,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Call(&'static Method),
    Task(&'static str),
}

impl Who {
    /// A gRPC call's.
    pub(crate) fn call(method: &'static Method, peer: &Rc<Peer>) -> Self {
        Who {
            what: What::Call(method),
            peer: Some(Rc::clone(peer)),
        }
    }

    /// A connection's.
    pub(crate) fn connection(what: &'static str, peer: &Rc<Peer>) -> Self {
        Who {
            what: What::Task(what),
            peer: Some(Rc::clone(peer)),
        }
    }

    /// A task's that serves no one client.
    pub(crate) fn task(name: &'static str) -> Self {
        Who {
            what: What::Task(name),
            peer: None,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Call(method) => write!(f, "/{}/{}", method.service, method.name),
            What::Task(name) => f.write_str(name),
        }
    }
}

/// A future whose turns are measured.
pub(crate) struct Timed<F> {
    who: Who,
    future: Pin<Box<F>>,
}

impl<F> Timed<F> {
    pub(crate) fn new(who: Who, future: F) -> Self {
        let future = Box::pin(future);
        Timed { who, future }
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.future.as_mut().poll(cx);
        ended(|| self.who.clone());
        polled
    }
}

/// A task of a worker that serves no one client, with its turns measured under this name.
pub fn timed<F: Future>(name: &'static str, future: F) -> impl Future<Output = F::Output> {
    Timed::new(Who::task(name), future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_begins_where_the_one_before_ended() {
        let told = Rc::<RefCell<Vec<Duration>>>::default();
        let seen = Rc::clone(&told);
        observe(Rc::new(move |took| seen.borrow_mut().push(took)));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let slow = timed("slow", async {
            std::thread::sleep(Duration::from_millis(60));
        });
        assert!(std::pin::pin!(slow).poll(&mut cx).is_ready());
        assert_eq!(told.borrow().len(), 1);
        assert!(told.borrow()[0] >= LONG, "{told:?}");
        // Sleep is no turn.
        std::thread::sleep(Duration::from_millis(60));
        woke();
        assert!(
            std::pin::pin!(timed("short", async {}))
                .poll(&mut cx)
                .is_ready()
        );
        let slept = told.borrow().iter().skip(1).any(|took| *took >= LONG);
        assert!(!slept, "{told:?}");
        let method = Box::leak(Box::new(Method {
            service: "a.B",
            name: "C",
            kind: crate::Kind::Unary,
            id: 0,
        }));
        let peer = Rc::new(Peer {
            address: String::new(),
            tls: None,
        });
        assert_eq!(Who::call(method, &peer).to_string(), "/a.B/C");
    }
}
