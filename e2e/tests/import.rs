//! Moving in from etcd and out again, by the commands that an operator runs: snapshots
//! both ways, a running etcd taken over while it is written to, and what is refused.
//!
//! `ORLOP_IMPORT_SEEDS` sets how many random histories are moved there and back.

#[path = "import/cluster.rs"]
mod cluster;
#[path = "import/older.rs"]
mod older;
#[path = "import/support.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::kube::binaries;
use e2e::kube::pki::Authority;
use e2e::kube::store::{Kind, Setup, Store, Tls};
use support::{
    ETCDS, Result, Said, Writer, conclude, data_dir, ensure, equal, etcd, etcdutl, etcdutl_restore,
    fail, orlop, save, serve, text, until_hash, view,
};

const SEEDS: u64 = 2;
const STEPS: usize = 300;

/// What etcdutl and orlop print of a file must be equal in every form.
fn same_status(file: &Path) -> Result<()> {
    for form in ["simple", "json", "table", "fields"] {
        let etcd = etcdutl(&["snapshot", "status", text(file), "-w", form])?.well()?;
        let ours = orlop(&["snapshot", "status", text(file), "-w", form])?.well()?;
        ensure(etcd == ours, || format!("{etcd}\n{ours}"))?;
    }
    let words = orlop(&["snapshot", "status", text(file)])?.well()?;
    ensure(words.contains("every page, and the SHA-256"), || words)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_go_to_orlop_and_back() {
    let seeds = std::env::var("ORLOP_IMPORT_SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |text| text.parse().expect("ORLOP_IMPORT_SEEDS"));
    for seed in 0..seeds {
        let dir = tempfile::tempdir().unwrap();
        let set = ETCDS[seed as usize % ETCDS.len()];
        println!("seed {seed}: {set}");
        let result = there_and_back(dir.path(), set, seed).await;
        conclude(dir, result);
    }
}

async fn there_and_back(dir: &Path, set: &str, seed: u64) -> Result<()> {
    let mut source = etcd(set, "source", dir).await?;
    Writer::new(&source, seed).await?.steps(STEPS).await?;
    let before = view(&source).await?;
    let saved = dir.join("saved.db");
    save(&source, &saved)?;
    source.stop()?;
    same_status(&saved)?;

    // There, by the snapshot and by the stopped etcd's directory.
    let ours = data_dir("ours", dir);
    let keep = "--keep-revisions";
    orlop(&[
        "snapshot",
        "restore",
        text(&saved),
        "--data-dir",
        text(&ours),
        keep,
    ])?
    .well()?;
    let mut store = serve("ours", dir).await?;
    equal(&before, &view(&store).await?)?;
    store.stop()?;
    let from_dir = dir.join("from-dir");
    let stopped = source.data_dir();
    orlop(&[
        "snapshot",
        "restore",
        text(&stopped),
        "--data-dir",
        text(&from_dir),
        keep,
    ])?
    .well()?;

    // Status says the same of a directory, etcd's and orlop's.
    let of_file = orlop(&["snapshot", "status", text(&saved)])?.well()?;
    for data in [&stopped, &ours] {
        let of_dir = orlop(&["snapshot", "status", text(data)])?.well()?;
        for label in ["revision", "compacted", "keys"] {
            let value = |said: &str| {
                let line = said.lines().find(|line| line.trim().starts_with(label));
                line.map(|line| line.split(", in").next().unwrap_or_default().to_owned())
            };
            ensure(
                value(&of_file).is_some() && value(&of_file) == value(&of_dir),
                || format!("{of_file}\n{of_dir}"),
            )?;
        }
    }
    let json = ["snapshot", "status", text(&ours), "-w", "json"];
    orlop(&json)?.refused(&["orlop export --data-dir"])?;

    // And back.
    for (data, name) in [(&ours, "back"), (&from_dir, "back-from-dir")] {
        let exported = dir.join(format!("{name}.db"));
        orlop(&["export", "--data-dir", text(data), "-o", text(&exported)])?.well()?;
        same_status(&exported)?;
        etcdutl_restore(&exported, name, dir, &[])?;
        let mut back = etcd("etcd", name, dir).await?;
        equal(&before, &view(&back).await?)?;
        back.stop()?;
    }
    bumped(dir, &saved).await
}

/// A backup restored as etcd advises for Kubernetes is the same in both.
async fn bumped(dir: &Path, saved: &Path) -> Result<()> {
    let ours = data_dir("bumped", dir);
    orlop(&[
        "snapshot",
        "restore",
        text(saved),
        "--data-dir",
        text(&ours),
    ])?
    .well()?;
    let more = ["--bump-revision", "1000000000", "--mark-compacted"];
    etcdutl_restore(saved, "etcd-bumped", dir, &more)?;
    let mut store = serve("bumped", dir).await?;
    let mut etcd = etcd("etcd", "etcd-bumped", dir).await?;
    until_hash(&etcd, |hash| hash.compact_revision > 1_000_000_000).await?;
    equal(&view(&etcd).await?, &view(&store).await?)?;

    // Both go on: the jump is carried by later changes, an export and a second jump.
    for store in [&store, &etcd] {
        store.etcdctl()?.ok(&["put", "after", "1"])?;
        store.etcdctl()?.ok(&["del", "after"])?;
        store.etcdctl()?.ok(&["put", "after", "2"])?;
    }
    let went_on = view(&store).await?;
    equal(&view(&etcd).await?, &went_on)?;
    store.stop()?;
    etcd.stop()?;
    let exported = dir.join("bumped.db");
    orlop(&["export", "--data-dir", text(&ours), "-o", text(&exported)])?.well()?;
    same_status(&exported)?;
    etcdutl_restore(&exported, "bumped-back", dir, &[])?;
    let mut back = support::etcd("etcd", "bumped-back", dir).await?;
    equal(&went_on, &view(&back).await?)?;
    back.stop()?;

    // A directory that a disk snapshot rolled back.
    let again = data_dir("again", dir);
    orlop(&[
        "snapshot",
        "restore",
        text(&ours),
        "--data-dir",
        text(&again),
    ])?
    .well()?;
    etcdutl_restore(&exported, "etcd-again", dir, &more)?;
    let mut store = serve("again", dir).await?;
    let mut etcd = support::etcd("etcd", "etcd-again", dir).await?;
    until_hash(&etcd, |hash| hash.compact_revision > 2_000_000_000).await?;
    equal(&view(&etcd).await?, &view(&store).await?)?;
    store.stop()?;
    Ok(etcd.stop()?)
}

/// An `orlop import` that follows.
struct Import {
    child: Child,
    said: PathBuf,
}

impl Import {
    fn start(from: &str, data: &Path, said: &Path) -> Result<Self> {
        let file = fs::File::create(said)?;
        let child = Command::new(Kind::Orlop.program()?)
            .args(["import", "--from", from])
            .args(["--data-dir", text(data), "--follow"])
            .stdin(Stdio::null())
            .stderr(file.try_clone()?)
            .stdout(file)
            .spawn()?;
        Ok(Import {
            child,
            said: said.to_owned(),
        })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    async fn until_says(&mut self, word: &str) -> Result<()> {
        let began = Instant::now();
        while !self.said().contains(word) {
            ensure(self.child.try_wait()?.is_none(), || self.said())?;
            ensure(began.elapsed() < Duration::from_secs(30), || {
                format!("it does not say {word}:\n{}", self.said())
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<String> {
        signal(&self.child, rustix::process::Signal::INT)?;
        let status = self.child.wait()?;
        ensure(status.success(), || self.said())?;
        Ok(self.said())
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) -> Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) else {
        return fail("no process id");
    };
    Ok(rustix::process::kill_process(pid, signal)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_etcd_is_taken_over_while_it_is_written_to() {
    for set in ETCDS {
        let dir = tempfile::tempdir().unwrap();
        println!("{set}");
        let result = taken_over(dir.path(), set).await;
        conclude(dir, result);
    }
}

async fn taken_over(dir: &Path, set: &str) -> Result<()> {
    let source = etcd(set, "source", dir).await?;
    let mut writer = Writer::new(&source, 7).await?;
    writer.steps(STEPS).await?;
    // As Kubernetes does, it leaves some history when it compacts.
    writer.keep = 1000;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut steps = 0;
        while !stopped.load(Ordering::Relaxed) {
            writer.step().await?;
            steps += 1;
        }
        Result::Ok(steps)
    });
    let ours = data_dir("ours", dir);
    let mut import = Import::start(&source.url(), &ours, &dir.join("import.log"))?;
    import.until_says("following").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let steps: u64 = writing.await??;
    let said = import.finish()?;
    ensure(
        said.contains("verified: HashKV") && !said.contains("WARNING"),
        || said.clone(),
    )?;
    println!("{steps} steps meanwhile\n{said}");
    let mut store = serve("ours", dir).await?;
    equal(&view(&source).await?, &view(&store).await?)?;
    Ok(store.stop()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_stopped_or_that_misses_writes_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let result = says_so(dir.path()).await;
    conclude(dir, result);
}

async fn says_so(dir: &Path) -> Result<()> {
    let mut source = etcd("etcd", "source", dir).await?;
    let mut writer = Writer::new(&source, 3).await?;
    writer.steps(50).await?;
    let ours = dir.join("ours");
    let from = ["import", "--from", &source.url(), "--data-dir", text(&ours)];
    let said = orlop(&from)?.well()?;
    ensure(
        said.contains("verified") && !said.contains("WARNING"),
        || said,
    )?;
    orlop(&["check", text(&ours)])?.well()?;
    orlop(&from)?.refused(&["is not empty", "--data-dir"])?;

    // What an import that was killed leaves is named, and not used.
    let other = dir.join("other");
    fs::create_dir(dir.join("other.import"))?;
    let from = [
        "import",
        "--from",
        &source.url(),
        "--data-dir",
        text(&other),
    ];
    orlop(&from)?.refused(&["other.import exists"])?;
    fs::remove_dir(dir.join("other.import"))?;

    // One that is ended leaves nothing but what it finished.
    let mut import = Import::start(&source.url(), &other, &dir.join("import.log"))?;
    import.until_says("following").await?;
    signal(&import.child, rustix::process::Signal::TERM)?;
    ensure(import.child.wait()?.success(), || import.said())?;
    ensure(!dir.join("other.import").exists(), || {
        "it left its directory".to_owned()
    })?;
    fs::remove_dir_all(&other)?;
    let nobody = [
        "import",
        "--from",
        "http://127.0.0.1:1",
        "--data-dir",
        text(&other),
    ];
    orlop(&nobody)?.refused(&["no endpoint answers", "127.0.0.1:1"])?;
    let https = [
        "import",
        "--from",
        "https://127.0.0.1:1",
        "--data-dir",
        text(&other),
    ];
    orlop(&https)?.refused(&["--cacert"])?;

    // Nobody who cannot be asked is called quiet.
    let mut import = Import::start(&source.url(), &other, &dir.join("gone.log"))?;
    import.until_says("following").await?;
    source.kill();
    import
        .until_says("whether it is quiet is not known")
        .await?;
    ensure(!import.said().contains("quiet at"), || import.said())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_not_dropped_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let result = users(dir.path()).await;
    conclude(dir, result);
}

async fn users(dir: &Path) -> Result<()> {
    let source = etcd("etcd", "source", dir).await?;
    let etcdctl = source.etcdctl()?;
    etcdctl.ok(&["put", "key", "value"])?;
    etcdctl.ok(&["user", "add", "root:secret"])?;
    etcdctl.ok(&["user", "grant-role", "root", "root"])?;
    etcdctl.ok(&["auth", "enable"])?;
    let saved = dir.join("saved.db");
    etcdctl.ok(&["--user", "root:secret", "snapshot", "save", text(&saved)])?;
    let ours = data_dir("ours", dir);
    let restore = [
        "snapshot",
        "restore",
        text(&saved),
        "--data-dir",
        text(&ours),
    ];
    orlop(&restore)?.refused(&["auth enabled", "--drop-auth"])?;
    let from = ["import", "--from", &source.url(), "--data-dir", text(&ours)];
    orlop(&from)?.refused(&["auth enabled"])?;
    ensure(!ours.exists(), || "a refusal left a directory".to_owned())?;
    let words = orlop(&["snapshot", "status", text(&saved)])?.well()?;
    ensure(words.contains("enabled, 1 users"), || words)?;
    same_status(&saved)?;
    let dropped = [&restore[..], &["--drop-auth"]].concat();
    orlop(&dropped)?.well()?;
    let mut store = serve("ours", dir).await?;
    let value = store.etcdctl()?.ok(&["get", "key", "--print-value-only"])?;
    ensure(value == "value\n", || value)?;
    Ok(store.stop()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let result = damaged(dir.path()).await;
    conclude(dir, result);
}

async fn damaged(dir: &Path) -> Result<()> {
    let setup = Setup {
        // etcd commits its database each 100 ms, and so could do before it is killed.
        flags: vec!["--backend-batch-interval=10m".to_owned()],
        ..Setup::new(Kind::Etcd, binaries("etcd")?.join("etcd"))
    };
    let mut source = Store::start_as(setup, "source", dir, None).await?;
    Writer::new(&source, 1).await?.steps(STEPS).await?;
    let saved = dir.join("saved.db");
    save(&source, &saved)?;
    let good = fs::read(&saved)?;
    let (file, target) = (dir.join("file.db"), dir.join("target"));
    let restore = |more: &[&str]| -> Result<Said> {
        let args = [
            "snapshot",
            "restore",
            text(&file),
            "--data-dir",
            text(&target),
        ];
        let said = orlop(&[&args[..], more].concat())?;
        ensure(!target.exists(), || {
            format!("it left a directory: {said:?}")
        })?;
        Ok(said)
    };
    let middle = good.len() / 2;

    let mut changed = good.clone();
    changed[middle] ^= 1;
    fs::write(&file, &changed)?;
    restore(&[])?.refused(&["SHA-256", "lost or changed"])?;

    // Pages are verified even so: the header of a page says what is in it.
    let mut changed = good.clone();
    for page in changed.chunks_mut(4096).skip(2) {
        page[..16].fill(0xff);
    }
    fs::write(&file, &changed)?;
    restore(&["--skip-hash-check"])?.refused(&["file.db", "page"])?;

    fs::write(&file, &good[..middle / 4096 * 4096])?;
    restore(&["--skip-hash-check"])?.refused(&["file.db"])?;
    fs::write(&file, &good[..good.len() - 1])?;
    restore(&["--skip-hash-check"])?.refused(&["file.db"])?;
    fs::write(&file, &good[..good.len() - 32])?;
    restore(&[])?.refused(&["no SHA-256", "--skip-hash-check"])?;
    for foreign in [&b""[..], b"apiVersion: v1\n", &[0; 8192]] {
        fs::write(&file, foreign)?;
        restore(&["--skip-hash-check"])?.refused(&["file.db"])?;
    }
    fs::remove_file(&file)?;
    restore(&[])?.refused(&["there is no"])?;

    // The database of an etcd that runs, and of one that was killed.
    let db = source.data_dir().join("member/snap/db");
    let args = [
        "snapshot",
        "restore",
        text(&db),
        "--data-dir",
        text(&target),
    ];
    orlop(&args)?.refused(&["running etcd", "snapshot save"])?;
    for n in 0..20 {
        source.etcdctl()?.ok(&["put", "late", &n.to_string()])?;
    }
    source.kill();
    orlop(&args)?.refused(&["not complete", "--ignore-wal"])?;
    ensure(!target.exists(), || "it left a directory".to_owned())?;
    orlop(&[&args[..], &["--ignore-wal"]].concat())?.well()?;
    fs::remove_dir_all(&target)?;

    // Started and stopped, it is complete.
    source.start_again().await?;
    source.stop()?;
    orlop(&args)?.well()?;
    let nothing = dir.join("empty");
    fs::create_dir(&nothing)?;
    let empty = ["snapshot", "restore", text(&nothing), "--data-dir", "x"];
    orlop(&empty)?.refused(&["neither etcd's nor orlop's"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_by_tls_and_back_to_older_etcds() {
    let dir = tempfile::tempdir().unwrap();
    let result = by_tls(dir.path()).await;
    conclude(dir, result);
}

/// The hash by the released etcdctl (etcd 3.5 does not tell its revision).
fn hash_kv(store: &Store) -> Result<String> {
    let said = store.etcdctl()?.ok(&["endpoint", "hashkv"])?;
    Ok(said.split(", ").nth(1).unwrap_or_default().to_owned())
}

async fn by_tls(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "store")?;
    let tls = Tls {
        server: authority.sign("server")?,
        ca: authority.cert.clone(),
        client: Some(authority.sign("client")?),
    };
    let client = authority.sign("client")?;
    let certificates = [
        ["--cacert", text(&authority.cert)],
        ["--cert", text(&client.cert)],
        ["--key", text(&client.key)],
    ]
    .concat();
    let mut source = Store::start(Kind::Etcd, "source", dir, Some(tls.clone()), &[]).await?;
    for n in 0..20 {
        let lease = source.etcdctl()?.ok(&["lease", "grant", "900"])?;
        let id = lease.split(' ').nth(1).unwrap_or_default();
        let key = format!("key{}", n % 7);
        source
            .etcdctl()?
            .ok(&["put", &key, "value", "--lease", id])?;
    }
    let before = hash_kv(&source)?;
    // The first endpoint answers nobody.
    let ours = data_dir("ours", dir);
    let from = format!("https://127.0.0.1:1,{}", source.url());
    let import = ["import", "--from", &from, "--data-dir", text(&ours)];
    orlop(&import)?.refused(&["--cacert"])?;
    orlop(&[&import[..], &certificates[..2]].concat())?.refused(&["--cert and --key"])?;
    orlop(&[&import[..], &certificates].concat())?.well()?;
    source.stop()?;
    let mut store = Store::start(Kind::Orlop, "ours", dir, Some(tls), &[]).await?;
    ensure(hash_kv(&store)? == before, || before.clone())?;
    for set in ETCDS {
        let version = set.strip_prefix("etcd-").unwrap_or("3.7");
        let file = dir.join(format!("{set}.db"));
        let url = store.url();
        let export = ["export", "--endpoint", &url, "-o", text(&file)];
        let version = ["--etcd-version", version];
        let said = orlop(&[&export[..], &version, &certificates].concat())?.well()?;
        ensure(said.contains("etcdutl snapshot restore"), || said)?;
        same_status(&file)?;
        let name = format!("back-{set}");
        etcdutl_restore(&file, &name, dir, &[])?;
        let mut back = etcd(set, &name, dir).await?;
        let after = hash_kv(&back)?;
        ensure(after == before, || format!("{set}: {before} {after}"))?;
        let leases = back.etcdctl()?.ok(&["lease", "list"])?;
        ensure(leases.starts_with("found 20 leases"), || leases)?;
        back.stop()?;
    }
    Ok(store.stop()?)
}
