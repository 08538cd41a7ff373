//! What is simulated: a TOML file.

use std::collections::BTreeMap;

use placement::{Resources, Settings};
use serde::{Deserialize, Serialize};

use crate::error::{Error, value};

/// Most nodes of a scenario.
const MAX_NODES: usize = 5_000;
/// Most services.
const MAX_SERVICES: usize = 20_000;
/// Longest simulated time, in s.
const MAX_DURATION_S: f64 = 7.0 * 24.0 * 3600.0;

/// Who decides where pods and requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Pods spread over all nodes, requests over all pods: a Deployment behind a Service.
    Even,
    /// Pods spread; a request goes to the nearest node with a ready pod.
    Nearest,
    /// Pods spread; of two random pods the one with fewer requests.
    LeastRequest,
    /// The seed's: +1 to the least R, -1 from who asked for less, requests by 1 / R, with its
    /// defects.
    Seed,
    /// What is shipped.
    Ours,
    /// Knows all rates, true latencies and queues; its pods start at once.
    Oracle,
}

impl Policy {
    /// All of them, in the order of reports.
    pub const ALL: [Policy; 6] = [
        Policy::Even,
        Policy::Nearest,
        Policy::LeastRequest,
        Policy::Seed,
        Policy::Ours,
        Policy::Oracle,
    ];

    /// Its name in a scenario and a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Policy::Even => "even",
            Policy::Nearest => "nearest",
            Policy::LeastRequest => "least-request",
            Policy::Seed => "seed",
            Policy::Ours => "ours",
            Policy::Oracle => "oracle",
        }
    }
}

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, for reports.
    pub name: String,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub about: String,
    /// Simulated time, in s.
    pub duration_s: f64,
    /// Requests and moves before this time do not count, in s.
    #[serde(default)]
    pub warm_up_s: f64,
    /// Each seed is a run.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// Policies to run; all, if left out.
    #[serde(default = "all_policies")]
    pub policies: Vec<Policy>,
    /// A request that is not answered in this time has failed, in ms.
    pub deadline_ms: f64,
    /// Zones at the edge, for the share of fast answers there.
    #[serde(default)]
    pub edge: Vec<String>,
    /// A fast answer, in ms.
    #[serde(default = "fast_ms")]
    pub fast_ms: f64,
    /// Measured latencies are off by up to this part of them.
    #[serde(default)]
    pub latency_noise: f64,
    /// Time between decisions, in s.
    #[serde(default = "round_s")]
    pub round_s: f64,
    /// Traffic is averaged over this time, in s.
    #[serde(default = "window_s")]
    pub window_s: f64,
    /// Settings of the decision.
    #[serde(default)]
    pub placement: Settings,
    /// Nodes.
    pub node: Vec<NodeGroup>,
    /// Links between zones.
    #[serde(default)]
    pub link: Vec<Link>,
    /// Services.
    pub service: Vec<ServiceGroup>,
    /// What happens.
    #[serde(default)]
    pub event: Vec<Event>,
}

fn one_seed() -> Vec<u64> {
    vec![1]
}
fn all_policies() -> Vec<Policy> {
    Policy::ALL.to_vec()
}
fn fast_ms() -> f64 {
    20.0
}
fn round_s() -> f64 {
    2.0
}
fn window_s() -> f64 {
    10.0
}
fn one() -> u32 {
    1
}
fn unit() -> f64 {
    1.0
}

/// Equal nodes of a zone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeGroup {
    /// The zone, and the node's name; with several nodes `ZONE-0` and so on.
    pub zone: String,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// CPU, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Pods that it takes at most.
    #[serde(default = "node_pods")]
    pub pods: u64,
    /// Serving takes this many times as long here.
    #[serde(default = "unit")]
    pub slowness: f64,
}

fn node_pods() -> u64 {
    110
}

/// A link between the nodes of two zones, or within one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The two zones.
    pub between: [String; 2],
    /// Round trip, in ms.
    pub round_trip_ms: f64,
    /// Each round trip is off by up to this, in ms.
    #[serde(default)]
    pub jitter_ms: f64,
}

/// How serving times are spread around their mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// All the same.
    #[default]
    Fixed,
    /// Between half the mean and one and a half.
    Uniform,
    /// Exponential.
    Exponential,
}

