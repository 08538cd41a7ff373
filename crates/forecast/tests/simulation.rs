//! Two actors and a cluster, with simulated time and faults: lost scrapes, a member that looks
//! better than it is, members that go down, moves that fail or take effect though nobody knows,
//! leaders that change by themselves, actors that stand still and go on with what they knew.
//!
//! The transactions are the real ones; a small store evaluates them. `ORLOP_FORECAST_SEED=N`
//! replays one seed, `ORLOP_FORECAST_SEEDS=N` runs so many.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use etcd_api::etcdserverpb::{TxnRequest, compare::TargetUnion, request_op::Request};
use etcd_api::mvccpb::KeyValue;
use forecast::decide::{Decider, Ended, Gates, Observation, Rule, Seen, Verdict};
use forecast::guard::{self, Board};
use forecast::schema::State;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

const PREFIX: &str = "/p/";
const TTL_MS: u64 = 15_000;
const RULE: Rule = Rule {
    margin_us: 5_000.0,
    margin_part: 0.3,
    samples: 3,
    cool_down_ms: 60_000,
    settle_ms: 10_000,
    futile_moves: 3,
    members_quiet_ms: 60_000,
};

/// Keys with leases, as much of etcd as the transactions ask for.
#[derive(Default)]
struct Store {
    keys: BTreeMap<Vec<u8>, (Vec<u8>, i64, i64)>,
    leases: BTreeMap<i64, u64>,
    revision: i64,
}

impl Store {
    fn tick(&mut self, now: u64) {
        let ended: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.leases.remove(&id);
            self.keys.retain(|_, (_, _, lease)| *lease != id);
        }
    }

    fn grant(&mut self, now: u64, ttl_ms: u64) -> i64 {
        self.revision += 1;
        self.leases.insert(self.revision, now + ttl_ms);
        self.revision
    }

    fn txn(&mut self, txn: &TxnRequest) -> bool {
        let holds = txn.compare.iter().all(|compare| {
            let Some(TargetUnion::CreateRevision(wanted)) = compare.target_union else {
                panic!()
            };
            self.keys.get(&compare.key[..]).map_or(0, |found| found.1) == wanted
        });
        if holds {
            self.revision += 1;
            for op in &txn.success {
                match op.request.as_ref().unwrap() {
                    Request::RequestPut(put) => {
                        assert!(put.lease == 0 || self.leases.contains_key(&put.lease));
                        let created = self
                            .keys
                            .get(&put.key[..])
                            .map_or(self.revision, |found| found.1);
                        self.keys
                            .insert(put.key.to_vec(), (put.value.to_vec(), created, put.lease));
                    }
                    Request::RequestDeleteRange(delete) => {
                        self.keys.remove(&delete.key[..]);
                    }
                    _ => panic!(),
                }
            }
        }
        holds
    }

    fn board(&self) -> Board {
        let kvs = self.keys.iter().map(|(key, (value, created, _))| KeyValue {
            key: key.clone().into(),
            value: value.clone().into(),
            create_revision: *created,
            ..KeyValue::default()
        });
        Board::read(PREFIX, &kvs.collect::<Vec<_>>())
    }
}

struct World {
    now: u64,
    leader: u64,
    term: u64,
    /// What a commit truly costs with each member, in microseconds.
    cost_us: BTreeMap<u64, f64>,
    /// One that looks better than it is, by this factor.
    liar: Option<(u64, f64)>,
    down: Option<u64>,
    store: Store,
    /// When moves were begun.
    begun: Vec<u64>,
    changes: Vec<u64>,
}

impl World {
    fn lead(&mut self, to: u64) {
        if self.leader != to {
            (self.leader, self.term) = (to, self.term + 1);
            self.changes.push(self.now);
        }
    }

    fn seen(&self, gates: Gates, rng: &mut ChaCha8Rng, lossy: bool) -> Observation {
        let members = self.cost_us.iter().map(|(member, us)| {
            let lie = self
                .liar
                .filter(|(liar, _)| liar == member)
                .map_or(1.0, |(_, part)| part);
            let lost = lossy && rng.random_bool(0.02);
            Seen {
                member: *member,
                voter: true,
                healthy: self.down != Some(*member),
                lagging: false,
                cost_us: (!lost).then(|| us * lie * rng.random_range(0.95..1.05)),
                state: Some(State::Network),
            }
        });
        Observation {
            at_ms: self.now,
            leader: Some(self.leader).filter(|leader| self.down != Some(*leader)),
            members: members.collect(),
            gates,
        }
    }
}

