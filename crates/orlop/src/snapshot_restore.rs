//! `orlop snapshot restore FILE --data-dir DIR`.

use crate::failure::{Failure, say};
use crate::snapshot_feed;
use crate::snapshot_status::alarm_name;
use engine::restore::Restore;
use engine::{Engine, Limits};
use files::real::RealFs;
use journal::{DirState, NewDirectory, Options};
use snapshot::{Loaded, Snapshot, wal};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What etcd advises for Kubernetes: more revisions than a cluster can have used since the
/// backup was taken.
const BUMP: u64 = 1_000_000_000;
/// etcd's number of the alarm that says its members differ.
pub(crate) const ALARM_CORRUPT: i32 = 2;

/// Arguments of `orlop snapshot restore`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A snapshot (etcdctl snapshot save, orlop export), a stopped etcd's member/snap/db or
    /// data directory, or an orlop data directory that was rolled back. It is not changed.
    source: PathBuf,
    /// The new data directory; it must not exist, or be empty.
    #[arg(long)]
    data_dir: PathBuf,
    /// The member's name.
    #[arg(long, default_value = "default")]
    name: String,
    /// Keep the revisions as they are: for a move, when nothing was written after the
    /// snapshot. Otherwise clients would see revisions that they know with other contents.
    #[arg(long, conflicts_with = "bump_revision")]
    keep_revisions: bool,
    /// By how much the revision rises, so that it never goes back for any client. All
    /// earlier revisions count as compacted.
    #[arg(long, default_value_t = BUMP, value_parser = clap::value_parser!(u64).range(1..=1 << 60))]
    bump_revision: u64,
    /// Take a file without its SHA-256, or with a wrong one. Its pages are verified anyway.
    #[arg(long)]
    skip_hash_check: bool,
    /// Leave users and roles out: every client with access may then do everything.
    #[arg(long)]
    drop_auth: bool,
    /// Take the database of an etcd though its write-ahead log has newer writes, or cannot
    /// be read. Those writes are lost.
    #[arg(long)]
    ignore_wal: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    ready_for(&args.data_dir)?;
    let mut restore = match journal::inspect(&RealFs::new(), &args.source)
        .map_err(Failure::io("look into", &args.source))?
    {
        DirState::Absent => {
            return Err(Failure::Refused(format!(
                "there is no {}",
                args.source.display()
            )));
        }
        DirState::Orlop => from_orlop(&args.source)?,
        DirState::Etcd => {
            let member = args.source.join("member");
            from_etcd(args, &member.join("snap/db"), Some(&member.join("wal")))?
        }
        DirState::Empty => {
            return Err(Failure::Refused(format!(
                "{} is a directory with neither etcd's nor orlop's data in it",
                args.source.display()
            )));
        }
        DirState::NotADirectory => {
            let wal = wal_beside(&args.source);
            from_etcd(args, &args.source, wal.as_deref())?
        }
    };
    let before = restore.engine().revision();
    if !args.keep_revisions {
        // The argument is at most 2^60.
        let target = before.checked_add(args.bump_revision as i64);
        let target = target.filter(|t| *t < 1 << 62).ok_or_else(|| {
            Failure::Refused(format!(
                "revision {before} cannot rise by {}; name a smaller --bump-revision",
                args.bump_revision
            ))
        })?;
        restore
            .bump(target)
            .map_err(|error| Failure::Refused(error.to_string()))?;
        restore.compacted(target);
    }
    let engine = restore.finish();
    journal::seed_engine(
        Arc::new(RealFs::new()),
        &args.data_dir,
        options(&args.name),
        &engine,
    )?;
    let dir = args.data_dir.display();
    say!(
        "restored {} keys and {} leases to {dir} in {} ms",
        engine.keys(),
        engine.lease_count(),
        began.elapsed().as_millis()
    );
    if args.keep_revisions {
        say!("  revision {before}, as in the source");
    } else {
        say!(
            "  revision {}, raised from {before}, and everything before it compacted: clients list anew once",
            engine.revision()
        );
    }
    say!("  start it: orlop serve --data-dir={dir}");
    Ok(())
}

