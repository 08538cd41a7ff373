//! `orlop forecast`: how well each member of an etcd cluster would lead it.

use crate::etcd_cluster::Reached;
use crate::failure::say;
use crate::forecast_generate;
use crate::forecast_status;
use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;
use clap::{CommandFactory, Subcommand, error::ErrorKind};
use forecast::admin::Admin;
use forecast::collect::{Collector, Source};
use forecast::dataset::Writer;
use forecast::decide::Rule;
use forecast::guard;
use forecast::run::{Forecast, Settings};
use forecast::schema::{Row, Truth};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use telemetry::Notify;
use upstream::{Client, Endpoint, Routes};

pub(crate) type Failed = Box<dyn std::error::Error>;

/// How long a command waits for the cluster.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `orlop forecast`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch a cluster, and say what each member would cost as the leader; with --act, have the
    /// best one lead.
    Run(Run),
    /// Say what a running forecast thinks.
    Status(forecast_status::Args),
    /// Look for a few seconds whether a cluster is one that a forecast may act on.
    Check(Check),
    /// Keep all actors of a cluster from moving the lead, until `resume`.
    Stop(Keys),
    /// Let actors move the lead again, also after they have given up.
    Resume(Keys),
    /// Record what is known of the members into a data set (CSV).
    Collect(Collect),
    /// Start an etcd of three members on this machine, put them into states drawn at random, and
    /// record what is seen with what was done: a data set to learn from.
    Generate(forecast_generate::Args),
}

#[derive(clap::Args)]
struct Cluster {
    /// The members of the etcd cluster, https://HOST:2379, separated by commas.
    #[arg(long, env = "ORLOP_FORECAST_ENDPOINTS", value_name = "URLS")]
    endpoints: Option<String>,
    /// Verify the members by this CA bundle (PEM).
    #[arg(long, env = "ORLOP_FORECAST_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Identify there by this client certificate (PEM).
    #[arg(long, env = "ORLOP_FORECAST_CERT", value_name = "FILE", requires_all = ["key", "cacert"])]
    cert: Option<PathBuf>,
    /// The client certificate's key (PEM).
    #[arg(
        long,
        env = "ORLOP_FORECAST_KEY",
        value_name = "FILE",
        requires = "cert"
    )]
    key: Option<PathBuf>,
    /// The user to be, where the cluster has auth enabled: NAME or NAME:PASSWORD.
    #[arg(long, env = "ORLOP_FORECAST_USER", value_name = "NAME[:PASSWORD]")]
    user: Option<String>,
    /// That user's password, if --user does not have it.
    #[arg(
        long,
        env = "ORLOP_FORECAST_PASSWORD",
        requires = "user",
        hide_env_values = true
    )]
    password: Option<String>,
}

impl Cluster {
    fn settings(&self) -> Result<upstream::Settings, String> {
        Reached {
            endpoints: self.endpoints.as_deref(),
            cacert: self.cacert.as_deref(),
            cert: self.cert.as_deref(),
            key: self.key.as_deref(),
            user: self.user.as_deref(),
            password: self.password.as_deref(),
        }
        .settings()
    }
}

#[derive(clap::Args)]
struct Measure {
    #[command(flatten)]
    cluster: Cluster,
    /// Where the members serve /metrics, if not on their client URLs, separated by commas. Whose
    /// a page is, the page says.
    #[arg(long, env = "ORLOP_FORECAST_METRICS_ENDPOINTS", value_name = "URLS")]
    metrics_endpoints: Option<String>,
    /// Milliseconds from one sample of a member to the next.
    #[arg(long, env = "ORLOP_FORECAST_INTERVAL_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(200..=60_000))]
    interval_ms: u64,
    /// Reads of each kind through each member an interval.
    #[arg(long, env = "ORLOP_FORECAST_PROBES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    probes: u32,
}

impl Measure {
    fn source(&self) -> Result<Source, String> {
        let interval = Duration::from_millis(self.interval_ms);
        let mut source = Source::new(self.cluster.settings()?, interval);
        source.probes = self.probes;
        if let Some(urls) = &self.metrics_endpoints {
            source.metrics = Endpoint::list(urls).map_err(|e| e.to_string())?;
        }
        Ok(source)
    }
}

