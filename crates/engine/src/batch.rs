//! Batches: what was admitted, on its way through the log.
//!
//! A lane's writes gather in its open batch. The journal takes it, with a ticket, and says at
//! the end that it is written ([`Engine::complete`]), that it cannot be
//! ([`Engine::fail`]), or that it must be evaluated again ([`Engine::take_back`]). Several
//! batches of a lane may be on their way; they end in the order in which they were taken.

use crate::Engine;
use crate::error::Error;
use crate::footprint::{Footprint, LeaseChange};
use crate::held_keys::OpId;
use crate::lane::Lane;
use crate::op::{Class, Outcome, PutOp, Write};
use crate::plan::Step;
use crate::record::{Effect, Record};
use crate::waiting::{Stand, Waiting};
use std::collections::{BTreeSet, VecDeque};

/// A batch has at most so many changes of keys, or one write: they are made visible under one
/// hold of the store's lock, at about 1 us each.
const MAX_BATCH_EFFECTS: usize = 16_384;

/// A write that is in a batch.
#[derive(Debug)]
pub(crate) struct Pending<W> {
    pub(crate) id: OpId,
    pub(crate) plan: Plan,
    pub(crate) footprint: Footprint,
    pub(crate) class: Class,
    /// Of its record.
    pub(crate) record_bytes: usize,
    pub(crate) effects: usize,
    /// What it holds in memory, about.
    pub(crate) bytes: usize,
    pub(crate) waiter: W,
}

/// What a write will do, and the write itself, should it have to be evaluated again.
#[derive(Debug)]
pub(crate) enum Plan {
    /// A put, with the value and the lease that it keeps filled in, and the lease that was asked
    /// for.
    Put { op: PutOp, asked_lease: i64 },
    /// Steps over effects; one revision.
    Effects {
        write: Write,
        step: Step,
        effects: Vec<Effect>,
    },
    /// Anything else, as its record says.
    Other { write: Write, record: Record },
}

impl Plan {
    fn into_write(self) -> Write {
        match self {
            Plan::Put {
                mut op,
                asked_lease,
            } => {
                if op.ignore_value {
                    op.value.clear();
                }
                op.lease = asked_lease;
                Write::Put(op)
            }
            Plan::Effects { write, .. } | Plan::Other { write, .. } => write,
        }
    }
}

/// What a lane has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLoad {
    /// Writes that no batch has taken yet.
    pub open: usize,
    /// Bytes of their records, about.
    pub open_bytes: usize,
    /// Batches that were taken and are not visible.
    pub in_flight: usize,
}

/// A closed batch, for the journal.
#[derive(Debug)]
pub struct Batch {
    /// Names the batch in [`Engine::complete`], [`Engine::fail`] and [`Engine::take_back`].
    pub ticket: u64,
    /// Its lane.
    pub lane: Lane,
    /// The records in log order.
    pub records: Vec<Record>,
    /// How soon they must be on disk, in milliseconds; meant for volatile ones.
    pub sync_within_ms: u32,
    /// The bits that all of its writes have ([`Class::tags`]).
    pub tags: u8,
}

/// A batch was to end that is not the one of its lane which is next, or none at all. What is
/// in the log and what is visible are not in one order any more: the process must end, and its
/// next start takes the log's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch {ticket} was to end out of order: the log and the store no longer agree")]
pub struct OutOfOrder {
    /// The ticket.
    pub ticket: u64,
}

/// Answers to hand out: who waits, and for what.
pub type Answers<W> = Vec<(W, Result<Outcome, Error>)>;

/// A lane's batches.
#[derive(Debug)]
pub(crate) struct Batches<W> {
    open: VecDeque<Pending<W>>,
    open_records: VecDeque<Record>,
    open_bytes: usize,
    in_flight: VecDeque<(u64, VecDeque<Pending<W>>)>,
    /// Writes admitted so far.
    admitted: u64,
    /// Of those, how many are visible, have failed or were taken back.
    done: u64,
}

impl<W> Default for Batches<W> {
    fn default() -> Self {
        Batches {
            open: VecDeque::new(),
            open_records: VecDeque::new(),
            open_bytes: 0,
            in_flight: VecDeque::new(),
            admitted: 0,
            done: 0,
        }
    }
}

impl<W> Batches<W> {
    pub(crate) fn push(&mut self, pending: Pending<W>, record: Record) {
        self.open_bytes += pending.record_bytes;
        self.open_records.push_back(record);
        self.open.push_back(pending);
        self.admitted += 1;
    }

    /// How many of the open writes go into a batch of at most `max_bytes`.
    fn fitting(&self, max_bytes: usize) -> usize {
        let (mut bytes, mut effects) = (0, 0);
        let fits = self.open.iter().take_while(|p| {
            bytes += p.record_bytes;
            effects += p.effects;
            bytes <= max_bytes && effects <= MAX_BATCH_EFFECTS
        });
        fits.count().max(1)
    }

