//! Results: medians over rounds, ratios, a table for people and JSON for programs.

use crate::drive::{Load, Outcome};
use crate::histogram::Latency;
use crate::workload::Workload;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// All that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Processor and kernel.
    pub machine: String,
    /// Of the minute before the first round: what else the machine did.
    pub load_average: Option<f64>,
    /// Appending 1 KiB and fdatasync on the disk of a comparison, without any server.
    pub disk: Option<Latency>,
    /// The etcd version that each server claims.
    pub versions: BTreeMap<String, String>,
    /// One a server, workload and round, in the order measured.
    pub rows: Vec<Row>,
}

/// One measured span.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name or endpoint.
    pub server: String,
    /// From 1.
    pub round: usize,
    /// What was asked.
    pub load: Load,
    /// What came of it.
    pub outcome: Outcome,
}

/// Medians of a server's rounds with one workload; each figure by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Name or endpoint.
    pub server: String,
    /// What the clients did.
    pub workload: Workload,
    /// How many rounds.
    pub rounds: usize,
    /// Median of the rates.
    pub operations_per_second: f64,
    /// Lowest and highest rate.
    pub operations_per_second_range: (f64, f64),
    /// Median of each percentile.
    pub latency: Latency,
    /// Median of the server's processor time an operation in microseconds, if known.
    pub server_cpu_us: Option<f64>,
    /// Of that, in the kernel.
    pub server_kernel_us: Option<f64>,
    /// Lowest and highest of the server's processor time an operation.
    pub server_cpu_us_range: Option<(f64, f64)>,
    /// Median of the client's.
    pub client_cpu_us: f64,
    /// Median of the server's resident memory at the end of a span, in bytes.
    pub memory_bytes: Option<f64>,
}

/// The middle one, or the mean of the two in the middle; none of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

impl Summary {
    fn of(server: &str, workload: Workload, outcomes: &[&Outcome]) -> Summary {
        let median_of =
            |figure: &dyn Fn(&Outcome) -> f64| median(outcomes.iter().map(|o| figure(o)));
        let of_all = |figure: &dyn Fn(&Outcome) -> f64| median_of(figure).unwrap_or_default();
        let usages = || outcomes.iter().filter_map(|outcome| outcome.server);
        Summary {
            server: server.to_owned(),
            workload,
            rounds: outcomes.len(),
            operations_per_second: of_all(&|o| o.operations_per_second),
            operations_per_second_range: range(outcomes.iter().map(|o| o.operations_per_second))
                .unwrap_or_default(),
            latency: Latency {
                p50_us: of_all(&|o| o.latency.p50_us),
                p90_us: of_all(&|o| o.latency.p90_us),
                p99_us: of_all(&|o| o.latency.p99_us),
                p999_us: of_all(&|o| o.latency.p999_us),
                max_us: of_all(&|o| o.latency.max_us),
            },
            server_cpu_us: median(usages().map(|usage| usage.cpu_us())),
            server_kernel_us: median(usages().map(|usage| usage.kernel_us)),
            server_cpu_us_range: range(usages().map(|usage| usage.cpu_us())),
            client_cpu_us: of_all(&|o| o.client_cpu_us),
            memory_bytes: median(usages().map(|usage| usage.memory_bytes as f64)),
        }
    }

    /// This server's figures divided by another's.
    pub fn over(&self, other: &Summary) -> Ratios {
        let both = |a: Option<f64>, b: Option<f64>| Some(ratio(a?, b?));
        Ratios {
            workload: self.workload,
            of: self.server.clone(),
            to: other.server.clone(),
            operations_per_second: ratio(self.operations_per_second, other.operations_per_second),
            latency: Latency {
                p50_us: ratio(self.latency.p50_us, other.latency.p50_us),
                p90_us: ratio(self.latency.p90_us, other.latency.p90_us),
                p99_us: ratio(self.latency.p99_us, other.latency.p99_us),
                p999_us: ratio(self.latency.p999_us, other.latency.p999_us),
                max_us: ratio(self.latency.max_us, other.latency.max_us),
            },
            server_cpu: both(self.server_cpu_us, other.server_cpu_us),
            memory: both(self.memory_bytes, other.memory_bytes),
        }
    }
}

fn ratio(of: f64, to: f64) -> f64 {
    if to == 0.0 { f64::NAN } else { of / to }
}

/// One server's medians divided by another's.
#[derive(Debug, Clone, Serialize)]
pub struct Ratios {
    /// What the clients did.
    pub workload: Workload,
    /// The server divided.
    pub of: String,
    /// The server divided by.
    pub to: String,
    /// More is better.
    pub operations_per_second: f64,
    /// Less is better; ratios, in spite of the fields' names.
    pub latency: Latency,
    /// Processor time an operation; less is better.
    pub server_cpu: Option<f64>,
    /// Resident memory; less is better.
    pub memory: Option<f64>,
}

