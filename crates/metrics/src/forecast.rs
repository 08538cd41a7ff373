//! Series of `orlop forecast run`. All of them are made at a scrape.

use crate::page::{self, Info};
use crate::registry::{Family, Kind, Origin, Registry, Source};

/// One member at a scrape. What is not known is absent.
#[derive(Clone, Debug, Default)]
pub struct ForecastMember {
    /// Its name.
    pub name: String,
    /// It leads.
    pub leads: bool,
    /// What a commit would cost with it as the leader, in seconds: all, the clients' way, its own
    /// sync, its quorum.
    pub cost_s: [Option<f64>; 4],
    /// The state that it is in.
    pub state: Option<&'static str>,
    /// How likely each state is, from 0 to 1.
    pub likely: Vec<(&'static str, f64)>,
}

/// What the forecast reads at a scrape.
#[derive(Clone, Debug, Default)]
pub struct ForecastInput {
    /// The members.
    pub members: Vec<ForecastMember>,
    /// It may move the lead.
    pub acts: bool,
    /// It is the one that does.
    pub is_actor: bool,
    /// An operator has stopped all actors.
    pub stopped: bool,
    /// An actor has given up.
    pub gave_up: bool,
    /// Samples taken since the start.
    pub rounds: u64,
    /// Scrapes that failed since the start.
    pub missing: u64,
    /// Moves by what came of them, since the start.
    pub moves: Vec<(&'static str, u64)>,
    /// What it would have moved to gain, in seconds of commit cost, in sum.
    pub would_gain_s: f64,
    /// Why the lead stays where it is.
    pub holds: Vec<(&'static str, bool)>,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
}

/// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
pub fn encode(version: &str, input: &ForecastInput) -> String {
    let info = Info {
        name: "orlop_forecast_info",
        help: "1; the version is its label.",
        labels: &["version"],
        values: &[version],
    };
    page::text(&info, |r| at_scrape(r, input))
}

fn at_scrape(r: &mut Registry, input: &ForecastInput) {
    use Kind::{Counter, Gauge};
    use Origin::Orlop;
    let mut family = r.family(
        "orlop_forecast_member_leads",
        Gauge,
        &["member"],
        Orlop,
        "Whether the member leads: 1 if so.",
    );
    for m in &input.members {
        family.sample(&[&m.name], Source::Constant(f64::from(u8::from(m.leads))));
    }
    family.done();
    let mut family = r.family(
        "orlop_forecast_commit_cost_seconds",
        Gauge,
        &["member", "part"],
        Orlop,
        "What a commit would cost a client with the member as the leader: all of it, the clients' way to it, its own sync, its quorum.",
    );
    for m in &input.members {
        for (part, value) in ["all", "client", "sync", "quorum"].iter().zip(m.cost_s) {
            if let Some(value) = value {
                family.sample(&[&m.name, part], Source::Constant(value));
            }
        }
    }
    family.done();
    let mut family = r.family(
        "orlop_forecast_state",
        Gauge,
        &["member", "state"],
        Orlop,
        "1 for the state that the member is in: idle, network, overload, both, disk or unknown.",
    );
    for m in &input.members {
        let state = m.state.unwrap_or("unknown");
        family.sample(&[&m.name, state], Source::Constant(1.0));
    }
    family.done();
    let mut family = r.family(
        "orlop_forecast_state_likely",
        Gauge,
        &["member", "state"],
        Orlop,
        "How likely each state is by the model, from 0 to 1.",
    );
    for m in &input.members {
        for (state, likely) in &m.likely {
            family.sample(&[&m.name, state], Source::Constant(*likely));
        }
    }
    family.done();
    let mut family = r.family(
        "orlop_forecast_holds",
        Gauge,
        &["reason"],
        Orlop,
        "1 for the reason why the lead stays where it is.",
    );
    for (reason, holds) in &input.holds {
        family.sample(&[reason], Source::Constant(f64::from(u8::from(*holds))));
    }
    family.done();
    page::by_label(
        r,
        "orlop_forecast_moves_total",
        Counter,
        &["outcome"],
        "Moves of the lead since the start: made, failed, not_begun (another was first), would (right, but not allowed).",
        &input.moves,
    );
    let flag = |on: bool| f64::from(u8::from(on));
    for (name, kind, help, value) in [
        (
            "orlop_forecast_acts",
            Gauge,
            "Whether it may move the lead: 1 with --act.",
            flag(input.acts),
        ),
        (
            "orlop_forecast_actor",
            Gauge,
            "Whether it is the one process of the cluster that does.",
            flag(input.is_actor),
        ),
        (
            "orlop_forecast_stopped",
            Gauge,
            "Whether an operator has stopped all actors.",
            flag(input.stopped),
        ),
        (
            "orlop_forecast_gave_up",
            Gauge,
            "Whether an actor has given up because moves did not help.",
            flag(input.gave_up),
        ),
        (
            "orlop_forecast_rounds_total",
            Counter,
            "Samples of all members taken since the start.",
            input.rounds as f64,
        ),
        (
            "orlop_forecast_missing_total",
            Counter,
            "Pages of metrics that were not to be had since the start.",
            input.missing as f64,
        ),
        (
            "orlop_forecast_would_gain_seconds_total",
            Counter,
            "Commit cost that moves which were not allowed would have saved, each counted once.",
            input.would_gain_s,
        ),
        (
            "orlop_log_lines_dropped_total",
            Counter,
            "Log lines dropped because the log's output did not take them in time.",
            input.log_lines_dropped as f64,
        ),
    ] {
        page::single(r, name, kind, help, value);
    }
}

/// All families, for the reference page.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| at_scrape(r, &ForecastInput::default());
    page::own(add, |name| name.starts_with("orlop_forecast_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_says_what_is_thought_of_each_member() {
        let text = encode(
            "0.1.0",
            &ForecastInput {
                members: vec![ForecastMember {
                    name: "a".to_owned(),
                    leads: true,
                    cost_s: [Some(0.05), None, Some(0.002), None],
                    state: Some("network"),
                    likely: vec![("idle", 0.25)],
                }],
                moves: vec![("made", 2)],
                holds: vec![("shadow", true)],
                ..ForecastInput::default()
            },
        );
        for line in [
            "orlop_forecast_commit_cost_seconds{member=\"a\",part=\"all\"} 0.05",
            "orlop_forecast_state{member=\"a\",state=\"network\"} 1",
            "orlop_forecast_state_likely{member=\"a\",state=\"idle\"} 0.25",
            "orlop_forecast_moves_total{outcome=\"made\"} 2",
            "orlop_forecast_holds{reason=\"shadow\"} 1",
            "orlop_forecast_acts 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("part=\"quorum\""));
    }
}
