//! `orlop-fleet router`: a node's HTTP router.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use router::{Drain, Limits, Listen, Listening, Pages, Pair, PeerTls, Router};

use tokio::task::JoinHandle;

use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;

/// How often the file of services is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Arguments of `orlop-fleet router`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the node that it runs on. Without it: the host's name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Option<String>,
    /// Services, their pods and the other nodes from a TOML file instead of a cluster. It is read
    /// again when it changes.
    #[arg(
        long,
        env = "ORLOP_ROUTER_CONFIG",
        value_name = "FILE",
        conflicts_with = "kubeconfig"
    )]
    config: Option<PathBuf>,
    /// Which cluster. Without it: KUBECONFIG, then ~/.kube/config, then the pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The port at which other nodes' routers take requests of routers, in a cluster.
    #[arg(
        long,
        env = "ORLOP_ROUTER_PEER_PORT",
        default_value_t = 2392,
        value_name = "PORT"
    )]
    peer_port: u16,
    /// Where clients connect, over HTTP/1.1 or HTTP/2; several separated by commas.
    #[arg(
        long,
        env = "ORLOP_ROUTER_LISTEN",
        default_value = "127.0.0.1:2390",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    listen: Vec<SocketAddr>,
    /// Where clients connect over TLS; several separated by commas.
    #[arg(
        long,
        env = "ORLOP_ROUTER_TLS_LISTEN",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        requires = "tls_cert_file"
    )]
    tls_listen: Vec<SocketAddr>,
    /// The certificate that clients see, PEM. Read again when it changes, as all of these.
    #[arg(
        long,
        env = "ORLOP_ROUTER_TLS_CERT_FILE",
        value_name = "FILE",
        requires = "tls_key_file"
    )]
    tls_cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(
        long,
        env = "ORLOP_ROUTER_TLS_KEY_FILE",
        value_name = "FILE",
        requires = "tls_listen"
    )]
    tls_key_file: Option<PathBuf>,
    /// Where other nodes' routers connect.
    #[arg(
        long,
        env = "ORLOP_ROUTER_PEER_LISTEN",
        value_name = "HOST:PORT",
        requires = "peer_cert_file"
    )]
    peer_listen: Option<SocketAddr>,
    /// The certificate for other routers: for the node's name, PEM.
    #[arg(
        long,
        env = "ORLOP_ROUTER_PEER_CERT_FILE",
        value_name = "FILE",
        requires = "peer_key_file"
    )]
    peer_cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(
        long,
        env = "ORLOP_ROUTER_PEER_KEY_FILE",
        value_name = "FILE",
        requires = "peer_trusted_ca_file"
    )]
    peer_key_file: Option<PathBuf>,
    /// The authority that signs routers' certificates, and no others, PEM.
    #[arg(
        long,
        env = "ORLOP_ROUTER_PEER_TRUSTED_CA_FILE",
        value_name = "FILE",
        requires = "peer_listen"
    )]
    peer_trusted_ca_file: Option<PathBuf>,
    /// Connections of clients at a time; more are closed at once.
    #[arg(long, env = "ORLOP_ROUTER_MAX_CONNECTIONS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Requests at a time, waiting ones included: clients', and as many of other routers.
    #[arg(long, env = "ORLOP_ROUTER_MAX_IN_FLIGHT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_in_flight: u32,
    /// Milliseconds for a request's head and for a handshake.
    #[arg(long, env = "ORLOP_ROUTER_HEAD_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    head_timeout_ms: u64,
    /// Milliseconds without a request after which a connection is closed.
    #[arg(long, env = "ORLOP_ROUTER_IDLE_TIMEOUT_MS", default_value_t = 90_000, value_parser = clap::value_parser!(u64).range(100..=86_400_000))]
    idle_timeout_ms: u64,
    /// Milliseconds in which some part of a body has to come, or of an answer to be read.
    #[arg(long, env = "ORLOP_ROUTER_BODY_TIMEOUT_MS", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(100..=86_400_000))]
    body_timeout_ms: u64,
    /// Milliseconds between the end of readiness and the end of accepting.
    #[arg(long, env = "ORLOP_ROUTER_DRAIN_NOTICE_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    drain_notice_ms: u64,
    /// Milliseconds that requests under way may take after that.
    #[arg(long, env = "ORLOP_ROUTER_DRAIN_TIMEOUT_MS", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(0..=86_400_000))]
    drain_timeout_ms: u64,
    /// Log a line for each request of a client.
    #[arg(long, env = "ORLOP_ROUTER_ACCESS_LOG")]
    access_log: bool,
    /// Metrics and probes of health, over plain HTTP; several separated by commas.
    #[arg(
        long,
        env = "ORLOP_ROUTER_METRICS_ADDR",
        default_value = "127.0.0.1:2391",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    metrics_addr: Vec<String>,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_ROUTER_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_ROUTER_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

