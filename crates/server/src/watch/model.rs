//! The hub against a world that knows what every watcher must see: writes, compactions,
//! streams that come and go, watches of past, present and future, clients that do not read. And
//! what the hub does at its limits, in steps.

use super::cursor::Matches;
use super::encode::control;
use super::host::{Host, Revisions, Sink};
use super::hub::{Bounds, Hub, watch_range};
use super::watchers::{StreamId, Watcher};
use crate::encode::Ids;
use bytes::Bytes;
use engine::history::{Event, Part};
use engine::op::KeyRange;
use engine::record::Revision;
use engine::tail::{Fields, encode};
use etcd_api::etcdserverpb as pb;
use prost::Message;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use wire::{Frame, Peer, Refused};

/// A store that is written by hand.
struct Store {
    ids: Ids,
    events: RefCell<VecDeque<Arc<Event>>>,
    revision: Cell<i64>,
    compacted: Cell<i64>,
    fragment_bytes: usize,
    max_watches: usize,
    watchers: Cell<i64>,
    behind: Cell<i64>,
    /// How often events were read.
    reads: Cell<usize>,
}

impl Store {
    fn new(fragment_bytes: usize) -> Rc<Self> {
        Rc::new(Store {
            ids: Ids {
                cluster_id: 1,
                member_id: 2,
                raft_term: 2,
            },
            events: RefCell::default(),
            revision: Cell::new(1),
            compacted: Cell::new(-1),
            fragment_bytes,
            max_watches: 100_000,
            watchers: Cell::new(0),
            behind: Cell::new(0),
            reads: Cell::new(0),
        })
    }

    /// Writes keys in one revision; an empty value deletes.
    fn write(&self, keys: &[(Bytes, Bytes)]) -> Vec<Arc<Event>> {
        let main = self.revision.get() + 1;
        self.revision.set(main);
        let event = |(sub, (key, value)): (usize, &(Bytes, Bytes))| {
            let tail = |mod_revision| {
                encode(&Fields {
                    create_revision: 2,
                    mod_revision,
                    version: 1,
                    value,
                    lease: 0,
                })
            };
            let sub = sub as i64;
            Arc::new(Event {
                revision: Revision { main, sub },
                key: Arc::from(key.as_ref()),
                tail: (!value.is_empty()).then(|| tail(main)),
                prev: Some(tail(main - 1)),
            })
        };
        let written: Vec<Arc<Event>> = keys.iter().enumerate().map(event).collect();
        self.events.borrow_mut().extend(written.iter().cloned());
        written
    }

    fn compact(&self, revision: i64) {
        self.compacted.set(revision);
        let mut events = self.events.borrow_mut();
        while events.front().is_some_and(|e| e.revision.main < revision) {
            events.pop_front();
        }
    }
}

impl Host for Rc<Store> {
    fn ids(&self) -> &Ids {
        &self.ids
    }

    fn fragment_bytes(&self) -> usize {
        self.fragment_bytes
    }

    fn max_watches(&self) -> usize {
        self.max_watches
    }

    fn revisions(&self) -> Revisions {
        Revisions {
            current: self.revision.get(),
            compacted: self.compacted.get(),
        }
    }

    fn read(&self, from: i64, part: Part, out: &mut Vec<Arc<Event>>) -> (Revisions, bool) {
        self.reads.set(self.reads.get() + 1);
        let events = self.events.borrow();
        let (mut count, mut bytes) = (0, 0);
        let mut last = None;
        let start = events.partition_point(|e| e.revision.main < from);
        for e in events.range(start..) {
            let full = count >= part.max_events || bytes >= part.max_bytes;
            if full && last != Some(e.revision.main) && last.is_some() {
                return (self.revisions(), true);
            }
            last = Some(e.revision.main);
            count += 1;
            bytes += e.bytes();
            out.push(e.clone());
        }
        (self.revisions(), false)
    }

    fn watchers(&self) -> usize {
        self.watchers.get() as usize
    }

    fn count_watchers(&self, more: i64, more_behind: i64) {
        self.watchers.set(self.watchers.get() + more);
        self.behind.set(self.behind.get() + more_behind);
    }

    fn stream_opened(&self) {}

    fn stream_closed(&self) {}

