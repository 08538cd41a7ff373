//! The life of a request: sent, queued, served, answered or given up.

use std::collections::BTreeMap;

use rand::Rng as _;
use rand::seq::index::sample;

use super::{REPORT_US, Request, SECOND_US, Sender, Step, World, us};
use crate::route::route;
use crate::scenario::{Spacing, Spread};
use crate::service::{RequestId, TrueRate};

impl World<'_> {
    pub(super) fn start(&mut self) {
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

    pub(super) fn send(&mut self, service: usize, entry: u32, from: Sender) {
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
    pub(super) fn dispatch(&mut self, id: RequestId) {
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
    pub(super) fn left(&mut self, id: RequestId) {
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

    pub(super) fn reach(&mut self, id: RequestId, life: u32) {
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

    pub(super) fn done(&mut self, id: RequestId, arrived_us: u64, began_us: u64, life: u32) {
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

    pub(super) fn answer(&mut self, id: RequestId) {
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

    pub(super) fn deadline(&mut self, id: RequestId) {
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

    pub(super) fn pod_ready(&mut self, service: usize, node: u32, life: u32) {
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
    pub(super) fn wake(&mut self, service: usize) {
        let waiting = std::mem::take(&mut self.services[service].waiting);
        for id in waiting {
            if self.requests[id].over || !self.node_up(self.requests[id].entry) {
                continue;
            }
            self.dispatch(id);
        }
    }
}
