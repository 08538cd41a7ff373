//! Volatile beside durable records, one property at a time.

use crate::support::*;
use files::real::RealFs;
use files::sim::{Call, MEMORY, SimFs};
use journal::{CommitError, Journal, OpenReport, check};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const LATER: Duration = Duration::from_secs(30);

/// A server whose revision is shared by its threads.
struct Classes {
    journal: Journal,
    revision: Arc<AtomicI64>,
}

impl Classes {
    fn open(fs: &SimFs) -> (Classes, Store, OpenReport) {
        let mut options = options();
        options.marker_dir = Some(PathBuf::from(MEMORY));
        let mut store = Store::new();
        let (journal, report) =
            Journal::open(fs.shared(), Path::new(DIR), options, &mut store).unwrap();
        let revision = Arc::new(AtomicI64::new(store.revision));
        (Classes { journal, revision }, store, report)
    }

    /// Opened, and ready for volatile writes.
    fn accepting(fs: &SimFs) -> Classes {
        let (mut classes, _, _) = Classes::open(fs);
        classes.journal.allow_volatile();
        classes.upkeep().unwrap();
        classes
    }

    fn upkeep(&mut self) -> Result<Option<u64>, CommitError> {
        let revision = self.revision.clone();
        self.journal.upkeep(|| revision.load(Ordering::SeqCst))
    }

    fn volatile(&self, key: &str) -> Result<u64, CommitError> {
        volatile(&self.journal.volatile(), &self.revision, key, LATER)
    }

    fn durable(&mut self, key: &str) -> Result<(), CommitError> {
        let revision = self.revision.clone();
        let publish = || {
            revision.fetch_add(1, Ordering::SeqCst);
        };
        let records = [put(key, b"durable")];
        self.journal
            .commit(&records, || revision.load(Ordering::SeqCst), publish)
            .map(drop)
    }
}

fn volatile(
    writer: &journal::VolatileWriter,
    revision: &AtomicI64,
    key: &str,
    within: Duration,
) -> Result<u64, CommitError> {
    let publish = || {
        revision.fetch_add(1, Ordering::SeqCst);
    };
    let records = [put(key, b"volatile")];
    let (info, ()) = writer.write(
        &records,
        within,
        || revision.load(Ordering::SeqCst),
        publish,
    )?;
    Ok(info.waited_us)
}

fn names(store: &Store) -> Vec<String> {
    let text = |record: &engine::record::Record| match record {
        engine::record::Record::Txn(effects) => match &effects[0] {
            engine::record::Effect::Put { key, .. } => String::from_utf8(key.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    store.records.iter().map(text).collect()
}

#[test]
fn a_volatile_write_is_one_write_of_a_page_and_no_sync() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.durable("pd").unwrap();
    let before = fs.counts();
    assert_eq!(classes.volatile("pv").unwrap(), 0);
    let after = fs.counts();
    assert_eq!(after.sync_data, before.sync_data);
    assert_eq!(after.writes - before.writes, 2, "the frame and the marker");
    assert_eq!(after.bytes - before.bytes, 4096 + 8);
    let status = classes.journal.volatile_status();
    assert_eq!((status.unsynced_frames, status.unsynced_bytes), (1, 4096));
    assert!(status.marker.is_some() && status.epoch_bound > Some(1_000_000));
    classes.journal.sync().unwrap();
    assert_eq!(classes.journal.volatile_status().unsynced_frames, 0);
}

#[test]
fn a_durable_commit_beside_volatile_writes_is_still_one_write_and_one_sync() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.volatile("pv").unwrap();
    let before = fs.counts();
    classes.durable("pd").unwrap();
    let after = fs.counts();
    assert_eq!(after.writes - before.writes, 1);
    assert_eq!(after.sync_data - before.sync_data, 1);
}

#[test]
fn nothing_volatile_is_taken_before_it_is_allowed_or_after_the_end() {
    let fs = SimFs::new(1);
    let (mut classes, ..) = Classes::open(&fs);
    let refused = |result: Result<u64, CommitError>| result.unwrap_err();
    assert!(matches!(
        refused(classes.volatile("p")),
        CommitError::Strict
    ));
    classes.journal.allow_volatile();
    assert!(classes.journal.due().is_some());
    classes.upkeep().unwrap();
    assert!(classes.journal.due().is_none());
    classes.volatile("p1").unwrap();
    assert!(classes.journal.due().is_some());
    let revision = classes.revision.load(Ordering::SeqCst);
    classes.journal.close_epoch(|| revision).unwrap();
    assert!(matches!(
        refused(classes.volatile("p")),
        CommitError::Strict
    ));
    assert_eq!(classes.journal.volatile_status().epoch_bound, None);
    let writer = classes.journal.volatile();
    classes.journal.close(revision).unwrap();
    let in_memory = |path: &PathBuf| path.starts_with(MEMORY);
    assert!(!fs.list().iter().any(in_memory), "the marker is gone");
    assert!(matches!(
        refused(volatile(&writer, &classes.revision, "p", LATER)),
        CommitError::Closed
    ));
}

/// Volatile writes that become visible while a commit syncs come before it, and a start
/// applies them in that order.
#[test]
fn revisions_are_those_of_visibility() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.volatile("p1").unwrap();
    let (writer, revision) = (classes.journal.volatile(), classes.revision.clone());
    fs.during_next_sync(move || {
        for key in ["p2", "p3"] {
            volatile(&writer, &revision, key, LATER).unwrap();
        }
    });
    classes.durable("p4").unwrap();
    classes.volatile("p5").unwrap();
    drop(classes);
    let (_, store, report) = Classes::open(&fs.kill(1));
    assert_eq!(names(&store), ["p1", "p2", "p3", "p4", "p5"]);
    let epoch = report.epoch.unwrap();
    assert!(epoch.trusted && epoch.jumped_to.is_none(), "{epoch:?}");
}

