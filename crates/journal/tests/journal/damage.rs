//! Damage that is not a crash: cut files, flipped bits, lost and mixed files, copies of a
//! running directory. Each is refused with a sentence, or harms nothing acknowledged.

use crate::support::*;
use files::sim::{Random, SimFs};
use journal::{Guards, OpenError, check};
use std::path::PathBuf;

/// A small log over several segments, closed or left open; the number of records that a mark proves.
fn small_log(close: bool) -> (SimFs, Store, usize) {
    let fs = SimFs::new(7);
    let mut options = options();
    options.segment_bytes = 16 * 1024;
    let (mut server, _) = Server::open_with(&fs, options).unwrap();
    for n in 0..6u8 {
        server.put(
            &format!("p{n}"),
            &vec![n + 1; 40 + 1500 * usize::from(n % 4)],
        );
    }
    let store = server.store.clone();
    let proven = if close { 6 } else { 5 };
    if close {
        server.close().unwrap();
    }
    (fs, store, proven)
}

fn segments(fs: &SimFs) -> Vec<PathBuf> {
    let files = fs.list();
    files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect()
}

/// Opens a damaged copy: refused, or a prefix of what was acknowledged with all that is proven.
fn judge(fs: &SimFs, store: &Store, proven: usize, what: &str) -> bool {
    match Server::open(fs) {
        Ok((server, _)) => {
            let found = &server.store.records;
            assert!(store.records.starts_with(found), "{what}: wrong data");
            assert!(
                found.len() >= proven,
                "{what}: {} records, {proven} proven",
                found.len()
            );
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("/data"), "{what}: {text}");
            assert!(!matches!(error, OpenError::Io { .. }), "{what}: {text}");
            false
        }
    }
}

