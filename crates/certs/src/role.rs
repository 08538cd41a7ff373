//! What a certificate says its holder is: one alternative name, `orlop://ROLE/NAME`.
//!
//! Go, OpenSSL and rustls take such a name and make nothing of it; only orlop's listeners do.
//! Everything here fails closed: a certificate with a name of this scheme that is not understood
//! is nobody's.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::AuthorityKind;

/// What the alternative name begins with; upper and lower case are the same to whoever reads it.
const SCHEME: &str = "orlop:";
/// The longest name of a host, and so of a node.
const MAX_NAME_BYTES: usize = 253;

/// What the holder of a certificate may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Serves clients (`--cert-file`); etcd's own server too.
    Server,
    /// Serves followers (`--peer-cert-file`); etcd's peer port too.
    Peer,
    /// Holds recent records in memory, and nothing else.
    Shard,
    /// Keeps a copy on its disk, and nothing else.
    Keeper,
    /// Reads and writes keys: kube-apiserver, etcdctl.
    Client,
    /// `orlop proxy`, when it asks members who leads.
    Proxy,
    /// Administers a server over TCP (`--admin-trusted-ca-file`).
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Server,
        Self::Peer,
        Self::Shard,
        Self::Keeper,
        Self::Client,
        Self::Proxy,
        Self::Admin,
    ];

    /// As it stands in a certificate, on the command line and in a path.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Peer => "peer",
            Self::Shard => "shard",
            Self::Keeper => "keeper",
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Admin => "admin",
        }
    }

    /// Who signs it.
    #[must_use]
    pub fn authority(self) -> AuthorityKind {
        match self {
            Self::Server | Self::Client | Self::Proxy => AuthorityKind::Main,
            Self::Peer | Self::Shard | Self::Keeper => AuthorityKind::Peer,
            Self::Admin => AuthorityKind::Admin,
        }
    }

    /// Whether others connect to it, so that its certificate needs names.
    #[must_use]
    pub fn serves(self) -> bool {
        matches!(self, Self::Server | Self::Peer)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text or a certificate names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// A role that this release does not know.
    #[error("{0:?} is no role: server, peer, shard, keeper, client, proxy or admin")]
    Role(String),
    /// A name that cannot be one.
    #[error(
        "{0:?} cannot be a name: small letters, digits, `-` and `.`, letters or digits first and \
         last, at most {MAX_NAME_BYTES} bytes"
    )]
    Name(String),
    /// A text of another form.
    #[error("{0:?} is not of the form orlop://ROLE/NAME")]
    Form(String),
    /// More than one.
    #[error("it names more than one role")]
    Several,
    /// Not X.509, or alternative names that cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// A role that may not use this port.
    #[error("it names {0}, and this port is not for a {role}", role = .0.role)]
    NotHere(Identity),
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| RoleError::Role(text.to_owned()))
    }
}

/// Who the holder of a certificate is: a role, and a name within it.
///
/// Shown as the alternative name, `orlop://shard/node-7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// What it may do.
    pub role: Role,
    name: String,
}

impl Identity {
    /// `name` is a node's, mostly: small letters, digits, `-` and `.`, at most 253 bytes.
    ///
    /// # Errors
    /// If it is not.
    pub fn new(role: Role, name: &str) -> Result<Self, RoleError> {
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = name.len() <= MAX_NAME_BYTES
            && name.bytes().all(|c| letter(c) || c == b'-' || c == b'.')
            && name.bytes().next().is_some_and(letter)
            && name.bytes().last().is_some_and(letter)
            && !name.contains("..");
        if !good {
            return Err(RoleError::Name(name.to_owned()));
        }
        let name = name.to_owned();
        Ok(Self { role, name })
    }

    /// The name within the role.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}//{}/{}", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let form = || RoleError::Form(text.to_owned());
        let path = text.strip_prefix(SCHEME).ok_or_else(form)?;
        let path = path.strip_prefix("//").ok_or_else(form)?;
        let (role, name) = path.split_once('/').ok_or_else(form)?;
        Self::new(role.parse()?, name)
    }
}

/// Which role a certificate names, in DER; `None` if it has no name of ours. It must have been
/// verified before: this looks at no signature.
///
/// # Errors
/// If it has a name of ours that is not understood, or several: it is nobody's then.
pub fn role_of(der: &[u8]) -> Result<Option<Identity>, RoleError> {
    let unreadable = |error: String| RoleError::Unreadable(error);
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| unreadable(e.to_string()))?;
    of_parsed(&cert)
}