    fn sent(&self, _: usize, _: Duration) {}

    fn notified(&self, _: Duration) {}

    fn cancelled_slow(&self) {}
}

/// A stream's queue, as the transport's is.
#[derive(Default)]
struct Queue {
    frames: RefCell<VecDeque<Frame>>,
    bytes: Cell<usize>,
    limit_bytes: usize,
    most_bytes: Cell<usize>,
}

impl Queue {
    fn new(limit_bytes: usize) -> Rc<Self> {
        Rc::new(Queue {
            limit_bytes,
            ..Queue::default()
        })
    }

    fn read(&self) -> Option<pb::WatchResponse> {
        let frame = self.frames.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - frame.len());
        Some(pb::WatchResponse::decode(frame.message()).unwrap())
    }
}

impl Sink for Rc<Queue> {
    fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        if self.bytes.get() > 0 && self.bytes.get() + frame.len() > self.limit_bytes {
            return Err(Refused::Full(frame));
        }
        self.push(frame);
        Ok(())
    }

    fn push(&self, frame: Frame) {
        self.bytes.set(self.bytes.get() + frame.len());
        self.most_bytes
            .set(self.most_bytes.get().max(self.bytes.get()));
        self.frames.borrow_mut().push_back(frame);
    }

    fn queued_bytes(&self) -> usize {
        self.bytes.get()
    }

    fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }
}

type TestHub = Hub<Rc<Store>, Rc<Queue>>;

fn connection() -> Rc<Peer> {
    Rc::new(Peer {
        address: "127.0.0.1:1".into(),
        tls: None,
    })
}

fn watcher(stream: StreamId, range: KeyRange, next_revision: i64) -> Watcher {
    Watcher {
        stream,
        watch_id: 0,
        range,
        no_put: false,
        no_delete: false,
        prev_kv: false,
        fragment: false,
        progress_notify: false,
        quiet: false,
        next_revision,
    }
}

fn everything() -> KeyRange {
    KeyRange {
        key: Bytes::from_static(b"\0"),
        end: Bytes::from_static(b"\0"),
    }
}

fn value(len: usize) -> Bytes {
    Bytes::from(vec![b'v'; len])
}

/// Turns until there is nothing to do; how many those were.
fn settle(hub: &mut TestHub) -> usize {
    let mut turns = 1;
    while hub.turn() {
        turns += 1;
        assert!(turns < 1_000_000, "the hub never comes to rest");
    }
    turns
}

// --- the model

/// What a client knows of one of its watches.
struct Seen {
    watcher: Watcher,
    created: bool,
    /// Everything up to here was shown.
    shown: i64,
    /// Main and sub revision of the last event.
    last: (i64, i64),
    /// Within a fragmented answer.
    within: bool,
}

struct Client {
    stream: StreamId,
    queue: Rc<Queue>,
    watches: BTreeMap<i64, Seen>,
    /// Revisions at which progress was asked for and not yet answered.
    asked: Vec<i64>,
    requests: usize,
    answers: usize,
}

struct World {
    random: ChaCha8Rng,
    store: Rc<Store>,
    hub: TestHub,
    clients: Vec<Client>,
    /// All there ever was.
    events: Vec<Arc<Event>>,
    compactions: Vec<i64>,
    answers: BTreeMap<&'static str, usize>,
}

const QUEUE_BYTES: usize = 1000;

impl World {
    fn new(seed: u64) -> Self {
        let store = Store::new(300);
        let bounds = Bounds {
            part: Part {
                max_events: 3,
                max_bytes: 500,
            },
            matches: Matches { many: 4, most: 8 },
            turn_steps: 8,
            cursors: 2,
            near_revisions: 4,
            first_allowance: 1,
            patience_turns: 2,
        };
        World {
            random: ChaCha8Rng::seed_from_u64(seed),
            hub: Hub::bounded(store.clone(), bounds),
            store,
            clients: Vec::new(),
            events: Vec::new(),
            compactions: Vec::new(),
            answers: BTreeMap::new(),
        }
    }

    fn key(&mut self) -> Bytes {
        let len = self.random.random_range(1..3);
        (0..len)
            .map(|_| b"abc"[self.random.random_range(0..3)])
            .collect()
    }