#[test]
fn strict_leaves_no_trace_of_epochs() {
    let fs = SimFs::new(1);
    let (mut classes, ..) = Classes::open(&fs);
    for n in 0..30 {
        classes.durable(&format!("p{n}")).unwrap();
    }
    let at = classes.journal.snapshot_position(|| ()).unwrap().0;
    let store = Store {
        revision: 31,
        ..Store::new()
    };
    snapshot(&fs, &store, at).unwrap();
    classes.durable("plast").unwrap();
    let revision = classes.revision.load(Ordering::SeqCst);
    classes.journal.close_epoch(|| revision).unwrap();
    classes.journal.close(revision).unwrap();
    for path in fs.list() {
        let bytes = fs.contents(&path).unwrap();
        let version = || u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        match path.extension().and_then(|e| e.to_str()) {
            Some("seg") => {
                assert_eq!(version(), 1, "{}", path.display());
                let frames = bytes.chunks(4096).filter(|page| page.starts_with(b"oFrm"));
                assert!(frames.into_iter().all(|frame| frame[52] <= 1));
            }
            Some("snap") => assert_eq!(version(), 1),
            _ => assert!(!path.starts_with(MEMORY), "{}", path.display()),
        }
    }
}

#[test]
fn an_older_release_would_find_a_version_that_it_does_not_know() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    for n in 0..20 {
        classes.volatile(&format!("p{n}")).unwrap();
    }
    let at = classes.journal.snapshot_position(|| ()).unwrap().0;
    snapshot(&fs, &Store::new(), at).unwrap();
    let versions = |extension: &str| -> Vec<u32> {
        let files = fs.list().into_iter();
        let files = files.filter(|path| path.extension().is_some_and(|e| e == extension));
        files
            .map(|path| {
                let bytes = fs.contents(&path).unwrap();
                u32::from_le_bytes(bytes[8..12].try_into().unwrap())
            })
            .collect()
    };
    assert!(versions("seg").contains(&2), "{:?}", versions("seg"));
    assert_eq!(versions("snap"), [2]);
}

