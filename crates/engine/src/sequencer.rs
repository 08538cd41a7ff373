//! The sequencer: admits writes, hands their records to the log, and makes them visible.
//!
//! `submit` evaluates a write against the visible state and puts its record into its
//! lane's open batch; `take_batch` closes that batch for the journal; when the journal
//! has it, `complete` stamps each operation with the next revision, applies and answers
//! it. A revision is stamped when the write becomes visible, so revision order is
//! visibility order, whichever lane is faster.
//!
//! A write that another keeps from being evaluated waits (module `waiting`); when the other
//! one goes, it is ready, and `admit_ready` looks at it again.

use crate::Engine;
use crate::attached::Attached;
use crate::batch::key_bytes;
pub use crate::batch::{Answers, Batch, LaneLoad, OutOfOrder, record_bytes};
use crate::batch::{Batches, Pending, Plan};
use crate::error::Error;
use crate::footprint::{Footprint, LeaseChange};
use crate::held_keys::OpId;
use crate::lane::{Lane, PerLane};
use crate::lease::DueLease;
use crate::lock::Locks;
use crate::op::{Class, KeyRange, Outcome, Write};
use crate::plan::{self, Effects, View};
use crate::record::{Effect, Record};
use crate::steps::Steps;
use crate::waiting::{Stand, Waiting, WaitingQueue};
use bytes::Bytes;

/// What a key that a write turns out to delete costs while that is pending, about, in bytes:
/// in its effects, its record and its locks.
const DELETE_BYTES: usize = 256;

/// Queues and locks of the sequencer.
#[derive(Debug)]
pub(crate) struct Sequencer<W> {
    pub(crate) lanes: PerLane<Batches<W>>,
    pub(crate) next_ticket: u64,
    next_id: OpId,
    pub(crate) locks: Locks,
    pub(crate) waiting: WaitingQueue<W>,
    /// What pending writes hold in memory, about.
    pub(crate) held_bytes: usize,
    pub(crate) steps: Steps,
}

impl<W> Sequencer<W> {
    pub(crate) fn new() -> Self {
        Sequencer {
            lanes: PerLane::new(|_| Batches::default()),
            next_ticket: 1,
            next_id: 1,
            locks: Locks::default(),
            waiting: WaitingQueue::new(),
            held_bytes: 0,
            steps: Steps::default(),
        }
    }

    /// Takes the locks of all that is pending anew, after some that were not first in their lane
    /// have gone: a lock must send nobody to one of those.
    pub(crate) fn lock_anew(&mut self) {
        let steps = self.locks.steps();
        self.locks = Locks::default();
        self.steps.add(steps);
        for (_, lane) in self.lanes.iter() {
            lane.pending()
                .for_each(|p| self.locks.add(&p.footprint, p.id));
        }
    }

    /// A pending write has ended: gives back what it held.
    pub(crate) fn release(&mut self, id: OpId, footprint: &Footprint, bytes: usize) {
        self.held_bytes -= bytes;
        self.locks.remove(footprint, id);
        if !self.waiting.is_empty() {
            self.waiting.gone(id);
        }
    }
}

/// How a write was admitted.
enum Admitted<W> {
    Answered(W, Result<Outcome, Error>),
    Logged,
}

impl<W> Engine<W> {
    /// Takes a write in. Returns the answer if there is one at once (an error, or nothing
    /// to change); otherwise it comes out of one of the calls that take [`Answers`].
    ///
    /// `class` says in which lane it may go; what it was found from is looked at again when
    /// the write is admitted. `now_ms` is any monotonic clock of the caller's, in
    /// milliseconds.
    pub fn submit(
        &mut self,
        write: Write,
        class: Class,
        waiter: W,
        now_ms: u64,
    ) -> Option<(W, Result<Outcome, Error>)> {
        if let Some(error) = self.refuses(&write) {
            return Some((waiter, Err(error)));
        }
        if self.held_bytes() > self.limits.max_held_bytes {
            return Some((waiter, Err(Error::TooManyRequests)));
        }
        let id = self.seq.next_id;
        self.seq.next_id += 1;
        let bytes = write.held_bytes();
        let footprint = self.footprint(&write, &class);
        if let Some(on) = self.in_the_way(&footprint, id) {
            if self.seq.waiting.len() >= self.limits.max_waiting {
                return Some((waiter, Err(Error::TooManyRequests)));
            }
            let op = Waiting {
                write,
                class,
                footprint,
                waiter,
                deadline_ms: now_ms.saturating_add(self.limits.wait_timeout_ms),
                bytes,
            };
            self.seq.waiting.insert(id, op, Stand::HangsOn(on));
            return None;
        }
        match self.admit(id, write, class, footprint, waiter, bytes) {
            Admitted::Answered(w, a) => Some((w, a)),
            Admitted::Logged => None,
        }
    }

