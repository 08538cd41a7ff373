//! What goes in comes out: restarts, segments, snapshots, full disks, locks.

use crate::support::*;
use files::sim::{Call, SimFs};
use journal::{CommitError, DirState, OpenError, check, inspect};
use std::io::ErrorKind;

fn reopened(fs: &SimFs) -> Server {
    Server::open(fs).unwrap_or_else(|error| panic!("{error}")).0
}

#[test]
fn records_come_back_in_order_after_restarts() {
    let fs = SimFs::new(1);
    let mut expected = Store::new();
    for round in 0..20 {
        let (mut server, report) = Server::open(&fs).unwrap();
        assert_eq!(report.created, round == 0);
        assert_eq!(server.store, expected, "round {round}");
        assert_eq!(report.identity.cluster_id, 0xc1);
        for n in 0..round {
            server.put(&format!("p{round}/{n}"), &vec![n as u8; 700 * n as usize]);
        }
        expected = server.store.clone();
        if round % 2 == 0 {
            server.close().unwrap();
        }
    }
}

#[test]
fn a_commit_is_one_write_and_one_sync() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p", b"first");
    let before = fs.counts();
    server.put("p", &[7; 9000]);
    let after = fs.counts();
    assert_eq!(after.writes - before.writes, 1);
    assert_eq!(after.sync_data - before.sync_data, 1);
    assert_eq!(after.sync_dir - before.sync_dir, 0);
}

#[test]
fn a_commit_larger_than_a_segment_gets_one_of_its_size() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p1", &[1; 1000]);
    server.put("p2", &[2; 1_000_000]);
    server.put("p3", &[3; 1000]);
    let expected = server.store.clone();
    drop(server);
    assert_eq!(reopened(&fs).store, expected);
}

#[test]
fn a_snapshot_takes_the_place_of_segments_and_they_are_used_again() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    let mut sizes = Vec::new();
    for round in 0..30 {
        for n in 0..10 {
            server.put(&format!("p{round}/{n}"), &[round; 3000]);
        }
        let at = server.journal.snapshot_position(|| ()).unwrap().0;
        snapshot(&fs, &server.store, at).unwrap();
        let retired = server.journal.allocator().retire(at).unwrap();
        assert!(retired.segments > 0);
        assert_eq!(server.journal.bytes_since_snapshot(), 0);
        sizes.push(server.journal.log_bytes());
    }
    assert!(
        sizes.iter().all(|bytes| *bytes <= 6 * 32 * 1024),
        "{sizes:?}"
    );
    let expected = server.store.clone();
    server.put("p", b"after the snapshot");
    drop(server);
    let (server, report) = Server::open(&fs).unwrap();
    assert_eq!(server.store.records.len(), expected.records.len() + 1);
    assert_eq!(report.frames, 1);
    assert!(report.snapshot_lsn > 0);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
}

#[test]
fn a_key_with_many_versions_and_large_values_goes_through_a_snapshot() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    let mut noise = files::sim::Random::new(3);
    let value: Vec<u8> = (0..90_000).map(|_| noise.next_u64() as u8).collect();
    let mut record = put("p", &value);
    if let engine::record::Record::Txn(effects) = &mut record
        && let engine::record::Effect::Put { lease, .. } = &mut effects[0]
    {
        *lease = 50; // 50 versions of it in the test's snapshots: several blocks
    }
    server.commit(vec![record]).unwrap();
    server.put("plarge", &vec![5; 2_000_000]);
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    snapshot(&fs, &server.store, at).unwrap();
    server.journal.allocator().retire(at).unwrap();
    let expected = server.store.clone();
    drop(server);
    let (server, report) = Server::open(&fs).unwrap();
    assert_eq!(report.snapshot_lsn, 2);
    assert_eq!(server.store.records, expected.records);
}

#[test]
fn a_restart_that_writes_little_takes_little_room() {
    let fs = SimFs::new(1);
    drop(Server::open(&fs).unwrap());
    for n in 0..50 {
        let (mut server, _) = Server::open(&fs).unwrap();
        server.put(&format!("p{n}"), b"x");
        server.close().unwrap();
    }
    assert!(fs.used() < 50 * 3 * 4096 + 8 * 32 * 1024, "{}", fs.used());
    assert_eq!(reopened(&fs).store.records.len(), 50);
}

