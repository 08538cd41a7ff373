//! Snapshots that a process saves by itself: into which directory, at which interval, how many.
//!
//! A file is written under another name, synced and renamed: one with its name is whole.
//! Old ones go only after a good new one, and only those whose name says that they are of
//! this cluster. Whatever goes wrong is said in the log and counted; serving goes on.

use crate::{Failure, Source, encoder};
use files::{FileSystem, Kind};
use snapshot::{Encoder, human_bytes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use telemetry::GoDuration;
use threads::Pace;

/// How often it is looked whether one is due.
const TICK: Duration = Duration::from_millis(100);
/// Bytes encoded at a time.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes written between syncs: a commit of the journal never waits behind a long queue.
const SYNC_EVERY_BYTES: u64 = 4 << 20;
/// What a file has behind its name until it is whole.
const PARTIAL: &str = ".partial";

/// A snapshot's file name: `orlop-CLUSTER-TIME-rREVISION.db`, time in UTC. By revision
/// first, since a clock may go back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    revision: i64,
    unix_s: i64,
    cluster_id: u64,
}

impl Name {
    fn text(&self) -> String {
        let (days, s) = (self.unix_s.div_euclid(86400), self.unix_s.rem_euclid(86400));
        let (year, month, day) = date(days);
        format!(
            "orlop-{:016x}-{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z-r{}.db",
            self.cluster_id,
            s / 3600,
            s / 60 % 60,
            s % 60,
            self.revision
        )
    }

    /// The name if it is exactly one that [`Name::text`] makes for this cluster.
    fn parse(text: &str, cluster_id: u64) -> Option<Name> {
        let rest = text.strip_prefix("orlop-")?.strip_suffix(".db")?;
        let (id, rest) = rest.split_once('-')?;
        let (time, revision) = rest.split_once("-r")?;
        let digits = |range: std::ops::Range<usize>| time.get(range)?.parse::<i64>().ok();
        let days = days(digits(0..4)?, digits(4..6)?, digits(6..8)?);
        let seconds = digits(9..11)? * 3600 + digits(11..13)? * 60 + digits(13..15)?;
        let name = Name {
            revision: revision.parse().ok()?,
            unix_s: days * 86400 + seconds,
            cluster_id: u64::from_str_radix(id, 16).ok()?,
        };
        (name.cluster_id == cluster_id && name.text() == text).then_some(name)
    }
}

/// Days since 1970-01-01 as year, month and day of the Gregorian calendar. Years begin in
/// March here, so that the leap day is a year's last.
fn date(days: i64) -> (i64, i64, i64) {
    let day = days + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, of_month)
}

/// The reverse of [`date`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Why none was saved.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the process ends")]
    Stopped,
    #[error("{} is not a directory: create it, or mount it", .0.display())]
    NoDirectory(PathBuf),
    #[error(
        "it takes {needed} bytes, which would leave the journal less than {left} bytes of the {room} that are free: free some space, or name another disk with --snapshot-dir"
    )]
    NoRoom { needed: u64, room: u64, left: u64 },
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Encode(snapshot::Error),
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Stopped => Error::Stopped,
            Failure::Encode(error) => Error::Encode(error),
        }
    }
}

/// What to save where, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the files go. It is not made.
    pub dir: PathBuf,
    /// From one to the next.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
    /// Where the log is that must not run out of room for them.
    pub log_dir: PathBuf,
    /// If that is on the same file system, so many bytes are left to it.
    pub leave_bytes: u64,
}

/// Who is told how it goes, for metrics.
pub trait Told: Send {
    /// One is there that was made then, in Unix seconds: this process's, or an earlier one's.
    fn last(&self, unix_s: i64);
    /// One of so many bytes was saved in that time.
    fn saved(&self, bytes: u64, took: Duration);
    /// One was not.
    fn failed(&self);
}

/// The store to save; `None` while there is none.
type Current = Box<dyn Fn() -> Option<Arc<dyn Source>> + Send>;
/// True once the process ends.
type Stopping = Box<dyn Fn() -> bool + Send>;

/// The thread that saves them.
pub struct Scheduled {
    fs: Arc<dyn FileSystem>,
    settings: Settings,
    current: Current,
    stopping: Stopping,
    told: Box<dyn Told>,
}

impl Scheduled {
    /// `current` says whose snapshot to save: asked each time.
    pub fn new(
        fs: Arc<dyn FileSystem>,
        settings: Settings,
        current: impl Fn() -> Option<Arc<dyn Source>> + Send + 'static,
        stopping: impl Fn() -> bool + Send + 'static,
        told: impl Told + 'static,
    ) -> Self {
        Scheduled {
            fs,
            settings,
            current: Box::new(current),
            stopping: Box::new(stopping),
            told: Box::new(told),
        }
    }

