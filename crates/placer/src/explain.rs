//! Why the pods of a service are where they are.

use std::collections::BTreeMap;
use std::fmt;

use placement::{Link, Move, Node, Reason, Response, weights};
use serde::{Deserialize, Serialize};

use crate::hold::Hold;
use crate::state::{MoveText, State};
use placement::Numbers;

/// A service, explained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Its Seika, `namespace/name`.
    pub service: String,
    /// Whether the loop that was asked is the one that acts.
    pub acts: bool,
    /// Why nothing is decided, if so.
    pub hold: Option<String>,
    /// Pods by node.
    pub nodes: Vec<NodeLine>,
    /// Traffic by the node where it enters.
    pub traffic: Vec<TrafficLine>,
    /// The last moves, newest first.
    pub moves: Vec<MoveLine>,
    /// Demand for which there is no room anywhere, in pods, by the node where it enters.
    pub no_room: BTreeMap<String, f64>,
}

/// A node with pods of the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeLine {
    /// The node.
    pub node: String,
    /// Pods that are wanted there.
    pub wanted: u32,
    /// Pods that are ready there.
    pub ready: u32,
    /// P there, in ms.
    pub serving_ms: f64,
    /// Whether that was measured there; else it is the service's or the cluster's mean.
    pub measured: bool,
    /// It did not make a pod ready in time, and gets none for a while.
    pub blocked: bool,
}

/// Traffic that enters at a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficLine {
    /// The node.
    pub node: String,
    /// Requests a second over the window.
    pub requests_per_s: f64,
    /// To each node with pods.
    pub to: Vec<WayLine>,
}

/// The way from a node to one with pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WayLine {
    /// The node with pods.
    pub node: String,
    /// L, in ms; absent if the link is down.
    pub round_trip_ms: Option<f64>,
    /// Whether L was measured; else it is the mean of all links.
    pub measured: bool,
    /// R = P + L, in ms; absent if the link is down.
    pub response_ms: Option<f64>,
    /// The weight by 1 / R over nodes with ready pods, in percent.
    pub weight_percent: f64,
}

/// A move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MoveLine {
    /// How long ago, in seconds.
    pub seconds_ago: f64,
    /// The node.
    pub node: String,
    /// Whether a pod was added; else one was taken away.
    pub added: bool,
    /// Why.
    pub why: String,
}

/// Names of all reasons in series.
pub const REASONS: [&str; 7] = [
    "unserved",
    "nearer",
    "minimum",
    "not_needed",
    "maximum",
    "node_lost",
    "node_blocked",
];

/// A move in words.
pub(crate) fn in_words(m: &Move, numbers: &Numbers) -> MoveText {
    let (reason, why) = match m.reason {
        Reason::Unserved {
            traffic_of,
            response_ms,
        } => (
            REASONS[0],
            format!(
                "traffic of {} found no pod with time; R there is {response_ms:.1} ms",
                numbers.name(traffic_of)
            ),
        ),
        Reason::Nearer {
            traffic_of,
            response_ms,
        } => (
            REASONS[1],
            format!(
                "traffic of {} was served much farther away; R there is {response_ms:.1} ms",
                numbers.name(traffic_of)
            ),
        ),
        Reason::Minimum => (REASONS[2], "there were fewer than the minimum".into()),
        Reason::NotNeeded => (REASONS[3], "the others bear the traffic".into()),
        Reason::Maximum => (REASONS[4], "there were more than the maximum".into()),
        Reason::NodeLost => (REASONS[5], "the node is lost".into()),
        Reason::NodeBlocked => (REASONS[6], "the node did not make it ready in time".into()),
    };
    MoveText {
        node: numbers.name(m.node).to_owned(),
        add: m.add,
        reason,
        why,
    }
}