    fn write(&mut self) {
        let count = match self.random.random_range(0..20) {
            0 => 12,
            n => 1 + n % 3,
        };
        let mut keys = BTreeMap::new();
        for _ in 0..count {
            let len = match self.random.random_range(0..10) {
                0 => 0,
                1 => self.random.random_range(0..1500),
                _ => 20,
            };
            keys.insert(self.key(), value(len));
        }
        // A transaction's writes come in any order.
        let mut keys: Vec<(Bytes, Bytes)> = keys.into_iter().collect();
        keys.shuffle(&mut self.random);
        self.events.extend(self.store.write(&keys));
    }

    fn open(&mut self) {
        let queue = Queue::new(QUEUE_BYTES);
        let stream = self
            .hub
            .open_stream(queue.clone(), Arc::default(), connection());
        self.clients.push(Client {
            stream,
            queue,
            watches: BTreeMap::new(),
            asked: Vec::new(),
            requests: 0,
            answers: 0,
        });
    }

    fn any_client(&mut self) -> Option<usize> {
        (!self.clients.is_empty()).then(|| self.random.random_range(0..self.clients.len()))
    }

    fn create(&mut self) {
        let Some(n) = self.any_client() else { return };
        let end = match self.random.random_range(0..4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            _ => self.key(),
        };
        let key = self.key();
        let Some(range) = watch_range(key, end) else {
            return;
        };
        let revision = self.store.revision.get();
        let start = match self.random.random_range(0..8) {
            0 => self.random.random_range(1..revision + 2),
            1 => (revision - 5).max(1),
            2 => self.store.compacted.get().max(1),
            3 => revision + self.random.random_range(0..4),
            _ => revision + 1,
        };
        let notify = self.random.random_bool(0.3);
        let mut asked = Watcher {
            no_put: self.random.random_bool(0.1),
            no_delete: self.random.random_bool(0.1),
            prev_kv: self.random.random_bool(0.5),
            fragment: self.random.random_bool(0.2),
            progress_notify: notify,
            quiet: notify,
            ..watcher(self.clients[n].stream, range, start)
        };
        if self.random.random_bool(0.1) {
            asked.watch_id = self.random.random_range(1..10);
        }
        let taken = self.clients[n].watches.contains_key(&asked.watch_id);
        match self.hub.add(asked.clone()) {
            Err(_) => assert!(taken && asked.watch_id != 0),
            // The client has not read yet that the one of this id is no more.
            Ok(id) if self.clients[n].watches.contains_key(&id) => {
                assert!(self.hub.cancel(asked.stream, id));
            }
            Ok(id) => {
                assert!(asked.watch_id == 0 || asked.watch_id == id);
                let client = &mut self.clients[n];
                client.queue.push(
                    control(&self.store.ids, self.store.revision.get(), id)
                        .created()
                        .frame(),
                );
                let seen = Seen {
                    shown: asked.next_revision - 1,
                    watcher: asked,
                    created: false,
                    last: (0, 0),
                    within: false,
                };
                assert!(client.watches.insert(id, seen).is_none());
            }
        }
    }

