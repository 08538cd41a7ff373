//! The members of a source: which of them is asked, and which one next.

use crate::failure::say;
use crate::import_source::SourceError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// How long a connection may take to come about.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is asked for a sign of life this often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const WINDOW_BYTES: u32 = 4 << 20;

/// Options of a client, named as etcdctl's.
#[derive(clap::Args)]
pub(crate) struct TlsArgs {
    /// Verify the server by this CA bundle (PEM).
    #[arg(long)]
    cacert: Option<PathBuf>,
    /// Identify by this client certificate (PEM).
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// The client certificate's key (PEM).
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

impl TlsArgs {
    /// Why orlop would refuse the client certificate, if it trusted the same authority.
    pub(crate) fn refused_by_orlop(&self) -> Option<String> {
        let (ca, cert) = (self.cacert.as_ref()?, self.cert.as_ref()?);
        wire::check_client_certificate(ca, cert).err()
    }

    fn config(&self) -> Result<ClientTlsConfig, SourceError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                SourceError::Argument(format!("cannot read {}: {error}", path.display()))
            })
        };
        let Some(cacert) = &self.cacert else {
            return Err(SourceError::Argument(
                "an https endpoint needs --cacert, the CA that signed the server's certificate \
                 (kubeadm: /etc/kubernetes/pki/etcd/ca.crt)"
                    .to_owned(),
            ));
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(cacert)?));
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }

    /// What else may be the reason when nobody answers at `url`.
    pub(crate) fn hint(&self, url: &str, text: &str) -> &'static str {
        if url.starts_with("http://") && text.contains("transport error") {
            " (if it serves TLS: https:// and --cacert, --cert, --key)"
        } else if url.starts_with("https://") && self.cert.is_none() && text.contains("connection")
        {
            // What a server without it says depends on when it closes.
            " (if it wants a client certificate: --cert and --key)"
        } else {
            ""
        }
    }
}

struct Member {
    url: String,
    channel: Channel,
}

/// The endpoints that were named. Clones share which of them is in use.
#[derive(Clone)]
pub(crate) struct Endpoints {
    members: Arc<[Member]>,
    at: Arc<AtomicUsize>,
}

impl Endpoints {
    /// The endpoints of a list, separated by commas; none is connected yet.
    ///
    /// # Errors
    /// [`SourceError::Argument`] if one is no URL, or does not go with `tls`.
    pub(crate) fn new(list: &str, tls: &TlsArgs) -> Result<Self, SourceError> {
        let names = list.split(',').map(str::trim).filter(|u| !u.is_empty());
        let members = names
            .map(|name| member(name, tls))
            .collect::<Result<_, _>>()?;
        Ok(Endpoints {
            members,
            at: Arc::new(AtomicUsize::new(0)),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Which one is in use.
    pub(crate) fn at(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    /// Uses that one.
    pub(crate) fn set(&self, at: usize) {
        self.at.store(at, Ordering::Relaxed);
    }

    pub(crate) fn url(&self, at: usize) -> &str {
        &self.members[at].url
    }

    pub(crate) fn channel(&self, at: usize) -> Channel {
        self.members[at].channel.clone()
    }

    /// Goes on by the next one after `from` has failed, and says so.
    pub(crate) fn turn(&self, from: usize, why: &str) {
        let next = (from + 1) % self.len();
        let turned = self
            .at
            .compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
        match turned {
            Ok(_) if next != from => {
                say!(
                    "{}: {why}; going on with {}",
                    self.url(from),
                    self.url(next)
                );
            }
            Ok(_) => say!("{}: {why}; trying again", self.url(from)),
            // Another call has failed there before.
            Err(_) => {}
        }
    }
}

fn member(name: &str, tls: &TlsArgs) -> Result<Member, SourceError> {
    let url = if name.contains("://") {
        name.to_owned()
    } else {
        format!("http://{name}")
    };
    let argument = |error: &dyn std::fmt::Display| SourceError::Argument(format!("{url}: {error}"));
    let mut endpoint = Endpoint::from_shared(url.clone())
        .map_err(|error| argument(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    if url.starts_with("https://") {
        endpoint = endpoint
            .tls_config(tls.config()?)
            .map_err(|error| argument(&error))?;
    } else if tls.cacert.is_some() {
        return Err(argument(
            &"certificates are named, but the endpoint is not https",
        ));
    }
    let channel = endpoint.connect_lazy();
    Ok(Member { url, channel })
}
