//! The arguments of `orlop bench`, and its run.

use crate::compare::{self, Plan};
use crate::drive::{Load, Span};
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::orlop_program;
use crate::report::Report;
use crate::server::Program;
use crate::workload::Workload;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What to measure on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Update random keys.
    Put,
    /// Read one random key, linearizably.
    Range,
    /// kube-apiserver's update: put if the mod revision is the expected one.
    Txn,
    /// Fan events out to watchers; an operation is an event delivered to one watcher.
    Watch,
    /// All of these, one after the other.
    All,
}

/// The server to start beside this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Against {
    /// etcd.
    Etcd,
}

/// Arguments of `orlop bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    workload: What,

    /// Servers to measure, without TLS; connections are spread over them.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "URL",
        default_value = "http://127.0.0.1:2379"
    )]
    endpoints: Vec<String>,

    /// Process of the server, to see its use of the processor and of memory.
    #[arg(long, value_name = "PID", conflicts_with = "against")]
    server_pid: Option<u32>,

    /// Start this server and orlop in turn, each with an empty data directory on the same
    /// disk, and print ratios.
    #[arg(long, value_enum, conflicts_with = "endpoints")]
    against: Option<Against>,

    /// etcd's executable; otherwise the first on PATH, or the pinned one.
    #[arg(long, value_name = "FILE", requires = "against")]
    etcd_bin: Option<PathBuf>,

    /// orlop's executable; otherwise this one.
    #[arg(long, value_name = "FILE", requires = "against")]
    orlop_bin: Option<PathBuf>,

    /// Where the data directories go; they are removed at the end.
    #[arg(long, value_name = "DIR", default_value = ".", requires = "against")]
    dir: PathBuf,

    /// Start both servers with --unsafe-no-fsync, to see them apart from the disk.
    #[arg(long, requires = "against")]
    no_fsync: bool,

    /// One more flag for both servers; may be repeated.
    #[arg(
        long = "server-arg",
        value_name = "FLAG",
        allow_hyphen_values = true,
        requires = "against"
    )]
    server_args: Vec<String>,

    /// How often to measure each; medians are shown.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Length of a measured span: 10s, 500ms, 2m.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,

    /// Load before it that does not count.
    #[arg(long, default_value = "2s", value_parser = duration)]
    warmup: Duration,

    /// Measure until so many operations are done, instead of a time.
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    requests: Option<u64>,

    /// TCP connections.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,

    /// Operations in flight over all connections.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,

    /// Client threads; otherwise one for every two cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    client_threads: Option<u16>,

    /// Keys, all written before anything is measured.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,

    /// Length of a key (at least what its number needs).
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    key_bytes: u16,

    /// Length of a value.
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(8..=16_777_216))]
    value_bytes: u32,

    /// Watchers, for `watch`.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    watchers: u32,

    /// Puts a second, for `watch`; 0: the next one when all watchers have the last.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    watch_rate: u32,

    /// Also write the results, rounds and medians, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs what the arguments ask for: results on stdout, progress and errors on stderr.
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(args: &Args) -> Result<(), Error> {
    let plan = args.plan()?;
    let interrupt = Interrupt::on_signals()?;
    let mut progress = |line: &str| eprintln!("{line}");
    let report = match args.against {
        Some(Against::Etcd) => {
            let programs = args.programs()?;
            compare::against(&programs, &args.dir, &plan, &interrupt, &mut progress)?
        }
        None => {
            let endpoints: Vec<String> = args
                .endpoints
                .iter()
                .map(|url| authority(url))
                .collect::<Result<_, _>>()?;
            compare::endpoint(
                &endpoints,
                args.server_pid,
                &plan,
                &interrupt,
                &mut progress,
            )?
        }
    };
    println!("{report}");
    match &args.json {
        Some(path) => write_json(&report, path),
        None => Ok(()),
    }
}

fn write_json(report: &Report, path: &Path) -> Result<(), Error> {
    let json = report
        .to_json()
        .map_err(|error| Error::Argument(error.to_string()))?;
    std::fs::write(path, json + "\n").map_err(Error::file(path))
}

