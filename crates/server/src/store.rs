//! The store that all threads share: the engine behind a short lock, and what they do
//! with it. No lock is held across an await, a write to the journal, or a long read.

use crate::durability::Signal;
use engine::op::{Outcome, RangeOp, RangeReply, Write};
use engine::range::RangeCursor;
use engine::{Engine, Error};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Instant;
use wire::mailbox::{Mailboxes, SlotId, Slots};

/// What a write comes to.
pub(crate) type Answer = Result<Outcome, Error>;

/// Who waits for a write's answer.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A call on a worker.
    Call(usize, SlotId),
    /// Nobody: the server's own upkeep.
    Nobody,
}

/// Keys visited under the lock before others get their turn: some tens of microseconds.
pub(crate) const SLICE_KEYS: usize = 256;

/// The shared store.
pub(crate) struct Store {
    engine: Mutex<Engine<Waiter>>,
    pub(crate) mailboxes: Arc<Mailboxes<Answer>>,
    pub(crate) commit: Signal,
    started: Instant,
}

impl Store {
    pub(crate) fn new(engine: Engine<Waiter>, mailboxes: Arc<Mailboxes<Answer>>) -> Self {
        Store {
            engine: Mutex::new(engine),
            mailboxes,
            commit: Signal::default(),
            started: Instant::now(),
        }
    }

    /// The engine, for a moment.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Engine<Waiter>> {
        self.engine.lock()
    }

    /// The clock that the engine sees, in milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Submits a write of a call; the answer comes at once or through the slot.
    ///
    /// The committer is told at the end of the worker's turn: what else the turn brings
    /// shares its sync. Told at once, it would sync the first write alone.
    pub(crate) async fn write(&self, write: Write, slots: &Slots<Answer>) -> Answer {
        let (slot, pending) = slots.slot();
        let waiter = Waiter::Call(slots.worker(), slot);
        let (answer, open) = self.submit(write, waiter);
        if let Some(answer) = answer {
            if open {
                self.commit.raise();
            }
            return answer;
        }
        if open {
            // Told also if the caller goes away meanwhile: the write is in the batch.
            let _told = RaiseOnDrop(&self.commit);
            tokio::task::yield_now().await;
        }
        pending.await
    }

    /// Submits a write of the server's own.
    pub(crate) fn write_unattended(&self, write: Write) -> Option<Answer> {
        let (answer, open) = self.submit(write, Waiter::Nobody);
        if open {
            self.commit.raise();
        }
        answer
    }

    /// The answer if there is one at once, and whether the committer has something to do.
    fn submit(&self, write: Write, waiter: Waiter) -> (Option<Answer>, bool) {
        let now_ms = self.now_ms();
        let mut engine = self.lock();
        let answer = engine.submit(write, 0, waiter, now_ms);
        (answer.map(|(_, a)| a), engine.has_open(0))
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
        if engine.is_corrupt() {
            return Err(Error::Corrupt);
        }
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

struct RaiseOnDrop<'a>(&'a Signal);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.raise();
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
        }
        if self.cursor.is_done() {
            self.pin = None;
        }
        self.cursor.is_done()
    }

    /// Reads to the end, letting others run between slices.
    pub(crate) async fn finish(mut self) -> (i64, RangeReply) {
        while !self.cursor.is_done() {
            self.step();
            tokio::task::yield_now().await;
        }
        (self.cursor.header_revision, self.cursor.finish())
    }
}
