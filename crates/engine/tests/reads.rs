//! Reads in slices: they cost what they are counted at, see one revision, and let go of
//! history when they must.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use bytes::Bytes;
use engine::op::{
    Class, Compare, DeleteOp, KeyRange, Op, Operator, Outcome, PutOp, RangeOp, Reply, SortOrder,
    SortTarget, Target, TxnOp, Write,
};
use engine::pin::Strength;
use engine::read_txn::TxnCursor;
use engine::{Engine, Error, Lane, Limits};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Store = Engine<()>;

fn store(txn_range_keys: usize) -> Store {
    Engine::new(Limits {
        txn_range_keys,
        ..Limits::default()
    })
}

/// Makes a write visible; `None` if it was refused.
fn write(engine: &mut Store, write: Write) -> Option<Outcome> {
    if let Some((_, answer)) = engine.submit(write, Class::DURABLE, (), 0) {
        return answer.ok();
    }
    let batch = engine.take_batch(Lane::Durable, usize::MAX).unwrap();
    let mut answers = Vec::new();
    engine.complete(batch.ticket, 0, &mut answers).unwrap();
    answers.pop().unwrap().1.ok()
}

fn put(key: &str, value: &str) -> PutOp {
    PutOp {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutOp::default()
    }
}

fn keys(from: &str, end: &str) -> KeyRange {
    KeyRange {
        key: Bytes::copy_from_slice(from.as_bytes()),
        end: Bytes::copy_from_slice(end.as_bytes()),
    }
}

fn range(from: &str, end: &str) -> RangeOp {
    RangeOp {
        range: keys(from, end),
        ..RangeOp::default()
    }
}

fn filled(count: usize) -> Store {
    let mut engine = store(usize::MAX);
    for n in 0..count {
        write(&mut engine, Write::Put(put(&format!("k{n:06}"), "v"))).unwrap();
    }
    engine
}

/// Reads a transaction to its end; the answer, and how many steps it took.
fn read_txn(engine: &Store, op: TxnOp, slice: usize) -> Result<(Outcome, usize), Error> {
    let mut cursor = engine.read_txn_open(op);
    let mut steps = 0;
    while !cursor.is_done() {
        engine.read_txn_step(&mut cursor, slice)?;
        cursor.settle();
        steps += 1;
    }
    Ok((cursor.finish(), steps))
}

/// Nested `depth` deep, `width` at the innermost level.
fn nested(depth: usize, width: usize, op: &RangeOp) -> TxnOp {
    let success = match depth {
        0 => vec![Op::Range(op.clone()); width],
        _ => vec![Op::Txn(nested(depth - 1, width, op))],
    };
    TxnOp {
        success,
        ..TxnOp::default()
    }
}

#[test]
fn a_transaction_of_many_counts_takes_a_step_for_each_slice_of_keys() {
    let engine = filled(20_000);
    let count = RangeOp {
        count_only: true,
        ..range("k", "l")
    };
    // As in the attack: many of them, nested, few bytes.
    let op = nested(10, 64, &count);
    let (outcome, steps) = read_txn(&engine, op, 256).unwrap();
    let visits = 64 * 20_000;
    assert!(
        steps >= visits / 256,
        "{steps} steps: a slice visits no more than it may"
    );
    assert!(steps <= visits / 256 + 200, "{steps} steps");
    let mut reply = outcome.reply;
    for _ in 0..10 {
        let Reply::Txn { mut replies, .. } = reply else {
            panic!("{reply:?}")
        };
        reply = replies.pop().unwrap().1;
    }
    let Reply::Txn { replies, .. } = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(replies.len(), 64);
    for (_, reply) in replies {
        let Reply::Range(r) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((r.count, r.kvs.len()), (20_000, 0));
    }
}