#[test]
fn a_flipped_bit_at_every_byte_is_noticed_or_harmless() {
    for close in [true, false] {
        let (fs, store, proven) = small_log(close);
        let mut paths = segments(&fs);
        paths.push("/data/format".into());
        let mut refused = 0;
        for path in paths {
            for at in 0..fs.contents(&path).unwrap().len() {
                let fs = fs.kill(0);
                fs.flip_bit(&path, at, (at % 8) as u8).unwrap();
                let what = format!("close {close}, {} byte {at}", path.display());
                refused += u32::from(!judge(&fs, &store, proven, &what));
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}

#[test]
fn a_file_cut_at_every_byte_is_noticed_or_harmless() {
    for close in [true, false] {
        let (fs, store, proven) = small_log(close);
        for path in segments(&fs) {
            let bytes = fs.contents(&path).unwrap();
            for length in 0..bytes.len() {
                let fs = fs.kill(0);
                fs.set_contents(&path, &bytes[..length]).unwrap();
                let what = format!("close {close}, {} cut at {length}", path.display());
                judge(&fs, &store, proven, &what);
            }
        }
    }
}

/// A write that was torn at every byte (bytes beyond are the zeros that were there before)
/// ends the log before it, and the start says so.
#[test]
fn a_last_frame_torn_at_every_byte_ends_the_log() {
    let (fs, store, _) = small_log(false);
    let path = segments(&fs)
        .into_iter()
        .rfind(|path| fs.contents(path).unwrap().iter().any(|byte| *byte != 0))
        .unwrap();
    let bytes = fs.contents(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let start = (end - 1) / 4096 * 4096;
    for cut in start..end {
        let fs = fs.kill(0);
        let mut torn = bytes.clone();
        torn[cut..].fill(0);
        fs.set_contents(&path, &torn).unwrap();
        let (server, _) = Server::open(&fs).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        let n = server.store.records.len();
        assert_eq!(n, 5, "cut {cut}");
        assert_eq!(server.store.records[..], store.records[..n]);
    }
}

#[test]
fn a_damaged_snapshot_is_noticed_at_every_byte() {
    let fs = SimFs::new(7);
    let (mut server, _) = Server::open(&fs).unwrap();
    for n in 0..6u8 {
        server.put(&format!("p{n}"), &vec![n + 1; 400]);
    }
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    snapshot(&fs, &server.store, at).unwrap();
    // The log still has everything: a damaged snapshot is passed over.
    let whole = server.store.clone();
    let before_retire = fs.kill(0);
    server.put("p", &[0; 30_000]);
    server.put("p", &[0; 30_000]);
    let retired = server.journal.allocator().retire(at).unwrap();
    assert!(retired.segments > 0);
    server.close().unwrap();

    let path = fs
        .list()
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "snap"))
        .unwrap();
    for byte in 0..fs.contents(&path).unwrap().len() {
        let fs = fs.kill(0);
        fs.flip_bit(&path, byte, 3).unwrap();
        let error = Server::open(&fs)
            .err()
            .unwrap_or_else(|| panic!("byte {byte} not noticed"));
        assert!(error.to_string().contains(".snap"), "{error}");
    }
    before_retire.flip_bit(&path, 100, 0).unwrap();
    let (server, report) = Server::open(&before_retire).unwrap();
    assert_eq!(server.store, whole);
    assert_eq!(report.warnings.len(), 1);
}

/// Bits of acknowledged frames flip, at random places below the last mark.
fn flip_in_the_middle(guards: Guards) -> (u32, u32) {
    let (mut refused, mut lost) = (0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let fs = SimFs::new(seed);
        let (mut server, _) = Server::open(&fs).unwrap();
        for n in 0..20 {
            server.put(&format!("p{n}"), &vec![1; random.below(6000) as usize]);
        }
        let store = server.store.clone();
        drop(server);
        let paths = segments(&fs);
        let path = &paths[random.below(paths.len() as u64) as usize];
        let length = fs.contents(path).unwrap().len() as u64;
        fs.flip_bit(path, random.below(length) as usize, 0).unwrap();
        let mut options = options();
        options.guards = guards;
        match Server::open_with(&fs, options) {
            Err(_) => refused += 1,
            Ok((server, _)) => {
                assert!(store.records.starts_with(&server.store.records));
                lost += u32::from(server.store.records.len() < 19);
            }
        }
    }
    (refused, lost)
}

#[test]
fn guard_mark() {
    let (refused, lost) = flip_in_the_middle(Guards::default());
    assert!(refused > 50, "{refused}");
    assert_eq!(lost, 0);
    let (_, lost) = flip_in_the_middle(Guards {
        mark: false,
        ..Guards::default()
    });
    assert!(lost > 0, "no seed noticed that the mark is gone");
}

#[test]
fn damage_is_told_with_file_offset_loss_and_advice() {
    let (fs, _, _) = small_log(true);
    let path = &segments(&fs)[0];
    fs.flip_bit(path, 4096 + 80, 0).unwrap();
    let error = Server::open(&fs).err().unwrap();
    let OpenError::Damaged(damage) = &error else {
        panic!("{error}")
    };
    assert_eq!((&damage.file, damage.offset), (path, 4096));
    let text = error.to_string();
    for part in [
        path.to_str().unwrap(),
        "offset 4096",
        "frames 1 to",
        "restore a backup",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(
        check(fs.shared(), &dir(), None).err().unwrap().to_string(),
        text
    );
}

/// A directory with a snapshot and several segments.
fn larger(seed: u64, rounds: u8) -> (SimFs, Server) {
    let fs = SimFs::new(seed);
    let (mut server, _) = Server::open(&fs).unwrap();
    fill(&fs, &mut server, rounds);
    (fs, server)
}

fn fill(fs: &SimFs, server: &mut Server, rounds: u8) {
    for n in 0..rounds {
        server.put(&format!("p{n}"), &[n; 5000]);
        if n % 15 == 14 {
            let at = server.journal.snapshot_position(|| ()).unwrap().0;
            snapshot(fs, &server.store, at).unwrap();
            server.journal.allocator().retire(at).unwrap();
        }
    }
}

#[test]
fn a_lost_file_is_refused_or_harmless() {
    let (fs, server) = larger(1, 50);
    server.journal.allocator().step().unwrap();
    let store = server.store.clone();
    server.close().unwrap();
    let mut refused = 0;
    for path in fs.list() {
        let fs = fs.kill(0);
        fs.lose(&path).unwrap();
        match Server::open(&fs) {
            Ok((server, _)) => assert_eq!(server.store, store, "{}", path.display()),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("restore"), "{error}");
            }
        }
    }
    assert!(refused >= 3, "{refused}");
}

#[test]
fn old_and_new_files_do_not_mix() {
    // One directory, copied; both copies go on, with other writes of the same size.
    let (fs, server) = larger(1, 20);
    server.close().unwrap();
    let branch = |letter: &str| {
        let fs = fs.kill(0);
        let (mut server, _) = Server::open(&fs).unwrap();
        for n in 0..12 {
            server.put(&format!("p{letter}{n}"), &[1; 5000]);
        }
        let store = server.store.clone();
        server.close().unwrap();
        (fs, store)
    };
    let ((left, left_store), (right, right_store)) = (branch("l"), branch("r"));
    let mut refused = 0;
    for (old, old_store) in [(&left, &left_store), (&fs.kill(0), &left_store)] {
        for path in old.list() {
            let mixed = right.kill(0);
            mixed
                .set_contents(&path, &old.contents(&path).unwrap())
                .unwrap();
            match Server::open(&mixed) {
                Ok((server, _)) => assert!(
                    server.store == right_store || server.store == *old_store,
                    "{} made a store that never was",
                    path.display()
                ),
                Err(error) => {
                    refused += 1;
                    assert!(
                        error.to_string().contains("copy of the whole directory"),
                        "{error}"
                    );
                }
            }
        }
    }
    assert!(refused >= 3, "{refused}");
}

#[test]
fn a_segment_of_another_directory_is_refused() {
    let (fs, server) = larger(1, 8);
    server.close().unwrap();
    let other = SimFs::new(2);
    let mut options = options();
    options.new.salt += 1;
    options.new.cluster_id += 1;
    let (mut server, _) = Server::open_with(&other, options).unwrap();
    fill(&other, &mut server, 8);
    server.close().unwrap();
    for path in segments(&other)
        .into_iter()
        .filter(|path| segments(&fs).contains(path))
        .take(2)
    {
        let mixed = fs.kill(0);
        mixed
            .set_contents(&path, &other.contents(&path).unwrap())
            .unwrap();
        assert!(Server::open(&mixed).is_err(), "{}", path.display());
    }
}

/// Files copied one after another, each in pieces, while commits, snapshots and retires go
/// on: the copy starts with a state that was, or is refused.
#[test]
fn a_copy_of_a_running_directory_starts_correctly_or_is_refused() {
    let (mut started, mut refused) = (0, 0);
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let (fs, mut server) = larger(seed, 10 + random.below(20) as u8);
        let mut history = vec![server.store.clone()];
        let copy = SimFs::new(seed);
        for sub in ["/data", "/data/log", "/data/snap"] {
            files::FileSystem::create_dir(&copy, sub.as_ref()).unwrap();
        }
        let pace = 1 + random.below(30);
        let mut work = |server: &mut Server, random: &mut Random| {
            for _ in 0..random.below(4) {
                if random.below(30) < pace {
                    server.put(
                        &format!("pc{}", random.below(100)),
                        &vec![1; random.below(9000) as usize],
                    );
                    history.push(server.store.clone());
                }
                if random.one_in(12) {
                    let at = server.journal.snapshot_position(|| ()).unwrap().0;
                    snapshot(&fs, &server.store, at).unwrap();
                    server.journal.allocator().retire(at).unwrap();
                }
            }
        };
        let mut vanished = false;
        let mut names = fs.list();
        if random.one_in(2) {
            names.reverse();
        }
        for path in names {
            // A name that is gone by then fails the copy: cp and tar say so.
            let Ok(file) = files::FileSystem::open(&fs, &path, false) else {
                vanished = true;
                continue;
            };
            let length = file.len().unwrap();
            let mut bytes = Vec::new();
            let piece = [4096, 16384, 1 << 20][random.below(3) as usize];
            while (bytes.len() as u64) < length {
                let mut buffer = vec![0; piece];
                let n = file.read_at(&mut buffer, bytes.len() as u64).unwrap();
                if n == 0 {
                    break;
                }
                bytes.extend_from_slice(&buffer[..n]);
                work(&mut server, &mut random);
            }
            copy.set_contents(&path, &bytes).unwrap();
        }
        match Server::open(&copy) {
            Ok(_) if vanished => {}
            Ok((server, _)) => {
                started += 1;
                assert!(
                    history.contains(&server.store),
                    "seed {seed}: a state that never was"
                );
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains("copy"), "seed {seed}: {text}");
            }
        }
    }
    assert!(
        started > 20 && refused > 20,
        "{started} started, {refused} refused"
    );
}

