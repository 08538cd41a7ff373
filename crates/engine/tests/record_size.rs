//! Writes whose keys and values are more than the journal can log at once.
#![allow(clippy::unwrap_used)] // a test

use bytes::Bytes;
use engine::op::{Class, DeleteOp, KeyRange, PutOp, Write};
use engine::record::Record;
use engine::sequencer::Answers;
use engine::{Engine, Error, Lane, Limits};

const KEYS: usize = 100;

fn store(max_record_bytes: usize) -> Engine<u32> {
    let mut engine = Engine::new(Limits {
        max_record_bytes,
        ..Limits::default()
    });
    write(&mut engine, Write::LeaseGrant { id: 7, ttl_s: 2 });
    for n in 0..KEYS {
        let put = PutOp {
            key: Bytes::from(format!("key/{n:03}")),
            value: Bytes::from_static(b"x"),
            lease: 7,
            ..PutOp::default()
        };
        write(&mut engine, Write::Put(put));
    }
    engine
}

/// The answer, and how many keys the records deleted.
fn write(engine: &mut Engine<u32>, write: Write) -> (Option<Error>, usize) {
    if let Some((_, answer)) = engine.submit(write, Class::DURABLE, 0, 10_000) {
        return (answer.err(), 0);
    }
    let batch = engine.take_batch(Lane::Durable, usize::MAX).unwrap();
    let deleted = batch.records.iter().map(|record| match record {
        Record::Txn(effects) => effects.len(),
        Record::LeaseRevoke { keys, .. } => keys.len(),
        _ => 0,
    });
    let deleted = deleted.sum();
    let mut answers = Answers::new();
    engine.complete(batch.ticket, 0, &mut answers).unwrap();
    (answers.remove(0).1.err(), deleted)
}

#[test]
fn a_delete_of_more_than_a_record_holds_is_refused_for_good() {
    let all = Write::Delete(DeleteOp {
        range: KeyRange {
            key: Bytes::from_static(b"k"),
            end: Bytes::from_static(b"l"),
        },
        ..DeleteOp::default()
    });
    let mut engine = store(1000);
    assert_eq!(write(&mut engine, all.clone()).0, Some(Error::TooLarge));
    let revoke = Write::LeaseRevoke { id: 7 };
    assert_eq!(write(&mut engine, revoke).0, Some(Error::TooLarge));
    // Nothing is held by it.
    assert_eq!(engine.held_bytes(), 0);
    assert_eq!(write(&mut store(10_000), all).1, KEYS);
}

#[test]
fn a_lease_that_ran_out_ends_in_steps() {
    let mut engine = store(1000);
    let mut deleted = 0;
    for _ in 0..KEYS {
        let Some(due) = engine.due_leases(100_000, 1).pop() else {
            break;
        };
        let (error, keys) = write(&mut engine, Write::LeaseExpire(due));
        assert_eq!(error, None);
        assert!((keys + 1) * 15 <= 1016, "{keys}");
        deleted += keys;
    }
    assert_eq!(deleted, KEYS);
    assert!(engine.due_leases(100_000, 1).is_empty());
}
