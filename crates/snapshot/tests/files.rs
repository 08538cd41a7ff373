//! Files that this crate writes and reads: every store comes back, and no bytes from
//! outside do harm. What real etcd tools make of the files is tested in `e2e`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use bytes::Bytes;
use engine::record::{Effect, Record};
use engine::versions::{StoreHead, Versions};
use engine::{Engine, Limits};
use proptest::prelude::*;
use snapshot::{Encoder, Error, Origin, Snapshot, StorageVersion, write_file};
use std::path::{Path, PathBuf};

const ORIGIN: Origin = Origin {
    member_id: 0xabc,
    raft_term: 2,
    raft_index: 77,
    storage_version: StorageVersion::V3_7,
};

fn contents(engine: &Engine<()>) -> (StoreHead, Versions) {
    let (mut cursor, head) = engine.export_open();
    while !engine.versions_step(&mut cursor, 3) {}
    (head, cursor.finish(&mut || ()))
}

fn hash(engine: &Engine<()>) -> u32 {
    let mut cursor = engine.hash_open(0).unwrap();
    while !engine.hash_step(&mut cursor, 1000) {}
    cursor.finish_hash(&mut || ()).hash
}

/// Keys and values of the `key` bucket.
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything in a store, in a form that compares.
fn dump(engine: &Engine<()>) -> (StoreHead, Entries) {
    let (head, versions) = contents(engine);
    let entry = |stored: &engine::versions::Stored| {
        let mut value = Vec::new();
        stored.value_into(&mut value);
        (stored.bucket_key().to_vec(), value)
    };
    (head, versions.iter().map(entry).collect())
}

fn bytes_of(engine: &Engine<()>) -> Vec<u8> {
    let (head, versions) = contents(engine);
    let mut out = Vec::new();
    let written = write_file(Encoder::new(&ORIGIN, &head, versions).unwrap(), &mut out).unwrap();
    assert_eq!(written, out.len() as u64);
    out
}

struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn file(bytes: &[u8]) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.db");
    std::fs::write(&path, bytes).unwrap();
    File { _dir: dir, path }
}

fn load(path: &Path) -> Result<Engine<()>, Error> {
    let snapshot = Snapshot::open(path)?;
    snapshot.verify_hash()?;
    snapshot.verify_pages()?;
    snapshot.status()?;
    let (restore, _) = snapshot.load(Engine::new(Limits::default()))?;
    Ok(restore.finish())
}

fn record() -> impl Strategy<Value = Record> {
    let key = (0..12u8).prop_map(|n| Bytes::from(vec![b'k', n]));
    let value = prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 0..60),
        1 => prop::collection::vec(any::<u8>(), 4000..9000),
    ];
    let put = (key.clone(), value, 0..4i64).prop_map(|(key, value, lease)| Effect::Put {
        key,
        value: value.into(),
        lease,
    });
    let txn = prop::collection::vec(put, 1..4).prop_map(Record::Txn);
    prop_oneof![
        8 => txn,
        3 => key.prop_map(|key| Record::Txn(vec![Effect::Delete { key }])),
        1 => (1..4i64, 1..1000i64).prop_map(|(id, ttl_s)| Record::LeaseGrant { id, ttl_s }),
        1 => (0..100i64).prop_map(|percent| Record::Compact { revision: percent }),
        1 => any::<bool>().prop_map(|active| Record::Alarm { alarm: 2, active }),
    ]
}

/// A store with the records, as far as they can be: a compaction at a share of the
/// revision, deletions only of keys that exist.
fn store(records: Vec<Record>) -> Engine<()> {
    let mut engine = Engine::new(Limits::default());
    let mut exist = std::collections::BTreeSet::new();
    for record in records {
        match &record {
            Record::Compact { revision } => {
                let revision = engine.revision() * revision / 100;
                if revision > engine.compact_revision().max(0) {
                    engine.apply(Record::Compact { revision });
                }
                continue;
            }
            Record::Txn(effects) => {
                if let [Effect::Delete { key }] = &effects[..]
                    && !exist.remove(key)
                {
                    continue;
                }
                exist.extend(effects.iter().filter_map(|effect| match effect {
                    Effect::Put { key, .. } => Some(key.clone()),
                    Effect::Delete { .. } => None,
                }));
            }
            _ => {}
        }
        engine.apply(record);
    }
    engine
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn a_store_comes_back(records in prop::collection::vec(record(), 0..60)) {
        let engine = store(records);
        let file = file(&bytes_of(&engine));
        let back = load(&file.path).unwrap();
        let (mut head, entries) = dump(&engine);
        // Alarms are left to the caller.
        head.alarms.clear();
        prop_assert_eq!(dump(&back), (head, entries));
        prop_assert_eq!(hash(&back), hash(&engine));
    }

    #[test]
    fn the_pieces_are_the_file(
        records in prop::collection::vec(record(), 0..20), piece in 1usize..10_000,
    ) {
        let engine = store(records);
        let whole = bytes_of(&engine);
        let (head, versions) = contents(&engine);
        let mut encoder = Encoder::new(&ORIGIN, &head, versions).unwrap();
        let bytes = encoder.bytes();
        let mut joined = Vec::new();
        while let Some(chunk) = encoder.next_chunk(piece).unwrap() {
            prop_assert!(!chunk.is_empty() && chunk.len() <= piece);
            joined.extend_from_slice(&chunk);
        }
        prop_assert_eq!(joined.len() as u64, bytes);
        joined.extend_from_slice(&encoder.sha256());
        prop_assert!(joined == whole);
    }

    #[test]
    fn damage_is_noticed_or_harmless(
        at: usize, with: u8, cut in prop::option::of(any::<usize>()), skip_hash: bool,
    ) {
        let mut bytes = bytes_of(&small());
        let n = bytes.len();
        let same = bytes[at % n] == with && cut.is_none();
        bytes[at % n] = with;
        if let Some(cut) = cut {
            bytes.truncate(cut % n);
        }
        if skip_hash {
            // Without the hash a changed value is a value; nothing may panic or hang.
            bytes.truncate(bytes.len() / 4096 * 4096);
            let _ = load(&file(&bytes).path);
        } else if load(&file(&bytes).path).is_ok() {
            // A cut at a page is a file without a hash, and then all of its pages are there.
            prop_assert!(same || bytes.len() == n - 32);
        }
    }

    #[test]
    fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        prop_assert!(load(&file(&bytes).path).is_err());
    }
}