#[test]
fn an_epoch_is_renewed_before_its_revisions_are_used_up() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    let bound = |classes: &Classes| classes.journal.volatile_status().epoch_bound.unwrap();
    let first = bound(&classes);
    // As if so many revisions had been taken.
    classes.revision.store(first - 2_000_000, Ordering::SeqCst);
    let before = fs.counts().sync_data;
    classes.volatile("p1").unwrap();
    assert!(
        classes
            .journal
            .due()
            .is_some_and(|due| due <= Instant::now())
    );
    classes.upkeep().unwrap();
    assert!(bound(&classes) > first);
    assert_eq!(fs.counts().sync_data - before, 1);
    // On the way of a commit it costs nothing.
    let second = bound(&classes);
    classes.revision.store(second - 1_000, Ordering::SeqCst);
    let before = fs.counts();
    classes.durable("p2").unwrap();
    assert!(bound(&classes) > second);
    assert_eq!(fs.counts().sync_data - before.sync_data, 1);
    assert_eq!(fs.counts().writes - before.writes, 1);
}

#[test]
fn a_power_loss_goes_on_above_all_that_was_shown_and_check_says_so() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.durable("p1").unwrap();
    classes.volatile("p2").unwrap();
    drop(classes);
    let marker_dir = Path::new(MEMORY);
    let killed = fs.kill(1);
    let report = check(killed.shared(), &dir(), Some(marker_dir)).unwrap();
    let text = report.to_string();
    assert!(
        report.epoch.as_ref().unwrap().trusted && text.contains("no watcher relists"),
        "{text}"
    );
    let report = check(killed.shared(), &dir(), None).unwrap();
    assert!(!report.epoch.unwrap().trusted);

    let lost = fs.power_loss(1);
    let report = check(lost.shared(), &dir(), Some(marker_dir)).unwrap();
    let text = report.to_string();
    assert!(
        text.contains("every watcher relists") && text.contains("epoch"),
        "{text}"
    );
    let (classes, store, opened) = Classes::open(&lost);
    let epoch = opened.epoch.clone().unwrap();
    assert_eq!(Some(epoch.clone()), report.epoch);
    assert_eq!(epoch.jumped_to, Some(store.revision));
    assert_eq!(store.revision, epoch.bound + 2);
    assert_eq!(names(&store)[0], "p1");
    // That was made to last: the next start finds a plain log.
    drop(classes);
    let (_, again, report) = Classes::open(&lost.power_loss(2));
    assert_eq!(report.epoch, None);
    assert_eq!(again.records, store.records);
    assert_eq!(again.revision, store.revision);
}

#[test]
fn without_a_marker_a_killed_process_loses_nothing_but_relists() {
    let fs = SimFs::new(1);
    let open = |fs: &SimFs| {
        let mut store = Store::new();
        let (journal, report) =
            Journal::open(fs.shared(), Path::new(DIR), options(), &mut store).unwrap();
        (journal, store, report)
    };
    let (mut journal, store, report) = open(&fs);
    assert!(report.marker_problem.unwrap().contains("memory"));
    journal.allow_volatile();
    journal.upkeep(|| store.revision).unwrap();
    assert_eq!(journal.volatile_status().marker, None);
    volatile(
        &journal.volatile(),
        &AtomicI64::new(store.revision),
        "p1",
        LATER,
    )
    .unwrap();
    drop(journal);
    let (_, store, report) = open(&fs.kill(1));
    assert_eq!(names(&store), ["p1"]);
    assert!(report.epoch.unwrap().jumped_to.is_some());
}

#[test]
fn a_full_disk_refuses_volatile_writes_and_they_come_back() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    fs.set_capacity(Some(fs.used()));
    let mut written = 0;
    let error = loop {
        match classes.volatile(&format!("p{written}")) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100);
    };
    assert!(matches!(error, CommitError::NoSpace { .. }), "{error}");
    fs.set_capacity(None);
    classes.volatile("plast").unwrap();
    let error = {
        fs.fail(Call::Write, 0, 1, ErrorKind::StorageFull);
        classes.volatile("pno").unwrap_err()
    };
    assert!(matches!(error, CommitError::NoSpace { .. }), "{error}");
    classes.durable("pd").unwrap();
    drop(classes);
    let (_, store, _) = Classes::open(&fs.power_loss(1));
    assert_eq!(store.records.len(), written + 2);
}

