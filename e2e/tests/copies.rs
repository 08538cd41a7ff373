//! A server and a keeper of its data, as processes with certificates: nothing acknowledged is
//! missing from the copy, whichever of the two is killed, and the copy becomes a server.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

#[path = "copies/full_disk.rs"]
mod full_disk;
#[path = "node_latency/networks.rs"]
mod networks;
#[path = "copies/partitions.rs"]
mod partitions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::beside::{Beside, orlop};
use e2e::hostile::node::{Node, contents, put};
use e2e::kube::etcdctl::Etcdctl;
use e2e::kube::pki::{Authority, Pair};
use e2e::kube::proc::{conclude, free_port};
use e2e::kube::store::Tls;
use e2e::kube::{Result, ensure, fail};
use serde_json::Value;

/// How long a keeper may take to have everything, on a busy machine. One that found its disk full
/// rests 5 s between attempts.
const PATIENCE: Duration = Duration::from_secs(60);

/// A keeper's process, with what outlives its restarts.
struct Keeper {
    beside: Beside,
    data: PathBuf,
    server: String,
    pair: Pair,
    ca: PathBuf,
    more: Vec<String>,
}

impl Keeper {
    fn new(name: &str, dir: &Path, server: String, authority: &Authority) -> Result<Self> {
        Ok(Keeper {
            beside: Beside::new("keeper", dir)?,
            data: dir.join(format!("{name}.data")),
            server,
            pair: authority.sign(name)?,
            ca: authority.cert.clone(),
            more: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut args = vec![
            format!("--server={}", self.server),
            format!("--data-dir={}", self.data.display()),
            format!("--cert-file={}", self.pair.cert.display()),
            format!("--key-file={}", self.pair.key.display()),
            format!("--trusted-ca-file={}", self.ca.display()),
            format!("--name={}", self.data.display()),
        ];
        args.extend_from_slice(&self.more);
        self.beside.run(&args)
    }

    async fn status(&self) -> Result<Value> {
        let (_, text) = self.beside.page("/v1/status").await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until it has the store up to a revision on its disk.
    async fn has(&self, revision: i64) -> Result<()> {
        let began = Instant::now();
        loop {
            let status = self.status().await.unwrap_or(Value::Null);
            if status["following"] == true && status["revision"].as_i64() >= Some(revision) {
                return Ok(());
            }
            ensure(began.elapsed() < PATIENCE, || {
                format!("revision {revision}: {status}\n{}", self.beside.tail())
            })?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The copy becomes a server, which must have just what the old one had.
async fn promoted_has(
    dir: &Path,
    copy: &Path,
    before: &BTreeMap<String, (String, i64)>,
) -> Result<()> {
    let data = format!("--data-dir={}", copy.display());
    orlop(&["promote", &data, "--old-server-is-gone"])?.or_else(fail)?;
    let mut promoted = Node::new("promoted", dir, &[])?;
    copy.clone_into(&mut promoted.data);
    promoted.run().await?;
    let (after, _) = contents(&promoted.channel()?).await?;
    let differs = |(key, value)| (after.get(key) != Some(value)).then_some(key);
    let differ: Vec<_> = before.iter().filter_map(differs).collect();
    ensure(differ.is_empty() && before.len() == after.len(), || {
        format!(
            "{} keys and {} in the copy; {differ:?}",
            before.len(),
            after.len()
        )
    })?;
    promoted.stop()?;
    Ok(())
}

fn peer_flags(authority: &Authority, port: u16) -> Result<Vec<String>> {
    let pair = authority.sign("peer")?;
    Ok(vec![
        format!("--listen-peer-urls=https://127.0.0.1:{port}"),
        format!("--peer-cert-file={}", pair.cert.display()),
        format!("--peer-key-file={}", pair.key.display()),
        format!("--peer-trusted-ca-file={}", authority.cert.display()),
        "--peer-client-cert-auth".to_owned(),
        "--max-followers=2".to_owned(),
    ])
}

fn server(name: &str, dir: &Path, authority: &Authority, more: &[&str]) -> Result<(Node, String)> {
    let port = free_port()?;
    let mut node = Node::new(name, dir, more)?;
    node.args.extend(peer_flags(authority, port)?);
    Ok((node, format!("https://127.0.0.1:{port}")))
}

/// Both are killed under writes; then the server is gone, and the copy goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_from_its_copy() {
    let dir = tempfile::tempdir().unwrap();
    let result = killed(dir.path()).await;
    conclude(dir, result);
}

async fn killed(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "peers")?;
    let (mut node, url) = server("a", dir, &authority, &[])?;
    node.run().await?;
    let mut keeper = Keeper::new("b", dir, url.clone(), &authority)?;
    keeper.run()?;
    let mut revision = 0;
    for round in 0..6 {
        let channel = node.channel()?;
        for n in 0..50 {
            revision = put(&channel, &format!("r{round}/{n}"), &"v".repeat(n * 20)).await?;
        }
        match round {
            1 | 3 => {
                keeper.beside.kill();
                revision = put(&channel, "while-away", "yes").await?;
                keeper.run()?;
            }
            2 | 4 => {
                node.kill();
                node.run().await?;
            }
            _ => {}
        }
        keeper.has(revision).await?;
    }
    // What both say of themselves.
    let data = format!("--data-dir={}", node.data.display());
    let told = orlop(&["status", &data])?.or_else(fail)?;
    ensure(told.contains("nothing behind"), || told.clone())?;
    let data = format!("--data-dir={}", keeper.data.display());
    let told = orlop(&["status", &data])?.or_else(fail)?;
    ensure(told.contains("would jump"), || told.clone())?;
    let metrics = node.metrics().await?;
    ensure(metrics.sum("orlop_followers", &[]) == 1.0, || {
        "followers".to_owned()
    })?;
    let (_, page) = keeper.beside.page("/metrics").await?;
    ensure(page.contains("orlop_keeper_following 1"), || page.clone())?;

    let (before, _) = contents(&node.channel()?).await?;
    node.kill();
    // No server starts from it as it is.
    keeper.beside.stop()?;
    let check = orlop(&["check", &data])?.or_else(fail)?;
    ensure(check.contains("a keeper's copy"), || check.clone())?;
    let port = free_port()?;
    let mut promoted = Node::new("b2", dir, &[])?;
    promoted.args.extend(peer_flags(&authority, port)?);
    promoted.data.clone_from(&keeper.data);
    let (_, said) = promoted.run_refused().await?;
    ensure(said.contains("orlop promote"), || said.clone())?;
    // It is asked what it assumes, and says what may be missing.
    let refused = orlop(&["promote", &data])?;
    let asks = refused
        .as_ref()
        .is_err_and(|text| text.contains("--old-server-is-gone"));
    ensure(asks, || format!("{refused:?}"))?;
    let told = orlop(&["promote", &data, "--old-server-is-gone"])?.or_else(fail)?;
    ensure(told.contains("every watcher lists again"), || told.clone())?;
    promoted.run().await?;
    let channel = promoted.channel()?;
    let (after, now) = contents(&channel).await?;
    ensure(before == after, || format!("{before:?}\n{after:?}"))?;
    ensure(now > revision + 900_000_000, || format!("revision {now}"))?;
    put(&channel, "goes-on", "yes").await?;

    // The old server comes back where a keeper has seen the new one: it is told, and stops for good.
    let mut other = Keeper::new("c", dir, format!("https://127.0.0.1:{port}"), &authority)?;
    other.run()?;
    other.has(now + 1).await?;
    other.beside.stop()?;
    node.run().await?;
    other.server = url;
    other.run()?;
    let status = node.wait_end(PATIENCE).await?;
    ensure(!status.success(), || format!("{status}"))?;
    let (_, said) = node.run_refused().await?;
    ensure(said.contains("was replaced"), || said.clone())?;
    other.beside.kill();
    promoted.stop()?;
    Ok(())
}

/// A server that stops in order leaves a copy that is exact: no revision is skipped; and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_moves_to_its_copy_and_back_without_a_jump() {
    let dir = tempfile::tempdir().unwrap();
    let result = stopped(dir.path()).await;
    conclude(dir, result);
}

async fn stopped(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "peers")?;
    let (mut node, url) = server("a", dir, &authority, &["--profile=ephemeral"])?;
    node.run().await?;
    let mut keeper = Keeper::new("b", dir, url, &authority)?;
    keeper.run()?;
    let mut revision = 0;
    for n in 0..100 {
        revision = put(&node.channel()?, &format!("k{n}"), "v").await?;
    }
    let data = format!("--data-dir={}", node.data.display());
    orlop(&["profile", "set", "balanced", &data])?.or_else(fail)?;
    keeper.has(revision).await?;
    tokio::time::sleep(Duration::from_millis(600)).await;
    for turn in 0..2 {
        let (before, at) = contents(&node.channel()?).await?;
        node.stop()?;
        let status = keeper.status().await?;
        ensure(status["complete"] == true, || {
            format!("{status}\n{}", keeper.beside.tail())
        })?;
        keeper.beside.stop()?;
        let copy = format!("--data-dir={}", keeper.data.display());
        let told = orlop(&["promote", &copy, "--old-server-is-gone"])?.or_else(fail)?;
        ensure(told.contains("no watcher has to list again"), || {
            told.clone()
        })?;
        let port = free_port()?;
        let mut next = Node::new(&format!("next{turn}"), dir, &["--profile=ephemeral"])?;
        next.args.extend(peer_flags(&authority, port)?);
        next.data.clone_from(&keeper.data);
        next.run().await?;
        let (after, now) = contents(&next.channel()?).await?;
        ensure((&before, at) == (&after, now), || format!("{at} and {now}"))?;
        // The choice at run time went along.
        let told = orlop(&["status", &copy])?.or_else(fail)?;
        ensure(told.contains("balanced"), || told.clone())?;
        let next_revision = put(&next.channel()?, &format!("turn{turn}"), "v").await?;
        ensure(next_revision == at + 1, || {
            format!("{next_revision} after {at}")
        })?;
        // The machine of the old one keeps the copy now.
        let url = format!("https://127.0.0.1:{port}");
        keeper = Keeper::new(&format!("back{turn}"), dir, url, &authority)?;
        keeper.run()?;
        keeper.has(next_revision).await?;
        tokio::time::sleep(Duration::from_millis(600)).await;
        node = next;
    }
    keeper.beside.kill();
    node.kill();
    Ok(())
}

/// The old directory at hand says whether the copy has all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_directory_at_hand_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let result = compared(dir.path()).await;
    conclude(dir, result);
}

async fn compared(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "peers")?;
    let (mut node, url) = server("a", dir, &authority, &[])?;
    node.run().await?;
    let mut keeper = Keeper::new("b", dir, url, &authority)?;
    keeper.run()?;
    let revision = put(&node.channel()?, "a", "1").await?;
    keeper.has(revision).await?;
    keeper.beside.kill();
    put(&node.channel()?, "a", "2").await?;
    node.kill();
    let copy = format!("--data-dir={}", keeper.data.display());
    let old = format!("--old-data-dir={}", node.data.display());
    let promote = ["promote", &copy, "--old-server-is-gone", &old];
    let refused = orlop(&promote)?;
    let newer = refused
        .as_ref()
        .is_err_and(|text| text.contains("1 revisions that the copy does not have"));
    ensure(newer, || format!("{refused:?}"))?;
    // It catches up, and then it has all.
    node.run().await?;
    keeper.run()?;
    keeper.has(revision + 1).await?;
    node.kill();
    keeper.beside.stop()?;
    let told = orlop(&promote)?.or_else(fail)?;
    ensure(told.contains("holds the same"), || told.clone())
}

