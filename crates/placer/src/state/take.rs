//! What a round takes in: nodes, round trips, traffic, pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use placement::{Node, NodeState, Pods, Resources, Room};

use super::{Seen, Service, State};
use crate::input::{Latencies, Traffic};
use crate::objects::{NodeFacts, PodFacts, SeikaFacts};

impl State {
    /// Numbers of nodes, and whether what is known of them has changed.
    pub(super) fn take_nodes(&mut self, seen: &Seen<'_>) {
        let wanted = seen.seikas.values().flat_map(|seika| seika.wanted.keys());
        let used: HashSet<&str> = seen
            .nodes
            .keys()
            .chain(wanted)
            .map(String::as_str)
            .collect();
        for node in self.numbers.keep(|name| used.contains(name)) {
            self.round_trips.forget(node);
            for service in self.services.values_mut() {
                service.memory.serving.forget(node);
                service.late.remove(&node);
                service.blocked.remove(&node);
            }
            self.nodes_version += 1;
        }
        // New names by order, so that the same nodes have the same numbers each time.
        let mut new: Vec<&str> = used.into_iter().collect();
        new.retain(|name| self.numbers.of(name).is_none());
        new.sort_unstable();
        for name in new {
            self.numbers.give(name);
        }
        self.round_trips.grow(self.numbers.len());
        if *self.nodes != *seen.nodes || self.lost.len() != self.numbers.len() {
            self.nodes = Arc::new(seen.nodes.clone());
            self.nodes_version += 1;
        }
        self.lost = vec![true; self.numbers.len()];
        for (name, facts) in seen.nodes {
            if let Some(node) = self.numbers.of(name) {
                self.lost[node.index()] = facts.state == NodeState::Lost;
            }
        }
    }

    pub(super) fn take_latencies(
        &mut self,
        latencies: &Latencies,
        nodes: &BTreeMap<String, NodeFacts>,
    ) {
        let settings = &self.settings.placement;
        let (numbers, round_trips) = (&self.numbers, &mut self.round_trips);
        let pair = |from: &str, to: &str| Some((numbers.of(from)?, numbers.of(to)?));
        let mut measured = Pairs::new(numbers.len());
        for (from, to, ms) in &latencies.round_trips {
            if let Some((from, to)) = pair(from, to) {
                measured.insert(from, to);
                round_trips.measured(from, to, *ms, settings);
            }
        }
        for (from, to) in &latencies.down {
            if let Some((from, to)) = pair(from, to)
                && measured.insert(from, to)
            {
                round_trips.down(from, to);
            }
        }
        let mut zones: BTreeMap<&str, Vec<Node>> = BTreeMap::new();
        for (name, facts) in nodes {
            if let Some(node) = numbers.of(name) {
                zones.entry(&facts.zone).or_default().push(node);
            }
        }
        for (from, zone, ms) in &latencies.zones {
            let Some(from) = numbers.of(from) else {
                continue;
            };
            for to in zones.get(zone.as_str()).into_iter().flatten() {
                if *to != from && !measured.has(from, *to) {
                    round_trips.measured(from, *to, *ms, settings);
                }
            }
        }
        round_trips.settle();
        if !latencies.round_trips.is_empty() {
            self.latencies_round = Some(self.round);
        }
    }

    pub(super) fn take_traffic(
        &mut self,
        traffic: &Traffic,
        seikas: &BTreeMap<String, SeikaFacts>,
    ) {
        let settings = &self.settings.placement;
        let (mut sum_ms, mut count) = (0.0, 0.0);
        for (key, seika) in seikas {
            let Ok(asks) = &seika.asks else { continue };
            let Some(of) = traffic.services.get(&asks.traffic_of) else {
                continue;
            };
            let samples: Vec<(Node, f64, f64)> = of
                .served
                .iter()
                .filter_map(|(name, (ms, requests))| Some((self.numbers.of(name)?, *ms, *requests)))
                .collect();
            for (_, ms, requests) in &samples {
                sum_ms += ms * requests;
                count += requests;
            }
            let service = self.services.entry(key.clone()).or_default();
            let serving = &mut service.memory.serving;
            serving.measured(&samples, self.prior_ms, settings);
        }
        if count > 0.0 {
            self.prior_ms = sum_ms / count;
        }
    }

