//! Results of `--mode start`: medians, and how many times as fast as the first of the compared.

use std::fmt;

use serde::Serialize;

use super::run::{Phases, Way};
use crate::kube::Result;
use crate::kube::progress::Progress;
use crate::members::report::Distances;
use crate::paired::{self, InTurn, Ratio, of_way, ratio};
use crate::report::median;
use crate::{Error, procfs};

/// One run.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) way: Way,
    /// From 1.
    pub(crate) round: usize,
    pub(crate) distances: Distances,
    /// Whether another member leads at the end than at the beginning.
    pub(crate) leader_moved: bool,
    pub(crate) phases: Phases,
}

impl InTurn for Run {
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

/// All runs.
#[derive(Debug, Serialize)]
pub(crate) struct StartReport {
    machine: String,
    /// Before the first run: whether the machine was quiet.
    load_average: Option<f64>,
    nodes: u32,
    installs: usize,
    runs: Vec<Run>,
    /// Runs that failed, and why.
    pub(crate) failures: Vec<String>,
}

type Figure = fn(&Phases) -> Option<f64>;

fn of_installs(phases: &Phases, pick: fn(&super::install::Installed) -> f64) -> Option<f64> {
    let all = phases.installs.iter().map(pick);
    all.fold(None, |most: Option<f64>, one| {
        Some(most.map_or(one, |m| m.max(one)))
    })
}

/// Columns: heading and seconds.
const COLUMNS: [(&str, Figure); 6] = [
    ("apiserver", |p| Some(p.apiserver_s)),
    ("control plane", |p| Some(p.control_plane_s)),
    ("definitions", |p| of_installs(p, |i| i.definitions_s)),
    ("installed", |p| of_installs(p, |i| i.installed_s)),
    ("available", |p| of_installs(p, |i| i.available_s)),
    ("plane + install", |p| {
        Some(p.control_plane_s + of_installs(p, |i| i.installed_s)?)
    }),
];
/// Of them, those with ratios.
const COMPARED: [usize; 3] = [1, 3, 5];

/// How many times as fast `of` was as the first of the compared.
#[derive(Debug, Serialize)]
struct Compared {
    distances: Distances,
    of: Way,
    to: Way,
    faster: Vec<(&'static str, Option<Ratio>)>,
}

impl StartReport {
    /// Nothing yet.
    pub(crate) fn new(nodes: u32, installs: usize) -> StartReport {
        StartReport {
            machine: procfs::machine(),
            load_average: procfs::load_average(),
            nodes,
            installs,
            runs: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Keeps a run's result. One that failed makes the whole fail, but others go on.
    pub(crate) fn take(&mut self, run: Result<Run>, progress: &mut Progress) -> Result<()> {
        match run {
            Ok(run) => {
                progress.done(&line(&run));
                self.runs.push(run);
                Ok(())
            }
            Err(error @ (Error::Cluster(_) | Error::Stuck { .. })) => {
                let failure = format!("{}: {error}", progress.run());
                progress.done(&failure);
                self.failures.push(failure);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What is printed, for programs.
    pub(crate) fn to_json(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a StartReport,
            compared: Vec<Compared>,
        }
        let compared = paired::conditions(&self.runs)
            .into_iter()
            .flat_map(|d| self.compared(d));
        let whole = Whole {
            report: self,
            compared: compared.collect(),
        };
        serde_json::to_string_pretty(&whole)
            .map(|text| text + "\n")
            .map_err(|error| Error::Argument(error.to_string()))
    }

    fn compared(&self, distances: &Distances) -> Vec<Compared> {
        let ways = paired::ways(&self.runs, distances);
        let Some((first, others)) = ways.split_first() else {
            return Vec::new();
        };
        let compare = |way: &Way| {
            let columns = COMPARED.iter().filter_map(|column| COLUMNS.get(*column));
            let faster = columns.map(|(head, figure)| {
                let figure = |run: &Run| figure(&run.phases);
                let pairs = paired::pairs(&self.runs, distances, (*first, *way), figure);
                (*head, ratio(&pairs))
            });
            Compared {
                distances: distances.clone(),
                of: *way,
                to: *first,
                faster: faster.collect(),
            }
        };
        others.iter().map(compare).collect()
    }
}

/// A line about one run.
fn line(run: &Run) -> String {
    let mut line = format!("round {} {}:", run.round, run.way);
    for (head, figure) in &COLUMNS {
        if let Some(seconds) = figure(&run.phases) {
            line += &format!(" {head} {seconds:.2} s,");
        }
    }
    line.pop();
    if run.leader_moved {
        line += "; THE LEADER MOVED";
    }
    line
}

impl fmt::Display for StartReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self
            .load_average
            .map_or_else(|| "unknown".into(), |load| format!("{load:.2}"));
        writeln!(
            f,
            "{}; everything shares it; {} hollow nodes, {} installs at once. Load average before the first run: {load}.",
            self.machine, self.nodes, self.installs
        )?;
        for distances in paired::conditions(&self.runs) {
            let ways = paired::ways(&self.runs, distances);
            let of = |way: &Way| of_way(&self.runs, distances, *way);
            let rounds = ways.iter().map(|way| of(way).count());
            writeln!(
                f,
                "\n{distances}; medians of {} rounds; seconds",
                rounds.min().unwrap_or(0)
            )?;
            write!(f, "{:<8}", "")?;
            for (head, _) in &COLUMNS {
                write!(f, "{head:>17}")?;
            }
            writeln!(f)?;
            for way in &ways {
                write!(f, "{:<8}", way.to_string())?;
                for (_, figure) in &COLUMNS {
                    let value = median(of(way).filter_map(|r| figure(&r.phases)));
                    let text = value.map_or_else(|| "-".into(), |v| format!("{v:.2}"));
                    write!(f, "{text:>17}")?;
                }
                writeln!(f)?;
            }
            for compared in self.compared(distances) {
                write!(f, "{} against {}, times as fast:", compared.of, compared.to)?;
                for (head, ratio) in &compared.faster {
                    if let Some(ratio) = ratio {
                        write!(f, "  {head} {ratio}")?;
                    }
                }
                writeln!(f)?;
            }
            let moved = self
                .runs
                .iter()
                .filter(|run| run.distances == *distances && run.leader_moved);
            match moved.count() {
                0 => {}
                count => writeln!(f, "the leader moved in {count} runs: they say little")?,
            }
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        writeln!(
            f,
            "(an install's seconds run from its own start; ratios: geometric means of the rounds, 95 % intervals)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::install::Installed;
    use super::*;
    use playground::members;
    use std::time::Duration;

    fn run(way: Way, round: usize, control_plane_s: f64) -> Run {
        Run {
            way,
            round,
            distances: (&members::Distances::equal(3, Duration::from_millis(45))).into(),
            leader_moved: false,
            phases: Phases {
                apiserver_s: 1.0,
                control_plane_s,
                installs: vec![
                    Installed {
                        installed_s: 10.0,
                        ..Installed::default()
                    },
                    Installed {
                        installed_s: 12.0,
                        ..Installed::default()
                    },
                ],
            },
        }
    }

    #[test]
    fn ratios_say_how_much_faster() {
        let mut report = StartReport::new(3, 2);
        report.runs = vec![
            run(Way::Etcd, 1, 20.0),
            run(Way::Proxy, 1, 16.0),
            run(Way::Proxy, 2, 8.0),
            run(Way::Etcd, 2, 10.0),
        ];
        let text = report.to_string();
        assert!(
            text.contains("proxy against etcd, times as fast:  control plane 1.250 [1.250, 1.250]  installed 1.000"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(json["compared"][0]["of"], "proxy");
        assert_eq!(
            of_installs(&report.runs[0].phases, |i| i.installed_s),
            Some(12.0)
        );
    }
}
