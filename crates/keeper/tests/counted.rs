//! A counted keeper under one seed: a server that asks [`copies::counted`] what it may show, with
//! its directory and its log, and a real keeper on a disk that loses power; connections that break
//! or fall silent, starts of the server in either mode; and in the end the server's machine is lost,
//! and the copy is promoted. With *wait* nothing that was shown is missing; a promotion is exact
//! only then; and the server's directory never says that a keeper has all that has not.
//!
//! The server is a model here: no server counts a keeper yet.
//!
//! `ORLOP_COUNTED_SEED=N cargo test -p keeper --test counted` replays a failure,
//! `ORLOP_COUNTED_SEEDS=N` runs more.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use bytes::Bytes;
use copies::counted::{Act, Counted, Guards, Noted, WhenGone};
use copies::message::{Ack, Batch, Entry, Welcome};
use engine::record::{Effect, Record};
use engine::{Engine, Limits};
use files::sim::SimFs;
use journal::{Lane, Position, SnapshotEncoder};
use keeper::{Error, Keeper, Options, Request, promote};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::path::Path;

const DIR: &str = "/keeper";
const JUMP: i64 = 1_000_000_000;

type Store = Engine<()>;

/// Which modes a server is started in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Modes {
    Wait,
    GoOn,
    Either,
}

fn put(number: usize) -> Record {
    Record::Txn(vec![Effect::Put {
        key: Bytes::from(format!("k{number}")),
        value: Bytes::from_static(&[7; 50]),
        lease: 0,
    }])
}

fn options() -> Options {
    Options {
        name: "b".to_owned(),
        salt: 23,
        segment_bytes: 64 << 10,
        guards: keeper::Guards::default(),
    }
}

fn snapshot(store: &Store) -> Vec<u8> {
    let (mut cursor, _) = store.snapshot_open();
    let mut encoder = SnapshotEncoder::new(Vec::new(), cursor.meta, Position::default()).unwrap();
    let mut keys = Vec::new();
    while !store.snapshot_step(&mut cursor, 100, &mut keys) {}
    for key in keys {
        encoder.push(&key.into_item()).unwrap();
    }
    encoder.finish().unwrap()
}

/// One run of the server.
struct Server {
    counted: Counted,
    stream: u64,
    /// What is visible, if anything is shown.
    store: Store,
    /// The tap: the first has sequence 1.
    entries: Vec<Entry>,
    /// The last entry that is visible.
    shown: u64,
    /// The next one, which is on the server's disk.
    ordered: Option<Record>,
}

enum Said {
    Batch(Batch),
    Waits,
}

/// A connection. It may outlast the server's run, as what has come and was not read yet does.
struct Line {
    session: u64,
    stream: u64,
    has: u64,
    to_keeper: VecDeque<Said>,
    to_server: VecDeque<Ack>,
}

struct World {
    rng: StdRng,
    guards: Guards,
    modes: Modes,
    server: Server,
    /// The server's disk: what is noted of the keeper, and how many writes are in the log.
    dir: Noted,
    log: usize,
    keeper: Option<Keeper>,
    fs: SimFs,
    line: Option<Line>,
    /// Of streams and of connections.
    last_number: u64,
    /// The highest revision that anybody was shown.
    shown_revision: i64,
}

