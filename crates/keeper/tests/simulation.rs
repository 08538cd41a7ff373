//! A server's journal and tap, its backlog, a connection that breaks, and a keeper, under one
//! seed: killed processes, power losses, full stops, snapshots that break off, messages that come
//! late. What a keeper has is at any time exactly what the server showed at that place of its
//! stream; what it said that it has is there after any crash; and a promotion says that nothing is
//! missing only if nothing is.
//!
//! `ORLOP_KEEPER_SEED=N cargo test -p keeper --test simulation` replays a failure,
//! `ORLOP_KEEPER_SEEDS=N` runs more.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use bytes::Bytes;
use copies::admission::{self, Host, Start};
use copies::backlog::{Backlog, Next as Send};
use copies::message::{Batch, End, Entry, Hello, Said, Welcome};
use engine::record::{Effect, Record, SnapshotItem};
use engine::{Engine, Limits};
use files::sim::SimFs;
use journal::{
    Follower, Journal, Lane, NewDirectory, Next, Options, Replay, Role, SnapshotEncoder,
    VolatileWriter,
};
use keeper::{Guards, Keeper, Request, promote};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SERVER_DIR: &str = "/server";
const KEEPER_DIR: &str = "/keeper";
const CLUSTER: u64 = 0xc1;
const JUMP: i64 = 1_000_000_000;

type Store = Engine<()>;

fn step_items(store: &Store) -> Vec<SnapshotItem> {
    let (mut cursor, mut items) = store.snapshot_open();
    let mut keys = Vec::new();
    while !store.snapshot_step(&mut cursor, 1000, &mut keys) {}
    items.extend(keys.into_iter().map(|key| key.into_item()));
    items
}

/// All that a store holds, as text.
fn dump(store: &Store) -> String {
    let meta = store.snapshot_open().0.meta;
    format!("{meta:?} {:?}", step_items(store))
}

/// What goes wrong in a run.
#[derive(Clone, Copy, Default)]
struct Faults {
    keeper: Guards,
    admission: admission::Guards,
}

struct Server {
    fs: SimFs,
    journal: Journal,
    volatile: VolatileWriter,
    store: Arc<Mutex<Store>>,
    follower: Follower,
    stream: u64,
    backlog: Backlog<Bytes>,
    term: u64,
}

impl Server {
    fn open(fs: &SimFs, stream: u64) -> Server {
        let mut options = Options::new(NewDirectory {
            cluster_id: CLUSTER,
            member_id: 7,
            name: "a".to_owned(),
            salt: 11,
            ..NewDirectory::default()
        });
        options.segment_bytes = 64 << 10;
        options.marker_dir = Some(files::sim::MEMORY.into());
        let mut store = Engine::new(Limits::default());
        let opened = Journal::open(fs.shared(), Path::new(SERVER_DIR), options, &mut store);
        let (mut journal, _) = opened.unwrap_or_else(|error| panic!("the server: {error}"));
        journal.allow_volatile();
        let revision = store.revision();
        journal.upkeep(|| revision).unwrap();
        let (follower, ()) = journal.follow(1 << 20, || ());
        Server {
            fs: fs.clone(),
            volatile: journal.volatile(),
            backlog: Backlog::new(follower.after(), 6 << 10, 0),
            term: journal.identity().raft_term,
            store: Arc::new(Mutex::new(store)),
            journal,
            follower,
            stream,
        }
    }

    fn revision(&self) -> i64 {
        self.store.lock().unwrap().revision()
    }

    fn write(&mut self, lane: Lane, record: Record) {
        let (read, shown) = (self.store.clone(), self.store.clone());
        let records = vec![record.clone()];
        let revision = move || read.lock().unwrap().revision();
        let publish = move || Replay::record(&mut *shown.lock().unwrap(), record).unwrap();
        match lane {
            Lane::Durable => {
                self.journal.commit(&records, revision, publish).unwrap();
            }
            Lane::Volatile => {
                self.journal.upkeep(&revision).unwrap();
                let within = Duration::from_secs(30);
                self.volatile
                    .write(&records, within, revision, publish)
                    .unwrap();
            }
        }
    }

