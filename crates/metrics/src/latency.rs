//! Series of `orlop-fleet latency`. All of them are made at a scrape.

use crate::page::{self, Info};
use crate::registry::{Family, Kind, Origin, Registry, Source};

/// A peer at a scrape. What is not known is absent.
#[derive(Clone, Debug, Default)]
pub struct LatencyPeer {
    /// Its node.
    pub node: String,
    /// Median round trip of the last two periods, in ms.
    pub now_ms: Option<f64>,
    /// Median and 99th percentile over the window, in ms.
    pub quantiles_ms: [Option<f64>; 2],
    /// Lost part of the window's probes.
    pub loss: Option<f64>,
    /// Seconds since its last answer.
    pub age_s: Option<f64>,
    /// Whether it answered in the last two periods.
    pub up: Option<bool>,
    /// Probes that were answered.
    pub answered: u64,
    /// Probes that were lost.
    pub lost: u64,
}

/// A zone at a scrape.
#[derive(Clone, Debug, Default)]
pub struct LatencyZone {
    /// The zone.
    pub zone: String,
    /// Median of its measured nodes, in ms.
    pub round_trip_ms: f64,
    /// By how much one of them is off, in ms.
    pub error_ms: Option<f64>,
    /// How many were measured.
    pub measured: usize,
}

/// What the agent reads at a scrape.
#[derive(Clone, Debug, Default)]
pub struct LatencyInput {
    /// Its node.
    pub node: String,
    /// Peers that it measures.
    pub peers: Vec<LatencyPeer>,
    /// Zones.
    pub zones: Vec<LatencyZone>,
    /// Other nodes that there are.
    pub nodes: usize,
    /// It is known which there are, and the source of that answers.
    pub nodes_current: bool,
    /// How often that source failed.
    pub nodes_failures: u64,
    /// Packets by what became of them.
    pub packets: Vec<(&'static str, u64)>,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
}

/// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
pub fn encode(version: &str, input: &LatencyInput) -> String {
    let info = Info {
        name: "orlop_latency_info",
        help: "1; the node and the version are its labels.",
        labels: &["node", "version"],
        values: &[&input.node, version],
    };
    page::text(&info, |r| at_scrape(r, input))
}

/// Every family, for the reference.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| at_scrape(r, &LatencyInput::default());
    page::own(add, |name| name.contains("latency"))
}

type Read = fn(&LatencyPeer) -> Option<f64>;

const PEERS: [(&str, &str, Read); 6] = [
    (
        "latency_between_nodes",
        "Round trip from one node to the other and back, in ms: the median of the probes of the last two periods. Absent while none is answered.",
        |p| p.now_ms,
    ),
    (
        "orlop_latency_p50_ms",
        "Median round trip over the window, in ms.",
        |p| p.quantiles_ms[0],
    ),
    (
        "orlop_latency_p99_ms",
        "99th percentile of the round trips over the window, in ms.",
        |p| p.quantiles_ms[1],
    ),
    (
        "orlop_latency_loss_ratio",
        "Part of the window's probes that were not answered in time, from 0 to 1.",
        |p| p.loss,
    ),
    (
        "orlop_latency_age_seconds",
        "Seconds since the peer's last answer.",
        |p| p.age_s,
    ),
    (
        "orlop_latency_peer_up",
        "Whether the peer answered one of the last two periods' probes: 1 if so.",
        |p| p.up.map(|up| f64::from(u8::from(up))),
    ),
];

fn at_scrape(r: &mut Registry, input: &LatencyInput) {
    use Kind::{Counter, Gauge};
    use Origin::Orlop;
    for (name, help, read) in PEERS {
        let mut family = r.family(name, Gauge, &["from", "to"], Orlop, help);
        for peer in &input.peers {
            if let Some(value) = read(peer) {
                family.sample(&[&input.node, &peer.node], Source::Constant(value));
            }
        }
        family.done();
    }
    let mut family = r.family(
        "orlop_latency_probes_total",
        Counter,
        &["from", "to", "result"],
        Orlop,
        "Probes of a peer that are over: answered in time, or lost.",
    );
    for peer in &input.peers {
        for (result, count) in [("answered", peer.answered), ("lost", peer.lost)] {
            let labels = [input.node.as_str(), &peer.node, result];
            family.sample(&labels, Source::Constant(count as f64));
        }
    }
    family.done();
    let mut zones = |name, help, read: fn(&LatencyZone) -> Option<f64>| {
        let mut family = r.family(name, Gauge, &["from", "zone"], Orlop, help);
        for zone in &input.zones {
            if let Some(value) = read(zone) {
                family.sample(&[&input.node, &zone.zone], Source::Constant(value));
            }
        }
        family.done();
    };
    zones(
        "orlop_latency_zone_ms",
        "Round trip to a zone's nodes in ms: the median of those that are measured. Stands for those that are not.",
        |z| Some(z.round_trip_ms),
    );
    zones(
        "orlop_latency_zone_error_ms",
        "By how many ms a measured node of the zone differs from the median of the others, on average.",
        |z| z.error_ms,
    );
    zones(
        "orlop_latency_zone_measured_nodes",
        "Nodes of the zone that are measured.",
        |z| Some(z.measured as f64),
    );
    page::by_label(
        r,
        "orlop_latency_packets_total",
        Counter,
        &["what"],
        "Packets by what became of them: questions that were answered or refused (too many came), packets that are not understood, answers that nobody waited for, packets that could not be sent.",
        &input.packets,
    );
    let values = [
        (
            "orlop_latency_nodes",
            Gauge,
            "Other nodes that there are.",
            input.nodes as f64,
        ),
        (
            "orlop_latency_nodes_measured",
            Gauge,
            "Nodes that are measured: all up to 200, else the own zone and a sample of the others.",
            input.peers.len() as f64,
        ),
        (
            "orlop_latency_nodes_current",
            Gauge,
            "Whether the source of the list of nodes answers: 1 if so. While it does not, those known before are measured.",
            f64::from(u8::from(input.nodes_current)),
        ),
        (
            "orlop_latency_nodes_failures_total",
            Counter,
            "How often that source did not answer.",
            input.nodes_failures as f64,
        ),
    ];
    for (name, kind, help, value) in values {
        page::single(r, name, kind, help, value);
    }
    page::single(
        r,
        "orlop_log_lines_dropped_total",
        Counter,
        "Log lines that were dropped because the output did not take them.",
        input.log_lines_dropped as f64,
    );
}
