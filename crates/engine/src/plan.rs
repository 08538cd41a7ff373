//! Evaluation of a write against the visible state: which branch, which effects.
//!
//! The plan is made once, at admission; applying it later needs no decision, so the
//! effects that the log keeps are exactly those that are applied.

use crate::compare::{self, CompareCursor};
use crate::cover::Cover;
use crate::error::Error;
use crate::footprint::Footprint;
use crate::index::Index;
use crate::interval::Interval;
use crate::lease::Leases;
use crate::op::{Compare, DeleteOp, KeyRange, Op, PutOp, RangeOp, TxnOp};
use crate::record::Effect;
use crate::steps::Steps;
use crate::tail;
use bytes::Bytes;
use std::collections::BTreeSet;

/// One step of an admitted operation; puts and deletes consume the effects in order.
#[derive(Debug)]
pub(crate) enum Step {
    /// Reads.
    Range(Box<RangeOp>),
    /// Applies one effect.
    Put { prev_kv: bool },
    /// Applies `n` effects.
    Delete { n: usize, prev_kv: bool },
    /// A transaction's branch.
    Txn { succeeded: bool, steps: Vec<Step> },
}

/// What evaluation reads of the store.
pub(crate) struct View<'a> {
    pub(crate) index: &'a Index,
    pub(crate) leases: &'a Leases,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) steps: &'a Steps,
}

/// Effects so far, and what they leave in existence, for later operations of the same
/// transaction.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) list: Vec<Effect>,
    /// The keys that were put and not deleted since.
    puts: BTreeSet<Bytes>,
    /// What was deleted; of the keys in it only `puts` exist.
    deleted: Cover<Bytes>,
    compared: Compared,
    /// Whether to keep `puts` and `deleted`: only a delete or a nested transaction can meet
    /// what an earlier operation did, since etcd refuses the rest.
    track: bool,
}

impl View<'_> {
    /// A put with the value and the lease that it keeps filled in; checks what etcd checks
    /// before it executes anything.
    pub(crate) fn put(&self, mut op: PutOp) -> Result<PutOp, Error> {
        self.steps.add(1);
        if op.lease != 0 && !self.leases.contains(op.lease) {
            return Err(Error::LeaseNotFound);
        }
        if op.ignore_value || op.ignore_lease {
            let old = self.index.live(&op.key).map(|(_, t)| tail::decode(t));
            let old = old.ok_or(Error::KeyNotFound)?;
            if op.ignore_value {
                op.value = Bytes::copy_from_slice(old.value);
            }
            if op.ignore_lease {
                op.lease = old.lease;
            }
        }
        Ok(op)
    }

    /// Plans a delete. What an earlier delete of the transaction went over is not gone over
    /// again.
    pub(crate) fn delete(&self, op: &DeleteOp, effects: &mut Effects) -> Step {
        let range = &op.range;
        let mut keys = Vec::new();
        let own = if range.is_one() {
            self.steps.add(1);
            if !effects.deleted.holds(&range.key) && self.index.live(&range.key).is_some() {
                keys.push(range.key.clone());
            }
            effects.puts.take(&range.key).into_iter().collect()
        } else {
            for (start, end) in effects.deleted.gaps(&range.key, range.upper()) {
                self.steps.add(1);
                for entry in self.index.range(start, end) {
                    self.steps.add(1);
                    if entry.newest_tail().is_some() {
                        keys.push(Bytes::copy_from_slice(entry.key()));
                    }
                }
            }
            effects.take_puts(range)
        };
        if !own.is_empty() {
            self.steps.add(keys.len() as u64 + own.len() as u64);
            keys.extend(own);
            keys.sort();
            keys.dedup();
        }
        if effects.track {
            effects.deleted.insert(Interval::from(range));
        }
        let n = keys.len();
        let deletes = keys.into_iter().map(|key| Effect::Delete { key });
        effects.list.extend(deletes);
        Step::Delete {
            n,
            prev_kv: op.prev_kv,
        }
    }

    /// Plans a transaction: each one's compares against the visible state, then its branch.
    pub(crate) fn txn(&self, op: &TxnOp, effects: &mut Effects) -> Result<Step, Error> {
        let ops = op.success.iter().chain(&op.failure);
        // A delete may meet an earlier operation's key: etcd's check for duplicates lets a
        // range that ends at `\0` pass, and the branches of nested transactions.
        let is_delete = |o: &Op| matches!(o, Op::Delete(_));
        effects.track = ops.clone().any(|o| matches!(o, Op::Txn(_)))
            || (ops.clone().count() > 1 && ops.clone().any(is_delete));
        self.branch(op, effects)
    }

    fn branch(&self, op: &TxnOp, effects: &mut Effects) -> Result<Step, Error> {
        let mut succeeded = true;
        for c in &op.compares {
            succeeded = self.holds(c, &mut effects.compared)?;
            if !succeeded {
                break;
            }
        }
        let ops = if succeeded { &op.success } else { &op.failure };
        let mut steps = Vec::with_capacity(ops.len());
        for o in ops {
            steps.push(match o {
                Op::Range(r) => {
                    self.check_range(r)?;
                    Step::Range(Box::new(r.clone()))
                }
                Op::Put(p) => {
                    let p = self.put(p.clone())?;
                    if effects.track {
                        effects.puts.insert(p.key.clone());
                    }
                    let prev_kv = p.prev_kv;
                    effects.list.push(p.into());
                    Step::Put { prev_kv }
                }
                Op::Delete(d) => self.delete(d, effects),
                Op::Txn(t) => self.branch(t, effects)?,
            });
        }
        Ok(Step::Txn { succeeded, steps })
    }

    fn check_range(&self, op: &RangeOp) -> Result<(), Error> {
        self.steps.add(1);
        if op.revision == 0 {
            Ok(())
        } else if op.revision > self.revision {
            Err(Error::FutureRevision)
        } else if op.revision < self.compact_revision {
            Err(Error::Compacted)
        } else {
            Ok(())
        }
    }

    fn holds(&self, c: &Compare, compared: &mut Compared) -> Result<bool, Error> {
        self.steps.add(1);
        if c.range.is_one() {
            let live = self.index.live(&c.range.key);
            return Ok(live.map_or_else(
                || compare::holds_for_none(c),
                |(_, tail)| compare::holds(c, &tail::decode(tail)),
            ));
        }
        // In one go: that of a write is atomic with it.
        let may_visit = compared.left(self.index);
        let (mut cursor, mut left) = (CompareCursor::default(), may_visit);
        let holds = cursor.step(c, self.index, i64::MAX, &mut left);
        let visited = may_visit - left;
        self.steps.add(visited as u64);
        compared.0 += visited;
        holds.ok_or(Error::TooManyOps)
    }
}

