//! `orlop-fleet place`: the loop that decides on which nodes the pods of services are.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use election::Times;
use placer::pages::Pages;
use placer::prometheus::{AgentSeries, Prometheus, Queries, TrafficSeries};
use placer::run::{Loop, Options};
use placer::state::Settings;

use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;

/// A file of settings is no larger.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;

/// Arguments of `orlop-fleet place`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which cluster. Without it: KUBECONFIG, then ~/.kube/config, then the pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The Prometheus that scrapes the agents of `orlop-fleet latency` and knows the traffic.
    #[arg(long, env = "ORLOP_PLACE_PROMETHEUS", value_name = "URL")]
    prometheus: String,
    /// Query for requests that entered, by namespace, service and node. $window is replaced.
    #[arg(
        long,
        env = "ORLOP_PLACE_ENTERED_QUERY",
        value_name = "QUERY",
        default_value_t = Queries::default().entered
    )]
    entered_query: String,
    /// Query for requests that were served, by namespace, service and the pod's node.
    #[arg(
        long,
        env = "ORLOP_PLACE_SERVED_QUERY",
        value_name = "QUERY",
        default_value_t = Queries::default().served
    )]
    served_query: String,
    /// Query for the seconds that those took in their pods, summed, by the same labels.
    #[arg(
        long,
        env = "ORLOP_PLACE_SERVING_SECONDS_QUERY",
        value_name = "QUERY",
        default_value_t = Queries::default().serving_seconds
    )]
    serving_seconds_query: String,
    /// Only Seikas of this namespace.
    #[arg(long, env = "ORLOP_PLACE_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Seconds from one round to the next.
    #[arg(
        long,
        env = "ORLOP_PLACE_ROUND",
        default_value_t = 2.0,
        value_name = "SECONDS"
    )]
    round: f64,
    /// Seconds over which traffic is counted. Prometheus has to scrape at least twice in them.
    #[arg(
        long,
        env = "ORLOP_PLACE_WINDOW",
        default_value_t = 10.0,
        value_name = "SECONDS"
    )]
    window: f64,
    /// Seconds from one reading of round trips to the next.
    #[arg(
        long,
        env = "ORLOP_PLACE_LATENCY_PERIOD",
        default_value_t = 5.0,
        value_name = "SECONDS"
    )]
    latency_period: f64,
    /// Seconds after which round trips are too old to decide by.
    #[arg(
        long,
        env = "ORLOP_PLACE_MAX_AGE",
        default_value_t = 30.0,
        value_name = "SECONDS"
    )]
    max_age: f64,
    /// Seconds after which a node that has not made a wanted pod ready gets none ...
    #[arg(
        long,
        env = "ORLOP_PLACE_START_TIMEOUT",
        default_value_t = 120.0,
        value_name = "SECONDS"
    )]
    start_timeout: f64,
    /// ... and for how many seconds.
    #[arg(
        long,
        env = "ORLOP_PLACE_RETRY",
        default_value_t = 300.0,
        value_name = "SECONDS"
    )]
    retry: f64,
    /// Numbers of the decision, a JSON file; those that it does not name have their defaults.
    #[arg(long, env = "ORLOP_PLACE_SETTINGS", value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Namespace of the Lease by which those that run agree who acts.
    #[arg(
        long,
        env = "ORLOP_PLACE_LEASE_NAMESPACE",
        default_value = "orlop-fleet",
        value_name = "NAME"
    )]
    lease_namespace: String,
    /// Name of the Lease.
    #[arg(
        long,
        env = "ORLOP_PLACE_LEASE_NAME",
        default_value = "orlop-placement",
        value_name = "NAME"
    )]
    lease_name: String,
    /// Milliseconds after which another takes over from one that is silent.
    #[arg(long, env = "ORLOP_PLACE_LEASE_DURATION_MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(1_000..=600_000))]
    lease_duration_ms: u64,
    /// This process's name, as no other has it. Without it: POD_NAME, or the host's name and the
    /// process id.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// Metrics, probes of health and explanations, over plain HTTP; several separated by commas.
    #[arg(
        long,
        env = "ORLOP_PLACE_METRICS_ADDR",
        default_value = "127.0.0.1:2388",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    metrics_addr: Vec<String>,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_PLACE_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_PLACE_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

/// Why there is no loop.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Placer(#[from] placer::Error),
    #[error("no cluster is configured: {0}")]
    Cluster(String),
    #[error("cannot read the settings of {}: {why}", path.display())]
    Settings { path: PathBuf, why: String },
    #[error("--latency-period is {0}; it must be from 1 to 600 s")]
    LatencyPeriod(f64),
    #[error(transparent)]
    Log(#[from] telemetry::Error),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Runs it; the exit code is 1 after an error, which is printed.
pub(crate) fn run(args: &Args) -> ExitCode {
    match args.place() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop-fleet place: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings_of(path: &Path) -> Result<placement::Settings, Failure> {
    let failed = |why: String| Failure::Settings {
        path: path.to_owned(),
        why,
    };
    let file = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if file.len() > MAX_SETTINGS_BYTES {
        return Err(failed("it has more than 1 MiB".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

impl Args {
    fn options(&self) -> Result<Options, Failure> {
        let settings = Settings {
            placement: match &self.settings {
                Some(path) => settings_of(path)?,
                None => placement::Settings::default(),
            },
            round_s: self.round,
            window_s: self.window,
            max_age_s: self.max_age,
            start_timeout_s: self.start_timeout,
            retry_s: self.retry,
        };
        settings.check()?;
        if !(1.0..=600.0).contains(&self.latency_period) {
            return Err(Failure::LatencyPeriod(self.latency_period));
        }
        Ok(Options {
            identity: crate::cluster::identity(self.identity.as_deref()),
            lease_namespace: self.lease_namespace.clone(),
            lease_name: self.lease_name.clone(),
            times: Times {
                duration_ms: self.lease_duration_ms,
            },
            namespace: self.namespace.clone(),
            settings,
            latency_period_s: self.latency_period,
        })
    }

    fn place(&self) -> Result<(), Failure> {
        let options = self.options()?;
        // A query that takes longer than two rounds is as good as none.
        let timeout = Duration::from_secs_f64(self.round * 2.0).max(Duration::from_secs(2));
        let prometheus = Prometheus::new(&self.prometheus, timeout)?;
        let queries = Queries {
            entered: self.entered_query.clone(),
            served: self.served_query.clone(),
            serving_seconds: self.serving_seconds_query.clone(),
        };
        let distances = AgentSeries::new(prometheus.clone(), self.max_age);
        let meter = TrafficSeries::new(prometheus, &queries, self.window);
        let guard = telemetry::init(&log_options(self.log_level, self.log_format))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let client = crate::cluster::client(self.kubeconfig.as_deref(), None)
                .await
                .map_err(Failure::Cluster)?;
            let identity = options.identity.clone();
            let placing = Loop::new(options);
            let counters = guard.counters();
            let pages = Pages::start(
                placing.clone(),
                &self.metrics_addr,
                env!("CARGO_PKG_VERSION"),
                move || counters.dropped_lines(),
            )?;
            tracing::info!(identity, urls = %pages.urls().join(" "), "places pods");
            let mut signals = StopSignals::new()?;
            let stop = async {
                let signal = signals.wait().await;
                tracing::info!(signal, "ends");
            };
            placing.run(client, &distances, &meter, stop).await;
            drop(pages);
            Ok(())
        })
    }
}