    fn cancel(&mut self) {
        let Some(n) = self.any_client() else { return };
        let client = &mut self.clients[n];
        let ids: Vec<i64> = client.watches.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.random.random_range(0..ids.len())];
        // The client reads on until it has seen the end of it.
        if self.hub.cancel(client.stream, id) {
            client.queue.push(
                control(&self.store.ids, self.store.revision.get(), id)
                    .canceled("")
                    .frame(),
            );
        }
    }

    fn close(&mut self) {
        if let Some(n) = self.any_client() {
            let client = self.clients.swap_remove(n);
            self.hub.close_stream(client.stream);
        }
    }

    fn ask(&mut self) {
        if let Some(n) = self.any_client() {
            self.hub.request_progress(self.clients[n].stream);
            self.clients[n].asked.push(self.store.revision.get());
            self.clients[n].requests += 1;
        }
    }

    fn compact(&mut self) {
        let (low, high) = (self.store.compacted.get(), self.store.revision.get());
        let to = self.random.random_range(low.max(0)..=high);
        if to > low {
            self.store.compact(to);
            self.compactions.push(to);
        }
    }

    /// Tells the hub of room, as the stream's task does.
    fn room(&mut self, n: usize) {
        let (stream, queue) = (self.clients[n].stream, &self.clients[n].queue);
        if let Some(below) = self.hub.waits_below(stream)
            && queue.queued_bytes() < below.max(1)
        {
            self.hub.has_room(stream);
        }
    }

    fn read(&mut self, n: usize) -> bool {
        let Some(answer) = self.clients[n].queue.read() else {
            return false;
        };
        self.check(n, answer);
        true
    }

    /// What an answer says is right, and comes when it may.
    fn check(&mut self, n: usize, answer: pb::WatchResponse) {
        let client = &mut self.clients[n];
        let revision = answer.header.unwrap_or_default().revision;
        let mut count = |what| *self.answers.entry(what).or_default() += 1;
        if answer.watch_id == -1 {
            count("progress");
            assert!(answer.events.is_empty());
            // Who is not created yet was added after this answer.
            for (id, seen) in client.watches.iter().filter(|(_, s)| s.created) {
                complete(&self.events, *id, seen, revision);
            }
            client.asked.retain(|&at| at > revision);
            client.answers += 1;
            assert!(client.answers <= client.requests, "nobody asked");
            return;
        }
        let id = answer.watch_id;
        let Some(seen) = client.watches.get_mut(&id) else {
            panic!("{answer:?} for no watch")
        };
        if answer.created {
            assert!(!seen.created && answer.compact_revision == 0 && answer.events.is_empty());
            seen.created = true;
            return;
        }
        assert!(seen.created, "{answer:?} before the watch was created");
        if answer.canceled {
            assert!(answer.events.is_empty());
            let at = answer.compact_revision;
            if at != 0 {
                count("compacted");
                assert!(self.compactions.contains(&at));
                assert!(seen.shown + 1 < at, "all up to {} was shown", seen.shown);
            }
            client.watches.remove(&id);
            return;
        }
        if answer.events.is_empty() {
            count("notification");
            assert!(seen.watcher.progress_notify && !seen.within);
            complete(&self.events, id, seen, revision);
            return;
        }
        count(if answer.fragment {
            "fragment"
        } else {
            "events"
        });
        assert!(!answer.fragment || seen.watcher.fragment);
        let first = (0, 0);
        let mut expected = expected(&self.events, &seen.watcher, seen.last).peekable();
        for event in &answer.events {
            let want = expected.next().expect("an event that never was");
            let kv = event.kv.as_ref().unwrap();
            assert_eq!(
                (kv.key.as_ref(), kv.mod_revision),
                (want.key.as_ref(), want.revision.main),
                "for watch {id}"
            );
            assert_eq!(event.r#type == 1, want.tail.is_none());
            assert_eq!(event.prev_kv.is_some(), seen.watcher.prev_kv);
            if !seen.within && seen.last != first {
                // Each answer begins with a revision of its own.
                assert!(seen.last.0 < kv.mod_revision);
            }
            seen.within = true;
            seen.last = (want.revision.main, want.revision.sub);
        }
        seen.within = answer.fragment;
        if !answer.fragment {
            let next = expected.next().map(|e| e.revision.main);
            assert!(next.is_none_or(|next| next > revision && next > seen.last.0));
            assert!(revision >= seen.last.0 && revision > seen.shown);
            seen.shown = revision;
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..25 => self.write(),
            25..28 => self.open(),
            28..40 => self.create(),
            40..44 => self.cancel(),
            44 => self.close(),
            45..50 => self.ask(),
            50..52 => self.compact(),
            52..54 => {
                if let Some(n) = self.any_client() {
                    self.hub.notify_progress(self.clients[n].stream);
                }
            }
            54..74 => {
                if let Some(n) = self.any_client() {
                    self.read(n);
                }
            }
            74..80 => {
                if let Some(n) = self.any_client() {
                    self.room(n);
                }
            }
            _ => {
                self.hub.turn();
            }
        }
        self.hub.check();
    }

    /// Everyone reads to the end, and has seen everything.
    fn finish(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "it never ends");
            let more = self.hub.turn();
            self.hub.check();
            let mut any = false;
            for n in 0..self.clients.len() {
                while self.read(n) {
                    any = true;
                }
                any |= self.hub.waits_below(self.clients[n].stream).is_some();
                self.room(n);
            }
            if !more && !any {
                break;
            }
        }
        for client in &self.clients {
            for (id, seen) in &client.watches {
                complete(&self.events, *id, seen, i64::MAX);
            }
        }
        let live: usize = self.clients.iter().map(|c| c.watches.len()).sum();
        assert_eq!(self.store.watchers.get(), live as i64);
        assert_eq!(self.store.behind.get(), 0);
        // A last request of each is answered.
        for n in 0..self.clients.len() {
            let watches = &self.clients[n].watches;
            let reached = self.store.revision.get() + 1;
            let starts = watches.values().map(|s| s.watcher.next_revision);
            if starts.max().is_none_or(|start| start > reached) {
                continue;
            }
            self.clients[n].asked = vec![self.store.revision.get()];
            self.clients[n].requests += 1;
            self.hub.request_progress(self.clients[n].stream);
            settle(&mut self.hub);
            while self.read(n) {}
            assert!(self.clients[n].asked.is_empty(), "no progress");
        }
    }
}