pub(crate) fn of_parsed(cert: &X509Certificate<'_>) -> Result<Option<Identity>, RoleError> {
    let names = cert
        .subject_alternative_name()
        .map_err(|error| RoleError::Unreadable(error.to_string()))?;
    let mut ours = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .filter(|uri| {
            let start = uri.get(..SCHEME.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
        });
    let Some(first) = ours.next() else {
        return Ok(None);
    };
    if ours.next().is_some() {
        return Err(RoleError::Several);
    }
    first.parse().map(Some)
}

fn is_one_of(der: &[u8], roles: &[Role]) -> Result<(), RoleError> {
    match role_of(der)? {
        Some(identity) if !roles.contains(&identity.role) => Err(RoleError::NotHere(identity)),
        _ => Ok(()),
    }
}

/// Whether the holder of a verified certificate may read and write keys: it names no role, as
/// etcd's own do, or one that may. A shard and a keeper may not, whoever signed them.
///
/// # Errors
/// Why not.
pub fn may_be_client(der: &[u8]) -> Result<(), RoleError> {
    is_one_of(der, &[Role::Server, Role::Client, Role::Proxy])
}

/// Whether the holder of a verified certificate may administer: it names no role, or that one.
///
/// # Errors
/// Why not.
pub fn may_administer(der: &[u8]) -> Result<(), RoleError> {
    is_one_of(der, &[Role::Admin])
}

/// Whether the holder of a verified certificate may follow a server, and so read all of its data:
/// it names no role, or a keeper's.
///
/// # Errors
/// Why not.
pub fn may_follow(der: &[u8]) -> Result<(), RoleError> {
    is_one_of(der, &[Role::Keeper])
}

/// Whether the holder of a verified certificate may hold a server's newest records in memory, as a
/// shard: it names no role, or that one.
///
/// # Errors
/// Why not.
pub fn may_hold(der: &[u8]) -> Result<(), RoleError> {
    is_one_of(der, &[Role::Shard])
}

/// Whether the holder of a verified certificate has any business at a peer port: to follow or to
/// hold. Which of them, each call asks.
///
/// # Errors
/// Why not.
pub fn may_connect_to_peer(der: &[u8]) -> Result<(), RoleError> {
    is_one_of(der, &[Role::Keeper, Role::Shard])
}

#[cfg(test)]
mod tests {
    use super::{
        Identity, Role, RoleError, may_administer, may_be_client, may_connect_to_peer, may_follow,
        may_hold, role_of,
    };
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn with_uris(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let names = uris.iter().map(|uri| (*uri).try_into().unwrap());
        params.subject_alt_names.extend(names.map(SanType::URI));
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_role_is_read_as_it_was_written() {
        for role in Role::ALL {
            let identity = Identity::new(role, "node-7.example").unwrap();
            assert_eq!(identity.to_string().parse(), Ok(identity.clone()));
            let der = with_uris(&["https://example.com", &identity.to_string()]);
            assert_eq!(role_of(&der), Ok(Some(identity)));
        }
        assert_eq!(role_of(&with_uris(&["https://example.com"])), Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_nobodys() {
        for uri in [
            "orlop://standby/a",
            "orlop://shard/",
            "orlop://shard",
            "orlop://shard/a/b",
            "orlop://Shard/a",
            "ORLOP://shard/a",
            "orlop:shard/a",
            "orlop://shard/a?b",
            "orlop://shard/..",
        ] {
            let der = with_uris(&[uri]);
            assert!(role_of(&der).is_err(), "{uri}");
            assert!(may_be_client(&der).is_err(), "{uri}");
            assert!(may_administer(&der).is_err(), "{uri}");
            assert!(may_follow(&der).is_err(), "{uri}");
            assert!(may_hold(&der).is_err(), "{uri}");
            assert!(may_connect_to_peer(&der).is_err(), "{uri}");
        }
        let two = with_uris(&["orlop://client/a", "orlop://shard/a"]);
        assert_eq!(role_of(&two), Err(RoleError::Several));
        assert!(role_of(b"no certificate").is_err());
    }

    #[test]
    fn a_port_is_for_its_roles_and_for_who_names_none() {
        for role in Role::ALL {
            let der = with_uris(&[&Identity::new(role, "a").unwrap().to_string()]);
            let client = matches!(role, Role::Server | Role::Client | Role::Proxy);
            assert_eq!(may_be_client(&der).is_ok(), client, "{role}");
            assert_eq!(may_administer(&der).is_ok(), role == Role::Admin, "{role}");
            assert_eq!(may_follow(&der).is_ok(), role == Role::Keeper, "{role}");
            assert_eq!(may_hold(&der).is_ok(), role == Role::Shard, "{role}");
            let peer = matches!(role, Role::Keeper | Role::Shard);
            assert_eq!(may_connect_to_peer(&der).is_ok(), peer, "{role}");
        }
        assert!(may_be_client(&with_uris(&[])).is_ok());
        assert!(may_administer(&with_uris(&[])).is_ok());
        assert!(may_follow(&with_uris(&[])).is_ok());
        assert!(may_hold(&with_uris(&[])).is_ok());
    }

    #[test]
    fn names_are_safe_as_a_path() {
        for bad in ["", ".", "..", "a/b", "-a", "a-", "A", "a_b", "a..b", "ä"] {
            assert!(Identity::new(Role::Shard, bad).is_err(), "{bad}");
        }
        assert!(Identity::new(Role::Shard, &"a".repeat(253)).is_ok());
        assert!(Identity::new(Role::Shard, &"a".repeat(254)).is_err());
    }
}
