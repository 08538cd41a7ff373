//! `orlop import --from URL`: takes a running etcd over into a new data directory.
//!
//! A snapshot, then every change after it by a watch, into a directory beside the one that
//! was asked for; that gets its name only after HashKV was equal on both sides.

use crate::export::sync_parent;
use crate::failure::{Failure, say};
use crate::import_follow::{Follower, Progress};
use crate::import_members::TlsArgs;
use crate::import_source::{Source, SourceError, SourceHash};
use crate::snapshot_restore::{self, ALARM_CORRUPT, options, ready_for};
use crate::stop_signals::StopSignals;
use engine::Engine;
use files::real::RealFs;
use snapshot::{Snapshot, human_bytes};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it begins anew when the source compacts what is still to be watched.
const ROUNDS: u32 = 3;
/// How often progress is told.
const TELL: Duration = Duration::from_secs(5);

/// Arguments of `orlop import`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The etcd, https://HOST:2379; of a cluster all members, separated by commas: when one
    /// does not answer, the next is asked. Versions 3.5 to 3.7. Users and passwords are not
    /// supported.
    #[arg(long, value_name = "URL")]
    from: String,
    /// The new data directory; it must not exist, or be empty.
    #[arg(long)]
    data_dir: PathBuf,
    /// The member's name.
    #[arg(long, default_value = "default")]
    name: String,
    /// Go on following changes until a signal (Ctrl-C, SIGTERM), and finish then. Without it,
    /// finish as soon as it has caught up.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Exit code 0: the directory is there, and equal to the source; 1: it is not there.