    /// What is free on each node, if every wanted pod is there.
    pub(super) fn room(&self, seen: &Seen<'_>, ready: &PodCounts<'_>) -> Room {
        let mut free = vec![Resources::default(); self.numbers.len()];
        for (name, facts) in seen.nodes {
            if let Some(node) = self.numbers.of(name) {
                free[node.index()] = facts.allocatable;
            }
        }
        for pod in seen.pods.values() {
            if let Some(node) = self.numbers.of(&pod.node) {
                free[node.index()] = free[node.index()].minus(&pod.request);
            }
        }
        for (key, seika) in seen.seikas {
            let Ok(asks) = &seika.asks else { continue };
            for (name, wanted) in &seika.wanted {
                let Some(node) = self.numbers.of(name) else {
                    continue;
                };
                let (there, _) = ready.of(key, name);
                for _ in there..*wanted {
                    free[node.index()] = free[node.index()].minus(&asks.request);
                }
            }
        }
        Room::new(free)
    }

    /// Which pods are ready, and which nodes do not make them so.
    pub(super) fn take_pods(
        &self,
        service: &mut Service,
        key: &str,
        seika: &SeikaFacts,
        counts: &PodCounts<'_>,
    ) {
        let mut names: BTreeSet<&str> = seika.wanted.keys().map(String::as_str).collect();
        names.extend(counts.nodes(key));
        service.pods = names
            .into_iter()
            .filter_map(|name| {
                let node = self.numbers.of(name)?;
                let wanted = seika.wanted.get(name).copied().unwrap_or(0);
                let (_, ready) = counts.of(key, name);
                Some((node, Pods { wanted, ready }))
            })
            .collect();
        let late: BTreeMap<Node, u64> = service
            .pods
            .iter()
            .filter(|(_, pods)| pods.ready < pods.wanted)
            .map(|(node, _)| (*node, service.late.get(node).copied().unwrap_or(self.round)))
            .collect();
        service.late = late;
        service.blocked.retain(|_, until| *until > self.round);
        // Where no pod is made anywhere, it is not the node's fault.
        if counts.nodes(key).next().is_none() {
            return;
        }
        let patience = self.settings.rounds(self.settings.start_timeout_s);
        let until = self.round + self.settings.rounds(self.settings.retry_s);
        for (node, since) in &service.late {
            if self.round - since >= patience {
                service.blocked.insert(*node, until);
            }
        }
    }
}

/// A set of pairs of nodes.
struct Pairs {
    nodes: usize,
    has: Vec<bool>,
}

impl Pairs {
    fn new(nodes: usize) -> Self {
        Self {
            nodes,
            has: vec![false; nodes * nodes],
        }
    }

    fn has(&self, from: Node, to: Node) -> bool {
        self.has[from.index() * self.nodes + to.index()]
    }

    /// Whether it was not there before.
    fn insert(&mut self, from: Node, to: Node) -> bool {
        let has = &mut self.has[from.index() * self.nodes + to.index()];
        !std::mem::replace(has, true)
    }
}

/// Pods by Seika and node: how many there are, and how many of them are ready.
pub(super) struct PodCounts<'a>(HashMap<&'a str, BTreeMap<&'a str, (u32, u32)>>);

impl<'a> PodCounts<'a> {
    fn of(&self, seika: &str, node: &str) -> (u32, u32) {
        let nodes = self.0.get(seika);
        nodes.and_then(|n| n.get(node)).copied().unwrap_or_default()
    }

    fn nodes(&self, seika: &str) -> impl Iterator<Item = &'a str> {
        let nodes = self.0.get(seika);
        nodes.into_iter().flat_map(|nodes| nodes.keys().copied())
    }
}

pub(super) fn ready_by_node(pods: &BTreeMap<String, PodFacts>) -> PodCounts<'_> {
    let mut counts: HashMap<&str, BTreeMap<&str, (u32, u32)>> = HashMap::new();
    for pod in pods.values() {
        if let Some(seika) = &pod.seika {
            let nodes = counts.entry(seika).or_default();
            let (there, ready) = nodes.entry(&pod.node).or_default();
            *there += 1;
            *ready += u32::from(pod.ready);
        }
    }
    PodCounts(counts)
}
