//! Asks a running server's admin endpoint: over its Unix socket, or over TCP with a client
//! certificate.

use crate::data_dir::DataDir;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use telemetry::with_causes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// An answer is some kilobytes.
const LIMIT_BYTES: usize = 4 << 20;
/// A switch to stricter rules waits for the disk; longer than this is an incident.
const PATIENCE: Duration = Duration::from_secs(120);

/// What only reads counters waits for no disk.
const FETCH_PATIENCE: Duration = Duration::from_secs(10);

/// Which server.
#[derive(clap::Args)]
pub(crate) struct Target {
    // Of a server that runs on this machine.
    #[command(flatten)]
    data_dir: DataDir,
    /// Its admin socket, if that is not in the data directory.
    #[arg(long)]
    admin_socket: Option<PathBuf>,
    /// Its admin endpoint on TCP (the server's --listen-admin-urls), as in
    /// https://HOST:PORT; then it may run on another machine.
    #[arg(long, conflicts_with = "admin_socket", requires_all = ["cacert", "cert", "key"])]
    admin_url: Option<Uri>,
    /// Verify the server at --admin-url by this CA bundle (PEM).
    #[arg(long, requires = "admin_url")]
    cacert: Option<PathBuf>,
    /// Identify there by this client certificate (PEM).
    #[arg(long, requires = "admin_url")]
    cert: Option<PathBuf>,
    /// The client certificate's key (PEM).
    #[arg(long, requires = "admin_url")]
    key: Option<PathBuf>,
}

/// What to ask for.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) body: String,
}

/// The form of an answer.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For a person.
    Text,
    /// For a program.
    Json,
}

/// Prints a server's answer, which is JSON; or, on stderr, the sentence on why there is none.
pub(crate) fn show(
    command: &str,
    answer: Result<String, String>,
    form: Form,
    for_a_person: impl FnOnce(&Value) -> String,
) -> ExitCode {
    match answer {
        Ok(text) if form == Form::Json => print!("{text}"),
        Ok(text) => match serde_json::from_str(&text) {
            Ok(value) => print!("{}", for_a_person(&value)),
            Err(error) => {
                eprintln!("{command}: the server's answer is not JSON: {error}");
                return ExitCode::FAILURE;
            }
        },
        Err(text) => {
            eprintln!("{command}: {text}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Asks; returns the body, or a sentence on why there is none.
pub(crate) fn ask(target: &Target, ask: &Ask<'_>) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, target.ask(ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!(
                "no answer from {} for {} s: the server's disk may stand still",
                target.place(),
                PATIENCE.as_secs()
            )),
        }
    })
}

/// Gets a page over plain HTTP; returns the body, or a sentence on why there is none.
pub(crate) fn fetch(url: &Uri, path: &str) -> Result<String, String> {
    let (Some("http"), Some(host), Some(port)) = (url.scheme_str(), url.host(), url.port_u16())
    else {
        return Err(format!("--admin-url {url}: give it as in http://HOST:PORT"));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let place = url.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(async {
        let fetching = async {
            let stream = TcpStream::connect((host, port))
                .await
                .map_err(|e| format!("nobody answers on {place}: {e}"))?;
            let question = Ask {
                method: "GET",
                path,
                body: String::new(),
            };
            exchange(stream, &place, &question).await
        };
        match tokio::time::timeout(FETCH_PATIENCE, fetching).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer from {place} in time")),
        }
    })
}

impl Target {
    fn socket(&self) -> PathBuf {
        let own = || self.data_dir.path().join(server::ADMIN_SOCKET);
        self.admin_socket.clone().unwrap_or_else(own)
    }

    /// Where the endpoint is, for messages.
    fn place(&self) -> String {
        match &self.admin_url {
            Some(url) => url.to_string(),
            None => self.socket().display().to_string(),
        }
    }

