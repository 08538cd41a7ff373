//! The sequencer: admits writes, hands their records to the log, and makes them visible.
//!
//! `submit` evaluates a write against the visible state and puts its record into its
//! lane's open batch; `take_batch` closes that batch for the journal; when the journal
//! has it, `complete` stamps each operation with the next revision, applies and answers
//! it. A revision is stamped when the write becomes visible, so revision order is
//! visibility order, whichever lane is faster.

use crate::Engine;
use crate::error::Error;
use crate::lock::{Footprint, LANES, Locks};
use crate::op::{Class, DURABLE, KeyRange, Outcome, Reply, Write};
use crate::plan::{self, Effects, Step, View};
use crate::record::{Effect, Record, Revision};
use crate::waiting::{Waiting, WaitingQueue};
use bytes::Bytes;
use std::collections::VecDeque;

/// A write that is in a batch.
#[derive(Debug)]
struct Pending<W> {
    plan: Plan,
    footprint: Footprint,
    sync_within_ms: u32,
    tags: u8,
    waiter: W,
}

#[derive(Debug)]
enum Plan {
    /// A put.
    Put { effect: Effect, prev_kv: bool },
    /// Steps over effects; one revision.
    Effects { step: Step, effects: Vec<Effect> },
    /// Anything else, as its record says.
    Other(Record),
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
    /// Names the batch in [`Engine::complete`] and [`Engine::fail`].
    pub ticket: u64,
    /// Its lane.
    pub lane: usize,
    /// The records in log order.
    pub records: Vec<Record>,
    /// How soon they must be on disk, in milliseconds; meant for volatile ones.
    pub sync_within_ms: u32,
    /// The bits that all of its writes have ([`Class::tags`]).
    pub tags: u8,
}

#[derive(Debug)]
struct Lane<W> {
    open: Vec<Pending<W>>,
    open_records: Vec<Record>,
    open_bytes: usize,
    in_flight: VecDeque<(u64, Vec<Pending<W>>)>,
    /// Writes admitted so far.
    admitted: u64,
    /// Of those, how many are visible, or have failed.
    done: u64,
}

/// Queues and locks of the sequencer.
#[derive(Debug)]
pub(crate) struct Sequencer<W> {
    lanes: [Lane<W>; LANES],
    next_ticket: u64,
    locks: Locks,
    waiting: WaitingQueue<W>,
}

/// Answers to hand out: who waits, and for what.
pub type Answers<W> = Vec<(W, Result<Outcome, Error>)>;