#[test]
fn a_start_on_a_full_disk_within_an_epoch_serves_what_it_finds() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.durable("p1").unwrap();
    classes.volatile("p2").unwrap();
    drop(classes);
    let fs = fs.kill(1);
    fs.set_capacity(Some(fs.used()));
    let (mut classes, store, report) = Classes::open(&fs);
    assert!(report.no_space && report.epoch.unwrap().trusted);
    assert_eq!(names(&store), ["p1", "p2"]);
    assert!(classes.durable("pno").is_err());
    assert!(classes.journal.volatile_status().epoch_bound.is_some());
    drop(classes);
    // Killed again it is still trusted; the first commit closes the epoch.
    let fs = fs.kill(2);
    let (mut classes, _, report) = Classes::open(&fs);
    assert!(report.epoch.unwrap().trusted);
    fs.set_capacity(None);
    classes.journal.ensure_room().unwrap();
    classes.durable("p3").unwrap();
    assert_eq!(classes.journal.volatile_status().epoch_bound, None);
    drop(classes);
    let (_, store, report) = Classes::open(&fs.power_loss(3));
    assert_eq!(names(&store), ["p1", "p2", "p3"]);
    assert_eq!(report.epoch, None);
}

#[test]
fn a_marker_that_cannot_be_changed_is_removed() {
    let fs = SimFs::new(1);
    let classes = Classes::accepting(&fs);
    fs.fail(Call::WriteMemory, 0, 1, ErrorKind::Other);
    classes.volatile("p1").unwrap();
    assert_eq!(classes.journal.volatile_status().marker, None);
    drop(classes);
    let (_, store, report) = Classes::open(&fs.kill(1));
    assert!(!report.epoch.unwrap().trusted);
    assert_eq!(names(&store), ["p1"]);
}

#[test]
fn a_revision_that_went_backwards_is_never_written() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.volatile("p1").unwrap();
    let stale = classes.revision.load(Ordering::SeqCst) - 1;
    let error = classes.journal.commit(&[put("p2", b"x")], || stale, || ());
    assert!(matches!(error, Err(CommitError::Poisoned { .. })));
    drop(classes);
    let (_, store, _) = Classes::open(&fs.kill(1));
    assert_eq!(names(&store), ["p1"]);
}

#[test]
fn volatile_writes_wait_while_one_is_later_on_disk_than_promised() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    let (writer, revision) = (classes.journal.volatile(), classes.revision.clone());
    let promise = Duration::from_millis(1);
    assert_eq!(volatile(&writer, &revision, "p1", promise).unwrap(), 0);
    std::thread::sleep(promise * 2);
    let thread = std::thread::spawn(move || volatile(&writer, &revision, "p2", promise));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!thread.is_finished());
    assert!(classes.upkeep().unwrap().is_some());
    assert!(thread.join().unwrap().unwrap() > 0);
}

/// A log of both classes over several segments, its process killed, and what was visible.
fn mixed_log() -> (SimFs, Vec<String>, i64) {
    let fs = SimFs::new(3);
    let mut options = options();
    options.segment_bytes = 16 * 1024;
    options.marker_dir = Some(PathBuf::from(MEMORY));
    let mut store = Store::new();
    let (journal, _) = Journal::open(fs.shared(), Path::new(DIR), options, &mut store).unwrap();
    let revision = Arc::new(AtomicI64::new(store.revision));
    let mut classes = Classes { journal, revision };
    classes.durable("p0").unwrap();
    classes.journal.allow_volatile();
    classes.upkeep().unwrap();
    for key in ["p1", "p2"] {
        classes.volatile(key).unwrap();
    }
    classes.journal.sync().unwrap();
    let (writer, revision) = (classes.journal.volatile(), classes.revision.clone());
    fs.during_next_sync(move || {
        volatile(&writer, &revision, "p3", LATER).unwrap();
    });
    classes.durable("p4").unwrap();
    for key in ["p5", "p6", "p7"] {
        classes.volatile(key).unwrap();
    }
    let names = (0..8).map(|n| format!("p{n}")).collect();
    let revision = classes.revision.load(Ordering::SeqCst);
    drop(classes);
    (fs.kill(0), names, revision)
}

