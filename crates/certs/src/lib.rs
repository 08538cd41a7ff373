//! Authorities and certificates for a server, its followers and its clients: made, renewed in
//! place, checked; and which role a certificate names.
//!
//! One directory holds it all ([`Pki`]). The authorities' keys lie in its `ca` and are never
//! copied; each certificate has a directory of its own, `ROLE/NAME`, that is copied whole to the
//! machine that needs it. The certificate names its role in an alternative name
//! ([`Identity`]): `docs/decisions/0023-certificates-that-name-a-role.md`.
//!
//! This crate speaks to no server and opens no connection. Nothing it does replaces a file that
//! it did not make, and a key is only ever in a file of mode 0600.

mod authority;
mod check;
mod disk;
mod go;
mod leaf;
mod moment;
mod names;
mod pki;
mod role;
mod rotate;

use std::path::{Path, PathBuf};

pub use authority::AuthorityKind;
pub use check::{Finding, Level, Other, Purpose, check_directory, check_other, check_pki};
pub use moment::Moment;
pub use names::{Name, of_this_host};
pub use pki::{Done, Pki, Renewal, Request, What};
pub use role::{
    Identity, Role, RoleError, may_administer, may_be_client, may_connect_to_peer, may_follow,
    may_hold, role_of,
};
pub use rotate::{Phase, Step};

/// Why something was not made, renewed or read. The text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is there, and nothing is replaced.
    #[error("{} is there already; nothing was changed (to renew it: orlop certs renew)", .0.display())]
    Exists(PathBuf),
    /// A directory that is none of ours.
    #[error("{} has no authorities: make them with orlop certs init --dir {}", .0.display(), .0.display())]
    NoAuthorities(PathBuf),
    /// The one asked for is not there.
    #[error("there is no {}: make it with orlop certs make", .0.display())]
    Missing(PathBuf),
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A role or name that no certificate can have.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// An alternative name that no certificate can have.
    #[error("{name:?} cannot stand in a certificate: {reason}")]
    Name {
        /// As it was given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The clock of this machine cannot be right.
    #[error("this machine's clock says {now}, {reason}; set it right first")]
    Clock {
        /// What it says.
        now: Moment,
        /// Why that cannot be.
        reason: String,
    },
    /// A life of so many days is not given.
    #[error("a life of {0} days: give 1 to {MAX_LIFE_DAYS}")]
    Life(u32),
    /// Another command changes this directory.
    #[error("{} is in use: {holder}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What the other one says of itself.
        holder: String,
    },
    /// A step of a change of authority that does not come now.
    #[error("the {kind} authority: {reason}")]
    Rotation {
        /// Which one.
        kind: AuthorityKind,
        /// What to do instead.
        reason: String,
    },
    /// Signing failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    fn unusable(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// How long an authority is valid unless told otherwise, in days: ten years.
pub const AUTHORITY_LIFE_DAYS: u32 = 3650;
/// How long a certificate is valid unless told otherwise, in days.
pub const LIFE_DAYS: u32 = 365;
/// The longest life that can be asked for, in days: a hundred years.
pub const MAX_LIFE_DAYS: u32 = 36_500;

/// A directory's certificate chain, PEM.
pub const CERT_FILE: &str = "tls.crt";
/// Its private key, PEM, mode 0600.
pub const KEY_FILE: &str = "tls.key";
/// Whom the holder of the directory trusts, PEM.
pub const CA_FILE: &str = "ca.crt";
/// Who may administer a server, PEM; for `--admin-trusted-ca-file`.
pub const ADMIN_CA_FILE: &str = "admin-ca.crt";
