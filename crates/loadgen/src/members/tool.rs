//! etcd's own load tool, `tools/benchmark` of its repository: who compares figures with etcd's
//! documentation wants those of the same program.

use crate::drive::{Load, Outcome};
use crate::error::Error;
use crate::histogram::Latency;
use crate::interrupt::Interrupt;
use playground::proc::{Process, tail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A run may not take longer, however many requests it makes.
const RUN_LIMIT: Duration = Duration::from_secs(900);

/// The tool, and how many requests a run of it makes.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) program: PathBuf,
    pub(crate) requests: u64,
}

impl Tool {
    /// Puts the puts of `load` on `endpoints`. Its connections go to them in turn.
    ///
    /// # Errors
    /// If it fails, does not end in time, or prints something else than it should.
    pub(crate) fn run(
        &self,
        load: &Load,
        endpoints: &[String],
        dir: &Path,
        interrupt: &Interrupt,
    ) -> Result<Outcome, Error> {
        let mut command = Command::new(&self.program);
        command
            .arg("put")
            .arg(format!("--key-size={}", load.key_bytes))
            .arg(format!("--key-space-size={}", load.keys))
            .arg(format!("--val-size={}", load.value_bytes))
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .arg(format!("--conns={}", load.connections))
            .arg(format!("--clients={}", load.in_flight))
            .arg(format!("--total={}", self.requests))
            .arg("--precise");
        let mut process = Process::start("benchmark", dir, &mut command)?;
        let log = process.log().to_owned();
        let mut ended = None;
        let in_time = interrupt.wait(RUN_LIMIT, || {
            ended = process.ended().ok().flatten();
            ended.is_some()
        })?;
        if !in_time {
            return Err(Error::Stuck {
                what: "running etcd's load tool",
                seconds: RUN_LIMIT.as_secs(),
            });
        }
        let said = std::fs::read_to_string(&log).map_err(Error::file(&log))?;
        let _ = std::fs::remove_file(&log);
        let outcome = parse(&said, self.requests);
        match (ended.is_some_and(|status| status.success()), outcome) {
            (true, Some(outcome)) => Ok(outcome),
            _ => Err(Error::Start {
                program: self.program.display().to_string(),
                reason: format!("it printed:\n{}", last_of(&said, &log)),
            }),
        }
    }
}

fn last_of(said: &str, log: &Path) -> String {
    match said.is_empty() {
        true => tail(log),
        false => said.lines().rev().take(10).collect::<Vec<_>>().join("\n"),
    }
}

/// What the tool prints, as an outcome; none if it is something else.
fn parse(said: &str, requests: u64) -> Option<Outcome> {
    let number = |text: &str| text.split_whitespace().next()?.parse::<f64>().ok();
    let labelled = |label: &str| {
        let line = said.lines().find_map(|l| l.trim().strip_prefix(label));
        number(line?)
    };
    let us = |percent: &str| labelled(&format!("{percent}% in ")).map(|s| s * 1e6);
    let seconds = labelled("Total:")?;
    Some(Outcome {
        seconds,
        operations: requests,
        operations_per_second: labelled("Requests/sec:")?,
        latency: Latency {
            p50_us: us("50")?,
            p90_us: us("90")?,
            p99_us: us("99")?,
            p999_us: us("99.9")?,
            max_us: labelled("Slowest:")? * 1e6,
        },
        server: None,
        // Nobody looked.
        client_cpu_us: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tool_prints_is_read() {
        let said = "\nSummary:\n  Total:\t2.5 secs.\n  Slowest:\t0.25 secs.\n  \
                    Fastest:\t0.001 secs.\n  Requests/sec:\t4000.5\n\nLatency distribution:\n  \
                    10% in 0.001 secs.\n  50% in 0.02 secs.\n  90% in 0.03 secs.\n  \
                    95% in 0.04 secs.\n  99% in 0.05 secs.\n  99.9% in 0.06 secs.\n";
        let outcome = parse(said, 10_000).unwrap();
        assert_eq!(outcome.operations_per_second, 4000.5);
        assert!((outcome.latency.p99_us - 50_000.0).abs() < 1.0);
        assert!((outcome.latency.p999_us - 60_000.0).abs() < 1.0);
        assert!((outcome.latency.max_us - 250_000.0).abs() < 1.0);
        assert!(parse("dial tcp: connection refused", 1).is_none());
    }
}
