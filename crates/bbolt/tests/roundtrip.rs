//! What is written is read back, and keeps bbolt's rules.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bbolt::{Database, Error, Planner, Writer};
use common::{Content, assert_pages, count, get, random_items, read, revisions, rng, write};
use proptest::prelude::*;

fn sorted(mut content: Content) -> Content {
    content.sort();
    content
}

fn assert_round_trip(content: Content, page_size: u32) -> Vec<u8> {
    let file = write(&content, page_size);
    assert_pages(&file, page_size as usize);
    let db = Database::open(&file, file.len() as u64).unwrap();
    assert!(db.damaged_meta().is_none());
    let report = db.check().unwrap();
    assert_eq!(report.used_pages, report.pages);
    assert_eq!(report.free_pages, Some(0));
    assert_eq!(report.buckets, content.len() as u64);
    let keys: usize = content.iter().map(|(_, items)| items.len()).sum();
    assert_eq!(report.keys, keys as u64);
    assert_eq!(read(&file).unwrap(), sorted(content));
    file
}

#[test]
fn an_empty_database() {
    let file = assert_round_trip(Content::new(), 4096);
    assert_eq!(file.len(), 4 * 4096);
}

#[test]
fn buckets_in_any_order_and_empty_ones() {
    let content = vec![
        (b"meta".to_vec(), revisions(3, |_| 8)),
        (b"alarm".to_vec(), vec![]),
        (b"key".to_vec(), revisions(1000, |i| i as usize)),
        (b"lease".to_vec(), vec![]),
    ];
    let file = assert_round_trip(content, 4096);
    let db = Database::open(&file, file.len() as u64).unwrap();
    let empty = db.bucket(b"alarm").unwrap().unwrap();
    assert_eq!((empty.root(), count(&db, &empty).unwrap()), (0, 0));
    let key = db.bucket(b"key").unwrap().unwrap();
    assert_eq!(count(&db, &key).unwrap(), 1000);
    assert!(db.bucket(b"nothing").unwrap().is_none());
}

/// Each number of items, so that each way to end a level of branch pages comes up.
#[test]
fn every_number_of_children_leaves_no_branch_with_one() {
    for key_bytes in [4, 800, 1300, 2100, 5000, 32768] {
        for n in 0..150_u32 {
            let items = (0..n)
                .map(|i| {
                    let mut key = i.to_be_bytes().to_vec();
                    key.resize(key_bytes, 7);
                    (key, vec![1; 3000])
                })
                .collect();
            let content = vec![(b"b".to_vec(), items)];
            let file = write(&content, 4096);
            assert_pages(&file, 4096);
            Database::open(&file, file.len() as u64)
                .unwrap()
                .check()
                .unwrap();
        }
    }
}

#[test]
fn large_values_take_overflow_pages() {
    let mut items = revisions(6, |i| [10, 5 << 20, 0, 1 << 20, 4096, 4080][i as usize]);
    items.push((vec![255; 32768], vec![9; 70_000]));
    for page_size in [4096, 16384, 65536] {
        assert_round_trip(vec![(b"key".to_vec(), items.clone())], page_size);
    }
}

#[test]
fn a_million_keys() {
    let content = vec![(b"key".to_vec(), revisions(1_000_000, |i| (i % 60) as usize))];
    let file = write(&content, 4096);
    let db = Database::open(&file, file.len() as u64).unwrap();
    assert_eq!(db.check().unwrap().keys, 1_000_000);
    let bucket = db.bucket(b"key").unwrap().unwrap();
    for i in [0_usize, 1, 77, 500_000, 999_999] {
        let (key, value) = &content[0].1[i];
        assert_eq!(get(&db, &bucket, key).as_ref(), Some(value));
    }
}

