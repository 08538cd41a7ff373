//! `orlop keeper`: a copy of a server's data on this machine's disk.

use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;
use clap::{CommandFactory, error::ErrorKind};
use files::real::RealFs;
use keeper::Options;
use keeper::run::{Clients, Pages, Running, SaveSettings, Settings};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use telemetry::Notify;
use upstream::{Endpoint, Scheme};
use wire::{ClientTls, ClientTlsConfig, TlsConfig};

/// As a server's.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Arguments of `orlop keeper`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The server's peer URL, one of its --listen-peer-urls: https://HOST:2380. The server lets
    /// followers in with --max-followers.
    #[arg(long, env = "ORLOP_KEEPER_SERVER", value_name = "URL")]
    server: Endpoint,
    /// Where the copy is kept. The directory is made if it is missing; one that holds something
    /// else is refused.
    #[arg(long, env = "ORLOP_KEEPER_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// This keeper's certificate (PEM), which the server's --peer-trusted-ca-file trusts.
    #[arg(long, env = "ORLOP_KEEPER_CERT_FILE", value_name = "FILE")]
    cert_file: PathBuf,
    /// Its key (PEM).
    #[arg(long, env = "ORLOP_KEEPER_KEY_FILE", value_name = "FILE")]
    key_file: PathBuf,
    /// Verify the server's peer certificate by this CA bundle (PEM).
    #[arg(long, env = "ORLOP_KEEPER_TRUSTED_CA_FILE", value_name = "FILE")]
    trusted_ca_file: PathBuf,
    /// The name that the server's certificate is for, where that is not the host's.
    #[arg(long, env = "ORLOP_KEEPER_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    /// This keeper's name, unlike that of any other of the same server [default: the machine's].
    #[arg(long, env = "ORLOP_KEEPER_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Metrics, probes and status, over plain HTTP: HOST:PORT, several separated by commas. It
    /// only reads; anybody who reaches it sees them.
    #[arg(
        long,
        env = "ORLOP_KEEPER_METRICS_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2383"
    )]
    metrics_addr: Vec<String>,
    /// Serve snapshots of the copy to clients, for `etcdctl snapshot save` and `orlop export`:
    /// https://HOST:PORT, several separated by commas. Needs the three files below; a client shows a
    /// certificate.
    #[arg(
        long,
        env = "ORLOP_KEEPER_LISTEN_CLIENT_URLS",
        value_name = "URLS",
        value_delimiter = ',',
        requires_all = ["server_cert_file", "server_key_file", "client_trusted_ca_file"]
    )]
    listen_client_urls: Vec<Endpoint>,
    /// The certificate (PEM) that clients are shown.
    #[arg(long, env = "ORLOP_KEEPER_SERVER_CERT_FILE", value_name = "FILE")]
    server_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "ORLOP_KEEPER_SERVER_KEY_FILE", value_name = "FILE")]
    server_key_file: Option<PathBuf>,
    /// Clients are verified by this CA bundle (PEM): whoever it signs for can read everything.
    #[arg(long, env = "ORLOP_KEEPER_CLIENT_TRUSTED_CA_FILE", value_name = "FILE")]
    client_trusted_ca_file: Option<PathBuf>,
    /// Save snapshots of the copy in this directory, by itself. It must exist.
    #[arg(long, env = "ORLOP_KEEPER_SNAPSHOT_DIR", value_name = "DIR")]
    snapshot_dir: Option<PathBuf>,
    /// How much time lies between two of those snapshots, in seconds.
    #[arg(
        long,
        env = "ORLOP_KEEPER_SNAPSHOT_INTERVAL_S",
        value_name = "S",
        default_value = "3600",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    snapshot_interval_s: u32,
    /// How many of them are kept; older ones of this cluster are deleted after each new one.
    #[arg(
        long,
        env = "ORLOP_KEEPER_SNAPSHOT_KEEP",
        value_name = "N",
        default_value = "24",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    snapshot_keep: u32,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_KEEPER_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_KEEPER_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

fn refuse(text: String) -> ! {
    crate::Cli::command()
        .error(ErrorKind::ValueValidation, text)
        .exit()
}

/// What a copy that this command opens is kept with.
pub(crate) fn options(name: &str) -> Options {
    Options {
        name: name.to_owned(),
        salt: RandomState::new().hash_one(Instant::now()),
        segment_bytes: SEGMENT_BYTES,
        guards: keeper::Guards::default(),
    }
}

