//! Events in simulated time.

mod requests;
mod rounds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use placement::{Response, RoundTrips};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::outcome::Outcome;
use crate::scenario::{Policy, Scenario, Spacing, Topology, What};
use crate::service::{RequestId, Service};

const SECOND_US: f64 = 1_000_000.0;
/// How often nodes hear of each other's queues.
const REPORT_US: u64 = 500_000;

pub(crate) struct SimNode {
    group: usize,
    up: bool,
    /// Counts its deaths.
    life: u32,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
enum Sender {
    /// A user, who thinks so many ms after an answer.
    User {
        think_ms: f64,
    },
    Arrival,
}

struct Request {
    service: usize,
    entry: u32,
    sent_us: u64,
    from: Sender,
    /// Where it was sent.
    node: Option<u32>,
    over: bool,
}

#[derive(Debug)]
enum Step {
    Send {
        service: usize,
        entry: u32,
        from: Sender,
    },
    /// The next of requests that come whatever the answers.
    Next {
        service: usize,
        entry: u32,
        rate: f64,
        spacing: Spacing,
        until_us: u64,
    },
    Reach {
        request: RequestId,
        life: u32,
    },
    Done {
        request: RequestId,
        arrived_us: u64,
        began_us: u64,
        life: u32,
    },
    Answer {
        request: RequestId,
    },
    Deadline {
        request: RequestId,
    },
    PodReady {
        service: usize,
        node: u32,
        life: u32,
    },
    Round,
    Report,
    Event(usize),
}

type Queued = Reverse<(u64, u64)>;

pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) policy: Policy,
    topology: Topology,
    pub(crate) nodes: Vec<SimNode>,
    pub(crate) services: Vec<Service>,
    pub(crate) round_trips: RoundTrips,
    pub(crate) prior_ms: f64,
    pub(crate) allowed: Vec<bool>,
    pub(crate) lost: Vec<bool>,
    pub(crate) route_rng: ChaCha8Rng,
    traffic_rng: ChaCha8Rng,
    serving_rng: ChaCha8Rng,
    network_rng: ChaCha8Rng,
    cut: BTreeSet<(u32, u32)>,
    /// Mean time in a pod without queueing in ms, damped, by service and node: what a router that
    /// owns the queue sees.
    busy: BTreeMap<(usize, u32), f64>,
    now_us: u64,
    order: u64,
    heap: BinaryHeap<Queued>,
    queued: BTreeMap<u64, Step>,
    requests: Vec<Request>,
    free_requests: Vec<RequestId>,
    edge: Vec<bool>,
    outcome: Outcome,
}

/// Runs a scenario once.
///
/// # Errors
/// If the scenario is not sound.
pub fn run(scenario: &Scenario, policy: Policy, seed: u64) -> Result<Outcome, Error> {
    let mut world = World::new(scenario, policy, seed)?;
    world.start();
    let end_us = us(scenario.duration_s * SECOND_US);
    while let Some(Reverse((at, order))) = world.heap.pop() {
        if at > end_us {
            break;
        }
        world.now_us = at;
        if let Some(what) = world.queued.remove(&order) {
            world.happen(what);
        }
    }
    let mut outcome = world.outcome;
    outcome.latencies_us.sort_unstable();
    Ok(outcome)
}