    /// From the tap to the backlog.
    fn feed(&mut self, dumps: &mut BTreeMap<(u64, u64), String>) {
        while let Next::Entry(entry) = self.follower.next(Duration::ZERO) {
            let store = self.store.lock().unwrap();
            dumps.insert((self.stream, entry.sequence), dump(&store));
            let batch = Batch {
                first: entry.sequence,
                entries: vec![Entry::of(&entry)],
                unix_ms: 1,
                stream: self.stream,
            };
            let bytes = Said::Batch(batch).into_bytes();
            let length = bytes.len() as u64;
            self.backlog.push(entry.sequence, 1, length, 0, bytes);
        }
    }

    fn host(&self) -> Host {
        Host {
            cluster_id: CLUSTER,
            raft_term: self.term,
            revision: self.revision(),
        }
    }

    fn snapshot(&self) -> (u64, i64, Vec<u8>) {
        let opened = self
            .journal
            .point(|| self.store.lock().unwrap().snapshot_open());
        let (point, (mut cursor, head)) = opened.unwrap();
        let mut encoder = SnapshotEncoder::new(Vec::new(), cursor.meta, point.position).unwrap();
        let revision = cursor.meta.revision;
        for item in &head {
            encoder.push(item).unwrap();
        }
        let mut keys = Vec::new();
        while !self
            .store
            .lock()
            .unwrap()
            .snapshot_step(&mut cursor, 3, &mut keys)
        {}
        for key in keys {
            encoder.push(&key.into_item()).unwrap();
        }
        (point.sequence, revision, encoder.finish().unwrap())
    }
}

/// A connection: what is on its way to the keeper.
struct Line {
    queue: VecDeque<Bytes>,
    has: u64,
    stream: u64,
    /// The stream's number as the keeper was told.
    told: u64,
}

struct World {
    rng: StdRng,
    faults: Faults,
    server: Option<Server>,
    server_fs: SimFs,
    keeper: Option<Keeper>,
    keeper_fs: SimFs,
    line: Option<Line>,
    /// A message of an earlier connection that comes again.
    late: Option<Bytes>,
    dumps: BTreeMap<(u64, u64), String>,
    streams: u64,
    /// What the keeper said that it has on its disk.
    acked: (u64, u64, i64),
    /// Highest revision that anybody was shown.
    shown: i64,
    /// The stream whose end the keeper has, as long as the server was not heard since.
    stopped: Option<(u64, String)>,
    term_seen: u64,
}

fn keeper_options(guards: Guards) -> keeper::Options {
    keeper::Options {
        name: "b".to_owned(),
        salt: 23,
        segment_bytes: 64 << 10,
        guards,
    }
}

fn open_keeper(fs: &SimFs, guards: Guards) -> Keeper {
    Keeper::open(fs.shared(), Path::new(KEEPER_DIR), keeper_options(guards))
        .unwrap_or_else(|error| panic!("the keeper: {error}"))
}

impl World {
    fn new(seed: u64, faults: Faults) -> World {
        let (server_fs, keeper_fs) = (SimFs::new(seed), SimFs::new(seed + 1));
        let server = Server::open(&server_fs, 1);
        World {
            rng: StdRng::seed_from_u64(seed),
            faults,
            term_seen: server.term,
            server: Some(server),
            server_fs,
            keeper: Some(open_keeper(&keeper_fs, faults.keeper)),
            keeper_fs,
            line: None,
            late: None,
            dumps: BTreeMap::new(),
            streams: 1,
            acked: (0, 0, 0),
            shown: 1,
            stopped: None,
        }
    }

    fn write(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let key = Bytes::from(format!("k{}", self.rng.random_range(0..6)));
        let value = Bytes::from(vec![b'v'; self.rng.random_range(1..200)]);
        let revision = server.revision();
        let exists = server.store.lock().unwrap().version_of(&key).is_some();
        let compacted = server.store.lock().unwrap().compact_revision();
        let record = match self.rng.random_range(0..10) {
            0 if exists => Record::Txn(vec![Effect::Delete { key }]),
            1 => Record::LeaseGrant {
                id: self.rng.random_range(1..1000),
                ttl_s: 60,
            },
            2 if revision > compacted.max(1) => Record::Compact {
                revision: self.rng.random_range(compacted.max(0)..=revision),
            },
            3 => Record::Alarm {
                alarm: 1,
                active: self.rng.random_bool(0.5),
            },
            _ => Record::Txn(vec![Effect::Put {
                key,
                value,
                lease: 0,
            }]),
        };
        let lane = match self.rng.random_bool(0.5) && record.takes_revision() {
            true => Lane::Volatile,
            false => Lane::Durable,
        };
        server.write(lane, record);
        server.feed(&mut self.dumps);
        self.shown = self.shown.max(server.revision());
    }