struct Actor {
    name: &'static str,
    decider: Decider,
    held: Option<(i64, u64)>,
    /// It stands still until then.
    stands: u64,
    /// What it knew when it stood still.
    knew: Option<Board>,
}

impl Actor {
    fn new(name: &'static str) -> Self {
        Actor {
            name,
            decider: Decider::new(RULE),
            held: None,
            stands: 0,
            knew: None,
        }
    }

    fn acts(&self, board: &Board, now: u64) -> Option<i64> {
        let (_, kept) = self.held?;
        let (who, revision) = board.actor.as_ref()?;
        (who == self.name && now < kept + TTL_MS).then_some(*revision)
    }

    /// The lease, as `forecast::actor` keeps it.
    fn keep(&mut self, world: &mut World, board: &Board) {
        let alive = self
            .held
            .is_some_and(|(id, _)| world.store.leases.contains_key(&id));
        if alive {
            let (id, kept) = self.held.as_mut().unwrap();
            if world.now >= *kept + TTL_MS / 3 {
                *kept = world.now;
                world.store.leases.insert(*id, world.now + TTL_MS);
            }
        } else {
            self.held = Some((world.store.grant(world.now, TTL_MS), world.now));
        }
        if board.actor.is_none() {
            world
                .store
                .txn(&guard::claim(PREFIX, self.name, self.held.unwrap().0));
        }
    }

    fn step(&mut self, world: &mut World, rng: &mut ChaCha8Rng, faults: bool) {
        if world.now < self.stands {
            return;
        }
        // One that stood still goes on with what it knew, once.
        let board = self.knew.take().unwrap_or_else(|| world.store.board());
        if faults && rng.random_bool(0.001) {
            self.stands = world.now + rng.random_range(5_000..60_000);
            self.knew = Some(board);
            return;
        }
        self.keep(world, &board);
        if let Some(since) = self.acts(&board, world.now) {
            let led = format!("{} {}", world.leader, world.term);
            if board.led.as_ref() != Some(&led) && world.down != Some(world.leader) {
                let lease = world.store.grant(world.now, RULE.cool_down_ms);
                let txn = match &board.led {
                    None => guard::note_led(PREFIX, since, &led),
                    Some(_) => guard::note_change(PREFIX, since, &led, "", lease),
                };
                world.store.txn(&txn);
            }
        }
        let gates = Gates {
            acts: true,
            is_actor: self.acts(&board, world.now).is_some(),
            cools_down: board.cool_down.is_some(),
            stopped: board.stop.is_some(),
            given_up: board.gave_up.is_some(),
        };
        let seen = world.seen(gates, rng, faults);
        match self.decider.step(&seen) {
            Verdict::Hold(_) | Verdict::Would(..) => {}
            Verdict::GiveUp(_) => {
                world.store.txn(&guard::set(PREFIX, "gave-up", "x", 0));
            }
            Verdict::Move(what) => {
                assert!(world.down.is_none(), "a move with a member down");
                let ended = self.make(world, &board, what.to, rng, faults);
                self.decider.ended(world.now, ended);
            }
        }
    }

    fn make(
        &self,
        world: &mut World,
        board: &Board,
        to: u64,
        rng: &mut ChaCha8Rng,
        faults: bool,
    ) -> Ended {
        let Some(since) = self.acts(board, world.now) else {
            return Ended::NotBegun;
        };
        let lease = world.store.grant(world.now, RULE.cool_down_ms);
        let stopped = world.store.board().stop.is_some();
        if !world
            .store
            .txn(&guard::begin_move(PREFIX, since, "", lease))
        {
            return Ended::NotBegun;
        }
        assert!(!stopped, "a move after an operator's stop");
        world.begun.push(world.now);
        match rng.random_range(0..10) {
            0 if faults => Ended::Failed,
            1 if faults => {
                world.lead(to);
                Ended::Failed
            }
            _ => {
                world.lead(to);
                Ended::Made
            }
        }
    }
}

fn world(costs: [f64; 3]) -> World {
    World {
        now: 1_000,
        leader: 1,
        term: 1,
        cost_us: (1..=3).zip(costs).collect(),
        liar: None,
        down: None,
        store: Store::default(),
        begun: Vec::new(),
        changes: Vec::new(),
    }
}

