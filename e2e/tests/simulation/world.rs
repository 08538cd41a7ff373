//! The simulated machine: a disk, a process with engine and journal, clients, watchers.

use crate::model::{Event, Model};
use bytes::Bytes;
use e2e::differential::rng::Rng;
use engine::hash::KvHash;
use engine::op::{
    Compare, DeleteOp, KeyRange, Op, Operator, Outcome, PutOp, RangeOp, Target, TxnOp, Write,
};
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use engine::sequencer::{Answers, Batch};
use engine::snapshot::SnapshotCursor;
use engine::tail;
use engine::{Engine, Error, Limits};
use journal::fs::sim::{Call, Lies, SimFs};
use journal::{
    CommitError, Guards, Journal, NewDirectory, OpenError, Options, Position, Replay,
    SnapshotWriter,
};
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::Path;

const DIR: &str = "/data";
const KEYS: usize = 12;
const LIVES: usize = 6;

/// What is taken away from the disk or the journal, to see the oracle notice.
#[derive(Clone, Copy, Default)]
pub(crate) struct Without {
    pub(crate) lies: Lies,
    pub(crate) guards: Guards,
}

/// What happened, so that a run in which little does can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

const WHAT: [&str; 13] = [
    "acknowledged",
    "batches whose answer the crash swallowed",
    "kills",
    "power losses",
    "clean stops",
    "starts that were cut off",
    "failed syncs",
    "full disks",
    "snapshots",
    "starts from a snapshot",
    "compactions",
    "expired leases",
    "watches overtaken by compaction",
];

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// All that can happen, with how often it did.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        WHAT.iter()
            .map(|what| (*what, self.0.get(what).copied().unwrap_or(0)))
    }
}

/// Recovery's target: what the server does with a journal's contents.
struct Feed(Engine<u64>);

impl Replay for Feed {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.0.restore_begin(meta);
        Ok(())
    }
    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        self.0.restore_item(item);
        Ok(())
    }
    fn end_of_snapshot(&mut self) -> Result<(), String> {
        self.0.restore_end();
        Ok(())
    }
    fn record(&mut self, record: Record) -> Result<(), String> {
        self.0.apply(record);
        Ok(())
    }
    fn revision(&self) -> i64 {
        self.0.revision()
    }
}

/// A snapshot under way.
struct Running {
    writer: SnapshotWriter,
    head: VecDeque<SnapshotItem>,
    cursor: SnapshotCursor,
    at: Position,
}

/// A server.
struct Process {
    engine: Engine<u64>,
    journal: Journal,
    /// Batches taken; those that the journal has come first.
    taken: VecDeque<(Batch, bool)>,
    snapshot: Option<Running>,
}

/// A watch of everything, as a client keeps it.
struct Watcher {
    next: i64,
    /// How many of the model's events lie before `next`.
    seen: usize,
}

struct World {
    random: Rng,
    fs: SimFs,
    without: Without,
    model: Model,
    /// A store that never crashes and is given every record that counts.
    mirror: Engine<u64>,
    watchers: Vec<Watcher>,
    asked: BTreeMap<u64, Write>,
    count: u64,
    tally: Tally,
}

type Checked = Result<(), String>;

/// How a process ended.
enum End {
    Clean,
    /// With the records of the commit that gave no answer.
    Died(Vec<Record>),
}

fn ensure(ok: bool, text: impl FnOnce() -> String) -> Checked {
    if ok { Ok(()) } else { Err(text()) }
}

fn limits() -> Limits {
    Limits {
        wait_timeout_ms: 500,
        ..Limits::default()
    }
}

fn options(segment_bytes: u64, guards: Guards) -> Options {
    let mut options = Options::new(NewDirectory {
        cluster_id: 1,
        member_id: 2,
        name: "simulated".to_owned(),
        salt: 3,
    });
    options.segment_bytes = segment_bytes;
    options.guards = guards;
    options
}

