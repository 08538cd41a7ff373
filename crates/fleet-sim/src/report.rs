//! Tables and plots of several policies and seeds.

use std::fmt::Write as _;

use plots::{Line, escape, lines};

use crate::{Outcome, Policy, Scenario};

/// Of a line: x and y.
type Points = Vec<(f64, f64)>;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1.5em }
figure { margin: 0 } figcaption { font-weight: 600 } svg { width: 100%; height: auto } svg text { font-size: 12px; fill: #444 }
.legend { margin: .2em 0 0 4em } .legend span { margin-right: 1.2em } .legend i { display: inline-block; width: 1em; height: .6em; margin-right: .4em }";

/// Points of a latency distribution that are plotted.
const LATENCY_POINTS: usize = 100;

/// A policy over all seeds: medians.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The policy.
    pub policy: Policy,
    /// Requests sent.
    pub sent: f64,
    /// Requests answered within the deadline.
    pub completed: f64,
    /// Their part of those sent.
    pub completion: f64,
    /// Part of the answers at the edge that were fast.
    pub fast_at_edge: f64,
    /// Latency percentiles in ms.
    pub p50_ms: f64,
    /// 99 of 100 are faster.
    pub p99_ms: f64,
    /// Moves after the warm-up.
    pub moves: f64,
    /// Ready pods on the average after the warm-up.
    pub pods: f64,
    /// Pods that wait without room at the end.
    pub stuck: f64,
    /// Cores that decisions took.
    pub decision_cores: f64,
    /// Values of R that the most expensive round looked at.
    pub most_steps_a_round: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn mean_pods(scenario: &Scenario, outcome: &Outcome) -> f64 {
    let after: Vec<f64> = outcome
        .rounds
        .iter()
        .filter(|round| round.at_s >= scenario.warm_up_s)
        .map(|round| f64::from(round.ready))
        .collect();
    after.iter().sum::<f64>() / after.len().max(1) as f64
}

/// Medians over the seeds, a line for each policy that ran.
#[must_use]
pub fn summarize(scenario: &Scenario, outcomes: &[Outcome]) -> Vec<Summary> {
    Policy::ALL
        .into_iter()
        .filter_map(|policy| {
            let runs: Vec<&Outcome> = outcomes.iter().filter(|o| o.policy == policy).collect();
            if runs.is_empty() {
                return None;
            }
            let of = |value: &dyn Fn(&Outcome) -> f64| {
                median(runs.iter().map(|run| value(run)).collect())
            };
            Some(Summary {
                policy,
                sent: of(&|o| o.sent as f64),
                completed: of(&|o| o.completed as f64),
                completion: of(&Outcome::completion),
                fast_at_edge: of(&Outcome::fast_at_edge),
                p50_ms: of(&|o| o.percentile_ms(0.5)),
                p99_ms: of(&|o| o.percentile_ms(0.99)),
                moves: of(&|o| o.moves as f64),
                pods: of(&|o| mean_pods(scenario, o)),
                stuck: of(&|o| o.rounds.last().map_or(0.0, |round| f64::from(round.stuck))),
                decision_cores: of(&|o| o.decision_cores(scenario.duration_s)),
                most_steps_a_round: of(&|o| o.most_steps_a_round as f64),
            })
        })
        .collect()
}

const COLUMNS: [&str; 12] = [
    "policy",
    "sent",
    "served",
    "of even",
    "of oracle",
    "completed",
    "fast, edge",
    "p50 ms",
    "p99 ms",
    "moves",
    "pods",
    "stuck",
];

fn cells(all: &[Summary]) -> Vec<[String; 12]> {
    let of = |policy: Policy| all.iter().find(|s| s.policy == policy).map(|s| s.completed);
    let against = |value: f64, other: Option<f64>| match other {
        Some(other) if other > 0.0 => format!("{:.2}x", value / other),
        _ => "-".into(),
    };
    all.iter()
        .map(|s| {
            [
                s.policy.name().to_owned(),
                format!("{:.0}", s.sent),
                format!("{:.0}", s.completed),
                against(s.completed, of(Policy::Even)),
                against(s.completed, of(Policy::Oracle)),
                format!("{:.1} %", s.completion * 100.0),
                format!("{:.1} %", s.fast_at_edge * 100.0),
                format!("{:.1}", s.p50_ms),
                format!("{:.1}", s.p99_ms),
                format!("{:.0}", s.moves),
                format!("{:.1}", s.pods),
                format!("{:.0}", s.stuck),
            ]
        })
        .collect()
}

/// A table for a terminal.
#[must_use]
pub fn table(scenario: &Scenario, all: &[Summary]) -> String {
    let rows = cells(all);
    let width: Vec<usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(n, name)| {
            rows.iter()
                .map(|row| row[n].len())
                .chain([name.len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = format!(
        "{}: {} s, the first {} s not counted; medians of {} seeds\n",
        scenario.name,
        scenario.duration_s,
        scenario.warm_up_s,
        scenario.seeds.len()
    );
    let mut line = |cells: &[String]| {
        for (n, cell) in cells.iter().enumerate() {
            let width = width[n];
            let _ = if n == 0 {
                write!(text, "{cell:<width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    };
    line(&COLUMNS.map(String::from));
    for row in &rows {
        line(row);
    }
    for s in all.iter().filter(|s| s.policy == Policy::Ours) {
        let _ = writeln!(
            text,
            "ours: decisions took {:.4} of a core, {:.0} values of R in the most expensive round",
            s.decision_cores, s.most_steps_a_round
        );
    }
    text
}

fn latency_line(outcomes: &[Outcome], policy: Policy) -> Vec<(f64, f64)> {
    let mut all: Vec<u32> = outcomes
        .iter()
        .filter(|o| o.policy == policy)
        .flat_map(|o| o.latencies_us.iter().copied())
        .collect();
    all.sort_unstable();
    if all.is_empty() {
        return Vec::new();
    }
    (0..=LATENCY_POINTS)
        .map(|n| {
            let at = (all.len() - 1) * n / LATENCY_POINTS;
            (
                f64::from(all[at]) / 1000.0,
                100.0 * n as f64 / LATENCY_POINTS as f64,
            )
        })
        .collect()
}

/// One page with the table and plots: latencies, pods and moves over time (of the first seed).
#[must_use]
pub fn html(scenario: &Scenario, outcomes: &[Outcome], all: &[Summary]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style><h1>{0}</h1><p>{1}</p><p>{2} s simulated, the first {3} s not counted; medians of {4} seeds.</p><table><tr>",
        escape(&scenario.name),
        escape(&scenario.about),
        scenario.duration_s,
        scenario.warm_up_s,
        scenario.seeds.len()
    );
    for name in COLUMNS {
        let _ = write!(page, "<th>{name}</th>");
    }
    for row in cells(all) {
        page.push_str("</tr><tr>");
        for cell in row {
            let _ = write!(page, "<td>{cell}</td>");
        }
    }
    page.push_str("</tr></table><div class=\"plots\">");
    let line = |policy: Policy, points: Points| Line {
        name: policy.name().to_owned(),
        points,
        dashed: policy == Policy::Oracle,
    };
    let policies: Vec<Policy> = all.iter().map(|s| s.policy).collect();
    let first = |policy: Policy| outcomes.iter().find(|o| o.policy == policy);
    let over_time = |value: &dyn Fn(&[crate::Sample]) -> Points| -> Vec<Line> {
        policies
            .iter()
            .map(|p| line(*p, first(*p).map_or_else(Vec::new, |o| value(&o.rounds))))
            .collect()
    };
    let latency: Vec<Line> = policies
        .iter()
        .map(|p| line(*p, latency_line(outcomes, *p)))
        .collect();
    let moves = over_time(&|rounds| {
        let mut sum = 0.0;
        rounds
            .iter()
            .map(|r| {
                sum += f64::from(r.added + r.removed);
                (r.at_s, sum)
            })
            .collect()
    });
    let pods = over_time(&|rounds| {
        rounds
            .iter()
            .map(|r| (r.at_s, f64::from(r.ready)))
            .collect()
    });
    let stuck = over_time(&|rounds| {
        rounds
            .iter()
            .map(|r| (r.at_s, f64::from(r.stuck)))
            .collect()
    });
    for (title, plot) in [
        (
            "Latency of answered requests",
            lines("ms", "% answered within", &latency, true),
        ),
        ("Ready pods", lines("s", "pods", &pods, false)),
        ("Moves since the start", lines("s", "moves", &moves, false)),
        (
            "Pods that wait without room",
            lines("s", "pods", &stuck, false),
        ),
    ] {
        let _ = write!(
            page,
            "<figure><figcaption>{title}</figcaption>{plot}</figure>"
        );
    }
    for (title, value) in [
        ("Requests served", 0),
        ("Completed, %", 1),
        ("Fast at the edge, %", 2),
    ] {
        let bars: Vec<String> = all.iter().map(|s| s.policy.name().to_owned()).collect();
        let values: Vec<Vec<f64>> = all
            .iter()
            .map(|s| {
                vec![match value {
                    0 => s.completed,
                    1 => s.completion * 100.0,
                    _ => s.fast_at_edge * 100.0,
                }]
            })
            .collect();
        let plot = plots::bars("", &bars, &[title.to_owned()], &values);
        let _ = write!(
            page,
            "<figure><figcaption>{title}</figcaption>{plot}</figure>"
        );
    }
    page.push_str("</div></html>\n");
    page
}