#[test]
fn a_flipped_bit_at_every_byte_of_both_classes_is_noticed_or_harmless() {
    let (fs, visible, revision) = mixed_log();
    let (mut refused, mut jumped, mut whole) = (0, 0, 0);
    for path in fs.list() {
        if path.extension().is_none_or(|e| e != "seg" && e != "marker") {
            continue;
        }
        for at in (0..fs.contents(&path).unwrap().len()).step_by(5) {
            let fs = fs.kill(0);
            fs.flip_bit(&path, at, (at % 8) as u8).unwrap();
            let mut options = options();
            options.marker_dir = Some(PathBuf::from(MEMORY));
            let mut store = Store::new();
            let what = format!("{} byte {at}", path.display());
            match Journal::open(fs.shared(), Path::new(DIR), options, &mut store) {
                Err(error) => {
                    assert!(error.to_string().contains("/data"), "{what}: {error}");
                    refused += 1;
                }
                Ok((_, report)) => {
                    let found = names(&store);
                    if report.epoch.is_some_and(|epoch| epoch.trusted) {
                        assert_eq!((&found, store.revision), (&visible, revision), "{what}");
                        whole += 1;
                    } else {
                        assert!(found.iter().all(|key| visible.contains(key)), "{what}");
                        assert!(found.contains(&"p2".to_owned()), "{what}: {found:?}");
                        assert!(store.revision > revision, "{what}");
                        jumped += 1;
                    }
                }
            }
        }
    }
    assert!(
        refused > 50 && jumped > 50 && whole > 1000,
        "{refused} {jumped} {whole}"
    );
}

/// A committer as the server has one: upkeep when it is due or asked for.
struct Committer {
    stop: Arc<AtomicBool>,
    signal: Arc<(Mutex<bool>, Condvar)>,
}

impl Committer {
    fn new(journal: &mut Journal) -> Committer {
        let signal = Arc::new((Mutex::new(false), Condvar::new()));
        let raise = signal.clone();
        journal.set_waker(move || {
            *raise.0.lock().unwrap() = true;
            raise.1.notify_one();
        });
        Committer {
            stop: Arc::default(),
            signal,
        }
    }

    fn wait(&self, journal: &Journal) {
        let now = Instant::now();
        let due = journal
            .due()
            .map_or(now + Duration::from_millis(50), |due| {
                due.min(now + Duration::from_millis(50))
            });
        let mut raised = self.signal.0.lock().unwrap();
        if !*raised {
            raised = self
                .signal
                .1
                .wait_timeout(raised, due.saturating_duration_since(now))
                .unwrap()
                .0;
        }
        *raised = false;
    }
}

#[test]
fn a_slow_disk_does_not_hold_back_volatile_writes() {
    let parent = tempfile::tempdir().unwrap();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let fs = RealFs::new().with_sync_delay(Duration::from_millis(100));
    let mut options = options();
    options.segment_bytes = 256 * 1024;
    options.marker_dir = Some(shm.path().to_owned());
    let dir = parent.path().join("data");
    let open = |store: &mut Store| {
        Journal::open(Arc::new(fs.clone()), &dir, options.clone(), store).unwrap()
    };
    let (mut journal, report) = open(&mut Store::new());
    assert_eq!(report.marker_problem, None);
    let allocator = journal.allocator();
    let ahead = std::thread::spawn(move || allocator.run(|_| ()));
    let committer = Committer::new(&mut journal);
    journal.allow_volatile();
    let revision = Arc::new(AtomicI64::new(1));
    journal.upkeep(|| revision.load(Ordering::SeqCst)).unwrap();
    let commits = {
        let writer = journal.volatile();
        let (writing, stop) = (revision.clone(), committer.stop.clone());
        let began = Instant::now();
        let thread = std::thread::spawn(move || {
            for n in 0..150 {
                let key = format!("pv{n}");
                volatile(&writer, &writing, &key, Duration::from_secs(2)).unwrap();
            }
            let took = began.elapsed();
            stop.store(true, Ordering::SeqCst);
            took
        });
        let mut commits = 0;
        while !committer.stop.load(Ordering::SeqCst) || commits < 2 {
            let key = format!("pd{commits}");
            let publish = || revision.fetch_add(1, Ordering::SeqCst);
            journal
                .commit(
                    &[put(&key, b"x")],
                    || revision.load(Ordering::SeqCst),
                    publish,
                )
                .unwrap();
            commits += 1;
        }
        let took = thread.join().unwrap();
        // Each behind a sync would take 15 s.
        assert!(took < Duration::from_secs(5), "{took:?}");
        commits
    };
    // As killed: nothing is closed.
    drop(journal);
    ahead.join().unwrap();
    let mut store = Store::new();
    let (journal, report) = open(&mut store);
    let epoch = report.epoch.unwrap();
    assert!(epoch.trusted, "{epoch:?}");
    assert_eq!(store.records.len(), 150 + commits);
    assert_eq!(store.revision, revision.load(Ordering::SeqCst));
    drop(journal);
    // A copy is not the log that the marker is about.
    let (mut journal, _) = open(&mut Store::new());
    journal.allow_volatile();
    journal.upkeep(|| store.revision).unwrap();
    drop(journal);
    let copy = parent.path().join("copy");
    let status = std::process::Command::new("cp")
        .args(["-a".as_ref(), dir.as_os_str(), copy.as_os_str()])
        .status();
    assert!(status.unwrap().success());
    let report = check(
        Arc::new(RealFs::new()),
        &copy,
        options.marker_dir.as_deref(),
    )
    .unwrap();
    assert!(!report.epoch.unwrap().trusted);
    let report = check(Arc::new(RealFs::new()), &dir, options.marker_dir.as_deref()).unwrap();
    assert!(report.epoch.unwrap().trusted);
}

