//! The steps of a write, several at a time, and who follows them.

use crate::support::*;
use engine::record::Record;
use files::sim::{MEMORY, SimFs};
use journal::{CommitError, Follower, Journal, Lane, Next};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LATER: Duration = Duration::from_secs(30);

/// A store's revision, and what became visible in which order.
struct Steps {
    journal: Journal,
    revision: Cell<i64>,
    visible: std::cell::RefCell<Vec<String>>,
}

impl Steps {
    fn open(fs: &SimFs) -> (Steps, Store) {
        let mut options = options();
        options.marker_dir = Some(PathBuf::from(MEMORY));
        let mut store = Store::new();
        let (journal, _) = Journal::open(fs.shared(), Path::new(DIR), options, &mut store).unwrap();
        let steps = Steps {
            journal,
            revision: Cell::new(store.revision),
            visible: std::cell::RefCell::default(),
        };
        (steps, store)
    }

    /// With an epoch.
    fn accepting(fs: &SimFs) -> Steps {
        let (mut steps, _) = Steps::open(fs);
        steps.journal.allow_volatile();
        let revision = steps.revision.get();
        steps.journal.upkeep(|| revision).unwrap();
        steps
    }

    fn append(&mut self, key: &str) -> journal::Appended<Vec<Record>> {
        let revision = self.revision.get();
        self.journal
            .append(vec![put(key, b"durable")], || revision)
            .unwrap()
    }

    fn show(&self, key: &str) {
        self.revision.set(self.revision.get() + 1);
        self.visible.borrow_mut().push(key.to_owned());
    }

    fn order(&self, appended: journal::Appended<Vec<Record>>, key: &str) -> bool {
        let ordered = self
            .journal
            .order(appended, || self.revision.get())
            .unwrap();
        assert_eq!(ordered.revision_before(), self.revision.get());
        ordered.release(|| self.show(key)).0.stamped
    }

    fn volatile(&self, key: &str) {
        let records = [put(key, b"volatile")];
        let revision = || self.revision.get();
        self.journal
            .volatile()
            .write(&records, LATER, revision, || self.show(key))
            .unwrap();
    }
}

