//! Random lives of a server with volatile and durable writes, each ended by a killed process,
//! a power loss, a disk that lost what was not synced, or a copy of the directory.
//!
//! The oracle: a killed process loses nothing, revisions included, and no watcher relists. Else
//! all durable writes are there, and of the volatile ones those up to some point of the log
//! that is not before the last sync; what is there has its revision, but for a durable write
//! at the very end. If anything is missing, the revision is above all that were ever shown. No
//! revision is shown twice. `JOURNAL_SEEDS=N` runs more seeds, `JOURNAL_SEED=S` only one.

use crate::support::*;
use bytes::Bytes;
use engine::record::{Effect, PutItem, Record, Revision, SnapshotItem, SnapshotMeta, VersionItem};
use files::sim::{Call, MEMORY, Random, SimFs};
use journal::{
    CommitError, CommitInfo, Guards, Journal, OpenReport, Options, Replay, SnapshotWriter,
    VolatileWriter,
};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const LATER: Duration = Duration::from_secs(30);

/// Keys and the revisions that they were written at, in that order; every key is written once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    writes: Vec<(Bytes, i64)>,
    revision: i64,
    compacted: i64,
}

impl State {
    fn new() -> Self {
        State {
            revision: 1,
            ..State::default()
        }
    }

    fn apply(&mut self, record: &Record) {
        let Record::Txn(effects) = record else {
            return;
        };
        self.revision += 1;
        for effect in effects {
            if let Effect::Put { key, .. } = effect {
                self.writes.push((key.clone(), self.revision));
            }
        }
    }
}

impl Replay for State {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.revision = meta.revision;
        self.compacted = meta.compact_revision;
        Ok(())
    }

    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        if let SnapshotItem::Key { key, versions } = item {
            self.writes.push((key, versions[0].revision.main));
        }
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        self.apply(&record);
        Ok(())
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        assert!(revision > self.revision);
        self.revision = revision;
        self.compacted = revision;
        Ok(())
    }
}

/// A write that was visible.
#[derive(Clone, Debug)]
struct Seen {
    key: Bytes,
    revision: i64,
    durable: bool,
    lsn: u64,
    /// How many writes were visible when its frame was written.
    after: usize,
    /// Volatile writes became visible while it synced, and there was room to note that.
    stamped: bool,
    /// It is on disk, and so is what says which revision it has.
    settled: bool,
}

/// What the clients of one life know.
#[derive(Default)]
struct Known {
    state: State,
    seen: Vec<Seen>,
    /// The highest revision that any client of any life has seen.
    shown: i64,
    /// Keys of writes without an answer, one list an operation.
    unanswered: Vec<Vec<Bytes>>,
    next: u64,
    repeated: bool,
}

impl Known {
    fn records(&mut self, random: &mut Random) -> Vec<Record> {
        let count = 1 + random.below(3);
        (0..count)
            .map(|_| {
                self.next += 1;
                let size = match random.below(12) {
                    0 => random.below(20_000),
                    1..4 => random.below(5000),
                    _ => random.below(300),
                };
                if random.one_in(15) {
                    return Record::LeaseGrant { id: 7, ttl_s: 9 };
                }
                put(&format!("k{:06}", self.next), &vec![7; size as usize])
            })
            .collect()
    }

    fn publish(&mut self, records: &[Record], after: usize, durable: bool, lsn: u64, stamp: bool) {
        for record in records {
            let before = self.state.writes.len();
            self.state.apply(record);
            for (key, revision) in &self.state.writes[before..] {
                self.repeated |= *revision <= self.shown;
                self.shown = *revision;
                self.seen.push(Seen {
                    key: key.clone(),
                    revision: *revision,
                    durable,
                    lsn,
                    after,
                    stamped: stamp,
                    settled: false,
                });
            }
        }
    }
}

