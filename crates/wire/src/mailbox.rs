//! How other threads complete calls on a worker: many at once, with one wake-up.
//!
//! A journal thread that made a batch of writes durable posts their results to each worker's inbox
//! in one go. The worker is woken once (one write to its event fd), takes the whole batch and wakes
//! the local futures, which costs no system call.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::WorkerId;
use crate::local::WakerSet;
use crate::turn::timed;

/// Names one pending result of a worker. A slot that was freed and given out again has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId {
    index: u32,
    generation: u32,
}

/// The inboxes of all workers; shared with the threads that post.
#[derive(Debug)]
pub struct Mailboxes<T> {
    inboxes: Box<[Inbox<T>]>,
}

#[derive(Debug)]
struct Inbox<T> {
    posts: Mutex<Vec<(SlotId, T)>>,
    nudges: AtomicU64,
    /// Whether a local future waits for a nudge.
    wants_nudge: AtomicBool,
    wake: Notify,
}

impl<T: Send + 'static> Mailboxes<T> {
    /// Inboxes for `workers` workers.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Mailboxes {
            inboxes: (0..workers).map(|_| Inbox::new()).collect(),
        })
    }

    /// Opens a worker's inbox, once, on its own thread; `None` if there is no such worker.
    pub fn open(self: &Arc<Self>, worker: WorkerId) -> Option<Slots<T>> {
        if worker >= self.inboxes.len() {
            return None;
        }
        let slots = Slots(Rc::new(Shared {
            worker,
            mailboxes: Arc::clone(self),
            entries: RefCell::default(),
            free: RefCell::default(),
            nudge_waiters: WakerSet::default(),
        }));
        tokio::task::spawn_local(timed("mailbox", drain(slots.clone())));
        Some(slots)
    }

    /// Tells every worker that something advanced, if one of its futures waits for that, and
    /// posts the results that `batches`, by worker, has for it: one wake a worker in all. Leaves
    /// the batches empty. Results for slots whose future is gone are dropped there.
    ///
    /// Publish what advanced before this call: who reads [`Slots::nudges`], then looks, then waits
    /// with that number misses nothing.
    pub fn post_and_nudge(&self, batches: &mut [Vec<(SlotId, T)>]) {
        for (worker, inbox) in self.inboxes.iter().enumerate() {
            let posted = batches
                .get_mut(worker)
                .is_some_and(|batch| inbox.put(batch));
            inbox.count_nudge();
            inbox.wake(posted);
        }
    }
}

/// The steps of both sides, in the order in which each side takes them. A test takes them in all
/// orders that two threads can.
impl<T> Inbox<T> {
    fn new() -> Self {
        Inbox {
            posts: Mutex::new(Vec::new()),
            nudges: AtomicU64::new(0),
            wants_nudge: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Poster, first: adds results; whether there are any. Leaves the batch empty.
    fn put(&self, batch: &mut Vec<(SlotId, T)>) -> bool {
        !batch.is_empty() && {
            self.posts.lock().append(batch);
            true
        }
    }

    /// Poster, second.
    fn count_nudge(&self) {
        self.nudges.fetch_add(1, Ordering::SeqCst);
    }

    /// Poster, third: wakes the worker if it asked, or has results.
    fn wake(&self, posted: bool) {
        if self.wants_nudge.swap(false, Ordering::SeqCst) || posted {
            self.wake.notify_one();
        }
    }

    /// Waiter, first: a nudge that comes after this wakes it.
    fn ask(&self) {
        self.wants_nudge.store(true, Ordering::SeqCst);
    }

    /// Waiter, second: how many nudges there were.
    fn nudges(&self) -> u64 {
        self.nudges.load(Ordering::SeqCst)
    }

    /// The worker, each time it is woken, before all who wait look again.
    fn take(&self, batch: &mut Vec<(SlotId, T)>) {
        std::mem::swap(&mut *self.posts.lock(), batch);
    }
}

/// A worker's own side of its inbox. Clones are cheap and share it.
pub struct Slots<T>(Rc<Shared<T>>);

struct Shared<T> {
    worker: WorkerId,
    mailboxes: Arc<Mailboxes<T>>,
    entries: RefCell<Vec<Entry<T>>>,
    free: RefCell<Vec<u32>>,
    nudge_waiters: WakerSet,
}

struct Entry<T> {
    generation: u32,
    state: State<T>,
}

enum State<T> {
    Free,
    Waiting(Option<Waker>),
    Done(T),
}

impl<T> Clone for Slots<T> {
    fn clone(&self) -> Self {
        Slots(Rc::clone(&self.0))
    }
}

impl<T> std::fmt::Debug for Slots<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots")
            .field("worker", &self.0.worker)
            .finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Slots<T> {
    /// The worker whose slots these are.
    pub fn worker(&self) -> WorkerId {
        self.0.worker
    }

    /// A new slot and the future of its result.
    pub fn slot(&self) -> (SlotId, Pending<T>) {
        let mut entries = self.0.entries.borrow_mut();
        let index = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            entries.push(Entry {
                generation: 0,
                state: State::Free,
            });
            // More than u32::MAX calls in flight do not fit into memory.
            u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
        });
        let entry = &mut entries[index as usize];
        entry.state = State::Waiting(None);
        let id = SlotId {
            index,
            generation: entry.generation,
        };
        (
            id,
            Pending {
                slots: self.clone(),
                id,
            },
        )
    }

