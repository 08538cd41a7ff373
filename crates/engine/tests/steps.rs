//! What a call may cost at the stated limits, counted in steps ([`Engine::steps`]): none grows
//! with the square of what clients send, or with what others wait for.
#![allow(clippy::unwrap_used)] // a test

use bytes::Bytes;
use engine::op::{Class, Compare, DeleteOp, KeyRange, Op, Operator, PutOp, Target, TxnOp, Write};
use engine::sequencer::Answers;
use engine::{Engine, Error, Lane, Limits};

type Store = Engine<u64>;

fn store() -> Store {
    Engine::new(Limits {
        max_held_bytes: usize::MAX,
        quota_bytes: usize::MAX,
        ..Limits::default()
    })
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("key-{n:09}"))
}

fn put_op(n: u64) -> PutOp {
    PutOp {
        key: key(n),
        value: Bytes::from_static(b"v"),
        ..PutOp::default()
    }
}

fn range(from: u64, to: u64) -> KeyRange {
    KeyRange {
        key: key(from),
        end: key(to),
    }
}

fn delete(range: KeyRange) -> DeleteOp {
    DeleteOp {
        range,
        prev_kv: false,
    }
}

fn txn(success: Vec<Op>) -> TxnOp {
    TxnOp {
        success,
        ..TxnOp::default()
    }
}

/// Compares, so that it waits for whoever writes the key, and puts.
fn cas(n: u64) -> Write {
    Write::Txn(TxnOp {
        compares: vec![Compare {
            range: KeyRange::one(key(n)),
            target: Target::Version(-1),
            operator: Operator::NotEqual,
        }],
        ..txn(vec![Op::Put(put_op(n))])
    })
}

fn submit(store: &mut Store, write: Write) {
    let answer = store.submit(write, Class::DURABLE, 0, 0);
    assert!(answer.is_none(), "{answer:?}");
}

/// Steps of a call.
fn steps<T>(store: &mut Store, call: impl FnOnce(&mut Store) -> T) -> (u64, T) {
    let before = store.steps();
    let result = call(store);
    (store.steps() - before, result)
}

fn complete(store: &mut Store, max_bytes: usize) -> Answers<u64> {
    let mut answers = Vec::new();
    let batch = store.take_batch(Lane::Durable, max_bytes).unwrap();
    store.complete(batch.ticket, 0, &mut answers).unwrap();
    answers
}

/// Takes and completes until nothing is left; returns the most steps of a turn.
fn finish(store: &mut Store) -> u64 {
    let mut most = 0;
    while store.pending() > 0 {
        most = steps(store, |s| complete(s, usize::MAX)).0.max(most);
        while store.has_ready() {
            most = steps(store, |s| s.admit_ready(&mut Vec::new())).0.max(most);
        }
    }
    assert!(store.is_idle());
    most
}

/// n times its logarithm.
fn n_log_n(n: u64) -> u64 {
    n * u64::from(n.ilog2() + 1)
}

#[test]
fn many_nested_deletes_and_puts() {
    const N: u64 = 50_000;
    for ranges in [false, true] {
        let mut store = store();
        let ops = |of: &dyn Fn(u64) -> Op| Op::Txn(txn((0..N).map(of).collect()));
        let deletes = ops(&|n| {
            Op::Delete(delete(match ranges {
                true => range(2 * n, 2 * n + 2),
                false => KeyRange::one(key(2 * n)),
            }))
        });
        let puts = ops(&|n| Op::Put(put_op(2 * n + 1)));
        let more = ops(&|n| Op::Delete(delete(range(n, 2 * N))));
        let write = Write::Txn(txn(vec![puts.clone(), deletes, puts, more]));
        let (spent, ()) = steps(&mut store, |s| submit(s, write));
        assert!(spent < 10 * n_log_n(4 * N), "submitted in {spent}");
        let spent = finish(&mut store);
        assert!(spent < 10 * n_log_n(4 * N), "completed in {spent}");
        assert_eq!(store.keys(), 0);
    }
}

