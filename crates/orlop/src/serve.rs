//! `orlop serve`, and `etcd` when started under that name.

use config::{Config, Level, LogFormat, LogLevel, LogOutput, Notice, Parsed, Personality};
use server::{Server, Started};
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use telemetry::Notify;
use tokio::signal::unix::{SignalKind, signal};

/// Log lines wait in at most so many bytes of memory.
const LOG_QUEUE_BYTES: usize = 1 << 20;

/// Signals that come sooner after the first one are part of it: a service manager and a shell
/// often send two at once. One that comes later does not wait for the end.
const ONE_STOP: Duration = Duration::from_secs(1);

/// Runs a server until a signal ends it. Returns the process's exit code.
pub(crate) fn run(personality: Personality, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let run = match Config::from_args(personality, args, std::env::vars_os()) {
        Ok(Parsed::Run(run)) => run,
        Ok(Parsed::Help) => {
            print!("{}", config::help_text(personality));
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Version) => {
            print_version(personality);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}: {error}", program(personality));
            if error.wants_usage() {
                eprint!("{}", config::usage_text(personality));
            }
            return ExitCode::from(error.exit_code());
        }
    };
    let log = match telemetry::init(&log_options(personality, &run.config)) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("{}: {error}", program(personality));
            return ExitCode::FAILURE;
        }
    };
    for notice in &run.notices {
        log_notice(notice);
    }
    let code = match serve(personality, &run.config, log.counters()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: telemetry::FATAL, error = %error, "failed to start");
            ExitCode::FAILURE
        }
    };
    drop(log);
    code
}

fn serve(
    personality: Personality,
    config: &Config,
    counters: telemetry::LogCounters,
) -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is served, so that no signal finds us without a handler.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt, mut hangup) = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ))
    })?;
    let server = Server::start(config, Some(counters))?;
    announce(personality, config, server.started());
    if let Err(error) = telemetry::notify(Notify::Ready) {
        tracing::warn!(%error, "cannot tell the service manager that the server is ready");
    }
    let name = runtime.block_on(async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break "terminated",
                _ = interrupt.recv() => break "interrupt",
                // From here on and to the end of the process: the default would end it.
                _ = hangup.recv() => {
                    tracing::info!("received SIGHUP: looking at the certificates, and serving on");
                    server.look_at_certificates();
                }
            }
        }
    });
    tracing::info!(signal = name, "received signal; shutting down");
    let stopping = Instant::now();
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                if stopping.elapsed() >= ONE_STOP {
                    break;
                }
            }
        });
        tracing::error!(
            target: telemetry::FATAL,
            "received another signal; ending before the log is closed: nothing that was answered is lost, and the next start replays it as after a crash"
        );
        std::process::exit(1);
    });
    let _ = telemetry::notify(Notify::Stopping);
    tracing::info!(name = %config.name, "data-dir" = %config.data_dir.display(), "closing etcd server");
    server.stop();
    tracing::info!(name = %config.name, "data-dir" = %config.data_dir.display(), "closed etcd server");
    Ok(())
}

fn announce(personality: Personality, config: &Config, s: &Started) {
    let data_dir = std::path::absolute(&config.data_dir).unwrap_or(config.data_dir.clone());
    tracing::info!(
        name = %s.name,
        "data-dir" = %data_dir.display(),
        created = s.created,
        revision = s.revision,
        keys = s.keys as u64,
        took = %telemetry::GoDuration(s.took),
        "opened the data directory"
    );
    tracing::info!("ready to serve client requests");
    for url in s.client_urls.iter().chain(&s.metrics_urls) {
        let (scheme, address) = url.split_once("://").unwrap_or(("", url));
        let traffic = if s.metrics_urls.contains(url) {
            "http"
        } else {
            "grpc+http"
        };
        if scheme.ends_with('s') {
            tracing::info!(traffic, address, "serving client traffic securely");
        } else {
            tracing::info!(
                traffic,
                address,
                "serving client traffic insecurely; this is strongly discouraged!"
            );
        }
    }
    if personality == Personality::Orlop {
        print_hello(config, s, &data_dir.display().to_string());
    }
}

/// What a newcomer needs to go on.
fn print_hello(config: &Config, s: &Started, data_dir: &str) {
    let urls = s.client_urls.join(",");
    let reached = reachable_urls(config, s);
    let state = if s.created {
        "new".to_string()
    } else {
        format!("{} keys", s.keys)
    };
    println!(
        "orlop {} is ready after {} ms",
        env!("CARGO_PKG_VERSION"),
        s.took.as_millis()
    );
    println!("  listening       {urls}");
    println!(
        "  data            {data_dir} ({state}, revision {})",
        s.revision
    );
    println!("  profile         {} ({})", s.profile, s.profile_source);
    let tls = tls_flags(config.client_tls.as_ref(), &reached);
    println!("  etcdctl         etcdctl --endpoints={reached}{tls} put hello world");
    if tls.contains(CLIENT) {
        println!("                  ({CLIENT}.crt, .key: a pair that --trusted-ca-file trusts)");
    }
    println!("  kube-apiserver  kube-apiserver --etcd-servers={reached} ...");
    println!("  stop            Ctrl-C");
}