#[derive(clap::Args)]
pub(crate) struct Log {
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_FORECAST_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_FORECAST_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    measure: Measure,
    /// Move the lead to the best member. Without this it only says what it would do.
    #[arg(long, env = "ORLOP_FORECAST_ACT")]
    act: bool,
    /// Tell actors of this process's ways to the members, without acting: a key in the cluster.
    #[arg(long, env = "ORLOP_FORECAST_TELL")]
    tell: bool,
    /// How much its ways count beside those of others.
    #[arg(long, env = "ORLOP_FORECAST_WEIGHT", default_value_t = 1.0)]
    weight: f64,
    /// Milliseconds of commit cost that a move must gain.
    #[arg(long, env = "ORLOP_FORECAST_MARGIN_MS", default_value_t = 5.0)]
    margin_ms: f64,
    /// Percent of the commit cost that a move must gain.
    #[arg(long, env = "ORLOP_FORECAST_MARGIN_PERCENT", default_value_t = 30.0)]
    margin_percent: f64,
    /// Samples in a row in which another member must be better.
    #[arg(long, env = "ORLOP_FORECAST_SAMPLES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    samples: u32,
    /// Seconds after a change of the leader, whoever made it, in which it is not moved.
    #[arg(long, env = "ORLOP_FORECAST_COOL_DOWN_S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    cool_down_s: u64,
    /// Moves in a row that may be of no use before it gives up.
    #[arg(long, env = "ORLOP_FORECAST_FUTILE_MOVES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    futile_moves: u32,
    /// Where actors have their keys in the cluster.
    #[arg(long, env = "ORLOP_FORECAST_PREFIX", default_value = guard::PREFIX)]
    prefix: String,
    /// Metrics, probes and status, over plain HTTP: HOST:PORT, several separated by commas.
    #[arg(
        long,
        env = "ORLOP_FORECAST_METRICS_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2384"
    )]
    metrics_addr: Vec<String>,
    #[command(flatten)]
    log: Log,
}

#[derive(clap::Args)]
struct Check {
    #[command(flatten)]
    measure: Measure,
    /// Check what --act needs too: writes a key and deletes it.
    #[arg(long)]
    act: bool,
    /// Where actors have their keys in the cluster.
    #[arg(long, env = "ORLOP_FORECAST_PREFIX", default_value = guard::PREFIX)]
    prefix: String,
}

#[derive(clap::Args)]
struct Keys {
    #[command(flatten)]
    cluster: Cluster,
    /// Where actors have their keys in the cluster.
    #[arg(long, env = "ORLOP_FORECAST_PREFIX", default_value = guard::PREFIX)]
    prefix: String,
}

#[derive(clap::Args)]
struct Collect {
    #[command(flatten)]
    measure: Measure,
    /// The data set, a file that is not there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Seconds after which it ends; otherwise a signal ends it.
    #[arg(long)]
    duration_s: Option<u64>,
    /// The name of the run in the data set.
    #[arg(long, default_value = "collected")]
    run: String,
    #[command(flatten)]
    log: Log,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Status(args) => return forecast_status::run(args),
        Command::Run(args) => logged(&args.log, |dropped| watch(args, dropped)),
        Command::Collect(args) => logged(&args.log, |_| collect(args)),
        Command::Generate(args) => {
            let periods = usable(args.plan());
            logged(&args.log, |_| forecast_generate::run(args, &periods))
        }
        Command::Check(args) => check(args),
        Command::Stop(args) => keys(
            args,
            |prefix| guard::set(prefix, "stop", "stopped by an operator", 0),
            "stopped: no actor moves the lead until `orlop forecast resume`",
        ),
        Command::Resume(args) => keys(args, guard::resume, "actors may move the lead"),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("orlop forecast: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A command line that cannot be used ends here.
fn usable<T>(value: Result<T, String>) -> T {
    value.unwrap_or_else(|text| {
        crate::Cli::command()
            .error(
                ErrorKind::ValueValidation,
                format!("orlop forecast: {text}"),
            )
            .exit()
    })
}

fn logged(
    log: &Log,
    work: impl FnOnce(telemetry::LogCounters) -> Result<(), Failed>,
) -> Result<ExitCode, Failed> {
    let guard = telemetry::init(&log_options(log.log_level, log.log_format))?;
    let code = match work(guard.counters()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: telemetry::FATAL, error = %error, "failed");
            ExitCode::FAILURE
        }
    };
    drop(guard);
    Ok(code)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

impl Run {
    fn settings(&self) -> Result<Settings, String> {
        let percent = self.margin_percent;
        if !(0.0..100.0).contains(&percent) || self.margin_ms.is_nan() || self.margin_ms < 0.0 {
            return Err("the margin must be 0 ms or more, and from 0 to below 100 percent".into());
        }
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            return Err("the weight must be above 0".into());
        }
        if !self.prefix.ends_with('/') {
            return Err(format!("--prefix {:?} must end in a slash", self.prefix));
        }
        let mut settings = Settings::new(self.measure.source()?);
        settings.rule = Rule {
            margin_us: self.margin_ms * 1e3,
            margin_part: percent / 100.0,
            samples: self.samples,
            cool_down_ms: self.cool_down_s * 1_000,
            futile_moves: self.futile_moves,
            ..Rule::default()
        };
        settings.act = self.act;
        settings.tell = self.tell;
        settings.weight = self.weight;
        settings.prefix.clone_from(&self.prefix);
        Ok(settings)
    }
}