impl State {
    /// Explains a service; `None` if it is not known.
    #[must_use]
    pub fn explain(&self, key: &str, acts: bool) -> Option<Explained> {
        let service = self.services.get(key)?;
        let memory = &service.memory;
        let response = Response {
            round_trips: &self.round_trips,
            serving: &memory.serving,
            prior_ms: self.prior_ms,
            settings: &self.settings.placement,
        };
        let name = |node: Node| self.numbers.name(node).to_owned();
        let nodes = service.pods.iter().map(|(node, pods)| NodeLine {
            node: name(*node),
            wanted: pods.wanted,
            ready: pods.ready,
            serving_ms: memory.serving.or_prior(*node, self.prior_ms),
            measured: memory.serving.on(*node).is_some(),
            blocked: service.blocked.contains_key(node),
        });
        let ready: Vec<Node> = service
            .pods
            .iter()
            .filter(|(_, pods)| pods.ready > 0)
            .map(|(node, _)| *node)
            .collect();
        let traffic = service.entries.iter().map(|entered| {
            let shares: BTreeMap<Node, f64> = weights(&response, entered.node, &ready)
                .into_iter()
                .collect();
            let way = |to: Node| WayLine {
                node: name(to),
                round_trip_ms: self
                    .round_trips
                    .ms(entered.node, to, &self.settings.placement),
                measured: matches!(self.round_trips.link(entered.node, to), Link::RoundTrip(_)),
                response_ms: response.ms(entered.node, to),
                weight_percent: shares.get(&to).copied().unwrap_or(0.0),
            };
            TrafficLine {
                node: name(entered.node),
                requests_per_s: entered.requests / entered.over_s,
                to: service.pods.iter().map(|(node, _)| way(*node)).collect(),
            }
        });
        let moves = memory.last_moves.iter().rev().map(|(round, m)| {
            let words = in_words(m, &self.numbers);
            MoveLine {
                seconds_ago: (memory.round - round) as f64 * self.settings.round_s,
                node: words.node,
                added: m.add,
                why: words.why,
            }
        });
        Some(Explained {
            service: key.to_owned(),
            acts,
            hold: service.hold.as_ref().map(Hold::text),
            nodes: nodes.collect(),
            traffic: traffic.collect(),
            moves: moves.collect(),
            no_room: service
                .no_room
                .iter()
                .map(|(node, pods)| (name(*node), *pods))
                .collect(),
        })
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.service)?;
        if !self.acts {
            writeln!(f, "this loop does not act: another one holds the Lease")?;
        }
        if let Some(hold) = &self.hold {
            writeln!(f, "nothing is decided: {hold}")?;
        }
        writeln!(
            f,
            "\n{:<24} {:>7} {:>6} {:>9}",
            "node", "wanted", "ready", "P ms"
        )?;
        for node in &self.nodes {
            let mut notes = String::new();
            if !node.measured {
                notes.push_str("  P is a mean of others");
            }
            if node.blocked {
                notes.push_str("  blocked: it made no pod ready in time");
            }
            writeln!(
                f,
                "{:<24} {:>7} {:>6} {:>9.1}{notes}",
                node.node, node.wanted, node.ready, node.serving_ms
            )?;
        }
        writeln!(
            f,
            "\n{:<24} {:>10} {:<24} {:>9} {:>9} {:>8}",
            "traffic of", "requests/s", "to", "L ms", "R ms", "weight"
        )?;
        for traffic in &self.traffic {
            let rate = format!("{:.1}", traffic.requests_per_s);
            if traffic.to.is_empty() {
                writeln!(f, "{:<24} {rate:>10} no node has pods", traffic.node)?;
            }
            for (n, way) in traffic.to.iter().enumerate() {
                let (node, rate) = match n {
                    0 => (traffic.node.as_str(), rate.as_str()),
                    _ => ("", ""),
                };
                let ms = |ms: Option<f64>| ms.map_or("down".into(), |ms| format!("{ms:.1}"));
                let note = if way.measured {
                    ""
                } else {
                    "  L is not measured"
                };
                writeln!(
                    f,
                    "{node:<24} {rate:>10} {:<24} {:>9} {:>9} {:>6.1} %{note}",
                    way.node,
                    ms(way.round_trip_ms),
                    ms(way.response_ms),
                    way.weight_percent
                )?;
            }
        }
        for (node, pods) in &self.no_room {
            writeln!(
                f,
                "no room anywhere for {pods:.2} pods' worth of traffic of {node}"
            )?;
        }
        writeln!(f, "\nlast moves")?;
        for line in &self.moves {
            let sign = if line.added { '+' } else { '-' };
            writeln!(
                f,
                "{:>7.0} s ago  {sign}1 {:<24} {}",
                line.seconds_ago, line.node, line.why
            )?;
        }
        if self.moves.is_empty() {
            writeln!(f, "none since this loop began")?;
        }
        Ok(())
    }
}