#[test]
fn a_full_disk_is_told_before_use_and_writes_come_back() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p", b"x");
    fs.set_capacity(Some(fs.used() + 10_000));
    let mut written = 1;
    let error = loop {
        match server.commit(vec![put(&format!("p{written}"), &[1; 5000])]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100);
    };
    assert!(matches!(error, CommitError::NoSpace { .. }), "{error}");
    assert!(matches!(
        server.journal.ensure_room(),
        Err(CommitError::NoSpace { .. })
    ));
    assert!(server.journal.allocator().problem().is_some());
    assert!(server.journal.poisoned().is_none());

    let (full, report) = {
        // A start on the full disk reads everything, and refuses writes.
        let other = fs.kill(2);
        let (mut server, report) = Server::open(&other).unwrap();
        assert!(matches!(
            server.commit(vec![put("p", b"y")]),
            Err(CommitError::NoSpace { .. }) | Ok(_)
        ));
        (server.store.records.len(), report)
    };
    assert!(full >= written, "{full} {}", report.no_space);

    fs.set_capacity(None);
    server.journal.ensure_room().unwrap();
    server.put("plast", b"y");
    let expected = server.store.clone();
    drop(server);
    assert_eq!(reopened(&fs).store, expected);
}

#[test]
fn a_write_that_finds_the_disk_full_leaves_the_log_as_it_was() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p1", b"x");
    // The second time, taking back what was written finds no room either.
    for times in [1, 2] {
        fs.fail(Call::Write, 0, times, ErrorKind::StorageFull);
        let result = server.commit(vec![put("pno", &[9; 12_150])]);
        assert!(matches!(result, Err(CommitError::NoSpace { .. })));
    }
    server.put("p2", b"y");
    let expected = server.store.clone();
    drop(server);
    assert_eq!(reopened(&fs).store, expected);
}

#[test]
fn a_first_write_that_finds_the_disk_full_can_be_followed_by_a_larger_one() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p1", b"x");
    drop(server);
    let (mut server, _) = Server::open(&fs).unwrap();
    fs.fail(Call::Write, 0, 1, ErrorKind::StorageFull);
    assert!(server.commit(vec![put("pno", &[9; 9000])]).is_err());
    server.put("p2", &[1; 200_000]);
    server.put("p3", b"z");
    let expected = server.store.clone();
    drop(server);
    assert_eq!(reopened(&fs).store, expected);
}

#[test]
fn a_failed_sync_ends_all_commits() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p1", b"x");
    fs.fail(Call::SyncData, 0, 1, ErrorKind::Other);
    for _ in 0..3 {
        let error = server.commit(vec![put("p2", b"y")]).unwrap_err();
        assert!(matches!(error, CommitError::Poisoned { .. }), "{error}");
        assert!(error.to_string().contains("/data/log/"), "{error}");
    }
    assert!(server.journal.poisoned().is_some());
    assert!(matches!(
        server.journal.mark(|| 3),
        Err(CommitError::Poisoned { .. })
    ));
    assert!(matches!(
        server.journal.ensure_room(),
        Err(CommitError::Poisoned { .. })
    ));
    assert!(server.close().is_err());
}

#[test]
fn what_a_failed_sync_left_readable_is_on_disk_before_it_is_served() {
    for seed in 0..200 {
        let fs = SimFs::new(seed);
        let (mut server, _) = Server::open(&fs).unwrap();
        server.put("p1", b"x");
        fs.fail(Call::SyncData, 0, 1, ErrorKind::Other);
        assert!(server.commit(vec![put("p2", &[3; 9000])]).is_err());
        drop(server);
        what_was_served_stays(&fs, seed, SimFs::power_loss);
    }
}

/// The process restarts on the same machine, and reads what the cache shows; the start after
/// the cache is lost finds the same.
fn what_was_served_stays(fs: &SimFs, seed: u64, lose: impl Fn(&SimFs, u64) -> SimFs) {
    let fs = fs.kill(seed);
    let (server, _) = Server::open(&fs).unwrap();
    let served = server.store.clone();
    drop(server);
    let fs = lose(&fs, seed);
    let (server, _) = Server::open(&fs).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    assert_eq!(server.store, served, "seed {seed}");
}

#[test]
fn what_a_failed_sync_left_unreadable_does_not_come_back() {
    for seed in 0..1000 {
        let fs = SimFs::new(seed);
        let (mut server, _) = Server::open(&fs).unwrap();
        server.put("p1", b"x");
        // All of a frame is written, and reported as without room; it is taken back, which the
        // disk does not get.
        fs.fail(Call::Write, 0, 1, ErrorKind::StorageFull);
        fs.fail(Call::SyncData, 0, 1, ErrorKind::Other);
        assert!(server.commit(vec![put("p2", &[3; 300])]).is_err());
        drop(server);
        what_was_served_stays(&fs, seed, SimFs::lose_cache);
    }
}

