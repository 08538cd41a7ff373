//! The arguments of `orlop bench members`, and its run.

use super::report::Report;
use super::run::{Bench, Way};
use super::tool::Tool;
use crate::drive::{Load, Span};
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::orlop_program;
use crate::workload::Workload;
use playground::args::{MemberArgs, time};
use playground::cli::start_guard;
use playground::cluster::etcd_program;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Members, if not told otherwise.
const MEMBERS: usize = 3;

/// What to measure on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Update random keys.
    Put,
    /// Read one random key, linearizably.
    Range,
    /// kube-apiserver's update: put if the mod revision is the expected one.
    Txn,
}

/// How to call the members, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Compared {
    /// Connections spread over all members, as etcd's client spreads its calls.
    RoundRobin,
    /// Through `orlop proxy`, to the one that leads.
    Proxy,
    /// Straight to the one that leads: the best that a proxy could do.
    Leader,
    /// Each member by itself.
    Each,
}

/// A program that puts load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LoadTool {
    /// This program.
    Orlop,
    /// `benchmark` of etcd's repository, built once with Go and cached.
    Etcd,
}

/// Arguments of `orlop bench members`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[arg(value_enum, default_value = "put")]
    workload: What,

    #[command(flatten)]
    members: MemberArgs,

    /// Ways to call the members, measured in turn; ratios are to the first.
    #[arg(
        long,
        value_enum,
        value_name = "WAYS",
        value_delimiter = ',',
        default_value = "round-robin,proxy"
    )]
    compare: Vec<Compared>,

    /// Who puts the load.
    #[arg(long, value_enum, default_value = "orlop")]
    load_tool: LoadTool,

    /// Requests of a run of etcd's load tool, which knows no length of time.
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: u64,

    /// How often to measure each; medians are shown.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Length of a measured span.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    duration: Duration,

    /// Load before it that does not count.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    warmup: Duration,

    /// TCP connections.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,

    /// Operations in flight over all connections.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,

    /// Keys, all written before anything is measured.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: u32,

    /// Length of a value.
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    value_bytes: u32,

    /// One more flag for each member; may be repeated.
    #[arg(long = "store-arg", value_name = "FLAG", allow_hyphen_values = true)]
    store_args: Vec<String>,

    /// etcd's executable; otherwise the pinned one.
    #[arg(long, value_name = "FILE")]
    etcd_bin: Option<PathBuf>,

    /// The orlop whose proxy is measured; otherwise this one.
    #[arg(long, value_name = "FILE")]
    orlop_bin: Option<PathBuf>,

    /// Where the members' data goes; removed at the end.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Also write the results, rounds and medians, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs what the arguments ask for: results on stdout, progress and errors on stderr.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop bench members: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(args: &Args) -> Result<(), Error> {
    let load = args.load()?;
    let orlop = orlop_program(args.orlop_bin.as_deref())?;
    if args.compare.contains(&Compared::Proxy) {
        playground::proxy::check(&orlop)?;
    }
    let guard = start_guard()?;
    let etcd = etcd_program(args.etcd_bin.as_deref(), &mut |line| eprintln!("{line}"))?;
    let tool = match args.load_tool {
        LoadTool::Orlop => None,
        LoadTool::Etcd => Some(args.tool()?),
    };
    let members = args.members.members().unwrap_or(MEMBERS);
    let mut setups = args.members.setups(&etcd, members)?;
    for setup in &mut setups {
        setup.flags.extend(args.store_args.iter().cloned());
        setup.flags.push("--log-level=warn".into());
    }
    let mut bench = Bench {
        ways: args.ways(members),
        load,
        span: Span {
            warmup: args.warmup,
            duration: args.duration,
            requests: None,
        },
        rounds: args.rounds.into(),
        tool,
        orlop,
        dir: std::path::absolute(&args.dir).map_err(Error::file(&args.dir))?,
        interrupt: Interrupt::on_signals()?,
        guard,
    };
    let mut report = Report::new(&bench.dir)?;
    let mut measured = Ok(());
    for setup in setups {
        measured = bench.measure(setup, &mut report);
        if measured.is_err() {
            break;
        }
    }
    // What was measured until something ended it is told too.
    if measured.is_ok() || !report.rows.is_empty() {
        println!("{report}");
        if let Some(path) = &args.json {
            std::fs::write(path, report.to_json()?).map_err(Error::file(path))?;
        }
    }
    measured
}

impl Args {
    fn tool(&self) -> Result<Tool, Error> {
        if self.workload != What::Put {
            return Err(Error::Argument(
                "--load-tool etcd is for put; the others are measured by this program".into(),
            ));
        }
        let set = playground::bins::set("etcd-benchmark")?;
        let dir = set.build(&mut |line| eprintln!("{line}"))?;
        Ok(Tool {
            program: dir.join("benchmark"),
            requests: self.requests,
        })
    }

    fn ways(&self, members: usize) -> Vec<Way> {
        let mut ways = Vec::new();
        for compared in &self.compare {
            match compared {
                Compared::RoundRobin => ways.push(Way::RoundRobin),
                Compared::Proxy => ways.push(Way::Proxy),
                Compared::Leader => ways.push(Way::Leader),
                Compared::Each => ways.extend((0..members).map(Way::Member)),
            }
        }
        ways
    }

    fn load(&self) -> Result<Load, Error> {
        if self.connections > self.in_flight {
            return Err(Error::Argument(format!(
                "{} connections for {} operations in flight would leave some without any: use fewer --connections or more --in-flight",
                self.connections, self.in_flight
            )));
        }
        if self.keys < u32::from(self.in_flight) {
            return Err(Error::Argument(
                "each operation in flight needs keys of its own: --keys is less than --in-flight"
                    .into(),
            ));
        }
        Ok(Load {
            workload: match self.workload {
                What::Put => Workload::Put,
                What::Range => Workload::Range,
                What::Txn => Workload::Txn,
            },
            connections: self.connections.into(),
            in_flight: self.in_flight.into(),
            client_threads: 1,
            keys: self.keys as usize,
            key_bytes: 32,
            value_bytes: self.value_bytes as usize,
            watchers: 0,
            watch_rate: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_what_was_asked_for() {
        let args: Args = crate::cli::parsed("members").unwrap();
        assert_eq!(args.ways(3), [Way::RoundRobin, Way::Proxy]);
        assert!(args.load().is_ok());
        let args: Args = crate::cli::parsed("members range --compare leader,each").unwrap();
        assert_eq!(args.ways(2), [Way::Leader, Way::Member(0), Way::Member(1)]);
        let args: Args = crate::cli::parsed("members --in-flight 5").unwrap();
        assert!(args.load().is_err());
    }
}