    async fn ask(&self, ask: &Ask<'_>) -> Result<String, String> {
        let place = self.place();
        if let Some(url) = &self.admin_url {
            let (host, port) = address(url)?;
            let connector = TlsConnector::from(Arc::new(self.tls()?));
            let name = ServerName::try_from(host.clone())
                .map_err(|_| format!("{url}: {host} is neither a name nor an address"))?;
            let stream = TcpStream::connect((host, port))
                .await
                .map_err(|e| format!("no server answers on {place}: {e}"))?;
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|e| format!("no TLS connection to {place}: {e}"))?;
            return exchange(stream, &place, ask).await;
        }
        let stream = UnixStream::connect(self.socket()).await.map_err(|e| {
            format!(
                "no server answers on {place}: {e}; is it running, and is this its data directory (DATA_DIR, --admin-socket)?"
            )
        })?;
        exchange(stream, &place, ask).await
    }

    /// Who the server must be, and who we are.
    fn tls(&self) -> Result<ClientConfig, String> {
        let (Some(cacert), Some(cert), Some(key)) = (&self.cacert, &self.cert, &self.key) else {
            return Err("--admin-url needs --cacert, --cert and --key".to_owned());
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(cacert)? {
            roots
                .add(authority)
                .map_err(|e| format!("{}: {e}", cacert.display()))?;
        }
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|e| format!("cannot read a private key from {}: {e}", key.display()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(cert)?, secret)
            .map_err(|e| format!("{} and {}: {e}", cert.display(), key.display()))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(tls)
    }
}

/// Host and port of an admin URL.
fn address(url: &Uri) -> Result<(String, u16), String> {
    let bad = |why: &str| format!("--admin-url {url}: {why}, as in https://HOST:PORT");
    if url.scheme_str() != Some("https") {
        return Err(bad("it must begin with https"));
    }
    let host = url.host().ok_or_else(|| bad("it must name a host"))?;
    let port = url.port_u16().ok_or_else(|| bad("it must name a port"))?;
    // An IPv6 address is in brackets there.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), port))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad =
        |why: &dyn Display| format!("cannot read certificates from {}: {why}", file.display());
    let found = CertificateDer::pem_file_iter(file)
        .map_err(|e| bad(&e))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(&e))?;
    if found.is_empty() {
        return Err(bad(&"there is none in PEM"));
    }
    Ok(found)
}

async fn exchange<S>(stream: S, place: &str, ask: &Ask<'_>) -> Result<String, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |e: &dyn std::error::Error| format!("cannot talk to {place}: {}", with_causes(e));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    // Ends with the exchange.
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header("host", "orlop")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(ask.body.clone())))
        .map_err(|e| failed(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LIMIT_BYTES);
    let body = body.collect().await.map_err(|e| failed(&*e))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        return Ok(text);
    }
    let told: Option<Value> = serde_json::from_str(&text).ok();
    let told = told.as_ref().and_then(|v| v.get("error")?.as_str());
    Err(told.map_or_else(|| format!("the server answered {status}"), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        target: Target,
    }

    #[test]
    fn a_url_comes_with_certificates_and_names_a_port() {
        let files = ["--cacert=a", "--cert=b", "--key=c"];
        let parsed = |url: &str, files: &[&str]| {
            let line: Vec<&str> = ["orlop", "--admin-url", url]
                .into_iter()
                .chain(files.iter().copied())
                .collect();
            Cli::try_parse_from(line).map(|cli| cli.target)
        };
        assert!(parsed("https://a:1", &files[..2]).is_err());
        assert!(Cli::try_parse_from(["orlop", "--cert=b"]).is_err());
        let address = |url: &str| {
            let target = parsed(url, &files).unwrap_or_else(|e| panic!("{e}"));
            target.admin_url.as_ref().map(super::address)
        };
        assert_eq!(address("https://a:1"), Some(Ok(("a".to_owned(), 1))));
        assert_eq!(address("https://[::1]:2"), Some(Ok(("::1".to_owned(), 2))));
        for url in ["http://a:1", "https://a", "a:1"] {
            let told = address(url);
            assert!(
                matches!(&told, Some(Err(text)) if text.contains("https://HOST:PORT")),
                "{told:?}"
            );
        }
    }
}