#[test]
fn a_directory_on_a_disk_is_no_place_for_a_marker() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut options = options();
    options.marker_dir = Some(place.path().to_owned());
    let dir = place.path().join("data");
    let mut store = Store::new();
    let (_, report) = Journal::open(Arc::new(RealFs::new()), &dir, options, &mut store).unwrap();
    let problem = report.marker_problem.unwrap();
    assert!(problem.contains("tmpfs"), "{problem}");
}

/// Volatile writes from one thread and commits from another; in between all goes strict, and
/// what was answered by then is on disk.
#[test]
fn going_strict_under_load_loses_nothing() {
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let (mut classes, ..) = Classes::open(&fs);
        let committer = Committer::new(&mut classes.journal);
        let (writer, revision) = (classes.journal.volatile(), classes.revision.clone());
        let (stop, answered) = (committer.stop.clone(), Arc::new(AtomicUsize::new(0)));
        let count = answered.clone();
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                match volatile(&writer, &revision, "pv", Duration::from_millis(5)) {
                    Ok(_) => count.fetch_add(1, Ordering::SeqCst),
                    Err(CommitError::Strict) => {
                        std::thread::yield_now();
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
            }
        });
        for _ in 0..3 {
            classes.journal.allow_volatile();
            let began = Instant::now();
            let mut commits = 0;
            while commits < 5 || (answered.load(Ordering::SeqCst) == 0 && commits < 1000) {
                let revision = classes.revision.clone();
                let publish = || revision.fetch_add(1, Ordering::SeqCst);
                let ask = || revision.load(Ordering::SeqCst);
                classes
                    .journal
                    .commit(&[put("pd", b"x")], ask, publish)
                    .unwrap();
                answered.fetch_add(1, Ordering::SeqCst);
                commits += 1;
                committer.wait(&classes.journal);
                classes.upkeep().unwrap();
                assert!(began.elapsed() < Duration::from_secs(30));
            }
            let revision = classes.revision.clone();
            classes
                .journal
                .close_epoch(|| revision.load(Ordering::SeqCst))
                .unwrap();
            let visible = revision.load(Ordering::SeqCst);
            let lost = fs.power_loss(seed);
            let (_, store, report) = Classes::open(&lost);
            assert_eq!(report.epoch, None, "seed {seed}");
            assert_eq!(store.revision, visible, "seed {seed}");
        }
        committer.stop.store(true, Ordering::SeqCst);
        thread.join().unwrap();
    }
}

/// Whether the log's status can be had while the disk is busy with a sync, and whether its end
/// is free.
fn free_during_the_next_sync(fs: &SimFs, writer: &journal::VolatileWriter) -> Arc<AtomicUsize> {
    let seen = Arc::new(AtomicUsize::new(0));
    let (writer, count) = (writer.clone(), seen.clone());
    fs.during_next_sync(move || {
        let (writer, (send, receive)) = (writer.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            writer.status();
            // Only who gets the end can say that nothing volatile is accepted.
            let revision = AtomicI64::new(1);
            let answer = volatile(&writer, &revision, "p", LATER);
            send.send(matches!(answer, Err(CommitError::Strict)))
                .unwrap();
        });
        let free = receive.recv_timeout(Duration::from_secs(10)) == Ok(true);
        count.fetch_add(usize::from(free), Ordering::SeqCst);
    });
    seen
}