fn run(world: &mut World, actors: &mut [Actor], seconds: u64, rng: &mut ChaCha8Rng, faults: bool) {
    for _ in 0..seconds {
        world.now += 1_000;
        world.store.tick(world.now);
        for actor in actors.iter_mut() {
            actor.step(world, rng, faults);
        }
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("ORLOP_FORECAST_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("ORLOP_FORECAST_SEEDS").unwrap_or(100)).collect(),
    }
}

#[test]
fn whatever_happens_moves_are_a_cool_down_apart() {
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = world([90_000.0, 3_000.0, 4_000.0]);
        let mut actors = [Actor::new("a"), Actor::new("b")];
        let mut moves_at_stop = None;
        for _ in 0..1_200 {
            match rng.random_range(0..100) {
                0..5 => {
                    let member = rng.random_range(1..=3);
                    let us = if rng.random_bool(0.5) {
                        90_000.0
                    } else {
                        3_000.0
                    };
                    world.cost_us.insert(member, us);
                }
                5 => world.down = Some(rng.random_range(1..=3)),
                6..10 => world.down = None,
                10 => world.lead(rng.random_range(1..=3)),
                11 => world.liar = Some((rng.random_range(1..=3), 0.05)),
                12 => world.liar = None,
                13 => {
                    world.store.txn(&guard::set(PREFIX, "stop", "x", 0));
                    moves_at_stop = Some(world.begun.len());
                }
                14..18 => {
                    world.store.txn(&guard::resume(PREFIX));
                    moves_at_stop = None;
                }
                _ => {}
            }
            run(&mut world, &mut actors, 3, &mut rng, true);
            if let Some(moves) = moves_at_stop {
                assert_eq!(
                    world.begun.len(),
                    moves,
                    "seed {seed}: moved though stopped"
                );
            }
        }
        for pair in world.begun.windows(2) {
            assert!(
                pair[1] - pair[0] >= RULE.cool_down_ms,
                "seed {seed}: {pair:?}"
            );
        }
    }
}

#[test]
fn a_leader_that_is_bad_is_left_within_seconds_and_once() {
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = world([3_000.0, 3_500.0, 4_000.0]);
        let mut actors = [Actor::new("a"), Actor::new("b")];
        run(&mut world, &mut actors, 60, &mut rng, false);
        assert!(
            world.begun.is_empty(),
            "seed {seed}: moved without a reason"
        );
        world.cost_us.insert(1, 90_000.0);
        run(&mut world, &mut actors, 5, &mut rng, false);
        assert_eq!(world.leader, 2, "seed {seed}");
        run(&mut world, &mut actors, 1_000, &mut rng, false);
        assert_eq!((world.leader, world.begun.len()), (2, 1), "seed {seed}");
    }
}

#[test]
fn a_fault_that_follows_the_lead_makes_them_give_up() {
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = world([3_000.0; 3]);
        let mut actors = [Actor::new("a"), Actor::new("b")];
        for _ in 0..1_000 {
            // Whoever leads is slow, and no other.
            let leader = world.leader;
            world
                .cost_us
                .iter_mut()
                .for_each(|(member, us)| *us = if *member == leader { 90_000.0 } else { 3_000.0 });
            run(&mut world, &mut actors, 1, &mut rng, false);
        }
        assert_eq!(world.begun.len() as u32, RULE.futile_moves, "seed {seed}");
        assert!(world.store.board().gave_up.is_some(), "seed {seed}");
    }
}

#[test]
fn a_state_that_comes_and_goes_moves_the_lead_no_oftener_than_the_cool_down_allows() {
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = world([3_000.0; 3]);
        let mut actors = [Actor::new("a"), Actor::new("b")];
        for turn in 0..60 {
            let us = if turn % 2 == 0 { 90_000.0 } else { 3_000.0 };
            world.cost_us.insert(1, us);
            run(&mut world, &mut actors, 10, &mut rng, false);
        }
        // Once it has left the member that is bad at times, there is nothing better than where it is.
        assert_eq!(world.begun.len(), 1, "seed {seed}");
        assert_ne!(world.leader, 1, "seed {seed}");
    }
}

#[test]
fn an_actor_that_is_gone_is_replaced() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut world = world([3_000.0, 3_500.0, 4_000.0]);
    let mut actors = [Actor::new("a"), Actor::new("b")];
    run(&mut world, &mut actors, 60, &mut rng, false);
    assert_eq!(world.store.board().actor.unwrap().0, "a");
    actors[0].stands = u64::MAX;
    world.cost_us.insert(1, 90_000.0);
    run(&mut world, &mut actors, 25, &mut rng, false);
    assert_eq!(world.store.board().actor.unwrap().0, "b");
    assert_eq!((world.leader, world.begun.len()), (2, 1));
}
