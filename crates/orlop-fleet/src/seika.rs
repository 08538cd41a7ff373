//! `orlop-fleet seika`: the controller that keeps so many pods on each node, and its resource.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use election::Times;
use seika::run::{Pages, Settings, State};

use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;

/// Threads that run it: more are of no use to it.
const THREADS: usize = 2;
/// A connection to the apiserver that takes longer is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `orlop-fleet seika`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller. Several may run: one acts, the others take over.
    Run(Run),
    /// Print the definition of the resource, for `kubectl apply`.
    Crd,
}

#[derive(clap::Args)]
struct Run {
    /// Which cluster. Without it: KUBECONFIG, then ~/.kube/config, then the pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Only Seikas and pods of this namespace.
    #[arg(long, env = "ORLOP_SEIKA_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Namespace of the Lease by which those that run agree who acts.
    #[arg(
        long,
        env = "ORLOP_SEIKA_LEASE_NAMESPACE",
        default_value = "orlop-fleet",
        value_name = "NAME"
    )]
    lease_namespace: String,
    /// Name of the Lease.
    #[arg(
        long,
        env = "ORLOP_SEIKA_LEASE_NAME",
        default_value = "orlop-seika",
        value_name = "NAME"
    )]
    lease_name: String,
    /// Milliseconds after which another takes over from one that is silent.
    #[arg(long, env = "ORLOP_SEIKA_LEASE_DURATION_MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(1_000..=600_000))]
    lease_duration_ms: u64,
    /// This process's name, as no other has it. Without it: POD_NAME, or the host's name and the
    /// process id.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// Where metrics and probes are served.
    #[arg(
        long,
        env = "ORLOP_SEIKA_METRICS_ADDR",
        default_value = "127.0.0.1:2386",
        value_name = "HOST:PORT"
    )]
    metrics_addr: String,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_SEIKA_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_SEIKA_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Controller(#[from] seika::Error),
    #[error(transparent)]
    Log(#[from] telemetry::Error),
    #[error(
        "no apiserver is known: {0}; run in a pod with a ServiceAccount, or set KUBECONFIG or \
         --kubeconfig"
    )]
    Cluster(String),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("cannot print the definition: {0}")]
    Crd(String),
}

/// Runs it; the exit code is 1 after an error, which is printed.
pub(crate) fn run(args: Args) -> ExitCode {
    let result = match args.command {
        Command::Run(run) => run.controller(),
        Command::Crd => crd(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop-fleet seika: {error}");
            ExitCode::FAILURE
        }
    }
}

fn crd() -> Result<(), Failure> {
    let text = seika::crd::yaml().map_err(|error| Failure::Crd(error.to_string()))?;
    // A reader that has gone away (`| head`) is no failure.
    let _ = write!(std::io::stdout(), "{text}");
    Ok(())
}

impl Run {
    fn settings(&self) -> Settings {
        Settings {
            identity: crate::cluster::identity(self.identity.as_deref()),
            lease_namespace: self.lease_namespace.clone(),
            lease_name: self.lease_name.clone(),
            times: Times {
                duration_ms: self.lease_duration_ms,
            },
            namespace: self.namespace.clone(),
        }
    }

    fn controller(self) -> Result<(), Failure> {
        let guard = telemetry::init(&log_options(self.log_level, self.log_format))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()?;
        let state = Arc::new(State::new(self.settings()));
        let counters = guard.counters();
        let pages = Pages::start(
            Arc::clone(&state),
            std::slice::from_ref(&self.metrics_addr),
            env!("CARGO_PKG_VERSION"),
            move || counters.dropped_lines(),
        )?;
        tracing::info!(urls = %pages.urls().join(" "), "serves metrics and probes");
        let ran: Result<(), Failure> = runtime.block_on(async {
            let client = crate::cluster::client(self.kubeconfig.as_deref(), Some(CONNECT_TIMEOUT));
            let client = client.await.map_err(Failure::Cluster)?;
            let mut signals = StopSignals::new()?;
            let stop = async {
                let signal = signals.wait().await;
                tracing::info!(signal, "ends");
            };
            seika::run::run(client, state, stop).await;
            Ok(())
        });
        drop(pages);
        drop(guard);
        ran
    }
}
