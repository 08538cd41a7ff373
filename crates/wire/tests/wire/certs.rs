//! Certificates for tests.
#![allow(unreachable_pub, reason = "a module of a test, not an API")]

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    SigningKey, date_time_ymd,
};
use tempfile::TempDir;
use x509_parser::asn1_rs::{Any, FromDer};

/// One part of DER: tag, length, content.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut out = vec![tag];
    match content.len() {
        0..0x80 => out.push(low),
        0x80..0x100 => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    out.extend_from_slice(content);
    out
}

fn content(der: &[u8]) -> &[u8] {
    Any::from_der(der).unwrap().1.data
}

/// The parts that follow each other in `der`, each with its tag and length.
fn parts(mut der: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = Any::from_der(der).unwrap();
        let (part, _) = der.split_at(der.len() - rest.len());
        found.push(part);
        der = rest;
    }
    found
}

pub struct Authority {
    pub dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM and as files.
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("test authority")
    }

    pub fn named(common_name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    /// Its own certificate, to show as a client.
    pub fn pair(&self) -> Pair {
        let key = self.dir.path().join("ca.key");
        std::fs::write(&key, self.issuer.key().serialize_pem()).unwrap();
        let cert = self.ca_file();
        Pair { cert, key }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes `NAME.pem` and `NAME.key`, over older ones.
    pub fn issue(&self, file: &str, common_name: &str, sans: &[&str], serial: u8) -> Pair {
        self.issue_as(file, common_name, sans, serial, |_| {})
    }

    /// The same, with other parameters.
    pub fn issue_as(
        &self,
        file: &str,
        common_name: &str,
        sans: &[&str],
        serial: u8,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let sans: Vec<String> = sans.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(sans).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from_slice(&[serial]));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        self.write(file, cert.der(), &key)
    }

    /// A certificate of version 1, which has no extensions: the parts of one of version 3, signed
    /// anew.
    pub fn issue_version1(&self, file: &str, common_name: &str) -> Pair {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let [tbs, algorithm, _] = parts(content(cert.der())).try_into().unwrap();
        // The first is the version, the last the extensions.
        let kept = parts(content(tbs))
            .into_iter()
            .filter(|part| ![0xa0, 0xa3].contains(&part[0]));
        let tbs = tlv(0x30, &kept.collect::<Vec<_>>().concat());
        let mut signature = vec![0];
        signature.extend(self.issuer.key().sign(&tbs).unwrap());
        let whole = [&tbs, algorithm, &tlv(0x03, &signature)].concat();
        self.write(file, &tlv(0x30, &whole), &key)
    }

    fn write(&self, file: &str, der: &[u8], key: &KeyPair) -> Pair {
        use base64::Engine;
        let pair = Pair {
            cert: self.dir.path().join(format!("{file}.pem")),
            key: self.dir.path().join(format!("{file}.key")),
        };
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(&pair.cert, pem).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    pub fn revoke(&self, serial: u8) -> PathBuf {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2126, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(&[serial]),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        let path = self.dir.path().join("crl");
        std::fs::write(&path, list.der()).unwrap();
        path
    }
}
