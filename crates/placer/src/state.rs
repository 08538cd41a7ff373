//! A round, without I/O and without a clock: what is known goes in, what is to be written comes
//! out. Time is the number of the round.

mod take;

use std::collections::BTreeMap;
use std::sync::Arc;

use placement::{
    Cluster, Constraints, Decision, Entered, Memory, Node, NodeState, Pods, Room, RoundTrips,
    ServiceView, decide, misfit,
};

use crate::Error;
use crate::hold::Hold;
use crate::input::{Latencies, ServiceTraffic, Traffic};
use crate::objects::{Asks, NodeFacts, PodFacts, SeikaFacts};
use placement::Numbers;
use take::ready_by_node;

/// What an operator can set of the loop.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Numbers of the decision.
    pub placement: placement::Settings,
    /// From one round to the next, in seconds.
    pub round_s: f64,
    /// Over which traffic is counted, in seconds.
    pub window_s: f64,
    /// Round trips that are older are none, in seconds.
    pub max_age_s: f64,
    /// A node that has not made a wanted pod ready for so long gets none, in seconds ...
    pub start_timeout_s: f64,
    /// ... for so long, in seconds.
    pub retry_s: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            placement: placement::Settings::default(),
            round_s: 2.0,
            window_s: 10.0,
            max_age_s: 30.0,
            start_timeout_s: 120.0,
            retry_s: 300.0,
        }
    }
}

impl Settings {
    /// Checks every range.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        self.placement.check().map_err(Error::Placement)?;
        let ranges = [
            ("--round", self.round_s, 0.1, 600.0, "from 0.1 to 600 s"),
            (
                "--window",
                self.window_s,
                self.round_s,
                3_600.0,
                "from a round to an hour",
            ),
            (
                "--max-age",
                self.max_age_s,
                self.round_s,
                3_600.0,
                "from a round to an hour",
            ),
            (
                "--start-timeout",
                self.start_timeout_s,
                self.round_s,
                86_400.0,
                "from a round to a day",
            ),
            (
                "--retry",
                self.retry_s,
                self.round_s,
                86_400.0,
                "from a round to a day",
            ),
        ];
        for (name, value, least, most, range) in ranges {
            if !(least..=most).contains(&value) {
                return Err(Error::Setting {
                    name,
                    value: format!("{value} s"),
                    range,
                });
            }
        }
        Ok(())
    }

    fn rounds(&self, seconds: f64) -> u64 {
        (seconds / self.round_s).ceil() as u64
    }
}

/// What is known in a round.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Nodes by name.
    pub nodes: &'a BTreeMap<String, NodeFacts>,
    /// Pods by namespace and name.
    pub pods: &'a BTreeMap<String, PodFacts>,
    /// Seikas by namespace and name.
    pub seikas: &'a BTreeMap<String, SeikaFacts>,
    /// Why those may be old.
    pub objects_failing: Option<&'a str>,
    /// Round trips, if they were read anew.
    pub latencies: Option<&'a Latencies>,
    /// Why they were not, if they should have been.
    pub latencies_failing: Option<&'a str>,
    /// Traffic, or why it is not known.
    pub traffic: Result<&'a Traffic, &'a str>,
    /// By Seika: the generation that this loop's last write gave it.
    pub written: &'a BTreeMap<String, i64>,
}

/// What comes of a round for one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The Seika.
    pub key: String,
    /// Wanted pods by node, if they are to be written: with 0 for nodes that have pods now.
    pub write: Option<BTreeMap<String, u32>>,
    /// What changes, in words.
    pub moves: Vec<MoveText>,
}

/// A move in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveText {
    /// The node.
    pub node: String,
    /// Whether a pod is added; else one is taken away.
    pub add: bool,
    /// The reason's name in series.
    pub reason: &'static str,
    /// Why.
    pub why: String,
}

/// What a template may use of the nodes, computed anew when either changes.
#[derive(Clone, Debug, Default)]
struct Fits {
    version: u64,
    constraints: Constraints,
    images: Vec<String>,
    allowed: Vec<bool>,
    image_on: Vec<bool>,
}