fn us(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, policy: Policy, seed: u64) -> Result<Self, Error> {
        let topology = scenario.topology()?;
        let nodes: Vec<SimNode> = topology
            .group
            .iter()
            .map(|group| SimNode {
                group: *group,
                up: true,
                life: 0,
            })
            .collect();
        let edge = topology
            .group
            .iter()
            .map(|group| scenario.edge.contains(&scenario.node[*group].zone))
            .collect();
        let services = scenario
            .service
            .iter()
            .enumerate()
            .flat_map(|(index, group)| {
                (0..group.count).map(move |_| Service {
                    group: index,
                    request: group.request(),
                    ..Service::default()
                })
            })
            .collect();
        let rng = |stream: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream);
            rng
        };
        Ok(World {
            scenario,
            policy,
            round_trips: RoundTrips::new(nodes.len()),
            prior_ms: scenario.placement.prior_serving_ms,
            allowed: vec![true; nodes.len()],
            lost: vec![false; nodes.len()],
            nodes,
            services,
            topology,
            traffic_rng: rng(1),
            serving_rng: rng(2),
            network_rng: rng(3),
            route_rng: rng(4),
            cut: BTreeSet::new(),
            busy: BTreeMap::new(),
            now_us: 0,
            order: 0,
            heap: BinaryHeap::new(),
            queued: BTreeMap::new(),
            requests: Vec::new(),
            free_requests: Vec::new(),
            edge,
            outcome: Outcome {
                policy,
                seed,
                sent: 0,
                completed: 0,
                latencies_us: Vec::new(),
                edge_completed: 0,
                edge_fast: 0,
                rounds: Vec::new(),
                moves: 0,
                most_steps_a_round: 0,
                decision_cpu: Duration::ZERO,
            },
        })
    }

    fn at(&mut self, at_us: u64, what: Step) {
        self.order += 1;
        self.queued.insert(self.order, what);
        self.heap.push(Reverse((at_us, self.order)));
    }

    fn exponential(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
        let draw: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
        -draw.ln() * mean
    }

    fn gap(&mut self, rate: f64, spacing: Spacing) -> u64 {
        match spacing {
            Spacing::Poisson => us(Self::exponential(&mut self.traffic_rng, SECOND_US / rate)),
            Spacing::Even => us(SECOND_US / rate),
        }
    }

    fn think(&mut self, service: usize, entry: u32, from: Sender) {
        if let Sender::User { think_ms } = from {
            let ms = Self::exponential(&mut self.traffic_rng, think_ms);
            self.at(
                self.now_us + us(ms * 1000.0),
                Step::Send {
                    service,
                    entry,
                    from,
                },
            );
        }
    }

    pub(crate) fn now_s(&self) -> f64 {
        self.now_us as f64 / SECOND_US
    }

    pub(crate) fn node_up(&self, node: u32) -> bool {
        self.nodes[node as usize].up
    }

    pub(crate) fn reachable(&self, a: u32, b: u32) -> bool {
        self.node_up(a) && self.node_up(b) && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Round trip and jitter in ms.
    pub(crate) fn true_link(&self, a: u32, b: u32) -> (f64, f64) {
        if a == b {
            return (0.0, 0.0);
        }
        let (a, b) = (
            self.topology.group[a as usize],
            self.topology.group[b as usize],
        );
        self.topology.link[a][b]
    }

    pub(crate) fn true_serving_ms(&self, service: usize, node: u32) -> f64 {
        let group = &self.scenario.service[self.services[service].group];
        let slowness = self.scenario.node[self.nodes[node as usize].group].slowness;
        group.serving_ms * slowness
    }

    /// Time in a pod without queueing, as measured.
    pub(crate) fn busy_ms(&self, service: usize, node: u32) -> f64 {
        self.busy
            .get(&(service, node))
            .copied()
            .unwrap_or(self.prior_ms)
    }

    pub(crate) fn response(&self, service: usize) -> Response<'_> {
        Response {
            round_trips: &self.round_trips,
            serving: &self.services[service].memory.serving,
            prior_ms: self.prior_ms,
            settings: &self.scenario.placement,
        }
    }

    fn one_way_us(&mut self, a: u32, b: u32) -> u64 {
        let (ms, jitter) = self.true_link(a, b);
        let off = if jitter > 0.0 {
            self.network_rng.random_range(-jitter..=jitter)
        } else {
            0.0
        };
        us((ms + off) * 500.0)
    }

    fn warm(&self) -> bool {
        self.now_s() >= self.scenario.warm_up_s
    }

    fn counts(&self, request: &Request) -> bool {
        request.sent_us as f64 >= self.scenario.warm_up_s * SECOND_US
    }

    fn happen(&mut self, what: Step) {
        match what {
            Step::Send {
                service,
                entry,
                from,
            } => self.send(service, entry, from),
            Step::Next {
                service,
                entry,
                rate,
                spacing,
                until_us,
            } => {
                if self.now_us < until_us {
                    self.send(service, entry, Sender::Arrival);
                    let next = self.now_us + self.gap(rate, spacing);
                    self.at(
                        next,
                        Step::Next {
                            service,
                            entry,
                            rate,
                            spacing,
                            until_us,
                        },
                    );
                }
            }
            Step::Reach { request, life } => self.reach(request, life),
            Step::Done {
                request,
                arrived_us,
                began_us,
                life,
            } => self.done(request, arrived_us, began_us, life),
            Step::Answer { request } => self.answer(request),
            Step::Deadline { request } => self.deadline(request),
            Step::PodReady {
                service,
                node,
                life,
            } => self.pod_ready(service, node, life),
            Step::Round => self.round(),
            Step::Report => self.report(),
            Step::Event(index) => self.event(index),
        }
    }

    fn report(&mut self) {
        for service in &mut self.services {
            for pool in service.pools.values_mut() {
                pool.reported = pool.in_flight;
            }
        }
        self.at(self.now_us + REPORT_US, Step::Report);
    }

    fn event(&mut self, index: usize) {
        let named = |name: &String| self.topology.by_name.get(name).copied().unwrap_or(0);
        let pair = |names: &[String; 2]| {
            let (a, b) = (named(&names[0]), named(&names[1]));
            (a.min(b), a.max(b))
        };
        match self.scenario.event[index].what() {
            What::NodeDown(name) => {
                let node = named(name);
                self.nodes[node as usize].up = false;
                self.nodes[node as usize].life += 1;
                for service in 0..self.services.len() {
                    let Some(pool) = self.services[service].pools.get_mut(&node) else {
                        continue;
                    };
                    let wanted = pool.wanted;
                    *pool = crate::service::Pool {
                        wanted,
                        ..Default::default()
                    };
                }
            }
            What::NodeUp(name) => {
                let node = named(name);
                self.nodes[node as usize].up = true;
            }
            What::LinkDown(names) => {
                let pair = pair(names);
                self.cut.insert(pair);
            }
            What::LinkUp(names) => {
                let pair = pair(names);
                self.cut.remove(&pair);
            }
            What::Unclear => {}
        }
    }
}
