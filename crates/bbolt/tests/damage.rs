//! Files that are not what they should be: an error or the right data, never a panic.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bbolt::{Database, Error, ReadAt};
use common::{Content, count, random_items, read, revisions, rng, write};
use rand::Rng;

/// Damaged copies of each file; `BBOLT_ROUNDS` names another number.
fn rounds() -> u32 {
    std::env::var("BBOLT_ROUNDS").map_or(1500, |text| text.parse().unwrap())
}

fn check(file: &[u8]) -> Result<bbolt::Report, Error> {
    Database::open(file, file.len() as u64)?.check()
}

fn files() -> Vec<Vec<u8>> {
    let mut rng = rng(5);
    let content = |items| vec![(b"empty".to_vec(), vec![]), (b"key".to_vec(), items)];
    vec![
        write(&Content::new(), 4096),
        write(&content(revisions(20, |_| 50)), 4096),
        write(&content(revisions(700, |_| 600)), 4096),
        write(&content(random_items(&mut rng, 300)), 4096),
        write(&content(revisions(300, |i| i as usize * 20)), 16384),
    ]
}

/// How many items of all buckets differ; None if there are not as many.
fn differing(a: &Content, b: &Content) -> Option<usize> {
    let items = |c: &Content| c.iter().flat_map(|(_, i)| i.clone()).collect::<Vec<_>>();
    let sizes = |c: &Content| c.iter().map(|(_, i)| i.len()).collect::<Vec<_>>();
    let (of_a, of_b) = (items(a), items(b));
    (sizes(a) == sizes(b)).then(|| of_a.iter().zip(&of_b).filter(|(a, b)| a != b).count())
}

/// bbolt has no checksum on data, nor anything that tells where the last item of a page
/// ends. All else is noticed.
#[test]
fn a_flipped_bit_is_an_error_or_changes_one_item_at_most() {
    let mut rng = rng(11);
    for file in files() {
        let right = read(&file).unwrap();
        let mut errors = 0;
        for round in 0..rounds() {
            let mut flipped = file.clone();
            let mut at = rng.random_range(0..file.len());
            if round % 2 == 0 {
                // Where headers and tables are.
                at = at / 4096 * 4096 + at % 64;
            }
            flipped[at] ^= 1 << rng.random_range(0..8);
            match check(&flipped).and_then(|_| read(&flipped)) {
                Err(_) => errors += 1,
                Ok(got) => {
                    let items = differing(&got, &right);
                    assert!(matches!(items, Some(0 | 1)), "byte {at}: {items:?}");
                }
            }
        }
        assert!(errors > 10, "{errors} flips were noticed");
    }
}