/// One service from round to round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    pub(crate) memory: Memory,
    fits: Fits,
    /// Since which round a node has fewer ready pods than wanted ones.
    late: BTreeMap<Node, u64>,
    /// Until which round a node gets none.
    pub(crate) blocked: BTreeMap<Node, u64>,
    pub(crate) entries: Vec<Entered>,
    pub(crate) pods: Vec<(Node, Pods)>,
    pub(crate) no_room: Vec<(Node, f64)>,
    pub(crate) hold: Option<Hold>,
}

/// The loop from round to round.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) numbers: Numbers,
    pub(crate) round_trips: RoundTrips,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) prior_ms: f64,
    round: u64,
    latencies_round: Option<u64>,
    nodes: Arc<BTreeMap<String, NodeFacts>>,
    nodes_version: u64,
    lost: Vec<bool>,
    /// Values of R that the last round looked at.
    pub steps: u64,
}

impl State {
    /// At the start.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            prior_ms: settings.placement.prior_serving_ms,
            settings,
            numbers: Numbers::default(),
            round_trips: RoundTrips::default(),
            services: BTreeMap::new(),
            round: 0,
            latencies_round: None,
            nodes: Arc::default(),
            nodes_version: 0,
            lost: Vec::new(),
            steps: 0,
        }
    }

    /// One round. A loop that does not act takes in what is known and decides nothing.
    pub fn round(&mut self, seen: &Seen<'_>, acts: bool) -> Vec<Outcome> {
        self.round += 1;
        self.steps = 0;
        self.take_nodes(seen);
        if let Some(latencies) = seen.latencies {
            self.take_latencies(latencies, seen.nodes);
        }
        if let Ok(traffic) = seen.traffic {
            self.take_traffic(traffic, seen.seikas);
        }
        self.services.retain(|key, _| seen.seikas.contains_key(key));
        let cluster_hold = self.cluster_hold(seen);
        let ready = ready_by_node(seen.pods);
        let mut room = self.room(seen, &ready);
        let mut outcomes = Vec::new();
        for (key, seika) in seen.seikas {
            let mut service = self.services.remove(key).unwrap_or_default();
            self.take_pods(&mut service, key, seika, &ready);
            match self.ready_to_decide(key, seika, seen, cluster_hold.as_ref()) {
                Err(hold) => service.hold = Some(hold),
                Ok((asks, traffic)) => {
                    service.hold = None;
                    self.fit(&mut service, asks);
                    service.entries = self.entries(traffic);
                    if acts {
                        let decision = self.decide(&mut service, asks, &mut room);
                        outcomes.push(self.outcome(key, seika, &decision));
                        self.steps += decision.steps;
                        service.no_room = decision.no_room;
                    }
                }
            }
            self.services.insert(key.clone(), service);
        }
        outcomes
    }

    /// What keeps the loop from deciding about anything.
    fn cluster_hold(&self, seen: &Seen<'_>) -> Option<Hold> {
        if let Some(why) = seen.objects_failing {
            return Some(Hold::Objects(why.to_owned()));
        }
        let lonely = seen.nodes.len() < 2;
        let max_rounds = self.settings.rounds(self.settings.max_age_s);
        let why = |old: &str| match seen.latencies_failing {
            Some(why) => format!("{old}; {why}"),
            None => old.to_owned(),
        };
        match self.latencies_round {
            _ if lonely => None,
            None => Some(Hold::Latency(why(
                "there is none yet; does `orlop-fleet latency` run on the nodes?",
            ))),
            Some(at) if self.round - at > max_rounds => {
                let seconds = (self.round - at) as f64 * self.settings.round_s;
                Some(Hold::Latency(why(&format!(
                    "the last ones were read {seconds} s ago"
                ))))
            }
            Some(_) => None,
        }
    }

    fn ready_to_decide<'a>(
        &self,
        key: &str,
        seika: &'a SeikaFacts,
        seen: &Seen<'a>,
        cluster_hold: Option<&Hold>,
    ) -> Result<(&'a Asks, &'a ServiceTraffic), Hold> {
        if let Some(hold) = cluster_hold {
            return Err(hold.clone());
        }
        let asks = seika.asks.as_ref().map_err(|w| Hold::Seika(w.clone()))?;
        let traffic = seen.traffic.map_err(|why| Hold::Traffic(why.to_owned()))?;
        let of = traffic.services.get(&asks.traffic_of);
        let of = of.ok_or_else(|| Hold::NoSeries(asks.traffic_of.clone()))?;
        if seen.written.get(key).is_some_and(|g| *g > seika.generation) {
            return Err(Hold::Behind);
        }
        Ok((asks, of))
    }

    fn fit(&self, service: &mut Service, asks: &Asks) {
        let fits = &service.fits;
        if fits.version == self.nodes_version
            && fits.constraints == asks.constraints
            && fits.images == asks.images
            && fits.allowed.len() == self.numbers.len()
        {
            return;
        }
        let mut allowed = vec![false; self.numbers.len()];
        let mut image_on = vec![false; self.numbers.len()];
        for (name, facts) in self.nodes.iter() {
            let Some(node) = self.numbers.of(name) else {
                continue;
            };
            if let NodeState::Ready { labels, taints } = &facts.state {
                allowed[node.index()] = misfit(&asks.constraints, labels, taints).is_none();
            }
            image_on[node.index()] = !asks.images.is_empty()
                && asks.images.iter().all(|image| facts.images.contains(image));
        }
        service.fits = Fits {
            version: self.nodes_version,
            constraints: asks.constraints.clone(),
            images: asks.images.clone(),
            allowed,
            image_on,
        };
    }

    fn entries(&self, traffic: &ServiceTraffic) -> Vec<Entered> {
        let entered = traffic.entered.iter().filter_map(|(name, requests)| {
            Some(Entered {
                node: self.numbers.of(name)?,
                requests: *requests,
                over_s: self.settings.window_s,
            })
        });
        entered.filter(|entered| entered.requests > 0.0).collect()
    }

    fn decide(&self, service: &mut Service, asks: &Asks, room: &mut Room) -> Decision {
        let blocked: Vec<Node> = service.blocked.keys().copied().collect();
        let cluster = Cluster {
            round_trips: &self.round_trips,
            prior_ms: self.prior_ms,
            settings: &self.settings.placement,
        };
        let view = ServiceView {
            entries: &service.entries,
            round_s: self.settings.round_s,
            pods: &service.pods,
            concurrency: asks.concurrency,
            request: asks.request,
            allowed: &service.fits.allowed,
            lost: &self.lost,
            image_on: &service.fits.image_on,
            blocked: &blocked,
            max_per_node: asks.max_per_node,
            min_pods: asks.min_pods,
            max_pods: asks.max_pods,
        };
        decide(&cluster, &view, &mut service.memory, room)
    }

    fn outcome(&self, key: &str, seika: &SeikaFacts, decision: &Decision) -> Outcome {
        let mut wanted: BTreeMap<String, u32> = decision
            .wanted
            .iter()
            .map(|(node, count)| (self.numbers.name(*node).to_owned(), *count))
            .collect();
        let write = (wanted != seika.wanted).then(|| {
            // A node that somebody else wrote stays in the map unless it is named.
            for name in seika.wanted.keys() {
                wanted.entry(name.clone()).or_insert(0);
            }
            wanted
        });
        Outcome {
            key: key.to_owned(),
            write,
            moves: decision
                .moves
                .iter()
                .map(|m| crate::explain::in_words(m, &self.numbers))
                .collect(),
        }
    }

    /// What keeps each service as it is, by service; nothing for those that are decided about.
    pub fn holds(&self) -> impl Iterator<Item = (&str, &Hold)> {
        self.services
            .iter()
            .filter_map(|(key, service)| Some((key.as_str(), service.hold.as_ref()?)))
    }

    /// Services that are known.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Demand for which there is no room anywhere, in pods, by service.
    pub fn no_room(&self) -> impl Iterator<Item = (&str, f64)> {
        self.services.iter().filter_map(|(key, service)| {
            let pods: f64 = service.no_room.iter().map(|(_, pods)| pods).sum();
            (pods > 0.0).then_some((key.as_str(), pods))
        })
    }

    /// Seconds since round trips were read; `None` before.
    #[must_use]
    pub fn latencies_age_s(&self) -> Option<f64> {
        let rounds = self.round - self.latencies_round?;
        Some(rounds as f64 * self.settings.round_s)
    }
}
