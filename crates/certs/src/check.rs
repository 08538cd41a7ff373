//! Whether certificates will do: how long they are valid, for which names, whether their chains
//! and keys fit, and what the two verifiers that meet them would say: rustls in orlop, and Go's
//! in kube-apiserver, etcdctl and etcd.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{ServerName, UnixTime};

use crate::authority::{AUTHORITY_CERT, AUTHORITY_KEY, AuthorityKind};
use crate::disk::{self, Disk};
use crate::go::{self, Verdict};
use crate::leaf::{self, Facts};
use crate::names::Name;
use crate::pki::{bundle, issuer_file, leaves, trust_files};
use crate::role::Identity;
use crate::rotate::{Phase, Places};
use crate::{CERT_FILE, Error, KEY_FILE, Moment};

/// What a certificate is shown for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// By the server at this host, a name or an address.
    Server(String),
    /// By a client.
    Client,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Good,
    /// It will have to be looked at.
    Note,
    /// Something is refused, or soon will be.
    Problem,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In which file or directory.
    pub subject: String,
    /// How grave it is.
    pub level: Level,
    /// What it is.
    pub text: String,
}

/// Findings on one file or directory.
struct Findings {
    subject: String,
    found: Vec<Finding>,
}

impl Findings {
    fn on(path: &Path) -> Self {
        Self {
            subject: path.display().to_string(),
            found: Vec::new(),
        }
    }

    fn add(&mut self, level: Level, text: impl Into<String>) {
        self.found.push(Finding {
            subject: self.subject.clone(),
            level,
            text: text.into(),
        });
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.add(Level::Problem, text);
    }

    fn note(&mut self, text: impl Into<String>) {
        self.add(Level::Note, text);
    }

    /// Those found; if none is a problem, with a line that says what is well.
    fn finish(mut self, good: impl FnOnce() -> String) -> Vec<Finding> {
        if self.found.iter().all(|f| f.level < Level::Problem) {
            self.add(Level::Good, good());
        }
        self.found
    }

    /// Whether the time is one at which it is valid, and for how long.
    fn check_validity(&mut self, what: &str, facts: &Facts, now: Moment, within_days: u32) {
        let (from, until) = (facts.not_before, facts.not_after);
        let limit = now.plus_s(i64::from(within_days) * crate::moment::DAY_S);
        // What lives for days only is not for ever about to end.
        let soon = until.0.saturating_sub(now.0) < facts.life_s() / 5;
        if now < from {
            self.problem(format!(
                "{what} is valid from {from} only, and it is {now}: one of the two clocks is wrong"
            ));
        } else if now > until {
            self.problem(format!("{what} has expired, on {until}"));
        } else if until < limit && soon {
            let days = now.days_to(until);
            self.problem(format!(
                "{what} expires in {days} days, on {until}: renew it"
            ));
        } else if facts.is_due(now) {
            let days = now.days_to(until);
            self.note(format!(
                "{what} is due for renewal: {days} days are left, until {until}"
            ));
        }
    }

    /// What the verifiers say that meet the certificate. Whether both could be asked.
    fn check_views(&mut self, view: &View<'_>, purposes: &[Purpose]) -> bool {
        let mut both = true;
        for purpose in purposes {
            let place = match purpose {
                Purpose::Server(host) => format!("as the server at {host}"),
                Purpose::Client => "as a client".to_owned(),
            };
            if let Err(reason) = view.rustls(purpose) {
                self.problem(format!("rustls (orlop) refuses it {place}: {reason}"));
            }
            match view.go(purpose) {
                Verdict::Takes => {}
                Verdict::Refuses(reason) => self.problem(format!(
                    "Go (kube-apiserver, etcdctl, etcd) refuses it {place}: {reason}"
                )),
                Verdict::Unknown(reason) => {
                    both = false;
                    self.note(format!(
                        "whether Go takes it {place} cannot be said: {reason}"
                    ));
                }
            }
        }
        both
    }