    /// Runs until the process ends. The first one is due an interval after the newest that
    /// is there, at once if there is none.
    pub fn run(self) {
        let Some(first) = self.first_source() else {
            return;
        };
        let directory = self.directory(&*first);
        drop(first);
        directory.remove_partial();
        let names = directory.names().unwrap_or_default();
        let now_s = unix_s();
        let mut wait = Duration::ZERO;
        if let Some(newest) = names.iter().map(|n| n.unix_s).filter(|&s| s <= now_s).max() {
            self.told.last(newest);
            let age = Duration::from_secs((now_s - newest) as u64);
            wait = self.settings.interval.saturating_sub(age);
        }
        let mut due = Instant::now() + wait;
        while !(self.stopping)() {
            let now = Instant::now();
            if now >= due
                && let Some(source) = (self.current)()
            {
                due = now + self.settings.interval;
                if let Err(error) = threads::contain(|| self.save(&directory, &*source)) {
                    self.failed(&error);
                }
            }
            std::thread::sleep(TICK);
        }
    }

    fn first_source(&self) -> Option<Arc<dyn Source>> {
        while !(self.stopping)() {
            if let Some(source) = (self.current)() {
                return Some(source);
            }
            std::thread::sleep(TICK);
        }
        None
    }

    fn directory(&self, source: &dyn Source) -> Directory {
        Directory {
            fs: self.fs.clone(),
            dir: self.settings.dir.clone(),
            cluster_id: source.cluster_id(),
        }
    }