fn small() -> Engine<()> {
    let put = |n: u8| {
        Record::Txn(vec![Effect::Put {
            key: vec![n % 5 + 1].into(),
            value: vec![n; usize::from(n)].into(),
            lease: i64::from(n % 2),
        }])
    };
    let mut records = vec![Record::LeaseGrant { id: 1, ttl_s: 60 }];
    records.extend((0..50).map(put));
    store(records)
}

#[test]
fn a_load_verifies_every_page() {
    let bytes = bytes_of(&small());
    for page in 2..bytes.len() / 4096 {
        let mut broken = bytes.clone();
        // The page's own number.
        broken[page * 4096] ^= 0xff;
        let broken = file(&broken);
        let loaded = Snapshot::open(&broken.path)
            .and_then(|snapshot| snapshot.load(Engine::<()>::new(Limits::default())));
        let text = loaded.map(drop).unwrap_err().to_string();
        assert!(text.contains("damaged at page"), "{page}: {text}");
    }
}

#[test]
fn an_empty_store_comes_back() {
    let engine = Engine::new(Limits::default());
    let file = file(&bytes_of(&engine));
    let back = load(&file.path).unwrap();
    assert_eq!(dump(&back), dump(&engine));
    assert_eq!((back.revision(), back.compact_revision()), (1, -1));
}

#[test]
fn what_the_file_says_is_what_was_written() {
    let file = file(&bytes_of(&small()));
    let snapshot = Snapshot::open(&file.path).unwrap();
    let contents = snapshot.contents().unwrap();
    assert_eq!(contents.storage_version.as_deref(), Some("3.7.0"));
    assert_eq!((contents.consistent_index, contents.term), (77, 2));
    assert_eq!(contents.leases, [(1, 60)]);
    assert!(!contents.auth.enabled);
    let status = snapshot.status().unwrap();
    assert_eq!((status.revision, status.total_keys), (51, 5));
    assert_eq!(status.version, "3.7.0");
}

type Items<'a> = &'a [(&'a [u8], &'a [u8])];

/// A database with these buckets, without a hash.
fn database(buckets: &[(&[u8], Items<'_>)]) -> File {
    let mut planner = bbolt::Planner::new(bbolt::DEFAULT_PAGE_SIZE).unwrap();
    for (name, items) in buckets {
        planner.bucket(name).unwrap();
        for (key, value) in *items {
            planner.item(key.len(), value.len()).unwrap();
        }
    }
    let mut writer = bbolt::Writer::new(planner.finish().unwrap(), Vec::new()).unwrap();
    for (name, items) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in *items {
            writer.item(key, value).unwrap();
        }
    }
    file(&writer.finish().unwrap())
}

fn refusal(file: &File) -> String {
    load(&file.path).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn another_programs_database_is_refused_by_its_buckets() {
    let text = refusal(&database(&[(b"blobs", &[]), (b"users", &[])]));
    assert!(
        text.contains("no bucket \"key\" (it has \"blobs\", \"users\")"),
        "{text}"
    );
    let text = refusal(&database(&[]));
    assert!(text.contains("no bucket at all"), "{text}");
}

#[test]
fn entries_that_etcd_would_not_write_are_refused_with_their_place() {
    let rev = |mark: &[u8]| [&2u64.to_be_bytes()[..], b"_", &0u64.to_be_bytes(), mark].concat();
    let (two, odd) = (rev(b""), rev(b"x"));
    // Key "k", created and changed at revision 2, version 1.
    let kv = b"\x0a\x01k\x10\x02\x18\x02\x20\x01";
    let other = b"\x0a\x01k\x10\x02\x18\x03\x20\x01";
    let meta = (&b"meta"[..], &[][..]);
    let good: Items<'_> = &[(&two, kv)];
    assert!(load(&database(&[(b"key", good), meta]).path).is_ok());
    for (item, said) in [
        ((&b"short"[..], &kv[..]), "not a revision"),
        ((&odd[..], &kv[..]), "not a revision"),
        ((&two[..], &b"garbage"[..]), "not a key with its fields"),
        ((&two[..], &other[..]), "mod revision 3"),
    ] {
        let text = refusal(&database(&[(b"key", &[item]), meta]));
        assert!(
            text.contains(said) && text.contains("page") && text.contains("offset"),
            "{said}: {text}"
        );
    }
    let newer: Items<'_> = &[(b"storageVersion", b"3.8.0")];
    let text = refusal(&database(&[(b"key", good), (b"meta", newer)]));
    assert!(text.contains("use a newer orlop"), "{text}");
    let lease: Items<'_> = &[(b"\0\0\0\0\0\0\0\x07", b"\x08\x05\x10\x0a")];
    let text = refusal(&database(&[(b"key", good), (b"lease", lease), meta]));
    assert!(text.contains("under the key of another"), "{text}");
}