/// Equal services.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceGroup {
    /// Name.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Mean serving time, in ms.
    pub serving_ms: f64,
    /// How serving times are spread.
    #[serde(default)]
    pub spread: Spread,
    /// Requests that a pod serves at once.
    #[serde(default = "one")]
    pub concurrency: u32,
    /// What a pod asks for, in thousandths of a core.
    pub cpu_millis: u64,
    /// What a pod asks for, in MiB.
    pub memory_mib: u64,
    /// From created to ready, in ms.
    pub start_ms: f64,
    /// Most pods.
    #[serde(default)]
    pub max_pods: Option<u32>,
    /// Fewest pods.
    #[serde(default)]
    pub min_pods: u32,
    /// Users who wait for an answer before they ask again.
    #[serde(default)]
    pub users: Vec<Users>,
    /// Requests that come whatever the answers.
    #[serde(default)]
    pub arrivals: Vec<Arrivals>,
}

/// Users at every node of a zone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// Where they are.
    pub zone: String,
    /// How many at each node.
    pub count: u32,
    /// Mean time between an answer and the next request, in ms; exponential.
    pub think_ms: f64,
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// At random: a Poisson process.
    #[default]
    Poisson,
    /// All as far apart: constant load.
    Even,
}

/// Requests at nodes of a zone, whatever the answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// Where they enter.
    pub zone: String,
    /// At so many nodes of it, drawn for each service; all, if left out.
    #[serde(default)]
    pub nodes: Option<u32>,
    /// Requests a second at each.
    pub rate: f64,
    /// How they follow each other.
    #[serde(default)]
    pub spacing: Spacing,
    /// First, in s.
    #[serde(default)]
    pub from_s: f64,
    /// Last, in s; to the end, if left out.
    #[serde(default)]
    pub until_s: Option<f64>,
}

/// Something that happens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When, in s.
    pub at_s: f64,
    /// A node dies, with its pods and its router.
    #[serde(default, rename = "node-down")]
    pub node_down: Option<String>,
    /// A node comes back, empty.
    #[serde(default, rename = "node-up")]
    pub node_up: Option<String>,
    /// Two nodes do not reach each other.
    #[serde(default, rename = "link-down")]
    pub link_down: Option<[String; 2]>,
    /// They do again.
    #[serde(default, rename = "link-up")]
    pub link_up: Option<[String; 2]>,
}