fn hash(engine: &Engine<u64>) -> Result<KvHash, String> {
    let mut cursor = engine.hash_open(0).map_err(|e| e.to_string())?;
    while !engine.hash_step(&mut cursor, 3) {}
    Ok(cursor.finish_hash())
}

/// Runs a seed.
pub(crate) fn run(seed: u64, without: Without) -> Result<Tally, String> {
    let fs = SimFs::new(seed);
    fs.lie(without.lies);
    let mut world = World {
        random: Rng::new(seed),
        fs,
        without,
        model: Model::new(),
        mirror: Engine::new(limits()),
        watchers: (0..3).map(|_| Watcher { next: 2, seen: 0 }).collect(),
        asked: BTreeMap::new(),
        count: 0,
        tally: Tally::default(),
    };
    let mut unanswered = Vec::new();
    for life in 0..LIVES {
        let last = life + 1 == LIVES;
        if let Some(mut process) = world.start(&unanswered, last)? {
            let end = world.live(&mut process, last)?;
            unanswered = world.after(process, end);
        }
    }
    world.fs.heal();
    world.start(&unanswered, true)?;
    Ok(world.tally)
}

impl World {
    /// Opens what the last process left and compares it with what it promised. `None` if
    /// the start was cut off itself.
    fn start(&mut self, unanswered: &[Record], safe: bool) -> Result<Option<Process>, String> {
        if !safe && self.random.chance(15) {
            self.fs.crash_after(1 + self.random.below(25) as u64);
        }
        let segment_bytes = self.random.pick(&[16, 32, 64]) * 1024;
        let mut feed = Feed(Engine::new(limits()));
        let opened = Journal::open(
            self.fs.shared(),
            Path::new(DIR),
            options(segment_bytes, self.without.guards),
            &mut feed,
        );
        let (journal, report) = match opened {
            Ok(opened) => opened,
            Err(_) if self.fs.crashed() => {
                self.tally.count("starts that were cut off");
                self.crash();
                return self.start(unanswered, safe);
            }
            Err(OpenError::NoSpace { .. }) if !safe => {
                self.fs.set_capacity(None);
                return self.start(unanswered, safe);
            }
            Err(error) => return Err(format!("refused: {error}")),
        };
        if report.snapshot_lsn > 0 {
            self.tally.count("starts from a snapshot");
        }
        let mut engine = feed.0;
        // Either the last commit is there, whole, or it is not.
        if engine.revision() > self.model.revision || self.matches(&engine).is_err() {
            if !unanswered.is_empty() {
                self.tally.count("batches whose answer the crash swallowed");
            }
            unanswered.iter().for_each(|record| self.happened(record));
        }
        self.matches(&engine)?;
        engine.renew_leases(self.model.now_ms);
        engine.set_compaction_hashes(true);
        for (id, (ttl_s, _)) in self.model.leases.clone() {
            self.model.renew(id, ttl_s);
        }
        engine.set_disk_full(report.no_space);
        self.model.disk_full = report.no_space;
        let mut process = Process {
            engine,
            journal,
            taken: VecDeque::new(),
            snapshot: None,
        };
        for n in 0..self.watchers.len() {
            self.watch(&mut process, n)?;
        }
        Ok(Some(process))
    }

    /// A record counts: for the oracle and for the store that never crashes.
    fn happened(&mut self, record: &Record) {
        self.model.apply(record);
        self.mirror.apply(record.clone());
    }

