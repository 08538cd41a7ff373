//! Many connections, members that come, go and fall silent, and simulated time: what must hold of
//! the decisions, whatever happens. `ORLOP_PROXY_SEED=N` replays one seed.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use upstream::Endpoint;

use crate::life::{End, FirstBytes, Life, State, Step, Traffic, Who};
use crate::route::{Route, Service};
use crate::settings::{Fallback, Settings};

const SEEDS: u64 = 400;
const TICK: Duration = Duration::from_millis(7);
const TICKS: u32 = 4_000;
const CONNECTIONS: usize = 12;

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Up,
    /// Its machine takes connections and bytes, and it says nothing.
    Silent,
    /// Connections to it fail.
    Down,
}

struct Connection {
    life: Life,
    /// Of this attempt.
    dialed_at: Option<Instant>,
    traffic: Traffic,
    first: FirstBytes,
    /// A call waits for its answer.
    asked: bool,
    answered: bool,
    began: Instant,
    /// Since when the route has named another leader than its member, without a break.
    elsewhere_since: Option<Instant>,
}

struct World {
    rng: ChaCha8Rng,
    now: Instant,
    members: Vec<(Endpoint, Health)>,
    leader: Option<usize>,
    route: Route,
    settings: Settings,
    connections: Vec<Connection>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let settings = Settings {
            wait: Duration::from_millis(rng.random_range(200..8_000)),
            dial_timeout: Duration::from_millis(rng.random_range(50..2_000)),
            handover_gap: Duration::from_millis(rng.random_range(0..50)),
            handover_limit: Duration::from_millis(rng.random_range(50..3_000)),
            fallback: match rng.random_bool(0.3) {
                true => Fallback::Follower,
                false => Fallback::Refuse,
            },
            idle_timeout: rng.random_bool(0.5).then_some(Duration::from_secs(9)),
            ..Settings::default()
        };
        let names = ["a", "b", "c"].iter().take(rng.random_range(1..4));
        let members = names.map(|name| {
            let endpoint = format!("https://{name}:1").parse().unwrap();
            (endpoint, Health::Up)
        });
        let members: Vec<_> = members.collect();
        let route = Route {
            leader: None,
            lost: Vec::new(),
            others: Vec::new(),
            service: Service::On,
        };
        World {
            rng,
            now: Instant::now(),
            members,
            leader: None,
            route,
            settings,
            connections: Vec::new(),
        }
    }

    fn accept(&mut self) {
        let life = Life::new(&self.settings, self.now);
        self.connections.push(Connection {
            life,
            dialed_at: None,
            traffic: Traffic::new(self.now),
            first: FirstBytes::Kept,
            asked: false,
            answered: false,
            began: self.now,
            elsewhere_since: None,
        });
    }

    /// What happens by itself in a tick.
    fn shake(&mut self) {
        let count = self.members.len();
        if self.rng.random_bool(0.01) {
            let nth = self.rng.random_range(0..count);
            let health = [Health::Up, Health::Up, Health::Silent, Health::Down];
            self.members[nth].1 = health[self.rng.random_range(0..health.len())];
        }
        if self.rng.random_bool(0.02) {
            let up = |nth: &usize| self.members[*nth].1 == Health::Up;
            let able: Vec<usize> = (0..count).filter(up).collect();
            self.leader = match able.is_empty() || self.rng.random_bool(0.2) {
                true => None,
                false => Some(able[self.rng.random_range(0..able.len())]),
            };
        }
        // What is known lags behind what is.
        if self.rng.random_bool(0.1) {
            let named = |health: Health| {
                let members = self.members.iter();
                let such = members.filter(move |(_, h)| *h == health);
                such.map(|(endpoint, _)| endpoint.clone())
            };
            self.route.leader = self.leader.map(|nth| self.members[nth].0.clone());
            self.route.lost = named(Health::Silent).chain(named(Health::Down)).collect();
            self.route.others = named(Health::Up)
                .filter(|member| Some(member) != self.route.leader.as_ref())
                .collect();
        }
    }

    fn health(&self, member: &Endpoint) -> Health {
        let found = self.members.iter().find(|(endpoint, _)| endpoint == member);
        found.unwrap().1
    }

    fn step(&mut self) {
        self.now += TICK;
        self.shake();
        while self.connections.len() < CONNECTIONS {
            self.accept();
        }
        for nth in 0..self.connections.len() {
            self.events(nth);
            self.decide(nth);
        }
        self.connections
            .retain(|c| !matches!(c.life.state(), State::Ended(_)));
    }

    /// What client and member do.
    fn events(&mut self, nth: usize) {
        let member = self.connections[nth].life.member().cloned();
        let health = member.as_ref().map(|member| self.health(member));
        let (now, rng) = (self.now, &mut self.rng);
        let c = &mut self.connections[nth];
        if let State::Connecting { to, .. } = c.life.state() {
            let to = to.clone();
            let found = self.members.iter().find(|(endpoint, _)| *endpoint == to);
            match found.unwrap().1 {
                Health::Down if rng.random_bool(0.5) => {
                    assert_eq!(c.life.failed(now), Some(to));
                }
                Health::Up | Health::Silent if rng.random_bool(0.7) => {
                    c.life.connected(now);
                    c.traffic = Traffic::new(now);
                    (c.asked, c.answered) = (false, false);
                }
                _ => {}
            }
            return;
        }
        let Some(health) = health else {
            return;
        };
        if health == Health::Down && rng.random_bool(0.2) {
            let kept = c.first == FirstBytes::Kept && !c.answered;
            let opening = matches!(c.life.state(), State::Opening { .. });
            let ended = c.life.lost_member(now);
            assert_eq!(ended, !(kept && opening), "first bytes are sent again");
            if ended {
                c.life.end(End::MemberFailed);
            }
            return;
        }
        if !c.asked && rng.random_bool(0.1) {
            c.asked = true;
            c.traffic.last = now;
            c.traffic.by = Some(Who::Client);
            if rng.random_bool(0.1) {
                c.first = FirstBytes::Gone;
            }
        }
        if health == Health::Up && c.asked && rng.random_bool(0.4) {
            c.asked = false;
            c.answered = true;
            c.traffic.last = now;
            c.traffic.by = Some(Who::Member);
            c.first = FirstBytes::Gone;
        }
        c.traffic.answers = c.traffic.by == Some(Who::Member) && c.traffic.last == now;
        c.traffic.held = rng.random_bool(0.01);
        c.life.moved(c.traffic, c.first);
    }

    fn decide(&mut self, nth: usize) {
        let (now, route, settings) = (self.now, &self.route, &self.settings);
        let c = &mut self.connections[nth];
        if matches!(c.life.state(), State::Ended(_)) {
            return;
        }
        for turn in 0.. {
            assert!(turn < 5, "it never waits: {:?}", c.life);
            let before = c.life.clone();
            let waited = c.life.waited(now);
            match c.life.look(now, route) {
                Step::Wait(until) => {
                    assert!(until.is_none_or(|at| at > now), "{before:?}");
                    break;
                }
                Step::Connect(to) => {
                    let leads = route.leader.as_ref() == Some(&to);
                    let in_vain = waited >= settings.wait;
                    let falls_back = settings.fallback == Fallback::Follower && in_vain;
                    assert!(leads || falls_back, "goes to {to}");
                    c.dialed_at = Some(now);
                    break;
                }
                Step::Again => {
                    assert!(!c.answered && c.first == FirstBytes::Kept);
                }
                Step::Suspect(_) => {}
                Step::End(end) => {
                    check_end(c, &before, end, now, route, settings);
                    return;
                }
            }
        }
        let at = c.life.member().cloned();
        let falls_back = settings.fallback == Fallback::Follower;
        let elsewhere = match (&at, &route.leader) {
            (Some(at), Some(leader)) => at != leader,
            _ => false,
        };
        c.elsewhere_since = match elsewhere {
            true => c.elsewhere_since.or(Some(now)),
            false => None,
        };
        if let Some(since) = c.elsewhere_since.filter(|_| !falls_back) {
            let late = now > since + settings.handover_limit + TICK;
            assert!(
                !late,
                "at a follower for longer than the limit: {:?}",
                c.life
            );
        }
        if matches!(c.life.state(), State::Waiting { .. }) {
            let most = settings.wait + settings.dial_timeout;
            assert!(
                c.life.waited(now) <= most + TICK,
                "waits for ever: {:?}",
                c.life
            );
        }
    }
}

