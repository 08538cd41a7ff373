//! Series of `orlop-fleet place`. All of them are made at a scrape.

use crate::page::{self, Info};
use crate::registry::{Family, Kind, Origin, Registry, Source};

/// What the loop reads at a scrape.
#[derive(Clone, Debug, Default)]
pub struct PlacementInput {
    /// It holds the Lease and acts.
    pub acts: bool,
    /// Services that it knows.
    pub services: usize,
    /// Rounds since the start.
    pub rounds: u64,
    /// How long the last round's decisions took.
    pub decisions_s: f64,
    /// The same of all rounds.
    pub decisions_total_s: f64,
    /// Values of R that the last round looked at.
    pub steps: u64,
    /// Moves by direction and reason.
    pub moves: Vec<(&'static str, &'static str, u64)>,
    /// Writes by what came of them.
    pub writes: Vec<(&'static str, u64)>,
    /// Readings that failed, by input.
    pub failures: Vec<(&'static str, u64)>,
    /// Services about which nothing is decided, by reason.
    pub holds: Vec<(&'static str, u64)>,
    /// Wanted pods by service and node.
    pub wanted: Vec<(String, String, u32)>,
    /// Demand without room, in pods, by service.
    pub no_room: Vec<(String, f64)>,
    /// Seconds since round trips were read.
    pub latencies_age_s: Option<f64>,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
}

/// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
pub fn encode(version: &str, input: &PlacementInput) -> String {
    let info = Info {
        name: "orlop_placement_info",
        help: "1; the version is its label.",
        labels: &["version"],
        values: &[version],
    };
    page::text(&info, |r| at_scrape(r, input))
}

/// Every family, for the reference.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| at_scrape(r, &PlacementInput::default());
    page::own(add, |name| name.starts_with("orlop_placement_"))
}

fn at_scrape(r: &mut Registry, input: &PlacementInput) {
    use Kind::{Counter, Gauge};
    use Origin::Orlop;
    let values = [
        (
            "orlop_placement_acts",
            Gauge,
            "Whether this loop holds the Lease and acts: 1 if so.",
            f64::from(u8::from(input.acts)),
        ),
        (
            "orlop_placement_services",
            Gauge,
            "Seikas with the label orlop.io/placement=on.",
            input.services as f64,
        ),
        (
            "orlop_placement_rounds_total",
            Counter,
            "Rounds.",
            input.rounds as f64,
        ),
        (
            "orlop_placement_decisions_seconds",
            Gauge,
            "How long the decisions of the last round took.",
            input.decisions_s,
        ),
        (
            "orlop_placement_decisions_seconds_total",
            Counter,
            "How long the decisions of all rounds took.",
            input.decisions_total_s,
        ),
        (
            "orlop_placement_steps",
            Gauge,
            "Expected response times that the last round looked at: the size of its work.",
            input.steps as f64,
        ),
    ];
    for (name, kind, help, value) in values {
        page::single(r, name, kind, help, value);
    }
    let mut age = r.family(
        "orlop_placement_latency_age_seconds",
        Gauge,
        &[],
        Orlop,
        "Seconds since round trips were read. Absent until they are.",
    );
    if let Some(seconds) = input.latencies_age_s {
        age.sample(&[], Source::Constant(seconds));
    }
    age.done();
    let mut family = r.family(
        "orlop_placement_moves_total",
        Counter,
        &["direction", "reason"],
        Orlop,
        "Pods that were decided to be added or removed, by reason.",
    );
    for (direction, reason, count) in &input.moves {
        family.sample(&[direction, reason], Source::Constant(*count as f64));
    }
    family.done();
    page::by_label(
        r,
        "orlop_placement_writes_total",
        Counter,
        &["result"],
        "Writes of Seikas: written, failed, or not begun because another loop acts.",
        &input.writes,
    );
    page::by_label(
        r,
        "orlop_placement_input_failures_total",
        Counter,
        &["input"],
        "Readings of round trips (latency) or of traffic that failed.",
        &input.failures,
    );
    page::by_label(
        r,
        "orlop_placement_held_services",
        Gauge,
        &["reason"],
        "Services about which nothing is decided: objects, latency or traffic are not current, there is no series of their traffic (no_series), something in the Seika is not understood (seika), or a write is not seen yet (behind).",
        &input.holds,
    );
    let mut family = r.family(
        "orlop_placement_wanted_pods",
        Gauge,
        &["service", "node"],
        Orlop,
        "Pods that are wanted, by Seika and node.",
    );
    for (service, node, count) in &input.wanted {
        family.sample(&[service, node], Source::Constant(f64::from(*count)));
    }
    family.done();
    let mut family = r.family(
        "orlop_placement_no_room_pods",
        Gauge,
        &["service"],
        Orlop,
        "Demand in pods for which no node has room.",
    );
    for (service, pods) in &input.no_room {
        family.sample(&[service], Source::Constant(*pods));
    }
    family.done();
    page::single(
        r,
        "orlop_log_lines_dropped_total",
        Counter,
        "Log lines that were dropped because the output did not take them.",
        input.log_lines_dropped as f64,
    );
}