    fn restart_server(&mut self, fs: SimFs) {
        self.streams += 1;
        let server = Server::open(&fs, self.streams);
        self.server_fs = fs;
        self.shown = self.shown.max(server.revision());
        self.dumps
            .insert((self.streams, 0), dump(&server.store.lock().unwrap()));
        self.server = Some(server);
    }

    /// The server dies, or stops in order, and comes back at once or is away for a while.
    fn server_ends(&mut self) {
        let Some(server) = self.server.take() else {
            let fs = self.server_fs.clone();
            return self.restart_server(fs);
        };
        let seed = self.rng.random();
        self.server_fs = match self.rng.random_range(0..3) {
            0 => self.stop_in_order(server),
            1 => server.fs.kill(seed),
            _ => server.fs.power_loss(seed),
        };
        if self.rng.random_bool(0.5) {
            let fs = self.server_fs.clone();
            self.restart_server(fs);
        }
    }

    /// The rest of the stream and its end are on their way to whoever has all but that.
    fn stop_in_order(&mut self, mut server: Server) -> SimFs {
        server.feed(&mut self.dumps);
        let (revision, stream) = (server.revision(), server.stream);
        let last = dump(&server.store.lock().unwrap());
        let end = End {
            sequence: server.backlog.sequence(),
            revision,
            unix_ms: 2,
            stream,
        };
        let Server { journal, fs, .. } = server;
        journal.close(revision).unwrap();
        if let Some(line) = &mut self.line
            && line.stream == stream
            && line.has == end.sequence
        {
            line.queue.push_back(Said::End(end).into_bytes());
            self.stopped = Some((stream, last));
        }
        fs
    }

    /// The server stops in order before a keeper that has all, and comes back for a moment.
    fn stops_and_comes_back(&mut self) {
        if self.server.is_none() {
            let fs = self.server_fs.clone();
            self.restart_server(fs);
        }
        for _ in 0..100 {
            if self.line.is_none() {
                self.connect();
            }
            self.send();
            self.deliver();
        }
        if let Some(server) = self.server.take() {
            self.server_fs = self.stop_in_order(server);
        }
        for _ in 0..10 {
            self.deliver();
        }
        if self.rng.random_bool(0.5) {
            let fs = self.server_fs.clone();
            self.restart_server(fs);
            self.line = None;
            self.connect();
            self.write();
        }
    }

    fn send(&mut self) {
        let (Some(server), Some(line)) = (&mut self.server, &mut self.line) else {
            return;
        };
        if line.stream != server.stream {
            return;
        }
        match server.backlog.after(line.has) {
            Send::Entries { frame, last } => {
                let mut frame = frame.clone();
                if line.told != line.stream
                    && let Said::Batch(batch) = Said::from_bytes(frame.clone()).unwrap()
                {
                    let stream = line.told;
                    frame = Said::Batch(Batch { stream, ..batch }).into_bytes();
                }
                line.queue.push_back(frame);
                line.has = last;
            }
            Send::Nothing => {}
            Send::Missed => self.line = None,
        }
    }

    fn keeper_dies(&mut self) {
        self.keeper = None;
        self.line = None;
        self.lose_keepers_process();
        self.reopen_keeper();
    }

    fn lose_keepers_process(&mut self) {
        let seed = self.rng.random();
        self.keeper_fs = match self.rng.random_bool(0.5) {
            true => self.keeper_fs.kill(seed),
            false => self.keeper_fs.power_loss(seed),
        };
    }

    /// Opens the copy, which may die again meanwhile.
    fn reopen_keeper(&mut self) {
        let opened = loop {
            let options = keeper_options(self.faults.keeper);
            match Keeper::open(self.keeper_fs.shared(), Path::new(KEEPER_DIR), options) {
                Ok(keeper) => break keeper,
                Err(_) if self.keeper_fs.crashed() => self.lose_keepers_process(),
                Err(error) => panic!("the keeper: {error}"),
            }
        };
        self.keeper = Some(opened);
        self.check();
    }

    /// After an error of the keeper's: its process goes on, or its disk is gone.
    fn keeper_failed(&mut self) {
        self.line = None;
        if self.keeper_fs.crashed() {
            self.keeper_dies();
        }
    }