impl Args {
    fn plan(&self) -> Result<Plan, Error> {
        let workloads: &[Workload] = match self.workload {
            What::Put => &[Workload::Put],
            What::Range => &[Workload::Range],
            What::Txn => &[Workload::Txn],
            What::Watch => &[Workload::Watch],
            What::All => &Workload::ALL,
        };
        if workloads.contains(&Workload::Txn) && self.keys < u32::from(self.in_flight) {
            return Err(Error::Argument(format!(
                "txn gives each of {} operations in flight keys of its own: --keys must be at least that",
                self.in_flight
            )));
        }
        if self.connections > self.in_flight {
            return Err(Error::Argument(format!(
                "{} connections for {} operations in flight would leave some without any: use fewer --connections or more --in-flight",
                self.connections, self.in_flight
            )));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let load = |workload: &Workload| Load {
            workload: *workload,
            connections: self.connections.into(),
            in_flight: self.in_flight.into(),
            client_threads: self
                .client_threads
                .map_or_else(|| (cores / 2).max(1), usize::from),
            keys: self.keys as usize,
            key_bytes: self.key_bytes.into(),
            value_bytes: self.value_bytes as usize,
            watchers: self.watchers as usize,
            watch_rate: self.watch_rate,
        };
        Ok(Plan {
            loads: workloads.iter().map(load).collect(),
            span: Span {
                warmup: self.warmup,
                duration: self.duration,
                requests: self.requests,
            },
            rounds: self.rounds.into(),
        })
    }

    fn programs(&self) -> Result<[Program; 2], Error> {
        let orlop = orlop_program(self.orlop_bin.as_deref())?;
        let etcd = self
            .etcd_bin
            .clone()
            .map_or_else(|| find_etcd(&orlop), Ok)?;
        let mut after = self.server_args.clone();
        if self.no_fsync {
            after.push("--unsafe-no-fsync".into());
        }
        let program = |name: &str, path, before: &[&str]| Program {
            name: name.into(),
            path,
            before: before.iter().map(ToString::to_string).collect(),
            after: after.clone(),
        };
        Ok([
            program("orlop", orlop, &["serve"]),
            program("etcd", etcd, &[]),
        ])
    }
}

/// A time with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no time: write 10s, 500ms or 2m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let ms = match unit {
        "ms" => number,
        "s" => number.saturating_mul(1_000),
        "m" => number.saturating_mul(60_000),
        _ => return Err(bad()),
    };
    if ms == 0 || ms > 3_600_000 {
        return Err(format!("`{text}` is not between 1ms and 60m"));
    }
    Ok(Duration::from_millis(ms))
}

/// Host and port of an endpoint.
fn authority(url: &str) -> Result<String, Error> {
    if url.starts_with("https://") || url.starts_with("unix") {
        return Err(Error::Argument(format!(
            "{url}: the benchmark speaks plain TCP only, without TLS"
        )));
    }
    let authority = url
        .strip_prefix("http://")
        .unwrap_or(url)
        .trim_end_matches('/');
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(authority.to_owned())
        }
        _ => Err(Error::Argument(format!(
            "{url}: an endpoint is http://HOST:PORT"
        ))),
    }
}

/// etcd on PATH (unless that is orlop under etcd's name), or the pinned one.
fn find_etcd(orlop: &Path) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let orlop = orlop.canonicalize().ok();
    let on_path = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file() && file.canonicalize().ok() != orlop);
    on_path.map_or_else(pinned_etcd, Ok)
}

/// The etcd that `e2e/build-bins` or a playground built.
fn pinned_etcd() -> Result<PathBuf, Error> {
    let none = |error: playground::Error| Error::NoEtcd(format!("not on PATH, and {error}"));
    Ok(playground::binaries("etcd").map_err(none)?.join("etcd"))
}

/// Arguments from a command line, for a test of them.
#[cfg(test)]
pub(crate) fn parsed<A: clap::Args>(line: &str) -> Result<A, clap::Error> {
    let command = A::augment_args(clap::Command::new("test"));
    A::from_arg_matches(&command.try_get_matches_from(line.split_whitespace())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        parsed(line)
    }

    #[test]
    fn defaults_are_the_comparison_of_the_documentation() {
        let plan = parse("bench --against etcd").unwrap().plan().unwrap();
        assert_eq!(plan.rounds, 3);
        assert_eq!(plan.loads.len(), 4);
        assert_eq!(
            (plan.loads[0].connections, plan.loads[0].in_flight),
            (10, 100)
        );
        assert_eq!(
            (plan.loads[0].keys, plan.loads[0].value_bytes),
            (10_000, 1024)
        );
        assert_eq!(plan.span.duration, Duration::from_secs(10));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for line in [
            "bench --against etcd --endpoints http://127.0.0.1:1",
            "bench --no-fsync",
            "bench --requests 5 --duration 1s",
            "bench fly",
            "bench --rounds 0",
            "bench --value-bytes 7",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("bench txn --keys 10").unwrap().plan().is_err());
        assert!(parse("bench put --in-flight 5").unwrap().plan().is_err());
        assert!(
            parse("bench put --in-flight 5 --connections 5 --keys 1")
                .unwrap()
                .plan()
                .is_ok()
        );
    }

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in [
            "",
            "10",
            "s",
            "0s",
            "-1s",
            "1h",
            "99999999999999999999s",
            "61m",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_need_a_port_and_no_tls() {
        assert_eq!(
            authority("http://127.0.0.1:2379/").unwrap(),
            "127.0.0.1:2379"
        );
        assert_eq!(authority("[::1]:1").unwrap(), "[::1]:1");
        for bad in ["https://a:1", "http://a", "unix:///x", "http://:1", ""] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }
}
