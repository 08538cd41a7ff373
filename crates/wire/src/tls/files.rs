//! The files of certificates while a server runs: their renewal, and how long they are valid.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsSource;

/// How often a thread looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the log says that a certificate has expired, or soon will.
const SAY_EVERY: Duration = Duration::from_secs(24 * 3600);
/// The last part of a certificate's life is "soon", but not more of it than so many seconds.
const SOON_S: i64 = 30 * 24 * 3600;
const SOON_PART: i64 = 5;

/// What files look like from outside; two equal ones mean that nothing changed.
pub(super) type Stamp = Vec<Option<(SystemTime, u64)>>;

/// The stamp of these files now.
pub(super) fn stamp<'a>(files: impl Iterator<Item = &'a Path>) -> Stamp {
    files
        .map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
        .collect()
}

/// What is read from files, and read again when they change.
pub(crate) trait Watched: Send + Sync {
    /// Looks at the files now, and takes those that have changed; waits for the disk.
    fn look(&self);
}

/// From when to when a chain is valid, in seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    not_before_s: i64,
    not_after_s: i64,
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    NotYet,
    Good,
    Soon,
    Expired,
}

impl Validity {
    /// Of a whole chain: the part of time in which all of it is valid. What cannot be read is
    /// left out: rustls has said so by then, or does not need it.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Self {
        let mut all = Self {
            not_before_s: i64::MIN,
            not_after_s: i64::MAX,
        };
        for der in chain {
            if let Ok((_, cert)) = X509Certificate::from_der(der) {
                let validity = cert.validity();
                all.not_before_s = all.not_before_s.max(validity.not_before.timestamp());
                all.not_after_s = all.not_after_s.min(validity.not_after.timestamp());
            }
        }
        all
    }

    fn standing(self, now_s: i64) -> Standing {
        let life_s = self.not_after_s.saturating_sub(self.not_before_s);
        let left_s = self.not_after_s.saturating_sub(now_s);
        if now_s < self.not_before_s {
            Standing::NotYet
        } else if left_s < 0 {
            Standing::Expired
        } else if left_s < SOON_S.min(life_s / SOON_PART) {
            Standing::Soon
        } else {
            Standing::Good
        }
    }
}

/// What was seen of the files.
pub(super) struct Seen {
    /// Of those last tried, good or bad.
    stamp: Stamp,
    /// What the log said last of how long the certificate is valid.
    said: Option<(Validity, Standing, Instant)>,
}

impl Seen {
    pub(super) fn new(stamp: Stamp) -> Self {
        Self { stamp, said: None }
    }
}

impl Watched for TlsSource {
    fn look(&self) {
        let mut seen = self.seen.lock();
        let stamp = self.config.stamp();
        if stamp != seen.stamp {
            seen.stamp = stamp;
            match super::read(&self.config, &self.alpn) {
                Ok(loaded) => {
                    *self.loaded.lock() = loaded;
                    tracing::info!(
                        cert = %self.config.cert_file.display(), "TLS files changed: using the new ones"
                    );
                }
                Err(error) => tracing::error!(
                    %error, "TLS files changed but cannot be used: staying with the old ones"
                ),
            }
        }
        self.say_validity(&mut seen);
    }
}

impl TlsSource {
    /// Says once, and then once a day, that the certificate in use is not valid for long.
    fn say_validity(&self, seen: &mut Seen) {
        let now_s = unix_s();
        let validity = self.loaded.lock().validity;
        let standing = validity.standing(now_s);
        let told = seen.said.is_some_and(|(of, was, at)| {
            of == validity && was == standing && at.elapsed() < SAY_EVERY
        });
        if told {
            return;
        }
        seen.said = Some((validity, standing, Instant::now()));
        let cert = self.config.cert_file.display();
        let hours_left = validity.not_after_s.saturating_sub(now_s) / 3600;
        match standing {
            Standing::Good => {}
            Standing::NotYet => tracing::warn!(
                %cert, "the server's certificate is not valid yet: clients refuse it; is this machine's clock right?"
            ),
            Standing::Soon => tracing::warn!(
                %cert, hours_left, "the server's certificate expires soon: renew it; new files are used without a restart"
            ),
            Standing::Expired => tracing::error!(
                %cert, hours_ago = -hours_left, "the server's certificate has expired: clients refuse it; renew it; new files are used without a restart"
            ),
        }
    }
}

fn unix_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// A listener's certificate, while the listener is there and after.
#[derive(Clone, Debug)]
pub struct Certificate(pub(crate) Arc<TlsSource>);

impl Certificate {
    /// When it, or another certificate of its chain, expires: seconds of Unix time.
    #[must_use]
    pub fn not_after_unix_s(&self) -> i64 {
        self.0.loaded.lock().validity.not_after_s
    }

    /// Looks at its files now, and waits for the disk.
    pub fn look(&self) {
        self.0.look();
    }
}

/// Looks at the files of these sources on a thread of its own, until all of them are gone.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn watch<T: Watched + ?Sized + 'static>(sources: Vec<Weak<T>>) -> std::io::Result<()> {
    if sources.is_empty() {
        return Ok(());
    }
    let run = move || {
        // Sources are told of what is wrong at once, and then looked at again.
        loop {
            let there: Vec<_> = sources.iter().filter_map(Weak::upgrade).collect();
            if there.is_empty() {
                return;
            }
            there.iter().for_each(|source| source.look());
            drop(there);
            std::thread::sleep(LOOK_EVERY);
        }
    };
    std::thread::Builder::new()
        .name("tls-files".to_owned())
        .spawn(run)
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::{Standing, Validity};

    const DAY_S: i64 = 24 * 3600;

    #[test]
    fn soon_depends_on_how_long_a_certificate_lives() {
        let year = Validity {
            not_before_s: 0,
            not_after_s: 365 * DAY_S,
        };
        assert_eq!(year.standing(-1), Standing::NotYet);
        assert_eq!(year.standing(0), Standing::Good);
        assert_eq!(year.standing(335 * DAY_S), Standing::Good);
        assert_eq!(year.standing(335 * DAY_S + 1), Standing::Soon);
        assert_eq!(year.standing(365 * DAY_S), Standing::Soon);
        assert_eq!(year.standing(365 * DAY_S + 1), Standing::Expired);
        // One that is renewed every day is no alarm for most of it.
        let day = Validity {
            not_before_s: 0,
            not_after_s: DAY_S,
        };
        assert_eq!(day.standing(DAY_S / 2), Standing::Good);
        assert_eq!(day.standing(DAY_S * 9 / 10), Standing::Soon);
    }
}