    fn connect(&mut self) {
        let (Some(server), Some(keeper)) = (&mut self.server, &mut self.keeper) else {
            return;
        };
        let hello: Hello = keeper.hello();
        let guards = self.faults.admission;
        admission::check(&server.host(), &hello, guards).unwrap();
        let covers = |has| server.backlog.covers(has);
        let start = admission::start(
            &server.host(),
            hello.position,
            server.stream,
            covers,
            guards,
        );
        let Ok(start) = start else {
            panic!("the server says that the keeper is ahead of it");
        };
        let (after, snapshot) = match start {
            Start::After(after) => (after, None),
            Start::Snapshot => {
                let (after, revision, bytes) = server.snapshot();
                (after, Some((revision, bytes)))
            }
        };
        let stream = server.stream;
        let welcome = Welcome {
            version: copies::VERSION,
            cluster_id: CLUSTER,
            member_id: 7,
            name: "a".to_owned(),
            raft_term: server.term,
            stream: match guards.stream {
                true => stream,
                // As if streams had no number.
                false => hello.position.map_or(stream, |at| at.stream),
            },
            after,
            snapshot: snapshot.is_some(),
            revision: snapshot.as_ref().map_or(0, |(revision, _)| *revision),
        };
        let welcomed = keeper.welcome(&welcome);
        // Whatever it comes to, a server was heard.
        if welcomed.is_ok() {
            self.stopped = None;
        }
        if welcomed.is_err() {
            return self.keeper_failed();
        }
        if let Some((revision, bytes)) = snapshot {
            self.dumps
                .entry((stream, after))
                .or_insert_with(|| dump(&server.store.lock().unwrap()));
            let cut = match self.rng.random_range(0..4) {
                0 => self.rng.random_range(0..bytes.len()),
                _ => bytes.len(),
            };
            if keeper.snapshot(&welcome, &bytes[..cut]).is_err() {
                self.keeper = None;
                self.keeper_failed();
                if self.keeper.is_none() {
                    self.reopen_keeper();
                }
                return;
            }
            self.acked = (stream, after, revision);
        }
        self.line = Some(Line {
            queue: VecDeque::new(),
            has: after,
            stream,
            told: welcome.stream,
        });
        self.check();
    }

    fn deliver(&mut self) {
        let (Some(line), Some(keeper)) = (&mut self.line, &mut self.keeper) else {
            return;
        };
        let message = match self.late.take_if(|_| self.rng.random_bool(0.1)) {
            Some(late) => late,
            None => match line.queue.pop_front() {
                Some(message) => message,
                None => return,
            },
        };
        if self.rng.random_bool(0.1) {
            self.late = Some(message.clone());
        }
        if self.rng.random_bool(0.05) {
            self.keeper_fs.crash_after(self.rng.random_range(1..8));
        }
        let taken = match Said::from_bytes(message).unwrap() {
            Said::Batch(batch) => keeper.batch(&batch).map(drop),
            Said::End(end) => keeper.end(&end),
            other => panic!("{other:?}"),
        };
        let committed = taken.and_then(|()| match self.rng.random_bool(0.6) {
            true => keeper.commit().map(drop),
            false => Ok(()),
        });
        match committed {
            Ok(()) => {
                if let Some(ack) = keeper.ack() {
                    self.acked = (ack.stream, ack.synced, keeper.standing().revision);
                }
                self.check();
            }
            Err(_) => self.keeper_failed(),
        }
    }