/// A keeper takes nothing from another cluster, and overwrites no server's directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_refuses_what_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let result = refused(dir.path()).await;
    conclude(dir, result);
}

async fn refused(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "peers")?;
    let (mut a, url_a) = server("a", dir, &authority, &[])?;
    let (mut b, url_b) = server("b", dir, &authority, &[])?;
    a.run().await?;
    b.run().await?;
    let revision = put(&a.channel()?, "a", "1").await?;
    let mut keeper = Keeper::new("k", dir, url_a, &authority)?;
    keeper.run()?;
    keeper.has(revision).await?;
    keeper.beside.stop()?;
    keeper.server = url_b;
    let ends_saying = |keeper: &mut Keeper, part: &str| -> Result<()> {
        keeper.run()?;
        let began = Instant::now();
        loop {
            let Some(process) = keeper.beside.process_mut() else {
                return fail("no keeper");
            };
            if let Some(status) = process.ended()? {
                let said = process.tail();
                return ensure(!status.success() && said.contains(part), || said.clone());
            }
            ensure(began.elapsed() < PATIENCE, || process.tail())?;
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    ends_saying(&mut keeper, "name the right server")?;
    a.stop()?;
    keeper.data.clone_from(&a.data);
    ends_saying(&mut keeper, "holds a server's data")?;
    // Whoever the peers' authority does not know gets nothing.
    let stranger = Authority::new(dir, "strangers")?;
    let mut other = Keeper::new("o", dir, keeper.server.clone(), &authority)?;
    other.pair = stranger.sign("other")?;
    other.run()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = other.status().await?;
    ensure(
        status["following"] == false && status["revision"] == 0,
        || status.to_string(),
    )?;
    other.beside.kill();
    b.stop()?;
    Ok(())
}

/// While the server is gone its keeper gives snapshots: to etcdctl, to `orlop export`, and by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_gives_snapshots_without_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let result = backed_up(dir.path()).await;
    conclude(dir, result);
}