#[test]
fn a_failed_snapshot_leaves_nothing_and_harms_nothing() {
    for (call, after) in [
        (Call::Create, 0),
        (Call::Write, 0),
        (Call::Write, 1),
        (Call::SyncData, 0),
        (Call::Rename, 0),
    ] {
        let fs = SimFs::new(1);
        let (mut server, _) = Server::open(&fs).unwrap();
        server.put("p1", b"x");
        let at = server.journal.snapshot_position(|| ()).unwrap().0;
        fs.fail(call, after, 1, ErrorKind::StorageFull);
        let error = snapshot(&fs, &server.store, at).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert!(
            fs.list().iter().all(|path| !path.starts_with("/data/snap")),
            "{:?}",
            fs.list()
        );
        assert!(server.journal.allocator().retire(at).is_err());
        server.put("p2", b"y");
        let expected = server.store.clone();
        drop(server);
        assert_eq!(reopened(&fs).store, expected);
    }
}

#[test]
fn one_process_at_a_time() {
    let fs = SimFs::new(1);
    let (server, _) = Server::open(&fs).unwrap();
    assert!(matches!(Server::open(&fs), Err(OpenError::Locked { .. })));
    assert!(matches!(
        check(fs.shared(), &dir(), None),
        Err(OpenError::Locked { .. })
    ));
    drop(server);
    let report = check(fs.shared(), &dir(), None).unwrap();
    assert_eq!(report.revision, 1);
    reopened(&fs);
}

#[test]
fn check_tells_what_a_start_would_find() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    for n in 0..20 {
        server.put(&format!("p{n}"), &[0; 3000]);
    }
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    snapshot(&fs, &server.store, at).unwrap();
    server.journal.allocator().retire(at).unwrap();
    server.put("p", b"x");
    let revision = server.store.revision;
    server.close().unwrap();
    let before: Vec<_> = fs
        .list()
        .iter()
        .map(|path| fs.contents(path).unwrap())
        .collect();
    let report = check(fs.shared(), &dir(), None).unwrap();
    assert_eq!(
        (report.revision, report.snapshot_items, report.records),
        (revision, 20, 1)
    );
    assert!(report.closed);
    let text = report.to_string();
    assert!(
        text.contains("can be started from") && text.contains("closed the log"),
        "{text}"
    );
    let after: Vec<_> = fs
        .list()
        .iter()
        .map(|path| fs.contents(path).unwrap())
        .collect();
    assert_eq!(before, after);
}

#[test]
fn etcd_directories_are_refused_and_etcd_cannot_use_ours() {
    let fs = SimFs::new(1);
    assert_eq!(inspect(&fs, &dir()).unwrap(), DirState::Absent);
    files::FileSystem::create_dir(&fs, &dir().join("member")).unwrap();
    assert_eq!(inspect(&fs, &dir()).unwrap(), DirState::Etcd);
    let error = Server::open(&fs).err().unwrap();
    assert!(matches!(error, OpenError::EtcdDirectory { .. }));
    assert!(error.to_string().contains("--data-dir"), "{error}");

    let fs = SimFs::new(1);
    drop(Server::open(&fs).unwrap());
    assert_eq!(inspect(&fs, &dir()).unwrap(), DirState::Orlop);
    assert!(
        fs.contents(&dir().join("member"))
            .unwrap()
            .starts_with(b"This is an orlop")
    );
}

#[test]
fn marks_are_written_once_and_count_as_nothing() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p1", b"x");
    let before = fs.counts();
    for _ in 0..5 {
        server.journal.mark(|| server.store.revision).unwrap();
    }
    assert_eq!(fs.counts().writes - before.writes, 1);
    assert_eq!(fs.counts().sync_data, before.sync_data);
    server.put("p2", b"y");
    let expected = server.store.clone();
    drop(server);
    assert_eq!(reopened(&fs).store, expected);
}

/// What fails while a file is made that holds no frame yet is tried again, and ends nothing.
#[test]
fn errors_of_a_future_segment_end_nothing() {
    let kinds = [
        ErrorKind::Other,
        ErrorKind::OutOfMemory,
        ErrorKind::PermissionDenied,
        ErrorKind::StorageFull,
    ];
    let calls = [
        Call::Create,
        Call::Allocate,
        Call::Write,
        Call::SyncData,
        Call::Rename,
        Call::SyncDir,
    ];
    for (call, kind) in calls.into_iter().flat_map(|c| kinds.map(|k| (c, k))) {
        let fs = SimFs::new(1);
        let (mut server, _) = Server::open(&fs).unwrap();
        server.put("p0", b"x");
        let allocator = server.journal.allocator();
        let files = fs.list().len();
        fs.fail(call, 0, 3, kind);
        for _ in 0..3 {
            let error = allocator.step().unwrap_err();
            assert!(error.is_no_room(), "{call:?} {kind}: {error}");
            assert!(error.to_string().contains("/data/log"), "{error}");
            assert!(allocator.problem().is_some());
        }
        server.put("p", b"there is room in this one");
        assert!(fs.list().len() <= files + 1, "{call:?}: {:?}", fs.list());
        // Without a segment writes are refused, until one can be made.
        if !matches!(call, Call::Write | Call::SyncData) {
            fs.fail(call, 0, u64::MAX, kind);
            let refused = (0..20)
                .find_map(|n| server.commit(vec![put(&format!("p{n}"), &[1; 3000])]).err())
                .unwrap();
            assert!(refused.is_no_room(), "{call:?} {kind}: {refused}");
        }
        assert!(server.journal.poisoned().is_none());
        fs.heal();
        server.journal.ensure_room().unwrap();
        assert!(allocator.problem().is_none());
        for n in 0..20 {
            server.put(&format!("pl{n}"), &[2; 3000]);
        }
        let expected = server.store.clone();
        drop(server);
        assert_eq!(
            reopened(&fs.power_loss(2)).store,
            expected,
            "{call:?} {kind}"
        );
    }
}

