//! TLS of a client: whom it trusts, and who it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::files::{self, Stamp, Watched};
use super::{bad_pair, certificates, read_file, read_pair, unusable};
use crate::Error;

/// TLS settings of a client. Its files are read again when they change, as those of a listener:
/// the next connection has them, those that are there stay as they are.
#[derive(Clone, Debug)]
pub struct ClientTlsConfig {
    /// Authorities that sign servers' certificates, PEM.
    pub ca_file: PathBuf,
    /// The client's certificate chain and its private key, PEM; a server may want them.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that a server's certificate must be for, where that is not the host's.
    pub server_name: Option<String>,
}

impl ClientTlsConfig {
    fn stamp(&self) -> Stamp {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        files::stamp([&self.ca_file].into_iter().chain(identity).map(|p| &**p))
    }

    fn read(&self, alpn: &[u8]) -> Result<TlsConnector, Error> {
        const WHAT: &str = "CA file";
        let bad = |reason| unusable(WHAT, &self.ca_file, reason);
        let mut roots = RootCertStore::empty();
        for der in certificates(&read_file(WHAT, &self.ca_file)?).map_err(bad)? {
            roots.add(der).map_err(|error| bad(error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::TlsSettings(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, secret) = read_pair(cert, key)?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| bad_pair(cert, key, error))?
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        // A resumed session would show what was shown before the files changed.
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Makes TLS connections by the newest files that can be used.
pub struct ClientTls {
    config: ClientTlsConfig,
    alpn: Vec<u8>,
    /// Held to clone or replace it, and never while files are read.
    connector: Mutex<TlsConnector>,
    /// Of the files last tried, good or bad. Held while files are read.
    stamp: Mutex<Stamp>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files, and has a thread look at them once a second until this is dropped.
    /// `alpn` is the one protocol that is offered, such as `h2`.
    ///
    /// # Errors
    /// If a file cannot be read or used, or the thread not be started.
    pub fn load(config: ClientTlsConfig, alpn: &[u8]) -> Result<Arc<Self>, Error> {
        // Before reading: a file that changes meanwhile is read again.
        let stamp = Mutex::new(config.stamp());
        let tls = Arc::new(ClientTls {
            connector: Mutex::new(config.read(alpn)?),
            alpn: alpn.to_vec(),
            config,
            stamp,
        });
        files::watch(vec![Arc::downgrade(&tls)]).map_err(Error::Worker)?;
        Ok(tls)
    }

    /// Shakes hands over `stream` with the server at `host`, a name or an address. Bound the
    /// wait: a server that is silent is waited for.
    ///
    /// # Errors
    /// If the handshake fails, or `host` can stand in no certificate.
    pub async fn connect<S>(&self, host: &str, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.config.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            let text = format!("{name} is neither a name nor an address");
            std::io::Error::new(std::io::ErrorKind::InvalidInput, text)
        })?;
        let connector = self.connector.lock().clone();
        connector.connect(name, stream).await
    }

    /// A file that stands for them all in the log.
    fn named(&self) -> &Path {
        let identity = self.config.identity.as_ref();
        identity.map_or(&self.config.ca_file, |(cert, _)| cert)
    }
}

impl Watched for ClientTls {
    fn look(&self) {
        let mut seen = self.stamp.lock();
        let stamp = self.config.stamp();
        if stamp == *seen {
            return;
        }
        *seen = stamp;
        match self.config.read(&self.alpn) {
            Ok(connector) => {
                *self.connector.lock() = connector;
                tracing::info!(
                    file = %self.named().display(),
                    "the client's TLS files changed: new connections use the new ones"
                );
            }
            Err(error) => tracing::error!(
                %error, "the client's TLS files changed but cannot be used: staying with the old ones"
            ),
        }
    }
}
