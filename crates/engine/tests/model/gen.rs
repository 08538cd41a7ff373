//! Random requests: few keys, few leases, so that everything meets everything.

use bytes::Bytes;
use engine::op::{
    Compare, DeleteOp, KeyRange, Op, Operator, PutOp, RangeOp, SortOrder, SortTarget, Target,
    TxnOp, Write,
};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

type Rand = ChaCha8Rng;

const KEYS: &[&[u8]] = &[b"\0", b"a", b"ab", b"b", b"c", b"cc", b"d", b"\xff"];
const ENDS: &[&[u8]] = &[b"\0", b"a\0", b"b", b"bb", b"c", b"d", b"e", b"\xff\xff"];

fn bytes(from: &[&'static [u8]], r: &mut Rand) -> Bytes {
    Bytes::from_static(from.choose(r).unwrap())
}

pub(crate) fn key(r: &mut Rand) -> Bytes {
    bytes(KEYS, r)
}

fn range(r: &mut Rand, single: f64) -> KeyRange {
    let end = if r.random_bool(single) {
        Bytes::new()
    } else {
        bytes(ENDS, r)
    };
    KeyRange { key: key(r), end }
}

/// A revision around those that exist.
fn revision(r: &mut Rand, compact: i64, now: i64) -> i64 {
    match r.random_range(0..10) {
        0..6 => 0,
        6 => r.random_range(-3..2),
        _ => r.random_range(compact - 1..now + 2),
    }
}

pub(crate) fn range_op(r: &mut Rand, compact: i64, now: i64) -> RangeOp {
    let targets = [
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ];
    let orders = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
    let mut op = RangeOp {
        range: range(r, 0.3),
        revision: revision(r, compact, now),
        limit: *[0, 0, 1, 2, 3, -1, i64::MAX].choose(r).unwrap(),
        keys_only: r.random_bool(0.2),
        count_only: r.random_bool(0.1),
        ..RangeOp::default()
    };
    if r.random_bool(0.4) {
        op.sort_target = *targets.choose(r).unwrap();
        op.sort_order = *orders.choose(r).unwrap();
    }
    if r.random_bool(0.2) {
        let bounds = [
            &mut op.min_mod_revision,
            &mut op.max_mod_revision,
            &mut op.min_create_revision,
            &mut op.max_create_revision,
        ];
        for b in bounds {
            if r.random_bool(0.4) {
                *b = r.random_range(-1..now + 2);
            }
        }
    }
    op
}

fn put(r: &mut Rand) -> PutOp {
    let lease = if r.random_bool(0.3) {
        r.random_range(1..5)
    } else {
        0
    };
    PutOp {
        key: key(r),
        value: bytes(&[b"", b"v", b"w", b"long value"], r),
        lease,
        prev_kv: r.random_bool(0.3),
        ignore_value: r.random_bool(0.1),
        ignore_lease: r.random_bool(0.1),
    }
}

fn delete(r: &mut Rand) -> DeleteOp {
    DeleteOp {
        range: range(r, 0.6),
        prev_kv: r.random_bool(0.3),
    }
}

fn compare(r: &mut Rand, now: i64) -> Compare {
    let near = r.random_range((now - 3).max(0)..now + 1);
    let target = match r.random_range(0..12) {
        0..2 => Target::Version(r.random_range(0..3)),
        2..4 => Target::Create(*[0, near].choose(r).unwrap()),
        4..8 => Target::Mod(*[0, near, near].choose(r).unwrap()),
        8..10 => Target::Value(bytes(&[b"", b"v", b"w"], r)),
        10 => Target::Lease(r.random_range(0..5)),
        _ => Target::Unknown,
    };
    let operators = [
        Operator::Equal,
        Operator::Equal,
        Operator::NotEqual,
        Operator::Greater,
        Operator::Less,
        Operator::Unknown,
    ];
    Compare {
        range: range(r, 0.8),
        target,
        operator: *operators.choose(r).unwrap(),
    }
}

fn op(r: &mut Rand, depth: u32, compact: i64, now: i64) -> Op {
    match r.random_range(0..10) {
        0..3 => Op::Range(range_op(r, compact, now)),
        3..6 => Op::Put(put(r)),
        6..8 => Op::Delete(delete(r)),
        _ if depth < 2 => Op::Txn(txn_any(r, depth + 1, compact, now)),
        _ => Op::Put(put(r)),
    }
}

fn txn_any(r: &mut Rand, depth: u32, compact: i64, now: i64) -> TxnOp {
    let compares = (0..r.random_range(0..3)).map(|_| compare(r, now)).collect();
    let mut ops = |n: u32| {
        (0..r.random_range(0..n))
            .map(|_| op(r, depth, compact, now))
            .collect()
    };
    TxnOp {
        compares,
        success: ops(4),
        failure: ops(3),
    }
}

/// etcd's check of a transaction before it takes it: no key is put twice, or put after or
/// beside a delete of it. (A put in one nested transaction and a delete in a later one
/// pass.) Returns the puts and deletes.
fn check(ops: &[Op]) -> Option<(HashSet<Bytes>, Vec<KeyRange>)> {
    let mut dels: Vec<KeyRange> = Vec::new();
    for o in ops {
        if let Op::Delete(d) = o {
            dels.push(d.range.clone());
        }
    }
    let mut puts = HashSet::new();
    let hit = |dels: &[KeyRange], k: &Bytes| dels.iter().any(|d| d.contains(k));
    for o in ops {
        if let Op::Txn(t) = o {
            let (then_puts, then_dels) = check(&t.success)?;
            let (else_puts, else_dels) = check(&t.failure)?;
            for k in then_puts.union(&else_puts) {
                if puts.contains(k) || hit(&dels, k) {
                    return None;
                }
            }
            puts.extend(then_puts);
            puts.extend(else_puts);
            dels.extend(then_dels);
            dels.extend(else_dels);
        }
    }
    for o in ops {
        if let Op::Put(p) = o
            && (hit(&dels, &p.key) || !puts.insert(p.key.clone()))
        {
            return None;
        }
    }
    Some((puts, dels))
}

fn txn(r: &mut Rand, compact: i64, now: i64) -> TxnOp {
    loop {
        let t = txn_any(r, 0, compact, now);
        if check(&t.success).is_some() && check(&t.failure).is_some() {
            return t;
        }
    }
}

/// What kube-apiserver does: compare on the mod revision, then put or delete, else read.
fn cas(r: &mut Rand, now: i64) -> TxnOp {
    let k = KeyRange::one(key(r));
    let revision = *[0, now - 1, now].choose(r).unwrap();
    let then = if r.random_bool(0.8) {
        Op::Put(PutOp {
            key: k.key.clone(),
            ..put(r)
        })
    } else {
        Op::Delete(DeleteOp {
            range: k.clone(),
            prev_kv: false,
        })
    };
    let read = Op::Range(RangeOp {
        range: k.clone(),
        ..RangeOp::default()
    });
    TxnOp {
        compares: vec![Compare {
            range: k,
            target: Target::Mod(revision),
            operator: Operator::Equal,
        }],
        success: vec![then],
        failure: vec![read],
    }
}

pub(crate) fn write(r: &mut Rand, compact: i64, now: i64) -> Write {
    match r.random_range(0..100) {
        0..30 => Write::Put(put(r)),
        30..40 => Write::Delete(delete(r)),
        40..55 => Write::Txn(cas(r, now)),
        55..78 => Write::Txn(txn(r, compact, now)),
        78..87 => Write::LeaseGrant {
            id: r.random_range(1..5),
            ttl_s: *[0, 1, 2, 3, 60, -1, 9_000_000_001].choose(r).unwrap(),
        },
        87..92 => Write::LeaseRevoke {
            id: r.random_range(1..5),
        },
        92..99 => Write::Compact {
            revision: r.random_range(compact - 1..now + 2),
        },
        _ => Write::Alarm {
            alarm: 1,
            active: r.random_bool(0.3),
        },
    }
}

/// The key that a caller would look at to find the class of a write.
pub(crate) fn key_of(write: &Write) -> Option<Bytes> {
    let key = match write {
        Write::Put(op) => &op.key,
        Write::Delete(op) if op.range.is_one() => &op.range.key,
        Write::Txn(op) => match &op.success[..] {
            [Op::Put(p)] => &p.key,
            [Op::Delete(d)] if d.range.is_one() => &d.range.key,
            _ => return None,
        },
        _ => return None,
    };
    Some(key.clone())
}