#[test]
fn a_newer_format_is_refused() {
    let (fs, _, _) = small_log(true);
    let text = String::from_utf8(fs.contents("/data/format".as_ref()).unwrap()).unwrap();
    fs.set_contents(
        "/data/format".as_ref(),
        text.replace("version 1", "version 9").as_bytes(),
    )
    .unwrap();
    let error = Server::open(&fs).err().unwrap();
    assert!(matches!(error, OpenError::UnknownVersion { .. }), "{error}");
    assert!(error.to_string().contains("newer"), "{error}");
}

/// A page that looks like a frame of `segment` that reaches to the end of the file, and says
/// that all is synced.
fn forge(page: &mut [u8], segment: &[u8], rest_bytes: usize) {
    page[..64].fill(0);
    page[0..4].copy_from_slice(b"oFrm");
    page[8..12].copy_from_slice(&(rest_bytes as u32 - 64).to_le_bytes());
    page[16..24].copy_from_slice(segment);
    page[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
}

/// Clients choose the bytes of their values, and recycled segments hold them.
#[test]
fn bytes_that_look_like_frames_are_read_once() {
    let fs = SimFs::new(7);
    let mut options = options();
    options.segment_bytes = 4 << 20;
    let (mut server, _) = Server::open_with(&fs, options.clone()).unwrap();
    server.put("p1", &[1; 1000]);
    let store = server.store.clone();
    server.journal.allocator().step().unwrap();
    drop(server);
    let (mut pages, mut total) = (0, 0);
    for path in segments(&fs) {
        let mut bytes = fs.contents(&path).unwrap();
        let (segment, length) = (bytes[16..24].to_owned(), bytes.len());
        for at in (4096..length).step_by(4096) {
            if bytes[at..at + 4] == [0; 4] {
                forge(&mut bytes[at..at + 4096], &segment, length - at);
                pages += 1;
            }
        }
        total += length as u64;
        fs.set_contents(&path, &bytes).unwrap();
    }
    let fs = fs.kill(1);
    let (server, _) = Server::open_with(&fs, options).unwrap();
    let read_bytes = fs.counts().read_bytes;
    assert_eq!(server.store, store);
    assert!(
        pages > 100 && read_bytes < 2 * total,
        "{pages} {total} {read_bytes}"
    );
}

#[test]
fn a_mark_behind_bytes_that_look_like_frames_is_found() {
    let (fs, _, _) = small_log(true);
    let path = &segments(&fs)[0];
    let mut bytes = fs.contents(path).unwrap();
    let (segment, length) = (bytes[16..24].to_owned(), bytes.len());
    forge(&mut bytes[4096..8192], &segment, length - 4096);
    fs.set_contents(path, &bytes).unwrap();
    let error = Server::open(&fs).err().unwrap();
    assert!(matches!(error, OpenError::Damaged(_)), "{error}");
}
