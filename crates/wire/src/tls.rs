//! TLS: files, client certificates.

mod accept;
mod client;
mod connect;
mod files;
mod reason;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, parse_x509_pem};

use crate::Error;
use crate::handler::PeerTls;

pub use accept::ServerTls;
pub use client::{check_client_certificate, check_client_certificate_at, names_issuer};
pub use connect::{ClientTls, ClientTlsConfig};
pub use files::Certificate;
pub(crate) use files::watch;
pub(crate) use reason::{of as reason_of, of_handshake};

/// A check of a client's certificate (DER) beyond its chain; the error says why it is refused.
pub type ClientCheck = fn(&[u8]) -> Result<(), String>;

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// TLS settings of a listener.
///
/// Files are read again when they change, without a restart: a thread looks at them once a second,
/// so that no connection waits for a disk. Files that cannot be used leave the old ones in force,
/// with an error in the log.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The server's certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// Authorities that sign client certificates, PEM. If given, every client must show one.
    pub client_ca_file: Option<PathBuf>,
    /// Revoked client certificates, DER or PEM. As in etcd, serial numbers alone decide.
    pub crl_file: Option<PathBuf>,
    /// If not empty, the common name of a client's certificate must be one of these.
    pub allowed_common_names: Vec<String>,
    /// If not empty, a client's certificate must be valid for one of these names or addresses.
    pub allowed_hostnames: Vec<String>,
    /// One more check of a client's certificate (DER) after it was verified; the error is for the log.
    pub client_check: Option<ClientCheck>,
    /// A handler sees the client's certificate ([`PeerTls::certificate`]): for ports where what a
    /// client may call depends on it.
    pub keep_certificate: bool,
    /// Oldest version offered.
    pub min_version: TlsVersion,
    /// Newest version offered.
    pub max_version: TlsVersion,
    /// TLS 1.2 cipher suites by IANA number; all that are safe if empty. As in Go, those of TLS 1.3
    /// are not a choice.
    pub cipher_suites: Vec<u16>,
}

impl TlsConfig {
    /// Settings with these two files and etcd's defaults for the rest.
    pub fn new(cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        TlsConfig {
            cert_file: cert_file.into(),
            key_file: key_file.into(),
            client_ca_file: None,
            crl_file: None,
            allowed_common_names: Vec::new(),
            allowed_hostnames: Vec::new(),
            client_check: None,
            keep_certificate: false,
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
            cipher_suites: Vec::new(),
        }
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let optional = self.client_ca_file.iter().chain(&self.crl_file);
        [&self.cert_file, &self.key_file]
            .into_iter()
            .chain(optional)
            .map(PathBuf::as_path)
    }

    /// What the files look like from outside; two equal stamps mean nothing changed.
    fn stamp(&self) -> files::Stamp {
        files::stamp(self.files())
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::TlsSettings(what.to_owned()));
        if self.min_version > self.max_version {
            return wrong("the minimum version is above the maximum version");
        }
        let (names, hosts) = (&self.allowed_common_names, &self.allowed_hostnames);
        if !names.is_empty() && !hosts.is_empty() {
            return wrong("allowed common names and allowed hostnames exclude each other");
        }
        let wants_clients = !names.is_empty() || !hosts.is_empty() || self.crl_file.is_some();
        if wants_clients && self.client_ca_file.is_none() {
            return wrong(
                "client certificates are to be checked, but no authority for them is given: \
                 set the trusted CA file",
            );
        }
        Ok(())
    }
}

/// What one reading of the files gave.
#[derive(Clone)]
struct Loaded {
    acceptor: TlsAcceptor,
    revoked_serials: Arc<HashSet<Vec<u8>>>,
    validity: files::Validity,
}

/// The TLS side of a listener, shared by all workers.
pub(crate) struct TlsSource {
    config: TlsConfig,
    alpn: Vec<Vec<u8>>,
    /// Held to clone or replace it, and never while files are read.
    loaded: Mutex<Loaded>,
    /// Held while files are read.
    seen: Mutex<files::Seen>,
}