#[test]
fn compares_over_ranges_are_sliced_and_large_values_count_for_more() {
    let engine = filled(20_000);
    let compare = |target: Target| Compare {
        range: keys("k", "l"),
        target,
        operator: Operator::NotEqual,
    };
    let txn = |compares: Vec<Compare>| TxnOp {
        compares,
        success: vec![Op::Range(range("k000000", ""))],
        ..TxnOp::default()
    };
    let op = txn(vec![compare(Target::Version(7)); 4]);
    let (outcome, steps) = read_txn(&engine, op, 256).unwrap();
    assert!(
        (4 * 20_000 / 256..4 * 20_000 / 256 + 20).contains(&steps),
        "{steps} steps"
    );
    assert!(matches!(
        outcome.reply,
        Reply::Txn {
            succeeded: true,
            ..
        }
    ));
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    let (_, large) = read_txn(&engine, txn(vec![compare(Target::Value(value))]), 256).unwrap();
    assert!(
        large >= 20_000,
        "{large} steps: each key is a megabyte to compare"
    );
}

#[test]
fn a_sliced_transaction_sees_one_revision() {
    let mut engine = filled(1000);
    let op = TxnOp {
        compares: vec![Compare {
            range: keys("k", "l"),
            target: Target::Version(1),
            operator: Operator::Equal,
        }],
        success: vec![
            Op::Range(range("k", "l")),
            Op::Range(RangeOp {
                revision: 500,
                ..range("k", "l")
            }),
        ],
        ..TxnOp::default()
    };
    let want = read_txn(&engine, op.clone(), usize::MAX).unwrap().0;
    let mut cursor = engine.read_txn_open(op);
    while !cursor.is_done() {
        engine.read_txn_step(&mut cursor, 10).unwrap();
        cursor.settle();
        write(&mut engine, Write::Put(put("k000500", "new"))).unwrap();
        let gone = DeleteOp {
            range: keys("k000900", "k000905"),
            prev_kv: false,
        };
        write(&mut engine, Write::Delete(gone)).unwrap();
        let revision = engine.revision();
        write(&mut engine, Write::Compact { revision }).unwrap();
        engine.compact_step(usize::MAX);
    }
    assert_eq!(cursor.finish(), want);
    assert_eq!(engine.pinned().count, 0);
    engine.compact_step(usize::MAX);
    assert!(engine.history_len() < 10, "{} events", engine.history_len());
}

#[test]
fn errors_come_before_answers_and_from_branches_that_are_taken() {
    let mut engine = filled(10);
    write(&mut engine, Write::Compact { revision: 5 }).unwrap();
    let at = |revision| {
        Op::Range(RangeOp {
            revision,
            ..range("k", "l")
        })
    };
    let txn = |success: Vec<Op>, failure: Vec<Op>| TxnOp {
        success,
        failure,
        ..TxnOp::default()
    };
    let error = |op| read_txn(&engine, op, 1).unwrap_err();
    assert_eq!(
        error(txn(vec![at(0), at(4), at(99)], vec![])),
        Error::Compacted
    );
    assert_eq!(
        error(txn(vec![at(0), at(99), at(4)], vec![])),
        Error::FutureRevision
    );
    let inner = Op::Txn(txn(vec![at(99)], vec![]));
    assert_eq!(
        error(txn(vec![inner.clone()], vec![])),
        Error::FutureRevision
    );
    assert!(read_txn(&engine, txn(vec![at(5)], vec![inner, at(4)]), 1).is_ok());
    assert_eq!(engine.pinned().count, 0, "a failed read keeps nothing");
}

