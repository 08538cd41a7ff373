//! Random lives of a server on the simulated disk, each ended by a crash.
//!
//! The oracle: after every start the store is what was acknowledged, in order, and perhaps
//! the one commit whose answer never came, whole; nothing else. A commit refused for want
//! of space is not there. `JOURNAL_SEEDS=N` runs more seeds, `JOURNAL_SEED=S` only one.

use crate::support::*;
use engine::record::{Effect, Record, SnapshotItem, SnapshotMeta};
use files::sim::{Call, Lies, Random, SimFs};
use journal::{Guards, OpenError, Options, Position, SnapshotWriter};
use std::io::ErrorKind;
use std::path::Path;

/// What is taken away from the disk or the journal, to see the oracle notice.
#[derive(Clone, Copy, Default)]
struct Without {
    lies: Lies,
    guards: Guards,
}

struct Life {
    seed: u64,
    random: Random,
    fs: SimFs,
    without: Without,
    acknowledged: Store,
    /// The commit that got no answer.
    unanswered: Vec<Record>,
    next: u64,
}

/// A snapshot under way while commits go on.
struct Running {
    writer: SnapshotWriter,
    items: std::vec::IntoIter<SnapshotItem>,
    at: Position,
}

impl Life {
    fn new(seed: u64, without: Without) -> Self {
        let fs = SimFs::new(seed);
        Life {
            seed,
            random: Random::new(seed ^ 0xdead),
            fs,
            without,
            acknowledged: Store::new(),
            unanswered: Vec::new(),
            next: 0,
        }
    }

    fn options(&mut self) -> Options {
        let mut options = options();
        options.segment_bytes = [16, 32, 64][self.random.below(3) as usize] * 1024;
        options.spare_segments = self.random.below(3) as usize;
        options.guards = self.without.guards;
        options
    }

    fn records(&mut self) -> Vec<Record> {
        let count = 1 + self.random.below(4);
        (0..count)
            .map(|_| {
                self.next += 1;
                let key = format!("p{}", self.next);
                let size = match self.random.below(20) {
                    0 => 40_000,
                    1..4 => self.random.below(9000),
                    _ => self.random.below(300),
                };
                let fill = self.random.next_u64();
                match self.random.below(12) {
                    0 => Record::Txn(vec![Effect::Delete {
                        key: format!("d{key}").into(),
                    }]),
                    1 => Record::Compact {
                        revision: 1 + self.random.below(3) as i64,
                    },
                    _ => {
                        let value: Vec<u8> = (0..size)
                            .map(|n| (fill >> (n % 8 * 8)) as u8 ^ n as u8)
                            .collect();
                        put(&key, &value)
                    }
                }
            })
            .collect()
    }

    fn check(&self, found: &Store) -> Result<(), String> {
        let fail = |what: String| Err(format!("seed {}: {what}", self.seed));
        let expected = &self.acknowledged.records;
        if found.records.len() < expected.len() {
            let (n, m) = (found.records.len(), expected.len());
            return fail(format!("{n} of {m} acknowledged records are there"));
        }
        if found.records[..expected.len()] != expected[..] {
            return fail("acknowledged records have changed".to_owned());
        }
        let rest = &found.records[expected.len()..];
        if !rest.is_empty() && rest != &self.unanswered[..] {
            return fail(format!(
                "{} records are there that nobody sent so",
                rest.len()
            ));
        }
        let mut store = self.acknowledged.clone();
        rest.iter().for_each(|record| store.apply(record.clone()));
        if store.revision != found.revision {
            return fail(format!(
                "revision {} is not {}",
                found.revision, store.revision
            ));
        }
        Ok(())
    }

    /// One start, some work, one end.
    fn live(&mut self) -> Result<(), String> {
        if !self.random.one_in(4) {
            self.fs.crash_after(1 + self.random.below(120));
        }
        let options = self.options();
        let (server, report) = match Server::open_with(&self.fs, options) {
            Ok(opened) => opened,
            Err(_) if self.fs.crashed() => return Ok(()),
            Err(OpenError::Locked { .. }) => return Err("still locked".to_owned()),
            Err(error) => return Err(format!("seed {}: refused: {error}", self.seed)),
        };
        self.check(&server.store)?;
        if !report.warnings.is_empty() {
            return Err(format!("seed {}: {:?}", self.seed, report.warnings));
        }
        self.acknowledged = server.store.clone();
        self.unanswered.clear();
        // From here on: that a directory half made is made anew proves nothing.
        self.fs.lie(self.without.lies);
        self.work(server);
        Ok(())
    }

    fn work(&mut self, mut server: Server) {
        let allocator = server.journal.allocator();
        let mut running: Option<Running> = None;
        for _ in 0..self.random.below(60) {
            match self.random.below(20) {
                0 => drop(allocator.step()),
                1 => drop(server.journal.mark(|| server.store.revision)),
                2 if self.random.one_in(5) => {
                    let kind = if self.random.one_in(2) {
                        ErrorKind::Other
                    } else {
                        ErrorKind::StorageFull
                    };
                    self.fs.fail(Call::SyncData, self.random.below(3), 1, kind);
                }
                3 if self.random.one_in(3) => {
                    let call = if self.random.one_in(2) {
                        Call::Write
                    } else {
                        Call::Allocate
                    };
                    self.fs
                        .fail(call, self.random.below(3), 1, ErrorKind::StorageFull);
                }
                4 => {
                    let room = self.random.below(60_000);
                    let limit = self.random.one_in(2).then(|| self.fs.used() + room);
                    self.fs.set_capacity(limit);
                }
                5..8 => running = self.step_snapshot(&mut server, running),
                _ => {
                    let records = self.records();
                    match server.commit(records.clone()) {
                        Ok(_) => self.acknowledged = server.store.clone(),
                        Err(error) if error.is_no_room() => {}
                        Err(_) => {
                            self.unanswered = records;
                            break;
                        }
                    }
                }
            }
        }
        drop(running);
        if self.random.one_in(4) {
            drop(server.close());
        }
    }

