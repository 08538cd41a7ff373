//! Transactions that only read, at one revision and in slices.
//!
//! They need no lock and no place in the order of writes: what they see is the store at the
//! revision at which they began, however long they take. First all branches are decided and
//! all revisions checked, then the ranges are read: an error comes before any answer.

use crate::Engine;
use crate::compare::CompareCursor;
use crate::error::Error;
use crate::op::{Op, Outcome, RangeOp, Reply, TxnOp};
use crate::pin::{Pin, Strength};
use crate::range::RangeCursor;
use crate::record::Revision;

/// Where such a transaction stands.
#[derive(Debug)]
pub struct TxnCursor {
    /// The store's revision when it began: what it reads, and its answer's header.
    revision: i64,
    compact_revision: i64,
    /// Keeps what the ranges read, from the second slice on.
    pin: Option<Pin>,
    /// What is to be decided yet, the next last.
    todo: Vec<Todo>,
    comparing: Option<Comparing>,
    /// What is to be done, in order.
    plan: Vec<Item>,
    /// How many of `plan` are done.
    done: usize,
    /// How many of those are answers already.
    settled: usize,
    /// Branches that were not taken. They may hold much: they go when all of it goes.
    untaken: Vec<Vec<Op>>,
    bytes: usize,
    keep: bool,
}

#[derive(Debug)]
enum Todo {
    Op(Op),
    Leave,
}

/// A transaction whose branch is being decided.
#[derive(Debug)]
struct Comparing {
    txn: TxnOp,
    /// Its compares before this one hold.
    next: usize,
    cursor: CompareCursor,
}

#[derive(Debug)]
enum Item {
    Enter { succeeded: bool },
    Open(RangeOp),
    Reading(Box<RangeCursor>),
    Read(Reply),
    Leave,
}

impl TxnCursor {
    /// Whether all has been read.
    pub fn is_done(&self) -> bool {
        self.comparing.is_none() && self.todo.is_empty() && self.done == self.plan.len()
    }

    /// Bytes of keys and values read so far, as an answer has them.
    pub fn bytes(&self) -> usize {
        let open = match self.plan.get(self.done) {
            Some(Item::Reading(cursor)) if cursor.is_plain() => cursor.bytes(),
            _ => 0,
        };
        self.bytes + open
    }

    /// From now on keys are only measured: their answers will be too large to be made.
    pub fn measure_only(&mut self) {
        self.keep = false;
        for item in &mut self.plan {
            match item {
                Item::Reading(cursor) => cursor.measure_only(),
                Item::Read(reply) => reply.measure_only(),
                Item::Enter { .. } | Item::Open(_) | Item::Leave => {}
            }
        }
    }

    /// Makes answers of what has been read to its end, without the store's lock: some has to
    /// be sorted. To be called after each step.
    pub fn settle(&mut self) {
        for item in &mut self.plan[self.settled..self.done] {
            *item = match std::mem::replace(item, Item::Leave) {
                Item::Reading(cursor) => {
                    let mut reply = cursor.finish_reply();
                    self.bytes += reply.range_bytes();
                    if !self.keep {
                        reply.measure_only();
                    }
                    Item::Read(reply)
                }
                other => other,
            };
        }
        self.settled = self.done;
    }

    /// The answer, once done.
    pub fn finish(mut self) -> Outcome {
        self.settle();
        let revision = self.revision;
        let mut open: Vec<(bool, Vec<(i64, Reply)>)> = Vec::new();
        let mut whole = Reply::Done;
        for item in self.plan {
            let (header, reply) = match item {
                Item::Enter { succeeded } => {
                    open.push((succeeded, Vec::new()));
                    continue;
                }
                Item::Read(reply) => (revision, reply),
                Item::Leave => {
                    let (succeeded, replies) = open.pop().unwrap_or_default();
                    (0, Reply::Txn { succeeded, replies })
                }
                // Not if it is done.
                Item::Open(_) | Item::Reading(_) => continue,
            };
            match open.last_mut() {
                Some((_, replies)) => replies.push((header, reply)),
                None => whole = reply,
            }
        }
        Outcome {
            revision,
            reply: whole,
        }
    }
}

