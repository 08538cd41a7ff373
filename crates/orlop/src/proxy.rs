//! `orlop proxy`: every connection to the etcd member that leads.

use crate::etcd_cluster::Reached;
use crate::log_flags::{Format, Level, log_options};
use crate::proxy_status;
use crate::stop_signals::StopSignals;
use clap::{CommandFactory, Subcommand, ValueEnum, error::ErrorKind};
use proxy::{Admin, Fallback, Proxy, Settings};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use telemetry::Notify;
use upstream::Endpoint;

/// Signals that come sooner after the first one are part of it.
const ONE_STOP: Duration = Duration::from_secs(1);

/// Arguments of `orlop proxy`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Say what a running proxy does: members, leader, round trips, connections.
    Status(proxy_status::Args),
}

#[derive(clap::Args)]
struct Serve {
    /// Where clients connect: HOST:PORT, several separated by commas.
    #[arg(
        long,
        visible_alias = "listen-addr",
        env = "ORLOP_PROXY_LISTEN",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    listen: Vec<String>,
    /// The members of the etcd cluster, https://HOST:2379, separated by commas. One is enough to
    /// find the others, if those advertise client URLs that are reached from here.
    #[arg(long, env = "ORLOP_PROXY_ENDPOINTS", value_name = "URLS")]
    endpoints: Option<String>,
    /// Verify the members by this CA bundle (PEM) when they are asked who leads. Connections of
    /// clients have their own TLS, which goes through to the member.
    #[arg(long, env = "ORLOP_PROXY_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Identify there by this client certificate (PEM).
    #[arg(long, env = "ORLOP_PROXY_CERT", value_name = "FILE", requires_all = ["key", "cacert"])]
    cert: Option<PathBuf>,
    /// The client certificate's key (PEM).
    #[arg(long, env = "ORLOP_PROXY_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The user to ask as, where the cluster has auth enabled: NAME or NAME:PASSWORD.
    #[arg(long, env = "ORLOP_PROXY_USER", value_name = "NAME[:PASSWORD]")]
    user: Option<String>,
    /// That user's password, if --user does not have it.
    #[arg(
        long,
        env = "ORLOP_PROXY_PASSWORD",
        requires = "user",
        hide_env_values = true
    )]
    password: Option<String>,
    /// Metrics, probes and status, over plain HTTP: HOST:PORT, several separated by commas. It
    /// only reads; anybody who reaches it sees them.
    #[arg(
        long,
        env = "ORLOP_PROXY_METRICS_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2382"
    )]
    metrics_addr: Vec<String>,
    /// Milliseconds that a new connection waits for a leader that takes it.
    #[arg(long, env = "ORLOP_PROXY_WAIT_MS", default_value_t = 10_000)]
    wait_ms: u64,
    /// Milliseconds that an attempt to connect to a member may take.
    #[arg(long, env = "ORLOP_PROXY_DIAL_TIMEOUT_MS", default_value_t = 2_000)]
    dial_timeout_ms: u64,
    /// When the leader has changed, a connection to the old one is ended once nothing was sent
    /// for so many milliseconds, and the member was the last to send.
    #[arg(long, env = "ORLOP_PROXY_HANDOVER_GAP_MS", default_value_t = 5)]
    handover_gap_ms: u64,
    /// It is ended after so many milliseconds at the latest.
    #[arg(long, env = "ORLOP_PROXY_HANDOVER_LIMIT_MS", default_value_t = 5_000)]
    handover_limit_ms: u64,
    /// What is done with a connection that has waited in vain for a leader.
    #[arg(long, env = "ORLOP_PROXY_FALLBACK", value_enum, default_value_t = FallbackArg::Refuse)]
    fallback: FallbackArg,
    /// Connections at a time; more are refused. The limit on open files may allow fewer.
    #[arg(long, env = "ORLOP_PROXY_MAX_CONNECTIONS", default_value_t = 10_000)]
    max_connections: usize,
    /// Connections that wait for a member at a time; more are refused.
    #[arg(long, env = "ORLOP_PROXY_MAX_WAITING", default_value_t = 2_000)]
    max_waiting: usize,
    /// Seconds without a byte after which a connection is ended; 0: never.
    #[arg(long, env = "ORLOP_PROXY_IDLE_TIMEOUT_S", default_value_t = 3_600)]
    idle_timeout_s: u64,
    /// The same once one side has ended and the other has not.
    #[arg(long, env = "ORLOP_PROXY_HALF_CLOSED_TIMEOUT_S", default_value_t = 60)]
    half_closed_timeout_s: u64,
    /// Seconds of silence after which TCP asks a peer whether it is there; three questions
    /// without an answer end the connection.
    #[arg(long, env = "ORLOP_PROXY_KEEPALIVE_S", default_value_t = 30)]
    keepalive_s: u64,
    /// Seconds after which a peer that acknowledges nothing is given up (TCP_USER_TIMEOUT).
    #[arg(long, env = "ORLOP_PROXY_USER_TIMEOUT_S", default_value_t = 30)]
    user_timeout_s: u64,
    /// Milliseconds that connections may take to end after SIGTERM.
    #[arg(long, env = "ORLOP_PROXY_DRAIN_MS", default_value_t = 10_000)]
    drain_ms: u64,
    /// Begin connections to members with a header of the PROXY protocol, version 2. For members
    /// behind something that takes it: etcd itself does not.
    #[arg(long, env = "ORLOP_PROXY_PROXY_PROTOCOL")]
    proxy_protocol: bool,
    /// Threads that relay [default: one for two cores].
    #[arg(long, env = "ORLOP_PROXY_WORKERS")]
    workers: Option<usize>,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_PROXY_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_PROXY_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FallbackArg {
    /// It is refused.
    Refuse,
    /// It goes to the nearest healthy follower.
    Follower,
}