#[test]
fn many_range_deletes_beside_many_puts() {
    const N: u64 = 30_000;
    let mut store = store();
    let puts = |of: u64| Write::Txn(txn((0..N).map(|n| Op::Put(put_op(3 * n + of))).collect()));
    let ranges = |of: u64| {
        let ops = (0..N).map(|n| Op::Delete(delete(range(3 * n + of, 3 * n + of + 1))));
        Write::Txn(txn(ops.collect()))
    };
    submit(&mut store, puts(0));
    complete(&mut store, usize::MAX);
    submit(&mut store, puts(0));
    let volatile = Class {
        lane: Lane::Volatile,
        ..Class::DURABLE
    };
    let among = |s: &mut Store| s.submit(ranges(1), volatile.clone(), 0, 0);
    // The first ranges meet many keys that are not in order, and wait for them.
    let (spent, answer) = steps(&mut store, among);
    assert!(answer.is_none() && spent < 10 * n_log_n(N), "{spent}");
    let (spent, _) = steps(&mut store, |s| complete(s, usize::MAX));
    assert!(store.waiting() == 0 && spent < 20 * n_log_n(N), "{spent}");
    submit(&mut store, puts(0));
    // What is held and what is asked for have no key in common, and nothing is deleted.
    let (spent, answer) = steps(&mut store, among);
    assert!(answer.is_some() && spent < 10 * n_log_n(N), "{spent}");
    submit(&mut store, ranges(0));
    assert_eq!(store.waiting(), 1);
    let (spent, _) = steps(&mut store, |s| s.submit(puts(2), volatile, 0, 0));
    assert!(store.waiting() == 1 && spent < 10 * n_log_n(N), "{spent}");
    let (spent, ()) = steps(&mut store, |s| submit(s, puts(0)));
    assert!(store.waiting() == 2 && spent < 10 * n_log_n(N), "{spent}");
    let (spent, _) = steps(&mut store, |s| complete(s, usize::MAX));
    assert!(store.waiting() < 2 && spent < 20 * n_log_n(N), "{spent}");
}

/// A turn admits at most so many steps' worth, and one write.
const TURN: u64 = 21_000;

#[test]
fn a_crowd_at_one_key_moves_a_link_at_a_time() {
    let mut store = store();
    for _ in 0..10_001 {
        let (spent, ()) = steps(&mut store, |s| submit(s, cas(1)));
        assert!(spent < 200, "submitted in {spent}");
    }
    assert_eq!(store.waiting(), 10_000);
    let spent = finish(&mut store);
    assert!(spent < 400, "a completion took {spent}");
    assert_eq!(store.revision(), 10_002);
}

#[test]
fn a_crowd_of_overlapping_ranges_moves_a_link_at_a_time() {
    let mut store = store();
    submit(&mut store, cas(20_000));
    for n in 0..10_000 {
        let Write::Txn(mut op) = cas(20_000) else {
            return;
        };
        op.compares[0].range = range(n * 7919 % 10_000, 30_000);
        let write = Write::Txn(op);
        let (spent, ()) = steps(&mut store, |s| submit(s, write));
        assert!(spent < 500, "submitted in {spent}");
    }
    assert_eq!(store.waiting(), 10_000);
    let spent = finish(&mut store);
    assert!(spent < 600, "a completion took {spent}");
}

#[test]
fn many_that_wait_for_one_are_admitted_in_slices() {
    let mut store = store();
    submit(&mut store, Write::Put(put_op(5)));
    complete(&mut store, usize::MAX);
    submit(&mut store, Write::Delete(delete(range(0, 100_000))));
    let class = Class {
        lane: Lane::Volatile,
        ..Class::DURABLE
    };
    for n in 0..10_000 {
        assert!(store.submit(cas(n), class.clone(), n, 0).is_none());
    }
    assert_eq!(store.waiting(), 10_000);
    let (spent, _) = steps(&mut store, |s| complete(s, usize::MAX));
    assert!(spent < TURN, "a completion took {spent}");
    let mut turns = 1;
    while store.has_ready() {
        let (spent, _) = steps(&mut store, |s| s.admit_ready(&mut Vec::new()));
        assert!(spent < TURN, "a turn took {spent}");
        turns += 1;
    }
    assert_eq!((store.waiting(), store.pending()), (0, 10_000));
    assert!((5..50).contains(&turns), "{turns} turns");
    let mut answers = Vec::new();
    let batch = store.take_batch(Lane::Volatile, usize::MAX).unwrap();
    store.complete(batch.ticket, 0, &mut answers).unwrap();
    assert_eq!(answers.len(), 10_000);
}

