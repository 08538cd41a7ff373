//! Waiting on one thread: wakers that are removed when their future goes away.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Wakers of local futures that wait for one kind of event.
#[derive(Debug, Default)]
pub(crate) struct WakerSet {
    entries: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

impl WakerSet {
    /// Wakes everyone who waits.
    pub(crate) fn wake_all(&self) {
        for waker in self.entries.borrow().iter().flatten() {
            waker.wake_by_ref();
        }
    }

    /// A future that is ready once `check` gives a value; `check` runs at each wake-up.
    pub(crate) fn wait<T, F: FnMut() -> Option<T> + Unpin>(&self, check: F) -> Wait<'_, F> {
        Wait {
            set: self,
            check,
            key: None,
        }
    }

    pub(crate) fn register(&self, key: &mut Option<usize>, waker: &Waker) {
        let mut entries = self.entries.borrow_mut();
        let key = *key.get_or_insert_with(|| {
            self.free.borrow_mut().pop().unwrap_or_else(|| {
                entries.push(None);
                entries.len() - 1
            })
        });
        match &mut entries[key] {
            Some(known) if known.will_wake(waker) => {}
            entry => *entry = Some(waker.clone()),
        }
    }

    pub(crate) fn remove(&self, key: usize) {
        self.entries.borrow_mut()[key] = None;
        self.free.borrow_mut().push(key);
    }
}

/// See [`WakerSet::wait`].
pub(crate) struct Wait<'a, F> {
    set: &'a WakerSet,
    check: F,
    key: Option<usize>,
}

impl<T, F: FnMut() -> Option<T> + Unpin> Future for Wait<'_, F> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        if let Some(value) = (this.check)() {
            return Poll::Ready(value);
        }
        this.set.register(&mut this.key, cx.waker());
        Poll::Pending
    }
}

impl<F> Drop for Wait<'_, F> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.set.remove(key);
        }
    }
}

/// A flag of one worker that is raised once, when the server shuts down.
#[derive(Debug, Default)]
pub(crate) struct Flag {
    raised: Cell<bool>,
    pub(crate) waiting: WakerSet,
}

impl Flag {
    pub(crate) fn raise(&self) {
        self.raised.set(true);
        self.waiting.wake_all();
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.get()
    }

    /// Waits until it is raised.
    pub(crate) async fn wait(&self) {
        self.waiting.wait(|| self.is_raised().then_some(())).await;
    }
}

/// Tells a handler that the server is shutting down.
///
/// Streams should wait for it beside their other work and then end with an error of their own:
/// what still runs when the shutdown's grace ends is dropped.
#[derive(Debug, Clone)]
pub struct Closing(pub(crate) Rc<Flag>);

impl Closing {
    /// Waits until the shutdown begins. Cheap to drop and call again.
    pub async fn wait(&self) {
        self.0
            .waiting
            .wait(|| self.0.is_raised().then_some(()))
            .await;
    }
}