/// Why there is no router.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Router(#[from] router::Error),
    #[error("the services of {} cannot be used: {why}", path.display())]
    Services { path: PathBuf, why: String },
    #[error("no cluster is configured: {0}; name one, or give --config")]
    Cluster(String),
    #[error(
        "a cluster has other nodes: give --peer-listen, --peer-cert-file, --peer-key-file and --peer-trusted-ca-file"
    )]
    NoPeers,
    #[error(transparent)]
    Log(#[from] telemetry::Error),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Runs it; the exit code is 1 after an error, which is printed.
pub(crate) fn run(args: &Args) -> ExitCode {
    match args.router() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop-fleet router: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pair(cert: Option<&PathBuf>, key: Option<&PathBuf>) -> Option<Pair> {
    let (cert_file, key_file) = (cert?.clone(), key?.clone());
    Some(Pair {
        cert_file,
        key_file,
    })
}

impl Args {
    fn peer_tls(&self) -> Option<PeerTls> {
        Some(PeerTls {
            pair: pair(self.peer_cert_file.as_ref(), self.peer_key_file.as_ref())?,
            trusted_ca_file: self.peer_trusted_ca_file.clone()?,
        })
    }

    fn listen(&self) -> Listen {
        Listen {
            clients: self.listen.clone(),
            tls_clients: self.tls_listen.clone(),
            tls: pair(self.tls_cert_file.as_ref(), self.tls_key_file.as_ref()),
            peers: self.peer_listen,
        }
    }

    /// The limits that flags name.
    fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections as usize,
            in_flight: self.max_in_flight as usize,
            head_timeout: Duration::from_millis(self.head_timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            body_timeout: Duration::from_millis(self.body_timeout_ms),
        }
    }

    fn router(&self) -> Result<(), Failure> {
        let guard = telemetry::init(&log_options(self.log_level, self.log_format))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let ended = runtime.block_on(self.serve(&guard));
        // What is left waits for nobody.
        runtime.shutdown_timeout(Duration::from_secs(1));
        ended
    }

    /// Has the router route by the file or the cluster, from now on.
    async fn follow(&self, router: &Arc<Router>) -> Result<JoinHandle<()>, Failure> {
        let Some(path) = &self.config else {
            if self.peer_listen.is_none() {
                return Err(Failure::NoPeers);
            }
            let client = crate::cluster::client(self.kubeconfig.as_deref(), None)
                .await
                .map_err(Failure::Cluster)?;
            let run = router_cluster::run(client, router.clone(), self.peer_port);
            return Ok(tokio::spawn(run));
        };
        let table = router::table::read(path)?;
        router.apply(&table).map_err(|why| Failure::Services {
            path: path.clone(),
            why,
        })?;
        let run = router::follow_file(router.clone(), path.clone(), LOOK);
        Ok(tokio::spawn(run))
    }

    async fn serve(&self, guard: &telemetry::Guard) -> Result<(), Failure> {
        let mut signals = StopSignals::new()?;
        let node = self.node.clone().unwrap_or_else(crate::cluster::host);
        let peer_tls = self.peer_tls();
        let client = peer_tls.as_ref().map(PeerTls::client).transpose()?;
        let listening = Listening::bind(&self.listen(), peer_tls.as_ref())?;
        let addresses: Vec<String> = listening
            .addresses()?
            .iter()
            .map(ToString::to_string)
            .collect();
        wire::files::raise_limit();
        let router = Router::new(node.clone(), self.limits(), client, self.access_log);
        let follower = self.follow(&router).await?;
        let counters = guard.counters();
        let pages = Pages::start(
            router.clone(),
            &self.metrics_addr,
            env!("CARGO_PKG_VERSION"),
            move || counters.dropped_lines(),
        )?;
        tracing::info!(
            %node, addresses = %addresses.join(" "), urls = %pages.urls().join(" "), "routes requests"
        );
        let drain = Drain {
            notice: Duration::from_millis(self.drain_notice_ms),
            timeout: Duration::from_millis(self.drain_timeout_ms),
        };
        let stop = async {
            let signal = signals.wait().await;
            tracing::info!(
                signal,
                "ends: what is under way may end, nothing new is taken"
            );
        };
        listening.run(router, drain, stop).await;
        follower.abort();
        drop(pages);
        Ok(())
    }
}