    /// Completes a slot from its own thread; ignored if its future is gone.
    pub fn complete(&self, id: SlotId, value: T) {
        let waker = {
            let mut entries = self.0.entries.borrow_mut();
            let Some(entry) = entries.get_mut(id.index as usize) else {
                return;
            };
            if entry.generation != id.generation {
                return;
            }
            match &mut entry.state {
                State::Waiting(waker) => {
                    let waker = waker.take();
                    entry.state = State::Done(value);
                    waker
                }
                // A second result for one slot: the first stands.
                State::Free | State::Done(_) => None,
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How many nudges there were; many may look like one.
    pub fn nudges(&self) -> u64 {
        self.inbox().nudges()
    }

    /// Waits until [`Slots::nudges`] is not `seen`, and returns it.
    pub async fn nudged(&self, seen: u64) -> u64 {
        let check = || {
            // Ask first, look then: a nudge in between wakes us.
            self.inbox().ask();
            let now = self.nudges();
            (now != seen).then_some(now)
        };
        self.0.nudge_waiters.wait(check).await
    }

    fn inbox(&self) -> &Inbox<T> {
        // `open` checked the number.
        &self.0.mailboxes.inboxes[self.0.worker]
    }
}

/// Takes posts and nudges off a worker's inbox, for as long as the worker runs.
async fn drain<T: Send + 'static>(slots: Slots<T>) {
    let mut batch = Vec::new();
    loop {
        slots.inbox().take(&mut batch);
        // Always: a poster counts its nudge before it takes back what was asked for. A waiter
        // that saw the one and asked anew between the two has to ask once more. First: the events
        // of a write then leave with its answer, in one piece.
        slots.0.nudge_waiters.wake_all();
        for (id, value) in batch.drain(..) {
            slots.complete(id, value);
        }
        slots.inbox().wake.notified().await;
    }
}

/// The future of a slot's result. Dropping it frees the slot.
pub struct Pending<T: Send + 'static> {
    slots: Slots<T>,
    id: SlotId,
}

impl<T: Send + 'static> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut entries = self.slots.0.entries.borrow_mut();
        let state = &mut entries[self.id.index as usize].state;
        match std::mem::replace(state, State::Waiting(None)) {
            State::Done(value) => Poll::Ready(value),
            State::Waiting(Some(known)) if known.will_wake(cx.waker()) => {
                *state = State::Waiting(Some(known));
                Poll::Pending
            }
            State::Waiting(_) | State::Free => {
                *state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl<T: Send + 'static> Drop for Pending<T> {
    fn drop(&mut self) {
        let shared = &self.slots.0;
        let mut entries = shared.entries.borrow_mut();
        let entry = &mut entries[self.id.index as usize];
        let old = std::mem::replace(&mut entry.state, State::Free);
        entry.generation = entry.generation.wrapping_add(1);
        shared.free.borrow_mut().push(self.id.index);
        drop(entries);
        // After the borrow: a value's own drop may come back here.
        drop(old);
    }
}

impl<T: Send + 'static> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::{Builder, LocalOptions};

    fn on_worker<F: Future<Output = ()>>(test: F) {
        Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn posts_reach_their_futures() {
        on_worker(async {
            let mailboxes = Mailboxes::<u64>::new(2);
            let slots = mailboxes.open(1).unwrap();
            let (ids, futures): (Vec<_>, Vec<_>) = (0..100).map(|_| slots.slot()).unzip();
            let poster = {
                let mailboxes = Arc::clone(&mailboxes);
                std::thread::spawn(move || {
                    let mut batches = [Vec::new(), ids.into_iter().zip(0u64..).collect()];
                    mailboxes.post_and_nudge(&mut batches);
                    assert!(batches[1].is_empty());
                })
            };
            for (want, future) in (0u64..).zip(futures) {
                assert_eq!(future.await, want);
            }
            poster.join().unwrap();
            assert!(mailboxes.open(2).is_none());
        });
    }

    #[test]
    fn late_posts_are_ignored() {
        on_worker(async {
            let mailboxes = Mailboxes::<&str>::new(1);
            let slots = mailboxes.open(0).unwrap();
            let (old, pending) = slots.slot();
            drop(pending);
            let (new, pending) = slots.slot();
            assert_eq!(old.index, new.index);
            let batch = vec![(old, "late"), (new, "right"), (new, "twice")];
            mailboxes.post_and_nudge(&mut [batch]);
            assert_eq!(pending.await, "right");
            assert!(slots.0.free.borrow().len() == 1);
        });
    }

    #[test]
    fn nudges_coalesce_and_none_is_missed() {
        on_worker(async {
            let mailboxes = Mailboxes::<()>::new(1);
            let slots = mailboxes.open(0).unwrap();
            let total = 10_000u64;
            let poster = {
                let mailboxes = Arc::clone(&mailboxes);
                std::thread::spawn(move || {
                    (0..total).for_each(|_| mailboxes.post_and_nudge(&mut []))
                })
            };
            let mut seen = 0;
            while seen < total {
                let wait = slots.nudged(seen);
                seen = tokio::time::timeout(std::time::Duration::from_secs(10), wait)
                    .await
                    .expect("a nudge was lost");
            }
            poster.join().unwrap();
        });
    }

    #[test]
    fn a_poster_that_is_held_up_between_its_steps_makes_nobody_sleep() {
        on_worker(async {
            let mailboxes = Mailboxes::<()>::new(1);
            let slots = mailboxes.open(0).unwrap();
            let inbox = slots.inbox();
            let turns = || tokio::time::sleep(std::time::Duration::from_millis(10));
            let waits = slots.clone();
            let waiter = tokio::task::spawn_local(async move {
                let seen = waits.nudged(0).await;
                waits.nudged(seen).await
            });
            turns().await;
            // It counted, and something else wakes the worker: the waiter sees it, and asks anew.
            inbox.nudges.fetch_add(1, Ordering::SeqCst);
            inbox.wake.notify_one();
            turns().await;
            // Then it goes on, and takes back what was asked for.
            assert!(inbox.wants_nudge.swap(false, Ordering::SeqCst));
            inbox.wake.notify_one();
            turns().await;
            mailboxes.post_and_nudge(&mut []);
            let woken = tokio::time::timeout(std::time::Duration::from_secs(5), waiter).await;
            assert_eq!(woken.expect("the waiter sleeps").unwrap(), 2);
        });
    }

    /// Posts of the model below, each with its nudge.
    const POSTS: u64 = 2;

    /// What the worker does next: a waiter asks and looks until nothing is new, then the worker
    /// sleeps; when it is woken it takes what was posted, and the waiter asks again.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Worker {
        Ask,
        Look,
        Sleep,
        Take,
    }

    /// One run of both sides, a step at a time.
    struct Run {
        inbox: Inbox<u64>,
        /// Steps that the poster has taken, three a post.
        posted_steps: u64,
        put: bool,
        worker: Worker,
        seen: u64,
        taken: Vec<(SlotId, u64)>,
    }

    impl Run {
        fn new() -> Self {
            Run {
                inbox: Inbox::new(),
                posted_steps: 0,
                put: false,
                worker: Worker::Ask,
                seen: 0,
                taken: Vec::new(),
            }
        }

        /// Whether the poster had a step to take. Every second post brings nothing but its nudge.
        fn poster_steps(&mut self) -> bool {
            let (post, step) = (self.posted_steps / 3, self.posted_steps % 3);
            if post == POSTS {
                return false;
            }
            let id = SlotId {
                index: 0,
                generation: 0,
            };
            match step {
                0 if post.is_multiple_of(2) => self.put = self.inbox.put(&mut vec![(id, post)]),
                0 => self.put = false,
                1 => self.inbox.count_nudge(),
                _ => self.inbox.wake(self.put),
            }
            self.posted_steps += 1;
            true
        }

        /// Whether the worker had a step to take.
        fn worker_steps(&mut self) -> bool {
            self.worker = match self.worker {
                Worker::Ask => {
                    self.inbox.ask();
                    Worker::Look
                }
                Worker::Look => match self.inbox.nudges() {
                    now if now != self.seen => {
                        self.seen = now;
                        Worker::Ask
                    }
                    _ => Worker::Sleep,
                },
                Worker::Sleep => {
                    let woken = std::pin::pin!(self.inbox.wake.notified());
                    let mut cx = Context::from_waker(Waker::noop());
                    if woken.poll(&mut cx).is_pending() {
                        return false;
                    }
                    Worker::Take
                }
                Worker::Take => {
                    let mut batch = Vec::new();
                    self.inbox.take(&mut batch);
                    self.taken.append(&mut batch);
                    Worker::Ask
                }
            };
            true
        }
    }

    /// Goes on from the run that took these steps (`true`: the poster's), in every order. The
    /// number of orders.
    fn explore(steps: &mut Vec<bool>) -> u32 {
        let mut orders = 0;
        for poster in [true, false] {
            let mut run = Run::new();
            for step in steps.iter() {
                let stepped = if *step {
                    run.poster_steps()
                } else {
                    run.worker_steps()
                };
                assert!(stepped);
            }
            let stepped = if poster {
                run.poster_steps()
            } else {
                run.worker_steps()
            };
            if stepped {
                steps.push(poster);
                orders += explore(steps);
                steps.pop();
            } else if !poster && run.posted_steps == POSTS * 3 {
                // Nobody has anything to do any more.
                assert_eq!(
                    run.seen, POSTS,
                    "a waiter sleeps through a nudge: {steps:?}"
                );
                assert_eq!(run.taken.len(), 1, "a result is not taken: {steps:?}");
                orders += 1;
            }
        }
        orders
    }

    #[test]
    fn in_every_order_of_steps_nobody_sleeps_through_anything() {
        assert!(explore(&mut Vec::new()) > 100);
    }
}