    fn checkpoint(&mut self) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let written = keeper.checkpoint();
        match written {
            Ok(Some(checkpoint)) => {
                // It may be cut short by a crash at any time.
                if self.rng.random_bool(0.8) {
                    let _ = checkpoint.write(|| ());
                }
            }
            Ok(None) => {}
            Err(_) => self.keeper_failed(),
        }
    }

    /// What the keeper has is what the server showed there, and not less than it said.
    fn check(&self) {
        let Some(keeper) = &self.keeper else { return };
        let standing = keeper.standing();
        let (stream, sequence, revision) = self.acked;
        assert!(
            standing.revision >= revision,
            "{standing:?}, and it said revision {revision}"
        );
        let Some(at) = standing.followed else { return };
        if at.stream == stream {
            assert!(
                at.sequence >= sequence,
                "{standing:?}, and it said {sequence}"
            );
        }
        let Some(store) = keeper.store() else { return };
        let has = dump(&store.lock());
        let shown = self.dumps.get(&(at.stream, at.sequence));
        assert_eq!(Some(&has), shown, "at {at:?}");
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..40 => self.write(),
            40..60 => self.send(),
            60..80 => self.deliver(),
            80..90 if self.line.is_none() => self.connect(),
            90..93 => self.line = None,
            93..95 => self.keeper_dies(),
            95..97 => self.server_ends(),
            97 => self.checkpoint(),
            _ => {}
        }
    }

    /// The server is gone, and the copy becomes one.
    fn promotion(mut self) {
        drop(self.server.take());
        drop(self.keeper.take());
        let seed = self.rng.random();
        let fs = self.keeper_fs.power_loss(seed);
        let before = open_keeper(&fs, self.faults.keeper);
        let standing = before.standing();
        let has = before.store().map(|store| dump(&store.lock()));
        drop(before);
        let request = Request {
            old_server_is_gone: true,
            old_data_dir: None,
            marker_dir: None,
            jump_by: JUMP,
        };
        let options = keeper_options(self.faults.keeper);
        let promoted = promote(fs.shared(), Path::new(KEEPER_DIR), options, &request);
        if standing.followed.is_none() && standing.revision <= 1 {
            assert!(promoted.is_err());
            return;
        }
        let promotion = promoted.unwrap_or_else(|error| panic!("{error}"));
        let mut store: Store = Engine::new(Limits::default());
        let options = Options::new(NewDirectory::default());
        let dir = Path::new(KEEPER_DIR);
        let (journal, report) = Journal::open(fs.shared(), dir, options, &mut store)
            .unwrap_or_else(|error| panic!("the promoted: {error}"));
        assert_eq!(report.identity.cluster_id, CLUSTER);
        assert_eq!(report.identity.role, Role::Server);
        assert_eq!(report.identity.raft_term, self.term_seen + 1);
        assert_eq!(
            store.revision(),
            promotion.jumped_to.unwrap_or(promotion.revision)
        );
        match promotion.jumped_to {
            // No revision comes twice.
            Some(to) => assert!(to > self.shown, "{to} after {}", self.shown),
            None => {
                let last = self.stopped.as_ref().map(|(_, last)| last);
                assert_eq!(has.as_ref(), last, "it says that nothing is missing");
                assert_eq!(Some(dump(&store)), has);
            }
        }
        drop(journal);
    }
}

fn run(seed: u64, faults: Faults) {
    let mut world = World::new(seed, faults);
    let steps = world.rng.random_range(50..400);
    for _ in 0..steps {
        world.step();
    }
    if world.rng.random_bool(0.3) {
        world.stops_and_comes_back();
    }
    world.promotion();
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_copy_is_what_was_shown_whatever_breaks() {
    if let Some(seed) = variable("ORLOP_KEEPER_SEED") {
        return run(seed, Faults::default());
    }
    for seed in 0..variable("ORLOP_KEEPER_SEEDS").unwrap_or(400) {
        let outcome = std::panic::catch_unwind(|| run(seed, Faults::default()));
        assert!(outcome.is_ok(), "ORLOP_KEEPER_SEED={seed}");
    }
}

/// Some seed up to a thousand fails without a protection; says which.
fn fails_without(name: &str, faults: Faults) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let found = (0..1000).find(|seed| std::panic::catch_unwind(|| run(*seed, faults)).is_err());
    std::panic::set_hook(before);
    match found {
        Some(seed) => println!("without {name}, seed {seed} fails"),
        None => panic!("no seed fails without {name}"),
    }
}

#[test]
fn guards_are_needed() {
    let all = Guards::default();
    let keeper = |keeper| Faults {
        keeper,
        ..Faults::default()
    };
    fails_without(
        "contiguity",
        keeper(Guards {
            contiguity: false,
            ..all
        }),
    );
    fails_without(
        "position",
        keeper(Guards {
            position: false,
            ..all
        }),
    );
    fails_without(
        "proof",
        keeper(Guards {
            proof: false,
            ..all
        }),
    );
    fails_without(
        "stream",
        Faults {
            admission: admission::Guards {
                stream: false,
                ..admission::Guards::default()
            },
            ..Faults::default()
        },
    );
}
