//! The table for people and the JSON for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Result;
use super::limit::Found;
use super::progress::Progress;
use super::result::{Latencies, Run};
use super::run::Idle;
use super::stores::Delay;
use super::track::Stage;
use super::{LOAD_GENERATOR, STORE};
use crate::report::median;
use crate::{Error, procfs};

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    /// Before the first run: whether the machine was quiet.
    pub(crate) load_average: Option<f64>,
    /// Hollow nodes; none on somebody's cluster.
    pub(crate) nodes: Option<u32>,
    pub(crate) runs: Vec<Run>,
    pub(crate) delays: Vec<Delay>,
    pub(crate) limits: Vec<Found>,
    pub(crate) idle: Vec<Idle>,
    /// Runs that failed, and why.
    pub(crate) failures: Vec<String>,
}

/// Runs of one load, by store.
pub(crate) type Group<'a> = (String, BTreeMap<&'a str, Vec<&'a Run>>);

impl Report {
    /// Nothing yet; `nodes` is none on somebody's cluster.
    pub(crate) fn new(nodes: Option<u32>) -> Report {
        Report {
            machine: procfs::machine(),
            load_average: procfs::load_average(),
            nodes,
            runs: Vec::new(),
            delays: Vec::new(),
            limits: Vec::new(),
            idle: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.limits.is_empty() && self.idle.is_empty()
    }

    /// Keeps a run's result. A run whose count is wrong is told and makes the whole fail, but
    /// the others go on.
    pub(crate) fn take(&mut self, run: Result<Run>, progress: &mut Progress) -> Result<()> {
        match run {
            Ok(run) => {
                progress.done(&summary(&run));
                self.runs.push(run);
                Ok(())
            }
            Err(error @ Error::Count(_)) => {
                let failure = format!("{}: {error}", progress.run());
                progress.done(&failure);
                self.failures.push(failure);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Where everything ran.
    pub(crate) fn place(&self) -> String {
        let load = self
            .load_average
            .map_or_else(|| "unknown".into(), |load| format!("{load:.2}"));
        let what = match self.nodes {
            Some(nodes) => format!("everything shares it; {nodes} hollow nodes"),
            None => "the load generator ran here".into(),
        };
        format!(
            "{}; {what}. Load average before the first run: {load}.",
            self.machine
        )
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|e| Error::Argument(e.to_string()))
    }

    /// Runs by load, in the order in which they were first made.
    pub(crate) fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for run in &self.runs {
            let title = title(run);
            let at = match groups.iter().position(|(t, _)| *t == title) {
                Some(at) => at,
                None => {
                    groups.push((title, BTreeMap::new()));
                    groups.len() - 1
                }
            };
            if let Some((_, stores)) = groups.get_mut(at) {
                stores.entry(&run.store).or_default().push(run);
            }
        }
        groups
    }
}

fn title(run: &Run) -> String {
    let mut title = format!(
        "{}, a request every {} ms for {:.0} s",
        run.mode, run.interval_ms, run.load_s
    );
    if run.disk_delay_ms > 0.0 {
        title += &format!(", each sync {} ms slower", run.disk_delay_ms);
    }
    title
}

/// The median over runs of what `pick` gives.
pub(crate) fn of(runs: &[&Run], pick: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    median(runs.iter().filter_map(|run| pick(run)))
}

/// The median over runs of a percentile of a stage.
pub(crate) fn stage(runs: &[&Run], stage: Stage, pick: impl Fn(&Latencies) -> f64) -> Option<f64> {
    of(runs, |run| run.stage(stage).map(&pick))
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// A line about one run.
fn summary(run: &Run) -> String {
    let at = |stage, pick: fn(&Latencies) -> f64| cell(run.stage(stage).map(pick), 0);
    format!(
        "round {} {} T={} ms: bound p50 {} p99 {} ms, ready p50 {} p99 {} ms, {:.1}/s{}",
        run.round,
        run.store,
        run.interval_ms,
        at(Stage::Bound, |l| l.p50_ms),
        at(Stage::Bound, |l| l.p99_ms),
        at(Stage::Ready, |l| l.p50_ms),
        at(Stage::Ready, |l| l.p99_ms),
        run.bound_per_s,
        if run.kept_up { "" } else { ", did not keep up" }
    )
}

/// A column: its heading, its decimals, and its value.
pub(crate) struct Column {
    pub(crate) head: &'static str,
    decimals: usize,
    value: fn(&[&Run]) -> Option<f64>,
}

impl Column {
    pub(crate) fn text(&self, runs: &[&Run]) -> String {
        cell((self.value)(runs), self.decimals)
    }
}

const fn column(head: &'static str, decimals: usize, value: fn(&[&Run]) -> Option<f64>) -> Column {
    Column {
        head,
        decimals,
        value,
    }
}

/// Latencies that a table shows: stage and heading.
const SHOWN: [(Stage, &str); 8] = [
    (Stage::Accepted, "create accepted"),
    (Stage::ReplicaSet, "ReplicaSet seen"),
    (Stage::Pod, "pod seen"),
    (Stage::Bound, "pod bound"),
    (Stage::Ready, "pod ready"),
    (Stage::Complete, "Deployment complete"),
    (Stage::DeleteAccepted, "delete accepted"),
    (Stage::Gone, "all gone"),
];

/// Those of them that some run has.
pub(crate) fn shown(
    stores: &BTreeMap<&str, Vec<&Run>>,
) -> impl Iterator<Item = (Stage, &'static str)> {
    let runs = move || stores.values().flatten();
    SHOWN
        .into_iter()
        .filter(move |(stage, _)| runs().any(|run| run.stage(*stage).is_some()))
}

/// What else is shown of each store.
pub(crate) const COLUMNS: [Column; 10] = [
    column("bound/s", 1, |r| of(r, |r| Some(r.bound_per_s))),
    column("kept up", 2, |r| {
        let kept = r.iter().filter(|r| r.kept_up).count();
        Some(kept as f64 / r.len() as f64)
    }),
    column("store ms/write", 2, |r| {
        of(r, |r| r.store_writes.map(|s| s.mean_ms))
    }),
    column("store p99 ms/write", 1, |r| {
        of(r, |r| r.store_writes.map(|s| s.p99_ms))
    }),
    column("store ms/request", 2, |r| {
        of(r, |r| {
            r.store_writes.map(|s| s.sum_s * 1e3 / r.requests as f64)
        })
    }),
    column("store CPU ms", 2, |r| {
        of(r, |r| r.used.get(STORE).map(|u| u.cpu_ms_per_request))
    }),
    column("all CPU ms", 1, |r| {
        of(r, |r| {
            r.used.get(STORE)?;
            let others = r.used.iter().filter(|(name, _)| *name != LOAD_GENERATOR);
            Some(others.map(|(_, u)| u.cpu_ms_per_request).sum())
        })
    }),
    column("store MiB", 0, |r| {
        of(r, |r| {
            r.used.get(STORE).map(|u| u.rss_peak_bytes as f64 / MIB)
        })
    }),
    column("syncs", 2, |r| {
        of(r, |r| r.syncs.map(|s| s / r.requests as f64))
    }),
    column("KiB written", 1, |r| {
        of(r, |r| {
            r.used
                .get(STORE)
                .map(|u| u.written_bytes as f64 / KIB / r.requests as f64)
        })
    }),
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.place())?;
        for delay in &self.delays {
            writeln!(
                f,
                "{}: one put alone takes {:.2} ms; with each sync {} ms slower {:.2} ms, {:.2} ms more",
                delay.store,
                delay.put_ms,
                delay.asked_ms,
                delay.delayed_put_ms,
                delay.added_ms()
            )?;
        }
        for (title, stores) in self.groups() {
            self.group(f, &title, &stores)?;
        }
        for found in &self.limits {
            let rate = match (found.per_s, found.interval_ms) {
                (Some(rate), Some(ms)) => format!("up to {rate:.1} requests/s (every {ms:.1} ms)"),
                _ => "not even at the longest interval".into(),
            };
            let slower = match found.disk_delay_ms {
                ms if ms > 0.0 => format!(", syncs {ms} ms slower"),
                _ => String::new(),
            };
            writeln!(
                f,
                "{} {}{slower}: bound within {} ms (p99) {rate}; {} attempts",
                found.store,
                found.mode,
                found.limit_ms,
                found.attempts.len()
            )?;
        }
        for idle in &self.idle {
            writeln!(
                f,
                "{} idle with {} nodes ({:.0} s): {:.0} syncs/h, {:.1} MiB written/h, store CPU {:.2} ms/s, all CPU {:.1} ms/s",
                idle.store,
                idle.nodes,
                idle.seconds,
                idle.syncs_per_hour,
                idle.written_bytes_per_hour / MIB,
                idle.store_cpu_ms_per_s,
                idle.all_cpu_ms_per_s
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        Ok(())
    }
}

impl Report {
    fn group(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        stores: &BTreeMap<&str, Vec<&Run>>,
    ) -> fmt::Result {
        let rounds = stores.values().map(Vec::len).max().unwrap_or_default();
        writeln!(
            f,
            "\n{title}; medians of {rounds} runs; ms from the intended time of the request: p50 / p99"
        )?;
        write!(f, "{:<22}", "")?;
        for name in stores.keys() {
            write!(f, "{name:>18}")?;
        }
        writeln!(f)?;
        for (shown, head) in shown(stores) {
            write!(f, "{head:<22}")?;
            for runs in stores.values() {
                let p50 = cell(stage(runs, shown, |l| l.p50_ms), 1);
                let p99 = cell(stage(runs, shown, |l| l.p99_ms), 1);
                write!(f, "{:>18}", format!("{p50} / {p99}"))?;
            }
            writeln!(f)?;
        }
        for column in &COLUMNS {
            write!(f, "{:<22}", column.head)?;
            for runs in stores.values() {
                write!(f, "{:>18}", column.text(runs))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "(CPU, syncs and bytes are by request)")
    }
}
