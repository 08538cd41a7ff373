//! The arguments of `orlop bench kube`, and its run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use playground::args::MemberArgs;
use playground::cli::start_guard;
use playground::cluster::{Programs, etcd_program};
use playground::store::Kind;
use tokio::task::LocalSet;

use super::Result;
use super::limit::Search;
use super::load::Shape;
use super::manifest::Manifest;
use super::progress::Progress;
use super::report::Report;
use super::run::Bench;
use super::start::{StartBench, StartReport, Way};
use super::stores::{self, StoreSpec};
use crate::{Error, Interrupt, orlop_program};

/// Compared, if nothing is said.
const DEFAULT_STORE: &str = "strict";
/// Hollow nodes, if nothing is said.
const DEFAULT_NODES: u32 = 20;
/// The same for `--mode start`: as the slides had them, about.
const START_NODES: u32 = 3;
/// Members for `--mode start`.
const START_MEMBERS: usize = 3;

/// Load patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// One Deployment every interval.
    Burst,
    /// A number of Deployments, then one deleted and one created in turn.
    Steady,
    /// How long a control plane takes to start on an empty store, and a large install on it.
    Start,
}

/// Arguments of `orlop bench kube`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measure this cluster's apiserver, in a namespace that is made and removed; otherwise a
    /// control plane of its own for each run.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["compare", "idle", "find_limit", "disk_delay", "nodes"])]
    kubeconfig: Option<PathBuf>,

    /// Stores, measured in turn: etcd, etcd-3 (three members), strict, balanced, ephemeral
    /// (orlop's profiles), shared (orlop with three shards); with `-ram` behind the name the data
    /// is in memory; otherwise strict. For `--mode start`: etcd
    /// (the apiserver has all members), proxy (`orlop proxy` before them), leader (the apiserver
    /// has the one that leads), orlop; otherwise etcd,proxy,orlop.
    #[arg(long, value_name = "STORES", value_delimiter = ',')]
    compare: Vec<String>,

    /// The load.
    #[arg(long, value_enum, default_value = "burst")]
    mode: Mode,

    /// Deployments that exist before a steady state begins.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    initial: u32,

    /// Time from one request to the next; several are measured one after the other.
    #[arg(long, value_name = "TIMES", value_delimiter = ',', default_value = "50ms", value_parser = time)]
    interval: Vec<Duration>,

    /// Length of the load.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    duration: Duration,

    /// How long everything may take to be done after it; then the run has failed.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    settle: Duration,

    /// Deployments made before anything is measured.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    warmup: u32,

    /// How often to measure each; medians are shown.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,

    /// A Deployment with ${INDEX} in its name; otherwise the thesis's.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Search for the shortest interval at which latency from the intended time to bound
    /// stays within --limit at the 99th percentile and does not grow.
    #[arg(long, conflicts_with_all = ["idle", "interval"])]
    find_limit: bool,

    /// For --find-limit.
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = time)]
    limit: Duration,

    /// For --find-limit: a shorter interval is not tried.
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = time)]
    shortest: Duration,

    /// For --find-limit: a longer one neither.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = time)]
    longest: Duration,

    /// Measure what an idle control plane and its nodes' heartbeats cost the disk, for
    /// --duration.
    #[arg(long)]
    idle: bool,

    /// Make each sync of the store take this much longer, and say what that adds to a put.
    #[arg(long, value_name = "TIME", value_parser = time)]
    disk_delay: Option<Duration>,

    #[command(flatten)]
    members: MemberArgs,

    /// Installs at once, for --mode start.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    installs: u8,

    /// Hollow nodes; otherwise 20, and 3 for --mode start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=5000))]
    nodes: Option<u32>,

    /// Directory of the Kubernetes programs; otherwise the pinned ones.
    #[arg(long, value_name = "DIR")]
    kube_bin: Option<PathBuf>,

    /// etcd's executable; otherwise the pinned one.
    #[arg(long, value_name = "FILE")]
    etcd_bin: Option<PathBuf>,

    /// orlop's executable; otherwise this one.
    #[arg(long, value_name = "FILE")]
    orlop_bin: Option<PathBuf>,

    /// Where the stores' data goes, on the disk that is to be measured; removed at the end.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Also write the results, every run, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Also write a page with tables and plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs what the arguments ask for: results on stdout, progress and errors on stderr.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let failures = match args.mode {
        Mode::Start => args.check_start().and_then(|()| start(args)),
        Mode::Burst | Mode::Steady => try_run(args).map(|report| report.failures),
    };
    match failures {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\norlop bench kube: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A time of at least 1 ms and at most a day, with its unit.
fn time(text: &str) -> std::result::Result<Duration, String> {
    let time = playground::args::time(text)?;
    if time < Duration::from_millis(1) {
        return Err(format!("`{text}` is shorter than 1ms"));
    }
    Ok(time)
}

/// Runs `--mode start`: its failures.
fn start(args: &Args) -> Result<Vec<String>> {
    let orlop = orlop_program(args.orlop_bin.as_deref())?;
    let ways: Vec<Way> = match args.compare.is_empty() {
        true => vec![Way::Etcd, Way::Proxy, Way::Orlop],
        false => args
            .compare
            .iter()
            .map(|n| Way::parse(n))
            .collect::<Result<_>>()?,
    };
    if ways.contains(&Way::Proxy) {
        playground::proxy::check(&orlop)?;
    }
    let mut say = |line: &str| eprintln!("{line}");
    let guard = start_guard()?;
    let etcd = etcd_program(args.etcd_bin.as_deref(), &mut say)?;
    let setups = args
        .members
        .setups(&etcd, args.members.members().unwrap_or(START_MEMBERS))?;
    let nodes = args.nodes.unwrap_or(START_NODES);
    let mut bench = StartBench {
        programs: Programs::find(args.kube_bin.as_deref(), nodes, &mut say)?,
        nodes,
        installs: args.installs.into(),
        dir: std::path::absolute(&args.dir).map_err(Error::file(&args.dir))?,
        orlop,
        interrupt: Interrupt::on_signals()?,
        guard,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("starting a runtime"))?;
    let (mut report, mut progress) = (
        StartReport::new(nodes, args.installs.into()),
        Progress::new(),
    );
    let measured = LocalSet::new().block_on(&runtime, async {
        for setup in &setups {
            for round in 1..=usize::from(args.rounds) {
                for turn in 0..ways.len() {
                    // Another one begins in each round.
                    let Some(way) = ways.get((turn + round - 1) % ways.len()) else {
                        continue;
                    };
                    let run = bench.run(*way, round, setup, &mut progress).await;
                    report.take(run, &mut progress)?;
                }
            }
        }
        Ok(())
    });
    progress.done("");
    if measured.is_ok() || !report.is_empty() {
        println!("{report}");
        if let Some(path) = &args.json {
            write(path, &report.to_json()?)?;
        }
    }
    measured.map(|()| report.failures)
}

fn try_run(args: &Args) -> Result<Report> {
    if args.members.is_given() || args.installs != 1 {
        return Err(Error::Argument(
            "members, their delays and --installs are for --mode start".into(),
        ));
    }
    if args.find_limit && args.shortest >= args.longest {
        return Err(Error::Argument(
            "--shortest is not shorter than --longest".into(),
        ));
    }
    if args
        .disk_delay
        .is_some_and(|delay| delay > Duration::from_secs(1))
    {
        return Err(Error::Argument("--disk-delay may be 1s at most".into()));
    }
    let manifest = match &args.manifest {
        Some(path) => Manifest::read(path)?,
        None => Manifest::thesis()?,
    };
    let nodes = args.nodes.unwrap_or(DEFAULT_NODES);
    let mut say = |line: &str| eprintln!("{line}");
    // A signal ends this process while it builds, and the guard then ends the compiler.
    let guard = start_guard()?;
    let mut specs = Vec::new();
    let programs = if args.kubeconfig.is_some() {
        Programs::none()
    } else {
        let stores = stores::Programs {
            etcd: args.etcd_bin.clone(),
            orlop: args.orlop_bin.clone(),
        };
        let default = [DEFAULT_STORE.to_owned()];
        let names = match args.compare.is_empty() {
            true => &default[..],
            false => &args.compare,
        };
        for name in names {
            specs.push(StoreSpec::parse(name, &stores, &mut say)?);
        }
        if args.disk_delay.is_some() && specs.iter().any(|spec| spec.kind() == Kind::Etcd) {
            stores::check_tracer()?;
        }
        Programs::find(args.kube_bin.as_deref(), nodes, &mut say)?
    };
    let interrupt = Interrupt::on_signals()?;
    let mut bench = Bench {
        programs,
        nodes,
        dir: std::path::absolute(&args.dir).map_err(Error::file(&args.dir))?,
        disk_delay: args.disk_delay.unwrap_or_default(),
        manifest,
        interrupt,
        progress: Progress::new(),
        guard,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("starting a runtime"))?;
    let mut report = Report::new(args.kubeconfig.is_none().then_some(nodes));
    let measuring = args.measure(&mut bench, &specs, &mut report);
    let measured = LocalSet::new().block_on(&runtime, measuring);
    bench.progress.done("");
    // What was measured until something ended it is told too.
    if measured.is_ok() || !report.is_empty() {
        println!("{report}");
        if let Some(path) = &args.json {
            write(path, &report.to_json()?)?;
        }
        if let Some(path) = &args.html {
            write(path, &super::html::page(&report))?;
        }
    }
    measured.map(|()| report)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::file(path))
}

