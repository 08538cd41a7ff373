//! Server, shards, network, and what has to be true of them.

use crate::server::{self, CLUSTER, DIR, Server, Way};
use crate::{Tally, Without};
use copies::shards::Fence;
use copies::shards::asking::{Present, Standing, standings};
use copies::shards::holding::{Act, Member};
use copies::shards::memory::Shard;
use copies::shards::message::{Begin, Collect, Frames, Hello, Said, Told, Welcome};
use files::sim::SimFs;
use journal::{Asked, Begun, Found, HeldFrame, OpenError, recover};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

const TERM: u64 = 2;

/// A write that somebody was answered.
#[derive(Clone, Copy, Debug)]
struct Shown {
    number: u64,
    revision: i64,
    durable: bool,
    /// How many were visible when it was written.
    seen: usize,
}

struct Process {
    name: &'static str,
    zone: &'static str,
    shard: Option<Shard>,
    still_until_ms: u64,
}

/// A connection between a shard and a server.
struct Link {
    session: u64,
    process: usize,
    /// Of the server that stood still when another one took its place.
    outdated: bool,
    fence: Option<Fence>,
    to_shard: VecDeque<Said>,
    to_server: VecDeque<Told>,
    stalled_until_ms: [u64; 2],
}

pub(crate) struct World {
    rng: StdRng,
    without: Without,
    now_ms: u64,
    server: Option<Server>,
    outdated: Option<Server>,
    /// How much was visible when the other server took over.
    outdated_seen: usize,
    processes: Vec<Process>,
    links: Vec<Link>,
    sessions: u64,
    incarnations: u64,
    generations: u64,
    numbers: u64,
    shown: Vec<Shown>,
    given: BTreeMap<i64, u64>,
    highest: i64,
    pub(crate) tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64, without: Without) -> World {
        let fs = SimFs::new(seed);
        let fence = Fence {
            raft_term: TERM,
            generation: 0,
        };
        let opened = Server::open(&fs, fence, None, false, without);
        let (mut server, _) = opened.unwrap();
        server.fence.generation = server.journal.next_generation().unwrap();
        let names = [("a", "1"), ("b", "1"), ("c", "2"), ("d", "")];
        let process = |(name, zone)| Process {
            name,
            zone,
            shard: None,
            still_until_ms: 0,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(2..=4);
        World {
            rng,
            without,
            now_ms: 0,
            server: Some(server),
            outdated: None,
            outdated_seen: 0,
            processes: names.into_iter().take(count).map(process).collect(),
            links: Vec::new(),
            sessions: 0,
            incarnations: 0,
            generations: 0,
            numbers: 0,
            shown: Vec::new(),
            given: BTreeMap::new(),
            highest: 1,
            tally: Tally::default(),
        }
    }

    fn chance(&mut self, of_100: u32) -> bool {
        self.rng.random_range(0..100) < of_100
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.processes_start();
        match self.rng.random_range(0..1000) {
            0..200 => self.place(),
            200..380 => self.release()?,
            380..430 => self.durable()?,
            430..440 => self.background_sync(),
            440..540 => self.count(),
            540..860 => self.network()?,
            860..930 => self.connect(),
            930..965 => self.time_passes(),
            965..972 => self.break_something(),
            972..979 => self.shard_fails(),
            979..982 => self.kill()?,
            982..990 => self.power_loss()?,
            990..994 => self.take_over()?,
            _ => self.outdated_goes()?,
        }
        self.outdated_acts()
    }

    /// At the end nothing is hidden by what is on its way.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        self.power_loss()
    }

    fn processes_start(&mut self) {
        for at in 0..self.processes.len() {
            if self.processes[at].shard.is_none() && self.chance(20) {
                self.incarnations += 1;
                let of = &mut self.processes[at];
                let shard = Shard::new(of.name, of.zone, self.incarnations, 1 << 20);
                of.shard = Some(shard.with_guards(self.without.shards));
            }
        }
    }

    fn place(&mut self) {
        let (number, seen) = (self.next_number(), self.shown.len());
        if let Some(server) = &mut self.server
            && server.placed.is_none()
        {
            server.place(number, seen);
        }
    }

    fn release(&mut self) -> Result<(), String> {
        let without = self.without;
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let Some(placed) = &server.placed else {
            return Ok(());
        };
        let lsn = placed.step.lsn();
        if !server.hold.is_safe(lsn) && !without.held {
            if !server.hold.counts() {
                server.journal.sync().unwrap();
            }
            return Ok(());
        }
        let by_holders = server.hold.counts();
        let released = server.release();
        self.tally.by_holders += u64::from(by_holders);
        self.show(released, false)
    }

    fn durable(&mut self) -> Result<(), String> {
        let (number, seen) = (self.next_number(), self.shown.len());
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        if server.appended.is_none() {
            server.append(number, seen);
            return Ok(());
        }
        server.journal.settle().unwrap();
        let finished = server.finish();
        self.show(finished, true)
    }

    fn background_sync(&mut self) {
        if let Some(server) = &mut self.server {
            server.journal.sync().unwrap();
            let revision = server.revision();
            if server.journal.is_at_rest() {
                server.journal.upkeep(|| revision).unwrap();
            }
        }
    }

    fn show(&mut self, what: Option<(Way<()>, i64)>, durable: bool) -> Result<(), String> {
        let Some((way, revision)) = what else {
            return Ok(());
        };
        self.tally.shown += 1;
        let number = way.number;
        if let Some(other) = self.given.insert(revision, number)
            && other != number
        {
            return Err(format!(
                "revision {revision} was given to {other}, and to {number}"
            ));
        }
        self.highest = self.highest.max(revision);
        self.shown.push(Shown {
            number,
            revision,
            durable,
            seen: way.seen,
        });
        Ok(())
    }

    fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            if let Act::Close { session, .. } = act {
                self.break_link(session);
                continue;
            }
            let Some(server) = &mut self.server else {
                return;
            };
            Self::act_on(server, &mut self.links, act);
        }
    }

    fn act_on(server: &mut Server, links: &mut [Link], act: Act) {
        match act {
            Act::DiskOnly => server.hold.disk_only(),
            Act::Count(holders) => server.to_count = Some(holders),
            Act::Held { set, lsn } => server.hold.held(set, lsn),
            Act::Begin {
                session,
                set,
                after,
            } => {
                if let Some(link) = links.iter_mut().find(|link| link.session == session) {
                    server.begun.insert(session, (set, after));
                    link.to_shard.push_back(Said::Begin(Begin { set, after }));
                }
            }
            Act::Close { .. } => {}
        }
    }

    fn count(&mut self) {
        let meanwhile = self
            .chance(50)
            .then(|| (self.next_number(), self.shown.len()));
        let now_ms = self.now_ms;
        let Some(server) = &mut self.server else {
            return;
        };
        let Some(holders) = server.to_count.take() else {
            return;
        };
        let set = server.count(holders, meanwhile);
        let acts = server.holding.counted(set.as_ref(), now_ms);
        self.act(acts);
    }

    fn time_passes(&mut self) {
        self.now_ms += self.rng.random_range(0..400);
        let now_ms = self.now_ms;
        if let Some(server) = &mut self.server {
            let (written, counts) = (server.hold.written(), server.hold.counts());
            let acts = server.holding.tick(written, counts, now_ms);
            self.act(acts);
        }
    }

    fn break_link(&mut self, session: u64) {
        self.links.retain(|link| link.session != session);
        let now_ms = self.now_ms;
        for server in self.server.iter_mut().chain(&mut self.outdated) {
            server.begun.remove(&session);
        }
        if let Some(server) = &mut self.server {
            let acts = server.holding.left(session, now_ms);
            self.act(acts);
        }
    }

    fn connect(&mut self) {
        let at = self.rng.random_range(0..self.processes.len());
        let linked = |link: &Link| link.process == at && !link.outdated;
        if self.server.is_none() || self.links.iter().any(linked) {
            return;
        }
        let Some(shard) = &self.processes[at].shard else {
            return;
        };
        self.sessions += 1;
        let hello = Told::Hello(shard.hello());
        self.links.push(Link {
            session: self.sessions,
            process: at,
            outdated: false,
            fence: None,
            to_shard: VecDeque::new(),
            to_server: [hello].into(),
            stalled_until_ms: [0, 0],
        });
    }

    fn network(&mut self) -> Result<(), String> {
        for _ in 0..6 {
            self.send_frames();
            if self.links.is_empty() {
                return Ok(());
            }
            let at = self.rng.random_range(0..self.links.len());
            let to_shard = self.rng.random_bool(0.5);
            let link = &mut self.links[at];
            if link.stalled_until_ms[usize::from(to_shard)] > self.now_ms {
                continue;
            }
            match to_shard {
                true => {
                    if self.processes[link.process].still_until_ms > self.now_ms {
                        continue;
                    }
                    if let Some(said) = link.to_shard.pop_front() {
                        self.at_shard(at, said);
                    }
                }
                false => {
                    if let Some(told) = link.to_server.pop_front() {
                        self.at_server(at, told);
                    }
                }
            }
        }
        Ok(())
    }

    fn send_frames(&mut self) {
        for link in &mut self.links {
            let server = match link.outdated {
                true => &mut self.outdated,
                false => &mut self.server,
            };
            let Some(server) = server else { continue };
            let Some((set, sent)) = server.begun.get_mut(&link.session) else {
                continue;
            };
            let next = server.hold.after(*sent, 1 << 20);
            if next.frames.is_empty() && next.synced <= *sent {
                continue;
            }
            *sent = next.frames.last().map_or(next.synced, |f| f.lsn).max(*sent);
            link.to_shard.push_back(Said::Frames(Frames {
                set: *set,
                synced: next.synced,
                frames: next.frames.into_iter().map(Into::into).collect(),
            }));
        }
    }

    fn at_shard(&mut self, at: usize, said: Said) {
        let link = &mut self.links[at];
        let Some(shard) = &mut self.processes[link.process].shard else {
            return;
        };
        let answer = match (said, link.fence) {
            (Said::Welcome(welcome), _) => shard.welcome(&welcome).map(|fence| {
                link.fence = Some(fence);
                None
            }),
            (Said::Begin(begin), Some(from)) => shard.begin(from, &begin).map(Some),
            (Said::Frames(frames), Some(from)) => {
                // The next one shows that frames are missing.
                let lost = self.rng.random_bool(0.03);
                match lost {
                    true => Ok(None),
                    false => shard.take(from, frames).map(Some),
                }
            }
            (other, _) => panic!("{other:?}"),
        };
        match answer {
            Ok(Some(ack)) => link.to_server.push_back(Told::Ack(ack)),
            Ok(None) => {}
            Err(_) => {
                let session = link.session;
                self.break_link(session);
            }
        }
    }

    fn at_server(&mut self, at: usize, told: Told) {
        let now_ms = self.now_ms;
        let link = &mut self.links[at];
        let session = link.session;
        let server = match link.outdated {
            true => &mut self.outdated,
            false => &mut self.server,
        };
        let Some(server) = server else { return };
        match told {
            Told::Hello(_) if link.outdated => {}
            Told::Hello(hello) => {
                if hello.fence() > server.fence {
                    return self.break_link(session);
                }
                let welcome = welcome_of(server.fence);
                link.to_shard.push_back(Said::Welcome(welcome));
                let acts = server.holding.joined(session, member(&hello), now_ms);
                self.act(acts);
            }
            Told::Ack(ack) => {
                let written = server.hold.written();
                if let Some(act) = server.holding.acked(session, ack, written, now_ms) {
                    Self::act_on(server, &mut self.links, act);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn break_something(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.links.len());
        let session = self.links[at].session;
        match self.rng.random_range(0..3) {
            0 => self.break_link(session),
            way => {
                let until = self.now_ms + self.rng.random_range(0..3000);
                self.links[at].stalled_until_ms[way - 1] = until;
            }
        }
    }

    fn shard_fails(&mut self) {
        let at = self.rng.random_range(0..self.processes.len());
        if self.chance(50) {
            self.processes[at].still_until_ms = self.now_ms + self.rng.random_range(0..3000);
            return;
        }
        self.crash(at);
    }

    fn crash(&mut self, at: usize) {
        self.processes[at].shard = None;
        let of_it = self.links.iter().filter(|link| link.process == at);
        let sessions: Vec<u64> = of_it.map(|link| link.session).collect();
        sessions
            .into_iter()
            .for_each(|session| self.break_link(session));
    }

    fn drop_links(&mut self, outdated: bool) {
        self.links.retain(|link| link.outdated != outdated);
    }

    /// Only the process ends.
    fn kill(&mut self) -> Result<(), String> {
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        let seed = self.rng.random();
        let fs = server.fs.kill(seed);
        drop(server);
        self.drop_links(false);
        self.start(fs)
    }

    fn power_loss(&mut self) -> Result<(), String> {
        self.tally.power_losses += 1;
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        let seed = self.rng.random();
        let fs = server.fs.power_loss(seed);
        drop(server);
        self.drop_links(false);
        // Some of them shared its power.
        let shared = self.rng.random_range(0..100);
        for at in 0..self.processes.len() {
            if shared < 20 && self.rng.random_bool(0.7) {
                self.crash(at);
            }
        }
        self.start(fs)
    }

    /// The server stands still, and another one starts from its disk. It knows nothing of that.
    fn take_over(&mut self) -> Result<(), String> {
        if self.outdated.is_some() {
            return Ok(());
        }
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        self.tally.taken_over += 1;
        let seed = self.rng.random();
        let fs = server.fs.power_loss(seed);
        self.outdated_seen = self.shown.len();
        self.outdated = Some(server);
        self.links.iter_mut().for_each(|link| link.outdated = true);
        self.start(fs)
    }

    /// What the other server goes on with: its disk takes nothing more, so that all it can
    /// acknowledge is what holders have.
    fn outdated_acts(&mut self) -> Result<(), String> {
        if self.outdated.is_none() || !self.chance(40) {
            return Ok(());
        }
        let (number, seen) = (self.next_number(), self.outdated_seen);
        let Some(server) = &mut self.outdated else {
            return Ok(());
        };
        let Some(placed) = &server.placed else {
            server.place(number, seen);
            return Ok(());
        };
        if !server.hold.is_safe(placed.step.lsn()) {
            return Ok(());
        }
        let Some((way, revision)) = server.release() else {
            return Ok(());
        };
        self.tally.outdated_shown += 1;
        // It may have been acknowledged before the other one took over: then that has it.
        let there = self.server.as_ref().is_some_and(|server| {
            let store = server.store.lock().unwrap();
            store.list.contains(&(way.number, revision))
        });
        match there {
            true => Ok(()),
            false => Err(format!(
                "a server that was replaced acknowledged {} at revision {revision}, and the one \
                 that replaced it does not have it",
                way.number
            )),
        }
    }

    fn outdated_goes(&mut self) -> Result<(), String> {
        self.outdated = None;
        self.drop_links(true);
        Ok(())
    }

    /// Starts a server from a disk.
    fn start(&mut self, mut fs: SimFs) -> Result<(), String> {
        let mut given_up = false;
        let mut tries = 0;
        let (complete, fence) = loop {
            tries += 1;
            match self.ask(&fs) {
                Ok(begun) => {
                    if self.chance(10) {
                        // Once more, before anything came of it.
                        fs = fs.power_loss(self.rng.random());
                        continue;
                    }
                    let fence = Fence {
                        raft_term: TERM,
                        generation: begun.generation.unwrap(),
                    };
                    break (begun.complete, fence);
                }
                Err((OpenError::Holders { .. }, lives)) => {
                    self.tally.refused += 1;
                    self.now_ms += 1000;
                    if !lives || (tries > 3 && self.chance(50)) {
                        given_up = true;
                        let fence = Fence {
                            raft_term: TERM,
                            generation: self.generations,
                        };
                        break (None, fence);
                    }
                }
                Err((error, _)) => return Err(format!("a start failed: {error}")),
            }
        };
        self.tally.given_up += u64::from(given_up);
        if given_up {
            // Whoever says that the holders are gone says that no server uses them any more.
            self.outdated = None;
            self.drop_links(true);
        }
        if let Some(complete) = &complete {
            self.tally.from_shards += u64::from(complete.frames > 0);
        }
        let opened = Server::open(&fs, fence, complete, given_up, self.without);
        let (server, report) = opened.map_err(|error| format!("a start failed: {error}"))?;
        let jumped = report.epoch.and_then(|epoch| epoch.jumped_to);
        self.tally.jumps += u64::from(jumped.is_some());
        let list = server.store.lock().unwrap().list.clone();
        let revision = server.revision();
        self.server = Some(server);
        self.check(&list, revision, jumped.is_some(), given_up)
    }

    /// Asks the shards that can be reached. With an error: whether one lives that could have
    /// answered.
    fn ask(&mut self, fs: &SimFs) -> Result<Begun, (OpenError, bool)> {
        let mut lives = false;
        let mut ask = |asked: &Asked| {
            self.generations = asked.generation;
            let fence = Fence {
                raft_term: TERM,
                generation: asked.generation,
            };
            let mut reached = Vec::new();
            for (at, process) in self.processes.iter_mut().enumerate() {
                let Some(shard) = &mut process.shard else {
                    continue;
                };
                let own = |h: &&journal::Holder| h.name == process.name;
                let one = asked.holders.iter().find(own);
                lives |= one.is_some_and(|h| h.incarnation == shard.incarnation());
                let there = process.still_until_ms <= self.now_ms && self.rng.random_bool(0.7);
                if there && shard.welcome(&welcome_of(fence)).is_ok() {
                    reached.push((at, process.name, shard.incarnation()));
                }
            }
            let present: Vec<Present<'_>> = reached
                .iter()
                .map(|(at, name, incarnation)| Present {
                    session: *at as u64,
                    name,
                    incarnation: *incarnation,
                })
                .collect();
            let found = standings(&asked.holders, &present, self.without.shards);
            let there = found.iter().find_map(|(holder, standing)| match standing {
                Standing::There(at) => Some((holder.clone(), *at as usize)),
                _ => None,
            });
            let Some((holder, at)) = there else {
                return Found::Nobody("none was there".to_owned());
            };
            let Some(shard) = &self.processes[at].shard else {
                return Found::Nobody("none was there".to_owned());
            };
            let collect = Collect {
                set: asked.set,
                after: asked.after,
            };
            let (frames, held): (Vec<HeldFrame>, u64) = match shard.collect(fence, &collect) {
                Ok((frames, held)) => (frames.cloned().collect(), held),
                Err(error) => return Found::Nobody(error.to_string()),
            };
            Found::Held {
                holder,
                frames,
                held,
            }
        };
        let guards = server::guards(self.without);
        let marker_dir = Some(Path::new(files::sim::MEMORY));
        let recovered = recover(&*fs.shared(), Path::new(DIR), marker_dir, guards, &mut ask);
        recovered.map_err(|error| (error, lives))
    }

    /// What is there after a start, against what was acknowledged before.
    fn check(
        &mut self,
        list: &[(u64, i64)],
        revision: i64,
        jumped: bool,
        given_up: bool,
    ) -> Result<(), String> {
        let place: BTreeMap<u64, usize> = list
            .iter()
            .enumerate()
            .map(|(at, (number, _))| (*number, at))
            .collect();
        let lost = |one: &&Shown| !place.contains_key(&one.number);
        if let Some(one) = self.shown.iter().find(|one| one.durable && lost(one)) {
            return Err(format!("a durable write is lost: {one:?}"));
        }
        if let Some(one) = self.shown.iter().find(lost)
            && !given_up
        {
            return Err(format!("an acknowledged write is lost: {one:?}"));
        }
        if given_up && !jumped {
            let lost = self.shown.iter().find(lost);
            if let Some(one) = lost {
                return Err(format!("a write is lost, and nobody is told: {one:?}"));
            }
        }
        // In the order in which they were visible, and each with all that it came after.
        let mut last = None;
        let mut first_lost = None;
        for (at, one) in self.shown.iter().enumerate() {
            let Some(is_at) = place.get(&one.number) else {
                first_lost.get_or_insert(at);
                continue;
            };
            if first_lost.is_some_and(|lost| lost < one.seen) {
                return Err(format!("{one:?} is there, and not all that it came after"));
            }
            // A durable write may get a new place in a jump.
            if last.is_some_and(|last| last > is_at) && !jumped {
                return Err(format!("{one:?} is out of order"));
            }
            last = Some(is_at);
        }
        if jumped {
            if revision <= self.highest {
                return Err(format!(
                    "revision {revision} after a jump, and {} was shown",
                    self.highest
                ));
            }
        } else {
            let exact = self.shown.iter().zip(list);
            for (one, there) in exact {
                if (one.number, one.revision) != *there {
                    return Err(format!("{one:?} became {there:?}"));
                }
            }
        }
        // What is there now is what everybody sees.
        for (number, revision) in list {
            self.given.insert(*revision, *number);
        }
        self.highest = self.highest.max(revision);
        self.shown = list
            .iter()
            .map(|one| Shown {
                number: one.0,
                revision: one.1,
                durable: true,
                seen: 0,
            })
            .collect();
        Ok(())
    }
}

fn member(hello: &Hello) -> Member {
    Member {
        name: hello.name.clone(),
        incarnation: hello.incarnation,
        zone: hello.zone.clone(),
        leaving: false,
    }
}

fn welcome_of(fence: Fence) -> Welcome {
    Welcome {
        version: 1,
        cluster_id: CLUSTER,
        raft_term: fence.raft_term,
        generation: fence.generation,
        name: "s".to_owned(),
    }
}
