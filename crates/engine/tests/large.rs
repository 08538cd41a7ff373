//! What the model's few keys do not reach: more keys, versions and events than fit one
//! part of any list.
#![allow(clippy::unwrap_used)] // a test

use bytes::Bytes;
use engine::op::{Class, KeyRange, PutOp, RangeOp, Write};
use engine::pin::Strength;
use engine::{Engine, Lane, Limits};
use std::collections::BTreeMap;

const KEYS: u64 = 10_000;

fn write(engine: &mut Engine<()>, write: Write) {
    assert!(engine.submit(write, Class::DURABLE, (), 0).is_none());
    let batch = engine.take_batch(Lane::Durable, usize::MAX).unwrap();
    let mut answers = Vec::new();
    engine.complete(batch.ticket, 0, &mut answers).unwrap();
    assert!(answers.pop().unwrap().1.is_ok());
}

fn put(engine: &mut Engine<()>, key: &str, value: u64) {
    let op = PutOp {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from(value.to_string()),
        ..PutOp::default()
    };
    write(engine, Write::Put(op));
}

fn all() -> KeyRange {
    KeyRange {
        key: Bytes::from_static(b"\0"),
        end: Bytes::from_static(b"\0"),
    }
}

/// Every key once in an order of its own, one key very often.
fn filled() -> (Engine<()>, BTreeMap<String, u64>) {
    let mut engine = Engine::new(Limits::default());
    let mut want = BTreeMap::new();
    for i in 0..KEYS {
        let key = format!("k{:05}", i * 7919 % KEYS);
        put(&mut engine, &key, i);
        want.insert(key, i);
        put(&mut engine, "hot", i);
        want.insert("hot".to_owned(), i);
    }
    (engine, want)
}

fn range(engine: &Engine<()>, op: RangeOp, slice: usize) -> Vec<(String, u64)> {
    let mut c = engine.range_open(op, Strength::Firm, slice).unwrap();
    while !c.is_done() {
        engine.range_step(&mut c, slice).unwrap();
    }
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    let reply = c.finish();
    assert_eq!(reply.count, KEYS as i64 + 1);
    reply
        .kvs
        .iter()
        .map(|kv| (text(&kv.key), text(kv.fields().value).parse().unwrap()))
        .collect()
}

fn hash(engine: &Engine<()>, slice: usize) -> u32 {
    let mut c = engine.hash_open(0).unwrap();
    while !engine.hash_step(&mut c, slice) {}
    c.finish(&mut || ())
}

#[test]
fn long_answers_do_not_depend_on_slices() {
    let (engine, want) = filled();
    let want: Vec<(String, u64)> = want.into_iter().collect();
    let op = RangeOp {
        range: all(),
        ..RangeOp::default()
    };
    for slice in [1, 97, 4096, usize::MAX] {
        assert_eq!(range(&engine, op.clone(), slice), want);
    }
    let limited = RangeOp { limit: 5_000, ..op };
    assert_eq!(range(&engine, limited, 100), want[..5_000]);
    let whole = hash(&engine, usize::MAX);
    for slice in [97, 4096] {
        assert_eq!(hash(&engine, slice), whole);
    }
}

#[test]
fn snapshots_carry_a_key_with_many_versions() {
    let (engine, _) = filled();
    for slice in [1000, usize::MAX] {
        let (mut c, head) = engine.snapshot_open();
        let mut keys = Vec::new();
        let mut steps = 0;
        while !engine.snapshot_step(&mut c, slice, &mut keys) {
            steps += 1;
        }
        assert!(slice == usize::MAX || steps >= 19, "{steps} steps");
        let mut restored: Engine<()> = Engine::new(Limits::default());
        restored.restore_begin(c.meta);
        for item in head {
            restored.restore_item(item);
        }
        for key in keys {
            restored.restore_item(key.into_item());
        }
        restored.restore_end();
        assert_eq!(hash(&restored, 500), hash(&engine, 500));
        assert_eq!(restored.sizes(), engine.sizes());
        assert_eq!(restored.history_len(), 2 * KEYS as usize);
    }
}

#[test]
fn compaction_frees_a_little_at_a_time() {
    let (mut engine, want) = filled();
    let revision = engine.revision();
    let before = engine.sizes();
    write(&mut engine, Write::Compact { revision });
    let mut steps = 0;
    while engine.compaction_due() {
        assert!(engine.compact_step(100) <= 100);
        steps += 1;
    }
    assert!(steps >= 200, "{steps} steps");
    let after = engine.sizes();
    assert_eq!(after.data_bytes, before.data_bytes);
    assert_eq!(engine.history_len(), 1);
    assert_eq!(engine.keys(), want.len());
    let op = RangeOp {
        range: all(),
        ..RangeOp::default()
    };
    let want: Vec<(String, u64)> = want.into_iter().collect();
    assert_eq!(range(&engine, op, 1000), want);
}

#[test]
fn history_is_freed_about_as_asked() {
    let (engine, _) = filled();
    let history = engine.sizes().history_bytes;
    let at = engine.revision_to_free(history / 2).unwrap();
    let middle = engine.revision() / 2;
    assert!((at - middle).abs() < 10, "{at} is not about {middle}");
    assert_eq!(engine.revision_to_free(usize::MAX), Some(engine.revision()));
}