    /// The private key: that it is there and fits, and that others cannot read it.
    fn check_key(&mut self, key: &Path, public_key: &[u8]) {
        match leaf::key_fits(key, public_key) {
            Ok(true) => {}
            Ok(false) => self.problem(format!("{} does not belong to it", key.display())),
            Err(error) => self.problem(error.to_string()),
        }
        match disk::mode(key) {
            Ok(mode) if mode & 0o007 != 0 => self.problem(format!(
                "{0} has mode {mode:04o}: every user of this machine can use it; chmod 600 {0}",
                key.display()
            )),
            // Kubernetes mounts Secrets so where a pod has an fsGroup.
            Ok(mode) if mode & 0o070 != 0 => self.note(format!(
                "{} has mode {mode:04o}: its group can use it",
                key.display()
            )),
            _ => {}
        }
    }
}

/// A chain, seen by whoever trusts a file's authorities.
struct View<'a> {
    cert: &'a Path,
    facts: &'a Facts,
    trust: &'a Path,
    roots: &'a [rustls::pki_types::CertificateDer<'static>],
    now: Moment,
}

impl View<'_> {
    fn unix_time(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(self.now.0).unwrap_or(0)))
    }

    /// What orlop would say, as a server or as a client.
    fn rustls(&self, purpose: &Purpose) -> Result<(), String> {
        let Purpose::Server(host) = purpose else {
            return wire::check_client_certificate_at(self.trust, self.cert, self.unix_time());
        };
        let text = |error: rustls::Error| error.to_string();
        let mut roots = RootCertStore::empty();
        for der in self.roots {
            roots.add(der.clone()).map_err(text)?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        let name = ServerName::try_from(host.as_str())
            .map_err(|_| format!("{host} is neither a name nor an address"))?;
        let Some((leaf, intermediates)) = self.facts.chain.split_first() else {
            return Err("it holds no certificate".to_owned());
        };
        verifier
            .verify_server_cert(leaf, intermediates, &name, &[], self.unix_time())
            .map(|_| ())
            .map_err(text)
    }

    fn go(&self, purpose: &Purpose) -> Verdict {
        go::verdict(&self.facts.chain, self.roots, purpose, self.now)
    }
}

/// What a certificate of this role is shown for: as a server at each of its names.
fn purposes(identity: &Identity, names: &[Name]) -> Vec<Purpose> {
    let mut all = Vec::new();
    if identity.role.serves() {
        all.extend(names.iter().map(|name| Purpose::Server(name.example())));
    }
    all.push(Purpose::Client);
    all
}

/// Checks one certificate's directory, wherever it was copied to. `hosts` are names that it must
/// be valid for, if it is a server's. A certificate that expires within so many days is a problem.
#[must_use]
pub fn check_directory(
    dir: &Path,
    hosts: &[String],
    now: Moment,
    within_days: u32,
) -> Vec<Finding> {
    check_leaf(dir, None, hosts, now, within_days)
}