impl std::fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSource")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Why a client was refused after a handshake that itself succeeded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientRefused {
    #[error("client certificate authentication failed: its name is not among the allowed ones")]
    Name,
    #[error("client certificate serial {0} revoked")]
    Revoked(String),
    #[error("client certificate cannot be read: {0}")]
    Unreadable(String),
    #[error("the client's certificate is refused: {0}")]
    Role(String),
}

impl TlsSource {
    /// Reads the files. `offers_http1`: whether HTTP/1.1 may be agreed on in the handshake.
    pub(crate) fn load(config: &TlsConfig, offers_http1: bool) -> Result<Self, Error> {
        config.check()?;
        let mut alpn = vec![b"h2".to_vec()];
        if offers_http1 {
            alpn.push(b"http/1.1".to_vec());
        }
        // Before reading: a file that changes meanwhile is read again.
        let stamp = config.stamp();
        let loaded = Mutex::new(read(config, &alpn)?);
        Ok(TlsSource {
            config: config.clone(),
            alpn,
            loaded,
            seen: Mutex::new(files::Seen::new(stamp)),
        })
    }

    /// For the next handshake: the newest files that can be used.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.loaded.lock().acceptor.clone()
    }

    /// Checks what a handshake does not: names and revocation. `chain` is the client's, verified.
    pub(crate) fn check_client(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<PeerTls, ClientRefused> {
        let Some(chain) = chain.filter(|chain| !chain.is_empty()) else {
            return Ok(PeerTls::default());
        };
        let revoked = self.loaded.lock().revoked_serials.clone();
        let mut common_name = None;
        for (depth, der) in chain.iter().enumerate() {
            let (_, cert) = X509Certificate::from_der(der)
                .map_err(|error| ClientRefused::Unreadable(error.to_string()))?;
            let serial = without_leading_zeros(cert.raw_serial());
            if revoked.contains(serial) {
                return Err(ClientRefused::Revoked(hex(serial)));
            }
            if depth == 0 {
                common_name = common_name_of(&cert);
                self.check_name(&cert, common_name.as_deref())?;
                if let Some(check) = self.config.client_check {
                    check(der).map_err(ClientRefused::Role)?;
                }
            }
        }
        let certificate = self
            .config
            .keep_certificate
            .then(|| chain[0].to_vec().into());
        Ok(PeerTls {
            common_name,
            certificate,
        })
    }

    fn check_name(
        &self,
        cert: &X509Certificate<'_>,
        name: Option<&str>,
    ) -> Result<(), ClientRefused> {
        let (names, hosts) = (
            &self.config.allowed_common_names,
            &self.config.allowed_hostnames,
        );
        if !names.is_empty() && !names.iter().any(|allowed| allowed == name.unwrap_or("")) {
            return Err(ClientRefused::Name);
        }
        if !hosts.is_empty() && !hosts.iter().any(|host| is_valid_for(cert, host)) {
            return Err(ClientRefused::Name);
        }
        Ok(())
    }
}

/// Reads and joins all files.
fn read(config: &TlsConfig, alpn: &[Vec<u8>]) -> Result<Loaded, Error> {
    let (chain, key) = read_pair(&config.cert_file, &config.key_file)?;
    let provider = Arc::new(provider(config));
    let verifier: Arc<dyn ClientCertVerifier> = match &config.client_ca_file {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => {
            let pem = read_file("trusted CA file", path)?;
            let bad = |reason| unusable("trusted CA file", path, reason);
            let authorities = certificates(&pem).map_err(bad)?;
            Arc::new(client::ClientVerifier::new(authorities, &provider).map_err(bad)?)
        }
    };
    let validity = files::Validity::of(&chain);
    let revoked_serials = match &config.crl_file {
        None => HashSet::new(),
        Some(path) => revoked_serials(&read_file("certificate revocation list", path)?)
            .map_err(|reason| unusable("certificate revocation list", path, reason))?,
    };
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(config))
        .map_err(|error| Error::TlsSettings(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| bad_pair(&config.cert_file, &config.key_file, error))?;
    tls.alpn_protocols = alpn.to_vec();
    // Every connection shows its certificate: one that was revoked or replaced cannot resume.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    Ok(Loaded {
        acceptor,
        revoked_serials: Arc::new(revoked_serials),
        validity,
    })
}