impl World {
    fn new(seed: u64, modes: Modes, guards: Guards) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let fs = SimFs::new(seed);
        let mode = mode(&mut rng, modes);
        World {
            server: start(mode, Noted::Never, guards, 1, 0),
            guards,
            modes,
            dir: Noted::Never,
            log: 0,
            keeper: Some(Keeper::open(fs.shared(), Path::new(DIR), options()).unwrap()),
            fs,
            line: None,
            last_number: 1,
            shown_revision: 1,
            rng,
        }
    }

    /// The process dies, or the machine loses power: what is on the disk is there again.
    fn restart_server(&mut self) {
        let mode = mode(&mut self.rng, self.modes);
        self.last_number += 1;
        self.server = start(mode, self.dir, self.guards, self.last_number, self.log);
        if self.rng.random_bool(0.5) {
            self.line = None;
        }
    }

    /// Shows what may be shown.
    fn show(&mut self) {
        let server = &mut self.server;
        if server.counted.may_serve() {
            self.shown_revision = self.shown_revision.max(server.store.revision());
        }
        if server.counted.may_show(server.shown + 1)
            && let Some(record) = server.ordered.take()
        {
            server.store.apply(record);
            server.shown += 1;
            self.shown_revision = self.shown_revision.max(server.store.revision());
        }
    }

    fn write(&mut self) {
        let server = &mut self.server;
        if server.ordered.is_some() || !server.counted.may_serve() {
            return;
        }
        let (record, revision) = (put(self.log), server.store.revision());
        self.log += 1;
        let sequence = server.shown + 1;
        let records = vec![record.clone()];
        let entry = journal::Entry::for_tests(sequence, sequence, revision, Lane::Durable, records);
        server.entries.push(Entry::of(&entry));
        server.ordered = Some(record);
    }

    fn connect(&mut self) {
        if self.line.is_some() {
            return;
        }
        let (server, Some(keeper)) = (&mut self.server, &mut self.keeper) else {
            return;
        };
        self.last_number += 1;
        let session = self.last_number;
        server.counted.joined(session);
        let position = keeper.hello().position;
        let goes_on = position.filter(|at| at.stream == server.stream);
        let after = goes_on.map_or(server.shown, |at| at.sequence);
        let welcome = Welcome {
            version: copies::VERSION,
            cluster_id: 0xc,
            member_id: 1,
            name: "a".to_owned(),
            raft_term: 2,
            stream: server.stream,
            after,
            snapshot: goes_on.is_none(),
            revision: server.store.revision(),
        };
        let mut line = Line {
            session,
            stream: server.stream,
            has: after,
            to_keeper: VecDeque::new(),
            to_server: VecDeque::new(),
        };
        let bytes = snapshot(&server.store);
        let joined = keeper.welcome(&welcome).and_then(|()| match goes_on {
            Some(_) => Ok(()),
            None => keeper.snapshot(&welcome, &bytes[..]),
        });
        match joined {
            Ok(()) => {
                line.to_server.extend(keeper.ack());
                self.line = Some(line);
            }
            Err(error) => self.keeper_failed(&error),
        }
    }

    fn send(&mut self) {
        let (server, Some(line)) = (&self.server, &mut self.line) else {
            return;
        };
        if line.stream != server.stream {
            return;
        }
        if let Some(entry) = server.entries.get(line.has as usize) {
            line.has += 1;
            line.to_keeper.push_back(Said::Batch(Batch {
                first: line.has,
                entries: vec![entry.clone()],
                unix_ms: 1,
                stream: line.stream,
            }));
        }
    }

    fn deliver(&mut self) {
        let (Some(line), Some(keeper)) = (&mut self.line, &mut self.keeper) else {
            return;
        };
        let Some(said) = line.to_keeper.pop_front() else {
            return;
        };
        if self.rng.random_bool(0.03) {
            self.fs.crash_after(self.rng.random_range(1..8));
        }
        let taken = match said {
            Said::Batch(batch) => keeper.batch(&batch).map(drop),
            Said::Waits => keeper.waits(true),
        };
        let committed = taken.and_then(|()| match self.rng.random_bool(0.7) {
            true => keeper.commit().map(drop),
            false => Ok(()),
        });
        match committed {
            Ok(()) => line.to_server.extend(keeper.ack()),
            Err(error) => self.keeper_failed(&error),
        }
    }

    fn take_ack(&mut self) {
        let Some(line) = &mut self.line else { return };
        if let Some(ack) = line.to_server.pop_front()
            && ack.stream == self.server.stream
        {
            let shown = self.server.shown;
            self.server.counted.acked(line.session, ack.synced, shown);
        }
    }

    fn act(&mut self) {
        let shown = self.server.shown;
        match self.server.counted.act() {
            Some(Act::Note(noted)) => {
                let dies = self.rng.random_range(0..10);
                if dies != 0 {
                    self.dir = noted;
                }
                match dies {
                    0 | 1 => self.restart_server(),
                    _ => self.server.counted.noted(noted, shown),
                }
            }
            Some(Act::Promise { session }) => {
                assert_eq!(self.dir, Noted::Promised);
                self.server.counted.promised(session);
                if let Some(line) = self.line.as_mut().filter(|line| line.session == session) {
                    line.to_keeper.push_back(Said::Waits);
                }
            }
            None => {}
        }
    }

    fn break_line(&mut self) {
        if let Some(line) = self.line.take() {
            self.server.counted.lost(line.session);
        }
    }

    /// A keeper that stands still: the connection goes on, and the server does not wait for it.
    fn falls_silent(&mut self) {
        let wanted = self.server.shown + 1;
        if self.server.ordered.is_some() {
            self.server.counted.owes(wanted, 0, 10);
            self.server.counted.owes(wanted, 1000, 10);
        }
    }

    fn keeper_failed(&mut self, error: &Error) {
        assert!(self.fs.crashed(), "the keeper: {error}");
        self.keeper_dies();
    }

    fn keeper_dies(&mut self) {
        self.break_line();
        self.keeper = None;
        let seed = self.rng.random();
        self.fs = match self.rng.random_bool(0.5) {
            true => self.fs.kill(seed),
            false => self.fs.power_loss(seed),
        };
        let opened = Keeper::open(self.fs.shared(), Path::new(DIR), options());
        self.keeper = Some(opened.unwrap_or_else(|error| panic!("the keeper: {error}")));
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.write(),
            25..40 => self.send(),
            40..55 => self.deliver(),
            55..70 => self.take_ack(),
            70..80 => self.act(),
            80..88 => self.connect(),
            88..91 => self.break_line(),
            91..93 => self.falls_silent(),
            93..95 => self.keeper_dies(),
            95..97 => self.restart_server(),
            _ => {}
        }
        self.show();
    }

    /// The server's machine is lost, and the keeper's loses power.
    fn machine_lost(mut self) {
        self.keeper = None;
        let fs = self.fs.power_loss(self.rng.random());
        let keeper = Keeper::open(fs.shared(), Path::new(DIR), options()).unwrap();
        let has = keeper.standing().revision;
        drop(keeper);
        let (shown, dir) = (self.shown_revision, self.dir);
        let whole = has.max(1) >= shown;
        assert!(
            whole || self.modes != Modes::Wait,
            "with wait: the copy is at {has}, and {shown} was shown"
        );
        assert!(
            whole || dir == Noted::Left,
            "{dir:?}, the copy is at {has}, and {shown} was shown"
        );
        let request = Request {
            old_server_is_gone: true,
            old_data_dir: None,
            marker_dir: None,
            jump_by: JUMP,
        };
        let Ok(promotion) = promote(fs.shared(), Path::new(DIR), options(), &request) else {
            assert!(has <= 1, "a copy at {has} is not promoted");
            return;
        };
        assert_eq!(promotion.revision, has);
        match promotion.jumped_to {
            Some(to) => assert!(to > shown, "{to} after {shown}"),
            None => {
                assert!(whole, "exact at {has}, and {shown} was shown");
                assert!(
                    self.modes != Modes::GoOn,
                    "exact, with a server that goes on"
                );
            }
        }
    }
}

