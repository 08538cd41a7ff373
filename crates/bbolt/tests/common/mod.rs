//! Databases for tests.
#![allow(dead_code)] // each test binary uses a part

use bbolt::{Bucket, Database, Error, Planner, ReadAt, Writer};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Buckets with their items, in the order they are written.
pub(crate) type Content = Vec<(Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>)>;

/// Writes a database in both passes.
pub(crate) fn write(content: &Content, page_size: u32) -> Vec<u8> {
    let mut planner = Planner::new(page_size).unwrap();
    for (name, items) in content {
        planner.bucket(name).unwrap();
        for (key, value) in items {
            planner.item(key.len(), value.len()).unwrap();
        }
    }
    let plan = planner.finish().unwrap();
    let bytes = plan.bytes();
    let mut writer = Writer::new(plan, Vec::new()).unwrap();
    for (name, items) in content {
        writer.bucket(name).unwrap();
        for (key, value) in items {
            writer.item(key, value).unwrap();
        }
    }
    let out = writer.finish().unwrap();
    assert_eq!(out.len() as u64, bytes, "the size was known before");
    out
}

/// Reads all top buckets of a database.
pub(crate) fn read(file: &[u8]) -> Result<Content, bbolt::Error> {
    let db = Database::open(file, file.len() as u64)?;
    let mut content = Content::new();
    let mut buckets = db.buckets()?;
    while let Some(entry) = buckets.next_entry()? {
        let Some(bucket) = entry.bucket()? else {
            continue;
        };
        let mut items = Vec::new();
        let mut cursor = db.cursor(&bucket, None)?;
        while let Some(entry) = cursor.next_entry()? {
            assert!(items.len() <= file.len(), "more keys than bytes");
            items.push((entry.key().to_vec(), entry.value().to_vec()));
        }
        content.push((entry.key().to_vec(), items));
    }
    Ok(content)
}

/// The value of a key.
pub(crate) fn get<R: ReadAt>(db: &Database<R>, bucket: &Bucket, key: &[u8]) -> Option<Vec<u8>> {
    let mut cursor = db.cursor(bucket, Some(key)).unwrap();
    let entry = cursor.next_entry().unwrap();
    let found = entry.filter(|entry| entry.key() == key && !entry.is_bucket());
    found.map(|entry| entry.value().to_vec())
}

/// Counts the keys of a bucket by reading them all.
pub(crate) fn count<R: ReadAt>(db: &Database<R>, bucket: &Bucket) -> Result<u64, Error> {
    let mut cursor = db.cursor(bucket, None)?;
    let mut keys = 0;
    while cursor.next_entry()?.is_some() {
        keys += 1;
    }
    Ok(keys)
}

/// Every branch page has two children at least, or bbolt's next deletion under it fails.
/// Pages follow each other without a gap.
pub(crate) fn assert_pages(file: &[u8], page_size: usize) {
    let mut page = 0;
    while page * page_size < file.len() {
        let at = page * page_size;
        let flags = u16::from_le_bytes(file[at + 8..at + 10].try_into().unwrap());
        let count = u16::from_le_bytes(file[at + 10..at + 12].try_into().unwrap());
        let overflow = u32::from_le_bytes(file[at + 12..at + 16].try_into().unwrap());
        let id = u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
        assert_eq!(id, page as u64);
        assert!(flags != 1 || count >= 2, "branch page {page} has {count}");
        page += 1 + overflow as usize;
    }
    assert_eq!(page * page_size, file.len());
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// A bucket of `n` items as etcd's key bucket has them.
pub(crate) fn revisions(n: u64, value_bytes: impl Fn(u64) -> usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..n)
        .map(|i| {
            let mut key = (i + 2).to_be_bytes().to_vec();
            key.push(b'_');
            key.extend(0_u64.to_be_bytes());
            if i % 11 == 0 {
                key.push(b't');
            }
            (key, vec![i as u8; value_bytes(i)])
        })
        .collect()
}

/// Random items with short keys, some of them long, and some large values.
pub(crate) fn random_items(rng: &mut ChaCha8Rng, n: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut items = std::collections::BTreeMap::new();
    for _ in 0..n {
        let key_bytes = match rng.random_range(0..50) {
            0 => rng.random_range(1..3000),
            _ => rng.random_range(1..30),
        };
        let value_bytes = match rng.random_range(0..50) {
            0 => rng.random_range(0..30_000),
            1..10 => rng.random_range(0..2000),
            _ => rng.random_range(0..100),
        };
        let key: Vec<u8> = (0..key_bytes).map(|_| rng.random()).collect();
        items.insert(key, vec![rng.random(); value_bytes]);
    }
    items.into_iter().collect()
}