    /// The engine holds what the oracle holds.
    fn matches(&self, engine: &Engine<u64>) -> Checked {
        let model = &self.model;
        let expected = (model.revision, model.compacted);
        let found = (engine.revision(), engine.compact_revision());
        ensure(found == expected, || {
            format!("revision and compact revision are {found:?}, not {expected:?}")
        })?;
        let leases: Vec<i64> = model.leases.keys().copied().collect();
        let mut found = engine.lease_ids();
        found.sort_unstable();
        ensure(found == leases, || {
            format!("leases are {found:?}, not {leases:?}")
        })?;
        for id in leases {
            let attached = engine.lease(id, 0, true).map_or(Vec::new(), |l| l.keys);
            let expected = model.attached(id);
            ensure(
                attached
                    .iter()
                    .map(|k| &k[..])
                    .eq(expected.iter().map(|k| &k[..])),
                || format!("lease {id} has {attached:?}, not {expected:?}"),
            )?;
        }
        self.range_matches(engine, model.revision)?;
        let (found, expected) = (hash(engine)?, hash(&self.mirror)?);
        ensure(found == expected, || {
            format!("the hash is {found:?}, not {expected:?}")
        })
    }

    fn range_matches(&self, engine: &Engine<u64>, revision: i64) -> Checked {
        let op = RangeOp {
            range: KeyRange {
                key: Bytes::from_static(b"\0"),
                end: Bytes::from_static(b"\0"),
            },
            revision,
            ..RangeOp::default()
        };
        let mut cursor = engine.range_open(op).map_err(|e| e.to_string())?;
        engine.range_step(&mut cursor, usize::MAX);
        let reply = cursor.finish();
        let expected = self.model.at(revision);
        let equal = reply.kvs.iter().zip(&expected).all(|(kv, (key, live))| {
            let f = kv.fields();
            kv.key[..] == key[..]
                && f.value == live.value
                && (f.create_revision, f.mod_revision) == (live.create, live.modified)
                && (f.version, f.lease) == (live.version, live.lease)
        });
        ensure(equal && reply.kvs.len() == expected.len(), || {
            format!(
                "at revision {revision} there are {:?}, not {expected:?}",
                reply.kvs
            )
        })
    }

    /// Works until something ends it.
    fn live(&mut self, process: &mut Process, last: bool) -> Result<End, String> {
        if !last && self.random.chance(60) {
            self.fs.crash_after(1 + self.random.below(250) as u64);
        }
        for _ in 0..self.random.below(400) {
            match self.random.below(100) {
                0..40 => self.submit(process)?,
                40..52 => self.take(process),
                52..64 => {
                    if let Some(records) = self.commit(process)? {
                        return Ok(End::Died(records));
                    }
                }
                64..76 => self.complete(process)?,
                76..82 => self.snapshot(process),
                82..85 => self.compact(process),
                85..90 => {
                    let n = self.random.below(self.watchers.len());
                    self.watch(process, n)?;
                }
                90..93 => self.pass_time(process)?,
                93 => drop(process.journal.allocator().step()),
                94 => {
                    let revision = process.engine.revision();
                    if process.taken.is_empty() && process.journal.mark(revision).is_err() {
                        return Ok(End::Died(Vec::new()));
                    }
                }
                95 if !last => self.break_something(),
                96 => self.room(process),
                _ => {
                    let from = self.model.compacted.max(1);
                    let at = self.random.between(from, self.model.revision);
                    self.range_matches(&process.engine, at)?;
                }
            }
            if self.fs.crashed() {
                return Ok(End::Died(Vec::new()));
            }
        }
        if !last && self.random.chance(70) {
            return Ok(End::Died(Vec::new()));
        }
        // A clean stop: what was admitted is finished, the rest refused.
        loop {
            self.take(process);
            if process.taken.is_empty() {
                return Ok(End::Clean);
            }
            if let Some(records) = self.commit(process)? {
                return Ok(End::Died(records));
            }
            self.complete(process)?;
        }
    }

    /// What remains of a process; returns the records that may or may not have happened.
    fn after(&mut self, mut process: Process, end: End) -> Vec<Record> {
        self.asked.clear();
        // What the journal has is there, answered or not.
        for (batch, committed) in std::mem::take(&mut process.taken) {
            if committed {
                batch
                    .records
                    .iter()
                    .for_each(|record| self.happened(record));
            }
        }
        let unanswered = match end {
            End::Clean => {
                let mut answers = Answers::new();
                process.engine.abandon(Error::Stopped, &mut answers);
                let revision = process.engine.revision();
                drop(process.snapshot);
                // On a disk that fails it is a crash like any other.
                drop(process.journal.close(revision));
                self.tally.count("clean stops");
                Vec::new()
            }
            End::Died(records) => {
                std::mem::forget(process.snapshot);
                records
            }
        };
        self.crash();
        unanswered
    }

