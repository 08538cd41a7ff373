//! The directory with all authorities and certificates, and what is done in it.

use std::path::{Path, PathBuf};

use files::real::RealFs;
use files::{FileSystem, Lock, LockError, LockMode};
use rcgen::{KeyPair, SubjectPublicKeyInfo};

use crate::authority::{self, AUTHORITY_CERT, Authority, AuthorityKind};
use crate::disk::{self, Disk, PUBLIC, SECRET};
use crate::leaf::{self, Facts};
use crate::moment::DAY_S;
use crate::names::{self, Name};
use crate::role::{Identity, Role};
use crate::rotate::{Phase, Places, Step};
use crate::{ADMIN_CA_FILE, CA_FILE, CERT_FILE, Error, KEY_FILE, LIFE_DAYS, Moment};

/// Held while a command changes the directory.
const LOCK_FILE: &str = ".lock";

/// A certificate that is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose.
    pub identity: Identity,
    /// What else it is to be valid for. A server's and a peer's are valid for their own name and
    /// for loopback in any case.
    pub names: Vec<Name>,
    /// Days that it is valid.
    pub life_days: u32,
}

impl Request {
    /// All names, each once.
    #[must_use]
    pub fn all_names(&self) -> Vec<Name> {
        let mut all = Vec::new();
        if self.identity.role.serves() {
            all.extend(Name::parse(self.identity.name()));
        }
        all.extend(self.names.iter().cloned());
        if self.identity.role.serves() {
            all.extend(names::of_loopback());
        }
        let mut seen = std::collections::HashSet::new();
        all.retain(|name| seen.insert(name.clone()));
        all
    }
}

/// What is to happen to certificates that are there.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// All, and not only those that are due.
    pub all: bool,
    /// Those that end within so many days are due; by default in the last third of their life.
    pub within_days: Option<u32>,
    /// With a new key. Otherwise the key stays, and need not be here.
    pub new_key: bool,
    /// Names to add.
    pub add: Vec<Name>,
    /// Names to leave out.
    pub remove: Vec<Name>,
    /// Days of the new life; by default the old one's.
    pub life_days: Option<u32>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was done to a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Made,
    /// It has a new certificate.
    Renewed,
    /// It trusts others than before; the certificate is the same.
    Trust,
    /// Nothing.
    Kept,
}

/// A directory, and what was done to it.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which one.
    pub path: PathBuf,
    /// What.
    pub what: What,
    /// When its certificate ends.
    pub not_after: Moment,
    /// What it is valid for.
    pub names: Vec<Name>,
    /// Whether it ends with its authority, earlier than asked for.
    pub ends_with_authority: bool,
}

/// Which files of trust a role's directory has, and whose certificates are in them.
pub(crate) fn trust_files(role: Role) -> Vec<(&'static str, AuthorityKind)> {
    match role {
        Role::Server | Role::Admin => vec![
            (CA_FILE, AuthorityKind::Main),
            (ADMIN_CA_FILE, AuthorityKind::Admin),
        ],
        Role::Client | Role::Proxy => vec![(CA_FILE, AuthorityKind::Main)],
        Role::Peer | Role::Shard | Role::Keeper => vec![(CA_FILE, AuthorityKind::Peer)],
    }
}

/// The file of trust that has who signed the role's certificate.
pub(crate) fn issuer_file(role: Role) -> &'static str {
    match role {
        Role::Admin => ADMIN_CA_FILE,
        _ => CA_FILE,
    }
}

/// The certificates of all authorities of a kind that are trusted now, PEM.
pub(crate) fn bundle(pki: &Path, kind: AuthorityKind) -> Result<String, Error> {
    let mut text = String::new();
    for dir in Places::of(pki, kind).trusted() {
        text.push_str(&disk::read(&dir.join(AUTHORITY_CERT))?);
    }
    Ok(text)
}

/// All certificates' directories, and those whose name is none.
pub(crate) fn leaves(pki: &Path) -> Result<Vec<Result<Identity, PathBuf>>, Error> {
    let mut found = Vec::new();
    for role in Role::ALL {
        let dir = pki.join(role.as_str());
        for name in disk::directories(&dir)? {
            found.push(Identity::new(role, &name).map_err(|_| dir.join(name)));
        }
    }
    Ok(found)
}

