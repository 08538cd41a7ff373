//! Which client certificates are taken: those that webpki takes, and three kinds besides that Go,
//! and so etcd, takes and webpki refuses whatever signed them:
//!
//! - X.509 version 1, which `openssl x509 -req` makes when no extensions are asked for;
//! - an authority's (`CA:TRUE`), which `openssl req -x509` makes;
//! - one whose only extended key usage is "any".
//!
//! None of them gives its holder more than a certificate of the usual kind from the same
//! authority. They are taken if an authority of the trusted CA file signed them itself, or if the
//! file holds them. What this does not check as fully as webpki does, such as name constraints,
//! is refused instead.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::asn1_rs::Any;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Version};
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Smaller RSA keys are no secret any more.
const MIN_RSA_BITS: usize = 2048;

/// Why a certificate is refused; in the words of the log.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("its RSA key has {0} bits, and {MIN_RSA_BITS} are the least: make a new one")]
    WeakKey(usize),
    #[error("it is for other uses than a client's: its extended key usage must name clientAuth")]
    Usage,
    #[error("it is of X.509 version 1: {DIRECTLY}")]
    Version1,
    #[error("it is an authority's (CA:TRUE): {DIRECTLY}")]
    Authority,
    #[error("its extended key usage is any: {DIRECTLY}")]
    AnyUsage,
    #[error("it has a critical extension that is not known here: {0}")]
    Extension(String),
}

const DIRECTLY: &str = "such a one must be signed directly by an authority in the trusted CA file \
     that is valid and has no name constraints; make one with clientAuth as its extended key usage";

impl From<Refused> for rustls::Error {
    fn from(refused: Refused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

/// What webpki refuses by its kind and not by who signed it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Version1,
    Authority,
    AnyUsage,
}

impl Kind {
    fn of(cert: &X509Certificate<'_>) -> Option<Self> {
        let usage = cert.extended_key_usage().ok().flatten();
        if cert.version() == X509Version::V1 {
            Some(Self::Version1)
        } else if cert.is_ca() {
            Some(Self::Authority)
        } else if usage.is_some_and(|usage| usage.value.any && !usage.value.client_auth) {
            Some(Self::AnyUsage)
        } else {
            None
        }
    }

