//! The store that all threads share: the engine behind a short lock, and what they do
//! with it. No lock is held across an await, a write to the journal, or a long read.

use crate::durability::Signal;
use crate::storage::Storage;
use engine::op::{Class, Outcome, RangeOp, Reply, Write};
use engine::range::RangeCursor;
use engine::{Engine, Error, Lane};
use parking_lot::{Mutex, MutexGuard};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;
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
    engine: Mutex<Engine<Waiter>>,
    pub(crate) mailboxes: Arc<Mailboxes<Answer>>,
    /// For the committer.
    pub(crate) commit: Signal,
    /// For the volatile writer.
    pub(crate) volatile: Signal,
    pub(crate) storage: Storage,
    started: Instant,
}

impl Store {
    pub(crate) fn new(
        engine: Engine<Waiter>,
        mailboxes: Arc<Mailboxes<Answer>>,
        storage: Storage,
    ) -> Self {
        Store {
            engine: Mutex::new(engine),
            mailboxes,
            commit: Signal::default(),
            volatile: Signal::default(),
            storage,
            started: Instant::now(),
        }
    }

    /// The engine, for a moment.
    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked {
            engine: self.engine.lock(),
            _critical: threads::critical(),
        }
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
    pub(crate) fn compacting(&self) -> bool {
        let engine = self.lock();
        engine.compaction_hash_open().is_some() || engine.compaction_due()
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

    /// Opens a read and takes its first slice; short reads end there.
    pub(crate) fn read(self: &Arc<Self>, op: RangeOp) -> Result<Read, Error> {
        let mut engine = self.lock();
        let mut cursor = engine.range_open(op)?;
        engine.range_step(&mut cursor, SLICE_KEYS);
        let pin = (!cursor.is_done()).then(|| {
            engine.pin(cursor.revision);
            Pin {
                store: self.clone(),
                revision: cursor.revision,
            }
        });
        Ok(Read { cursor, pin })
    }
}

/// The engine while this thread has it. A panic meanwhile ends the process before anybody else
/// can see what it left.
pub(crate) struct Locked<'a> {
    engine: MutexGuard<'a, Engine<Waiter>>,
    _critical: threads::Critical,
}

impl Locked<'_> {
    /// Gives the engine to whoever waits for it, even if this thread asks for it again at once.
    pub(crate) fn unlock_fair(self) {
        MutexGuard::unlock_fair(self.engine);
    }
}

impl Deref for Locked<'_> {
    type Target = Engine<Waiter>;

    fn deref(&self) -> &Engine<Waiter> {
        &self.engine
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Engine<Waiter> {
        &mut self.engine
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

/// Keeps history from being freed while something reads it.
pub(crate) struct Pin {
    store: Arc<Store>,
    revision: i64,
}

impl Pin {
    pub(crate) fn new(store: &Arc<Store>, engine: &mut Engine<Waiter>, revision: i64) -> Self {
        engine.pin(revision);
        Pin {
            store: store.clone(),
            revision,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.lock().unpin(self.revision);
    }
}

/// A read that may take several slices.
pub(crate) struct Read {
    pub(crate) cursor: RangeCursor,
    pin: Option<Pin>,
}

impl Read {
    /// Takes another slice; true when all has been read.
    pub(crate) fn step(&mut self) -> bool {
        if let Some(pin) = &self.pin {
            let engine = pin.store.lock();
            engine.range_step(&mut self.cursor, SLICE_KEYS);
            // The next slice may follow at once, and others wait.
            engine.unlock_fair();
        }
        if self.cursor.is_done() {
            self.pin = None;
        }
        self.cursor.is_done()
    }

    /// What was read.
    pub(crate) fn finish(self) -> Outcome {
        Outcome {
            revision: self.cursor.header_revision,
            reply: Reply::Range(self.cursor.finish()),
        }
    }
}