/// The directory, locked: nobody else changes it meanwhile.
pub struct Pki {
    dir: PathBuf,
    disk: Disk,
    now: Moment,
    _lock: Box<dyn Lock>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Pki {
    /// Makes the authorities that are not there, and says which. `now` is what the clock says.
    ///
    /// # Errors
    /// If one cannot be made. Those made before stay; the next call makes the rest.
    pub fn init(
        dir: &Path,
        life_days: u32,
        now: Moment,
    ) -> Result<(Self, Vec<AuthorityKind>), Error> {
        Self::init_on(Disk::default(), dir, life_days, now)
    }

    pub(crate) fn init_on(
        disk: Disk,
        dir: &Path,
        life_days: u32,
        now: Moment,
    ) -> Result<(Self, Vec<AuthorityKind>), Error> {
        now.check()?;
        authority::life_s(life_days)?;
        disk.make_dir(dir, 0o700)?;
        let pki = Self::lock(disk, dir, now)?;
        pki.disk.make_dir(&dir.join("ca"), 0o700)?;
        pki.settle()?;
        let mut made = Vec::new();
        for kind in AuthorityKind::ALL {
            let place = Places::of(dir, kind).current;
            if !place.exists() {
                Authority::make(&pki.disk, &place, kind, life_days, now)?;
                made.push(kind);
            }
        }
        Ok((pki, made))
    }

    /// Opens one that is there.
    ///
    /// # Errors
    /// If it is none, or in use.
    pub fn open(dir: &Path, now: Moment) -> Result<Self, Error> {
        Self::open_on(Disk::default(), dir, now)
    }

    pub(crate) fn open_on(disk: Disk, dir: &Path, now: Moment) -> Result<Self, Error> {
        now.check()?;
        if !dir.join("ca").is_dir() {
            return Err(Error::NoAuthorities(dir.to_owned()));
        }
        let pki = Self::lock(disk, dir, now)?;
        pki.settle()?;
        Ok(pki)
    }

    fn lock(disk: Disk, dir: &Path, now: Moment) -> Result<Self, Error> {
        let path = dir.join(LOCK_FILE);
        let text = format!("orlop certs, process {}", std::process::id());
        let lock = RealFs::new().lock(&path, LockMode::Exclusive, &text);
        let lock = lock.map_err(|error| match error {
            LockError::Held(holder) => Error::Locked {
                path: dir.to_owned(),
                holder,
            },
            LockError::Io(source) => Error::io("lock", &path)(source),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            disk,
            now,
            _lock: lock,
        })
    }

    /// Completes what was interrupted where it can only go one way.
    fn settle(&self) -> Result<(), Error> {
        for kind in AuthorityKind::ALL {
            let places = Places::of(&self.dir, kind);
            if places.is_half_switched() {
                self.disk.rename(&places.next, &places.current)?;
            }
        }
        Ok(())
    }

    fn authority(&self, kind: AuthorityKind) -> Result<Authority, Error> {
        let place = Places::of(&self.dir, kind).current;
        if !place.exists() {
            return Err(Error::NoAuthorities(self.dir.clone()));
        }
        Authority::load(&place)
    }

    /// Where the directory of a certificate is.
    #[must_use]
    pub fn place(&self, identity: &Identity) -> PathBuf {
        self.dir.join(identity.role.as_str()).join(identity.name())
    }

    /// All certificates that are here, by the names of their directories.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn list(&self) -> Result<Vec<Identity>, Error> {
        Ok(leaves(&self.dir)?.into_iter().flatten().collect())
    }

