//! A store restored from etcd's entries: what is refused, what a bump record does, and that
//! what compaction makes unreachable does not come back.
#![allow(clippy::unwrap_used)] // a test

use engine::op::{Class, KeyRange, PutOp, RangeOp, Write};
use engine::pin::Strength;
use engine::record::{Revision, SnapshotItem};
use engine::restore::{Restore, RestoreError};
use engine::tail::{self, Fields};
use engine::versions::Versions;
use engine::{Engine, Lane, Limits};

fn at(main: i64, sub: i64) -> Revision {
    Revision { main, sub }
}

fn fields(create_revision: i64, mod_revision: i64, version: i64, value: &[u8]) -> Fields<'_> {
    Fields {
        create_revision,
        mod_revision,
        version,
        value,
        lease: 0,
    }
}

fn empty(compact_revision: i64) -> Restore<u64> {
    Restore::new(Engine::new(Limits::default()), compact_revision)
}

fn versions(engine: &Engine<u64>) -> Versions {
    let (mut c, _) = engine.export_open();
    while !engine.versions_step(&mut c, 1) {}
    c.finish(&mut || ())
}

fn hash(engine: &Engine<u64>) -> u32 {
    let mut c = engine.hash_open(0).unwrap();
    while !engine.hash_step(&mut c, 1) {}
    c.finish(&mut || ())
}

fn count(engine: &Engine<u64>) -> i64 {
    let op = RangeOp {
        range: KeyRange {
            key: "\0".into(),
            end: "\0".into(),
        },
        ..RangeOp::default()
    };
    let c = engine.range_open(op, Strength::Firm, usize::MAX).unwrap();
    c.finish().count
}

#[test]
fn a_bump_record_is_hashed_and_exported_and_never_seen() {
    let mut restore = empty(-1);
    restore
        .version(at(2, 0), b"a", Some(&fields(2, 2, 1, b"1")))
        .unwrap();
    restore
        .version(at(3, 0), b"a", Some(&fields(2, 3, 2, b"2")))
        .unwrap();
    restore
        .version(at(4, 0), b"b", Some(&fields(4, 4, 1, b"1")))
        .unwrap();
    restore.version(at(5, 0), b"b", None).unwrap();
    restore.bump(1_000_000_005).unwrap();
    restore.compacted(1_000_000_005);
    let mut engine = restore.finish();
    assert_eq!(
        (engine.revision(), engine.compact_revision()),
        (1_000_000_005, 1_000_000_005)
    );
    assert_eq!((count(&engine), engine.keys()), (1, 1));

    // What etcd's database holds then: the key's last version, and the record.
    let left = versions(&engine);
    let mut want = crc32c::crc32c(b"key");
    for e in left.iter() {
        let mut value = Vec::new();
        e.value_into(&mut value);
        want = crc32c::crc32c_append(want, &e.bucket_key());
        want = crc32c::crc32c_append(want, &value);
    }
    let got: Vec<_> = left
        .iter()
        .map(|e| (e.revision.main, e.is_bump()))
        .collect();
    assert_eq!(got, [(3, false), (1_000_000_005, true)]);
    assert_eq!(left.get(1).unwrap().value_len(), 0);
    assert_eq!(hash(&engine), want);

    // It goes through the journal's snapshot.
    let (mut c, head) = engine.snapshot_open();
    let mut keys = Vec::new();
    while !engine.snapshot_step(&mut c, 1, &mut keys) {}
    let mut again: Engine<u64> = Engine::new(Limits::default());
    again.restore_begin(c.meta);
    head.into_iter().for_each(|i| again.restore_item(i));
    let items: Vec<SnapshotItem> = keys.into_iter().map(|k| k.into_item()).collect();
    items.into_iter().for_each(|i| again.restore_item(i));
    again.restore_end();
    assert_eq!(hash(&again), want);
    assert_eq!(again.sizes(), engine.sizes());

    // The next write follows it; a later compaction keeps it.
    let put = Write::Put(PutOp {
        key: "c".into(),
        ..PutOp::default()
    });
    for write in [
        put,
        Write::Compact {
            revision: 1_000_000_006,
        },
    ] {
        assert!(engine.submit(write, Class::DURABLE, 0, 0).is_none());
        let batch = engine.take_batch(Lane::Durable, usize::MAX).unwrap();
        engine.complete(batch.ticket, 0, &mut Vec::new()).unwrap();
    }
    assert_eq!(engine.revision(), 1_000_000_006);
    while engine.compaction_due() {
        engine.compact_step(1);
    }
    let got: Vec<_> = versions(&engine).iter().map(|e| e.revision.main).collect();
    assert_eq!(got, [3, 1_000_000_005, 1_000_000_006]);
}