/// Where a client on this machine gets to: what is listened on, or what is advertised where that
/// is every address.
fn reachable_urls(config: &Config, s: &Started) -> String {
    let every = |url: &String| url.contains("//0.0.0.0:") || url.contains("//[::]:");
    if s.client_urls.iter().any(every) {
        let advertised = config.advertise_client_urls.iter();
        return advertised
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
    }
    s.client_urls.join(",")
}

/// What stands for a client's certificate, if none is known.
const CLIENT: &str = "CLIENT";

/// etcdctl's flags for these URLs. The server's own certificate will do for a client if its
/// authority and its uses allow it, as kubeadm's do.
fn tls_flags(tls: Option<&config::ClientTls>, urls: &str) -> String {
    let Some(tls) = tls.filter(|_| urls.contains("https://") || urls.contains("unixs://")) else {
        return String::new();
    };
    let (cert, key) = (tls.cert_file.as_path(), tls.key_file.as_path());
    let trusted = tls.trusted_ca_file.as_deref();
    let signer = trusted
        .into_iter()
        .chain([cert])
        .find(|file| wire::names_issuer(file, cert));
    let mut flags = match signer {
        Some(file) => format!(" --cacert={}", file.display()),
        None => " --cacert=CA.crt".to_owned(),
    };
    if let Some(ca) = trusted {
        let own = match wire::check_client_certificate(ca, cert) {
            Ok(()) => format!(" --cert={} --key={}", cert.display(), key.display()),
            Err(_) => format!(" --cert={CLIENT}.crt --key={CLIENT}.key"),
        };
        flags.push_str(&own);
    }
    flags
}

fn program(personality: Personality) -> &'static str {
    match personality {
        Personality::Etcd => "etcd",
        Personality::Orlop => "orlop serve",
    }
}

fn print_version(personality: Personality) {
    let orlop = env!("CARGO_PKG_VERSION");
    match personality {
        Personality::Etcd => {
            println!("etcd Version: {}", etcd_api::ETCD_VERSION);
            println!("orlop Version: {orlop}");
        }
        Personality::Orlop => println!("orlop {orlop} (etcd API {})", etcd_api::ETCD_VERSION),
    }
}

fn log_notice(n: &Notice) {
    let fields: String = n.fields.iter().map(|(k, v)| format!(" {k}={v}")).collect();
    match n.level {
        Level::Info => tracing::info!("{}{fields}", n.message),
        Level::Warn => tracing::warn!("{}{fields}", n.message),
    }
}

fn log_options(personality: Personality, config: &Config) -> telemetry::Options {
    let level = match config.log_level {
        LogLevel::Debug => telemetry::Level::Debug,
        LogLevel::Info => telemetry::Level::Info,
        LogLevel::Warn => telemetry::Level::Warn,
        LogLevel::Error => telemetry::Level::Error,
        LogLevel::Panic => telemetry::Level::Panic,
        LogLevel::Fatal => telemetry::Level::Fatal,
    };
    let format = match (personality, config.log_format) {
        (Personality::Etcd, LogFormat::Console) => telemetry::Format::Console,
        (Personality::Orlop, LogFormat::Console) => telemetry::Format::Human,
        (_, LogFormat::Json) => telemetry::Format::Json,
    };
    let outputs = config.log_outputs.iter().map(|o| match o {
        LogOutput::Stderr => telemetry::Output::Stderr,
        LogOutput::Stdout => telemetry::Output::Stdout,
    });
    telemetry::Options {
        level,
        format,
        outputs: outputs.collect(),
        queue_bytes: LOG_QUEUE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::{CLIENT, tls_flags};
    use config::{ClientTls, TlsVersion};
    use playground::pki::Authority;

    #[test]
    fn the_greeting_names_certificates_that_work() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| Authority::new(dir.path(), name).unwrap());
        let pair = ours.sign("server").unwrap();
        let mut tls = ClientTls {
            cert_file: pair.cert.clone(),
            key_file: pair.key.clone(),
            trusted_ca_file: Some(ours.cert.clone()),
            client_cert_auth: true,
            crl_file: None,
            allowed_cns: Vec::new(),
            allowed_hostnames: Vec::new(),
            min_version: TlsVersion::Tls12,
            max_version: TlsVersion::Tls13,
            cipher_suites: Vec::new(),
        };
        let url = "https://127.0.0.1:2379";
        // As kubeadm has it: the server's pair will do for a client.
        let (ca, cert, key) = (ours.cert.display(), pair.cert.display(), pair.key.display());
        let flags = format!(" --cacert={ca} --cert={cert} --key={key}");
        assert_eq!(tls_flags(Some(&tls), url), flags);
        // Clients of another authority: nothing here is known to work for one.
        tls.trusted_ca_file = Some(other.cert.clone());
        let flags = tls_flags(Some(&tls), url);
        assert!(flags.contains(" --cacert=CA.crt "), "{flags}");
        assert!(flags.contains(&format!(" --cert={CLIENT}.crt ")), "{flags}");
        // A certificate that signed itself is its own authority.
        tls.trusted_ca_file = None;
        tls.cert_file = ours.cert.clone();
        assert_eq!(tls_flags(Some(&tls), url), format!(" --cacert={ca}"));
        assert_eq!(tls_flags(Some(&tls), "http://127.0.0.1:2379"), "");
        assert_eq!(tls_flags(None, url), "");
    }
}