/// Refuses a target that holds something.
pub(crate) fn ready_for(dir: &Path) -> Result<(), Failure> {
    let names = match std::fs::read_dir(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::io("list", dir)(error)),
    };
    for name in names {
        let name = name.map_err(Failure::io("list", dir))?.file_name();
        if name != "lost+found" {
            return Err(Failure::Refused(format!(
                "--data-dir {} is not empty (it has {}), and nothing is overwritten: name another \
                 directory, or empty this one",
                dir.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

/// How a new directory is made: with ids and a salt of its own.
pub(crate) fn options(name: &str) -> Options {
    let random = |salt: u64| RandomState::new().hash_one((salt, Instant::now())).max(1);
    Options::new(NewDirectory {
        cluster_id: random(1),
        member_id: random(2),
        name: name.to_owned(),
        salt: random(3),
        ..NewDirectory::default()
    })
}

fn from_orlop(dir: &Path) -> Result<Restore<()>, Failure> {
    let read = snapshot_feed::read(dir)?;
    say!("{}", read.report);
    let compact_revision = read.engine.compact_revision();
    Ok(Restore::new(read.engine, compact_revision))
}

/// The write-ahead log that belongs to `member/snap/db`.
fn wal_beside(db: &Path) -> Option<PathBuf> {
    let db = std::path::absolute(db).ok()?;
    let snap = db.parent().filter(|p| p.ends_with("snap"))?;
    db.ends_with("db").then(|| snap.with_file_name("wal"))
}

fn from_etcd(args: &Args, path: &Path, wal: Option<&Path>) -> Result<Restore<()>, Failure> {
    let file = Snapshot::open(path)?;
    if !file.has_hash() && wal.is_none() && !args.skip_hash_check {
        return Err(Failure::Refused(format!(
            "{} has no SHA-256 at its end, as every saved snapshot has: it was cut off, or copied \
             from a data directory. If you know where it comes from, take it with \
             --skip-hash-check; or name it where it lies, as .../member/snap/db",
            path.display()
        )));
    }
    if let Some(warning) = file.warning() {
        eprintln!("warning: {}: {warning}", path.display());
    }
    let (mut restore, loaded) = load(&file, !args.skip_hash_check)?;
    let contents = &loaded.contents;
    refuse_auth(contents.auth, args.drop_auth, path)?;
    if let Some(wal) = wal {
        check_wal(args, path, wal, contents.consistent_index)?;
    }
    for &(member_id, alarm) in &contents.alarms {
        let name = alarm_name(alarm);
        if alarm == ALARM_CORRUPT {
            restore.alarm(alarm);
            eprintln!(
                "warning: member {member_id:x} had the alarm {name}, so its data may not be what \
                 the others had. orlop will refuse requests until you end it: etcdctl alarm disarm"
            );
        } else {
            eprintln!(
                "note: the alarm {name} of member {member_id:x} is left out: it was about that \
                 member's disk"
            );
        }
    }
    Ok(restore)
}

/// Reads all of a file into an engine, and verifies every page. The SHA-256 is computed by a
/// thread of its own meanwhile: whoever comes second to a page finds it in memory.
pub(crate) fn load(file: &Snapshot, verify_hash: bool) -> Result<(Restore<()>, Loaded), Failure> {
    let path = file.path();
    std::thread::scope(|scope| {
        let hash = verify_hash
            .then(|| std::thread::Builder::new().spawn_scoped(scope, || file.verify_hash()))
            .transpose()
            .map_err(Failure::io("start a thread to hash", path))?;
        let loaded = file.load(Engine::new(Limits::default()));
        // First what the hash says: it explains whatever else is odd.
        if let Some(hash) = hash {
            hash.join().unwrap_or_else(|_| {
                let reason = std::io::Error::other("the thread ended without a result");
                Err(snapshot::Error::Io {
                    action: "hash",
                    path: path.to_owned(),
                    source: reason,
                })
            })?;
        }
        Ok(loaded?)
    })
}

fn refuse_auth(auth: snapshot::Auth, drop_auth: bool, path: &Path) -> Result<(), Failure> {
    if auth.enabled && !drop_auth {
        return Err(Failure::Refused(format!(
            "{} comes from an etcd with auth enabled ({} users, {} roles). orlop has no users: \
             every client that can connect could read and write everything. Restrict access by \
             client certificates, then restore with --drop-auth",
            path.display(),
            auth.users,
            auth.roles
        )));
    }
    if auth.users > 0 {
        eprintln!(
            "note: {} users and {} roles are left out",
            auth.users, auth.roles
        );
    }
    Ok(())
}

fn check_wal(args: &Args, db: &Path, dir: &Path, index: u64) -> Result<(), Failure> {
    if args.ignore_wal {
        return Ok(());
    }
    match wal::end(dir, index) {
        Ok(end) if end.newer == 0 && end.last_index >= index => Ok(()),
        Ok(end) if end.newer == 0 => {
            eprintln!(
                "warning: whether {} is complete cannot be told: the log in {} ends at index {}, \
                 before the database's {index}",
                db.display(),
                dir.display(),
                end.last_index
            );
            Ok(())
        }
        Ok(end) => Err(Failure::Refused(format!(
            "{} is not complete: it ends with index {index}, and etcd's write-ahead log in {} goes \
             on to {}, with {} more requests. That etcd was killed, or this is a copy of a running \
             one. Start it once and stop it cleanly (SIGTERM), or take a snapshot of it (etcdctl \
             snapshot save). To do without those writes: --ignore-wal",
            db.display(),
            dir.display(),
            end.last_index,
            end.newer
        ))),
        Err(error) => Err(Failure::Refused(format!(
            "whether {} is complete cannot be told: {error}. If you know that its etcd was stopped \
             cleanly: --ignore-wal",
            db.display()
        ))),
    }
}