#[test]
fn what_is_too_large_is_measured_exactly_and_not_kept() {
    let engine = filled(1000);
    for op in [
        range("k", "l"),
        RangeOp {
            keys_only: true,
            ..range("k", "l")
        },
        RangeOp {
            limit: 300,
            ..range("k", "l")
        },
        RangeOp {
            limit: 1000,
            ..range("k", "l")
        },
    ] {
        let mut kept = engine.range_open(op.clone(), Strength::Firm, 100).unwrap();
        let mut measured = kept.clone();
        measured.measure_only();
        while !kept.is_done() {
            engine.range_step(&mut kept, 100).unwrap();
            engine.range_step(&mut measured, 100).unwrap();
        }
        assert_eq!(kept.bytes(), measured.bytes());
        let mut want = kept.finish_reply();
        assert_eq!(want.range_bytes(), measured.bytes());
        want.measure_only();
        assert_eq!(measured.finish_reply(), want);

        let whole = nested(1, 3, &op);
        let mut cursor = engine.read_txn_open(whole);
        while !cursor.is_done() {
            engine.read_txn_step(&mut cursor, 100).unwrap();
            cursor.settle();
            if cursor.bytes() > 5000 {
                cursor.measure_only();
            }
        }
        let Reply::Txn { mut replies, .. } = cursor.finish().reply else {
            panic!()
        };
        let Reply::Txn { replies, .. } = replies.pop().unwrap().1 else {
            panic!()
        };
        assert_eq!(replies.len(), 3);
        assert!(replies.iter().all(|(_, reply)| *reply == want));
    }
}

#[test]
fn a_slow_revocable_read_is_broken_and_a_firm_one_is_not() {
    let mut engine = filled(1000);
    let open = |engine: &Store, strength| engine.range_open(range("k", "l"), strength, 10).unwrap();
    let mut slow = open(&engine, Strength::Revocable);
    let kept = |engine: &Store| engine.pinned().kept_bytes;
    for _ in 0..100 {
        write(&mut engine, Write::Put(put("k000999", "new"))).unwrap();
    }
    assert_eq!(
        (engine.break_oldest_pins(), kept(&engine)),
        (0, 0),
        "nothing is compacted"
    );
    let mut newer = open(&engine, Strength::Firm);
    let revision = engine.revision();
    write(&mut engine, Write::Put(put("k000999", "newest"))).unwrap();
    write(
        &mut engine,
        Write::Compact {
            revision: revision + 1,
        },
    )
    .unwrap();
    engine.compact_step(usize::MAX);
    assert!(kept(&engine) > 0 && engine.history_len() > 100);
    assert_eq!(engine.pinned().count, 2);
    assert_eq!(engine.break_oldest_pins(), 1);
    assert_eq!(engine.break_oldest_pins(), 0, "the other is firm");
    engine.compact_step(usize::MAX);
    assert!(engine.history_len() < 10, "{} events", engine.history_len());
    assert_eq!(engine.range_step(&mut slow, 10), Err(Error::Compacted));
    while !newer.is_done() {
        engine.range_step(&mut newer, 10).unwrap();
    }
    let last = newer.finish().kvs.pop().unwrap();
    assert_eq!(last.fields().value, b"new");
    drop(slow);
    assert_eq!(engine.pinned().count, 0);
}

/// Any transaction; few keys, so that its operations meet.
fn random_txn(r: &mut ChaCha8Rng, engine: &Store, depth: usize, only_reads: bool) -> TxnOp {
    let key = |r: &mut ChaCha8Rng| format!("k{:02}", r.random_range(0..30));
    let span = |r: &mut ChaCha8Rng| match r.random_range(0..4) {
        0 => keys(&key(r), ""),
        1 => keys("k", "\0"),
        _ => keys(&key(r), &key(r)),
    };
    let compares = (0..r.random_range(0..3)).map(|_| Compare {
        range: span(r),
        target: match r.random_range(0..4) {
            0 => Target::Value(Bytes::from_static(b"")),
            1 => Target::Mod(r.random_range(0..engine.revision() + 1)),
            _ => Target::Version(r.random_range(0..3)),
        },
        operator: [
            Operator::Equal,
            Operator::NotEqual,
            Operator::Less,
            Operator::Greater,
        ][r.random_range(0..4)],
    });
    let compares = compares.collect();
    let branch = |r: &mut ChaCha8Rng| -> Vec<Op> {
        let one = |r: &mut ChaCha8Rng| match r.random_range(0..8) {
            0 if !only_reads => Op::Delete(DeleteOp {
                range: span(r),
                prev_kv: r.random_bool(0.5),
            }),
            1 | 2 if !only_reads => Op::Put(put(&key(r), &format!("{}", r.random_range(0..99)))),
            3 | 4 if depth > 0 => Op::Txn(random_txn(r, engine, depth - 1, only_reads)),
            _ => Op::Range(RangeOp {
                range: span(r),
                limit: r.random_range(-3..4),
                revision: if r.random_bool(0.8) {
                    0
                } else {
                    r.random_range(0..engine.revision() + 1)
                },
                sort_order: [SortOrder::None, SortOrder::Descend][r.random_range(0..2)],
                sort_target: [SortTarget::Key, SortTarget::Mod, SortTarget::Value]
                    [r.random_range(0..3)],
                count_only: r.random_bool(0.1),
                keys_only: r.random_bool(0.1),
                ..RangeOp::default()
            }),
        };
        (0..r.random_range(0..5)).map(|_| one(r)).collect()
    };
    TxnOp {
        compares,
        success: branch(r),
        failure: branch(r),
    }
}