#[test]
fn random_bytes_in_a_file_are_survived() {
    let mut rng = rng(12);
    for file in files() {
        for _ in 0..rounds() {
            let mut broken = file.clone();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..broken.len() / 8) * 8;
                let word: u64 = match rng.random_range(0..4) {
                    0 => rng.random(),
                    1 => rng.random_range(0..(file.len() / 4096) as u64),
                    2 => u64::MAX,
                    _ => rng.random_range(0..70_000) << rng.random_range(0..32),
                };
                // Not the meta pages' content: their checksum would end it there.
                if at % 4096 >= 4096 - 8 || at < 8192 {
                    continue;
                }
                broken[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            let _ = check(&broken);
            let _ = read(&broken);
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for file in files() {
        let step = (file.len() / 200).max(1);
        for bytes in (0..file.len()).step_by(step).chain([file.len() - 1]) {
            let db = Database::open(&file[..bytes], bytes as u64);
            assert!(
                matches!(db, Err(Error::Truncated { .. } | Error::Foreign { .. })),
                "{bytes} bytes: {db:?}"
            );
            // A length that lies is an error of reading, not a panic.
            let db = Database::open(&file[..bytes], file.len() as u64);
            let all = db.and_then(|db| db.check());
            assert!(all.is_err(), "{bytes} bytes: {all:?}");
        }
    }
}

#[test]
fn foreign_files_are_named() {
    let text = |file: &[u8]| {
        let error = Database::open(file, file.len() as u64).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        error.to_string()
    };
    assert!(text(b"").contains("empty"));
    assert!(text(b"\x1f\x8b").contains("2 bytes"));
    assert!(text(&[0; 100_000]).contains("magic number"));
    let mut rng = rng(1);
    let noise: Vec<u8> = (0..50_000).map(|_| rng.random()).collect();
    assert!(text(&noise).contains("magic number"));
}

/// Meta pages stand at 0 and at the page size.
#[test]
fn one_damaged_meta_page_is_enough_to_read() {
    for page_size in [4096_usize, 8192, 16384, 32768, 65536] {
        let content = vec![(b"key".to_vec(), revisions(50, |_| 100))];
        let file = write(&content, page_size as u32);
        for page in [0, 1] {
            let mut broken = file.clone();
            broken[page * page_size + 40] ^= 1;
            let db = Database::open(&broken, broken.len() as u64).unwrap();
            assert_eq!(db.meta().page, 1 - page as u64);
            assert_eq!(db.meta().page_size as usize, page_size);
            let why = db.damaged_meta().unwrap().to_string();
            assert!(why.contains("checksum"), "{why}");
            assert_eq!(read(&broken).unwrap(), content);
        }
        let mut broken = file.clone();
        broken[40] ^= 1;
        broken[page_size + 40] ^= 1;
        let error = Database::open(&broken, broken.len() as u64).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}

/// Sets a number in a page and expects an error that says where and what.
#[track_caller]
fn assert_damage(file: &[u8], page: u64, at: usize, bytes: &[u8], says: &str) {
    let mut broken = file.to_vec();
    let from = page as usize * 4096 + at;
    broken[from..from + bytes.len()].copy_from_slice(bytes);
    let error = check(&broken).unwrap_err();
    let Error::Damaged {
        page: named,
        offset,
        ref what,
    } = error
    else {
        panic!("{error}");
    };
    assert!(what.contains(says), "{what}");
    assert!(offset / 4096 >= named, "{error}");
    assert!(offset < file.len() as u64);
    // Reading ends too; it may not notice what only the whole walk can.
    let _ = read(&broken);
}

#[test]
fn each_kind_of_damage_is_named() {
    // Pages: 0 and 1 meta, 2 free pages, 3.. leaves of three items, then branches, root.
    let content = vec![(b"key".to_vec(), revisions(600, |_| 1200))];
    let file = write(&content, 4096);
    let db = Database::open(&file, file.len() as u64).unwrap();
    let root = db.meta().root;
    let top = db.bucket(b"key").unwrap().unwrap().root();
    assert_eq!(root, top + 1);
    let first_branch = (3..top)
        .find(|page| file[*page as usize * 4096 + 8] == 1)
        .unwrap();
    let word = |n: u64| n.to_le_bytes();
    let child = 16 + 8; // of the first element of a branch

    assert_damage(&file, 3, 0, &word(4), "says it is page 4");
    assert_damage(&file, 3, 8, &[4, 0], "flags are 0x4");
    assert_damage(&file, 3, 8, &[0x10, 0], "list of free pages");
    assert_damage(&file, 3, 10, &[255, 255], "elements");
    assert_damage(&file, 3, 10, &[0, 0], "says that it has no elements");
    assert_damage(&file, 3, 10, &[0; 22], "below a branch is empty");
    assert_damage(&file, 3, 12, &[1], "page 4 is used twice");
    assert_damage(&file, 3, 12, &[255, 255, 255, 255], "overflow pages");
    assert_damage(&file, 3, 16, &[2], "flags of element 0");
    assert_damage(&file, 3, 20, &[255, 255, 255, 255], "data of element 0");
    assert_damage(&file, 3, 24, &[0, 0, 0, 0], "key of element 0 has 0 bytes");
    assert_damage(&file, 3, 28, &[255, 255, 255, 255], "data of element 0");
    assert_damage(&file, first_branch, 10, &[0, 0], "no elements");
    assert_damage(&file, first_branch, child, &word(first_branch), "key");
    assert_damage(&file, top, child, &word(top), "key");
    assert_damage(&file, first_branch, child, &word(4), "key");
    assert_damage(&file, first_branch, child, &word(2), "list of free pages");
    assert_damage(&file, first_branch, child, &word(1), "refers to page 1");
    assert_damage(
        &file,
        first_branch,
        child,
        &word(u64::MAX),
        "refers to page",
    );
    assert_damage(&file, first_branch, child, &word(root), "key");
    // The first key of the second leaf, and the last of the first leaf.
    let key = |leaf: usize, i: usize| {
        let at = 16 + i * 16;
        let from = leaf * 4096 + at + 4;
        at + u32::from_le_bytes(file[from..from + 4].try_into().unwrap()) as usize
    };
    assert_damage(
        &file,
        4,
        key(4, 0),
        &[0; 8],
        "below the one that leads here",
    );
    assert_damage(&file, 3, key(3, 2), &[255; 8], "not below the one");
    assert_damage(&file, 3, key(3, 1), &[0; 9], "not above the one before");
    // The root: its one element is the bucket.
    assert_damage(&file, root, 16, &[0], "only buckets may");
    assert_damage(&file, root, 16 + 16 + 3, &word(root), "used twice");
    assert_damage(&file, root, 16 + 16 + 3, &word(0), "no room");
    // The list of free pages.
    assert_damage(&file, 2, 8, &[2], "list of free pages are 0x2");
    assert_damage(&file, 2, 10, &[1], "page 0 is on the list");
    assert_damage(&file, 2, 10, &[0xff, 0xfe], "there is room for 510");
    let free = |n: u64| [&[1, 0, 0, 0, 0, 0][..], &word(n)].concat();
    assert_damage(&file, 2, 10, &free(3), "in use and on the list");
    assert_damage(&file, 2, 10, &free(2), "which is on it");
}

#[test]
fn a_tree_that_never_ends_is_an_error() {
    // A branch with one child, itself, keeps all rules of order.
    let content = vec![(b"key".to_vec(), revisions(600, |_| 1200))];
    let mut file = write(&content, 4096);
    let db = Database::open(file.as_slice(), file.len() as u64).unwrap();
    let top = db.bucket(b"key").unwrap().unwrap().root();
    let at = top as usize * 4096;
    file[at + 10..at + 12].copy_from_slice(&1_u16.to_le_bytes());
    file[at + 16..at + 20].copy_from_slice(&16_u32.to_le_bytes());
    file[at + 20..at + 24].copy_from_slice(&17_u32.to_le_bytes());
    file[at + 24..at + 32].copy_from_slice(&top.to_le_bytes());
    let error = read(&file).unwrap_err().to_string();
    assert!(error.contains("deeper than 64"), "{error}");
    assert!(check(&file).unwrap_err().to_string().contains("used twice"));
}

/// A source of any length, all zeros but for some pages.
struct Sparse(Vec<u8>);

impl ReadAt for Sparse {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        assert!(buf.len() <= 300 << 20, "{} bytes asked for", buf.len());
        buf.fill(0);
        let from = usize::try_from(offset).unwrap().min(self.0.len());
        let to = (from + buf.len()).min(self.0.len());
        buf[..to - from].copy_from_slice(&self.0[from..to]);
        Ok(())
    }
}

#[test]
fn a_page_of_gigabytes_is_refused_without_reading_it() {
    let mut file = write(&vec![(b"key".to_vec(), revisions(2, |_| 10))], 4096);
    // A high-water mark far behind, in both meta pages with a right checksum.
    for page in [0, 1] {
        let m = page * 4096 + 16;
        file[m + 40..m + 48].copy_from_slice(&(1_u64 << 30).to_le_bytes());
        let sum = file[m..m + 56]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |s, b| {
                (s ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
            });
        file[m + 56..m + 64].copy_from_slice(&sum.to_le_bytes());
    }
    file[3 * 4096 + 12..3 * 4096 + 16].copy_from_slice(&(1_u32 << 28).to_le_bytes());
    let bytes = (1_u64 << 30) * 4096;
    let db = Database::open(Sparse(file), bytes).unwrap();
    let bucket = db.bucket(b"key").unwrap().unwrap();
    let error = count(&db, &bucket).unwrap_err().to_string();
    assert!(error.contains("at most 268435456 are supported"), "{error}");
}
