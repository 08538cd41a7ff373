//! Limits of what waits, and of what one call does.
#![allow(clippy::unwrap_used)] // a test

use bytes::Bytes;
use engine::op::{Class, Compare, KeyRange, Op, Operator, PutOp, Target, TxnOp, Write};
use engine::{Engine, Error, Lane, Limits};

const LIMIT_BYTES: usize = 100_000;

fn engine() -> Engine<u64> {
    Engine::new(Limits {
        max_held_bytes: LIMIT_BYTES,
        ..Limits::default()
    })
}

fn put(key: &str, value_bytes: usize) -> Write {
    Write::Put(PutOp {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from(vec![0; value_bytes]),
        ..PutOp::default()
    })
}

/// Compares a value and then puts next to nothing.
fn compare(key: &str, value_bytes: usize) -> Write {
    let Write::Put(op) = put(key, 1) else {
        return put(key, 1);
    };
    Write::Txn(TxnOp {
        compares: vec![Compare {
            range: KeyRange::one(op.key.clone()),
            target: Target::Value(Bytes::from(vec![0; value_bytes])),
            operator: Operator::NotEqual,
        }],
        success: vec![Op::Put(op.clone())],
        failure: vec![Op::Put(op)],
    })
}

/// Submits until one is refused; how many were taken.
fn fill(engine: &mut Engine<u64>, write: impl Fn(u64) -> Write) -> u64 {
    for n in 0..100_000 {
        if let Some((_, answer)) = engine.submit(write(n), Class::DURABLE, n, 0) {
            assert_eq!(answer, Err(Error::TooManyRequests));
            let held = engine.held_bytes();
            assert!(
                (LIMIT_BYTES..LIMIT_BYTES + 12_000).contains(&held),
                "{held}"
            );
            return n;
        }
    }
    0
}

/// Takes and completes until nothing is left.
fn finish(engine: &mut Engine<u64>) {
    while let Some(batch) = engine.take_batch(Lane::Durable, usize::MAX) {
        engine.complete(batch.ticket, 0, &mut Vec::new()).unwrap();
        while engine.admit_ready(&mut Vec::new()) {}
    }
    assert!(engine.is_idle(), "{} bytes are held", engine.held_bytes());
}

#[test]
fn what_waits_for_the_log_is_counted_until_it_is_visible() {
    let mut engine = engine();
    let taken = fill(&mut engine, |n| put(&format!("k{n}"), 1000));
    assert!((60..75).contains(&taken), "{taken}");
    let batch = engine.take_batch(Lane::Durable, usize::MAX).unwrap();
    let refused = engine.submit(put("more", 1000), Class::DURABLE, 0, 0);
    assert_eq!(refused.unwrap().1, Err(Error::TooManyRequests));
    engine.complete(batch.ticket, 0, &mut Vec::new()).unwrap();
    assert!(
        engine
            .submit(put("more", 1000), Class::DURABLE, 0, 0)
            .is_none()
    );
    finish(&mut engine);
}

#[test]
fn compares_of_what_waits_are_counted() {
    let mut engine = engine();
    // All after the first wait for it.
    let taken = fill(&mut engine, |_| compare("k", 10_000));
    assert!((8..12).contains(&taken), "{taken}");
    assert!(engine.waiting() > 5);
    finish(&mut engine);
}

#[test]
fn what_carries_nothing_is_counted() {
    let mut engine = engine();
    let taken = fill(&mut engine, |n| Write::LeaseGrant {
        id: 1 + n as i64,
        ttl_s: 60,
    });
    assert!((150..300).contains(&taken), "{taken}");
    finish(&mut engine);
    let taken = fill(&mut engine, |_| Write::Alarm {
        alarm: 7,
        active: false,
    });
    assert!((150..300).contains(&taken), "{taken}");
    finish(&mut engine);
}

#[test]
fn keys_of_a_revocation_are_counted() {
    let mut engine = engine();
    let lease = Write::LeaseGrant { id: 7, ttl_s: 60 };
    assert!(engine.submit(lease, Class::DURABLE, 0, 0).is_none());
    finish(&mut engine);
    for n in 0..1000 {
        let Write::Put(mut op) = put(&format!("k{n}"), 1) else {
            return;
        };
        op.lease = 7;
        assert!(
            engine
                .submit(Write::Put(op), Class::DURABLE, 0, 0)
                .is_none()
        );
        finish(&mut engine);
    }
    assert!(
        engine
            .submit(Write::LeaseRevoke { id: 7 }, Class::DURABLE, 0, 0)
            .is_none()
    );
    assert!(engine.held_bytes() > 1000 * 100);
    finish(&mut engine);
    assert_eq!(engine.keys(), 0);
}

#[test]
fn a_ticket_out_of_order_is_an_error_that_changes_nothing() {
    let mut engine = engine();
    let mut tickets = Vec::new();
    for n in 0..3 {
        engine.submit(put(&format!("k{n}"), 1), Class::DURABLE, n, 0);
        tickets.push(engine.take_batch(Lane::Durable, usize::MAX).unwrap().ticket);
    }
    let mut answers = Vec::new();
    assert!(engine.complete(tickets[1], 0, &mut answers).is_err());
    assert!(
        engine
            .fail(tickets[2], Error::NoSpace, &mut answers)
            .is_err()
    );
    assert!(engine.take_back(99, 0, &mut answers).is_err());
    assert!(answers.is_empty() && engine.pending() == 3 && engine.revision() == 1);
    for &ticket in &tickets {
        engine.complete(ticket, 0, &mut answers).unwrap();
        assert!(engine.complete(ticket, 0, &mut answers).is_err());
    }
    assert_eq!((answers.len(), engine.revision()), (3, 4));
}

#[test]
fn leases_count_as_data() {
    let mut engine: Engine<u64> = Engine::new(Limits {
        quota_bytes: 1 << 20,
        ..Limits::default()
    });
    let mut granted = 0;
    let refused = loop {
        let lease = Write::LeaseGrant {
            id: granted + 1,
            ttl_s: 60,
        };
        if let Some((_, answer)) = engine.submit(lease, Class::DURABLE, 0, 0) {
            break answer;
        }
        finish(&mut engine);
        engine.check_quota();
        granted += 1;
        assert!(granted < 100_000);
    };
    assert_eq!(refused, Err(Error::NoSpace));
    assert!(engine.sizes().data_bytes > 1 << 20);
    for id in 1..=granted {
        let end = engine.submit(Write::LeaseRevoke { id }, Class::DURABLE, 0, 0);
        assert!(end.is_none());
        finish(&mut engine);
    }
    assert!(engine.check_quota() && engine.sizes().data_bytes == 0);
}