    fn take(&mut self, max_bytes: usize) -> (VecDeque<Pending<W>>, Vec<Record>) {
        let n = self.fitting(max_bytes);
        if n >= self.open.len() {
            self.open_bytes = 0;
            let records = std::mem::take(&mut self.open_records);
            return (std::mem::take(&mut self.open), Vec::from(records));
        }
        let pending: VecDeque<Pending<W>> = self.open.drain(..n).collect();
        self.open_bytes -= pending.iter().map(|p| p.record_bytes).sum::<usize>();
        (pending, self.open_records.drain(..n).collect())
    }

    /// Takes out what is open.
    pub(crate) fn take_open(&mut self) -> VecDeque<Pending<W>> {
        self.open_records.clear();
        self.open_bytes = 0;
        self.done += self.open.len() as u64;
        std::mem::take(&mut self.open)
    }

    /// Takes out the batch `at` in flight, all that were taken after it, and what is open.
    fn take_from(&mut self, at: usize) -> Vec<Pending<W>> {
        let mut back: Vec<Pending<W>> = self.in_flight.drain(at..).flat_map(|x| x.1).collect();
        self.done += back.len() as u64;
        back.extend(self.take_open());
        back
    }

    /// Everything pending, in order of admission.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Pending<W>> {
        let in_flight = self.in_flight.iter().flat_map(|x| &x.1);
        in_flight.chain(&self.open)
    }

    pub(crate) fn pending_len(&self) -> usize {
        let in_flight = self.in_flight.iter().map(|x| x.1.len());
        self.open.len() + in_flight.sum::<usize>()
    }

    /// Which batch in flight has the first write of which `is` holds; that behind the last if
    /// it is an open one.
    fn batch_of(&self, is: impl Fn(&Pending<W>) -> bool) -> Option<usize> {
        let in_flight = self.in_flight.iter().position(|x| x.1.iter().any(&is));
        let open = || self.open.iter().any(&is).then_some(self.in_flight.len());
        in_flight.or_else(open)
    }
}

impl<W> Engine<W> {
    /// Whether a lane has records that no batch has taken yet.
    pub fn has_open(&self, lane: Lane) -> bool {
        !self.seq.lanes[lane].open.is_empty()
    }

    /// What a lane has to do now.
    pub fn lane_load(&self, lane: Lane) -> LaneLoad {
        let l = &self.seq.lanes[lane];
        LaneLoad {
            open: l.open.len(),
            open_bytes: l.open_bytes,
            in_flight: l.in_flight.len(),
        }
    }

    /// How many writes a lane has admitted so far, and how many of them are visible, have
    /// failed or were taken back: when the second has reached what the first was, all from
    /// before are through.
    pub fn lane_progress(&self, lane: Lane) -> (u64, u64) {
        let l = &self.seq.lanes[lane];
        (l.admitted, l.done)
    }

    /// Closes a lane's open batch and hands it over, at most about `max_bytes` of it.
    pub fn take_batch(&mut self, lane: Lane, max_bytes: usize) -> Option<Batch> {
        let l = &mut self.seq.lanes[lane];
        if l.open.is_empty() {
            return None;
        }
        let ticket = self.seq.next_ticket;
        self.seq.next_ticket += 1;
        let (pending, records) = l.take(max_bytes);
        self.seq.steps.add(pending.len() as u64);
        let sync_within_ms = pending.iter().map(|p| p.class.sync_within_ms).min();
        let tags = pending.iter().fold(u8::MAX, |tags, p| tags & p.class.tags);
        l.in_flight.push_back((ticket, pending));
        Some(Batch {
            ticket,
            lane,
            records,
            sync_within_ms: sync_within_ms.unwrap_or(0),
            tags,
        })
    }

    /// The journal has a batch: makes it visible, answers it, and admits what waited for it,
    /// as far as [`Engine::admit_ready`] goes.
    ///
    /// # Errors
    /// [`OutOfOrder`], with nothing changed.
    pub fn complete(
        &mut self,
        ticket: u64,
        now_ms: u64,
        answers: &mut Answers<W>,
    ) -> Result<(), OutOfOrder> {
        self.now_ms = now_ms;
        let mut range_keys = self.limits.txn_range_keys;
        for p in self.take_in_flight(ticket)? {
            let outcome = match p.plan {
                Plan::Put { op, .. } => self.execute_put(&op),
                Plan::Effects { step, effects, .. } => self.execute(step, effects, &mut range_keys),
                Plan::Other { record, .. } => self.apply_other(record),
            };
            self.seq.release(p.id, &p.footprint, p.bytes);
            answers.push((p.waiter, Ok(outcome)));
        }
        self.admit_ready(answers);
        Ok(())
    }

    /// The journal could not take a batch: nothing of it happened.
    ///
    /// # Errors
    /// [`OutOfOrder`], with nothing changed.
    pub fn fail(
        &mut self,
        ticket: u64,
        error: Error,
        answers: &mut Answers<W>,
    ) -> Result<(), OutOfOrder> {
        for p in self.take_in_flight(ticket)? {
            self.seq.release(p.id, &p.footprint, p.bytes);
            answers.push((p.waiter, Err(error)));
        }
        self.admit_ready(answers);
        Ok(())
    }