/// The events that a watch is due after one of them.
fn expected<'a>(
    events: &'a [Arc<Event>],
    watcher: &'a Watcher,
    last: (i64, i64),
) -> impl Iterator<Item = &'a Arc<Event>> {
    let begin = events.partition_point(|e| (e.revision.main, e.revision.sub) <= last);
    events[begin..]
        .iter()
        .filter(|e| watcher.range.contains(&e.key) && watcher.wants(e))
}

/// A watch has been shown everything up to a revision.
fn complete(events: &[Arc<Event>], id: i64, seen: &Seen, revision: i64) {
    assert!(seen.created && !seen.within);
    let next = expected(events, &seen.watcher, seen.last).next();
    assert!(
        next.is_none_or(|e| e.revision.main > revision),
        "watch {id} was told of {revision} and not of {next:?}"
    );
}

#[test]
fn every_watch_sees_what_it_must_and_nothing_else() {
    let seed = std::env::var("ORLOP_WATCH_SEED").map(|s| s.parse().unwrap());
    let seeds = std::env::var("ORLOP_WATCH_SEEDS").map_or(300, |s| s.parse().unwrap());
    let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seed.map_or(0..seeds, |s: u64| s..s + 1) {
        let mut world = World::new(seed);
        println!("seed {seed}");
        world.open();
        for _ in 0..600 {
            world.step();
        }
        world.finish();
        for (what, count) in world.answers {
            *answers.entry(what).or_default() += count;
        }
    }
    println!("{answers:?}");
    if seeds >= 300 {
        let all = [
            "compacted",
            "events",
            "fragment",
            "notification",
            "progress",
        ];
        assert!(all.iter().all(|a| answers.contains_key(a)), "{answers:?}");
    }
}

// --- what is done at the limits

/// Opens a stream with so many watches.
fn with_watches(
    hub: &mut TestHub,
    count: usize,
    range: impl Fn(usize) -> KeyRange,
    start: i64,
) -> (StreamId, Rc<Queue>) {
    let queue = Queue::new(4 << 20);
    let stream = hub.open_stream(queue.clone(), Arc::default(), connection());
    for n in 0..count {
        hub.add(watcher(stream, range(n), start)).unwrap();
    }
    (stream, queue)
}

#[test]
fn a_flood_of_progress_requests_costs_a_step_each() {
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let (stream, queue) = with_watches(&mut hub, 50_000, |_| everything(), 2);
    settle(&mut hub);
    let before = hub.work();
    for n in 0..20_000 {
        hub.request_progress(stream);
        if n % 64 == 0 {
            hub.turn();
        }
    }
    settle(&mut hub);
    let steps = hub.work().steps - before.steps;
    assert!(steps <= 2 * 20_000, "{steps} steps");
    let answers = queue.frames.borrow().len();
    assert!(
        (1..=20_000 / 64 + 2).contains(&answers),
        "{answers} answers"
    );
}

#[test]
fn progress_is_answered_while_writes_go_on() {
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let (stream, queue) = with_watches(&mut hub, 1, |_| everything(), 2);
    hub.request_progress(stream);
    // More writes a turn than a turn sends.
    for _ in 0..3 {
        for _ in 0..2000 {
            store.write(&[(Bytes::from_static(b"k"), value(1))]);
        }
        hub.turn();
    }
    let mut progress = false;
    while let Some(answer) = queue.read() {
        progress |= answer.watch_id == -1;
    }
    assert!(progress);
}