    /// Whom a write must wait for: one who came earlier and waits for what it needs, who will
    /// go later than those who hold it; else one who holds it.
    fn in_the_way(&mut self, f: &Footprint, id: OpId) -> Option<OpId> {
        let attached = Attached {
            index: &self.index,
            leases: &self.leases,
        };
        let earlier = self.seq.waiting.earlier(f, id, &attached);
        earlier.or_else(|| self.seq.locks.blocker(f, &attached))
    }

    pub(crate) fn attached(&self) -> Attached<'_> {
        Attached {
            index: &self.index,
            leases: &self.leases,
        }
    }

    /// The lane that a write of this class takes as things are now.
    fn lane(&self, class: &Class) -> Lane {
        if class.lane == Lane::Durable {
            return Lane::Durable;
        }
        let holds = class.rules == self.rules
            && class
                .bound
                .as_ref()
                .is_none_or(|b| self.index.mod_revision(&b.key) == b.mod_revision);
        if holds { class.lane } else { Lane::Durable }
    }

    /// Bytes that writes hold which wait, for others or for the log, about.
    pub fn held_bytes(&self) -> usize {
        self.seq.held_bytes + self.seq.waiting.bytes()
    }

    /// Steps of admission so far: keys and operations evaluated, locks looked at, taken and
    /// given back, those who wait looked at. What a call adds to it goes with the time that it
    /// takes.
    pub fn steps(&self) -> u64 {
        let s = &self.seq;
        s.steps.get() + s.locks.steps() + s.waiting.steps()
    }

    fn refuses(&self, write: &Write) -> Option<Error> {
        let grows = match write {
            Write::Put(_) | Write::LeaseGrant { .. } => true,
            Write::Txn(t) => plan::has_put(t),
            _ => false,
        };
        if self.is_corrupt() && !matches!(write, Write::Alarm { .. }) {
            Some(Error::Corrupt)
        } else if grows && self.no_space() {
            Some(Error::NoSpace)
        } else {
            None
        }
    }

    pub(crate) fn footprint(&self, write: &Write, class: &Class) -> Footprint {
        let mut f = Footprint::new(self.lane(class));
        if let Some(bound) = &class.bound {
            // What the class was found from must not change under the write, also not by a
            // put of the same lane that it would otherwise follow in one batch.
            f.read(KeyRange::one(bound.key.clone()));
        }
        match write {
            Write::Put(op) => plan::put_footprint(op, &mut f),
            Write::Delete(op) => plan::delete_footprint(op, &mut f),
            Write::Txn(op) => {
                // One that only reads is evaluated, executed and answered at once, on what
                // is visible; it needs no lock.
                if !op.only_reads() {
                    plan::txn_footprint(op, &mut f);
                }
            }
            Write::LeaseGrant { id, .. } => f.lease = Some(LeaseChange::Granted(*id)),
            Write::LeaseRevoke { id } | Write::LeaseExpire(DueLease { id, .. }) => {
                f.lease = Some(LeaseChange::Ended(*id));
            }
            Write::Compact { .. } => f.compacts = true,
            Write::Alarm { .. } => {}
        }
        f
    }

    fn admit(
        &mut self,
        id: OpId,
        write: Write,
        class: Class,
        mut footprint: Footprint,
        waiter: W,
        mut bytes: usize,
    ) -> Admitted<W> {
        let plan = match self.plan(write) {
            Ok(Plan::Effects { step, effects, .. }) if effects.is_empty() => {
                let mut range_keys = self.limits.txn_range_keys;
                let outcome = self.execute(step, effects, &mut range_keys);
                let visited = self.limits.txn_range_keys - range_keys;
                self.seq.steps.add(visited as u64);
                return Admitted::Answered(waiter, Ok(outcome));
            }
            Ok(plan) => plan,
            Err(e) => return Admitted::Answered(waiter, Err(e)),
        };
        let (record, effects) = match &plan {
            Plan::Put { op, .. } => (Record::Txn(vec![op.clone().into()]), 1),
            Plan::Effects { effects, .. } => {
                // The keys that a range delete takes are locked one by one (see `lock`).
                for e in effects {
                    if let Effect::Delete { key } = e {
                        bytes += key.len() + DELETE_BYTES;
                        footprint.write(KeyRange::one(key.clone()));
                    }
                }
                (Record::Txn(effects.clone()), effects.len())
            }
            Plan::Other { record, .. } => {
                let mut effects = 1;
                if let Record::LeaseRevoke { keys, .. } = record {
                    effects += keys.len();
                    bytes += keys.iter().map(|k| k.len() + DELETE_BYTES).sum::<usize>();
                }
                (record.clone(), effects)
            }
        };
        if record_bytes(&record) > self.limits.max_record_bytes {
            return Admitted::Answered(waiter, Err(Error::TooLarge));
        }
        self.seq.steps.add(effects as u64);
        self.seq.locks.add(&footprint, id);
        self.seq.held_bytes += bytes;
        let pending = Pending {
            id,
            record_bytes: record_bytes(&record),
            plan,
            class,
            effects,
            bytes,
            waiter,
            footprint,
        };
        self.seq.lanes[pending.footprint.lane].push(pending, record);
        Admitted::Logged
    }

    fn plan(&self, write: Write) -> Result<Plan, Error> {
        let view = View {
            index: &self.index,
            leases: &self.leases,
            revision: self.revision,
            compact_revision: self.compact_revision,
            steps: &self.seq.steps,
        };
        let mut effects = Effects::default();
        let (write, step) = match write {
            Write::Put(op) => {
                let asked_lease = op.lease;
                let op = view.put(op)?;
                return Ok(Plan::Put { op, asked_lease });
            }
            Write::Delete(op) => {
                let step = view.delete(&op, &mut effects);
                (Write::Delete(op), step)
            }
            Write::Txn(op) => {
                let step = view.txn(&op, &mut effects)?;
                (Write::Txn(op), step)
            }
            write => {
                let record = self.record(&write)?;
                return Ok(Plan::Other { write, record });
            }
        };
        Ok(Plan::Effects {
            write,
            step,
            effects: effects.list,
        })
    }

    /// The record of a write that is not of keys.
    fn record(&self, write: &Write) -> Result<Record, Error> {
        match *write {
            Write::LeaseGrant { id, ttl_s } => {
                if ttl_s > crate::lease::MAX_TTL_S {
                    return Err(Error::LeaseTtlTooLarge);
                }
                if self.leases.contains(id) {
                    return Err(Error::LeaseExists);
                }
                let ttl_s = ttl_s.max(self.limits.min_lease_ttl_s);
                Ok(Record::LeaseGrant { id, ttl_s })
            }
            Write::LeaseRevoke { id } => {
                if !self.leases.contains(id) {
                    return Err(Error::LeaseNotFound);
                }
                Ok(self.end_of_lease(id))
            }
            Write::LeaseExpire(due) => {
                if !self.leases.is_due_still(due) {
                    return Err(Error::LeaseNotFound);
                }
                Ok(self.expiry_of_lease(due.id))
            }
            Write::Compact { revision } => {
                if revision <= self.compact_revision {
                    return Err(Error::Compacted);
                }
                if revision > self.revision {
                    return Err(Error::FutureRevision);
                }
                Ok(Record::Compact { revision })
            }
            Write::Alarm { alarm, active } => Ok(Record::Alarm { alarm, active }),
            // These have effects.
            Write::Put(_) | Write::Delete(_) | Write::Txn(_) => Ok(Record::Txn(Vec::new())),
        }
    }

    fn end_of_lease(&self, id: i64) -> Record {
        let keys = self.leases.attached(id).map(Bytes::copy_from_slice);
        let keys = keys.collect();
        Record::LeaseRevoke { id, keys }
    }

    /// The end of a lease that ran out; nobody waits for it to be one step. If its keys are more
    /// than a record can hold, the first of them go, and the lease is due still.
    fn expiry_of_lease(&self, id: i64) -> Record {
        let whole = self.end_of_lease(id);
        let mut bytes = record_bytes(&whole);
        let Record::LeaseRevoke { mut keys, .. } = whole else {
            return whole;
        };
        if bytes <= self.limits.max_record_bytes {
            return Record::LeaseRevoke { id, keys };
        }
        while bytes > self.limits.max_record_bytes
            && let Some(key) = keys.pop()
        {
            bytes -= key_bytes(&key);
        }
        Record::Txn(keys.into_iter().map(|key| Effect::Delete { key }).collect())
    }

    /// Whether [`Engine::admit_ready`] has something to do.
    pub fn has_ready(&self) -> bool {
        self.seq.waiting.first_ready().is_some()
    }

    /// Looks at writes that waited and need not any more: admits them, or finds what else they
    /// must wait for. It ends after a number of steps, so that the store's lock is not held for
    /// all that may have waited; returns whether there is more to do, for which it is called
    /// again.
    pub fn admit_ready(&mut self, answers: &mut Answers<W>) -> bool {
        let end = self.steps().saturating_add(self.limits.ready_steps);
        while let Some(id) = self.seq.waiting.first_ready() {
            if self.steps() >= end {
                return true;
            }
            self.look_again(id, answers);
        }
        false
    }

    /// In order of arrival; who must still wait holds back who came later.
    fn look_again(&mut self, id: OpId, answers: &mut Answers<W>) {
        self.seq.steps.add(1);
        let Some(lane) = self.seq.waiting.get(id).map(|op| self.lane(&op.class)) else {
            return;
        };
        self.seq.waiting.set_lane(id, lane);
        let attached = Attached {
            index: &self.index,
            leases: &self.leases,
        };
        let (locks, waiting) = (&mut self.seq.locks, &self.seq.waiting);
        let on = waiting.get(id).and_then(|op| {
            let earlier = waiting.earlier(&op.footprint, id, &attached);
            earlier.or_else(|| locks.blocker(&op.footprint, &attached))
        });
        if let Some(on) = on {
            return self.seq.waiting.hang(id, on);
        }
        let Some(op) = self.seq.waiting.remove(id) else {
            return;
        };
        if let Some(error) = self.refuses(&op.write) {
            answers.push((op.waiter, Err(error)));
        } else if let Admitted::Answered(waiter, a) =
            self.admit(id, op.write, op.class, op.footprint, op.waiter, op.bytes)
        {
            answers.push((waiter, a));
        }
    }

    /// Answers operations that have waited longer than their time.
    pub fn expire_waiting(&mut self, now_ms: u64, answers: &mut Answers<W>) {
        while let Some(w) = self.seq.waiting.take_late(now_ms) {
            answers.push((w.waiter, Err(Error::TimedOut)));
        }
        self.admit_ready(answers);
    }

    /// Refuses everything that is open or waiting, before a stop. Batches that are with
    /// the journal may still be completed.
    pub fn abandon(&mut self, error: Error, answers: &mut Answers<W>) {
        let waiting = self.seq.waiting.drain();
        for lane in Lane::ALL {
            for p in self.seq.lanes[lane].take_open() {
                self.seq.held_bytes -= p.bytes;
                answers.push((p.waiter, Err(error)));
            }
        }
        self.seq.lock_anew();
        answers.extend(waiting.map(|w| (w.waiter, Err(error))));
    }

    /// Whether nothing is pending, waiting or locked.
    pub fn is_idle(&self) -> bool {
        self.pending() == 0
            && self.seq.waiting.is_empty()
            && self.seq.locks.is_empty()
            && self.held_bytes() == 0
    }

    /// Number of operations that wait for others on their keys.
    pub fn waiting(&self) -> usize {
        self.seq.waiting.len()
    }
}
