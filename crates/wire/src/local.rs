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

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.borrow().len() == self.entries.borrow().len()
    }

    /// A future that is ready once `check` gives a value; `check` runs at each wake-up.
    pub(crate) fn wait<T, F: FnMut() -> Option<T> + Unpin>(&self, check: F) -> Wait<'_, F, 1> {
        wait_in([self], check)
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

/// A future that is ready once `check` gives a value; `check` runs at each wake-up of any of the
/// sets.
pub(crate) fn wait_in<T, F, const N: usize>(sets: [&WakerSet; N], check: F) -> Wait<'_, F, N>
where
    F: FnMut() -> Option<T> + Unpin,
{
    Wait {
        sets,
        check,
        keys: [None; N],
    }
}

/// See [`wait_in`].
pub(crate) struct Wait<'a, F, const N: usize> {
    sets: [&'a WakerSet; N],
    check: F,
    keys: [Option<usize>; N],
}

impl<T, F: FnMut() -> Option<T> + Unpin, const N: usize> Future for Wait<'_, F, N> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        if let Some(value) = (this.check)() {
            return Poll::Ready(value);
        }
        for (set, key) in this.sets.iter().zip(&mut this.keys) {
            set.register(key, cx.waker());
        }
        Poll::Pending
    }
}

impl<F, const N: usize> Drop for Wait<'_, F, N> {
    fn drop(&mut self) {
        for (set, key) in self.sets.iter().zip(self.keys) {
            if let Some(key) = key {
                set.remove(key);
            }
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