/// The compares of a transaction look at so many keys of ranges in all, or at as many as the
/// store has. Large values count for more ([`CompareCursor::step`]).
const MAX_COMPARED_KEYS: usize = 500_000;

/// How many keys of ranges the compares of a transaction have looked at.
#[derive(Default)]
struct Compared(usize);

impl Compared {
    /// How many more it takes until there are too many.
    fn left(&self, index: &Index) -> usize {
        let most = MAX_COMPARED_KEYS.max(index.len());
        (most + 1).saturating_sub(self.0)
    }
}

impl Effects {
    /// Takes out what was put in a range, in order.
    fn take_puts(&mut self, range: &KeyRange) -> Vec<Bytes> {
        let Some(within) = range.bounds() else {
            return Vec::new();
        };
        let taken: Vec<Bytes> = self.puts.range::<[u8], _>(within).cloned().collect();
        for key in &taken {
            self.puts.remove(key);
        }
        taken
    }
}

impl From<PutOp> for Effect {
    fn from(op: PutOp) -> Self {
        Effect::Put {
            key: op.key,
            value: op.value,
            lease: op.lease,
        }
    }
}

/// What a put touches.
pub(crate) fn put_footprint(op: &PutOp, f: &mut Footprint) {
    let key = KeyRange::one(op.key.clone());
    if op.ignore_value || op.ignore_lease {
        f.read(key.clone());
    }
    f.write(key);
    if op.lease != 0 {
        f.leases_used.push(op.lease);
    }
}

/// What a delete touches.
pub(crate) fn delete_footprint(op: &DeleteOp, f: &mut Footprint) {
    f.change(op.range.clone());
}

/// What a transaction may touch, whichever branch it takes.
pub(crate) fn txn_footprint(op: &TxnOp, f: &mut Footprint) {
    for c in &op.compares {
        f.read(c.range.clone());
    }
    for o in op.success.iter().chain(&op.failure) {
        match o {
            // A negative one reads the present, but is checked against the compact revision.
            Op::Range(r) => f.reads_history |= r.revision != 0,
            Op::Put(p) => put_footprint(p, f),
            Op::Delete(d) => delete_footprint(d, f),
            Op::Txn(t) => txn_footprint(t, f),
        }
    }
}

/// Whether a transaction holds a put at any depth of either branch.
pub(crate) fn has_put(op: &TxnOp) -> bool {
    op.success.iter().chain(&op.failure).any(|o| match o {
        Op::Put(_) => true,
        Op::Range(_) | Op::Delete(_) => false,
        Op::Txn(t) => has_put(t),
    })
}