impl Report {
    /// A summary a workload and server, in the order first measured.
    pub fn summaries(&self) -> Vec<Summary> {
        let mut groups: Vec<(Workload, &str, Vec<&Outcome>)> = Vec::new();
        for row in &self.rows {
            let (workload, server) = (row.load.workload, row.server.as_str());
            match groups
                .iter_mut()
                .find(|(w, s, _)| (*w, *s) == (workload, server))
            {
                Some((_, _, outcomes)) => outcomes.push(&row.outcome),
                None => groups.push((workload, server, vec![&row.outcome])),
            }
        }
        groups
            .iter()
            .map(|(workload, server, outcomes)| Summary::of(server, *workload, outcomes))
            .collect()
    }

    /// The first server's figures divided by the second's, a workload each; empty for one
    /// server.
    pub fn ratios(&self) -> Vec<Ratios> {
        let summaries = self.summaries();
        let mut ratios = Vec::new();
        for (place, first) in summaries.iter().enumerate() {
            let second = summaries[place + 1..]
                .iter()
                .find(|s| s.workload == first.workload);
            ratios.extend(second.map(|second| first.over(second)));
        }
        ratios
    }

    /// All of it, with summaries and ratios.
    ///
    /// # Errors
    /// None in practice: no key in it is anything but a string.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            summaries: Vec<Summary>,
            ratios: Vec<Ratios>,
        }
        serde_json::to_string_pretty(&Whole {
            report: self,
            summaries: self.summaries(),
            ratios: self.ratios(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = &self.outcome;
        write!(
            f,
            "round {} {} {}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            self.round,
            self.server,
            self.load.workload.name(),
            outcome.operations_per_second,
            outcome.latency.p50_us / 1e3,
            outcome.latency.p99_us / 1e3,
        )?;
        if let Some(usage) = outcome.server {
            write!(
                f,
                ", server CPU {:.2} us/op ({:.2} user + {:.2} kernel)",
                usage.cpu_us(),
                usage.user_us,
                usage.kernel_us
            )?;
        }
        Ok(())
    }
}

const MIB: f64 = 1024.0 * 1024.0;

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; client and server share it", self.machine)?;
        if let Some(load) = self.load_average {
            writeln!(f, "load average before the first round: {load:.2}")?;
        }
        if let Some(disk) = self.disk {
            writeln!(
                f,
                "disk: append 1 KiB + fdatasync p50 {:.0} us, p99 {:.0} us",
                disk.p50_us, disk.p99_us
            )?;
        }
        for (server, version) in &self.versions {
            writeln!(f, "{server}: API of etcd {version}")?;
        }
        let summaries = self.summaries();
        let ratios = self.ratios();
        for workload in Workload::ALL {
            let rows = || summaries.iter().filter(|s| s.workload == workload);
            let Some(load) = self
                .rows
                .iter()
                .map(|r| &r.load)
                .find(|l| l.workload == workload)
            else {
                continue;
            };
            let rounds = rows().map(|s| s.rounds).min().unwrap_or_default();
            writeln!(f, "\n{load}; medians of {rounds} rounds; latency in ms")?;
            writeln!(
                f,
                "{:<12}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>14}{:>9}{:>11}{:>9}",
                "",
                "ops/s",
                "p50",
                "p90",
                "p99",
                "p99.9",
                "max",
                "server us/op",
                "kernel",
                "client us",
                "RSS MiB"
            )?;
            for row in rows() {
                let Latency {
                    p50_us,
                    p90_us,
                    p99_us,
                    p999_us,
                    max_us,
                } = row.latency;
                write!(f, "{:<12}{:>10.0}", row.server, row.operations_per_second)?;
                for us in [p50_us, p90_us, p99_us, p999_us, max_us] {
                    write!(f, "{:>9.2}", us / 1e3)?;
                }
                writeln!(
                    f,
                    "{:>14}{:>9}{:>11.2}{:>9}",
                    cell(row.server_cpu_us, 2),
                    cell(row.server_kernel_us, 2),
                    row.client_cpu_us,
                    cell(row.memory_bytes.map(|bytes| bytes / MIB), 0),
                )?;
            }
            for ratio in ratios.iter().filter(|ratio| ratio.workload == workload) {
                let Latency {
                    p50_us,
                    p90_us,
                    p99_us,
                    p999_us,
                    max_us,
                } = ratio.latency;
                let title = format!("{}/{}", ratio.of, ratio.to);
                write!(f, "{title:<12}{:>10.2}", ratio.operations_per_second)?;
                for latency in [p50_us, p90_us, p99_us, p999_us, max_us] {
                    write!(f, "{latency:>9.2}")?;
                }
                writeln!(
                    f,
                    "{:>14}{:>9}{:>11}{:>9}",
                    cell(ratio.server_cpu, 3),
                    "",
                    "",
                    cell(ratio.memory, 2)
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load {
            connections,
            in_flight,
            keys,
            key_bytes,
            value_bytes,
            watchers,
            ..
        } = self;
        write!(f, "{}: ", self.workload.name())?;
        match self.workload {
            Workload::Watch if self.watch_rate == 0 => write!(
                f,
                "each put when {watchers} watchers over {connections} connections have the last"
            )?,
            Workload::Watch => write!(
                f,
                "{} puts/s to {watchers} watchers over {connections} connections; an operation is a delivery",
                self.watch_rate
            )?,
            _ => write!(f, "{in_flight} in flight over {connections} connections")?,
        }
        write!(
            f,
            ", {keys} keys of {key_bytes} bytes, values of {value_bytes}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::Usage;

    fn row(server: &str, workload: Workload, round: usize, rate: f64, cpu_us: f64) -> Row {
        let load = Load {
            workload,
            connections: 10,
            in_flight: 100,
            client_threads: 1,
            keys: 10_000,
            key_bytes: 32,
            value_bytes: 1024,
            watchers: 100,
            watch_rate: 0,
        };
        let latency = Latency {
            p50_us: 1e6 / rate,
            p90_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            max_us: 1.0,
        };
        let usage = Usage {
            user_us: cpu_us * 0.75,
            kernel_us: cpu_us * 0.25,
            memory_bytes: 1 << 20,
            memory_peak_bytes: 1 << 21,
        };
        let outcome = Outcome {
            seconds: 1.0,
            operations: rate as u64,
            operations_per_second: rate,
            latency,
            server: Some(usage),
            client_cpu_us: 3.0,
        };
        Row {
            server: server.into(),
            round,
            load,
            outcome,
        }
    }

    fn report() -> Report {
        let mut rows = Vec::new();
        for (round, noise) in [(1, 1.0), (2, 10.0), (3, 1.1)] {
            rows.push(row(
                "orlop",
                Workload::Put,
                round,
                40_000.0 * noise,
                10.0 * noise,
            ));
            rows.push(row("orlop", Workload::Range, round, 50_000.0, 5.0));
            rows.push(row("etcd", Workload::Put, round, 10_000.0, 40.0));
            rows.push(row("etcd", Workload::Range, round, 25_000.0, 25.0));
        }
        Report {
            machine: "a test".into(),
            load_average: None,
            disk: None,
            versions: BTreeMap::new(),
            rows,
        }
    }

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([7.0]), Some(7.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn a_summary_takes_the_median_round_and_the_extremes() {
        let summaries = report().summaries();
        assert_eq!(summaries.len(), 4);
        let put = &summaries[0];
        assert_eq!(
            (put.server.as_str(), put.workload, put.rounds),
            ("orlop", Workload::Put, 3)
        );
        assert_eq!(put.operations_per_second, 44_000.0);
        assert_eq!(put.operations_per_second_range, (40_000.0, 400_000.0));
        assert_eq!(put.server_cpu_us, Some(11.0));
        assert_eq!(put.server_cpu_us_range, Some((10.0, 100.0)));
    }

    #[test]
    fn ratios_are_of_the_first_to_the_second_by_workload() {
        let ratios = report().ratios();
        assert_eq!(ratios.len(), 2);
        assert_eq!(
            (ratios[0].of.as_str(), ratios[0].to.as_str()),
            ("orlop", "etcd")
        );
        assert_eq!(ratios[0].operations_per_second, 4.4);
        assert_eq!(ratios[0].server_cpu, Some(11.0 / 40.0));
        assert_eq!(ratios[1].workload, Workload::Range);
        assert_eq!(ratios[1].server_cpu, Some(0.2));
    }

    #[test]
    fn one_server_has_no_ratios_and_an_unknown_process_no_figures() {
        let mut report = report();
        report.rows.retain(|row| row.server == "orlop");
        for row in &mut report.rows {
            row.outcome.server = None;
        }
        assert!(report.ratios().is_empty());
        assert_eq!(report.summaries()[0].server_cpu_us, None);
        assert!(report.to_string().contains('-'));
    }

    #[test]
    fn json_holds_rows_medians_and_ratios() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
        assert_eq!(json["rows"].as_array().unwrap().len(), 12);
        assert_eq!(json["summaries"][0]["workload"], "put");
        assert_eq!(json["ratios"][0]["server_cpu"], 0.275);
    }
}