    fn crash(&mut self) {
        let seed = self.random.bits();
        self.fs = if self.random.chance(35) {
            self.tally.count("kills");
            self.fs.kill(seed)
        } else {
            self.tally.count("power losses");
            self.fs.power_loss(seed)
        };
        self.fs.heal();
        self.fs.lie(self.without.lies);
        if self.random.chance(80) {
            self.fs.set_capacity(None);
        }
    }

    fn write(&mut self) -> Write {
        self.count += 1;
        let key = |n: usize| Bytes::from(format!("key/{n:02}"));
        let one = key(self.random.below(KEYS));
        let size = match self.random.below(30) {
            0 => 9000,
            1..6 => self.random.below(3000),
            _ => self.random.below(100),
        };
        let value = Bytes::from(format!("{}:{:size$}", self.count, ""));
        let put = |key, value| PutOp {
            key,
            value,
            ..PutOp::default()
        };
        let lease = |world: &mut World| 1 + world.random.below(6) as i64;
        match self.random.below(24) {
            0..8 => Write::Put(PutOp {
                lease: if self.random.chance(30) {
                    lease(self)
                } else {
                    0
                },
                prev_kv: self.random.chance(50),
                ..put(one, value)
            }),
            8..12 => {
                let modified = self.model.keys.get(&one).map_or(0, |live| live.modified);
                let off = i64::from(self.random.chance(20));
                Write::Txn(TxnOp {
                    compares: vec![Compare {
                        range: KeyRange::one(one.clone()),
                        target: Target::Mod(modified + off),
                        operator: Operator::Equal,
                    }],
                    success: vec![Op::Put(put(one, value))],
                    failure: Vec::new(),
                })
            }
            12..14 => {
                let first = self.random.below(KEYS - 3);
                let puts = (first..first + 3).map(|n| Op::Put(put(key(n), value.clone())));
                Write::Txn(TxnOp {
                    success: puts.collect(),
                    ..TxnOp::default()
                })
            }
            14..17 => Write::Delete(DeleteOp {
                range: KeyRange::one(one),
                prev_kv: false,
            }),
            17 => Write::Delete(DeleteOp {
                range: KeyRange {
                    key: one,
                    end: key(self.random.below(KEYS)),
                },
                prev_kv: false,
            }),
            18..21 => Write::LeaseGrant {
                id: lease(self),
                ttl_s: self.random.between(2, 40),
            },
            21 => Write::LeaseRevoke { id: lease(self) },
            _ => Write::Compact {
                revision: self
                    .random
                    .between(self.model.compacted.max(1), self.model.revision + 1),
            },
        }
    }

    fn submit(&mut self, process: &mut Process) -> Checked {
        let write = self.write();
        self.submit_one(process, write)
    }

    fn submit_one(&mut self, process: &mut Process, write: Write) -> Checked {
        let waiter = self.count * 2 + 1;
        self.count += 1;
        self.asked.insert(waiter, write.clone());
        let now = self.model.now_ms;
        match process.engine.submit(write, 0, waiter, now) {
            Some(answer) => self.answered_at_once(answer),
            None => Ok(()),
        }
    }

    fn answered_at_once(&mut self, answer: (u64, Result<Outcome, Error>)) -> Checked {
        match self.asked.remove(&answer.0) {
            Some(write) => self.model.at_once(&write, &answer.1),
            None => Err(format!("two answers, the second {:?}", answer.1)),
        }
    }

    fn take(&mut self, process: &mut Process) {
        let max_bytes = self.random.pick(&[200, 5000, 1 << 20]);
        if let Some(batch) = process.engine.take_batch(0, max_bytes) {
            process.taken.push_back((batch, false));
        }
    }

