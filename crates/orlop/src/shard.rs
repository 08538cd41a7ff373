//! `orlop shard`: a server's newest writes in this machine's memory.

use crate::log_flags::{Format, Level, log_options};
use crate::stop_signals::StopSignals;
use ::shard::{Pages, Running, Settings};
use clap::{CommandFactory, error::ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;
use telemetry::Notify;
use upstream::{Endpoint, Scheme};
use wire::{ClientTls, ClientTlsConfig};

/// Arguments of `orlop shard`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The server's peer URL, one of its --listen-peer-urls: https://HOST:2380. The server lets
    /// shards in with --max-shards.
    #[arg(long, env = "ORLOP_SHARD_SERVER", value_name = "URL")]
    server: Endpoint,
    /// This shard's certificate (PEM), which the server's --peer-trusted-ca-file trusts.
    #[arg(long, env = "ORLOP_SHARD_CERT_FILE", value_name = "FILE")]
    cert_file: PathBuf,
    /// Its key (PEM).
    #[arg(long, env = "ORLOP_SHARD_KEY_FILE", value_name = "FILE")]
    key_file: PathBuf,
    /// Verify the server's peer certificate by this CA bundle (PEM).
    #[arg(long, env = "ORLOP_SHARD_TRUSTED_CA_FILE", value_name = "FILE")]
    trusted_ca_file: PathBuf,
    /// The name that the server's certificate is for, where that is not the host's.
    #[arg(long, env = "ORLOP_SHARD_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    /// This shard's name, unlike that of any other of the same server [default: the machine's].
    #[arg(long, env = "ORLOP_SHARD_NAME", value_name = "NAME")]
    name: Option<String>,
    /// What fails together with this machine: a rack, a power feed, a zone. A write is held in
    /// different ones where that is possible.
    #[arg(
        long,
        env = "ORLOP_SHARD_ZONE",
        value_name = "ZONE",
        default_value = "",
        hide_default_value = true
    )]
    zone: String,
    /// The most that is held, in bytes. It is what the server's disk does not have yet: a second's
    /// writes, mostly.
    #[arg(
        long,
        env = "ORLOP_SHARD_MEMORY_LIMIT_BYTES",
        value_name = "BYTES",
        default_value_t = 256 << 20
    )]
    memory_limit_bytes: u64,
    /// Metrics, probes and status, over plain HTTP: HOST:PORT, several separated by commas. It
    /// only reads; anybody who reaches it sees them.
    #[arg(
        long,
        env = "ORLOP_SHARD_METRICS_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2385"
    )]
    metrics_addr: Vec<String>,
    /// The least severe lines that are logged.
    #[arg(long, env = "ORLOP_SHARD_LOG_LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// How a log line looks.
    #[arg(long, env = "ORLOP_SHARD_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
}

/// Runs a shard until a signal ends it.
pub(crate) fn run(args: &Args) -> ExitCode {
    if args.server.scheme != Scheme::Https {
        let text = format!(
            "orlop shard: --server {}: a server lets shards in over https only",
            args.server
        );
        crate::Cli::command()
            .error(ErrorKind::ValueValidation, text)
            .exit();
    }
    let log = match telemetry::init(&log_options(args.log_level, args.log_format)) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("orlop shard: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = serve(args);
    if let Err(error) = &served {
        tracing::error!(target: telemetry::FATAL, %error, "the shard ends");
    }
    drop(log);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
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
    let name = crate::keeper::name_or_hosts(args.name.as_deref());
    let shard = Running::start(Settings {
        server: args.server.clone(),
        tls: ClientTls::load(tls, b"h2")?,
        name: name.clone(),
        zone: args.zone.clone(),
        limit_bytes: args.memory_limit_bytes,
    })?;
    let version = env!("CARGO_PKG_VERSION");
    let pages = Pages::start(shard.view(), &args.metrics_addr, version)?;
    tracing::info!(
        name,
        zone = args.zone,
        server = %args.server,
        "memory-limit-bytes" = args.memory_limit_bytes,
        "holding the newest writes in memory"
    );
    for url in pages.urls() {
        tracing::info!(%url, "serving /metrics, /healthz, /readyz and /v1/status");
    }
    if let Err(error) = telemetry::notify(Notify::Ready) {
        tracing::warn!(%error, "cannot tell the service manager that the shard is ready");
    }
    let signal = runtime.block_on(signals.wait());
    tracing::info!(signal, "received signal; shutting down");
    let _ = telemetry::notify(Notify::Stopping);
    shard.stop();
    drop(pages);
    Ok(())
}
