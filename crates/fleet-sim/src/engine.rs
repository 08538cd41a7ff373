//! Events in simulated time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use placement::{Node, Resources, Response, Room, RoundTrips};
use rand::seq::index::sample;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::outcome::{Outcome, Sample};
use crate::place::place;
use crate::route::route;
use crate::scenario::{Policy, Scenario, Spacing, Spread, Topology, What};
use crate::service::{Pool, RequestId, Service, TrueRate};

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

    fn start(&mut self) {
        let scenario = self.scenario;
        let zone_nodes = |zone: &str| -> Vec<u32> {
            (0..self.topology.group.len())
                .filter(|n| scenario.node[self.topology.group[*n]].zone == zone)
                .map(|n| n as u32)
                .collect()
        };
        let zones: BTreeMap<&str, Vec<u32>> = scenario
            .node
            .iter()
            .map(|group| (group.zone.as_str(), zone_nodes(&group.zone)))
            .collect();
        for service in 0..self.services.len() {
            let group = &scenario.service[self.services[service].group];
            for users in &group.users {
                for &entry in &zones[users.zone.as_str()] {
                    self.services[service].truth.push(TrueRate {
                        node: entry,
                        rate: f64::from(users.count) * 1000.0 / (users.think_ms + group.serving_ms),
                        from_s: 0.0,
                        until_s: f64::INFINITY,
                    });
                    for _ in 0..users.count {
                        let from = Sender::User {
                            think_ms: users.think_ms,
                        };
                        self.think(service, entry, from);
                    }
                }
            }
            for arrivals in &group.arrivals {
                let all = &zones[arrivals.zone.as_str()];
                let count = arrivals
                    .nodes
                    .map_or(all.len(), |n| all.len().min(n as usize));
                let until_s = arrivals.until_s.unwrap_or(scenario.duration_s);
                let mut at: Vec<usize> = sample(&mut self.traffic_rng, all.len(), count).into_vec();
                at.sort_unstable();
                for entry in at.into_iter().map(|n| all[n]) {
                    self.services[service].truth.push(TrueRate {
                        node: entry,
                        rate: arrivals.rate,
                        from_s: arrivals.from_s,
                        until_s,
                    });
                    let first =
                        us(arrivals.from_s * SECOND_US) + self.gap(arrivals.rate, Spacing::Poisson);
                    self.at(
                        first,
                        Step::Next {
                            service,
                            entry,
                            rate: arrivals.rate,
                            spacing: arrivals.spacing,
                            until_us: us(until_s * SECOND_US),
                        },
                    );
                }
            }
        }
        for (index, event) in scenario.event.iter().enumerate() {
            self.at(us(event.at_s * SECOND_US), Step::Event(index));
        }
        self.at(0, Step::Round);
        self.at(REPORT_US, Step::Report);
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

    fn send(&mut self, service: usize, entry: u32, from: Sender) {
        let request = Request {
            service,
            entry,
            sent_us: self.now_us,
            from,
            node: None,
            over: false,
        };
        if self.counts(&request) {
            self.outcome.sent += 1;
        }
        let id = match self.free_requests.pop() {
            Some(id) => {
                self.requests[id] = request;
                id
            }
            None => {
                self.requests.push(request);
                self.requests.len() - 1
            }
        };
        let deadline = self.now_us + us(self.scenario.deadline_ms * 1000.0);
        self.at(deadline, Step::Deadline { request: id });
        *self.services[service]
            .entered
            .entry(entry)
            .or_default()
            .now() += 1;
        if self.node_up(entry) {
            self.dispatch(id);
        }
    }

    /// Sends a request to a pod, or has it wait for one.
    fn dispatch(&mut self, id: RequestId) {
        let (service, entry) = (self.requests[id].service, self.requests[id].entry);
        let Some(node) = route(self, service, entry) else {
            self.services[service].waiting.push_back(id);
            return;
        };
        self.requests[id].node = Some(node);
        let life = self.nodes[node as usize].life;
        if let Some(pool) = self.services[service].pools.get_mut(&node) {
            pool.in_flight += 1;
            *pool.in_flight_from.entry(entry).or_default() += 1;
        }
        let way = self.one_way_us(entry, node);
        self.at(self.now_us + way, Step::Reach { request: id, life });
    }

    /// The request is not at its node any more.
    fn left(&mut self, id: RequestId) {
        let (service, entry) = (self.requests[id].service, self.requests[id].entry);
        let Some(node) = self.requests[id].node.take() else {
            return;
        };
        if let Some(pool) = self.services[service].pools.get_mut(&node) {
            pool.in_flight = pool.in_flight.saturating_sub(1);
            if let Some(own) = pool.in_flight_from.get_mut(&entry) {
                *own = own.saturating_sub(1);
            }
        }
    }

    fn reach(&mut self, id: RequestId, life: u32) {
        let (service, entry) = (self.requests[id].service, self.requests[id].entry);
        let Some(node) = self.requests[id].node else {
            return;
        };
        if self.nodes[node as usize].life != life || !self.reachable(entry, node) {
            // Lost on the way; whoever sent it waits for its deadline.
            self.left(id);
            return;
        }
        let now = self.now_us;
        let Some(pool) = self.services[service].pools.get_mut(&node) else {
            return;
        };
        if pool.ready == 0 && pool.busy == 0 {
            self.left(id);
            self.dispatch(id);
            return;
        }
        pool.queue.push_back((id, now));
        self.serve(service, node);
    }

    /// Starts what has a slot.
    fn serve(&mut self, service: usize, node: u32) {
        let group = &self.scenario.service[self.services[service].group];
        let mean_us = self.true_serving_ms(service, node) * 1000.0;
        let deadline_us = us(self.scenario.deadline_ms * 1000.0);
        let life = self.nodes[node as usize].life;
        loop {
            let now = self.now_us;
            let Some(pool) = self.services[service].pools.get_mut(&node) else {
                return;
            };
            if pool.busy >= pool.ready * group.concurrency {
                return;
            }
            let Some((id, arrived_us)) = pool.queue.pop_front() else {
                return;
            };
            if self.requests[id].over || now >= self.requests[id].sent_us + deadline_us {
                self.left(id);
                continue;
            }
            pool.busy += 1;
            let draw = match group.spread {
                Spread::Fixed => mean_us,
                Spread::Uniform => mean_us * self.serving_rng.random_range(0.5..1.5),
                Spread::Exponential => Self::exponential(&mut self.serving_rng, mean_us),
            };
            self.at(
                now + us(draw).max(1),
                Step::Done {
                    request: id,
                    arrived_us,
                    began_us: now,
                    life,
                },
            );
        }
    }

    fn done(&mut self, id: RequestId, arrived_us: u64, began_us: u64, life: u32) {
        let (service, entry) = (self.requests[id].service, self.requests[id].entry);
        let Some(node) = self.requests[id].node else {
            return;
        };
        if self.nodes[node as usize].life != life {
            return;
        }
        let ms = (self.now_us - arrived_us) as f64 / 1000.0;
        let busy_ms = (self.now_us - began_us) as f64 / 1000.0;
        let damping = self.scenario.placement.damping;
        let known = self.busy.entry((service, node)).or_insert(busy_ms);
        *known += damping * (busy_ms - *known);
        let of = &mut self.services[service];
        let (sum, count) = of.served.entry(node).or_default().now();
        *sum += ms;
        *count += 1;
        if let Some(pool) = of.pools.get_mut(&node) {
            pool.busy -= 1;
        }
        let way = self.one_way_us(node, entry);
        self.at(self.now_us + way, Step::Answer { request: id });
        self.serve(service, node);
    }

    fn answer(&mut self, id: RequestId) {
        let entry = self.requests[id].entry;
        let reached = self.requests[id]
            .node
            .is_some_and(|node| self.reachable(entry, node));
        self.left(id);
        if !reached {
            return;
        }
        if self.requests[id].over {
            return;
        }
        self.requests[id].over = true;
        let (service, from) = (self.requests[id].service, self.requests[id].from);
        if self.counts(&self.requests[id]) {
            let us = self.now_us - self.requests[id].sent_us;
            self.outcome.completed += 1;
            self.outcome
                .latencies_us
                .push(u32::try_from(us).unwrap_or(u32::MAX));
            if self.edge[entry as usize] {
                self.outcome.edge_completed += 1;
                let fast = us as f64 <= self.scenario.fast_ms * 1000.0;
                self.outcome.edge_fast += u64::from(fast);
            }
        }
        self.think(service, entry, from);
    }

    fn deadline(&mut self, id: RequestId) {
        if self.requests[id].over {
            // Answered: nothing refers to it any more. The number of a request that failed is not
            // given again, since it may still be in a queue.
            self.free_requests.push(id);
            return;
        }
        self.requests[id].over = true;
        let (service, entry, from) = {
            let request = &self.requests[id];
            (request.service, request.entry, request.from)
        };
        self.think(service, entry, from);
    }

    fn pod_ready(&mut self, service: usize, node: u32, life: u32) {
        if self.nodes[node as usize].life != life {
            return;
        }
        let Some(pool) = self.services[service].pools.get_mut(&node) else {
            return;
        };
        pool.starting -= 1;
        if pool.cancelled > 0 {
            pool.cancelled -= 1;
            return;
        }
        pool.ready += 1;
        self.serve(service, node);
        self.wake(service);
    }

    /// Sends what waits for a pod.
    fn wake(&mut self, service: usize) {
        let waiting = std::mem::take(&mut self.services[service].waiting);
        for id in waiting {
            if self.requests[id].over || !self.node_up(self.requests[id].entry) {
                continue;
            }
            self.dispatch(id);
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

    fn measure_links(&mut self) {
        let settings = &self.scenario.placement;
        let noise = self.scenario.latency_noise;
        for from in 0..self.nodes.len() as u32 {
            for to in 0..self.nodes.len() as u32 {
                if from == to {
                    continue;
                }
                if !self.reachable(from, to) {
                    self.round_trips.down(Node(from), Node(to));
                    continue;
                }
                let (ms, jitter) = self.true_link(from, to);
                let mut measured = ms;
                if jitter > 0.0 {
                    measured += self.network_rng.random_range(-jitter..=jitter);
                }
                if noise > 0.0 {
                    measured *= 1.0 + self.network_rng.random_range(-noise..=noise);
                }
                self.round_trips
                    .measured(Node(from), Node(to), measured, settings);
            }
        }
        self.round_trips.settle();
    }

    fn measure_traffic(&mut self) {
        let rounds = (self.scenario.window_s / self.scenario.round_s).round() as usize;
        let (mut sum_ms, mut count) = (0.0, 0.0);
        for service in &mut self.services {
            service.rates.clear();
            for (node, window) in &mut service.entered {
                let (mut requests, mut turns) = (0_u32, 0_u32);
                for each in window.turn(rounds) {
                    requests += each;
                    turns += 1;
                }
                let rate = f64::from(requests) / (f64::from(turns) * self.scenario.round_s);
                if requests > 0 {
                    service.rates.push((Node(*node), rate));
                }
            }
            let mut samples = Vec::new();
            for (node, window) in &mut service.served {
                let (mut ms, mut requests) = (0.0, 0_u32);
                for (each_ms, each) in window.turn(rounds) {
                    ms += each_ms;
                    requests += each;
                }
                if requests > 0 {
                    samples.push((Node(*node), ms / f64::from(requests), f64::from(requests)));
                    sum_ms += ms;
                    count += f64::from(requests);
                }
            }
            service
                .memory
                .serving
                .measured(&samples, self.prior_ms, &self.scenario.placement);
        }
        if count > 0.0 {
            self.prior_ms = sum_ms / count;
        }
    }

    /// What pods leave free on each node, if there are `pods` of each pool.
    fn free(&self, pods: impl Fn(&Pool) -> u32) -> Vec<Resources> {
        let rooms = self.nodes.iter();
        let rooms = rooms.map(|node| self.scenario.node[node.group].room());
        let mut free: Vec<Resources> = rooms.collect();
        for service in &self.services {
            for (node, pool) in &service.pools {
                let free = &mut free[*node as usize];
                for _ in 0..pods(pool) {
                    *free = free.minus(&service.request);
                }
            }
        }
        free
    }

    fn room(&self) -> Room {
        Room::new(self.free(|pool| match self.policy {
            // It takes no account of room; what does not fit stays in wait.
            Policy::Seed | Policy::Oracle => pool.created(),
            _ => pool.created().max(pool.wanted),
        }))
    }

    fn round(&mut self) {
        self.measure_links();
        self.measure_traffic();
        for (index, node) in self.nodes.iter().enumerate() {
            self.allowed[index] = node.up;
            self.lost[index] = !node.up;
        }
        let before: Vec<BTreeMap<u32, u32>> = self
            .services
            .iter()
            .map(|s| s.pools.iter().map(|(n, p)| (*n, p.wanted)).collect())
            .collect();
        let cpu = thread_cpu();
        let mut room = self.room();
        let mut steps = 0;
        for service in 0..self.services.len() {
            steps += place(self, service, &mut room);
        }
        self.outcome.decision_cpu += thread_cpu().saturating_sub(cpu);
        self.outcome.most_steps_a_round = self.outcome.most_steps_a_round.max(steps);
        let mut sample = Sample {
            at_s: self.now_s(),
            ..Sample::default()
        };
        for (service, before) in before.iter().enumerate() {
            for (node, pool) in &self.services[service].pools {
                let was = before.get(node).copied().unwrap_or(0);
                sample.added += pool.wanted.saturating_sub(was);
                sample.removed += was.saturating_sub(pool.wanted);
            }
        }
        if self.warm() {
            self.outcome.moves += u64::from(sample.added + sample.removed);
        }
        sample.stuck = self.apply();
        for service in &self.services {
            sample.ready += service.ready().map(|(_, pool)| pool.ready).sum::<u32>();
        }
        self.outcome.rounds.push(sample);
        // A link that came back may have opened a way for those who wait.
        for service in 0..self.services.len() {
            self.wake(service);
        }
        let next = self.now_us + us(self.scenario.round_s * SECOND_US);
        self.at(next, Step::Round);
    }

    /// Creates and ends pods as decided; returns how many have no room.
    fn apply(&mut self) -> u32 {
        let mut stuck = 0;
        let mut free = self.free(Pool::created);
        for service in 0..self.services.len() {
            let group = &self.scenario.service[self.services[service].group];
            let start_us = if self.policy == Policy::Oracle {
                0
            } else {
                us(group.start_ms * 1000.0)
            };
            let request = self.services[service].request;
            let nodes: Vec<u32> = self.services[service].pools.keys().copied().collect();
            for node in nodes {
                let up = self.node_up(node);
                let life = self.nodes[node as usize].life;
                let mut create = 0;
                if let Some(pool) = self.services[service].pools.get_mut(&node) {
                    while pool.created() > pool.wanted {
                        if pool.starting > pool.cancelled {
                            pool.cancelled += 1;
                        } else {
                            pool.ready -= 1;
                        }
                    }
                    while up && pool.created() < pool.wanted {
                        let free = &mut free[node as usize];
                        if free.times(&request) == 0 {
                            break;
                        }
                        *free = free.minus(&request);
                        pool.starting += 1;
                        create += 1;
                    }
                    stuck += pool.wanted.saturating_sub(pool.created());
                }
                for _ in 0..create {
                    self.at(
                        self.now_us + start_us,
                        Step::PodReady {
                            service,
                            node,
                            life,
                        },
                    );
                }
                // What waited for pods that are gone goes elsewhere.
                let orphans = match self.services[service].pools.get_mut(&node) {
                    Some(pool) if pool.ready == 0 && pool.busy == 0 => {
                        std::mem::take(&mut pool.queue)
                    }
                    _ => Default::default(),
                };
                for (id, _) in orphans {
                    self.left(id);
                    if !self.requests[id].over {
                        self.dispatch(id);
                    }
                }
            }
            self.services[service].pools.retain(|_, pool| {
                pool.wanted > 0
                    || pool.created() > 0
                    || pool.starting > 0
                    || pool.in_flight > 0
                    || pool.busy > 0
            });
        }
        stuck
    }
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