/// `place` is who should be there, in the directory where all were made.
fn check_leaf(
    dir: &Path,
    place: Option<&Identity>,
    hosts: &[String],
    now: Moment,
    within_days: u32,
) -> Vec<Finding> {
    let mut findings = Findings::on(dir);
    let cert = dir.join(CERT_FILE);
    let facts = match Facts::read(&cert) {
        Ok(facts) => facts,
        Err(error) => {
            findings.problem(error.to_string());
            return findings.found;
        }
    };
    let identity = match &facts.identity {
        Ok(Some(identity)) => identity.clone(),
        Ok(None) => {
            findings.problem(format!(
                "{} names no role: it was not made by orlop certs; check it with --cert, --key and --ca",
                cert.display()
            ));
            return findings.found;
        }
        Err(error) => {
            findings.problem(format!("{}: {error}", cert.display()));
            return findings.found;
        }
    };
    if place.is_some_and(|place| *place != identity) {
        findings.problem(format!(
            "{} names {identity}: it belongs elsewhere",
            cert.display()
        ));
    }
    let key = dir.join(KEY_FILE);
    // Where all were made it may be gone: a renewal does not need it.
    let has_key = key.exists() || place.is_none();
    if has_key {
        findings.check_key(&key, &facts.public_key);
    }
    if Disk::prepared(&cert).is_some() || Disk::prepared(&key).is_some() {
        findings.note("a renewal was interrupted: orlop certs renew completes it");
    }
    if dir.join(AUTHORITY_KEY).exists() {
        findings.problem(format!(
            "an authority's key was copied here: remove {}, and change that authority if somebody else could read it",
            dir.join(AUTHORITY_KEY).display()
        ));
    }
    findings.check_validity("the certificate", &facts, now, within_days);
    let mut both = true;
    for (name, _) in trust_files(identity.role) {
        let trust = dir.join(name);
        let roots = match read_roots(&trust) {
            Ok(roots) => roots,
            Err(error) => {
                findings.problem(error.to_string());
                continue;
            }
        };
        for root in &roots {
            if let Ok(root) = Facts::of(vec![root.clone()]) {
                let what = format!("the authority {} in {name}", root.subject_text);
                findings.check_validity(&what, &root, now, within_days);
            }
        }
        if name == issuer_file(identity.role) {
            let view = View {
                cert: &cert,
                facts: &facts,
                trust: &trust,
                roots: &roots,
                now,
            };
            let mut purposes = purposes(&identity, &facts.names);
            if identity.role.serves() {
                purposes.extend(hosts.iter().cloned().map(Purpose::Server));
            }
            both = findings.check_views(&view, &purposes);
        }
    }
    let key = if has_key {
        ""
    } else {
        "; its key is elsewhere"
    };
    findings.finish(|| good(&facts, now, both) + key)
}

fn good(facts: &Facts, now: Moment, both: bool) -> String {
    let who = match &facts.identity {
        Ok(Some(identity)) => identity.to_string(),
        _ => facts.subject_text.clone(),
    };
    let names: Vec<_> = facts.names.iter().map(Name::to_string).collect();
    let names = match names.as_slice() {
        [] => String::new(),
        names => format!(", valid for {}", names.join(", ")),
    };
    let days = now.days_to(facts.not_after);
    let takers = if both {
        "rustls and Go take"
    } else {
        "rustls takes"
    };
    format!(
        "{who}{names}; until {} ({days} days); {takers} it",
        facts.not_after
    )
}

fn read_roots(path: &Path) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, Error> {
    leaf::certificates(&disk::read(path)?).map_err(|reason| Error::unusable(path, reason))
}

/// Checks all authorities and certificates of a directory.
///
/// # Errors
/// If it is none, or cannot be read.
pub fn check_pki(dir: &Path, now: Moment, within_days: u32) -> Result<Vec<Finding>, Error> {
    if !dir.join("ca").is_dir() {
        return Err(Error::NoAuthorities(dir.to_owned()));
    }
    let mut all = Vec::new();
    for kind in AuthorityKind::ALL {
        all.extend(check_authority(dir, kind, now, within_days));
    }
    for found in leaves(dir)? {
        let identity = match found {
            Ok(identity) => identity,
            Err(path) => {
                let mut findings = Findings::on(&path);
                findings.problem("its name is none of a certificate: move it away");
                all.extend(findings.found);
                continue;
            }
        };
        let path = dir.join(identity.role.as_str()).join(identity.name());
        all.extend(check_leaf(&path, Some(&identity), &[], now, within_days));
        let mut findings = Findings::on(&path);
        for (name, kind) in trust_files(identity.role) {
            let (is, wanted) = (disk::read(&path.join(name)), bundle(dir, kind));
            if let (Ok(is), Ok(wanted)) = (is, wanted)
                && is != wanted
            {
                findings.note(format!(
                    "{name} is not of today's {kind} authority: orlop certs renew, and copy it"
                ));
            }
        }
        all.extend(findings.found);
    }
    Ok(all)
}

