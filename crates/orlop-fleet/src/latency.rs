//! `orlop-fleet latency`: a node's agent.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use node_latency::agent::{Agent, Options};
use node_latency::pages::Pages;
use node_latency::prober::Settings;
use node_latency::roster::{self, Roster};
use tokio::sync::watch;

use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;

/// How often a file of peers is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Arguments of `orlop-fleet latency`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the node that it runs on. Without it: the host's name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Option<String>,
    /// Where probes are answered, and sent from, over UDP. Peers are asked at the same port.
    #[arg(
        long,
        env = "ORLOP_LATENCY_LISTEN",
        default_value = "0.0.0.0:2387",
        value_name = "HOST:PORT"
    )]
    listen: SocketAddr,
    /// Which cluster's nodes. Without it: KUBECONFIG, then ~/.kube/config, then the pod's
    /// ServiceAccount.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peers", "peer"])]
    kubeconfig: Option<PathBuf>,
    /// Peers from a file instead of a cluster, a line each: NAME ADDRESS, and a ZONE if it
    /// has one. It is read again when it changes.
    #[arg(
        long,
        env = "ORLOP_LATENCY_PEERS",
        value_name = "FILE",
        conflicts_with = "peer"
    )]
    peers: Option<PathBuf>,
    /// A peer, instead of a cluster; may be given several times.
    #[arg(long, value_name = "NAME=ADDRESS")]
    peer: Vec<String>,
    /// Seconds of a period.
    #[arg(
        long,
        env = "ORLOP_LATENCY_PERIOD",
        default_value_t = 5.0,
        value_name = "SECONDS"
    )]
    period: f64,
    /// Probes of each peer in a period, spread over it.
    #[arg(long, env = "ORLOP_LATENCY_PROBES", default_value_t = 3)]
    probes: u32,
    /// Milliseconds after which a probe without an answer is lost; at most a period.
    #[arg(long, env = "ORLOP_LATENCY_TIMEOUT_MS", default_value_t = 2_000)]
    timeout_ms: u64,
    /// Seconds over which percentiles and loss are.
    #[arg(
        long,
        env = "ORLOP_LATENCY_WINDOW",
        default_value_t = 60.0,
        value_name = "SECONDS"
    )]
    window: f64,
    /// Metrics and probes of health, over plain HTTP; several separated by commas.
    #[arg(
        long,
        env = "ORLOP_LATENCY_METRICS_ADDR",
        default_value = "127.0.0.1:2387",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    metrics_addr: Vec<String>,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_LATENCY_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_LATENCY_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Agent(#[from] node_latency::Error),
    #[error(transparent)]
    Log(#[from] telemetry::Error),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Runs it; the exit code is 1 after an error, which is printed.
pub(crate) fn run(args: &Args) -> ExitCode {
    match args.agent() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop-fleet latency: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Microseconds of a number of seconds; what is no time is 0, which no setting may be.
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round().clamp(0.0, 1e15) as u64
}

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            period_us: micros(self.period),
            probes: self.probes,
            timeout_us: self.timeout_ms.saturating_mul(1_000),
            window_us: micros(self.window),
        }
    }

    fn node(&self) -> String {
        self.node.clone().unwrap_or_else(crate::cluster::host)
    }

    /// Follows which nodes there are. What can be known at once is known when this returns.
    async fn roster(&self) -> Result<watch::Receiver<Roster>, Failure> {
        let port = self.listen.port();
        let (sender, receiver) = watch::channel(Roster::default());
        if let Some(path) = &self.peers {
            let nodes = roster::read(path, port)?;
            sender.send_modify(|roster| roster.nodes = Some(nodes));
            tokio::spawn(roster::follow_file(path.clone(), port, LOOK, sender));
        } else if !self.peer.is_empty() {
            let nodes = self
                .peer
                .iter()
                .map(|text| roster::peer(text, "of --peer", port))
                .collect::<Result<Vec<_>, _>>()?;
            sender.send_modify(|roster| roster.nodes = Some(nodes));
        } else {
            let client = crate::cluster::client(self.kubeconfig.as_deref(), None)
                .await
                .map_err(node_latency::Error::Cluster)?;
            tokio::spawn(roster::follow_cluster(client, port, sender));
        }
        Ok(receiver)
    }

    fn agent(&self) -> Result<(), Failure> {
        let guard = telemetry::init(&log_options(self.log_level, self.log_format))?;
        // One thread: it has little to do, and nothing may come between a packet and its time.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let options = Options {
                node: self.node().into(),
                listen: self.listen,
                settings: self.settings(),
            };
            let agent = Agent::bind(options, self.roster().await?)?;
            let counters = guard.counters();
            let pages = Pages::start(
                agent.board(),
                &self.metrics_addr,
                env!("CARGO_PKG_VERSION"),
                move || counters.dropped_lines(),
            )?;
            tracing::info!(
                node = %self.node(),
                probes = %agent.address()?,
                urls = %pages.urls().join(" "),
                "measures round trips"
            );
            let mut signals = StopSignals::new()?;
            tokio::select! {
                () = agent.run() => {}
                signal = signals.wait() => tracing::info!(signal, "ends"),
            }
            drop(pages);
            Ok(())
        })
    }
}