    /// Directories among the certificates' whose name is none of a certificate.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn strangers(&self) -> Result<Vec<PathBuf>, Error> {
        let all = leaves(&self.dir)?.into_iter();
        Ok(all.filter_map(std::result::Result::err).collect())
    }

    /// Makes a certificate with a key of its own. With `dry_run` it only says what it would be.
    ///
    /// # Errors
    /// If it is there already, or cannot be made; then nothing is left of it.
    pub fn make(&self, request: &Request, dry_run: bool) -> Result<Done, Error> {
        let identity = &request.identity;
        let path = self.place(identity);
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists(path));
        }
        let authority = self.authority(identity.role.authority())?;
        let life_s = authority::life_s(request.life_days)?;
        let names = request.all_names();
        let not_after = authority.end_of(life_s, self.now)?;
        if !dry_run {
            let key = KeyPair::generate()?;
            let cert = authority.sign(&key, identity, &names, life_s, self.now)?;
            let key = key.serialize_pem();
            let trust = self.trust(identity.role)?;
            let mut files = vec![
                (KEY_FILE, key.as_str(), SECRET),
                (CERT_FILE, cert.as_str(), PUBLIC),
            ];
            files.extend(
                trust
                    .iter()
                    .map(|(name, text)| (*name, text.as_str(), PUBLIC)),
            );
            self.disk
                .make_dir(&self.dir.join(identity.role.as_str()), 0o755)?;
            self.disk.new_dir_with(&path, 0o755, &files)?;
        }
        Ok(Done {
            path,
            what: What::Made,
            not_after,
            names,
            ends_with_authority: not_after < self.now.plus_s(life_s),
        })
    }

    fn trust(&self, role: Role) -> Result<Vec<(&'static str, String)>, Error> {
        trust_files(role)
            .into_iter()
            .map(|(name, kind)| Ok((name, bundle(&self.dir, kind)?)))
            .collect()
    }

    /// Renews a certificate in place if it is due, and brings its files of trust up to date.
    ///
    /// The trust comes first, the certificate after it, each file replaced whole. A new key is
    /// written before both: a server keeps the old pair until the new one fits.
    ///
    /// # Errors
    /// If it cannot be renewed; the old one is then still there.
    pub fn renew(&self, identity: &Identity, renewal: &Renewal) -> Result<Done, Error> {
        let path = self.place(identity);
        if !path.is_dir() {
            return Err(Error::Missing(path));
        }
        if !renewal.dry_run {
            self.settle_pair(&path)?;
        }
        let cert_path = path.join(CERT_FILE);
        let old = Facts::read(&cert_path)?;
        match &old.identity {
            Ok(Some(found)) if found == identity => {}
            Ok(Some(found)) => {
                let reason = format!("it names {found}, and stands in the place of {identity}");
                return Err(Error::unusable(&cert_path, reason));
            }
            Ok(None) => {
                let reason = "it names no role: it was not made here, and is left alone";
                return Err(Error::unusable(&cert_path, reason));
            }
            Err(error) => return Err(Error::unusable(&cert_path, error.to_string())),
        }
        let trust_changed = self.renew_trust(identity.role, &path, renewal.dry_run)?;
        let authority = self.authority(identity.role.authority())?;
        let mut names = old.names.clone();
        names.retain(|name| !renewal.remove.contains(name));
        for name in &renewal.add {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let due = renewal.all
            || renewal.new_key
            || renewal.life_days.is_some()
            || names != old.names
            || old.issuer != authority.facts.subject
            || match renewal.within_days {
                None => old.is_due(self.now),
                Some(days) => old.not_after < self.now.plus_s(i64::from(days) * DAY_S),
            };
        let life_s = match renewal.life_days {
            Some(days) => authority::life_s(days)?,
            None => self.life_of(identity.role.authority(), &old)?,
        };
        let done = |what: What, not_after: Moment, names: Vec<Name>| Done {
            path: path.clone(),
            what,
            not_after,
            names,
            ends_with_authority: what == What::Renewed && not_after < self.now.plus_s(life_s),
        };
        if !due {
            let what = if trust_changed {
                What::Trust
            } else {
                What::Kept
            };
            return Ok(done(what, old.not_after, names));
        }
        let not_after = authority.end_of(life_s, self.now)?;
        if !renewal.dry_run {
            let key_path = path.join(KEY_FILE);
            if renewal.new_key {
                let key = KeyPair::generate()?;
                let cert = authority.sign(&key, identity, &names, life_s, self.now)?;
                self.disk.prepare(&key_path, &key.serialize_pem(), SECRET)?;
                self.disk.prepare(&cert_path, &cert, PUBLIC)?;
                // From here on the new pair wins, whatever ends this: `settle_pair`.
                self.disk.finish(&key_path)?;
                self.disk.finish(&cert_path)?;
            } else {
                let key = SubjectPublicKeyInfo::from_der(&old.public_key)?;
                let cert = authority.sign(&key, identity, &names, life_s, self.now)?;
                self.disk.replace(&cert_path, &cert, PUBLIC)?;
            }
        }
        Ok(done(What::Renewed, not_after, names))
    }

    /// The life that a certificate had, if it was not cut short by its authority's end.
    fn life_of(&self, kind: AuthorityKind, old: &Facts) -> Result<i64, Error> {
        for dir in Places::of(&self.dir, kind).trusted() {
            let end = Facts::read(&dir.join(AUTHORITY_CERT))?.not_after;
            if end == old.not_after {
                return authority::life_s(LIFE_DAYS);
            }
        }
        Ok(authority::asked_life_s(old).max(1))
    }

    /// Whether the files of trust were not those of today; they are then.
    fn renew_trust(&self, role: Role, path: &Path, dry_run: bool) -> Result<bool, Error> {
        let mut changed = false;
        for (name, text) in self.trust(role)? {
            let file = path.join(name);
            if std::fs::read_to_string(&file).is_ok_and(|old| old == text) {
                continue;
            }
            changed = true;
            if !dry_run {
                self.disk.replace(&file, &text, PUBLIC)?;
            }
        }
        Ok(changed)
    }

    /// Completes or forgets a renewal that was interrupted. If the new key is in place already,
    /// its certificate follows; else nothing has happened yet.
    fn settle_pair(&self, path: &Path) -> Result<(), Error> {
        let (cert, key) = (path.join(CERT_FILE), path.join(KEY_FILE));
        if let Some(next) = Disk::prepared(&cert) {
            let fits = Facts::read(&next).and_then(|next| leaf::key_fits(&key, &next.public_key));
            if fits.unwrap_or(false) && Disk::prepared(&key).is_none() {
                return self.disk.finish(&cert);
            }
            self.disk.remove_file(&next)?;
        }
        if let Some(next) = Disk::prepared(&key) {
            self.disk.remove_file(&next)?;
        }
        Ok(())
    }

    /// Where the change of an authority stands.
    #[must_use]
    pub fn phase(&self, kind: AuthorityKind) -> Phase {
        Places::of(&self.dir, kind).phase()
    }

    /// Takes a step in the change of an authority. The certificates and files of trust follow by
    /// [`Pki::renew`]; they are to be renewed, and copied, before the next step.
    ///
    /// # Errors
    /// If the step does not come now, or certificates of the previous authority are left.
    pub fn rotate(&self, kind: AuthorityKind, step: Step, life_days: u32) -> Result<Phase, Error> {
        let places = Places::of(&self.dir, kind);
        let wrong = |reason: String| Error::Rotation { kind, reason };
        let after = places
            .phase()
            .after(step)
            .map_err(|reason| wrong(reason.to_owned()))?;
        match step {
            Step::Announce => {
                // What it is to replace must be there.
                self.authority(kind)?;
                Authority::make(&self.disk, &places.next, kind, life_days, self.now)?;
            }
            Step::Switch => {
                Authority::load(&places.next)?;
                self.require(kind, "its trust files do not have the next one yet: orlop certs renew, and copy them", |_, path, role| {
                    let wanted = bundle(&self.dir, kind)?;
                    let files = trust_files(role).into_iter().filter(|(_, of)| *of == kind);
                    for (name, _) in files {
                        if disk::read(&path.join(name))? != wanted {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                })?;
                self.disk.rename(&places.current, &places.previous)?;
                self.disk.rename(&places.next, &places.current)?;
            }
            Step::Finish => {
                let subject = self.authority(kind)?.facts.subject;
                self.require(
                    kind,
                    "the previous one signed it: orlop certs renew, and copy it",
                    |cert, _, role| Ok(role.authority() != kind || cert.issuer == subject),
                )?;
                self.disk.remove_dir(&places.previous)?;
            }
            Step::Cancel => self.disk.remove_dir(&places.next)?,
        }
        Ok(after)
    }

    /// Refuses unless this holds for each certificate that has to do with an authority.
    fn require(
        &self,
        kind: AuthorityKind,
        otherwise: &str,
        holds: impl Fn(&Facts, &Path, Role) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        for identity in self.list()? {
            let concerned = trust_files(identity.role).iter().any(|(_, of)| *of == kind);
            let path = self.place(&identity);
            if concerned && !holds(&Facts::read(&path.join(CERT_FILE))?, &path, identity.role)? {
                let reason = format!("{}: {otherwise}", path.display());
                return Err(Error::Rotation { kind, reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