impl<W> Engine<W> {
    /// Opens a transaction that only reads ([`TxnOp::only_reads`]); a write in it is left out.
    pub fn read_txn_open(&self, op: TxnOp) -> TxnCursor {
        TxnCursor {
            revision: self.revision,
            compact_revision: self.compact_revision,
            pin: None,
            todo: vec![Todo::Op(Op::Txn(op))],
            comparing: None,
            plan: Vec::new(),
            done: 0,
            settled: 0,
            untaken: Vec::new(),
            bytes: 0,
            keep: true,
        }
    }

    /// Goes on, visiting at most about `max_keys` keys; an operation counts as one, and so does
    /// a piece of a value that is compared. Call [`TxnCursor::settle`] after it.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`] of a range in a branch that is taken.
    pub fn read_txn_step(&self, c: &mut TxnCursor, max_keys: usize) -> Result<(), Error> {
        let mut left = max_keys.max(1);
        self.decide(c, &mut left)?;
        if c.comparing.is_none() && c.todo.is_empty() {
            self.read_on(c, left);
        }
        if c.is_done() {
            c.pin = None;
        } else if c.pin.is_none() {
            // What any of its ranges may read: at the compact revision, or above it.
            let lowest = c.compact_revision.max(0);
            c.pin = Some(self.pin(lowest, Strength::Firm));
        }
        Ok(())
    }

    /// Decides which branches are taken, and checks their ranges' revisions.
    fn decide(&self, c: &mut TxnCursor, left: &mut usize) -> Result<(), Error> {
        while *left > 0 {
            if let Some(comparing) = c.comparing.take() {
                self.decide_branch(c, comparing, left);
                continue;
            }
            let Some(todo) = c.todo.pop() else {
                return Ok(());
            };
            *left -= 1;
            match todo {
                Todo::Leave => c.plan.push(Item::Leave),
                Todo::Op(Op::Range(r)) => {
                    if r.revision > c.revision {
                        return Err(Error::FutureRevision);
                    }
                    if r.revision != 0 && r.revision < c.compact_revision {
                        return Err(Error::Compacted);
                    }
                    c.plan.push(Item::Open(r));
                }
                Todo::Op(Op::Txn(txn)) => {
                    c.comparing = Some(Comparing {
                        txn,
                        next: 0,
                        cursor: CompareCursor::default(),
                    });
                }
                Todo::Op(Op::Put(_) | Op::Delete(_)) => {}
            }
        }
        Ok(())
    }

    fn decide_branch(&self, c: &mut TxnCursor, mut comparing: Comparing, left: &mut usize) {
        let succeeded = loop {
            let Some(compare) = comparing.txn.compares.get(comparing.next) else {
                break true;
            };
            if *left == 0 {
                c.comparing = Some(comparing);
                return;
            }
            let held = comparing
                .cursor
                .step(compare, &self.index, c.revision, left);
            match held {
                Some(true) => {
                    comparing.next += 1;
                    comparing.cursor = CompareCursor::default();
                }
                Some(false) => break false,
                None => {
                    c.comparing = Some(comparing);
                    return;
                }
            }
        };
        let TxnOp {
            success, failure, ..
        } = comparing.txn;
        let (taken, other) = if succeeded {
            (success, failure)
        } else {
            (failure, success)
        };
        c.untaken.push(other);
        c.plan.push(Item::Enter { succeeded });
        c.todo.push(Todo::Leave);
        c.todo.extend(taken.into_iter().rev().map(Todo::Op));
    }

    /// Reads on; ends with a range that has something to be sorted or cut.
    fn read_on(&self, c: &mut TxnCursor, mut left: usize) {
        while left > 0 && c.done < c.plan.len() {
            let item = &mut c.plan[c.done];
            if let Item::Open(op) = item {
                let op = std::mem::take(op);
                let at = match op.revision {
                    ..=0 => c.revision,
                    past => past,
                };
                let at = Revision::end_of(at);
                *item = Item::Reading(Box::new(self.range_cursor(op, at, Strength::Firm)));
            }
            left -= 1;
            if let Item::Reading(cursor) = item {
                if !c.keep {
                    cursor.measure_only();
                }
                left = left.saturating_sub(self.visit_range(cursor, left.max(1)));
                if !cursor.is_done() {
                    return;
                }
                c.done += 1;
                if !cursor.is_plain() {
                    // It may hold far more than its answer will.
                    return;
                }
                continue;
            }
            c.done += 1;
        }
    }
}