impl Args {
    /// Refuses what has no meaning for `--mode start`.
    fn check_start(&self) -> Result<()> {
        let given = [
            ("--kubeconfig", self.kubeconfig.is_some()),
            ("--find-limit", self.find_limit),
            ("--idle", self.idle),
            ("--disk-delay", self.disk_delay.is_some()),
            ("--html", self.html.is_some()),
            ("--manifest", self.manifest.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(Error::Argument(format!("{name} is not for --mode start"))),
            None => Ok(()),
        }
    }

    fn shape(&self, interval: Duration) -> Shape {
        Shape {
            initial: match self.mode {
                Mode::Burst | Mode::Start => None,
                Mode::Steady => Some(self.initial),
            },
            interval,
            duration: self.duration,
            settle: self.settle,
            warmup: self.warmup,
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        self.interval.iter().map(|i| self.shape(*i)).collect()
    }

    async fn measure(
        &self,
        bench: &mut Bench,
        specs: &[StoreSpec],
        report: &mut Report,
    ) -> Result<()> {
        if self.disk_delay.is_some() {
            for spec in specs {
                report.delays.push(bench.measure_delay(spec).await?);
            }
        }
        for round in 1..=usize::from(self.rounds) {
            if let Some(kubeconfig) = &self.kubeconfig {
                for shape in self.shapes() {
                    let run = bench.load_on(kubeconfig, round, &shape).await;
                    report.take(run, &mut bench.progress)?;
                }
                continue;
            }
            for turn in 0..specs.len() {
                // Another one begins in each round.
                let Some(spec) = specs.get((turn + round - 1) % specs.len()) else {
                    continue;
                };
                if self.idle {
                    let idle = bench.idle(spec, self.duration).await?;
                    report.idle.push(idle);
                } else if self.find_limit {
                    let search = Search {
                        shortest: self.shortest,
                        longest: self.longest,
                        limit: self.limit,
                    };
                    let shape = self.shape(self.longest);
                    let found = bench.find_limit(spec, &shape, &search).await?;
                    report.limits.push(found);
                } else {
                    for shape in self.shapes() {
                        let run = bench.load(spec, round, &shape).await;
                        report.take(run, &mut bench.progress)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        crate::cli::parsed(line)
    }

    #[test]
    fn shapes_are_what_was_asked_for() {
        let args = parse("kube --mode steady --initial 7 --interval 20ms,16ms").unwrap();
        let shapes = args.shapes();
        assert_eq!(shapes.len(), 2);
        assert_eq!(shapes[1].interval, Duration::from_millis(16));
        assert_eq!((shapes[0].initial, shapes[0].mode()), (Some(7), "steady"));
        assert_eq!(parse("kube").unwrap().shapes()[0].mode(), "burst");
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for line in [
            "kube --kubeconfig x --disk-delay 8ms",
            "kube --kubeconfig x --idle",
            "kube --find-limit --interval 50ms",
            "kube --interval 0ms",
            "kube --duration 30",
            "kube --rounds 0",
            "kube --mode start --installs 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let args = parse("kube --find-limit --shortest 1s").unwrap();
        assert!(
            try_run(&args)
                .err()
                .unwrap()
                .to_string()
                .contains("--shortest")
        );
    }

    #[test]
    fn what_is_for_one_mode_is_refused_in_others() {
        let start = parse("kube --mode start --html x").unwrap();
        assert!(start.check_start().is_err());
        let plain = parse("kube --mode start --member-delay 0ms,45ms --installs 2").unwrap();
        assert!(plain.check_start().is_ok());
        for line in ["kube --members 3", "kube --installs 2", "kube --leader 1"] {
            let refused = try_run(&parse(line).unwrap()).err().unwrap();
            assert!(refused.to_string().contains("--mode start"), "{line}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("12.5ms"), Ok(Duration::from_micros(12_500)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "5", "ms", "25h", "0.1ms", "-1s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