fn keys(records: &[Record]) -> Vec<Bytes> {
    let mut state = State::new();
    records.iter().for_each(|record| state.apply(record));
    state.writes.into_iter().map(|(key, _)| key).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    PowerLoss,
    LostCache,
    Copy,
}

struct Life {
    seed: u64,
    random: Random,
    fs: SimFs,
    guards: Guards,
    marker: bool,
    known: Arc<Mutex<Known>>,
    /// Syncs that succeeded cover the log up to here.
    synced: u64,
    /// An epoch is open as far as the last process knew.
    epoch: bool,
    /// There was a marker when the last call but one came back.
    marked: bool,
    /// There may have been no room for a stamp or a marker.
    tight: bool,
    jumps: u64,
}

type Failure = Result<(), String>;

impl Life {
    fn new(seed: u64, guards: Guards) -> Self {
        let mut random = Random::new(seed ^ 0xbeef);
        let known = Known {
            state: State::new(),
            shown: 1,
            ..Known::default()
        };
        Life {
            seed,
            marker: !random.one_in(8),
            random,
            fs: SimFs::new(seed),
            guards,
            known: Arc::new(Mutex::new(known)),
            synced: 0,
            epoch: false,
            marked: false,
            tight: false,
            jumps: 0,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn fail(&self, what: impl std::fmt::Display) -> Failure {
        Err(format!("seed {}: {what}", self.seed))
    }

    fn options(&mut self) -> Options {
        let mut options = options();
        options.segment_bytes = [16, 32, 64][self.random.below(3) as usize] * 1024;
        options.spare_segments = self.random.below(3) as usize;
        options.guards = self.guards;
        options.marker_dir = self.marker.then(|| PathBuf::from(MEMORY));
        options
    }

    fn check(&mut self, found: &State, report: &OpenReport, end: End) -> Failure {
        let known = self.known.lock().unwrap();
        let mut position = 0;
        let mut place = |key: &Bytes| {
            let at = found.writes.iter().position(|(found, _)| found == key)?;
            position = position.max(at);
            Some(found.writes[at].1)
        };
        let (mut highest, mut lowest_missing) = (0, u64::MAX);
        let mut changed = Vec::new();
        for seen in &known.seen {
            match place(&seen.key) {
                None if seen.durable => {
                    return self.fail(format!("durable {:?} is missing", seen.key));
                }
                None if seen.settled || seen.lsn <= self.synced => {
                    return self.fail(format!("{:?} is missing and was synced", seen.key));
                }
                None => lowest_missing = lowest_missing.min(seen.lsn),
                Some(revision) => {
                    highest = highest.max(seen.lsn);
                    if revision != seen.revision {
                        changed.push((seen.clone(), revision));
                    }
                }
            }
        }
        let missing = lowest_missing < u64::MAX;
        if missing && highest >= lowest_missing {
            return self.fail(format!(
                "frame {highest} is there, and something of frame {lowest_missing} is missing"
            ));
        }
        // It may be a start before this one that jumped, and died.
        let jump = Some(found.compacted).filter(|to| *to > known.shown);
        if jump.is_none() && (missing || !changed.is_empty()) {
            return self.fail(format!(
                "no jump after {end:?}, and missing {missing}, changed {changed:?}; {:?}",
                report.epoch
            ));
        }
        if jump.is_some() && (!self.epoch || (end == End::Kill && self.marked && !self.tight)) {
            return self.fail(format!("a jump for nothing: {:?}", report.epoch));
        }
        if end == End::Copy && report.epoch.as_ref().is_some_and(|epoch| epoch.trusted) {
            return self.fail("a copy was trusted");
        }
        if let Some(to) = jump {
            if to <= known.shown + 1 || found.revision != to {
                return self.fail(format!("jump to {to}, {} was shown", known.shown));
            }
            for (seen, revision) in changed {
                let index = known.seen.iter().position(|s| s.key == seen.key).unwrap();
                let followed = known.seen.iter().any(|later| {
                    later.after > index && found.writes.iter().any(|(key, _)| *key == later.key)
                });
                if !seen.durable || seen.settled || followed || revision <= known.shown {
                    return self.fail(format!("{seen:?} has revision {revision} now"));
                }
            }
        }
        // What is left was sent and got no answer: whole or not at all.
        let known_keys: Vec<_> = known.seen.iter().map(|seen| &seen.key).collect();
        let rest: Vec<_> = found
            .writes
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !known_keys.contains(key))
            .collect();
        let whole: Vec<_> = known
            .unanswered
            .iter()
            .filter(|keys| keys.iter().any(|key| rest.contains(&key)))
            .flatten()
            .collect();
        if rest.len() != whole.len() || rest.iter().any(|key| !whole.contains(key)) {
            return self.fail(format!("nobody sent so: {rest:?}, {whole:?}"));
        }
        if found.writes.windows(2).any(|pair| pair[0].1 >= pair[1].1) {
            return self.fail("revisions are out of order");
        }
        Ok(())
    }

    /// The clients of the next life know what they find.
    fn adopt(&mut self, found: State, left_open: bool) {
        let mut known = self.known.lock().unwrap();
        let old = std::mem::take(&mut known.seen);
        for (key, revision) in &found.writes {
            let before = old.iter().find(|seen| seen.key == *key);
            known.seen.push(Seen {
                key: key.clone(),
                revision: *revision,
                durable: true,
                lsn: 0,
                after: 0,
                stamped: false,
                settled: !left_open || before.is_some_and(|seen| seen.settled),
            });
        }
        known.shown = known.shown.max(found.revision);
        known.unanswered.clear();
        known.state = found;
    }

    /// One start, some work. False if the process died before it served.
    fn live(&mut self, end: Option<End>) -> Result<bool, String> {
        if !self.random.one_in(4) {
            self.fs.crash_after(1 + self.random.below(150));
        }
        let options = self.options();
        let mut found = State::new();
        let opened = Journal::open(self.fs.shared(), Path::new(DIR), options, &mut found);
        let (journal, report) = match opened {
            Ok(opened) => opened,
            Err(_) if self.fs.crashed() => return Ok(false),
            Err(error) => return Err(format!("seed {}: refused: {error}", self.seed)),
        };
        if let Some(end) = end {
            self.check(&found, &report, end)?;
        }
        self.jumps += u64::from(report.epoch.is_some_and(|epoch| epoch.jumped_to.is_some()));
        self.epoch = journal.volatile_status().epoch_bound.is_some();
        self.adopt(found, self.epoch);
        self.synced = journal.last_lsn();
        self.tight = self.epoch;
        self.marked = false;
        self.work(journal);
        if self.known().repeated {
            return Err(format!("seed {}: a revision was shown twice", self.seed));
        }
        Ok(true)
    }

    fn work(&mut self, mut journal: Journal) {
        let allocator = journal.allocator();
        let writer = journal.volatile();
        for _ in 0..self.random.below(80) {
            let alive = match self.random.below(40) {
                0 | 1 => {
                    drop(allocator.step());
                    true
                }
                2 => journal.mark(|| self.known().state.revision).is_ok(),
                3 => {
                    self.faults();
                    true
                }
                4 => {
                    let room = self.random.below(60_000);
                    let limit = self.random.one_in(2).then(|| self.fs.used() + room);
                    self.tight |= limit.is_some();
                    self.fs.set_capacity(limit);
                    true
                }
                5 => self.toggle(&mut journal),
                6 | 7 => self.snapshot(&mut journal),
                8..12 => self.sync(&mut journal, &writer),
                12..19 => self.commit(&mut journal, &writer),
                19..22 => self.pipeline(&mut journal, &writer),
                _ => {
                    let mut random = self.random;
                    let alive = volatile(&self.known, &writer, &mut random);
                    self.random = random;
                    alive
                }
            };
            if !alive {
                break;
            }
            let known = self.known.clone();
            if journal
                .upkeep(|| known.lock().unwrap().state.revision)
                .is_err()
            {
                break;
            }
            self.marked = journal.volatile_status().marker.is_some();
        }
        self.fs.during_next_sync(|| {});
        if self.random.one_in(5) {
            let revision = self.known().state.revision;
            if journal.close(revision).is_ok() && !self.tight && !self.fs.crashed() {
                self.epoch = false;
            }
        }
    }

    fn faults(&mut self) {
        let (call, kind) = match self.random.below(4) {
            0 => (Call::SyncData, ErrorKind::Other),
            1 => (Call::Allocate, ErrorKind::StorageFull),
            2 => (Call::WriteMemory, ErrorKind::Other),
            _ => (Call::Write, ErrorKind::StorageFull),
        };
        // A sync may be one of a file to come.
        self.tight = true;
        self.fs.fail(call, self.random.below(3), 1, kind);
    }

    fn toggle(&mut self, journal: &mut Journal) -> bool {
        let known = self.known.clone();
        if self.random.one_in(3) {
            let target = journal.last_lsn();
            match journal.close_epoch(|| known.lock().unwrap().state.revision) {
                Ok(()) => {
                    self.synced = self.synced.max(target);
                    self.settle();
                    self.epoch = false;
                    true
                }
                Err(error) if error.is_no_room() => true,
                Err(_) => false,
            }
        } else {
            journal.allow_volatile();
            self.epoch = true;
            true
        }
    }

    /// All that is visible now was visible before a sync that succeeded began.
    fn settle(&mut self) {
        let synced = self.synced;
        for seen in &mut self.known().seen {
            seen.settled |= (!seen.durable || seen.stamped) && seen.lsn <= synced;
        }
    }

    fn sync(&mut self, journal: &mut Journal, writer: &VolatileWriter) -> bool {
        let (target, visible) = (journal.last_lsn(), self.known().seen.len());
        self.meanwhile(writer);
        let alive = journal.sync().is_ok();
        self.fs.during_next_sync(|| {});
        if alive {
            self.synced = self.synced.max(target);
            let later = self.known().seen.split_off(visible);
            self.settle();
            self.known().seen.extend(later);
        }
        alive
    }

    /// Volatile writes while the next sync runs.
    fn meanwhile(&mut self, writer: &VolatileWriter) {
        let (known, writer) = (self.known.clone(), writer.clone());
        let mut random = Random::new(self.random.next_u64());
        if self.random.one_in(2) {
            self.fs.during_next_sync(move || {
                for _ in 0..random.below(4) {
                    if !volatile(&known, &writer, &mut random) {
                        break;
                    }
                }
            });
        }
    }

    fn commit(&mut self, journal: &mut Journal, writer: &VolatileWriter) -> bool {
        let records = self.known.lock().unwrap().records(&mut self.random);
        let known = self.known.clone();
        let revision = || known.lock().unwrap().state.revision;
        self.meanwhile(writer);
        // As `Journal::commit` does it, step by step: to begin a segment the first step may sync,
        // and what becomes visible in that sync is before its frame.
        let commit = |journal: &mut Journal| -> Result<_, CommitError> {
            let appended = journal.append(&records, revision)?;
            let after = known.lock().unwrap().seen.len();
            journal.settle()?;
            let ordered = journal.order(appended, revision);
            let ordered = ordered.map_err(|not_ordered| *not_ordered.reason)?;
            let (info, published) = ordered.release(|| {
                let mut known = known.lock().unwrap();
                let from = known.seen.len();
                known.publish(&records, after, true, 0, from > after);
                from..known.seen.len()
            });
            Ok((info, published))
        };
        let result: Result<(CommitInfo, _), _> = commit(journal);
        self.fs.during_next_sync(|| {});
        match result {
            Ok((info, published)) => {
                for seen in &mut self.known().seen[published] {
                    seen.lsn = info.position.lsn();
                    seen.stamped &= info.stamped || !self.tight;
                }
                self.synced = self.synced.max(info.position.lsn());
                true
            }
            Err(error) if error.is_no_room() => true,
            Err(_) => {
                self.known().unanswered.push(keys(&records));
                false
            }
        }
    }

    /// Several frames in the log at once, which become visible in any order that the journal
    /// allows, with volatile writes in between.
    fn pipeline(&mut self, journal: &mut Journal, writer: &VolatileWriter) -> bool {
        let known = self.known.clone();
        let revision = || known.lock().unwrap().state.revision;
        let mut waiting = Vec::new();
        let mut alive = true;
        for _ in 0..2 + self.random.below(2) {
            let records = self.known.lock().unwrap().records(&mut self.random);
            let after = self.known().seen.len();
            match journal.append(records.clone(), revision) {
                Ok(appended) => waiting.push((appended, records, after)),
                Err(error) if error.is_no_room() => {}
                Err(_) => {
                    self.known().unanswered.push(keys(&records));
                    alive = false;
                }
            }
            if alive && self.random.one_in(2) {
                let mut random = self.random;
                alive = volatile(&self.known, writer, &mut random);
                self.random = random;
            }
        }
        let target = waiting.last().map(|(appended, ..)| appended.lsn());
        self.meanwhile(writer);
        alive &= journal.sync().is_ok();
        self.fs.during_next_sync(|| {});
        if alive {
            self.synced = self.synced.max(target.unwrap_or(0));
        }
        while alive && !waiting.is_empty() {
            let at = self.random.below(waiting.len() as u64) as usize;
            let (appended, records, after) = waiting.remove(at);
            let lsn = appended.lsn();
            match journal.order(appended, revision) {
                Ok(ordered) => {
                    let (info, range) = ordered.release(|| {
                        let mut known = known.lock().unwrap();
                        let from = known.seen.len();
                        known.publish(&records, after, true, lsn, false);
                        from..known.seen.len()
                    });
                    for seen in &mut self.known().seen[range] {
                        seen.stamped = info.stamped;
                    }
                }
                Err(not_ordered) => {
                    let reason = not_ordered.reason;
                    if reason.is_no_room() {
                        self.fs.set_capacity(None);
                    } else {
                        alive = matches!(*reason, CommitError::Unordered { .. });
                    }
                    waiting.push((not_ordered.appended, records, after));
                }
            }
            if alive && self.random.one_in(3) {
                let mut random = self.random;
                alive = volatile(&self.known, writer, &mut random);
                self.random = random;
            }
        }
        for (_, records, _) in waiting {
            self.known().unanswered.push(keys(&records));
        }
        alive
    }

    fn snapshot(&mut self, journal: &mut Journal) -> bool {
        let known = self.known.clone();
        let target = journal.last_lsn();
        let Ok((at, state)) = journal.snapshot_position(|| known.lock().unwrap().state.clone())
        else {
            return false;
        };
        self.synced = self.synced.max(target);
        let meta = SnapshotMeta {
            revision: state.revision,
            compact_revision: state.compacted,
        };
        let fs = self.fs.clone();
        let write = || -> Result<(), journal::SnapshotError> {
            let mut writer = SnapshotWriter::create(fs.shared(), Path::new(DIR), meta, at)?;
            for (key, revision) in &state.writes {
                writer.push(&SnapshotItem::Key {
                    key: key.clone(),
                    versions: vec![VersionItem {
                        revision: Revision {
                            main: *revision,
                            sub: 0,
                        },
                        put: Some(PutItem {
                            create_revision: *revision,
                            version: 1,
                            lease: 0,
                            value: Bytes::new(),
                        }),
                    }],
                })?;
            }
            writer.finish().map(drop)
        };
        if write().is_ok() {
            for seen in &mut self.known().seen {
                seen.settled = true;
            }
            drop(journal.allocator().retire(at));
        }
        true
    }

    fn end(&mut self, ends: &[End]) -> End {
        let seed = self.random.next_u64();
        let end = ends[self.random.below(ends.len() as u64) as usize];
        self.fs = match end {
            End::Kill => self.fs.kill(seed),
            End::PowerLoss => self.fs.power_loss(seed),
            End::LostCache => self.fs.lose_cache(seed),
            End::Copy => self.fs.copied(seed),
        };
        self.fs.set_capacity(None);
        end
    }
}

/// A volatile write; false if the process is to end.
fn volatile(known: &Mutex<Known>, writer: &VolatileWriter, random: &mut Random) -> bool {
    let (records, revision, after) = {
        let mut known = known.lock().unwrap();
        let records = known.records(random);
        (records, known.state.revision, known.seen.len())
    };
    if writer.would_wait(&records, revision) {
        return true;
    }
    let range = std::cell::Cell::new((0, 0));
    let visible = || {
        let mut known = known.lock().unwrap();
        known.publish(&records, after, false, 0, false);
        range.set((after, known.seen.len()));
    };
    let turn = match random.below(2) {
        0 => writer.turn(|| revision),
        _ => None,
    };
    let result = match turn {
        Some(turn) => turn.write(&records, LATER, visible),
        None => writer.write(&records, LATER, || revision, visible),
    };
    match result {
        Ok((info, ())) => {
            let (from, to) = range.get();
            for seen in &mut known.lock().unwrap().seen[from..to] {
                seen.lsn = info.lsn;
            }
            true
        }
        Err(CommitError::Strict) => true,
        Err(error) if error.is_no_room() => true,
        Err(_) => {
            known.lock().unwrap().unanswered.push(keys(&records));
            false
        }
    }
}

const ALL: [End; 6] = [
    End::Kill,
    End::Kill,
    End::PowerLoss,
    End::PowerLoss,
    End::LostCache,
    End::Copy,
];

/// Seeds that found something once: a stale marker, a marker of a segment set aside, and
/// segments that a power loss removed in the wrong order.
const FOUND: [u64; 4] = [541, 11451, 19036, 6756];

/// Returns how often the revision jumped.
fn run(seed: u64, guards: Guards, ends: &[End]) -> Result<u64, String> {
    let mut life = Life::new(seed, guards);
    let mut end = None;
    for _ in 0..8 {
        let served = life.live(end)?;
        end = Some(match (end, life.end(ends)) {
            (Some(before), End::Kill) if !served => before,
            (_, end) => end,
        });
    }
    life.fs.heal();
    life.live(end)?;
    Ok(life.jumps)
}

#[test]
fn classes_keep_their_promises_in_any_crash() {
    if let Some(seed) = number("JOURNAL_SEED") {
        run(seed, Guards::default(), &ALL).unwrap();
        return;
    }
    let seeds = number("JOURNAL_SEEDS").unwrap_or(1000);
    let mut jumps = 0;
    all_hold((0..seeds).chain(FOUND), |seed| {
        jumps += run(seed, Guards::default(), &ALL)?;
        Ok(())
    });
    assert!(jumps > seeds / 4, "{jumps}");
}

/// Without a guard, the same lives must come to a bad end.
fn fails_without(guards: Guards, ends: &[End]) {
    let failed = (0..500)
        .filter(|seed| run(*seed, guards, ends).is_err())
        .count();
    assert!(failed > 0, "no seed noticed that the guard is gone");
}

#[test]
fn guard_stamp() {
    let guards = Guards {
        stamp: false,
        ..Guards::default()
    };
    fails_without(guards, &[End::PowerLoss]);
}

#[test]
fn guard_epoch() {
    let guards = Guards {
        epoch: false,
        ..Guards::default()
    };
    fails_without(guards, &[End::PowerLoss]);
}

#[test]
fn guard_marker() {
    let guards = Guards {
        marker: false,
        ..Guards::default()
    };
    fails_without(guards, &[End::LostCache]);
}