fn watch(args: &Run, counters: telemetry::LogCounters) -> Result<(), Failed> {
    let settings = usable(args.settings());
    runtime()?.block_on(async {
        let mut signals = StopSignals::new()?;
        if settings.act {
            // An actor on a cluster that it does not fit would be worse than none.
            let looking = forecast::check::check(settings.source.clone(), &settings.prefix, true);
            let found = tokio::select! {
                found = looking => found?,
                _ = signals.wait() => return Ok(()),
            };
            if !found.misfits.is_empty() {
                let why = found.misfits.join("; ");
                return Err(format!("--act is refused, for the cluster does not fit: {why}").into());
            }
        }
        let running = Forecast::start(settings)?;
        let dropped = move || counters.dropped_lines();
        let version = env!("CARGO_PKG_VERSION");
        let admin = Admin::start(running.thoughts.clone(), &args.metrics_addr, version, dropped)?;
        for url in admin.urls() {
            tracing::info!(%url, act = args.act, "serving /metrics, /healthz, /readyz and /v1/status");
        }
        if let Err(error) = telemetry::notify(Notify::Ready) {
            tracing::warn!(%error, "cannot tell the service manager that it is ready");
        }
        let name = signals.wait().await;
        tracing::info!(signal = name, "received signal; shutting down");
        let _ = telemetry::notify(Notify::Stopping);
        tokio::select! {
            () = running.stop() => {}
            _ = signals.wait() => tracing::warn!("received another signal; the actor's lease ends by itself"),
        }
        Ok(())
    })
}

fn check(args: &Check) -> Result<ExitCode, Failed> {
    let source = usable(args.measure.source());
    let found = runtime()?.block_on(forecast::check::check(source, &args.prefix, args.act))?;
    for line in &found.good {
        say!("ok      {line}");
    }
    for line in &found.misfits {
        say!("misfit  {line}");
    }
    Ok(match found.misfits.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn keys(
    args: &Keys,
    txn: impl FnOnce(&str) -> etcd_api::etcdserverpb::TxnRequest,
    said: &str,
) -> Result<ExitCode, Failed> {
    let cluster = usable(args.cluster.settings());
    runtime()?.block_on(async {
        let client = Client::new(&cluster, Routes::default())?;
        client.txn(txn(&args.prefix), PATIENCE).await?;
        say!("{said}");
        Ok(ExitCode::SUCCESS)
    })
}

fn collect(args: &Collect) -> Result<(), Failed> {
    let source = usable(args.measure.source());
    let until = args.duration_s.map(Duration::from_secs);
    let mut file = Writer::create(&args.out)?;
    runtime()?.block_on(async {
        let mut signals = StopSignals::new()?;
        let mut collector = Collector::new(source)?;
        let began = Instant::now();
        let mut rows = 0u64;
        while until.is_none_or(|until| began.elapsed() < until) {
            let round = tokio::select! {
                round = collector.round() => round,
                _ = signals.wait() => break,
            };
            for missing in round.missing {
                tracing::warn!("{missing}");
            }
            for sample in round.samples {
                file.add(&Row {
                    run: args.run.clone(),
                    period: 0,
                    since_ms: began.elapsed().as_millis() as u64,
                    truth: Truth::default(),
                    sample,
                })?;
                rows += 1;
            }
            file.flush()?;
        }
        tracing::info!(rows, file = %args.out.display(), "recorded");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Run,
    }

    fn settings(line: &[&str]) -> Result<Settings, String> {
        let line = ["run", "--endpoints=http://a:1"].iter().chain(line);
        let cli = Cli::try_parse_from(line).map_err(|e| e.to_string())?;
        cli.run.settings()
    }

    #[test]
    fn the_defaults_are_the_librarys() {
        let own = settings(&[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(own.rule, Rule::default());
        assert!(!own.act && !own.tell);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flag in [
            "--margin-percent=100",
            "--margin-ms=-1",
            "--margin-ms=nan",
            "--weight=0",
            "--prefix=/a",
            "--interval-ms=10",
            "--cool-down-s=0",
            "--samples=0",
        ] {
            assert!(settings(&[flag]).is_err(), "{flag}");
        }
    }
}