fn check_authority(dir: &Path, kind: AuthorityKind, now: Moment, within_days: u32) -> Vec<Finding> {
    let places = Places::of(dir, kind);
    let mut all = Vec::new();
    if !places.current.exists() {
        let mut findings = Findings::on(&places.current);
        findings.problem(if places.is_half_switched() {
            "a change of this authority was interrupted: orlop certs renew completes it"
        } else {
            "it is not there: orlop certs init makes it"
        });
        all.extend(findings.found);
    }
    for place in places.trusted() {
        let mut findings = Findings::on(place);
        let key = place.join(AUTHORITY_KEY);
        let facts = match Facts::read(&place.join(AUTHORITY_CERT)) {
            Ok(facts) => facts,
            Err(error) => {
                findings.problem(error.to_string());
                all.extend(findings.found);
                continue;
            }
        };
        match disk::mode(&key) {
            Ok(mode) if mode & 0o077 != 0 => findings.problem(format!(
                "{0} has mode {mode:04o}: whoever reads it can make certificates; chmod 600 {0}, \
                 and change this authority if somebody could",
                key.display()
            )),
            _ => {}
        }
        match leaf::key_fits(&key, &facts.public_key) {
            Ok(true) => {}
            Ok(false) => findings.problem(format!("{} does not belong to it", key.display())),
            Err(error) => findings.problem(error.to_string()),
        }
        findings.check_validity("the authority", &facts, now, within_days);
        let phase = places.phase();
        let text = format!(
            "{}; until {} ({} days){}",
            facts.subject_text,
            facts.not_after,
            now.days_to(facts.not_after),
            match phase {
                Phase::Settled => String::new(),
                phase => format!("; {phase}"),
            }
        );
        all.extend(findings.finish(|| text));
    }
    all
}

/// A certificate of whatever origin, to be checked.
#[derive(Clone, Debug)]
pub struct Other {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, if that is at hand.
    pub key: Option<PathBuf>,
    /// The authorities that whoever meets it trusts, PEM.
    pub ca: PathBuf,
    /// What it is shown for; if none, as a server at each of its names, or as a client if it has
    /// none.
    pub purposes: Vec<Purpose>,
}

/// Checks a certificate of whatever origin.
#[must_use]
pub fn check_other(other: &Other, now: Moment, within_days: u32) -> Vec<Finding> {
    let mut findings = Findings::on(&other.cert);
    let read = Facts::read(&other.cert).and_then(|facts| Ok((facts, read_roots(&other.ca)?)));
    let (facts, roots) = match read {
        Ok(read) => read,
        Err(error) => {
            findings.problem(error.to_string());
            return findings.found;
        }
    };
    if let Err(error) = &facts.identity {
        findings.problem(format!("orlop's ports refuse it: {error}"));
    }
    if let Some(key) = &other.key {
        findings.check_key(key, &facts.public_key);
    }
    findings.check_validity("the certificate", &facts, now, within_days);
    for root in &roots {
        if let Ok(root) = Facts::of(vec![root.clone()]) {
            let what = format!("the authority {}", root.subject_text);
            findings.check_validity(&what, &root, now, within_days);
        }
    }
    let mut purposes = other.purposes.clone();
    if purposes.is_empty() {
        purposes.extend(facts.names.iter().map(|n| Purpose::Server(n.example())));
    }
    if purposes.is_empty() {
        purposes.push(Purpose::Client);
    }
    let view = View {
        cert: &other.cert,
        facts: &facts,
        trust: &other.ca,
        roots: &roots,
        now,
    };
    let both = findings.check_views(&view, &purposes);
    findings.finish(|| good(&facts, now, both))
}
