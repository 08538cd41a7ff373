//! Results of `orlop bench members`: medians over rounds, ratios with their intervals.

use super::run::Way;
use crate::drive::{Load, Outcome};
use crate::error::Error;
use crate::histogram::Latency;
use crate::paired::{self, InTurn, Ratio, of_way, ratio};
use crate::report::median;
use crate::{probe, procfs};
use playground::members;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    /// Before the first round: what else the machine did.
    load_average: Option<f64>,
    /// Appending 1 KiB and fdatasync on the members' disk.
    disk: Latency,
    pub(crate) rows: Vec<Row>,
}

/// How far apart the members were, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Distances {
    member_ms: Vec<f64>,
    peer_ms: f64,
}

impl From<&members::Distances> for Distances {
    fn from(distances: &members::Distances) -> Self {
        let ms = |delay: &std::time::Duration| delay.as_nanos() as f64 / 1e6;
        Self {
            member_ms: distances.member.iter().map(ms).collect(),
            peer_ms: ms(&distances.peer),
        }
    }
}

impl fmt::Display for Distances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<_> = self.member_ms.iter().map(f64::to_string).collect();
        let members = self.member_ms.len();
        let peer_ms = self.peer_ms;
        write!(
            f,
            "{members} members; what leaves each is held {} ms, {peer_ms} ms more between them",
            each.join(", ")
        )
    }
}

/// One measured span.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) way: Way,
    /// From 1.
    pub(crate) round: usize,
    pub(crate) distances: Distances,
    /// Who led at the end, from 1.
    pub(crate) leader: Option<usize>,
    /// Whether it led at the beginning too.
    pub(crate) leader_stayed: bool,
    /// Bytes that members sent to members for each put that was applied, warm-up included, as
    /// etcd counts both.
    pub(crate) peer_bytes_per_write: Option<f64>,
    pub(crate) load: Load,
    pub(crate) outcome: Outcome,
}

impl InTurn for Row {
    type Way = Way;
    type At = Distances;

    fn way(&self) -> Way {
        self.way
    }

    fn round(&self) -> usize {
        self.round
    }

    fn at(&self) -> &Distances {
        &self.distances
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = &self.outcome;
        write!(
            f,
            "round {} {}, peers {} ms: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            self.round,
            self.way,
            self.distances.peer_ms,
            outcome.operations_per_second,
            outcome.latency.p50_us / 1e3,
            outcome.latency.p99_us / 1e3
        )?;
        if let Some(bytes) = self.peer_bytes_per_write {
            write!(f, ", {bytes:.0} peer bytes a write")?;
        }
        if !self.leader_stayed {
            write!(f, ", THE LEADER CHANGED")?;
        }
        Ok(())
    }
}

type Figure = fn(&Row) -> Option<f64>;

/// Columns of the table: heading, decimals, value.
const COLUMNS: [(&str, usize, Figure); 7] = [
    ("ops/s", 0, |row| Some(row.outcome.operations_per_second)),
    ("p50 ms", 2, |row| Some(row.outcome.latency.p50_us / 1e3)),
    ("p90 ms", 2, |row| Some(row.outcome.latency.p90_us / 1e3)),
    ("p99 ms", 2, |row| Some(row.outcome.latency.p99_us / 1e3)),
    ("p99.9 ms", 2, |row| Some(row.outcome.latency.p999_us / 1e3)),
    ("peer B/write", 0, |row| row.peer_bytes_per_write),
    ("client us", 1, |row| Some(row.outcome.client_cpu_us)),
];
/// Of them, those with ratios.
const COMPARED: [usize; 4] = [0, 1, 3, 5];

