//! Certificates for one test: an authority, and what it signs.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::Result;

/// An authority whose certificate and key lie in a directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// The authority's certificate, as a PEM file.
    pub cert: PathBuf,
    /// The same, as text.
    pub cert_pem: String,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Certificate.
    pub cert: PathBuf,
    /// Private key (PKCS#8).
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority named `name`, with its files in `dir`.
    ///
    /// # Errors
    /// If a certificate cannot be made or a file not be written.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate()?;
        let cert_pem = params.self_signed(&key)?.pem();
        let cert = dir.join(format!("{name}-ca.crt"));
        std::fs::create_dir_all(dir)?;
        std::fs::write(&cert, &cert_pem)?;
        Ok(Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
            cert,
            cert_pem,
        })
    }

    /// Signs a certificate for servers and clients on this machine, valid for
    /// `localhost` and 127.0.0.1, with `common_name` as its subject.
    ///
    /// # Errors
    /// If the certificate cannot be made or a file not be written.
    pub fn sign(&self, common_name: &str) -> Result<Pair> {
        self.sign_for(common_name, &[])
    }

    /// As [`Authority::sign`], valid for `more` names and addresses too.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn sign_for(&self, common_name: &str, more: &[String]) -> Result<Pair> {
        let names = [
            "localhost",
            "127.0.0.1",
            "kubernetes",
            "kubernetes.default.svc",
        ];
        let mut names = names.map(String::from).to_vec();
        names.extend_from_slice(more);
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        let pair = Pair {
            cert: self.dir.join(format!("{common_name}.crt")),
            key: self.dir.join(format!("{common_name}.key")),
        };
        std::fs::write(&pair.cert, pem)?;
        std::fs::write(&pair.key, key.serialize_pem())?;
        Ok(pair)
    }
}

/// A directory in `parent` for keys and tokens, that nobody else may look into; it goes when it
/// is dropped.
///
/// # Errors
/// Those of the file system.
pub fn private_dir(prefix: &str, parent: &Path) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
}

/// Writes a fresh private key (ECDSA P-256, PKCS#8 PEM) to `path` and its public
/// half beside it, with `.pub` appended.
///
/// # Errors
/// If the key cannot be made or a file not be written.
pub fn write_key(path: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    std::fs::write(path, key.serialize_pem())?;
    std::fs::write(path.with_added_extension("pub"), key.public_key_pem())?;
    Ok(())
}