#[test]
fn a_watch_of_the_future_has_no_progress_to_report() {
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let (stream, queue) = with_watches(&mut hub, 1, |_| everything(), 2);
    hub.add(watcher(stream, everything(), 4)).unwrap();
    let progress = |hub: &mut TestHub| {
        hub.request_progress(stream);
        settle(hub);
        std::iter::from_fn(|| queue.read()).any(|answer| answer.watch_id == -1)
    };
    assert!(!progress(&mut hub));
    // It would start with the next revision.
    for _ in 0..2 {
        store.write(&[(Bytes::from_static(b"k"), value(1))]);
    }
    assert!(progress(&mut hub));
}

#[test]
fn a_revision_is_one_answer_however_large() {
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let (_, queue) = with_watches(&mut hub, 1, |_| everything(), 2);
    let key = |n: usize| (Bytes::from(format!("k{n}")), value(200 << 10));
    store.write(&[key(1), key(2), key(3)]);
    store.write(&[key(1), key(2)]);
    settle(&mut hub);
    let answers: Vec<(usize, i64)> = std::iter::from_fn(|| queue.read())
        .map(|a| (a.events.len(), a.header.unwrap_or_default().revision))
        .collect();
    assert_eq!(answers, [(3, 2), (2, 3)]);
}

#[test]
fn watchers_from_the_first_revision_read_history_together() {
    const EVENTS: usize = 50_000;
    const WATCHERS: usize = 5_000;
    for turns_between in [false, true] {
        let store = Store::new(1 << 20);
        let mut hub = TestHub::new(store.clone());
        let key = |n: usize| Bytes::from(format!("k{:04}", n % WATCHERS));
        for n in 0..EVENTS {
            store.write(&[(key(n), value(1))]);
        }
        settle(&mut hub);
        let before = hub.work();
        let queue = Queue::new(usize::MAX);
        let stream = hub.open_stream(queue.clone(), Arc::default(), connection());
        for n in 0..WATCHERS {
            let range = KeyRange::one(key(n));
            hub.add(watcher(stream, range, 1)).unwrap();
            if turns_between && n % 64 == 0 {
                hub.turn();
            }
        }
        settle(&mut hub);
        let events = hub.work().events - before.events;
        // One pass, or one for each cursor and one for who came when all were taken.
        let passes = if turns_between { 5 } else { 1 };
        assert!(events <= passes * EVENTS as u64, "{events} events");
        let steps = (hub.work().steps - before.steps) as usize;
        let matches = EVENTS;
        let most = 2 * (passes as usize * EVENTS + 4 * WATCHERS + 2 * matches);
        assert!(steps <= most, "{steps} steps");
        let sent: usize = std::iter::from_fn(|| queue.read())
            .map(|answer| answer.events.len())
            .sum();
        assert_eq!(sent, EVENTS);
        assert_eq!(store.behind.get(), 0);
    }
}

#[test]
fn a_watch_of_everything_adds_one_match_to_each_event() {
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let of = |n: usize| KeyRange {
        key: Bytes::from(format!("r{n:05}/")),
        end: Bytes::from(format!("r{n:05}0")),
    };
    with_watches(&mut hub, 20_000, of, 2);
    with_watches(&mut hub, 1, |_| everything(), 2);
    settle(&mut hub);
    let before = (hub.work().steps, hub.matching_steps());
    for n in 0..1000 {
        store.write(&[(Bytes::from(format!("r{:05}/k", n * 20)), value(1))]);
    }
    settle(&mut hub);
    let steps = hub.work().steps - before.0;
    assert!(steps < 1000 * 8, "{steps} steps");
    let looked_at = hub.matching_steps() - before.1;
    assert!(looked_at < 1000 * 80, "{looked_at} ranges looked at");
}