impl<W> Sequencer<W> {
    pub(crate) fn new() -> Self {
        let lane = || Lane {
            open: Vec::new(),
            open_records: Vec::new(),
            open_bytes: 0,
            in_flight: VecDeque::new(),
            admitted: 0,
            done: 0,
        };
        Sequencer {
            lanes: [lane(), lane()],
            next_ticket: 1,
            locks: Locks::default(),
            waiting: WaitingQueue::new(),
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
    /// to change); otherwise it comes out of [`Engine::complete`] or [`Engine::fail`].
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
        if self.held_bytes() > self.limits.max_held_bytes && write.bytes() > 0 {
            return Some((waiter, Err(Error::TooManyRequests)));
        }
        let footprint = self.footprint(&write, &class);
        let s = &self.seq;
        if s.locks.conflicts(&footprint, false)
            || (!s.waiting.is_empty() && s.waiting.locks.conflicts(&footprint, true))
        {
            if s.waiting.len() >= self.limits.max_waiting {
                return Some((waiter, Err(Error::TooManyRequests)));
            }
            let deadline_ms = now_ms.saturating_add(self.limits.wait_timeout_ms);
            self.seq.waiting.push(Waiting {
                write,
                class,
                footprint,
                waiter,
                deadline_ms,
            });
            return None;
        }
        match self.admit(write, &class, footprint, waiter) {
            Admitted::Answered(w, a) => Some((w, a)),
            Admitted::Logged => None,
        }
    }

    /// The lane that a write of this class takes as things are now.
    fn lane(&self, class: &Class) -> usize {
        if class.lane == DURABLE {
            return DURABLE;
        }
        let holds = class.rules == self.rules
            && class
                .bound
                .as_ref()
                .is_none_or(|b| self.index.mod_revision(&b.key) == b.mod_revision);
        if holds { class.lane } else { DURABLE }
    }

    /// Bytes of the writes that no batch has taken yet.
    fn held_bytes(&self) -> usize {
        let open: usize = self.seq.lanes.iter().map(|l| l.open_bytes).sum();
        open + self.seq.waiting.bytes()
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

    fn footprint(&self, write: &Write, class: &Class) -> Footprint {
        let mut f = Footprint {
            lane: self.lane(class),
            ..Footprint::default()
        };
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
            Write::LeaseGrant { id, .. } => f.lease_changed = Some(*id),
            Write::LeaseRevoke { id } => {
                f.lease_changed = Some(*id);
                for key in self.leases.keys(*id) {
                    let key = KeyRange::one(Bytes::copy_from_slice(&key));
                    f.read(key.clone());
                    f.write(key);
                }
            }
            Write::Compact { .. } => f.compacts = true,
            Write::Alarm { .. } => {}
        }
        f
    }

    fn admit(
        &mut self,
        write: Write,
        class: &Class,
        mut footprint: Footprint,
        waiter: W,
    ) -> Admitted<W> {
        let planned = match self.plan(write) {
            Ok(p) => p,
            Err(e) => return Admitted::Answered(waiter, Err(e)),
        };
        let (plan, record) = match planned {
            Plan::Put { effect, prev_kv } => {
                let record = Record::Txn(vec![effect.clone()]);
                (Plan::Put { effect, prev_kv }, record)
            }
            Plan::Effects { step, effects } if effects.is_empty() => {
                let outcome = self.execute(step, Vec::new());
                return Admitted::Answered(waiter, Ok(outcome));
            }
            Plan::Effects { step, effects } => {
                // The keys that a range delete takes are locked one by one (see `lock`).
                for e in &effects {
                    if let Effect::Delete { key } = e {
                        footprint.write(KeyRange::one(key.clone()));
                    }
                }
                let record = Record::Txn(effects.clone());
                (Plan::Effects { step, effects }, record)
            }
            Plan::Other(record) => (Plan::Other(record.clone()), record),
        };
        self.seq.locks.add(&footprint);
        let lane = &mut self.seq.lanes[footprint.lane];
        lane.open_bytes += record_bytes(&record);
        lane.open_records.push(record);
        lane.open.push(Pending {
            plan,
            footprint,
            sync_within_ms: class.sync_within_ms,
            tags: class.tags,
            waiter,
        });
        lane.admitted += 1;
        Admitted::Logged
    }

    fn plan(&self, write: Write) -> Result<Plan, Error> {
        let view = View {
            index: &self.index,
            leases: &self.leases,
            revision: self.revision,
            compact_revision: self.compact_revision,
        };
        let mut effects = Effects::default();
        let step = match write {
            Write::Put(op) => {
                let prev_kv = op.prev_kv;
                let effect = view.put(op)?;
                return Ok(Plan::Put { effect, prev_kv });
            }
            Write::Delete(op) => view.delete(&op, &mut effects),
            Write::Txn(op) => view.txn(&op, &mut effects)?,
            Write::LeaseGrant { id, ttl_s } => {
                if ttl_s > crate::lease::MAX_TTL_S {
                    return Err(Error::LeaseTtlTooLarge);
                }
                if self.leases.contains(id) {
                    return Err(Error::LeaseExists);
                }
                let ttl_s = ttl_s.max(self.limits.min_lease_ttl_s);
                return Ok(Plan::Other(Record::LeaseGrant { id, ttl_s }));
            }
            Write::LeaseRevoke { id } => {
                if !self.leases.contains(id) {
                    return Err(Error::LeaseNotFound);
                }
                let keys = self.leases.keys(id);
                let keys = keys.iter().map(|k| Bytes::copy_from_slice(k)).collect();
                return Ok(Plan::Other(Record::LeaseRevoke { id, keys }));
            }
            Write::Compact { revision } => {
                if revision <= self.compact_revision {
                    return Err(Error::Compacted);
                }
                if revision > self.revision {
                    return Err(Error::FutureRevision);
                }
                return Ok(Plan::Other(Record::Compact { revision }));
            }
            Write::Alarm { alarm, active } => {
                return Ok(Plan::Other(Record::Alarm { alarm, active }));
            }
        };
        Ok(Plan::Effects {
            step,
            effects: effects.list,
        })
    }

    /// Whether a lane has records that no batch has taken yet.
    pub fn has_open(&self, lane: usize) -> bool {
        !self.seq.lanes[lane].open.is_empty()
    }

    /// What a lane has to do now.
    pub fn lane_load(&self, lane: usize) -> LaneLoad {
        let l = &self.seq.lanes[lane];
        LaneLoad {
            open: l.open.len(),
            open_bytes: l.open_bytes,
            in_flight: l.in_flight.len(),
        }
    }

    /// How many writes a lane has admitted so far, and how many of them are visible or have
    /// failed: when the second has reached what the first was, all from before are through.
    pub fn lane_progress(&self, lane: usize) -> (u64, u64) {
        let l = &self.seq.lanes[lane];
        (l.admitted, l.done)
    }

    /// Closes a lane's open batch and hands it over, at most about `max_bytes` of it.
    pub fn take_batch(&mut self, lane: usize, max_bytes: usize) -> Option<Batch> {
        let l = &mut self.seq.lanes[lane];
        if l.open.is_empty() {
            return None;
        }
        let ticket = self.seq.next_ticket;
        self.seq.next_ticket += 1;
        let (mut records, mut pending) = (
            std::mem::take(&mut l.open_records),
            std::mem::take(&mut l.open),
        );
        if l.open_bytes > max_bytes {
            let mut bytes = 0;
            let fits = records.iter().take_while(|r| {
                bytes += record_bytes(r);
                bytes <= max_bytes
            });
            let n = fits.count().max(1);
            l.open_records = records.split_off(n);
            l.open = pending.split_off(n);
        }
        l.open_bytes = l.open_records.iter().map(record_bytes).sum();
        let sync_within_ms = pending.iter().map(|p| p.sync_within_ms).min();
        let tags = pending.iter().fold(u8::MAX, |tags, p| tags & p.tags);
        l.in_flight.push_back((ticket, pending));
        Some(Batch {
            ticket,
            lane,
            records,
            sync_within_ms: sync_within_ms.unwrap_or(0),
            tags,
        })
    }

    /// The journal has a batch: makes it visible, answers it, and admits what waited for
    /// it. Batches of one lane complete in the order they were taken.
    pub fn complete(&mut self, ticket: u64, now_ms: u64, answers: &mut Answers<W>) {
        self.now_ms = now_ms;
        let Some(batch) = self.take_in_flight(ticket) else {
            return;
        };
        let mut released = Vec::new();
        for p in batch {
            let outcome = match p.plan {
                Plan::Put { effect, prev_kv } => self.execute_put(&effect, prev_kv),
                Plan::Effects { step, effects } => self.execute(step, effects),
                Plan::Other(record) => self.apply_other(record),
            };
            self.seq.locks.remove(&p.footprint);
            answers.push((p.waiter, Ok(outcome)));
            if !self.seq.waiting.is_empty() {
                released.push(p.footprint);
            }
        }
        self.admit_waiting(&released, answers);
    }

    /// The journal could not take a batch: nothing of it happened.
    pub fn fail(&mut self, ticket: u64, error: Error, answers: &mut Answers<W>) {
        let Some(batch) = self.take_in_flight(ticket) else {
            return;
        };
        let mut released = Vec::new();
        for p in batch {
            self.seq.locks.remove(&p.footprint);
            answers.push((p.waiter, Err(error)));
            released.push(p.footprint);
        }
        self.admit_waiting(&released, answers);
    }

    fn take_in_flight(&mut self, ticket: u64) -> Option<Vec<Pending<W>>> {
        self.seq
            .lanes
            .iter_mut()
            .find_map(|l| match l.in_flight.front() {
                Some((t, batch)) if *t == ticket => {
                    l.done += batch.len() as u64;
                    l.in_flight.pop_front().map(|x| x.1)
                }
                _ => None,
            })
    }

    /// Answers operations that have waited longer than their time.
    pub fn expire_waiting(&mut self, now_ms: u64, answers: &mut Answers<W>) {
        let late = self.seq.waiting.late(now_ms);
        let mut released = Vec::new();
        for n in late {
            if let Some(w) = self.seq.waiting.remove(n) {
                answers.push((w.waiter, Err(Error::TimedOut)));
                released.push(w.footprint);
            }
        }
        self.admit_waiting(&released, answers);
    }

    /// Refuses everything that is open or waiting, before a stop. Batches that are with
    /// the journal may still be completed.
    pub fn abandon(&mut self, error: Error, answers: &mut Answers<W>) {
        let s = &mut self.seq;
        for lane in &mut s.lanes {
            lane.open_records.clear();
            lane.open_bytes = 0;
            lane.done += lane.open.len() as u64;
            for p in lane.open.drain(..) {
                s.locks.remove(&p.footprint);
                answers.push((p.waiter, Err(error)));
            }
        }
        answers.extend(s.waiting.drain().map(|w| (w.waiter, Err(error))));
    }

    /// Whether nothing is pending, waiting or locked.
    pub fn is_idle(&self) -> bool {
        self.pending() == 0
            && self.seq.waiting.is_empty()
            && self.seq.locks.is_empty()
            && self.seq.waiting.locks.is_empty()
    }

    /// Number of operations that wait for others on their keys.
    pub fn waiting(&self) -> usize {
        self.seq.waiting.len()
    }

    /// Number of operations admitted and not yet visible.
    pub fn pending(&self) -> usize {
        let lane =
            |l: &Lane<W>| l.open.len() + l.in_flight.iter().map(|b| b.1.len()).sum::<usize>();
        self.seq.lanes.iter().map(lane).sum()
    }

    /// Admits what waited for `released`.
    fn admit_waiting(&mut self, released: &[Footprint], answers: &mut Answers<W>) {
        if self.seq.waiting.is_empty() || released.is_empty() {
            return;
        }
        let all_keys = released.iter().all(|f| f.only_key().is_some());
        if all_keys && !self.seq.waiting.has_others() {
            for key in released.iter().filter_map(Footprint::only_key) {
                while let Some((n, w)) = self.seq.waiting.first_at(key) {
                    let lane = self.lane(&w.class);
                    self.seq.waiting.set_lane(n, lane);
                    match self.seq.waiting.remove_free(n, &self.seq.locks) {
                        Some(w) => self.admit_again(*w, answers),
                        None => break,
                    }
                }
            }
            return;
        }
        // In order of arrival; who must still wait holds back who came later.
        for mut w in self.seq.waiting.drain() {
            if matches!(w.write, Write::LeaseRevoke { .. }) {
                // Its keys may have changed while it waited.
                w.footprint = self.footprint(&w.write, &w.class);
            } else {
                w.footprint.lane = self.lane(&w.class);
            }
            if self.seq.locks.conflicts(&w.footprint, false)
                || self.seq.waiting.locks.conflicts(&w.footprint, true)
            {
                self.seq.waiting.push(*w);
            } else {
                self.admit_again(*w, answers);
            }
        }
    }

    fn admit_again(&mut self, w: Waiting<W>, answers: &mut Answers<W>) {
        if let Some(error) = self.refuses(&w.write) {
            answers.push((w.waiter, Err(error)));
        } else if let Admitted::Answered(waiter, a) =
            self.admit(w.write, &w.class, w.footprint, w.waiter)
        {
            answers.push((waiter, a));
        }
    }

    fn apply_other(&mut self, record: Record) -> Outcome {
        let reply = match &record {
            Record::LeaseGrant { id, ttl_s } => Reply::LeaseGrant {
                id: *id,
                ttl_s: *ttl_s,
            },
            _ => Reply::Done,
        };
        let compacted = self.compact_revision;
        self.apply(record);
        if self.compact_revision != compacted {
            self.want_compaction_hash(compacted);
        }
        Outcome {
            revision: self.revision,
            reply,
        }
    }

    /// Executes a put at the next revision.
    fn execute_put(&mut self, effect: &Effect, prev_kv: bool) -> Outcome {
        let at = Revision {
            main: self.revision + 1,
            sub: 0,
        };
        let mut prev = None;
        if let Effect::Put { key, value, lease } = effect {
            if prev_kv {
                prev = self.index.live_kv(key);
            }
            self.put_key(key, value, *lease, at);
            self.revision = at.main;
        }
        Outcome {
            revision: self.revision,
            reply: Reply::Put { prev },
        }
    }

    /// Executes a plan with its effects, at the next revision if there are any.
    fn execute(&mut self, step: Step, effects: Vec<Effect>) -> Outcome {
        let mut run = Run {
            main: self.revision + 1,
            sub: 0,
            effects: effects.into_iter(),
        };
        let (revision, reply) = self.step(step, &mut run);
        if run.sub > 0 {
            self.revision = run.main;
        }
        // A transaction's own header shows the revision after all of it.
        let revision = if matches!(reply, Reply::Txn { .. }) {
            self.revision
        } else {
            revision
        };
        Outcome { revision, reply }
    }

    fn step(&mut self, step: Step, run: &mut Run) -> (i64, Reply) {
        match step {
            Step::Range(op) => {
                let reply = self.range_in_txn(&op);
                (run.shown(self.revision), Reply::Range(reply))
            }
            Step::Put { prev_kv } => {
                let mut prev = None;
                if let Some(Effect::Put { key, value, lease }) = run.effects.next() {
                    if prev_kv {
                        prev = self.index.live_kv(&key);
                    }
                    self.put_key(&key, &value, lease, run.next());
                }
                (run.main, Reply::Put { prev })
            }
            Step::Delete { n, prev_kv } => {
                let mut prevs = Vec::new();
                for _ in 0..n {
                    if let Some(Effect::Delete { key }) = run.effects.next() {
                        if prev_kv {
                            prevs.extend(self.index.live_kv(&key));
                        }
                        self.delete_key(&key, run.next());
                    }
                }
                (
                    run.shown(self.revision),
                    Reply::Delete {
                        deleted: n as i64,
                        prevs,
                    },
                )
            }
            Step::Txn { succeeded, steps } => {
                let replies = steps.into_iter().map(|s| self.step(s, run)).collect();
                (0, Reply::Txn { succeeded, replies })
            }
        }
    }
}

struct Run {
    main: i64,
    sub: i64,
    effects: std::vec::IntoIter<Effect>,
}

impl Run {
    fn next(&mut self) -> Revision {
        self.sub += 1;
        Revision {
            main: self.main,
            sub: self.sub - 1,
        }
    }

    /// The revision that an answer inside the transaction shows.
    fn shown(&self, before: i64) -> i64 {
        if self.sub > 0 { self.main } else { before }
    }
}

/// Roughly what a record takes in the log, in bytes.
pub fn record_bytes(record: &Record) -> usize {
    let effect = |e: &Effect| match e {
        Effect::Put { key, value, .. } => key.len() + value.len() + 16,
        Effect::Delete { key } => key.len() + 8,
    };
    16 + match record {
        Record::Txn(effects) => effects.iter().map(effect).sum(),
        Record::LeaseRevoke { keys, .. } => keys.iter().map(|k| k.len() + 8).sum(),
        _ => 16,
    }
}