#[test]
fn a_cursor_starts_where_it_is_told() {
    let items: Vec<_> = revisions(5000, |i| (i % 700) as usize);
    let file = write(&vec![(b"key".to_vec(), items.clone())], 4096);
    let db = Database::open(&file, file.len() as u64).unwrap();
    let bucket = db.bucket(b"key").unwrap().unwrap();
    for i in (0..5000).step_by(37).chain([4999]) {
        let mut after = items[i].0.clone();
        after.push(0);
        for (from, first) in [(&items[i].0, Some(i)), (&after, Some(i + 1))] {
            let mut cursor = db.cursor(&bucket, Some(from)).unwrap();
            let mut expected = first.and_then(|f| items.get(f));
            if let Some(entry) = cursor.next_entry().unwrap() {
                assert_eq!(Some(&entry.key().to_vec()), expected.map(|e| &e.0));
                expected = None;
            }
            assert!(expected.is_none());
        }
    }
    let mut cursor = db.cursor(&bucket, Some(&[255; 20])).unwrap();
    assert!(cursor.next_entry().unwrap().is_none());
    assert!(cursor.next_entry().unwrap().is_none());
    assert_eq!(get(&db, &bucket, b"no such key"), None);
}

#[test]
fn a_longer_file_is_read() {
    let content = vec![(b"key".to_vec(), revisions(10, |_| 10))];
    let mut file = write(&content, 4096);
    file.extend([0xaa; 32]);
    assert_eq!(read(&file).unwrap(), content);
}

#[test]
fn the_stream_can_be_taken_out_in_pieces() {
    let items = revisions(20_000, |_| 200);
    let mut planner = Planner::new(4096).unwrap();
    planner.bucket(b"key").unwrap();
    for (key, value) in &items {
        planner.item(key.len(), value.len()).unwrap();
    }
    let plan = planner.finish().unwrap();
    let mut writer = Writer::new(plan, Vec::new()).unwrap();
    writer.bucket(b"key").unwrap();
    let (mut whole, mut largest) = (Vec::new(), 0);
    for (key, value) in &items {
        writer.item(key, value).unwrap();
        let piece = std::mem::take(writer.get_mut());
        largest = largest.max(piece.len());
        whole.extend(piece);
    }
    whole.extend(writer.finish().unwrap());
    assert!(largest <= 4 * 4096, "{largest} bytes at once");
    assert_eq!(whole, write(&vec![(b"key".to_vec(), items)], 4096));
}

#[test]
fn what_was_not_planned_is_refused() {
    let plan = || {
        let mut planner = Planner::new(4096).unwrap();
        planner.bucket(b"a").unwrap();
        planner.item(1, 10).unwrap();
        planner.item(1, 10).unwrap();
        planner.bucket(b"b").unwrap();
        planner.finish().unwrap()
    };
    let begin = || {
        let mut writer = Writer::new(plan(), Vec::new()).unwrap();
        writer.bucket(b"a").unwrap();
        writer.item(b"1", &[0; 10]).unwrap();
        writer
    };
    let unplanned = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Unplanned { .. })));
    let invalid = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Invalid { .. })));

    let mut writer = Writer::new(plan(), Vec::new()).unwrap();
    unplanned(writer.bucket(b"b"));
    let mut writer = Writer::new(plan(), Vec::new()).unwrap();
    invalid(writer.item(b"1", b""));
    unplanned(begin().bucket(b"b"));
    invalid(begin().item(b"1", &[0; 10]));
    invalid(begin().item(b"", &[0; 10]));
    invalid(begin().item(&[9; 32769], &[0; 10]));
    let mut writer = begin();
    writer.item(b"2", &[0; 11]).unwrap();
    unplanned(writer.bucket(b"b"));
    let mut writer = begin();
    writer.item(b"2", &[0; 10]).unwrap();
    unplanned(writer.item(b"3", &[0; 10]));
    unplanned(begin().finish().map(drop));
    let mut writer = begin();
    writer.item(b"2", &[0; 10]).unwrap();
    unplanned(writer.finish().map(drop));

    let mut planner = Planner::new(4096).unwrap();
    invalid(planner.item(1, 1));
    planner.bucket(b"a").unwrap();
    invalid(planner.bucket(b"a"));
    invalid(planner.bucket(b""));
    invalid(Planner::new(5000).map(drop));
    invalid(Planner::new(2048).map(drop));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn random_buckets_come_back(
        seed: u64,
        sizes in proptest::collection::vec(0..400_usize, 0..6),
        page_size in prop_oneof![Just(4096_u32), Just(8192), Just(65536)],
    ) {
        let mut rng = rng(seed);
        let content: Content = sizes
            .iter()
            .enumerate()
            .map(|(i, n)| (format!("bucket{}", 9 - i).into_bytes(), random_items(&mut rng, *n)))
            .collect();
        assert_round_trip(content, page_size);
    }
}
