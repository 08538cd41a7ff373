//! Frames that others hold until they are on disk: what waits for that, and what a start makes of
//! what they give back.

use crate::support::*;
use files::sim::{MEMORY, SimFs};
use journal::{
    Found, Guards, HeldFrame, Hold, Holder, Holders, Journal, OpenError, Options, VolatileWriter,
    recover,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LATER: Duration = Duration::from_secs(30);

fn with_marker() -> Options {
    let mut options = options();
    options.marker_dir = Some(PathBuf::from(MEMORY));
    options
}

/// A log whose frames are held, and the store that it fills.
struct Held {
    journal: Journal,
    writer: VolatileWriter,
    hold: Arc<Hold>,
    store: Arc<Mutex<Store>>,
}

impl Held {
    fn open(fs: &SimFs, holders: Holders) -> Held {
        let mut options = with_marker();
        options.holders = holders;
        let mut store = Store::new();
        let (mut journal, _) =
            Journal::open(fs.shared(), Path::new(DIR), options, &mut store).unwrap();
        journal.allow_volatile();
        let revision = store.revision;
        journal.upkeep(|| revision).unwrap();
        let hold = journal.hold().unwrap();
        Held {
            writer: journal.volatile(),
            journal,
            hold,
            store: Arc::new(Mutex::new(store)),
        }
    }

    fn revision(&self) -> impl Fn() -> i64 + Send + use<> {
        let store = self.store.clone();
        move || store.lock().unwrap().revision
    }

    /// These count from here on: the set's number.
    fn count(&mut self, names: &[&str]) -> u64 {
        let holder = |name: &&str| Holder {
            name: (*name).to_owned(),
            incarnation: 7,
        };
        let holders = names.iter().map(holder).collect();
        let revision = self.revision();
        let set = self.journal.count(holders, revision).unwrap();
        set.unwrap_or_else(|| panic!("no epoch is open")).number
    }

    /// A write on a thread of its own, which ends when it is visible.
    fn write(&self, key: &'static str) -> std::thread::JoinHandle<()> {
        let (writer, revision) = (self.writer.clone(), self.revision());
        let store = self.store.clone();
        std::thread::spawn(move || {
            let record = put(key, b"v");
            let publish = || store.lock().unwrap().apply(record.clone());
            let records = [record.clone()];
            writer.write(&records, LATER, revision, publish).unwrap();
        })
    }

    fn visible(&self) -> usize {
        self.store.lock().unwrap().records.len()
    }

    /// Waits until a frame after `lsn` was written.
    fn wait_written(&self, lsn: u64) -> u64 {
        while self.hold.written() <= lsn {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.hold.written()
    }
}

#[test]
fn a_write_is_visible_when_all_who_count_have_it() {
    let mut held = Held::open(&SimFs::new(1), Holders::NotAsked);
    let set = held.count(&["a"]);
    let before = held.hold.written();
    let first = held.write("p1");
    let lsn = held.wait_written(before);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((held.visible(), first.is_finished()), (0, false));
    // Nothing else is ordered before it; a durable write waits.
    let second = held.write("p2");
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(held.hold.written(), lsn);
    held.hold.held(set, lsn);
    first.join().unwrap();
    let lsn = held.wait_written(lsn);
    let (hold, late) = (held.hold.clone(), lsn);
    let acknowledges = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        hold.held(set, late);
    });
    let revision = held.revision();
    let store = held.store.clone();
    let record = put("d", b"v");
    let publish = || store.lock().unwrap().apply(record.clone());
    held.journal
        .commit(std::slice::from_ref(&record), revision, publish)
        .unwrap();
    acknowledges.join().unwrap();
    second.join().unwrap();
    let store = held.store.lock().unwrap();
    let keys: Vec<String> = store.records.iter().map(|r| format!("{r:?}")).collect();
    assert!(
        keys[1].contains("p2") && keys[2].contains("\"d\""),
        "{keys:?}"
    );
}