    fn take_in_flight(&mut self, ticket: u64) -> Result<VecDeque<Pending<W>>, OutOfOrder> {
        let first = |l: &&mut Batches<W>| l.in_flight.front().is_some_and(|x| x.0 == ticket);
        let l = self.seq.lanes.values_mut().find(first);
        let l = l.ok_or(OutOfOrder { ticket })?;
        let batch = l.in_flight.pop_front().map(|x| x.1).unwrap_or_default();
        l.done += batch.len() as u64;
        Ok(batch)
    }

    /// The journal has not written a batch, and what it was evaluated against has changed:
    /// it, and all that its lane admitted after it, is evaluated again, as if it had just
    /// come. The tickets of later batches of the lane are void; nothing of them may be written.
    ///
    /// # Errors
    /// [`OutOfOrder`] if there is no such batch, with nothing changed.
    pub fn take_back(
        &mut self,
        ticket: u64,
        now_ms: u64,
        answers: &mut Answers<W>,
    ) -> Result<(), OutOfOrder> {
        let at = |l: &Batches<W>| l.in_flight.iter().position(|x| x.0 == ticket);
        let found = self
            .seq
            .lanes
            .iter()
            .find_map(|(lane, l)| Some((lane, at(l)?)));
        let (lane, at) = found.ok_or(OutOfOrder { ticket })?;
        self.take_back_from(lane, at, now_ms);
        self.admit_ready(answers);
        Ok(())
    }

    /// Takes back batch `at` in flight of a lane and what came after it: it waits, in its old
    /// place, and is ready.
    fn take_back_from(&mut self, lane: Lane, at: usize, now_ms: u64) {
        let back = self.seq.lanes[lane].take_from(at);
        self.seq.lock_anew();
        let deadline_ms = now_ms.saturating_add(self.limits.wait_timeout_ms);
        for p in back {
            self.seq.held_bytes -= p.bytes;
            let write = p.plan.into_write();
            let waiting = Waiting {
                footprint: self.footprint(&write, &p.class),
                bytes: write.held_bytes(),
                write,
                class: p.class,
                waiter: p.waiter,
                deadline_ms,
            };
            self.seq.waiting.insert(p.id, waiting, Stand::Ready);
            // It may have been hung on by one that came earlier, which now goes first.
            self.seq.waiting.gone(p.id);
        }
    }

    /// Makes changes of keys visible that come from elsewhere, at the next revision and before
    /// all that is pending. What of that was evaluated against one of the keys is evaluated
    /// again, as by [`Engine::take_back`]. Returns the tickets that are void for it; nothing of
    /// them may be written.
    pub fn apply_foreign(
        &mut self,
        effects: Vec<Effect>,
        now_ms: u64,
        answers: &mut Answers<W>,
    ) -> Vec<u64> {
        self.now_ms = now_ms;
        let mut void = Vec::new();
        {
            let keys: BTreeSet<&[u8]> = effects.iter().map(Effect::key).collect();
            for lane in Lane::ALL {
                let lanes = &self.seq.lanes[lane];
                let Some(at) = lanes.batch_of(|p| self.reads_any(p, &keys)) else {
                    continue;
                };
                void.extend(lanes.in_flight.range(at..).map(|x| x.0));
                self.take_back_from(lane, at, now_ms);
            }
        }
        self.apply(Record::Txn(effects));
        self.admit_ready(answers);
        void
    }

    /// Whether a pending write was evaluated against one of these keys.
    fn reads_any(&self, p: &Pending<W>, keys: &BTreeSet<&[u8]>) -> bool {
        let f = &p.footprint;
        let mut reads = f.accesses().filter(|a| a.reads);
        let end_of = |lease| {
            keys.iter()
                .any(|key| self.attached().lease_of(key) == Some(lease))
        };
        reads.any(|a| match a.range.is_one() {
            true => keys.contains(a.range.key.as_ref()),
            false => a
                .range
                .bounds()
                .is_some_and(|within| keys.range::<[u8], _>(within).next().is_some()),
        }) || matches!(f.lease, Some(LeaseChange::Ended(lease)) if end_of(lease))
    }

    /// Number of operations admitted and not yet visible.
    pub fn pending(&self) -> usize {
        self.seq.lanes.iter().map(|(_, l)| l.pending_len()).sum()
    }
}

/// Roughly what a record takes in the log, in bytes.
pub fn record_bytes(record: &Record) -> usize {
    let effect = |e: &Effect| match e {
        Effect::Put { key, value, .. } => key.len() + value.len() + 16,
        Effect::Delete { key } => key_bytes(key),
    };
    16 + match record {
        Record::Txn(effects) => effects.iter().map(effect).sum(),
        Record::LeaseRevoke { keys, .. } => keys.iter().map(|key| key_bytes(key)).sum(),
        _ => 16,
    }
}

/// Roughly what a deleted key takes in a record.
pub(crate) fn key_bytes(key: &[u8]) -> usize {
    key.len() + 8
}
