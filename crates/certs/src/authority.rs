//! Who signs: an authority's certificate and its key.

use std::fmt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};

use crate::disk::{self, Disk, PUBLIC, SECRET};
use crate::leaf::{self, Facts};
use crate::moment::DAY_S;
use crate::names::Name;
use crate::role::Identity;
use crate::{Error, MAX_LIFE_DAYS, Moment};

/// The authority's certificate in its directory.
pub(crate) const AUTHORITY_CERT: &str = "ca.crt";
/// Its private key, in the same place and nowhere else.
pub(crate) const AUTHORITY_KEY: &str = "ca.key";
/// Clocks of other machines may be behind by so much, in seconds.
const BACKDATE_S: i64 = 3600;
/// The longest common name that X.509 has room for.
const MAX_COMMON_NAME_BYTES: usize = 64;

/// Which authority. They are apart so that a certificate of one opens no port of another, with
/// whatever program listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthorityKind {
    /// Servers and clients: `--trusted-ca-file`.
    Main,
    /// Peers and followers: `--peer-trusted-ca-file`.
    Peer,
    /// Administrators: `--admin-trusted-ca-file`.
    Admin,
}

impl AuthorityKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Main, Self::Peer, Self::Admin];

    /// As it stands on the command line and in a path.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Peer => "peer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Days in seconds, if that many may be asked for.
pub(crate) fn life_s(days: u32) -> Result<i64, Error> {
    if days == 0 || days > MAX_LIFE_DAYS {
        return Err(Error::Life(days));
    }
    Ok(i64::from(days) * DAY_S)
}

/// The life that a certificate was asked to have, without what it was dated back by, in seconds.
pub(crate) fn asked_life_s(facts: &Facts) -> i64 {
    facts.life_s().saturating_sub(BACKDATE_S)
}

/// 16 random bytes: never the same twice, and so never revoked with another.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    // Positive, and of the same length always.
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// An authority that can sign.
pub(crate) struct Authority {
    pub(crate) facts: Facts,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one in the directory `dir`, which must not be there.
    pub(crate) fn make(
        disk: &Disk,
        dir: &Path,
        kind: AuthorityKind,
        life_days: u32,
        now: Moment,
    ) -> Result<(), Error> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
        // Two authorities never have the same name: verifiers find an issuer by it.
        let mut tag = [0; 4];
        aws_lc_rs::rand::fill(&mut tag).map_err(|_| Error::Random)?;
        let name = format!("orlop {kind} CA {:08x}", u32::from_be_bytes(tag));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = now.plus_s(-BACKDATE_S).to_time();
        params.not_after = now.plus_s(life_s(life_days)?).to_time();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?.pem();
        let files = [
            (AUTHORITY_KEY, key.serialize_pem(), SECRET),
            (AUTHORITY_CERT, cert, PUBLIC),
        ];
        let files = files
            .each_ref()
            .map(|(name, text, mode)| (*name, text.as_str(), *mode));
        disk.new_dir_with(dir, 0o700, &files)
    }

    /// Reads one, and its key.
    pub(crate) fn load(dir: &Path) -> Result<Self, Error> {
        let cert_path = dir.join(AUTHORITY_CERT);
        let key_path = dir.join(AUTHORITY_KEY);
        let facts = Facts::read(&cert_path)?;
        if !leaf::key_fits(&key_path, &facts.public_key)? {
            let reason = format!("the key does not belong to {}", cert_path.display());
            return Err(Error::unusable(&key_path, reason));
        }
        let key = KeyPair::from_pem(&disk::read(&key_path)?)
            .map_err(|error| Error::unusable(&key_path, error.to_string()))?;
        let Some(first) = facts.chain.first() else {
            return Err(Error::unusable(&cert_path, "it holds no certificate"));
        };
        let issuer = Issuer::from_ca_cert_der(first, key)?;
        Ok(Self { facts, issuer })
    }

    /// When a certificate made now ends: after so long, or with the authority.
    ///
    /// # Errors
    /// If the authority is not valid now.
    pub(crate) fn end_of(&self, life_s: i64, now: Moment) -> Result<Moment, Error> {
        let clock = |reason| Error::Clock { now, reason };
        if now < self.facts.not_before {
            let from = self.facts.not_before;
            return Err(clock(format!(
                "and the authority {} is valid from {from} only",
                self.facts.subject_text
            )));
        }
        if now >= self.facts.not_after {
            let end = self.facts.not_after;
            return Err(clock(format!(
                "and the authority {} has expired, on {end}: if the clock is right, change it \
                 with orlop certs rotate-ca; that is what has to be done first",
                self.facts.subject_text
            )));
        }
        Ok(now.plus_s(life_s).min(self.facts.not_after))
    }

    /// Signs a certificate for a public key; PEM.
    pub(crate) fn sign(
        &self,
        public_key: &impl PublicKeyData,
        identity: &Identity,
        names: &[Name],
        life_s: i64,
        now: Moment,
    ) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
        params.not_before = now.plus_s(-BACKDATE_S).to_time();
        params.not_after = self.end_of(life_s, now)?.to_time();
        params.distinguished_name = DistinguishedName::new();
        let role = identity.role.as_str();
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role);
        if identity.name().len() <= MAX_COMMON_NAME_BYTES {
            params
                .distinguished_name
                .push(DnType::CommonName, identity.name());
        }
        let uri = SanType::URI(identity.to_string().try_into()?);
        params.subject_alt_names.push(uri);
        for name in names {
            params.subject_alt_names.push(name.to_san()?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if identity.role.serves() {
            params
                .extended_key_usages
                .insert(0, ExtendedKeyUsagePurpose::ServerAuth);
        }
        Ok(params.signed_by(public_key, &self.issuer)?.pem())
    }
}