/// What `orlop snapshot status` says of a file that is whole: revision and keys.
fn snapshot_says(file: &Path) -> Result<(i64, i64)> {
    let file = file.display().to_string();
    let told = orlop(&["snapshot", "status", &file, "-w", "json"])?.or_else(fail)?;
    let told: Value = serde_json::from_str(&told)?;
    let number = |name: &str| told[name].as_i64().unwrap_or_default();
    Ok((number("revision"), number("totalKey")))
}

async fn backed_up(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "peers")?;
    let clients = Authority::new(dir, "clients")?;
    let (mut node, url) = server("a", dir, &authority, &[])?;
    node.run().await?;
    let mut keeper = Keeper::new("b", dir, url, &authority)?;
    let (port, saved) = (free_port()?, dir.join("saved"));
    std::fs::create_dir(&saved)?;
    let shown = clients.sign("keeper-b")?;
    keeper.more = vec![
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--server-cert-file={}", shown.cert.display()),
        format!("--server-key-file={}", shown.key.display()),
        format!("--client-trusted-ca-file={}", clients.cert.display()),
        format!("--snapshot-dir={}", saved.display()),
        "--snapshot-interval-s=1".to_owned(),
        "--snapshot-keep=2".to_owned(),
    ];
    keeper.run()?;
    let channel = node.channel()?;
    let mut revision = 0;
    for n in 0..200 {
        revision = put(&channel, &format!("k/{n}"), &"v".repeat(n * 20)).await?;
    }
    keeper.has(revision).await?;
    node.kill();

    let url = format!("https://127.0.0.1:{port}");
    let tls = |who: Option<Pair>| Tls {
        server: shown.clone(),
        ca: clients.cert.clone(),
        client: who,
    };
    let etcdctl = Etcdctl::new(&url, Some(&tls(Some(clients.sign("operator")?))))?;
    let file = dir.join("etcdctl.db");
    etcdctl.ok(&["snapshot", "save", &file.display().to_string()])?;
    ensure(snapshot_says(&file)? == (revision, 200), || {
        format!("{:?}", snapshot_says(&file))
    })?;
    let told = etcdctl.ok(&["endpoint", "status", "-w", "json"])?;
    ensure(told.contains("\"isLearner\":true"), || told.clone())?;
    // It is no server.
    let put = etcdctl.run(&["put", "key", "value", "--command-timeout=2s"])?;
    ensure(put.code != 0, || put.out.clone())?;
    // Nobody without a certificate, or with one that followers show.
    for stranger in [None, Some(authority.sign("operator")?)] {
        let other = Etcdctl::new(&url, Some(&tls(stranger)))?;
        let answer = other.run(&["endpoint", "status", "--command-timeout=2s"])?;
        ensure(answer.code != 0, || answer.out.clone())?;
    }

    let (exported, operator) = (dir.join("exported.db"), clients.sign("exporter")?);
    let arguments = [
        "export".to_owned(),
        format!("--endpoint={url}"),
        format!("--output={}", exported.display()),
        format!("--cacert={}", clients.cert.display()),
        format!("--cert={}", operator.cert.display()),
        format!("--key={}", operator.key.display()),
    ];
    orlop(&arguments.each_ref().map(String::as_str))?.or_else(fail)?;
    ensure(snapshot_says(&exported)? == (revision, 200), || {
        "the exported file".to_owned()
    })?;

    // By itself, and no more of them than are to be kept.
    let began = Instant::now();
    loop {
        let (_, page) = keeper.beside.page("/metrics").await?;
        let files = std::fs::read_dir(&saved)?.collect::<std::io::Result<Vec<_>>>()?;
        let newest = files.iter().filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.ends_with(&format!("-r{revision}.db"))
        });
        if newest.count() > 0 && !page.contains("last_success_timestamp_seconds 0\n") {
            ensure(files.len() <= 3, || format!("{files:?}"))?;
            break;
        }
        ensure(began.elapsed() < PATIENCE, || keeper.beside.tail())?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The copy is as good as before.
    keeper.beside.stop()?;
    let data = format!("--data-dir={}", keeper.data.display());
    orlop(&["promote", &data, "--old-server-is-gone"])?.or_else(fail)?;
    Ok(())
}