#[test]
fn no_turn_grows_with_watchers_or_events() {
    const WATCHERS: usize = 50_000;
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let (stream, _) = with_watches(&mut hub, WATCHERS, |_| everything(), 2);
    settle(&mut hub);
    // A turn's two budgets, and what one batch may find over them.
    let most = 2 * 4096 + 1024 + (16 << 10) + WATCHERS as u64 + 4096;
    let small = Bytes::from_static(b"k");
    for _ in 0..100 {
        store.write(&[(small.clone(), value(10))]);
    }
    // The queue fills, and all stall.
    settle(&mut hub);
    assert_eq!(store.behind.get() as usize, WATCHERS);
    assert!(hub.work().longest <= most, "{}", hub.work().longest);
    // One revision with many events for many watchers.
    let (other, queue) = with_watches(&mut hub, 1000, |_| everything(), store.revision.get() + 1);
    let keys: Vec<(Bytes, Bytes)> = (0..2000)
        .map(|n| (Bytes::from(format!("k{n:06}")), value(1)))
        .collect();
    store.write(&keys);
    settle(&mut hub);
    assert!(
        hub.work().longest <= most + (64 << 10),
        "{}",
        hub.work().longest
    );
    assert!(queue.most_bytes.get() <= 4 << 20);
    // All of it is compacted before anyone reads.
    store.write(&[(small.clone(), value(10))]);
    store.write(&[(small.clone(), value(10))]);
    store.compact(store.revision.get());
    hub.turn();
    hub.close_stream(other);
    hub.close_stream(stream);
    settle(&mut hub);
    assert_eq!(store.watchers.get(), 0);
    assert!(
        hub.work().longest <= most + (64 << 10),
        "{}",
        hub.work().longest
    );
}

#[test]
fn a_slow_stream_of_many_watches_is_served_in_steps_of_what_it_reads() {
    const WATCHERS: usize = 5_000;
    let store = Store::new(1 << 20);
    let mut hub = TestHub::new(store.clone());
    let (stream, queue) = with_watches(&mut hub, WATCHERS, |_| everything(), 2);
    for _ in 0..20 {
        store.write(&[(Bytes::from_static(b"k"), value(1000))]);
    }
    let mut events = 0;
    let mut rounds = 0;
    loop {
        settle(&mut hub);
        while let Some(answer) = queue.read() {
            events += answer.events.len();
        }
        if hub.waits_below(stream).is_none() {
            break;
        }
        hub.has_room(stream);
        rounds += 1;
    }
    assert_eq!(events, WATCHERS * 20);
    assert!(rounds > 20, "the client was never slow");
    // Some steps for each answer, and not all watchers at each rest of the queue.
    let steps = hub.work().steps as usize;
    assert!(steps < 12 * WATCHERS * 20 / 10 + 400_000, "{steps} steps");
}

#[test]
fn the_last_tenth_of_watches_is_kept_for_modest_connections() {
    let store = Rc::new(Store {
        max_watches: 20_000,
        ..Rc::into_inner(Store::new(1 << 20)).unwrap()
    });
    let mut hub = TestHub::new(store.clone());
    let greedy = connection();
    let open = |hub: &mut TestHub, peer: &Rc<Peer>| {
        hub.open_stream(Queue::new(1 << 20), Arc::default(), peer.clone())
    };
    let streams = [open(&mut hub, &greedy), open(&mut hub, &greedy)];
    let mut had = 0;
    while hub.room_for_watch(streams[had % 2]).is_ok() {
        hub.add(watcher(streams[had % 2], everything(), 2)).unwrap();
        had += 1;
    }
    assert_eq!(had, 18_000);
    let modest = connection();
    let other = open(&mut hub, &modest);
    for _ in 0..1000 {
        hub.room_for_watch(other).unwrap();
        hub.add(watcher(other, everything(), 2)).unwrap();
    }
    assert!(
        hub.room_for_watch(other)
            .unwrap_err()
            .contains("this connection")
    );
    for _ in 0..1000 {
        let another = open(&mut hub, &connection());
        hub.room_for_watch(another).unwrap();
        hub.add(watcher(another, everything(), 2)).unwrap();
    }
    let full = hub.room_for_watch(other).unwrap_err();
    assert!(full.contains("raise --max-watches"), "{full}");
    // What is closed or cancelled is given back.
    hub.close_stream(streams[0]);
    settle(&mut hub);
    assert!(hub.cancel(other, 0));
    hub.room_for_watch(other).unwrap();
}