pub(crate) fn run(args: &Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("orlop import: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(import(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop import: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A directory beside the target, removed unless the import was finished.
struct Workplace {
    dir: PathBuf,
    target: PathBuf,
}

impl Workplace {
    fn new(target: &Path) -> Result<Self, Failure> {
        use std::os::unix::fs::MetadataExt;
        let target = resolved(target)?;
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
        if let (Ok(own), Ok(above)) = (device(&target), device(&target.join("..")))
            && own != above
        {
            return Err(Failure::Refused(format!(
                "--data-dir {} is a mount point, which the finished copy cannot be renamed to: name \
                 a directory in it",
                target.display()
            )));
        }
        let mut name = target.as_os_str().to_owned();
        name.push(".import");
        let dir = PathBuf::from(name);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Failure::Refused(format!(
                    "{} exists: another import is running, or one was killed. If none runs, remove \
                     it",
                    dir.display()
                )))
            }
            other => other
                .map_err(Failure::io("create", &dir))
                .map(|()| Workplace { dir, target }),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("source.db")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Gives the finished directory its name.
    fn finish(self) -> Result<(), Failure> {
        fs::rename(self.data(), &self.target).map_err(|error| {
            Failure::Refused(format!(
                "cannot rename {} to {}: {error}",
                self.data().display(),
                self.target.display()
            ))
        })?;
        sync_parent(&self.target)
    }
}

/// A path that the finished copy can be renamed to: no link, no `.`, no slash at its end.
fn resolved(target: &Path) -> Result<PathBuf, Failure> {
    let path = match fs::canonicalize(target) {
        Ok(path) => path,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => target.components().collect(),
        Err(error) => return Err(Failure::io("look at", target)(error)),
    };
    if path.file_name().is_none() {
        return Err(Failure::Refused(format!(
            "--data-dir {} is no directory that an import could make",
            target.display()
        )));
    }
    Ok(path)
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // What cannot be removed is named at the next import.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn import(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    ready_for(&args.data_dir)?;
    let (source, status) = Source::connect(&args.from, &args.tls).await?;
    say!(
        "source: etcd {} at {}, {}, revision {}",
        status.version,
        source.url(),
        human_bytes(status.db_size.max(0) as u64),
        status.header.as_ref().map_or(0, |h| h.revision)
    );
    check_source(&source).await?;
    if let Some(reason) = args.tls.refused_by_orlop() {
        say!(
            "WARNING: with this --cacert as its --trusted-ca-file, orlop would refuse the \
             certificate that etcd takes here: {reason}. See that the apiservers have others \
             before you stop etcd"
        );
    }
    // Until here a signal may just end the program.
    let mut signals =
        StopSignals::new().map_err(Failure::io("watch signals of", Path::new("/proc/self")))?;
    let work = Workplace::new(&args.data_dir)?;
    let mut round = 1;
    let (follower, hash) = loop {
        match take(args, &source, &work, &mut signals).await {
            Err(Failure::Source(SourceError::Compacted { compact_revision })) if round < ROUNDS => {
                say!(
                    "the source compacted its history up to revision {compact_revision} meanwhile; \
                     beginning again with a new snapshot"
                );
                round += 1;
            }
            Err(Failure::Source(SourceError::Compacted { .. })) => {
                return Err(Failure::Refused(format!(
                    "the source compacted, {ROUNDS} times, what was still to be read. Stop the \
                     apiservers first and import then, or raise their \
                     --etcd-compaction-interval for the time of the import"
                )));
            }
            other => break other?,
        }
    };
    let (keys, leases, last_step) = (follower.keys(), follower.leases(), follower.last_step());
    follower.close()?;
    work.finish()?;
    say!(
        "verified: HashKV {:08x} at revision {} ({}) on both sides",
        hash.hash,
        hash.revision,
        match hash.compact_revision {
            ..0 => "never compacted".to_owned(),
            at => format!("compacted at {at}"),
        }
    );
    say!(
        "{} has {keys} keys and {leases} leases; {:.1} s in all, the last step {} ms",
        args.data_dir.display(),
        began.elapsed().as_secs_f64(),
        last_step.as_millis()
    );
    print_next(args, &source, hash.revision).await;
    Ok(())
}

async fn check_source(source: &Source) -> Result<(), Failure> {
    // Without a majority nothing else is answered either.
    source.revision().await?;
    source.refuse_auth().await?;
    for (member_id, alarm) in source.alarms().await? {
        if alarm == ALARM_CORRUPT {
            return Err(Failure::Refused(format!(
                "{}: member {member_id:x} has the alarm CORRUPT: its data may not be what the \
                 other members have. Find out which member is right (etcdctl endpoint hashkv \
                 --cluster), and import from that one after etcdctl alarm disarm",
                source.url()
            )));
        }
    }
    Ok(())
}

/// One round: snapshot, following, verification.
async fn take(
    args: &Args,
    source: &Source,
    work: &Workplace,
    signals: &mut StopSignals,
) -> Result<(Follower, SourceHash), Failure> {
    if work.data().exists() {
        fs::remove_dir_all(work.data()).map_err(Failure::io("remove", &work.data()))?;
    }
    let mut told = Instant::now();
    let snapshot_file = work.file();
    let save = source.save(&snapshot_file, |bytes, left| {
        if told.elapsed() >= TELL {
            told = Instant::now();
            say!(
                "snapshot: {} of {}",
                human_bytes(bytes),
                human_bytes(bytes + left)
            );
        }
    });
    let bytes = tokio::select! {
        bytes = save => bytes?,
        _ = signals.wait() => return Err(Failure::Interrupted),
    };
    let began = Instant::now();
    let engine = load(&work.file())?;
    say!(
        "snapshot: {}, {} keys, revision {}, read in {} ms",
        human_bytes(bytes),
        engine.keys(),
        engine.revision(),
        began.elapsed().as_millis()
    );
    journal::seed_engine(
        Arc::new(RealFs::new()),
        &work.data(),
        options(&args.name),
        &engine,
    )?;
    drop(engine);
    fs::remove_file(work.file()).map_err(Failure::io("remove", &work.file()))?;
    let mut follower = Follower::open(source.clone(), &work.data(), options(&args.name))?;
    let caught_up = follower.catch_up();
    let hash = tokio::select! {
        hash = caught_up => hash?,
        _ = signals.wait() => return Err(Failure::Interrupted),
    };
    say!(
        "caught up and verified at revision {} ({} changes since the snapshot)",
        hash.revision,
        follower.changes()
    );
    if !args.follow {
        return Ok((follower, hash));
    }
    say!(
        "following. Stop the apiservers (and whatever else writes to this etcd), wait for \
         \"quiet\", then press Ctrl-C or send SIGTERM to {}",
        std::process::id()
    );
    follow(&mut follower, source, signals).await?;
    say!("finishing");
    let finish = follower.finish();
    let hash = tokio::select! {
        hash = finish => hash?,
        _ = signals.wait() => return Err(Failure::Interrupted),
    };
    Ok((follower, hash))
}

async fn follow(
    follower: &mut Follower,
    source: &Source,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    let mut tick = tokio::time::interval(TELL);
    tick.tick().await;
    let mut last = Progress::default();
    loop {
        let now = follower.progress();
        {
            // Never dropped for a tick: it would begin its waiting anew each time.
            let received = follower.receive();
            tokio::pin!(received);
            loop {
                tokio::select! {
                    done = &mut received => break done?,
                    _ = signals.wait() => return Ok(()),
                    _ = tick.tick() => tell(source, now, &mut last).await,
                }
            }
        }
        follower.take_all().await?;
    }
}

/// Tells where following stands. Only the source itself can say that it is quiet: a watch
/// brings nothing either when its connection is lost.
async fn tell(source: &Source, now: Progress, last: &mut Progress) {
    if now.revision != last.revision {
        say!("revision {}, {} behind", now.revision, now.behind);
        *last = now;
        return;
    }
    if last.quiet {
        return;
    }
    match tokio::time::timeout(TELL, source.revision()).await {
        Ok(Ok(theirs)) if theirs == now.revision => {
            say!(
                "quiet at revision {theirs}: nothing was written in the last {} s",
                TELL.as_secs()
            );
            last.quiet = true;
        }
        Ok(Ok(theirs)) => {
            let behind = (theirs - now.revision).max(0);
            say!("revision {}, {behind} behind", now.revision);
        }
        Ok(Err(_)) | Err(_) => {
            say!(
                "revision {}; no answer from {}, so whether it is quiet is not known",
                now.revision,
                source.url()
            );
        }
    }
}

fn load(path: &Path) -> Result<Engine<()>, Failure> {
    let file = Snapshot::open(path)?;
    if !file.has_hash() {
        return Err(Failure::Refused(
            "the source's snapshot ended before its SHA-256: the source or the connection broke \
             off; try again"
                .to_owned(),
        ));
    }
    let (restore, loaded) = snapshot_restore::load(&file, true)?;
    let auth = loaded.contents.auth;
    if auth.enabled {
        return Err(Failure::Refused(format!(
            "the source has auth enabled ({} users), and orlop has no users; see docs/operating/migrate.md",
            auth.users
        )));
    }
    if auth.users > 0 {
        say!("note: {} users are left out; auth was off", auth.users);
    }
    Ok(restore.finish())
}

async fn print_next(args: &Args, source: &Source, revision: i64) {
    let dir = args.data_dir.display();
    match source.revision().await {
        Ok(now) if now > revision => {
            say!();
            say!(
                "WARNING: the source went on from revision {revision} to {now}. Those writes are not \
                 in {dir}: something still writes to it. To switch with all of them, stop the \
                 apiservers, remove {dir} and import again (with --follow, so that little is left \
                 to do after they stop)."
            );
        }
        Ok(_) => {}
        Err(error) => say!("note: {error}"),
    }
    say!();
    say!("Now, with the apiservers stopped:");
    say!("  1. stop etcd, all of its members, so that nothing writes to it; keep its data");
    say!(
        "  2. orlop serve --data-dir={dir} --name={} with the flags of an etcd member",
        args.name
    );
    say!("     (the same --listen-client-urls, --advertise-client-urls and certificates)");
    say!("  3. etcdctl endpoint status: the revision is {revision} or a little more");
    say!("  4. start the apiservers, on the same --etcd-servers or the new address");
    say!(
        "Back before step 4: start etcd again. After it: orlop export (docs/operating/migrate.md)."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_may_be_written_in_any_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("empty")).unwrap();
        fs::create_dir(path("real")).unwrap();
        std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
        for (name, becomes) in [
            ("empty/", "empty"),
            ("absent/", "absent"),
            ("link", "real"),
            ("real/../plain", "plain"),
        ] {
            let work = Workplace::new(&path(name)).unwrap();
            fs::create_dir(work.data()).unwrap();
            fs::write(work.data().join("format"), b"").unwrap();
            work.finish().unwrap();
            assert!(path(becomes).join("format").exists(), "{name}");
            assert!(!path(&format!("{becomes}.import")).exists(), "{name}");
        }
    }
}