fn key(record: &Record) -> String {
    match record {
        Record::Txn(effects) => match &effects[0] {
            engine::record::Effect::Put { key, .. } => String::from_utf8(key.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

fn keys(store: &Store) -> Vec<String> {
    store.records.iter().map(key).collect()
}

#[test]
fn frames_in_flight_are_replayed_in_the_order_of_visibility() {
    for with_volatile in [false, true] {
        let fs = SimFs::new(1);
        let mut steps = Steps::accepting(&fs);
        let (a, b, c) = (steps.append("pa"), steps.append("pb"), steps.append("pc"));
        if with_volatile {
            steps.volatile("pv1");
        }
        steps.journal.sync().unwrap();
        assert!(
            steps.order(c, "pc"),
            "the log has to say that it came first"
        );
        if with_volatile {
            steps.volatile("pv2");
        }
        steps.order(a, "pa");
        steps.order(b, "pb");
        steps.volatile("plast");
        let visible = steps.visible.borrow().clone();
        drop(steps);
        let (steps, store) = Steps::open(&fs.kill(1));
        assert_eq!(keys(&store), visible);
        drop(steps);
        // All that is visible was synced when the last process closed nothing: a power loss
        // takes volatile records and stamps at most.
        let (_, store) = Steps::open(&fs.power_loss(2));
        for durable in ["pa", "pb", "pc"] {
            assert!(keys(&store).contains(&durable.to_owned()), "{durable}");
        }
    }
}

#[test]
fn without_an_epoch_frames_become_visible_as_they_were_written() {
    let fs = SimFs::new(1);
    let (mut steps, _) = Steps::open(&fs);
    let (a, b) = (steps.append("pa"), steps.append("pb"));
    // Not on disk yet.
    let refused = steps
        .journal
        .order(a, || steps.revision.get())
        .err()
        .unwrap();
    assert!(matches!(*refused.reason, CommitError::Unordered { .. }));
    let a = refused.appended;
    steps.journal.sync().unwrap();
    // Not its turn.
    let refused = steps
        .journal
        .order(b, || steps.revision.get())
        .err()
        .unwrap();
    assert!(matches!(*refused.reason, CommitError::Unordered { .. }));
    steps.order(a, "pa");
    steps.order(refused.appended, "pb");
    let c = steps.append("pc");
    steps.journal.sync().unwrap();
    steps.order(c, "pc");
    drop(steps);
    let (_, store) = Steps::open(&fs.power_loss(1));
    assert_eq!(keys(&store), ["pa", "pb", "pc"]);
}

#[test]
fn what_is_in_flight_keeps_snapshots_ends_and_new_epochs_away() {
    let fs = SimFs::new(1);
    let (mut steps, _) = Steps::open(&fs);
    let a = steps.append("pa");
    let unordered = |result: Result<(), CommitError>| {
        assert!(
            matches!(result, Err(CommitError::Unordered { .. })),
            "{result:?}"
        );
    };
    unordered(steps.journal.snapshot_position(|| ()).map(drop));
    steps.journal.allow_volatile();
    let revision = steps.revision.get();
    unordered(steps.journal.upkeep(|| revision).map(drop));
    steps.journal.sync().unwrap();
    steps.order(a, "pa");
    let revision = steps.revision.get();
    steps.journal.upkeep(|| revision).unwrap();
    let b = steps.append("pb");
    let revision = steps.revision.get();
    unordered(steps.journal.close_epoch(|| revision));
    steps.journal.sync().unwrap();
    steps.order(b, "pb");
    let revision = steps.revision.get();
    steps.journal.close(revision).unwrap();
    let (_, store) = Steps::open(&fs.power_loss(1));
    assert_eq!(keys(&store), ["pa", "pb"]);
}

fn entries(follower: &Follower) -> Vec<(Lane, i64, Vec<String>)> {
    let mut found = Vec::new();
    while let Next::Entry(entry) = follower.next(Duration::ZERO) {
        let keys = entry.records.iter().map(key).collect();
        found.push((entry.lane, entry.revision_before, keys));
    }
    found
}

#[test]
fn a_follower_gets_all_records_in_the_order_of_visibility() {
    let fs = SimFs::new(1);
    let mut steps = Steps::accepting(&fs);
    steps.volatile("pbefore");
    let (follower, at) = steps.journal.follow(1 << 20, || steps.revision.get());
    assert_eq!(at, 2);
    let a = steps.append("pa");
    steps.volatile("pv");
    steps.journal.sync().unwrap();
    steps.order(a, "pa");
    // One that takes no revision has its place too.
    let grant = Record::LeaseGrant { id: 7, ttl_s: 9 };
    let revision = || steps.revision.get();
    let records = [grant.clone()];
    let writer = steps.journal.volatile();
    writer.write(&records, LATER, revision, || ()).unwrap();
    let text = format!("{grant:?}");
    assert_eq!(
        entries(&follower),
        [
            (Lane::Volatile, 2, vec!["pv".to_owned()]),
            (Lane::Durable, 3, vec!["pa".to_owned()]),
            (Lane::Volatile, 4, vec![text]),
        ]
    );
    drop((writer, steps));
    assert!(matches!(follower.next(LATER), Next::Closed));
}

#[test]
fn a_follower_that_is_too_slow_is_told_from_where() {
    let fs = SimFs::new(1);
    let steps = Steps::accepting(&fs);
    let (slow, ()) = steps.journal.follow(100, || ());
    let (other, ()) = steps.journal.follow(1 << 20, || ());
    for key in ["p1", "p2", "p3", "p4"] {
        steps.volatile(key);
    }
    let kept = entries(&slow).len() as i64;
    assert!(kept > 0 && kept < 4);
    let Next::Missed(missed) = slow.next(LATER) else {
        panic!("it is not told");
    };
    assert_eq!(missed.revision_before, 1 + kept);
    assert_eq!(entries(&other).len(), 4, "the others are not concerned");
}

/// What a follower from elsewhere begins with: bytes, not a path.
#[test]
fn a_snapshot_goes_through_any_stream() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    for n in 0..300 {
        server.put(&format!("p{n}"), &vec![n as u8; 3000]);
    }
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    let meta = engine::record::SnapshotMeta {
        revision: server.store.revision,
        compact_revision: -1,
    };
    let mut encoder = journal::SnapshotEncoder::new(Vec::new(), meta, at).unwrap();
    for item in items(&server.store) {
        encoder.push(&item).unwrap();
    }
    let bytes = encoder.finish().unwrap();
    let read = |bytes: &[u8]| {
        let mut store = Store::new();
        let at = journal::read_snapshot(Path::new("the server"), bytes, &mut store);
        at.map(|at| (at.lsn(), store))
    };
    let (lsn, store) = read(&bytes).unwrap();
    assert_eq!((lsn, &store), (at.lsn(), &server.store));
    // The same bytes as in a file.
    snapshot(&fs, &server.store, at).unwrap();
    let path = dir().join(format!("snap/{:016x}.snap", at.lsn()));
    assert_eq!(fs.contents(&path).unwrap(), bytes);
    for length in (0..bytes.len()).step_by(97) {
        let error = read(&bytes[..length]).unwrap_err().to_string();
        assert!(error.contains("the server"), "{error}");
    }
}