/// Runs a proxy until a signal ends it, or asks one.
pub(crate) fn run(args: &Args) -> ExitCode {
    if let Some(Command::Status(args)) = &args.command {
        return proxy_status::run(args);
    }
    let args = &args.serve;
    let cluster = match args.cluster() {
        Ok(cluster) => cluster,
        Err(text) => crate::Cli::command()
            .error(ErrorKind::ValueValidation, format!("orlop proxy: {text}"))
            .exit(),
    };
    let log = match telemetry::init(&log_options(args.log_level, args.log_format)) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("orlop proxy: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match serve(args, &cluster, log.counters()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: telemetry::FATAL, error = %error, "failed to start");
            ExitCode::FAILURE
        }
    };
    drop(log);
    code
}

impl Serve {
    /// Whom to ask, and how.
    fn cluster(&self) -> Result<upstream::Settings, String> {
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

    fn settings(&self) -> Settings {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        let default = Settings::default();
        Settings {
            wait: ms(self.wait_ms),
            dial_timeout: ms(self.dial_timeout_ms),
            handover_gap: ms(self.handover_gap_ms),
            handover_limit: ms(self.handover_limit_ms),
            fallback: match self.fallback {
                FallbackArg::Refuse => Fallback::Refuse,
                FallbackArg::Follower => Fallback::Follower,
            },
            max_connections: self.max_connections,
            max_waiting: self.max_waiting,
            idle_timeout: Some(s(self.idle_timeout_s)).filter(|timeout| !timeout.is_zero()),
            half_closed_timeout: s(self.half_closed_timeout_s),
            keepalive: s(self.keepalive_s),
            user_timeout: s(self.user_timeout_s),
            drain: ms(self.drain_ms),
            proxy_protocol: self.proxy_protocol,
            workers: self.workers.unwrap_or(default.workers),
        }
    }
}

fn serve(
    args: &Serve,
    cluster: &upstream::Settings,
    counters: telemetry::LogCounters,
) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = StopSignals::new()?;
        let (handle, views) = upstream::watch(cluster)?;
        let settings = args.settings();
        let metrics = metrics::ProxyMetrics::new(settings.workers, env!("CARGO_PKG_VERSION"));
        let asks = handle.clone();
        let suspect = Box::new(move |member: &Endpoint| asks.suspect(member));
        let proxy = Proxy::start(settings, &args.listen, views, suspect, Arc::new(metrics))?;
        let dropped = move || counters.dropped_lines();
        let admin = Admin::start(
            &proxy,
            &args.metrics_addr,
            env!("CARGO_PKG_VERSION"),
            dropped,
        )?;
        for address in proxy.listens() {
            tracing::info!(%address, "accepting connections for the leader");
        }
        for url in admin.urls() {
            tracing::info!(%url, "serving /metrics, /healthz, /readyz and /v1/status");
        }
        if let Err(error) = telemetry::notify(Notify::Ready) {
            tracing::warn!(%error, "cannot tell the service manager that the proxy is ready");
        }
        let name = signals.wait().await;
        tracing::info!(signal = name, "received signal; shutting down");
        let _ = telemetry::notify(Notify::Stopping);
        // The members are asked until the end: connections go on meanwhile.
        let stopping = Instant::now();
        let stop = tokio::task::spawn_blocking(move || proxy.stop());
        let again = async {
            loop {
                signals.wait().await;
                if stopping.elapsed() >= ONE_STOP {
                    return;
                }
            }
        };
        tokio::select! {
            _ = stop => {}
            () = again => {
                tracing::error!(
                    target: telemetry::FATAL,
                    "received another signal; cutting off the connections that are left"
                );
                std::process::exit(1);
            }
        }
        drop((admin, handle));
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
        args: Args,
    }

    fn parsed(line: &[&str]) -> Result<Serve, clap::Error> {
        let line = ["proxy"].iter().chain(line);
        Cli::try_parse_from(line).map(|cli| cli.args.serve)
    }

    #[test]
    fn the_defaults_are_the_librarys() {
        let args = parsed(&[]).unwrap_or_else(|e| panic!("{e}"));
        let (own, library) = (args.settings(), Settings::default());
        assert_eq!(format!("{own:?}"), format!("{library:?}"));
        assert!(
            args.cluster()
                .is_err_and(|text| text.contains("--endpoints"))
        );
    }

    #[test]
    fn certificates_come_together_and_so_do_users_and_passwords() {
        assert!(parsed(&["--cert=a", "--cacert=c"]).is_err());
        assert!(parsed(&["--cert=a", "--key=b"]).is_err());
        let cluster = |line: &[&str]| {
            let whole = [&["--endpoints=https://a:1,b:2"], line].concat();
            parsed(&whole).unwrap_or_else(|e| panic!("{e}")).cluster()
        };
        let tls = cluster(&["--cert=a", "--key=b", "--cacert=c"]).map(|c| c.tls);
        assert!(tls.is_ok_and(|tls| tls.is_some_and(|tls| tls.identity.is_some())));
        for user in [&["--user=a:b"][..], &["--user=a", "--password=b"]] {
            let user = cluster(user).map(|c| c.user);
            assert!(user.is_ok_and(|u| u.is_some_and(|u| u.name == "a" && u.password == "b")));
        }
        assert!(cluster(&["--user=a"]).is_err());
    }
}
