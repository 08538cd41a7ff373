//! The simulated machine: a disk, a process with engine and journal, clients, watchers.

mod damage;
mod work;

pub(crate) use damage::damage_is_noticed;

use crate::model::Model;
use bytes::Bytes;
use e2e::differential::rng::Rng;
use engine::hash::KvHash;
use engine::op::{KeyRange, RangeOp, Write};
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use engine::sequencer::{Answers, Batch};
use engine::snapshot::SnapshotCursor;
use engine::{Engine, Error, Limits};
use journal::fs::sim::{Lies, SimFs};
use journal::{
    Guards, Journal, NewDirectory, OpenError, Options, Position, Replay, SnapshotWriter,
};
use std::collections::{BTreeMap, VecDeque};
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
    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.0.jump(revision)
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
    Ok(cursor.finish_hash(&mut || ()))
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
}
