//! What a certificate file and its key say, read into plain values.

use std::path::Path;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::names::{self, Name};
use crate::role::{self, Identity, RoleError};
use crate::{Error, Moment, disk};

/// A certificate of a file, with those that follow it there.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The file's certificates in its order, DER.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) subject: Vec<u8>,
    /// The subject in words.
    pub(crate) subject_text: String,
    pub(crate) issuer: Vec<u8>,
    /// The public key's information, DER.
    pub(crate) public_key: Vec<u8>,
    pub(crate) not_before: Moment,
    pub(crate) not_after: Moment,
    pub(crate) names: Vec<Name>,
    pub(crate) identity: Result<Option<Identity>, RoleError>,
}

impl Facts {
    /// Of the first certificate in a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let pem = disk::read(path)?;
        Self::of(certificates(&pem).map_err(|reason| Error::unusable(path, reason))?)
            .map_err(|reason| Error::unusable(path, reason))
    }

    /// Of the first certificate of a chain; the error is a part of a sentence.
    pub(crate) fn of(chain: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let first = chain.first().ok_or("it holds no certificate in PEM")?;
        let (_, cert) = X509Certificate::from_der(first)
            .map_err(|error| format!("its certificate cannot be read: {error}"))?;
        let validity = cert.validity();
        Ok(Self {
            subject: cert.subject().as_raw().to_vec(),
            subject_text: cert.subject().to_string(),
            issuer: cert.issuer().as_raw().to_vec(),
            public_key: cert.public_key().raw.to_vec(),
            not_before: Moment(validity.not_before.timestamp()),
            not_after: Moment(validity.not_after.timestamp()),
            names: names::of_certificate(&cert),
            identity: role::of_parsed(&cert),
            chain: chain.clone(),
        })
    }

    /// How long it is valid in all, in seconds.
    pub(crate) fn life_s(&self) -> i64 {
        self.not_after.0.saturating_sub(self.not_before.0)
    }

    /// Whether two thirds of its life are over.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        let left_s = self.not_after.0.saturating_sub(now.0);
        left_s.saturating_mul(3) < self.life_s()
    }
}

/// All certificates of a PEM text; the error is a part of a sentence.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("it is not valid PEM: {error}"))?;
    if found.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

/// Whether the private key in a file belongs to a public key's information.
pub(crate) fn key_fits(path: &Path, public_key: &[u8]) -> Result<bool, Error> {
    let pem = disk::read(path)?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| {
        let reason = format!("it holds no private key in PEM that is not encrypted ({error})");
        Error::unusable(path, reason)
    })?;
    let key = any_supported_type(&key).map_err(|error| Error::unusable(path, error.to_string()))?;
    Ok(key
        .public_key()
        .is_some_and(|found| found.as_ref() == public_key))
}