/// One way at one distance against the first way there.
#[derive(Debug, Serialize)]
struct Compared {
    distances: Distances,
    of: Way,
    to: Way,
    ratios: Vec<(&'static str, Option<Ratio>)>,
}

impl Report {
    /// Nothing yet; the members' data will be in `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            machine: procfs::machine(),
            load_average: procfs::load_average(),
            disk: probe::disk(dir)?,
            rows: Vec::new(),
        })
    }

    /// What is printed, for programs.
    pub(crate) fn to_json(&self) -> Result<String, Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            ratios: Vec<Compared>,
        }
        let ratios = paired::conditions(&self.rows)
            .into_iter()
            .flat_map(|d| self.compared(d));
        let whole = Whole {
            report: self,
            ratios: ratios.collect(),
        };
        serde_json::to_string_pretty(&whole)
            .map(|text| text + "\n")
            .map_err(|error| Error::Argument(error.to_string()))
    }

    fn compared(&self, distances: &Distances) -> Vec<Compared> {
        let ways = paired::ways(&self.rows, distances);
        let Some((first, others)) = ways.split_first() else {
            return Vec::new();
        };
        let of = |way: &Way| {
            let ratios = COMPARED.iter().filter_map(|column| COLUMNS.get(*column));
            let ratios = ratios.map(|(head, _, figure)| {
                let pairs = paired::pairs(&self.rows, distances, (*way, *first), figure);
                (*head, ratio(&pairs))
            });
            Compared {
                distances: distances.clone(),
                of: *way,
                to: *first,
                ratios: ratios.collect(),
            }
        };
        others.iter().map(of).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; clients and members share it", self.machine)?;
        if let Some(load) = self.load_average {
            writeln!(f, "load average before the first round: {load:.2}")?;
        }
        writeln!(
            f,
            "disk: append 1 KiB + fdatasync p50 {:.0} us, p99 {:.0} us",
            self.disk.p50_us, self.disk.p99_us
        )?;
        for distances in paired::conditions(&self.rows) {
            let ways = paired::ways(&self.rows, distances);
            let of = |way: &Way| of_way(&self.rows, distances, *way);
            let Some(row) = self.rows.iter().find(|row| row.distances == *distances) else {
                continue;
            };
            let rounds = ways.iter().map(|way| of(way).count());
            writeln!(
                f,
                "\n{distances}\n{}; medians of {} rounds",
                row.load,
                rounds.min().unwrap_or(0)
            )?;
            write!(f, "{:<14}", "")?;
            for (head, _, _) in &COLUMNS {
                write!(f, "{head:>14}")?;
            }
            writeln!(f)?;
            for way in &ways {
                write!(f, "{:<14}", way.to_string())?;
                for (_, decimals, figure) in &COLUMNS {
                    let value = median(of(way).filter_map(figure));
                    let text = value.map_or_else(|| "-".into(), |v| format!("{v:.decimals$}"));
                    write!(f, "{text:>14}")?;
                }
                writeln!(f)?;
            }
            self.mean_of_members(f, distances, &ways)?;
            for compared in self.compared(distances) {
                write!(f, "{} / {}:", compared.of, compared.to)?;
                for (head, ratio) in &compared.ratios {
                    if let Some(ratio) = ratio {
                        write!(f, "  {head} {ratio}")?;
                    }
                }
                writeln!(f)?;
            }
            let changed = self
                .rows
                .iter()
                .filter(|row| row.distances == *distances && !row.leader_stayed);
            match changed.count() {
                0 => {}
                count => writeln!(f, "the leader changed in {count} spans: they say little")?,
            }
        }
        writeln!(f, "(ratios: geometric means of the rounds, 95 % intervals)")
    }
}

impl Report {
    /// What a client sees that takes the members in turn, if each was measured by itself.
    fn mean_of_members(
        &self,
        f: &mut fmt::Formatter<'_>,
        distances: &Distances,
        ways: &[Way],
    ) -> fmt::Result {
        let p50_ms = |way: &Way| {
            median(of_way(&self.rows, distances, *way).map(|row| row.outcome.latency.p50_us / 1e3))
        };
        let each: Vec<f64> = ways
            .iter()
            .filter(|way| matches!(way, Way::Member(_)))
            .filter_map(p50_ms)
            .collect();
        if each.len() < 2 {
            return Ok(());
        }
        let mean = each.iter().sum::<f64>() / each.len() as f64;
        writeln!(f, "mean of the members' p50, each in turn: {mean:.2} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    fn row(way: Way, round: usize, rate: f64) -> Row {
        Row {
            way,
            round,
            distances: Distances {
                member_ms: vec![0.0; 3],
                peer_ms: 5.0,
            },
            leader: Some(1),
            leader_stayed: way != Way::Member(1),
            peer_bytes_per_write: Some(2_000.0),
            load: Load {
                workload: Workload::Put,
                connections: 1,
                in_flight: 1,
                client_threads: 1,
                keys: 1,
                key_bytes: 32,
                value_bytes: 8,
                watchers: 0,
                watch_rate: 0,
            },
            outcome: Outcome {
                seconds: 1.0,
                operations: rate as u64,
                operations_per_second: rate,
                latency: Latency {
                    p50_us: 1e6 / rate,
                    p90_us: 1.0,
                    p99_us: 1.0,
                    p999_us: 1.0,
                    max_us: 1.0,
                },
                server: None,
                client_cpu_us: 1.0,
            },
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report {
            machine: "a test".into(),
            load_average: Some(0.5),
            disk: rows[0].outcome.latency,
            rows,
        }
    }

    #[test]
    fn ratios_are_of_rounds_and_to_the_first_way() {
        let report = report(vec![
            row(Way::RoundRobin, 1, 100.0),
            row(Way::Proxy, 1, 120.0),
            row(Way::Proxy, 2, 240.0),
            row(Way::RoundRobin, 2, 200.0),
        ]);
        let text = report.to_string();
        assert!(
            text.contains("proxy / round robin:  ops/s 1.200 [1.200, 1.200]"),
            "{text}"
        );
        assert!(
            !text.contains("changed") && !text.contains("mean of the members"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(json["ratios"][0]["of"], "proxy");
        assert_eq!(json["rows"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn members_in_turn_have_a_mean() {
        let text = report(vec![
            row(Way::Member(0), 1, 100.0),
            row(Way::Member(1), 1, 50.0),
        ])
        .to_string();
        assert!(text.contains("each in turn: 15.00 ms"), "{text}");
        assert!(text.contains("the leader changed in 1 spans"), "{text}");
    }
}