/// Whoever is gone counts no more: the write waits for the disk, and the committer is told.
#[test]
fn when_nobody_counts_a_write_waits_for_the_disk() {
    let mut held = Held::open(&SimFs::new(2), Holders::NotAsked);
    let set = held.count(&["a", "b"]);
    let before = held.hold.written();
    let write = held.write("p1");
    let lsn = held.wait_written(before);
    held.hold.disk_only();
    held.hold.held(set, lsn);
    assert!(!held.hold.is_safe(lsn));
    while !write.is_finished() {
        let revision = held.revision();
        held.journal.upkeep(revision).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    write.join().unwrap();
    assert!(held.hold.is_safe(lsn));
    // And while a set is noted.
    let write = held.write("p2");
    held.wait_written(lsn);
    held.count(&["b"]);
    write.join().unwrap();
    assert_eq!(held.visible(), 2);
}

/// Five writes that only a holder has: its frames, and the disk after the power went.
fn lost(seed: u64) -> (SimFs, Vec<HeldFrame>, Store) {
    let fs = SimFs::new(seed);
    let mut held = Held::open(&fs, Holders::NotAsked);
    let set = held.count(&["a"]);
    let mut lsn = held.hold.written();
    let mut frames = Vec::new();
    // Long enough for several segments.
    for key in ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"] {
        let write = held.write(key);
        let written = held.wait_written(lsn);
        frames.extend(held.hold.after(lsn, 1 << 20).frames);
        held.hold.held(set, written);
        write.join().unwrap();
        lsn = written;
    }
    let store = held.store.lock().unwrap().clone();
    (fs.power_loss(seed + 1), frames, store)
}

fn ask(fs: &SimFs, found: Found) -> Result<Option<journal::Complete>, OpenError> {
    let marker = Some(Path::new(MEMORY));
    let mut ask = |_: &journal::Asked| found.clone();
    let begun = recover(
        &*fs.shared(),
        Path::new(DIR),
        marker,
        Guards::default(),
        &mut ask,
    );
    begun.map(|begun| begun.complete)
}

fn holder() -> Holder {
    Holder {
        name: "a".to_owned(),
        incarnation: 7,
    }
}

#[test]
fn what_a_holder_gives_back_is_where_it_was() {
    for seed in 10..30 {
        let (fs, frames, before) = lost(seed);
        let found = Found::Held {
            holder: holder(),
            frames,
            held: 0,
        };
        // The power goes again before anything came of it.
        ask(&fs, found.clone()).unwrap();
        let fs = fs.power_loss(seed);
        let complete = ask(&fs, found).unwrap();
        let held = Held::open(&fs, Holders::Complete(complete.unwrap()));
        let after = held.store.lock().unwrap();
        assert_eq!(after.records, before.records, "{seed}");
        assert_eq!(after.revision, before.revision, "{seed}");
        assert!(after.jumps.is_empty(), "{seed}");
    }
}

#[test]
fn what_does_not_join_the_disk_is_refused() {
    let held = |frames| Found::Held {
        holder: holder(),
        frames,
        held: 0,
    };
    // One of which the disk lost nearly all.
    let much = |seed: &u64| {
        let (fs, frames, _) = lost(*seed);
        let complete = ask(&fs, held(frames)).unwrap().unwrap();
        complete.frames >= 8
    };
    let seed = (40..1000).find(much).unwrap();
    let (fs, frames, _) = lost(seed);
    let mut hole = frames.clone();
    hole.remove(0);
    if let Err(error) = ask(&fs, held(hole)) {
        assert!(error.to_string().contains("does not follow"), "{error}");
    }
    let mut hole = frames.clone();
    hole.remove(4);
    let error = ask(&fs, held(hole)).unwrap_err().to_string();
    assert!(error.contains("does not follow"), "{error}");
    let mut damaged = frames.clone();
    let mut bytes = damaged[8].bytes.to_vec();
    bytes[70] ^= 1;
    damaged[8].bytes = bytes.into();
    let error = ask(&fs, held(damaged)).unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
    let error = ask(&fs, Found::Nobody("a did not connect.".to_owned()));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--recover-without-shards"), "{error}");
    // It is not passed over by a server that knows nothing of shards, and `check` says it.
    let mut store = Store::new();
    let refused = Journal::open(fs.shared(), Path::new(DIR), with_marker(), &mut store);
    assert!(matches!(refused.err(), Some(OpenError::Holders { .. })));
    let report = journal::check(fs.shared(), Path::new(DIR), Some(Path::new(MEMORY))).unwrap();
    assert_eq!(report.holders, Some(vec![holder()]));
    assert!(report.to_string().contains("shards held the newest writes"));
    // Given up, it is a jump.
    let held = Held::open(&fs, Holders::GivenUp);
    assert_eq!(held.store.lock().unwrap().jumps.len(), 1);
    drop(held);
    // The next start asks nobody.
    assert_eq!(
        ask(&fs.kill(1), Found::Nobody(String::new())).unwrap(),
        None
    );
}