#[test]
fn nobody_waits_for_the_making_of_a_segment() {
    let fs = SimFs::new(1);
    let (mut classes, ..) = Classes::open(&fs);
    let mut free = None;
    for n in 0..40 {
        let seen = free_during_the_next_sync(&fs, &classes.journal.volatile());
        let before = fs.list().len();
        classes.durable(&format!("p{n}")).unwrap();
        if n > 0 && fs.list().len() > before {
            free = Some(seen.load(Ordering::SeqCst));
            break;
        }
    }
    assert_eq!(free, Some(1));
}

#[test]
fn nobody_waits_for_a_frame_to_be_taken_back() {
    let fs = SimFs::new(1);
    let (mut classes, ..) = Classes::open(&fs);
    classes.durable("p1").unwrap();
    let seen = free_during_the_next_sync(&fs, &classes.journal.volatile());
    // The next writes fail; of one or the other, something got to the file.
    for _ in 0..20 {
        fs.fail(Call::Write, 0, 1, ErrorKind::StorageFull);
        let error = classes.durable("pno").unwrap_err();
        assert!(error.is_no_room(), "{error}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

/// A start that has to note a jump needs a page; nobody can make room while nothing runs.
#[test]
fn a_start_after_a_power_loss_on_a_full_disk_uses_the_reserve() {
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let classes = Classes::accepting(&fs);
        let mut written = 0;
        fs.set_capacity(Some(fs.used()));
        while classes.volatile(&format!("p{written}")).is_ok() {
            written += 1;
        }
        assert!(written > 0);
        drop(classes);
        let fs = fs.power_loss(seed);
        fs.set_capacity(Some(fs.used()));
        let (mut classes, _, report) = Classes::open(&fs);
        assert!(report.epoch.unwrap().jumped_to.is_some());
        // No other epoch before there is a reserve again: its start would find no room.
        classes.journal.allow_volatile();
        classes.upkeep().unwrap();
        assert_eq!(
            classes.journal.volatile_status().epoch_bound,
            None,
            "{seed}"
        );
        assert!(classes.journal.ensure_room().is_err());
        drop(classes);
        let fs = fs.power_loss(seed + 1);
        fs.set_capacity(Some(fs.used()));
        let (mut classes, store, report) = Classes::open(&fs);
        assert_eq!(report.epoch, None);
        fs.set_capacity(None);
        classes.journal.ensure_room().unwrap();
        classes.journal.allow_volatile();
        classes.upkeep().unwrap();
        classes.volatile("plast").unwrap();
        drop(classes);
        let (_, after, _) = Classes::open(&fs.kill(3));
        assert_eq!(after.records.len(), store.records.len() + 1);
    }
}

#[test]
fn no_epoch_opens_without_the_page_that_its_end_may_need() {
    let fs = SimFs::new(1);
    let mut classes = Classes::accepting(&fs);
    classes.durable("p1").unwrap();
    classes.journal.allocator().step().unwrap();
    let revision = classes.revision.load(Ordering::SeqCst);
    classes.journal.close(revision).unwrap();
    fs.lose(Path::new("/data/log/reserve")).unwrap();
    let fs = fs.kill(1);
    // The room of the lost file counts until another one goes.
    fs.set_capacity(Some(fs.used() - 4 * 4096));
    let (mut classes, _, report) = Classes::open(&fs);
    assert!(!report.no_space, "a next segment was there");
    classes.journal.allow_volatile();
    classes.upkeep().unwrap();
    assert_eq!(classes.journal.volatile_status().epoch_bound, None);
    classes.durable("p2").unwrap();
    assert_eq!(classes.journal.volatile_status().epoch_bound, None);
    fs.set_capacity(None);
    classes.journal.ensure_room().unwrap();
    classes.journal.allow_volatile();
    classes.upkeep().unwrap();
    classes.volatile("p4").unwrap();
}
