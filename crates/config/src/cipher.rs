//! TLS cipher suites: the names Go knows, and those of them rustls has.

use crate::golang::quote;
use crate::{Error, Notice};

/// A cipher suite that rustls can speak, under its name in Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CipherSuite {
    /// TLS 1.3.
    Aes128GcmSha256,
    /// TLS 1.3.
    Aes256GcmSha384,
    /// TLS 1.3.
    Chacha20Poly1305Sha256,
    /// TLS 1.2.
    EcdheEcdsaAes128GcmSha256,
    /// TLS 1.2.
    EcdheEcdsaAes256GcmSha384,
    /// TLS 1.2.
    EcdheEcdsaChacha20Poly1305Sha256,
    /// TLS 1.2.
    EcdheRsaAes128GcmSha256,
    /// TLS 1.2.
    EcdheRsaAes256GcmSha384,
    /// TLS 1.2.
    EcdheRsaChacha20Poly1305Sha256,
}

use CipherSuite::{
    Aes128GcmSha256, Aes256GcmSha384, Chacha20Poly1305Sha256, EcdheEcdsaAes128GcmSha256,
    EcdheEcdsaAes256GcmSha384, EcdheEcdsaChacha20Poly1305Sha256, EcdheRsaAes128GcmSha256,
    EcdheRsaAes256GcmSha384, EcdheRsaChacha20Poly1305Sha256,
};

/// Name in Go and number (RFC 5246, 8446, 7905) of each suite.
const SUPPORTED: [(CipherSuite, &str, u16); 9] = [
    (Aes128GcmSha256, "TLS_AES_128_GCM_SHA256", 0x1301),
    (Aes256GcmSha384, "TLS_AES_256_GCM_SHA384", 0x1302),
    (
        Chacha20Poly1305Sha256,
        "TLS_CHACHA20_POLY1305_SHA256",
        0x1303,
    ),
    (
        EcdheEcdsaAes128GcmSha256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        0xc02b,
    ),
    (
        EcdheEcdsaAes256GcmSha384,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        0xc02c,
    ),
    (
        EcdheEcdsaChacha20Poly1305Sha256,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        0xcca9,
    ),
    (
        EcdheRsaAes128GcmSha256,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        0xc02f,
    ),
    (
        EcdheRsaAes256GcmSha384,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        0xc030,
    ),
    (
        EcdheRsaChacha20Poly1305Sha256,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        0xcca8,
    ),
];

/// Older names that etcd takes for two of them.
const OLDER_NAMES: [(&str, CipherSuite); 2] = [
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
        EcdheRsaChacha20Poly1305Sha256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        EcdheEcdsaChacha20Poly1305Sha256,
    ),
];

/// Suites that Go has and rustls leaves out as unsafe.
const ONLY_IN_GO: [&str; 16] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

impl CipherSuite {
    fn row(self) -> (&'static str, u16) {
        SUPPORTED
            .iter()
            .find(|(suite, ..)| *suite == self)
            .map_or(("", 0), |(_, name, id)| (name, *id))
    }

    /// Its name in Go's `crypto/tls`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Its number in the IANA registry, as rustls gives it too.
    #[must_use]
    pub fn iana_id(self) -> u16 {
        self.row().1
    }

    fn named(name: &str) -> Option<Self> {
        let current = SUPPORTED
            .iter()
            .find(|(_, n, _)| *n == name)
            .map(|(suite, ..)| *suite);
        current.or_else(|| {
            OLDER_NAMES
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, suite)| *suite)
        })
    }

    /// All suites, TLS 1.3's first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        SUPPORTED.iter().map(|(suite, ..)| *suite).collect()
    }
}

/// Keeps of `--cipher-suites` what rustls has, with a warning for what it has
/// not.
///
/// # Errors
/// A name that Go does not know either (etcd's text), or none that is left.
pub(crate) fn select(
    names: &[String],
    notices: &mut Vec<Notice>,
) -> Result<Vec<CipherSuite>, Error> {
    let mut suites = Vec::new();
    let mut dropped = Vec::new();
    for name in names {
        match CipherSuite::named(name) {
            Some(suite) if suites.contains(&suite) => {}
            Some(suite) => suites.push(suite),
            None if ONLY_IN_GO.contains(&name.as_str()) => dropped.push(name.as_str()),
            None => {
                return Err(Error::Invalid(format!(
                    "unexpected TLS cipher suite {}",
                    quote(name)
                )));
            }
        }
    }
    if dropped.is_empty() {
        return Ok(suites);
    }
    if suites.is_empty() {
        let known: Vec<_> = SUPPORTED.iter().map(|(_, name, _)| *name).collect();
        return Err(Error::Invalid(format!(
            "--cipher-suites names only suites that are left out as unsafe ({}); name at least \
             one of {}",
            dropped.join(", "),
            known.join(", ")
        )));
    }
    notices.push(
        Notice::warn("ignoring cipher suites that are left out as unsafe")
            .with("cipher-suites", dropped.join(",")),
    );
    Ok(suites)
}