#[test]
fn what_was_scheduled_for_compaction_is_dropped_on_the_way() {
    // As a database whose server stopped before it had freed anything.
    let mut restore = empty(5);
    for (main, version) in [(2, 1), (3, 2), (6, 3)] {
        restore
            .version(at(main, 0), b"a", Some(&fields(2, main, version, b"")))
            .unwrap();
        if main == 3 {
            restore
                .version(at(4, 0), b"b", Some(&fields(4, 4, 1, b"")))
                .unwrap();
            restore.version(at(4, 1), b"b", None).unwrap();
            restore
                .version(at(5, 0), b"c", Some(&fields(5, 5, 1, b"")))
                .unwrap();
            restore.version(at(5, 1), b"c", None).unwrap();
        }
    }
    let engine = restore.finish();
    let got: Vec<_> = versions(&engine)
        .iter()
        .map(|e| (e.revision.main, e.revision.sub, e.is_tombstone()))
        .collect();
    assert_eq!(got, [(3, 0, false), (5, 1, true), (6, 0, false)]);
    let mut fresh = empty(5);
    fresh
        .version(at(3, 0), b"a", Some(&fields(2, 3, 2, b"")))
        .unwrap();
    fresh.version(at(5, 1), b"c", None).unwrap();
    fresh
        .version(at(6, 0), b"a", Some(&fields(2, 6, 3, b"")))
        .unwrap();
    assert_eq!(hash(&engine), hash(&fresh.finish()));
}

#[test]
fn entries_that_cannot_be_are_refused() {
    let mut restore = empty(-1);
    let one = fields(2, 2, 1, b"");
    assert!(matches!(
        restore.version(at(2, 0), b"", Some(&one)),
        Err(RestoreError::NoKey { .. })
    ));
    for bad in [
        fields(2, 3, 1, b""),
        fields(3, 2, 1, b""),
        fields(0, 2, 1, b""),
        fields(2, 2, 0, b""),
    ] {
        assert!(matches!(
            restore.version(at(2, 0), b"a", Some(&bad)),
            Err(RestoreError::Fields { .. })
        ));
    }
    restore.version(at(2, 1), b"a", Some(&one)).unwrap();
    for bad in [at(2, 1), at(2, 0), at(1, 5), at(3, -1), at(3, 1 << 40)] {
        let put = fields(1, bad.main, 1, b"");
        assert!(matches!(
            restore.version(bad, b"b", Some(&put)),
            Err(RestoreError::NotAscending { .. })
        ));
    }
    assert!(restore.bump(2).is_err());
    let engine = restore.finish();
    assert_eq!((engine.revision(), count(&engine)), (2, 1));
}

#[test]
fn leases_hold_the_keys_whose_last_version_names_them() {
    let mut restore = empty(-1);
    restore.lease(7, 60);
    for (main, lease) in [(2, 7), (3, 0), (4, 7)] {
        let f = Fields {
            lease,
            ..fields(2, main, main - 1, b"")
        };
        restore.version(at(main, 0), b"a", Some(&f)).unwrap();
        let held = restore.engine().lease(7, 0, true).unwrap().keys.len();
        assert_eq!(held, usize::from(lease != 0));
    }
    // A lease that is not there holds nothing, as in etcd.
    let f = Fields {
        lease: 8,
        ..fields(5, 5, 1, b"")
    };
    restore.version(at(5, 0), b"b", Some(&f)).unwrap();
    restore.version(at(6, 0), b"a", None).unwrap();
    let engine = restore.finish();
    assert!(engine.lease(7, 0, true).unwrap().keys.is_empty());
    assert_eq!(
        tail::decode(versions(&engine).get(3).unwrap().tail.as_ref().unwrap()).lease,
        8
    );
}
