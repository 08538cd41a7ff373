//! Decoders meet bytes from anywhere: they answer or refuse, and never take more memory
//! than the bytes they were given can account for.

use crate::support::*;
use bytes::Bytes;
use engine::record::{Effect, Record};
use files::sim::SimFs;
use journal::{check, decode_block_items, decode_record};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = Record> {
    let effect = prop_oneof![
        (bytes(), bytes(), any::<i64>()).prop_map(|(key, value, lease)| Effect::Put {
            key,
            value,
            lease
        }),
        bytes().prop_map(|key| Effect::Delete { key }),
    ];
    prop_oneof![
        vec(effect, 1..5).prop_map(Record::Txn),
        (any::<i64>(), any::<i64>()).prop_map(|(id, ttl_s)| Record::LeaseGrant { id, ttl_s }),
        (any::<i64>(), vec(bytes(), 0..4)).prop_map(|(id, keys)| Record::LeaseRevoke { id, keys }),
        any::<i64>().prop_map(|revision| Record::Compact { revision }),
        (any::<i32>(), any::<bool>()).prop_map(|(alarm, active)| Record::Alarm { alarm, active }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn record_decoder_takes_any_bytes(input in vec(any::<u8>(), 0..600)) {
        let _ = decode_record(&input);
    }

    #[test]
    fn record_decoder_takes_plausible_bytes(
        kind in 0u8..7, rest in vec(0u8..12, 0..200), tail in vec(any::<u8>(), 0..20),
    ) {
        let _ = decode_record(&[&[kind][..], &rest, &tail].concat());
    }

    #[test]
    fn block_decoder_takes_any_bytes(
        kind in 0u8..7, rest in vec(prop_oneof![0u8..12, any::<u8>()], 0..400),
    ) {
        let _ = decode_block_items(&[&[kind][..], &rest].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_record_comes_back_as_it_was(batches in vec(vec(record(), 1..6), 1..6)) {
        let fs = SimFs::new(1);
        let (mut server, _) = Server::open(&fs).unwrap();
        for batch in batches {
            server.commit(batch).unwrap();
        }
        let expected = server.store.clone();
        drop(server);
        prop_assert_eq!(Server::open(&fs).unwrap().0.store, expected);
    }

    #[test]
    fn a_start_takes_any_bytes_in_any_file(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        junk in vec(any::<u8>(), 1..5000),
    ) {
        let fs = SimFs::new(1);
        let (mut server, _) = Server::open(&fs).unwrap();
        for n in 0..12 {
            server.put(&format!("p{n}"), &[1; 3000]);
            if n == 5 {
                let at = server.journal.snapshot_position(|| ()).unwrap().0;
                snapshot(&fs, &server.store, at).unwrap();
            }
        }
        let store = server.store.clone();
        drop(server);
        let files = fs.list();
        let path = &files[file.index(files.len())];
        let mut contents = fs.contents(path).unwrap();
        let at = at.index(contents.len() + 1);
        contents.resize(contents.len().max(at + junk.len()), 0);
        contents[at..at + junk.len()].copy_from_slice(&junk);
        fs.set_contents(path, &contents).unwrap();
        let checked = check(fs.shared(), &dir(), None);
        match Server::open(&fs) {
            Ok((server, _)) => {
                prop_assert!(store.records.starts_with(&server.store.records));
                // The last frames prove each other: junk of three pages can take them all.
                prop_assert!(server.store.records.len() >= 9);
                prop_assert!(checked.is_ok());
            }
            Err(_) => prop_assert!(checked.is_err()),
        }
    }
}
