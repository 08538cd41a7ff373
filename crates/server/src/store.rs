//! The store that all threads share: the engine behind a short lock, and what they do
//! with it. No lock is held across an await, a write to the journal, or a long read.

use crate::commit_log::Signal;
use crate::engine_lock::{EngineLock, Locked};
use crate::storage::Storage;
use engine::op::{Class, Outcome, Write};
use engine::{Engine, Error, Lane};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::Notify;
use wire::mailbox::{Mailboxes, SlotId};

/// What a write comes to.
pub(crate) type Answer = Result<Outcome, Error>;

/// Who waits for a write's answer.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A call on a worker.
    Call(usize, SlotId),
    /// The end of a lease that has run out; dropped with the answer, which is how upkeep
    /// learns that there is one.
    Expiry {
        /// Held while there is no answer.
        _unanswered: Arc<()>,
    },
    /// Nobody: the server's own upkeep.
    Nobody,
}

/// Keys visited under the lock before others get their turn: some tens of microseconds.
pub(crate) const SLICE_KEYS: usize = 256;

/// The shared store.
pub(crate) struct Store {
    engine: EngineLock,
    pub(crate) mailboxes: Arc<Mailboxes<Answer>>,
    /// For the committer.
    pub(crate) commit: Signal,
    /// For the volatile writer.
    pub(crate) volatile: Signal,
    pub(crate) storage: Storage,
    freed: Freed,
    started: Instant,
}

/// Calls that wait for compactions to free what they free.
#[derive(Default)]
struct Freed {
    waiting: AtomicUsize,
    told: Notify,
}

/// One of them.
struct Waits<'a>(&'a Freed);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Store {
    pub(crate) fn new(
        engine: EngineLock,
        mailboxes: Arc<Mailboxes<Answer>>,
        storage: Storage,
    ) -> Self {
        Store {
            engine,
            mailboxes,
            commit: Signal::default(),
            volatile: Signal::default(),
            storage,
            freed: Freed::default(),
            started: Instant::now(),
        }
    }

    /// The engine, for a moment.
    #[track_caller]
    pub(crate) fn lock(&self) -> Locked<'_> {
        self.engine.lock()
    }

    /// The clock that the engine sees, in milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Submits a write of the server's own that nobody waits for; it is durable.
    pub(crate) fn write_unattended(&self, write: Write) -> Option<Answer> {
        self.write_own(write, Waiter::Nobody)
    }

    /// Submits a write of the server's own; it is durable.
    pub(crate) fn write_own(&self, write: Write, waiter: Waiter) -> Option<Answer> {
        let now_ms = self.now_ms();
        let (answer, open) = {
            let mut engine = self.lock();
            let answer = engine.submit(write, Class::DURABLE, waiter, now_ms);
            (answer.map(|(_, a)| a), Open::of(&engine))
        };
        self.raise(open);
        answer
    }

    /// Tells the threads that have something to do.
    pub(crate) fn raise(&self, open: Open) {
        if open.durable {
            self.commit.raise();
        }
        if open.volatile {
            self.volatile.raise();
        }
    }

    /// Admits what is ready beyond what the call that made it so has admitted: a slice at a time,
    /// between which others get the lock. Not for a worker's turn.
    pub(crate) fn admit_ready(&self, open: Open) {
        let mut ready = open.ready;
        while ready {
            let mut answers = engine::sequencer::Answers::new();
            let mut engine = self.lock();
            ready = engine.admit_ready(&mut answers);
            let open = Open::of(&engine);
            engine.unlock_fair();
            self.raise(open);
            self.deliver(&mut answers);
        }
    }

    /// Whether a compaction still has something to hash or to free.
    fn compacting(&self) -> bool {
        let engine = self.lock();
        engine.is_compaction_hash_due() || engine.compaction_due()
    }

    /// Waits until compactions have freed what they free.
    pub(crate) async fn compacted(&self) {
        let freed = &self.freed;
        freed.waiting.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(freed);
        loop {
            let mut told = std::pin::pin!(freed.told.notified());
            // From now on: it may happen in between.
            told.as_mut().enable();
            if !self.compacting() {
                return;
            }
            told.await;
        }
    }

    /// Tells those who wait in [`Store::compacted`], if so it is; for upkeep, at each round.
    pub(crate) fn tell_compacted(&self) {
        if self.freed.waiting.load(Ordering::Acquire) > 0 && !self.compacting() {
            self.freed.told.notify_waiters();
        }
    }

    /// Hands answers to those who wait, one wake a worker.
    /// Watch pumps look for new events at the same wake.
    pub(crate) fn deliver(&self, answers: &mut engine::sequencer::Answers<Waiter>) {
        let mut by_worker: Vec<Vec<(SlotId, Answer)>> = Vec::new();
        for (waiter, answer) in answers.drain(..) {
            if let Waiter::Call(worker, slot) = waiter {
                if by_worker.len() <= worker {
                    by_worker.resize_with(worker + 1, Vec::new);
                }
                by_worker[worker].push((slot, answer));
            }
        }
        self.mailboxes.post_and_nudge(&mut by_worker);
    }
}

/// Which lanes have writes that no batch has taken, and whether writes that waited are ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    pub(crate) durable: bool,
    pub(crate) volatile: bool,
    pub(crate) ready: bool,
}

impl Open {
    pub(crate) fn of(engine: &Engine<Waiter>) -> Self {
        Open {
            durable: engine.has_open(Lane::Durable),
            volatile: engine.has_open(Lane::Volatile),
            ready: engine.has_ready(),
        }
    }

    pub(crate) fn any(self) -> bool {
        self.durable || self.volatile
    }
}