/// Runs a keeper until a signal ends it, or it cannot go on.
pub(crate) fn run(args: &Args) -> ExitCode {
    if args.server.scheme != Scheme::Https {
        refuse(format!(
            "orlop keeper: --server {}: a server lets followers in over https only",
            args.server
        ));
    }
    let plain = |url: &&Endpoint| url.scheme != Scheme::Https;
    if let Some(url) = args.listen_client_urls.iter().find(plain) {
        refuse(format!(
            "orlop keeper: --listen-client-urls {url}: a snapshot holds every secret: https only"
        ));
    }
    let log = match telemetry::init(&log_options(args.log_level, args.log_format)) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("orlop keeper: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match serve(args) {
        Ok(true) => ExitCode::SUCCESS,
        // The keeper has said why.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!(target: telemetry::FATAL, error = %error, "failed to start");
            ExitCode::FAILURE
        }
    };
    drop(log);
    code
}

impl Args {
    fn save(&self) -> Option<SaveSettings> {
        let dir = self.snapshot_dir.clone()?;
        Some(SaveSettings {
            dir,
            interval: Duration::from_secs(self.snapshot_interval_s.into()),
            keep: self.snapshot_keep as usize,
        })
    }

    fn name(&self) -> String {
        name_or_hosts(self.name.as_deref())
    }
}

/// Who serves snapshots, if that is asked for.
fn clients(args: &Args, keeper: &Running) -> Result<Option<Clients>, wire::Error> {
    let files = (&args.server_cert_file, &args.server_key_file);
    let (Some(cert), Some(key)) = files else {
        return Ok(None);
    };
    if args.listen_client_urls.is_empty() {
        return Ok(None);
    }
    let tls = TlsConfig {
        client_ca_file: args.client_trusted_ca_file.clone(),
        client_check: Some(|der| certs::may_be_client(der).map_err(|e| e.to_string())),
        ..TlsConfig::new(cert, key)
    };
    Clients::start(&keeper.view(), &args.listen_client_urls, &tls).map(Some)
}

/// The name that was given, or the machine's.
pub(crate) fn name_or_hosts(given: Option<&str>) -> String {
    let machine = || {
        let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
        let read = read.unwrap_or_default().trim().to_owned();
        match read.is_empty() {
            true => "localhost".to_owned(),
            false => read,
        }
    };
    given.map_or_else(machine, str::to_owned)
}

fn make_dir(dir: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)
}

/// The pages. A socket in the directory that cannot be made (its path is too long, say) keeps no
/// copy from being kept.
fn pages(args: &Args, keeper: &Running) -> Result<Pages, wire::Error> {
    let start = |socket| {
        let version = env!("CARGO_PKG_VERSION");
        Pages::start(keeper.view(), &args.metrics_addr, socket, version)
    };
    let socket = args.data_dir.join(server::ADMIN_SOCKET);
    match start(Some(socket)) {
        Ok(pages) => Ok(pages),
        Err(error) => {
            let pages = start(None)?;
            tracing::warn!(%error, "`orlop status` does not find this keeper by its directory");
            Ok(pages)
        }
    }
}

/// False if the keeper ended by itself.
fn serve(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    make_dir(&args.data_dir)
        .map_err(|error| format!("cannot make {}: {error}", args.data_dir.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Before anything runs, so that no signal finds us without a handler.
    let mut signals = runtime.block_on(async { StopSignals::new() })?;
    let tls = ClientTlsConfig {
        ca_file: args.trusted_ca_file.clone(),
        identity: Some((args.cert_file.clone(), args.key_file.clone())),
        server_name: args.server_name.clone(),
    };
    let name = args.name();
    let settings = Settings {
        server: args.server.clone(),
        tls: ClientTls::load(tls, b"h2")?,
        data_dir: args.data_dir.clone(),
        options: options(&name),
        save: args.save(),
    };
    let keeper = Running::start(Arc::new(RealFs::new()), settings)?;
    let pages = pages(args, &keeper)?;
    let clients = clients(args, &keeper)?;
    tracing::info!(
        name,
        server = %args.server,
        "data-dir" = %args.data_dir.display(),
        "keeping a copy"
    );
    for url in pages.urls() {
        tracing::info!(%url, "serving /metrics, /healthz, /readyz and /v1/status");
    }
    for url in clients.iter().flat_map(Clients::urls) {
        tracing::info!(%url, "serving snapshots of the copy to clients with a certificate");
    }
    if let Err(error) = telemetry::notify(Notify::Ready) {
        tracing::warn!(%error, "cannot tell the service manager that the keeper is ready");
    }
    let mut failed = keeper.failed();
    let stopped = runtime.block_on(async {
        tokio::select! {
            signal = signals.wait() => Some(signal),
            _ = failed.wait_for(|failed| *failed) => None,
        }
    });
    if let Some(signal) = stopped {
        tracing::info!(signal, "received signal; shutting down");
    }
    let _ = telemetry::notify(Notify::Stopping);
    keeper.stop();
    drop((pages, clients));
    Ok(stopped.is_some())
}