fn unusable(what: &'static str, path: &Path, reason: String) -> Error {
    Error::TlsFile {
        what,
        path: path.to_owned(),
        reason,
    }
}

/// A chain and its private key.
fn read_pair(
    cert_file: &Path,
    key_file: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = certificates(&read_file("certificate file", cert_file)?)
        .map_err(|reason| unusable("certificate file", cert_file, reason))?;
    let key_pem = read_file("key file", key_file)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| {
        let reason = format!("it holds no private key in PEM that is not encrypted ({error})");
        unusable("key file", key_file, reason)
    })?;
    Ok((chain, key))
}

/// Why rustls refuses a chain and its key.
fn bad_pair(cert_file: &Path, key_file: &Path, error: rustls::Error) -> Error {
    let reason = match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "the private key in {} does not belong to it",
            key_file.display()
        ),
        other => other.to_string(),
    };
    unusable("certificate file", cert_file, reason)
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::TlsRead {
        what,
        path: path.to_owned(),
        source,
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("it is not valid PEM: {error}"))?;
    if found.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

fn versions(config: &TlsConfig) -> Vec<&'static SupportedProtocolVersion> {
    let all = [
        (TlsVersion::V13, &rustls::version::TLS13),
        (TlsVersion::V12, &rustls::version::TLS12),
    ];
    let offered = config.min_version..=config.max_version;
    all.into_iter()
        .filter(|(version, _)| offered.contains(version))
        .map(|(_, it)| it)
        .collect()
}

fn provider(config: &TlsConfig) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if !config.cipher_suites.is_empty() {
        provider.cipher_suites.retain(|suite| {
            suite.tls13().is_some() || config.cipher_suites.contains(&u16::from(suite.suite()))
        });
    }
    provider
}

fn revoked_serials(bytes: &[u8]) -> Result<HashSet<Vec<u8>>, String> {
    let pem;
    let der = if bytes.starts_with(b"-----") {
        pem = parse_x509_pem(bytes).map_err(|error| error.to_string())?.1;
        &pem.contents[..]
    } else {
        bytes
    };
    let (_, list) = CertificateRevocationList::from_der(der)
        .map_err(|error| format!("it is not a revocation list: {error}"))?;
    Ok(list
        .iter_revoked_certificates()
        .map(|revoked| without_leading_zeros(revoked.raw_serial()).to_vec())
        .collect())
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last common name, as Go takes it.
fn common_name_of(cert: &X509Certificate<'_>) -> Option<String> {
    cert.subject()
        .iter_common_name()
        .last()?
        .as_str()
        .ok()
        .map(str::to_owned)
}

/// Whether a certificate's alternative names cover a host, by Go's rules: addresses compare as
/// addresses, `*` stands for exactly one leftmost label.
fn is_valid_for(cert: &X509Certificate<'_>, host: &str) -> bool {
    let Ok(Some(names)) = cert.subject_alternative_name() else {
        return false;
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let address = bare.parse::<IpAddr>().ok();
    names
        .value
        .general_names
        .iter()
        .any(|name| match (name, address) {
            (GeneralName::IPAddress(bytes), Some(IpAddr::V4(address))) => {
                **bytes == address.octets()
            }
            (GeneralName::IPAddress(bytes), Some(IpAddr::V6(address))) => {
                **bytes == address.octets()
            }
            (GeneralName::DNSName(pattern), None) => dns_matches(pattern, host),
            _ => false,
        })
}

fn dns_matches(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern);
    if host.is_empty() || pattern.is_empty() {
        return false;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(suffix), Some((label, rest))) => {
            !label.is_empty() && rest.eq_ignore_ascii_case(suffix)
        }
        (Some(_), None) => false,
        (None, _) => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::dns_matches;

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(dns_matches("node.example", "Node.Example."));
        assert!(dns_matches("*.example", "a.example"));
        assert!(!dns_matches("*.example", "a.b.example"));
        assert!(!dns_matches("*.example", "example"));
        assert!(!dns_matches("*.example", ".example"));
        assert!(!dns_matches("", ""));
    }
}