/// What a store has still to read for an answer that the other one gave in one go.
struct Later {
    got: Outcome,
    want: Outcome,
}

impl Later {
    /// True when it is done, and then it is the same.
    fn step(&mut self, engine: &Store, slice: usize) -> bool {
        self.got.reply.unfinished(&mut |part| {
            let Reply::Unfinished(cursor) = part else {
                panic!("{part:?}")
            };
            engine.range_step(cursor, slice).unwrap();
            if cursor.is_done() {
                *part = cursor.clone().finish_reply();
            }
        });
        let done = !self.got.reply.is_unfinished();
        if done {
            assert_eq!(self.got, self.want);
        }
        done
    }
}

#[test]
fn transactions_see_the_same_in_slices_as_in_one_go() {
    let (mut unfinished, mut read) = (0, 0);
    for seed in 0..60 {
        let mut r = ChaCha8Rng::seed_from_u64(seed);
        let (mut whole, mut sliced) = (store(usize::MAX), store(2));
        let mut later: Vec<Later> = Vec::new();
        let mut reads: Vec<(TxnCursor, Outcome)> = Vec::new();
        for _ in 0..150 {
            if r.random_bool(0.3) {
                let op = random_txn(&mut r, &whole, 2, true);
                let want = write(&mut whole, Write::Txn(op.clone()));
                let mut cursor = sliced.read_txn_open(op);
                let first = sliced.read_txn_step(&mut cursor, 1);
                cursor.settle();
                match want {
                    Some(want) if first.is_ok() => reads.push((cursor, want)),
                    // It may be found only later.
                    _ => assert!(want.is_none() || first.is_ok()),
                }
            } else {
                let change = match r.random_range(0..8) {
                    0 => Write::Compact {
                        revision: r.random_range(0..whole.revision() + 1),
                    },
                    1 | 2 => Write::Put(put(&format!("k{:02}", r.random_range(0..30)), "")),
                    _ => Write::Txn(random_txn(&mut r, &whole, 2, false)),
                };
                let want = write(&mut whole, change.clone());
                let got = write(&mut sliced, change);
                assert_eq!(got.is_some(), want.is_some());
                if let (Some(got), Some(want)) = (got, want) {
                    later.push(Later { got, want });
                }
            }
            assert_eq!(whole.revision(), sliced.revision());
            let slice = r.random_range(1..4);
            later.retain_mut(|l| {
                unfinished += usize::from(l.got.reply.is_unfinished());
                !l.step(&sliced, slice)
            });
            let mut rest = Vec::new();
            for (mut cursor, want) in reads.drain(..) {
                sliced.read_txn_step(&mut cursor, slice).unwrap();
                cursor.settle();
                if cursor.is_done() {
                    assert_eq!(cursor.finish(), want);
                    read += 1;
                } else {
                    rest.push((cursor, want));
                }
            }
            reads = rest;
            sliced.compact_step(r.random_range(0..20));
            whole.compact_step(r.random_range(0..20));
        }
        later.retain_mut(|l| {
            while !l.step(&sliced, 1) {}
            false
        });
        drop(reads);
        assert_eq!(sliced.pinned().count, 0, "seed {seed}");
    }
    assert!(unfinished > 1000 && read > 1000, "{unfinished} {read}");
}
