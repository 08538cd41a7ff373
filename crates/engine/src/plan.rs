//! Evaluation of a write against the visible state: which branch, which effects.
//!
//! The plan is made once, at admission; applying it later needs no decision, so the
//! effects that the log keeps are exactly those that are applied.

use crate::error::Error;
use crate::index::Index;
use crate::lease::Leases;
use crate::lock::Footprint;
use crate::op::{Compare, DeleteOp, KeyRange, Op, Operator, PutOp, RangeOp, Target, TxnOp};
use crate::record::Effect;
use crate::tail::{self, Fields};
use bytes::Bytes;
use std::collections::HashMap;

/// One step of an admitted operation; puts and deletes consume the effects in order.
#[derive(Debug)]
pub(crate) enum Step {
    /// Reads.
    Range(RangeOp),
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
}

/// Effects so far, and which keys they leave in existence, for later operations of the
/// same transaction.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) list: Vec<Effect>,
    exists: HashMap<Bytes, bool>,
    /// Whether to keep `exists`: only a delete or a nested transaction can meet what an
    /// earlier operation did, since etcd refuses the rest.
    track: bool,
}

impl View<'_> {
    /// What a put does; checks what etcd checks before it executes anything.
    pub(crate) fn put(&self, op: PutOp) -> Result<Effect, Error> {
        self.check_put(&op)?;
        let PutOp {
            key,
            mut value,
            mut lease,
            ..
        } = op;
        if op.ignore_value || op.ignore_lease {
            let old = self.index.live(&key).map(|(_, t)| tail::decode(t));
            let old = old.ok_or(Error::KeyNotFound)?;
            if op.ignore_value {
                value = Bytes::copy_from_slice(old.value);
            }
            if op.ignore_lease {
                lease = old.lease;
            }
        }
        Ok(Effect::Put { key, value, lease })
    }

    fn check_put(&self, op: &PutOp) -> Result<(), Error> {
        if op.lease != 0 && !self.leases.contains(op.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (op.ignore_value || op.ignore_lease) && self.index.live(&op.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    /// Plans a delete.
    pub(crate) fn delete(&self, op: &DeleteOp, effects: &mut Effects) -> Step {
        let mut keys: Vec<Bytes> = self
            .index
            .range_of(&op.range)
            .filter(|e| e.newest_tail().is_some())
            .map(|e| Bytes::copy_from_slice(e.key()))
            .collect();
        if !effects.exists.is_empty() {
            keys.retain(|k| effects.exists.get(k) != Some(&false));
            let known: std::collections::HashSet<Bytes> = keys.iter().cloned().collect();
            keys.extend(
                effects
                    .exists
                    .iter()
                    .filter(|(k, e)| **e && op.range.contains(k) && !known.contains(*k))
                    .map(|(k, _)| k.clone()),
            );
            keys.sort_unstable();
        }
        let n = keys.len();
        for key in keys {
            if effects.track {
                effects.exists.insert(key.clone(), false);
            }
            effects.list.push(Effect::Delete { key });
        }
        Step::Delete {
            n,
            prev_kv: op.prev_kv,
        }
    }

    /// Plans a transaction: compares first (nested ones too), then checks, then effects.
    pub(crate) fn txn(&self, op: &TxnOp, effects: &mut Effects) -> Result<Step, Error> {
        self.check_txn(op)?;
        let ops = op.success.iter().chain(&op.failure);
        // A delete may meet an earlier operation's key: etcd's check for duplicates lets a
        // range that ends at `\0` pass, and the branches of nested transactions.
        let is_delete = |o: &Op| matches!(o, Op::Delete(_));
        effects.track = ops.clone().any(|o| matches!(o, Op::Txn(_)))
            || (ops.clone().count() > 1 && ops.clone().any(is_delete));
        self.branch(op, effects)
    }

    fn taken<'a>(&self, op: &'a TxnOp) -> (bool, &'a [Op]) {
        let succeeded = op.compares.iter().all(|c| self.holds(c));
        (succeeded, if succeeded { &op.success } else { &op.failure })
    }

    fn check_txn(&self, op: &TxnOp) -> Result<(), Error> {
        for o in self.taken(op).1 {
            match o {
                Op::Range(r) if r.revision == 0 => {}
                Op::Range(r) if r.revision > self.revision => return Err(Error::FutureRevision),
                Op::Range(r) if r.revision < self.compact_revision => return Err(Error::Compacted),
                Op::Range(_) | Op::Delete(_) => {}
                Op::Put(p) => self.check_put(p)?,
                Op::Txn(t) => self.check_txn(t)?,
            }
        }
        Ok(())
    }

    fn branch(&self, op: &TxnOp, effects: &mut Effects) -> Result<Step, Error> {
        let (succeeded, ops) = self.taken(op);
        let steps = ops
            .iter()
            .map(|o| match o {
                Op::Range(r) => Ok(Step::Range(r.clone())),
                Op::Put(p) => {
                    effects.list.push(self.put(p.clone())?);
                    if effects.track {
                        effects.exists.insert(p.key.clone(), true);
                    }
                    Ok(Step::Put { prev_kv: p.prev_kv })
                }
                Op::Delete(d) => Ok(self.delete(d, effects)),
                Op::Txn(t) => self.branch(t, effects),
            })
            .collect::<Result<_, _>>()?;
        Ok(Step::Txn { succeeded, steps })
    }

    fn holds(&self, c: &Compare) -> bool {
        let mut any = false;
        if c.range.is_one() {
            if let Some((_, tail)) = self.index.live(&c.range.key) {
                return compare(c, &tail::decode(tail));
            }
        } else {
            for tail in self
                .index
                .range_of(&c.range)
                .filter_map(|e| e.newest_tail())
            {
                any = true;
                if !compare(c, &tail::decode(tail)) {
                    return false;
                }
            }
        }
        // A value compare on a key that is not there never holds: no value is not "".
        any || (!matches!(c.target, Target::Value(_)) && compare(c, &Fields::default()))
    }
}

fn compare(c: &Compare, f: &Fields<'_>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let ord = match &c.target {
        Target::Version(v) => f.version.cmp(v),
        Target::Create(v) => f.create_revision.cmp(v),
        Target::Mod(v) => f.mod_revision.cmp(v),
        Target::Value(v) => f.value.cmp(v.as_ref()),
        Target::Lease(v) => f.lease.cmp(v),
        Target::Unknown => Equal,
    };
    match c.operator {
        Operator::Equal => ord == Equal,
        Operator::NotEqual => ord != Equal,
        Operator::Greater => ord == Greater,
        Operator::Less => ord == Less,
        Operator::Unknown => true,
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
    f.read(op.range.clone());
    f.write(op.range.clone());
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
