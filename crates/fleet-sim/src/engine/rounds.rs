//! A round: what is measured, what is decided, and what comes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use placement::{Entered, Node, Resources, Room};
use rand::Rng as _;

use super::{SECOND_US, Step, World, us};
use crate::outcome::Sample;
use crate::place::place;
use crate::scenario::Policy;
use crate::service::Pool;

impl World<'_> {
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
            service.entries.clear();
            for (node, window) in &mut service.entered {
                let (mut requests, mut turns) = (0_u32, 0_u32);
                for each in window.turn(rounds) {
                    requests += each;
                    turns += 1;
                }
                if requests > 0 {
                    service.entries.push(Entered {
                        node: Node(*node),
                        requests: f64::from(requests),
                        over_s: f64::from(turns) * self.scenario.round_s,
                    });
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

    pub(super) fn round(&mut self) {
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