    /// Commits the next batch. Returns its records if that ended the journal.
    fn commit(&mut self, process: &mut Process) -> Result<Option<Vec<Record>>, String> {
        let mut revision = process.engine.revision();
        let Some(at) = process.taken.iter().position(|(_, committed)| !committed) else {
            return Ok(None);
        };
        for (batch, _) in process.taken.iter().take(at) {
            revision += batch.records.iter().filter(|r| r.takes_revision()).count() as i64;
        }
        let (batch, committed) = &mut process.taken[at];
        match process.journal.commit(&batch.records, revision) {
            Ok(_) => {
                *committed = true;
                if self.model.disk_full {
                    self.model.disk_full = false;
                    process.engine.set_disk_full(false);
                }
                Ok(None)
            }
            Err(CommitError::NoSpace { .. }) => {
                self.tally.count("full disks");
                for _ in 0..at {
                    self.complete(process)?;
                }
                self.model.disk_full = true;
                process.engine.set_disk_full(true);
                let Some((batch, _)) = process.taken.pop_front() else {
                    return Err("the batch is gone".to_owned());
                };
                let mut answers = Answers::new();
                process
                    .engine
                    .fail(batch.ticket, Error::NoSpace, &mut answers);
                let of_batch = batch.records.len();
                for (n, (waiter, answer)) in answers.into_iter().enumerate() {
                    if n < of_batch {
                        let refused = answer == Err(Error::NoSpace);
                        ensure(refused, || format!("a full disk answered {answer:?}"))?;
                        self.asked.remove(&waiter);
                    } else {
                        self.answered_at_once((waiter, answer))?;
                    }
                }
                Ok(None)
            }
            Err(CommitError::TooLarge { .. }) => Err("a commit was too large".to_owned()),
            Err(CommitError::Poisoned { .. }) => {
                if !self.fs.crashed() {
                    self.tally.count("failed syncs");
                }
                // Nothing may be acknowledged any more.
                let again = process
                    .journal
                    .commit(&[Record::Compact { revision: 1 }], revision);
                ensure(again.is_err(), || "a dead journal took a commit".to_owned())?;
                let records = process.taken.remove(at).map(|(batch, _)| batch.records);
                Ok(records)
            }
        }
    }

    /// Makes the first committed batch visible and checks every answer.
    fn complete(&mut self, process: &mut Process) -> Checked {
        if !matches!(process.taken.front(), Some((_, true))) {
            return Ok(());
        }
        let Some((batch, _)) = process.taken.pop_front() else {
            return Ok(());
        };
        let mut answers = Answers::new();
        let now = self.model.now_ms;
        process.engine.complete(batch.ticket, now, &mut answers);
        let mut answers = answers.into_iter();
        for record in &batch.records {
            let Some((waiter, Ok(outcome))) = answers.next() else {
                return Err(format!("{record:?} was not answered, or with an error"));
            };
            let write = self.asked.remove(&waiter).ok_or("two answers")?;
            self.model.logged(&write, record, &outcome)?;
            self.happened(record);
            self.tally.count("acknowledged");
            if matches!(record, Record::Compact { .. }) {
                self.tally.count("compactions");
            }
        }
        answers.try_for_each(|answer| self.answered_at_once(answer))?;
        ensure(process.engine.revision() == self.model.revision, || {
            "the revision is not that of the last answer".to_owned()
        })
    }