#[test]
fn a_spare_segment_that_cannot_be_synced_is_not_used() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    for n in 0..20 {
        server.put(&format!("p{n}"), &[1; 3000]);
    }
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    snapshot(&fs, &server.store, at).unwrap();
    server.journal.allocator().retire(at).unwrap();
    let spares = |fs: &SimFs| {
        let spare = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "spare");
        fs.list().iter().filter(spare).count()
    };
    let before = spares(&fs);
    assert!(before > 0);
    fs.fail(Call::SyncData, 0, 1, ErrorKind::Other);
    let allocator = server.journal.allocator();
    assert!(allocator.step().unwrap_err().is_no_room());
    assert!(allocator.step().unwrap());
    assert!(server.journal.poisoned().is_none());
    assert_eq!(spares(&fs), before - 2, "one is in use, one is gone");
}

fn file_bytes(fs: &SimFs) -> usize {
    let files = fs.list();
    files
        .iter()
        .map(|path| fs.contents(path).unwrap().len())
        .sum()
}

/// The sizes that a server has.
fn large_segments() -> journal::Options {
    let mut options = options();
    options.segment_bytes = 64 << 20;
    options
}

#[test]
fn segments_grow_with_the_log() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open_with(&fs, large_segments()).unwrap();
    server.put("p", b"x");
    server.journal.allocator().step().unwrap();
    assert!(file_bytes(&fs) < 1 << 20, "{}", file_bytes(&fs));
    let mut written = 0;
    let mut sizes = std::collections::BTreeSet::new();
    for n in 0..20 {
        written += server.put(&format!("p{n}"), &[1; 1 << 20]).bytes as usize;
        server.journal.allocator().step().unwrap();
        assert!(file_bytes(&fs) < 4 * written + (4 << 20), "{written}");
        let files = fs.list().into_iter();
        sizes.extend(files.map(|path| fs.contents(&path).unwrap().len()));
    }
    assert!(sizes.contains(&(16 << 20)), "{sizes:?}");
}

#[test]
fn a_start_that_adds_nothing_adds_nothing() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open_with(&fs, large_segments()).unwrap();
    for n in 0..3 {
        server.put(&format!("p{n}"), &[1; 800_000]);
    }
    server.journal.allocator().step().unwrap();
    server.close().unwrap();
    let start = |write: bool| {
        let (mut server, _) = Server::open_with(&fs, large_segments()).unwrap();
        if write {
            server.put("p", b"x");
        }
        server.journal.allocator().step().unwrap();
        server.close().unwrap();
        (fs.used(), fs.list().len(), file_bytes(&fs))
    };
    start(false);
    let first = start(false);
    for _ in 0..5 {
        assert_eq!(start(false), first);
    }
    // One that adds little adds little.
    start(true);
    let (used, ..) = start(false);
    for n in 1..5 {
        start(true);
        let (now, ..) = start(false);
        assert!(now <= used + n * 5 * 4096, "{n}: {now}, {used} at first");
    }
}

/// As a release before this one left it: 64 MiB made ahead, and spare ones.
#[test]
fn what_a_small_log_does_not_need_goes() {
    let fs = SimFs::new(1);
    let mut options = large_segments();
    options.segment_bytes = 4 << 20;
    let (mut server, _) = Server::open_with(&fs, options.clone()).unwrap();
    for n in 0..40 {
        server.put(&format!("p{n}"), &[1; 1 << 20]);
    }
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    snapshot(&fs, &server.store, at).unwrap();
    server.journal.allocator().retire(at).unwrap();
    server.put("p", b"x");
    assert!(fs.used() > 8 << 20);
    server.close().unwrap();
    let (server, _) = Server::open_with(&fs, options).unwrap();
    server.journal.allocator().step().unwrap();
    let bytes = server.journal.log_bytes();
    assert!(bytes < 3 << 20, "no spare one: {bytes}");
}