/// What an event is.
pub(crate) enum What<'a> {
    NodeDown(&'a String),
    NodeUp(&'a String),
    LinkDown(&'a [String; 2]),
    LinkUp(&'a [String; 2]),
    /// None or several of them; refused when the scenario is read.
    Unclear,
}

impl Event {
    pub(crate) fn what(&self) -> What<'_> {
        match (
            &self.node_down,
            &self.node_up,
            &self.link_down,
            &self.link_up,
        ) {
            (Some(node), None, None, None) => What::NodeDown(node),
            (None, Some(node), None, None) => What::NodeUp(node),
            (None, None, Some(pair), None) => What::LinkDown(pair),
            (None, None, None, Some(pair)) => What::LinkUp(pair),
            _ => What::Unclear,
        }
    }
}

/// A scenario's nodes, named and with their zones.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// Index of the group of each node.
    pub(crate) group: Vec<usize>,
    /// Round trip and jitter in ms, by the groups of both nodes.
    pub(crate) link: Vec<Vec<(f64, f64)>>,
    pub(crate) by_name: BTreeMap<String, u32>,
}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let scenario: Self = toml::from_str(text)?;
        scenario.placement.check()?;
        scenario.check()?;
        scenario.topology()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), Error> {
        let positive = |what: &str, v: f64| {
            if v.is_finite() && v > 0.0 {
                Ok(())
            } else {
                Err(value(what, format!("is {v}; it must be above 0")))
            }
        };
        positive("duration_s", self.duration_s)?;
        positive("deadline_ms", self.deadline_ms)?;
        positive("round_s", self.round_s)?;
        if self.duration_s > MAX_DURATION_S {
            return Err(value("duration_s", "is more than a week"));
        }
        if !(0.0..self.duration_s).contains(&self.warm_up_s) {
            return Err(value("warm_up_s", "must be less than duration_s"));
        }
        if self.window_s.is_nan() || self.window_s < self.round_s {
            return Err(value("window_s", "must be at least round_s"));
        }
        if !(0.0..1.0).contains(&self.latency_noise) {
            return Err(value("latency_noise", "must be from 0 to below 1"));
        }
        if self.seeds.is_empty() || self.policies.is_empty() {
            return Err(value("seeds and policies", "must not be empty"));
        }
        let nodes: usize = self.node.iter().map(|n| n.count as usize).sum();
        if nodes == 0 || nodes > MAX_NODES {
            return Err(value(
                "node",
                format!("1 to {MAX_NODES} nodes, not {nodes}"),
            ));
        }
        let services: usize = self.service.iter().map(|s| s.count as usize).sum();
        if services == 0 || services > MAX_SERVICES {
            return Err(value(
                "service",
                format!("1 to {MAX_SERVICES} services, not {services}"),
            ));
        }
        for node in &self.node {
            positive(&format!("node {}: slowness", node.zone), node.slowness)?;
        }
        for service in &self.service {
            let name = &service.name;
            positive(&format!("service {name}: serving_ms"), service.serving_ms)?;
            if service.concurrency == 0 {
                return Err(value(format!("service {name}: concurrency"), "is 0"));
            }
            if !service.start_ms.is_finite() || service.start_ms < 0.0 {
                return Err(value(format!("service {name}: start_ms"), "is no time"));
            }
            let zones = service.users.iter().map(|u| &u.zone);
            for zone in zones.chain(service.arrivals.iter().map(|a| &a.zone)) {
                self.zone(zone, &format!("service {name}"))?;
            }
            for users in &service.users {
                positive(&format!("service {name}: think_ms"), users.think_ms)?;
            }
            for arrivals in &service.arrivals {
                positive(&format!("service {name}: rate"), arrivals.rate)?;
            }
        }
        for zone in &self.edge {
            self.zone(zone, "edge")?;
        }
        Ok(())
    }

    fn zone(&self, zone: &str, what: &str) -> Result<usize, Error> {
        self.node
            .iter()
            .position(|group| group.zone == zone)
            .ok_or_else(|| value(what, format!("there is no zone {zone}")))
    }

    pub(crate) fn topology(&self) -> Result<Topology, Error> {
        let (mut names, mut group) = (Vec::new(), Vec::new());
        for (index, nodes) in self.node.iter().enumerate() {
            for n in 0..nodes.count {
                names.push(if nodes.count == 1 {
                    nodes.zone.clone()
                } else {
                    format!("{}-{n}", nodes.zone)
                });
                group.push(index);
            }
        }
        let zones = self.node.len();
        let mut link = vec![vec![None; zones]; zones];
        for rule in &self.link {
            let a = self.zone(&rule.between[0], "link")?;
            let b = self.zone(&rule.between[1], "link")?;
            if !rule.round_trip_ms.is_finite()
                || rule.round_trip_ms < rule.jitter_ms
                || rule.jitter_ms < 0.0
            {
                return Err(value(
                    format!("link {} - {}", rule.between[0], rule.between[1]),
                    "round_trip_ms must be at least jitter_ms, and that at least 0",
                ));
            }
            link[a][b] = Some((rule.round_trip_ms, rule.jitter_ms));
            link[b][a] = link[a][b];
        }
        let mut whole = vec![vec![(0.0, 0.0); zones]; zones];
        for a in 0..zones {
            for b in 0..zones {
                whole[a][b] = match link[a][b] {
                    Some(link) => link,
                    None if a == b => (0.5, 0.0),
                    None => {
                        let zones = format!("{} and {}", self.node[a].zone, self.node[b].zone);
                        return Err(value("link", format!("none between {zones}; add one")));
                    }
                };
            }
        }
        let by_name: BTreeMap<String, u32> = names.into_iter().zip(0..).collect();
        if by_name.len() != group.len() {
            return Err(value("node", "two nodes have the same name"));
        }
        for event in &self.event {
            let named: Vec<&String> = match event.what() {
                What::NodeDown(node) | What::NodeUp(node) => vec![node],
                What::LinkDown(pair) | What::LinkUp(pair) => pair.iter().collect(),
                What::Unclear => {
                    let at = format!("event at {} s", event.at_s);
                    let one = "needs one of node-down, node-up, link-down, link-up";
                    return Err(value(at, one));
                }
            };
            for name in named {
                if !by_name.contains_key(name) {
                    return Err(value("event", format!("there is no node {name}")));
                }
            }
        }
        Ok(Topology {
            group,
            link: whole,
            by_name,
        })
    }
}

impl NodeGroup {
    pub(crate) fn room(&self) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_mib << 20,
            pods: self.pods,
        }
    }
}

impl ServiceGroup {
    pub(crate) fn request(&self) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_mib << 20,
            pods: 1,
        }
    }
}
