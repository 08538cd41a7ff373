//! The simulated machine: a disk, a process with engine and journal, clients, watchers.

mod damage;
mod work;

pub(crate) use damage::damage_is_noticed;

use crate::model::Model;
use bytes::Bytes;
use e2e::differential::rng::Rng;
use engine::hash::KvHash;
use engine::op::{KeyRange, RangeOp, Write};
use engine::pin::Strength;
use engine::record::{Record, SnapshotItem};
use engine::sequencer::{Answers, Batch};
use engine::snapshot::SnapshotCursor;
use engine::{Engine, Error, Lane, Limits};
use files::sim::{Lies, MEMORY, SimFs};
use journal::{
    Guards, Journal, Lsn, NewDirectory, OpenError, Options, Position, SnapshotWriter,
    VolatileWriter,
};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const DIR: &str = "/data";
const KEYS: usize = 12;
const LIVES: usize = 6;
/// An epoch reserves more revisions than a seed uses.
const EPOCH: i64 = 1_000_000;

/// What is taken away from the disk or the journal, to see the oracle notice.
#[derive(Clone, Copy, Default)]
pub(crate) struct Without {
    pub(crate) lies: Lies,
    pub(crate) guards: Guards,
}

/// What happened, so that a run in which little does can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

const WHAT: [&str; 20] = [
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
    "volatile writes",
    "volatile writes during a sync",
    "switches to strict",
    "switches from strict",
    "kills within an epoch",
    "power losses within an epoch",
    "power losses that took something",
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

/// A snapshot under way.
struct Running {
    writer: SnapshotWriter,
    head: VecDeque<SnapshotItem>,
    cursor: SnapshotCursor,
    at: Position,
}

/// What a volatile batch came to: its frame, its records, the answers.
type Done = (Lsn, Vec<Record>, Answers<u64>);

/// A server.
struct Process {
    engine: Arc<Mutex<Engine<u64>>>,
    journal: Journal,
    writer: VolatileWriter,
    /// Durable batches taken.
    taken: VecDeque<Batch>,
    /// The volatile batch that waits for its epoch.
    waiting: Option<Batch>,
    /// What became visible while a sync was under way, in that order.
    meanwhile: Arc<Mutex<Vec<Done>>>,
    /// Whether volatile writes are asked for, and the generation of that rule.
    volatile: bool,
    rules: u64,
    snapshot: Option<Running>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    fn engine(&self) -> MutexGuard<'_, Engine<u64>> {
        locked(&self.engine)
    }
}

/// A batch that was visible: in the order of visibility.
struct Logged {
    lsn: Lsn,
    records: Vec<Record>,
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
    /// The oracle as it was at the last start, and what became visible since.
    base: Model,
    log: Vec<Logged>,
    /// All frames up to here were on disk when something was answered.
    floor: Lsn,
    /// The power has gone since the last start.
    lost_power: bool,
    /// The last process had a marker in memory.
    marker: bool,
}

type Checked = Result<(), String>;

/// How a process ended.
enum End {
    Clean,
    /// With the records of the writes that gave no answer.
    Died(Vec<Vec<Record>>),
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
        ..NewDirectory::default()
    });
    options.segment_bytes = segment_bytes;
    options.guards = guards;
    options.marker_dir = Some(PathBuf::from(MEMORY));
    options
}

fn hash(engine: &Engine<u64>) -> Result<KvHash, String> {
    let mut cursor = engine.hash_open(0).map_err(|e| e.to_string())?;
    while !engine.hash_step(&mut cursor, 3) {}
    Ok(cursor.finish_hash(&mut || ()))
}

/// What a store holds, whatever the revisions: value, number of puts, lease.
type Contents = BTreeMap<Bytes, (Bytes, i64, i64)>;

fn contents(engine: &Engine<u64>) -> Contents {
    let op = RangeOp {
        range: KeyRange {
            key: Bytes::from_static(b"\0"),
            end: Bytes::from_static(b"\0"),
        },
        ..RangeOp::default()
    };
    let Ok(cursor) = engine.range_open(op, Strength::Firm, usize::MAX) else {
        return Contents::new();
    };
    let of = |kv: &engine::tail::KeyValue| {
        let f = kv.fields();
        let value = Bytes::copy_from_slice(f.value);
        (Bytes::copy_from_slice(&kv.key), (value, f.version, f.lease))
    };
    cursor.finish().kvs.iter().map(of).collect()
}

fn contents_of(model: &Model) -> Contents {
    let of = |(key, live): (&Bytes, &crate::model::Live)| {
        (key.clone(), (live.value.clone(), live.version, live.lease))
    };
    model.keys.iter().map(of).collect()
}