#[test]
fn many_that_have_waited_too_long_go_in_few_steps() {
    let mut store = store();
    for _ in 0..10_001 {
        submit(&mut store, cas(1));
    }
    let mut answers = Vec::new();
    let (spent, ()) = steps(&mut store, |s| s.expire_waiting(1_000_000, &mut answers));
    assert_eq!(answers.len(), 10_000);
    assert!(spent < 10 * n_log_n(10_000), "{spent}");
    finish(&mut store);
}

#[test]
fn the_end_of_a_large_lease_that_waits_costs_others_nothing() {
    const KEYS: u64 = 100_000;
    let mut store = store();
    submit(&mut store, Write::LeaseGrant { id: 7, ttl_s: 60 });
    complete(&mut store, usize::MAX);
    for n in 0..KEYS {
        let op = PutOp {
            lease: 7,
            ..put_op(n)
        };
        submit(&mut store, Write::Put(op));
    }
    finish(&mut store);
    // A pending put of the last key stops the end of the lease.
    submit(&mut store, Write::Put(put_op(KEYS - 1)));
    let held = store.take_batch(Lane::Durable, usize::MAX).unwrap();
    submit(&mut store, Write::LeaseRevoke { id: 7 });
    let before = store.held_bytes();
    assert!(before < 4096, "{before} bytes are held");
    assert_eq!(store.waiting(), 1);
    let mut most = 0;
    for n in 0..1000 {
        most = steps(&mut store, |s| submit(s, cas(KEYS + n))).0.max(most);
    }
    // Who wants one of its keys waits behind it.
    most = steps(&mut store, |s| submit(s, cas(5))).0.max(most);
    assert_eq!(store.waiting(), 2);
    assert!(most < 100, "a write beside it took {most}");
    let mut answers = Vec::new();
    let (spent, ended) = steps(&mut store, |s| s.complete(held.ticket, 0, &mut answers));
    ended.unwrap();
    assert!(spent < 3 * KEYS, "its admission took {spent}");
    assert_eq!(store.waiting(), 1);
    // Pending, it stops those who want one of its keys, and nobody else.
    let most = steps(&mut store, |s| submit(s, cas(2 * KEYS))).0;
    assert!(most < 100, "a write beside it took {most}");
    submit(&mut store, cas(6));
    assert_eq!(store.waiting(), 2);
    finish(&mut store);
    // The last key was put anew without the lease; 5 and 6 came after its end.
    assert_eq!(store.keys(), 1000 + 1 + 3);
}

#[test]
fn a_batch_takes_what_fits_and_leaves_the_rest() {
    let mut store = store();
    for n in 0..100_000 {
        submit(&mut store, Write::Put(put_op(n)));
    }
    let mut batches = 0;
    while store.pending() > 0 {
        let (spent, _) = steps(&mut store, |s| complete(s, 1000));
        assert!(spent < 500, "a batch of {spent} steps");
        batches += 1;
    }
    assert!(batches > 2000, "{batches} batches");
    // One has no more changes than may become visible at once.
    for n in 0..100_000 {
        submit(&mut store, Write::Put(put_op(n)));
    }
    assert_eq!(complete(&mut store, usize::MAX).len(), 16_384);
}

#[test]
fn compares_of_a_transaction_go_over_the_store_once() {
    const KEYS: u64 = 300_000;
    let mut store = store();
    for n in 0..KEYS {
        submit(&mut store, Write::Put(put_op(n)));
    }
    finish(&mut store);
    let with = |compares: usize| {
        let all = Compare {
            range: range(0, KEYS),
            target: Target::Version(1),
            operator: Operator::Equal,
        };
        Write::Txn(TxnOp {
            compares: vec![all; compares],
            ..txn(vec![Op::Put(put_op(KEYS))])
        })
    };
    submit(&mut store, with(1));
    finish(&mut store);
    // Half a million keys are looked at, whatever the store has.
    let (spent, answer) = steps(&mut store, |s| s.submit(with(100), Class::DURABLE, 0, 0));
    assert_eq!(answer.unwrap().1, Err(Error::TooManyOps));
    assert!(spent < 600_000, "{spent}");
    assert!(store.is_idle());
    // As many as it has are always looked at.
    for n in KEYS..2 * KEYS {
        submit(&mut store, Write::Put(put_op(n)));
    }
    finish(&mut store);
    let Write::Txn(mut op) = with(1) else { return };
    op.compares[0].range = range(0, 2 * KEYS);
    op.compares[0].operator = Operator::NotEqual;
    op.compares[0].target = Target::Version(-1);
    submit(&mut store, Write::Txn(op));
    finish(&mut store);
}
