//! The members of a source, as the command's flags name them.

use crate::failure::say;
use crate::import_source::SourceError;
use std::path::PathBuf;
use upstream::{Client, Endpoint, Pinned, Routes, Scheme, Settings};
use wire::ClientTlsConfig;

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

    fn config(&self) -> Option<ClientTlsConfig> {
        Some(ClientTlsConfig {
            ca_file: self.cacert.clone()?,
            identity: self.cert.clone().zip(self.key.clone()),
            server_name: None,
        })
    }

    /// What else may be the reason when nobody answers at an endpoint.
    pub(crate) fn hint(&self, endpoint: &Endpoint, text: &str) -> &'static str {
        match endpoint.scheme {
            Scheme::Http if text.contains("transport error") => {
                " (if it serves TLS: https:// and --cacert, --cert, --key)"
            }
            // What a server without it says depends on when it closes.
            Scheme::Https if self.cert.is_none() && text.contains("transport error") => {
                " (if it wants a client certificate: --cert and --key)"
            }
            Scheme::Http | Scheme::Https => "",
        }
    }
}

/// The endpoints of a list, separated by commas; none is connected yet.
///
/// # Errors
/// [`SourceError::Argument`] if one is no endpoint, or does not go with `tls`.
pub(crate) fn members(list: &str, tls: &TlsArgs) -> Result<Pinned, SourceError> {
    let argument = |error: &dyn std::fmt::Display| SourceError::Argument(error.to_string());
    let endpoints = Endpoint::list(list).map_err(|error| argument(&error))?;
    let mut settings = Settings::new(endpoints.clone());
    settings.tls = tls.config();
    let client = Client::new(&settings, Routes::default()).map_err(|error| match error {
        upstream::Error::NoAuthority(endpoint) => SourceError::Argument(format!(
            "{endpoint}: an https endpoint needs --cacert, the CA that signed the server's \
             certificate (kubeadm: /etc/kubernetes/pki/etcd/ca.crt)"
        )),
        other => argument(&other),
    })?;
    Ok(Pinned::new(client, endpoints))
}

/// Goes on with the next member after `from` has failed, and says so.
pub(crate) fn turn(members: &Pinned, from: usize, why: &str) {
    let failed = &members.endpoints()[from];
    match members.turn(from) {
        Some(next) if next != from => {
            say!(
                "{failed}: {why}; going on with {}",
                members.endpoints()[next]
            );
        }
        Some(_) => say!("{failed}: {why}; trying again"),
        // Another call has failed there before.
        None => {}
    }
}