    fn save(&self, directory: &Directory, source: &dyn Source) {
        threads::fault_point("save");
        let started = Instant::now();
        match self.try_save(directory, source) {
            Ok((name, bytes)) => {
                let took = started.elapsed();
                self.told.saved(bytes, took);
                self.told.last(name.unix_s);
                tracing::info!(
                    path = %directory.dir.join(name.text()).display(),
                    bytes,
                    size = %human_bytes(bytes),
                    revision = name.revision,
                    took = %GoDuration(took),
                    "saved a scheduled snapshot"
                );
                if let Err(error) = directory.prune(self.settings.keep, &name) {
                    tracing::warn!(%error, "cannot delete old scheduled snapshots; they take space until the next one is saved");
                }
            }
            Err(Error::Stopped) => {}
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &dyn std::error::Error) {
        self.told.failed();
        tracing::warn!(
            %error,
            "snapshot-dir" = %self.settings.dir.display(),
            "next-try-in" = %GoDuration(self.settings.interval),
            "failed to save a scheduled snapshot; those saved before are kept"
        );
    }

    fn try_save(&self, directory: &Directory, source: &dyn Source) -> Result<(Name, u64), Error> {
        // Before the work of collecting.
        directory.check()?;
        let mut pace = Pace::start();
        let (mut encoder, revision) = encoder(source, &mut pace, || (self.stopping)())?;
        let needed = encoder.bytes() + 32;
        if let Some(room) = room_beside(&directory.dir, &self.settings.log_dir) {
            let left = self.settings.leave_bytes;
            if room < needed.saturating_add(left) {
                return Err(Error::NoRoom { needed, room, left });
            }
        }
        let name = Name {
            revision,
            unix_s: unix_s(),
            cluster_id: directory.cluster_id,
        };
        let mut rest = || {
            pace.rest();
            !(self.stopping)()
        };
        let bytes = directory.write(&name, &mut encoder, &mut rest)?;
        encoder.free(&mut || pace.rest());
        Ok((name, bytes))
    }
}

fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Bytes free for `dir` if it is on the same file system as `data_dir`.
fn room_beside(dir: &Path, data_dir: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    if device(dir)? != device(data_dir)? {
        return None;
    }
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A cluster's snapshots in a directory.
struct Directory {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    cluster_id: u64,
}

impl Directory {
    fn check(&self) -> Result<(), Error> {
        match self.fs.kind(&self.dir) {
            Ok(Some(Kind::Directory)) => Ok(()),
            Ok(_) => Err(Error::NoDirectory(self.dir.clone())),
            Err(error) => Err(Error::io("look at", &self.dir)(error)),
        }
    }

    /// The snapshots that are there, oldest first.
    fn names(&self) -> Result<Vec<Name>, Error> {
        let found = self.fs.read_dir(&self.dir);
        let found = found.map_err(Error::io("list", &self.dir))?;
        let parse = |text: &String| Name::parse(text, self.cluster_id);
        let mut names: Vec<Name> = found.iter().filter_map(parse).collect();
        names.sort();
        Ok(names)
    }

    /// Removes what a process that ended within one left behind.
    fn remove_partial(&self) {
        for text in self.fs.read_dir(&self.dir).unwrap_or_default() {
            let whole = text.strip_suffix(PARTIAL);
            if whole.is_some_and(|name| Name::parse(name, self.cluster_id).is_some()) {
                // It is no snapshot to anyone; if it cannot be removed it only takes space.
                let _ = self.fs.remove(&self.dir.join(text));
            }
        }
    }

    /// Writes one; returns its bytes. On an error nothing is left of it. `rest` is called
    /// between pieces and says whether to go on.
    fn write(
        &self,
        name: &Name,
        encoder: &mut Encoder,
        rest: &mut dyn FnMut() -> bool,
    ) -> Result<u64, Error> {
        let path = self.dir.join(name.text());
        let partial = self.dir.join(name.text() + PARTIAL);
        let written = self.write_partial(&partial, encoder, rest).and_then(|n| {
            let named = self.fs.rename(&partial, &path);
            named.map_err(Error::io("rename", &partial))?;
            Ok(n)
        });
        match written {
            Ok(bytes) => {
                let synced = self.fs.sync_dir(&self.dir);
                synced.map_err(Error::io("sync", &self.dir))?;
                Ok(bytes)
            }
            Err(error) => {
                // What cannot be removed now is removed at the next start.
                let _ = self.fs.remove(&partial);
                Err(error)
            }
        }
    }

    fn write_partial(
        &self,
        path: &Path,
        encoder: &mut Encoder,
        rest: &mut dyn FnMut() -> bool,
    ) -> Result<u64, Error> {
        let file = self.fs.create(path).map_err(Error::io("create", path))?;
        let (mut offset, mut synced) = (0, 0);
        while let Some(piece) = encoder.next_chunk(PIECE_BYTES).map_err(Error::Encode)? {
            file.write_at(&piece, offset)
                .map_err(Error::io("write", path))?;
            offset += piece.len() as u64;
            if offset - synced >= SYNC_EVERY_BYTES {
                file.sync_data().map_err(Error::io("sync", path))?;
                synced = offset;
            }
            if !rest() {
                return Err(Error::Stopped);
            }
        }
        let hash = encoder.sha256();
        file.write_at(&hash, offset)
            .map_err(Error::io("write", path))?;
        file.sync_data().map_err(Error::io("sync", path))?;
        Ok(offset + hash.len() as u64)
    }

    /// Deletes the oldest so that `keep` are left, never `newest`.
    fn prune(&self, keep: usize, newest: &Name) -> Result<(), Error> {
        let names = self.names()?;
        let surplus = names.len().saturating_sub(keep);
        for name in names.iter().filter(|n| *n != newest).take(surplus) {
            let path = self.dir.join(name.text());
            self.fs.remove(&path).map_err(Error::io("delete", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::op::{Class, PutOp, Write};
    use engine::{Engine, Limits};
    use files::sim::SimFs;
    use snapshot::{Origin, StorageVersion};
    use std::collections::BTreeSet;

    const CLUSTER: u64 = 0xc1;

    fn encoder(revisions: i64) -> Encoder {
        let mut engine: Engine<()> = Engine::new(Limits::default());
        for n in 0..revisions {
            let put = Write::Put(PutOp {
                key: format!("k{}", n % 5).into(),
                value: vec![7; 5000].into(),
                ..PutOp::default()
            });
            assert!(engine.submit(put, Class::DURABLE, (), 0).is_none());
            let batch = engine
                .take_batch(engine::Lane::Durable, usize::MAX)
                .unwrap();
            engine.complete(batch.ticket, 0, &mut Vec::new()).unwrap();
        }
        let (mut cursor, head) = engine.export_open();
        while !engine.versions_step(&mut cursor, 100) {}
        let origin = Origin {
            member_id: 1,
            raft_term: 2,
            raft_index: 3,
            storage_version: StorageVersion::V3_7,
        };
        Encoder::new(&origin, &head, cursor.finish(&mut || ())).unwrap()
    }

    fn directory(fs: &SimFs) -> Directory {
        fs.shared().create_dir(Path::new("/backup")).unwrap();
        Directory {
            fs: fs.shared(),
            dir: "/backup".into(),
            cluster_id: CLUSTER,
        }
    }

    fn name(revision: i64, unix_s: i64) -> Name {
        Name {
            revision,
            unix_s,
            cluster_id: CLUSTER,
        }
    }

    fn listed(fs: &SimFs) -> BTreeSet<String> {
        let names = fs.shared().read_dir(Path::new("/backup"));
        names.unwrap_or_default().into_iter().collect()
    }

    fn go_on() -> bool {
        true
    }

    #[test]
    fn names_say_when_and_what() {
        let at = name(42, 1_795_272_301);
        assert_eq!(at.text(), "orlop-00000000000000c1-20261121T144501Z-r42.db");
        for unix_s in [0, 951_782_400, 951_868_799, 4_107_542_399, 1_709_164_800] {
            let n = name(i64::MAX, unix_s);
            assert_eq!(Name::parse(&n.text(), CLUSTER), Some(n));
        }
        for other in [
            "orlop-00000000000000c2-20261121T144501Z-r42.db",
            "orlop-00000000000000c1-20261121T144501Z-r42.db.partial",
            "orlop-00000000000000c1-20261121T144501Z-r042.db",
            "orlop-00000000000000c1-20261121T144501Z-r+42.db",
            "orlop-c1-20261121T144501Z-r42.db",
            "orlop-00000000000000c1-20261321T144501Z-r42.db",
            "orlop-00000000000000c1-20261121x144501Z-r42.db",
            "orlop-00000000000000c1-2026\u{e9}21T144501Z-r42.db",
            "backup.db",
        ] {
            assert_eq!(Name::parse(other, CLUSTER), None, "{other}");
        }
        // A clock that goes back does not make a newer one the oldest.
        assert!(name(10, 500) > name(9, 1000));
    }

    #[test]
    fn only_our_own_oldest_are_deleted() {
        let fs = SimFs::new(1);
        let d = directory(&fs);
        let foreign = ["mine.db", "orlop-00000000000000c2-20261121T144501Z-r1.db"];
        for n in foreign {
            fs.shared().create(&d.dir.join(n)).unwrap();
        }
        for n in 1..=6 {
            let n = name(n, 1000 - n);
            d.write(&n, &mut encoder(3), &mut go_on).unwrap();
            d.prune(3, &n).unwrap();
        }
        let mut want: BTreeSet<String> = foreign.iter().map(|n| (*n).to_owned()).collect();
        want.extend((4..=6).map(|n| name(n, 1000 - n).text()));
        assert_eq!(listed(&fs), want);
        // The same revision again, by a clock that went back: the new one stays.
        let again = name(6, 1);
        d.write(&again, &mut encoder(3), &mut go_on).unwrap();
        d.prune(1, &again).unwrap();
        assert_eq!(d.names().unwrap(), [again]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_ones_and_nothing_half() {
        let fs = SimFs::new(1);
        let d = directory(&fs);
        let old = name(1, 1);
        d.write(&old, &mut encoder(3), &mut go_on).unwrap();
        fs.set_capacity(Some(fs.used() + 9000));
        let error = d.write(&name(2, 2), &mut encoder(9), &mut go_on);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("/backup/orlop-") && error.contains("write"),
            "{error}"
        );
        assert_eq!(listed(&fs), [old.text()].into());
        // A stop leaves nothing either.
        fs.set_capacity(None);
        assert!(matches!(
            d.write(&name(2, 2), &mut encoder(9), &mut || false),
            Err(Error::Stopped)
        ));
        assert_eq!(listed(&fs), [old.text()].into());
    }

    #[test]
    fn a_missing_directory_is_said_and_not_made() {
        let fs = SimFs::new(1);
        let mut d = directory(&fs);
        d.dir = "/elsewhere".into();
        let error = d.check().unwrap_err().to_string();
        assert!(error.contains("/elsewhere is not a directory"), "{error}");
        assert!(fs.shared().kind(&d.dir).unwrap().is_none());
    }

    #[test]
    fn a_file_with_its_name_is_whole_after_any_crash() {
        let whole = {
            let mut bytes = Vec::new();
            snapshot::write_file(encoder(9), &mut bytes).unwrap();
            bytes
        };
        let target = name(2, 2);
        let (mut found, mut lost) = (0, 0);
        for step in 0.. {
            let fs = SimFs::new(step);
            let d = directory(&fs);
            fs.shared().sync_dir(Path::new("/")).unwrap();
            let before = fs.steps();
            fs.crash_after(step);
            let done = d.write(&target, &mut encoder(9), &mut go_on).is_ok();
            let after = fs.power_loss(step);
            match after.contents(&d.dir.join(target.text())) {
                Ok(bytes) => {
                    assert_eq!(bytes, whole, "step {step}");
                    found += 1;
                }
                Err(_) => {
                    assert!(!done, "step {step} of {before}");
                    lost += 1;
                }
            }
            let d = Directory {
                fs: after.shared(),
                ..d
            };
            d.remove_partial();
            assert!(!listed(&after).iter().any(|n| n.ends_with(PARTIAL)));
            if done {
                break;
            }
        }
        assert!(found > 0 && lost > 3, "{found} {lost}");
    }
}