    fn snapshot(&mut self, process: &mut Process) {
        let Some(mut running) = process.snapshot.take() else {
            // As the server does: between commits, with all that the log has visible.
            if !process.taken.iter().any(|(_, committed)| *committed)
                && let Ok(at) = process.journal.snapshot_position()
            {
                let (cursor, head) = process.engine.snapshot_open();
                let writer =
                    SnapshotWriter::create(self.fs.shared(), Path::new(DIR), cursor.meta, at);
                if let Ok(writer) = writer {
                    process.engine.pin(cursor.pin());
                    process.snapshot = Some(Running {
                        writer,
                        head: head.into(),
                        cursor,
                        at,
                    });
                }
            }
            return;
        };
        let pin = running.cursor.pin();
        if let Some(item) = running.head.pop_front() {
            match running.writer.push(&item) {
                Ok(()) => process.snapshot = Some(running),
                Err(_) => process.engine.unpin(pin),
            }
            return;
        }
        let mut keys = Vec::new();
        let slice = 1 + self.random.below(12);
        let done = process
            .engine
            .snapshot_step(&mut running.cursor, slice, &mut keys);
        let mut items = keys.into_iter().map(|key| key.into_item());
        let pushed = items.all(|item| running.writer.push(&item).is_ok());
        if pushed && !done {
            process.snapshot = Some(running);
            return;
        }
        process.engine.unpin(pin);
        if pushed && running.writer.finish().is_ok() {
            self.tally.count("snapshots");
            if self.random.chance(80) {
                drop(process.journal.allocator().retire(running.at));
            }
        }
    }

    fn compact(&mut self, process: &mut Process) {
        if let Some(mut cursor) = process.engine.compaction_hash_open() {
            while !process.engine.hash_step(&mut cursor, 5) {}
            process.engine.compaction_hash_done(cursor.finish_hash());
        }
        if process.engine.compaction_due() {
            process.engine.compact_step(1 + self.random.below(20));
        }
    }

    /// A watcher asks for what comes next.
    fn watch(&mut self, process: &mut Process, n: usize) -> Checked {
        let Watcher { next, seen } = self.watchers[n];
        if next < process.engine.compact_revision() {
            // It is told so, and starts anew with what is there.
            self.tally.count("watches overtaken by compaction");
            let all = &self.model.events;
            self.watchers[n] = Watcher {
                next: self.model.revision + 1,
                seen: all.len(),
            };
            return Ok(());
        }
        let mut found = Vec::new();
        let max = 1 + self.random.below(20);
        process.engine.events_since(next, max, &mut found);
        let compacted = self.model.compacted;
        let expected = &self.model.events[seen..];
        ensure(!found.is_empty() || expected.is_empty(), || {
            format!(
                "a watch from {next} sees nothing of {} events",
                expected.len()
            )
        })?;
        for (event, expected) in found.iter().zip(expected) {
            ensure(same(event, expected, compacted), || {
                format!("a watch from {next} saw {event:?}, not {expected:?}")
            })?;
        }
        if let Some(last) = found.last().map(|event| event.revision.main) {
            let whole = expected.get(found.len()).is_none_or(|e| e.revision > last);
            ensure(whole && found.len() <= expected.len(), || {
                format!("a watch from {next} got a part of revision {last}")
            })?;
            self.watchers[n] = Watcher {
                next: last + 1,
                seen: seen + found.len(),
            };
        }
        Ok(())
    }

    fn pass_time(&mut self, process: &mut Process) -> Checked {
        self.model.now_ms += self.random.pick(&[1, 100, 1500]);
        let now = self.model.now_ms;
        let leases: Vec<i64> = self.model.leases.keys().copied().collect();
        if !leases.is_empty() && self.random.chance(50) {
            let id = self.random.pick(&leases);
            if let Ok(ttl_s) = process.engine.keep_alive(id, now) {
                self.model.renew(id, ttl_s);
            }
        }
        for id in process.engine.due_leases(now, 2) {
            let until = self.model.leases.get(&id).map_or(0, |lease| lease.1);
            ensure(until <= now, || {
                format!("lease {id} ends at {now}, and was promised until {until}")
            })?;
            self.tally.count("expired leases");
            self.submit_one(process, Write::LeaseRevoke { id })?;
        }
        let mut answers = Answers::new();
        process.engine.expire_waiting(now, &mut answers);
        answers
            .into_iter()
            .try_for_each(|answer| self.answered_at_once(answer))
    }