fn mode(rng: &mut StdRng, modes: Modes) -> WhenGone {
    match modes {
        Modes::Wait => WhenGone::Wait,
        Modes::GoOn => WhenGone::GoOn,
        Modes::Either if rng.random_bool(0.5) => WhenGone::Wait,
        Modes::Either => WhenGone::GoOn,
    }
}

fn start(mode: WhenGone, dir: Noted, guards: Guards, stream: u64, log: usize) -> Server {
    let mut store: Store = Engine::new(Limits::default());
    (0..log).for_each(|number| store.apply(put(number)));
    Server {
        counted: Counted::start(mode, dir, guards),
        stream,
        store,
        entries: Vec::new(),
        shown: 0,
        ordered: None,
    }
}

fn run(seed: u64, modes: Modes, guards: Guards) {
    let mut world = World::new(seed, modes, guards);
    for _ in 0..world.rng.random_range(50..400) {
        world.step();
    }
    world.machine_lost();
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn all_seeds(modes: Modes) {
    if let Some(seed) = variable("ORLOP_COUNTED_SEED") {
        return run(seed, modes, Guards::default());
    }
    for seed in 0..variable("ORLOP_COUNTED_SEEDS").unwrap_or(150) {
        let outcome = std::panic::catch_unwind(|| run(seed, modes, Guards::default()));
        assert!(outcome.is_ok(), "ORLOP_COUNTED_SEED={seed}");
    }
}

#[test]
fn with_wait_nothing_that_was_shown_is_lost_with_the_machine() {
    all_seeds(Modes::Wait);
}

#[test]
fn with_go_on_a_promotion_jumps_and_the_note_says_who_was_left() {
    all_seeds(Modes::GoOn);
}

#[test]
fn a_server_that_is_started_in_another_mode_breaks_no_promise() {
    all_seeds(Modes::Either);
}

/// Runs work, and not only by showing nothing: most writes of a run are shown in it, and some
/// promotions are exact.
#[test]
fn servers_that_count_a_keeper_show_what_is_written() {
    for modes in [Modes::Wait, Modes::GoOn, Modes::Either] {
        let (mut shown, mut promised) = (0, 0);
        for seed in 0..20 {
            let mut world = World::new(seed, modes, Guards::default());
            for _ in 0..300 {
                world.step();
            }
            shown += world.shown_revision - 1;
            promised += i32::from(world.dir == Noted::Promised);
        }
        assert!(shown >= 20, "{shown} writes of 20 runs");
        assert_eq!(promised > 0, modes != Modes::GoOn);
    }
}

/// Some seed up to a thousand fails without a protection; says which.
fn fails_without(name: &str, modes: Modes, guards: Guards) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let fails = |seed: &u64| std::panic::catch_unwind(|| run(*seed, modes, guards)).is_err();
    let found = (0..1000).find(fails);
    std::panic::set_hook(before);
    match found {
        Some(seed) => println!("without {name}, seed {seed} fails"),
        None => panic!("no seed fails without {name}"),
    }
}

#[test]
fn guards_are_needed() {
    let all = Guards::default();
    let synced = Guards {
        synced: false,
        ..all
    };
    fails_without("synced", Modes::Wait, synced);
    fails_without("note", Modes::GoOn, Guards { note: false, ..all });
    fails_without("all", Modes::GoOn, Guards { all: false, ..all });
    let start = Guards {
        start: false,
        ..all
    };
    fails_without("start", Modes::Wait, start);
    let promise = Guards {
        promise: false,
        ..all
    };
    fails_without("promise", Modes::Either, promise);
}