    fn unless_signed_directly(self) -> Refused {
        match self {
            Self::Version1 => Refused::Version1,
            Self::Authority => Refused::Authority,
            Self::AnyUsage => Refused::AnyUsage,
        }
    }
}

/// webpki's verifier, and the three kinds besides.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    authorities: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// Trusts what these authorities sign. The error is a reason for a sentence.
    pub(super) fn new(
        authorities: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for der in &authorities {
            roots.add(der.clone()).map_err(|error| error.to_string())?;
        }
        let webpki =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build()
                .map_err(|error| error.to_string())?;
        Ok(Self {
            webpki,
            authorities,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Whether an authority signed a certificate itself, or is it.
    fn is_signed_directly(&self, der: &[u8], cert: &X509Certificate<'_>, now: ASN1Time) -> bool {
        self.authorities.iter().any(|authority| {
            if **authority == *der {
                return true;
            }
            let Ok((_, issuer)) = X509Certificate::from_der(authority) else {
                return false;
            };
            issuer.subject().as_raw() == cert.issuer().as_raw()
                && issuer.validity().is_valid_at(now)
                && may_sign(&issuer)
                && self.has_signed(&issuer, der, cert).unwrap_or(false)
        })
    }

    /// Whether the signature of `cert`, which is `der`, is by the key of `issuer`; `None` if that
    /// cannot be said.
    fn has_signed(
        &self,
        issuer: &X509Certificate<'_>,
        der: &[u8],
        cert: &X509Certificate<'_>,
    ) -> Option<bool> {
        let signed = cert.tbs_certificate.as_ref();
        let signature = &cert.signature_value;
        // The algorithm stands within what is signed as well.
        if cert.tbs_certificate.signature != cert.signature_algorithm || signature.unused_bits != 0
        {
            return None;
        }
        // What is signed, the algorithm, the signature.
        let (_, whole) = Any::from_der(der).ok()?;
        let (rest, _) = Any::from_der(whole.data).ok()?;
        let (_, algorithm) = Any::from_der(rest).ok()?;
        let key_algorithm = key_algorithm(issuer.public_key().raw)?;
        let key = &issuer.public_key().subject_public_key.data;
        let mut usable = self.algorithms.all.iter().filter(|known| {
            known.signature_alg_id().as_ref() == algorithm.data
                && known.public_key_alg_id().as_ref() == key_algorithm
        });
        Some(usable.any(|known| known.verify_signature(key, signed, &signature.data).is_ok()))
    }

    /// The key of a certificate that webpki does not read; `None` for one that it does.
    fn key_beside_webpki(der: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let beside = cert.version() == X509Version::V1;
        beside.then(|| SubjectPublicKeyInfoDer::from(cert.public_key().raw.to_vec()))
    }
}

/// The algorithm in a public key's information, as webpki names it: without tag and length.
fn key_algorithm(info: &[u8]) -> Option<&[u8]> {
    let (_, whole) = Any::from_der(info).ok()?;
    let (_, algorithm) = Any::from_der(whole.data).ok()?;
    Some(algorithm.data)
}

/// By Go's rules for an authority; one with name constraints is left to webpki.
fn may_sign(issuer: &X509Certificate<'_>) -> bool {
    let is_authority = match issuer.basic_constraints() {
        Ok(Some(constraints)) => constraints.value.ca,
        Ok(None) => issuer.version() == X509Version::V1,
        Err(_) => false,
    };
    let for_signing = match issuer.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    is_authority && for_signing && matches!(issuer.name_constraints(), Ok(None))
}

/// What holds for a certificate of each of the three kinds, whoever signed it.
fn check_form(cert: &X509Certificate<'_>, now: ASN1Time) -> Result<(), rustls::Error> {
    let validity = cert.validity();
    if now < validity.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after {
        return Err(CertificateError::Expired.into());
    }
    let usage = cert
        .extended_key_usage()
        .map_err(|error| Refused::Unreadable(error.to_string()))?;
    if usage.is_some_and(|usage| !usage.value.any && !usage.value.client_auth) {
        return Err(Refused::Usage.into());
    }
    for extension in cert.extensions().iter().filter(|e| e.critical) {
        let known = matches!(
            extension.parsed_extension(),
            ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::SubjectAlternativeName(_)
        );
        if !known {
            return Err(Refused::Extension(extension.oid.to_id_string()).into());
        }
    }
    Ok(())
}

/// The size of an RSA key that is too small.
fn weak_rsa_bits(cert: &X509Certificate<'_>) -> Option<usize> {
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let modulus = super::without_leading_zeros(key.modulus);
            let unused = modulus
                .first()
                .map_or(0, |byte| byte.leading_zeros() as usize);
            Some(modulus.len() * 8 - unused).filter(|bits| *bits < MIN_RSA_BITS)
        }
        _ => None,
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (trailing, cert) = X509Certificate::from_der(end_entity)
            .map_err(|error| Refused::Unreadable(error.to_string()))?;
        if !trailing.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        if let Some(bits) = weak_rsa_bits(&cert) {
            return Err(Refused::WeakKey(bits).into());
        }
        let verified = self
            .webpki
            .verify_client_cert(end_entity, intermediates, now);
        let (Err(_), Some(kind)) = (&verified, Kind::of(&cert)) else {
            return verified;
        };
        let now = i64::try_from(now.as_secs())
            .ok()
            .and_then(|now| ASN1Time::from_timestamp(now).ok())
            .ok_or(rustls::Error::FailedToGetCurrentTime)?;
        check_form(&cert, now)?;
        if self.is_signed_directly(end_entity, &cert, now) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(kind.unless_signed_directly().into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let Some(key) = Self::key_beside_webpki(cert) else {
            return self.webpki.verify_tls12_signature(message, cert, signature);
        };
        verify_by_key(&key, message, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match Self::key_beside_webpki(cert) {
            None => self.webpki.verify_tls13_signature(message, cert, signature),
            Some(key) => {
                verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// TLS 1.2's check of a handshake's signature: by any algorithm of the scheme that fits the key.
fn verify_by_key(
    key: &SubjectPublicKeyInfoDer<'_>,
    message: &[u8],
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let bad = || rustls::Error::from(CertificateError::BadSignature);
    let (_, info) = SubjectPublicKeyInfo::from_der(key).map_err(|_| bad())?;
    let key_algorithm = key_algorithm(key).ok_or_else(bad)?;
    let valid = algorithms
        .mapping
        .iter()
        .filter(|(scheme, _)| *scheme == signature.scheme)
        .flat_map(|(_, algorithms)| algorithms.iter())
        .filter(|known| known.public_key_alg_id().as_ref() == key_algorithm)
        .any(|known| {
            let bytes = &info.subject_public_key.data;
            known
                .verify_signature(bytes, message, signature.signature())
                .is_ok()
        });
    if valid {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(bad())
    }
}

/// Whether a certificate in `ca_file` has the name of who signed the one in `cert_file`, as far as
/// both can be read: for advice, not for trust.
pub fn names_issuer(ca_file: &Path, cert_file: &Path) -> bool {
    let read = |file: &Path| {
        let pem = std::fs::read(file).unwrap_or_default();
        super::certificates(&pem).unwrap_or_default()
    };
    let (authorities, chain) = (read(ca_file), read(cert_file));
    let Some(Ok((_, last))) = chain.last().map(|der| X509Certificate::from_der(der)) else {
        return false;
    };
    authorities.iter().any(|der| {
        X509Certificate::from_der(der)
            .is_ok_and(|(_, authority)| authority.subject().as_raw() == last.issuer().as_raw())
    })
}

/// Whether a server with this trusted CA file would take this client certificate.
///
/// # Errors
/// Why not, or that a file cannot be read, as the part of a sentence.
pub fn check_client_certificate(ca_file: &Path, cert_file: &Path) -> Result<(), String> {
    check_client_certificate_at(ca_file, cert_file, UnixTime::now())
}

/// As [`check_client_certificate`], at another time.
///
/// # Errors
/// As [`check_client_certificate`].
pub fn check_client_certificate_at(
    ca_file: &Path,
    cert_file: &Path,
    at: UnixTime,
) -> Result<(), String> {
    let read = |file: &Path| {
        let named = |reason: String| format!("{}: {reason}", file.display());
        let pem = std::fs::read(file).map_err(|error| named(error.to_string()))?;
        super::certificates(&pem).map_err(named)
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ClientVerifier::new(read(ca_file)?, &provider)?;
    let chain = read(cert_file)?;
    let Some((leaf, rest)) = chain.split_first() else {
        return Err(format!("{}: it holds no certificate", cert_file.display()));
    };
    verifier
        .verify_client_cert(leaf, rest, at)
        .map(|_| ())
        .map_err(|error| super::reason_of(&error))
}