    fn break_something(&mut self) {
        let after = self.random.below(4) as u64;
        match self.random.below(6) {
            0 => {
                let kind = self
                    .random
                    .pick(&[ErrorKind::Other, ErrorKind::StorageFull]);
                self.fs.fail(Call::SyncData, after, 1, kind);
            }
            1 => {
                let call = self.random.pick(&[Call::Write, Call::Allocate]);
                self.fs.fail(call, after, 1, ErrorKind::StorageFull);
            }
            2 => self.fs.fail(Call::SyncDir, after, 1, ErrorKind::Other),
            _ => {
                let room = self.random.below(40_000) as u64;
                self.fs.set_capacity(Some(self.fs.used() + room));
            }
        }
    }

    /// Somebody makes room, and the server finds it.
    fn room(&mut self, process: &mut Process) {
        self.fs.set_capacity(None);
        if self.model.disk_full && process.journal.ensure_room().is_ok() {
            self.model.disk_full = false;
            process.engine.set_disk_full(false);
        }
    }
}

/// An engine's event is the oracle's. At the compact revision the version before is gone.
fn same(event: &engine::history::Event, expected: &Event, compacted: i64) -> bool {
    let live = |tail: &Option<std::sync::Arc<[u8]>>| {
        let fields = tail.as_deref().map(tail::decode);
        fields.map(|f| (Bytes::copy_from_slice(f.value), f.mod_revision, f.version))
    };
    let old = expected.old.as_ref();
    let old = old.filter(|_| expected.revision > compacted);
    let of = |live: &crate::model::Live| (live.value.clone(), live.modified, live.version);
    event.revision.main == expected.revision
        && event.key[..] == expected.key[..]
        && live(&event.tail) == expected.new.as_ref().map(of)
        && live(&event.prev) == old.map(of)
}

/// Damages the last commit but for its mark, and starts; whether the start was refused.
pub(crate) fn damage_is_noticed(seed: u64, mark: bool) -> Result<bool, String> {
    let fs = SimFs::new(seed);
    let mut random = Rng::new(seed);
    let guards = Guards {
        mark,
        ..Guards::default()
    };
    let open = |fs: &SimFs, feed: &mut Feed| {
        Journal::open(fs.shared(), Path::new(DIR), options(65_536, guards), feed)
    };
    let mut feed = Feed(Engine::new(limits()));
    let (mut journal, _) = open(&fs, &mut feed).map_err(|e| e.to_string())?;
    let commits = random.between(1, 6);
    for n in 0..commits {
        let key = Bytes::from(format!("k{n}"));
        let effect = engine::record::Effect::Put {
            key,
            value: Bytes::from_static(b"value"),
            lease: 0,
        };
        journal
            .commit(&[Record::Txn(vec![effect])], 1 + n)
            .map_err(|e| e.to_string())?;
    }
    journal.mark(1 + commits).map_err(|e| e.to_string())?;
    // The mark reaches the disk in its own time; here it does.
    let fs = fs.kill(seed);
    let segments = fs.list().into_iter();
    let used = |path: &std::path::PathBuf| {
        let bytes = fs.contents(path).unwrap_or_default();
        let pages: Vec<usize> = bytes
            .chunks(4096)
            .enumerate()
            .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            .map(|(n, _)| n)
            .collect();
        pages
    };
    let log = segments
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .max_by_key(|path| used(path).len())
        .ok_or("no segment")?;
    let pages = used(&log);
    let last_commit = pages[pages.len() - 2] * 4096;
    fs.flip_bit(
        &log,
        last_commit + 40 + random.below(20),
        random.below(8) as u8,
    )
    .map_err(|e| e.to_string())?;
    match open(&fs, &mut Feed(Engine::new(limits()))) {
        Err(OpenError::Damaged(_)) => Ok(true),
        Err(error) => Err(format!("seed {seed}: {error}")),
        Ok(_) => Ok(false),
    }
}