    fn step_snapshot(&mut self, server: &mut Server, running: Option<Running>) -> Option<Running> {
        let Some(mut running) = running else {
            let at = server.journal.snapshot_position(|| ()).ok()?.0;
            let meta = SnapshotMeta {
                revision: server.store.revision,
                compact_revision: -1,
            };
            let writer = SnapshotWriter::create(self.fs.shared(), Path::new(DIR), meta, at).ok()?;
            return Some(Running {
                writer,
                items: items(&server.store).into_iter(),
                at,
            });
        };
        for _ in 0..1 + self.random.below(40) {
            let Some(item) = running.items.next() else {
                running.writer.finish().ok()?;
                if !self.random.one_in(5) {
                    drop(server.journal.allocator().retire(running.at));
                }
                return None;
            };
            running.writer.push(&item).ok()?;
        }
        Some(running)
    }

    fn end(&mut self) {
        let seed = self.random.next_u64();
        let lies = self.without.lies;
        self.fs = if self.random.one_in(3) {
            self.fs.kill(seed)
        } else {
            self.fs.power_loss(seed)
        };
        self.fs.lie(lies);
        self.fs.set_capacity(None);
    }
}

fn run(seed: u64, without: Without) -> Result<(), String> {
    let mut life = Life::new(seed, without);
    for _ in 0..8 {
        life.live()?;
        life.end();
    }
    life.fs.heal();
    let options = life.options();
    let (server, _) = Server::open_with(&life.fs, options)
        .map_err(|error| format!("seed {seed}: refused: {error}"))?;
    life.check(&server.store)
}

#[test]
fn nothing_acknowledged_is_lost_in_any_crash() {
    if let Some(seed) = number("JOURNAL_SEED") {
        run(seed, Without::default()).unwrap();
        return;
    }
    let seeds = number("JOURNAL_SEEDS").unwrap_or(2000);
    all_hold(0..seeds, |seed| run(seed, Without::default()));
}

/// Without a guard, the same lives must come to a bad end.
fn fails_without(without: Without) {
    let failed = (0..500).filter(|seed| run(*seed, without).is_err()).count();
    assert!(failed > 0, "no seed noticed that the guard is gone");
}

#[test]
fn guard_fdatasync() {
    fails_without(Without {
        lies: Lies {
            sync_data: true,
            ..Lies::default()
        },
        ..Without::default()
    });
}

#[test]
fn guard_directory_sync() {
    fails_without(Without {
        lies: Lies {
            sync_dir: true,
            ..Lies::default()
        },
        ..Without::default()
    });
}

#[test]
fn guard_checksum() {
    fails_without(Without {
        guards: Guards {
            checksum: false,
            ..Guards::default()
        },
        ..Without::default()
    });
}

/// Without fsync a kill loses nothing, and a power loss leaves a beginning of what was sent.
#[test]
fn without_fsync_a_power_loss_leaves_a_prefix() {
    let mut lost = 0;
    for seed in 0..500 {
        let mut life = Life::new(seed, Without::default());
        for _ in 0..4 {
            let mut options = life.options();
            options.no_fsync = true;
            let (mut server, _) = Server::open_with(&life.fs, options)
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let (found, sent) = (&server.store.records, &life.acknowledged.records);
            assert!(sent.starts_with(found), "seed {seed}");
            lost += sent.len() - found.len();
            let mut running = None;
            for _ in 0..life.random.below(40) {
                let records = life.records();
                server.commit(records).unwrap();
                running = life.step_snapshot(&mut server, running);
            }
            life.acknowledged = server.store.clone();
            drop((running, server));
            let killed = life.fs.kill(seed);
            let (server, _) =
                Server::open(&killed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(server.store, life.acknowledged, "seed {seed}");
            life.fs = life.fs.power_loss(life.random.next_u64());
        }
    }
    assert!(lost > 100, "{lost}");
}

/// The crash at every single call of a fixed run, twice: power and process.
#[test]
fn a_crash_at_every_call() {
    let script = |server: &mut Server, fs: &SimFs| -> Result<(), Vec<Record>> {
        for n in 0..12u8 {
            let records = vec![put(&format!("p{n}"), &vec![n; 3500 * usize::from(n % 4)])];
            server.commit(records.clone()).map_err(|_| records)?;
            if n % 5 == 4
                && let Ok((at, ())) = server.journal.snapshot_position(|| ())
                && snapshot(fs, &server.store, at).is_ok()
            {
                drop(server.journal.allocator().retire(at));
            }
        }
        Ok(())
    };
    let fs = SimFs::new(0);
    script(&mut Server::open(&fs).unwrap().0, &fs).unwrap();
    let steps = fs.steps();
    assert!(steps > 60);
    for at in 1..=steps {
        for seed in 0..20 {
            let mut life = Life::new(at * 100 + seed, Without::default());
            life.fs.crash_after(at);
            if let Ok((mut server, _)) = Server::open(&life.fs) {
                life.unanswered = script(&mut server, &life.fs).err().unwrap_or_default();
                life.acknowledged = server.store.clone();
            }
            assert!(life.fs.crashed());
            let next = if seed % 4 == 0 {
                life.fs.kill(seed)
            } else {
                life.fs.power_loss(seed)
            };
            let (server, _) = Server::open(&next)
                .unwrap_or_else(|error| panic!("step {at}, seed {seed}: {error}"));
            life.check(&server.store)
                .unwrap_or_else(|e| panic!("step {at}: {e}"));
        }
    }
}