fn check_end(
    c: &Connection,
    before: &Life,
    end: End,
    now: Instant,
    route: &Route,
    settings: &Settings,
) {
    match end {
        End::Gap => {
            assert_ne!(
                c.traffic.by,
                Some(Who::Client),
                "a call is cut off: {before:?}"
            );
            let gap = now >= c.traffic.last + settings.handover_gap;
            let late = c
                .elsewhere_since
                .map(|since| since + settings.handover_limit / 2);
            let answered = c.traffic.answers && late.is_some_and(|late| now >= late);
            assert!(
                !c.traffic.held && (gap || answered),
                "not in a gap: {before:?}"
            );
        }
        End::NoLeader => {
            assert!(
                route.leader.is_none(),
                "refused while {:?} leads",
                route.leader
            );
            assert!(before.waited(now) >= settings.wait);
        }
        End::Unreachable => {
            assert!(c.dialed_at.is_some(), "refused without an attempt");
            assert!(now >= c.began + settings.wait);
        }
        End::MemberLost => {
            let at = before.member().unwrap();
            assert!(route.has_lost(at) && route.leader.is_some());
        }
        End::Limit => {
            assert!(c.elsewhere_since.is_some(), "{before:?}");
        }
        End::Idle => assert!(settings.idle_timeout.is_some() || c.traffic.half_closed),
        End::Drain | End::Done | End::ClientFailed | End::MemberFailed => {
            panic!("{end:?} is not decided here")
        }
    }
}

#[test]
fn whatever_happens_connections_follow_the_leader() {
    let only = std::env::var("ORLOP_PROXY_SEED").ok();
    let only = only.and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        println!("ORLOP_PROXY_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..TICKS {
            world.step();
        }
    }
}