/// A store with the same history, from a snapshot.
fn mirror_of(engine: &Engine<u64>) -> Engine<u64> {
    let (mut cursor, head) = engine.snapshot_open();
    let mut mirror = Engine::new(limits());
    mirror.restore_begin(cursor.meta);
    head.into_iter().for_each(|item| mirror.restore_item(item));
    let mut keys = Vec::new();
    while !engine.snapshot_step(&mut cursor, 100, &mut keys) {}
    keys.into_iter()
        .for_each(|key| mirror.restore_item(key.into_item()));
    mirror.restore_end();
    mirror
}

/// The records of every selection of `all`, in order, but for none.
fn subsets(all: &[Vec<Record>]) -> Vec<Vec<Record>> {
    (1..1 << all.len())
        .map(|mask: usize| {
            let chosen = all.iter().enumerate().filter(|(n, _)| mask >> n & 1 == 1);
            chosen.flat_map(|(_, records)| records.clone()).collect()
        })
        .collect()
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
        base: Model::new(),
        log: Vec::new(),
        floor: 0,
        lost_power: false,
        marker: false,
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
    fn start(&mut self, unanswered: &[Vec<Record>], safe: bool) -> Result<Option<Process>, String> {
        if !safe && self.random.chance(15) {
            self.fs.crash_after(1 + self.random.below(25) as u64);
        }
        let segment_bytes = self.random.pick(&[16, 32, 64]) * 1024;
        let mut engine = Engine::new(limits());
        let opened = Journal::open(
            self.fs.shared(),
            Path::new(DIR),
            options(segment_bytes, self.without.guards),
            &mut engine,
        );
        let (journal, report) = match opened {
            Ok(opened) => opened,
            Err(_) if self.fs.crashed() => {
                self.tally.count("starts that were cut off");
                self.crash();
                return self.start(unanswered, safe);
            }
            // What a power loss took must be noted before anyone is served.
            Err(OpenError::NoSpace { .. }) => {
                self.fs.set_capacity(None);
                return self.start(unanswered, safe);
            }
            Err(error) => return Err(format!("refused: {error}")),
        };
        if report.snapshot_lsn > 0 {
            self.tally.count("starts from a snapshot");
        }
        let jumped = match &report.epoch {
            Some(epoch) if !epoch.trusted => Some(epoch.jumped_to.ok_or("it did not jump")?),
            // A start that was cut off has seen to it.
            None if (self.lost_power || !self.marker)
                && engine.revision() > self.model.revision + EPOCH / 2 =>
            {
                Some(engine.revision())
            }
            _ => None,
        };
        match jumped {
            Some(to) => self.beyond(&engine, to, unanswered)?,
            None => self.nothing_is_missing(&engine, unanswered)?,
        }
        if let Some(epoch) = &report.epoch {
            ensure(epoch.trusted || self.lost_power || !self.marker, || {
                format!("a killed process was not trusted: {}", epoch.reason)
            })?;
            self.tally.count(if self.lost_power {
                "power losses within an epoch"
            } else {
                "kills within an epoch"
            });
        }
        self.lost_power = false;
        self.log.clear();
        self.base = self.model.clone();
        engine.renew_leases(self.model.now_ms);
        engine.set_compaction_hashes(true);
        for (id, (ttl_s, _)) in self.model.leases.clone() {
            self.model.renew(id, ttl_s);
        }
        engine.set_disk_full(report.no_space);
        self.model.disk_full = report.no_space;
        self.floor = journal.position().lsn();
        let mut process = Process {
            engine: Arc::new(Mutex::new(engine)),
            writer: journal.volatile(),
            journal,
            taken: VecDeque::new(),
            waiting: None,
            meanwhile: Arc::default(),
            volatile: false,
            rules: 0,
            snapshot: None,
        };
        for n in 0..self.watchers.len() {
            self.watch(&mut process, n)?;
        }
        Ok(Some(process))
    }

    /// All that was visible is there, and what was under way is there whole or not at all.
    fn nothing_is_missing(&mut self, engine: &Engine<u64>, unanswered: &[Vec<Record>]) -> Checked {
        let mut last = self.matches(engine);
        // Writes that gave no answer, in log order: of several, any may be there.
        for some in subsets(unanswered) {
            if last.is_ok() {
                break;
            }
            let (model, mirror) = (self.model.clone(), mirror_of(&self.mirror));
            some.iter().for_each(|record| self.happened(record));
            last = self.matches(engine);
            if last.is_ok() {
                self.tally.count("batches whose answer the crash swallowed");
            } else {
                (self.model, self.mirror) = (model, mirror);
            }
        }
        last
    }

    /// After a power loss within an epoch: what is there is what the log held up to some
    /// frame, and all that was on disk when something was answered; revisions go on above
    /// all that were shown, and everybody lists again.
    fn beyond(&mut self, engine: &Engine<u64>, to: i64, unanswered: &[Vec<Record>]) -> Checked {
        let now = (engine.revision(), engine.compact_revision());
        ensure(now == (to, to) && to > self.model.revision, || {
            format!(
                "it jumped to {to}, is at {now:?}, and had shown {}",
                self.model.revision
            )
        })?;
        let found = contents(engine);
        let mut leases = engine.lease_ids();
        leases.sort_unstable();
        let same = |then: &Model| {
            contents_of(then) == found && then.leases.keys().copied().eq(leases.iter().copied())
        };
        let newest = self.log.iter().map(|l| l.lsn).max().unwrap_or(0);
        let mut cuts: Vec<Lsn> = self.log.iter().map(|l| l.lsn).collect();
        cuts.push(self.floor);
        cuts.retain(|cut| *cut >= self.floor);
        cuts.sort_unstable();
        let mut more = subsets(unanswered);
        more.insert(0, Vec::new());
        let survived = cuts.iter().rev().find_map(|cut| {
            let mut then = self.base.clone();
            let there = self.log.iter().filter(|l| l.lsn <= *cut);
            there
                .flat_map(|l| &l.records)
                .for_each(|record| then.apply(record));
            more.iter().find_map(|some| {
                let mut then = then.clone();
                some.iter().for_each(|record| then.apply(record));
                same(&then).then_some((*cut, then))
            })
        });
        let Some((cut, mut then)) = survived else {
            return Err(format!(
                "after a power loss there is {found:?} with leases {leases:?}, which no end of the log at or after {} gives",
                self.floor
            ));
        };
        if cut < newest {
            ensure(self.lost_power, || {
                format!("a kill took what came after {cut}, up to {newest}")
            })?;
            self.tally.count("power losses that took something");
        }
        // From here on with the revisions that there are now.
        then.rebase(to, |key| {
            engine.version_of(key).map(|tail| {
                let f = engine::tail::decode(&tail);
                (f.create_revision, f.mod_revision)
            })
        });
        self.model = then;
        self.mirror = mirror_of(engine);
        Ok(())
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
        let cursor = engine.range_open(op, Strength::Firm, usize::MAX);
        let cursor = cursor.map_err(|e| e.to_string())?;
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
                40..50 => self.take(process),
                50..62 => {
                    if let Some(records) = self.commit(process)? {
                        return Ok(End::Died(records));
                    }
                }
                62..73 => {
                    if let Some(records) = self.write_volatile(process)? {
                        return Ok(End::Died(records));
                    }
                }
                73..76 => {
                    if let Some(records) = self.switch(process)? {
                        return Ok(End::Died(records));
                    }
                }
                76..82 => self.snapshot(process),
                82..85 => self.compact(process),
                85..90 => {
                    let n = self.random.below(self.watchers.len());
                    self.watch(process, n)?;
                }
                90..93 => self.pass_time(process)?,
                93 => drop(process.journal.allocator().step()),
                94 => {
                    let engine = process.engine.clone();
                    if process.journal.mark(|| locked(&engine).revision()).is_err() {
                        return Ok(End::Died(Vec::new()));
                    }
                }
                95 if !last => self.break_something(),
                96 => self.room(process),
                _ => {
                    let from = self.model.compacted.max(1);
                    let at = self.random.between(from, self.model.revision);
                    self.range_matches(&process.engine(), at)?;
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
            let (admitted, done) = process.engine().lane_progress(Lane::Volatile);
            if process.taken.is_empty() && admitted == done {
                return Ok(End::Clean);
            }
            if let Some(records) = self.commit(process)? {
                return Ok(End::Died(records));
            }
            if let Some(records) = self.write_volatile(process)? {
                return Ok(End::Died(records));
            }
        }
    }

    /// What remains of a process; returns the records that may or may not have happened.
    fn after(&mut self, process: Process, end: End) -> Vec<Vec<Record>> {
        self.asked.clear();
        self.marker = process.journal.volatile_status().marker.is_some();
        let unanswered = match end {
            End::Clean => {
                let mut answers = Answers::new();
                let revision = {
                    let mut engine = process.engine();
                    engine.abandon(Error::Stopped, &mut answers);
                    engine.revision()
                };
                drop(process.snapshot);
                // On a disk that fails it is a crash like any other.
                drop(process.journal.close(revision));
                self.tally.count("clean stops");
                Vec::new()
            }
            End::Died(records) => records,
        };
        self.crash();
        // What a process drops only now, it drops on a disk that nobody looks at any more: a
        // dead one removes no half-made snapshot.
        unanswered
    }

    fn crash(&mut self) {
        let seed = self.random.bits();
        self.fs = if self.random.chance(35) {
            self.tally.count("kills");
            self.fs.kill(seed)
        } else {
            self.tally.count("power losses");
            self.lost_power = true;
            self.fs.power_loss(seed)
        };
        self.fs.heal();
        self.fs.lie(self.without.lies);
        if self.random.chance(80) {
            self.fs.set_capacity(None);
        }
    }
}
