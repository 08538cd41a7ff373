//! A server and its shards, as processes with certificates: a replicated write survives the
//! server's power as long as one shard that has it lives; shards come, go and are killed under
//! writes; without any of them a start is refused, and goes on by a jump when it is told to.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::beside::{Beside, orlop};
use e2e::hostile::node::{Node, contents, put};
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure, fail};
use e2e::power_loss::{End, take_the_end, take_the_marker};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing of these is on the disk by itself while a test runs.
const RULES: &str = r#"
[[rule]]
name = "shared"
prefix = "/r/"
durability = "replicated"
copies = 2
sync_within = "30s"

[[rule]]
name = "also"
prefix = "/v/"
durability = "volatile"
sync_within = "30s"
"#;

/// A shard's process, with what outlives its restarts.
struct Shard {
    beside: Beside,
    name: String,
    zone: String,
    server: String,
    /// The directory of its certificate.
    certs: PathBuf,
}

impl Shard {
    fn new(name: &str, zone: &str, dir: &Path, server: &str) -> Result<Self> {
        Ok(Shard {
            beside: Beside::new("shard", dir)?,
            name: name.to_owned(),
            zone: zone.to_owned(),
            server: server.to_owned(),
            certs: dir.join("pki/shard").join(name),
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut args = vec![
            format!("--server={}", self.server),
            format!("--name={}", self.name),
            format!("--zone={}", self.zone),
        ];
        args.extend(certificate(&self.certs, ""));
        self.beside.run(&args)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.beside.process().map_or(0, Process::id);
        match i32::try_from(id).ok().and_then(Pid::from_raw) {
            Some(pid) => Ok(kill_process(pid, signal).map_err(std::io::Error::from)?),
            None => fail("it does not run"),
        }
    }
}

/// Flags for the certificate in a directory that `orlop certs` made.
fn certificate(dir: &Path, prefix: &str) -> [String; 3] {
    let flag = |name: &str, file: &str| format!("--{prefix}{name}={}", dir.join(file).display());
    [
        flag("cert-file", "tls.crt"),
        flag("key-file", "tls.key"),
        flag("trusted-ca-file", "ca.crt"),
    ]
}

/// A server that lets shards in, and three of them.
fn cluster(dir: &Path) -> Result<(Node, Vec<Shard>)> {
    let pki = format!("--dir={}", dir.join("pki").display());
    for args in [
        &["init"][..],
        &["make", "peer", "a", "--san=127.0.0.1"],
        &["make", "shard", "n1", "n2", "n3"],
        &["make", "keeper", "k1"],
    ] {
        orlop(&[&["certs"][..], args, &[pki.as_str()]].concat())?.or_else(fail)?;
    }
    let rules = dir.join("rules.toml");
    std::fs::write(&rules, RULES)?;
    let port = free_port()?;
    let mut node = Node::new("a", dir, &[])?;
    node.args.extend([
        format!("--rules={}", rules.display()),
        format!("--listen-peer-urls=https://127.0.0.1:{port}"),
        "--max-shards=4".to_owned(),
        "--max-followers=1".to_owned(),
    ]);
    node.args
        .extend(certificate(&dir.join("pki/peer/a"), "peer-"));
    let url = format!("https://127.0.0.1:{port}");
    let shard = |(name, zone)| Shard::new(name, zone, dir, &url);
    let shards = [("n1", "z1"), ("n2", "z1"), ("n3", "z2")]
        .into_iter()
        .map(shard);
    Ok((node, shards.collect::<Result<_>>()?))
}

async fn counting(node: &Node, expected: bool) -> Result<()> {
    let began = Instant::now();
    loop {
        let metrics = node.metrics().await?;
        let now = metrics.sum("orlop_shards_counting", &[]) == 1.0;
        if now == expected {
            return Ok(());
        }
        ensure(began.elapsed() < PATIENCE, || {
            format!("counting is not {expected}\n{}", node.said())
        })?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Takes from a killed server's directory what its power took.
fn lose_power(node: &Node) -> Result<usize> {
    let lost = take_the_end(&node.data, End::Gone)?;
    take_the_marker(&node.data)?;
    Ok(lost.frames)
}

/// Writes survive the server's power, exactly; shards come and go meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loses_power_goes_on_exactly_from_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    let result = exact(dir.path()).await;
    conclude(dir, result);
}

async fn exact(dir: &Path) -> Result<()> {
    let (mut node, mut shards) = cluster(dir)?;
    node.run().await?;
    // Without shards a replicated write is durable.
    put(&node.channel()?, "/r/first", "v").await?;
    shards.iter_mut().try_for_each(Shard::run)?;
    counting(&node, true).await?;
    let (code, _) = shards[0].beside.page("/readyz").await?;
    ensure(code == 200, || format!("/readyz: {code}"))?;

    for round in 0..3 {
        let channel = node.channel()?;
        let victim = (round + 1) % shards.len();
        for n in 0..60 {
            let key = match n % 10 {
                9 => format!("/d/{round}/{n}"),
                5 => format!("/v/{round}/{n}"),
                _ => format!("/r/{round}/{n}"),
            };
            put(&channel, &key, &"v".repeat(n * 30)).await?;
            // One is killed under writes, and comes back empty.
            if n == 20 {
                shards[victim].beside.kill();
            }
            if n == 40 {
                shards[victim].run()?;
            }
        }
        counting(&node, true).await?;
        // These are on no disk.
        for n in 0..10 {
            put(&channel, &format!("/r/last/{round}/{n}"), "v").await?;
        }
        let before = contents(&channel).await?;
        node.kill();
        let lost = lose_power(&node)?;
        ensure(lost > 0, || "nothing was lost".to_owned())?;
        let data = format!("--data-dir={}", node.data.display());
        let told = orlop(&["check", &data])?.or_else(fail)?;
        ensure(told.contains("shards held the newest writes"), || {
            told.clone()
        })?;
        node.run().await?;
        let after = contents(&node.channel()?).await?;
        ensure(before == after, || {
            format!("{} and {}\n{}", before.1, after.1, node.said())
        })?;
        let said = node.said();
        ensure(said.contains("a shard gave back"), || said.clone())?;
        counting(&node, true).await?;
    }
    // Only the process ends: nobody is asked.
    put(&node.channel()?, "/r/killed", "v").await?;
    let before = contents(&node.channel()?).await?;
    node.kill();
    node.run().await?;
    ensure(before == contents(&node.channel()?).await?, || {
        "a kill lost something".to_owned()
    })?;
    counting(&node, true).await?;

    // Each stands still for a while, under writes: nothing is lost, and others take its place.
    for shard in &shards {
        shard.signal(Signal::STOP)?;
        for n in 0..3 {
            put(
                &node.channel()?,
                &format!("/r/still/{}/{n}", shard.name),
                "v",
            )
            .await?;
        }
        counting(&node, true).await?;
        shard.signal(Signal::CONT)?;
    }

    // They leave, one after the other.
    shards[0].beside.stop()?;
    put(&node.channel()?, "/r/two-left", "v").await?;
    counting(&node, true).await?;
    shards[1].beside.stop()?;
    put(&node.channel()?, "/r/one-left", "v").await?;
    counting(&node, false).await?;
    let data = format!("--data-dir={}", node.data.display());
    let told = orlop(&["status", &data])?.or_else(fail)?;
    ensure(told.contains("DEGRADED"), || told.clone())?;
    // Then what is visible is on the disk, and a start asks nobody.
    let before = contents(&node.channel()?).await?;
    node.kill();
    take_the_marker(&node.data)?;
    shards[2].beside.kill();
    node.run().await?;
    ensure(before == contents(&node.channel()?).await?, || {
        "without shards something was lost".to_owned()
    })?;
    node.stop()?;
    Ok(())
}

/// All shards are gone with the server's power.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_shards_a_start_is_refused_until_it_is_told_to_jump() {
    let dir = tempfile::tempdir().unwrap();
    let result = gone(dir.path()).await;
    conclude(dir, result);
}

async fn gone(dir: &Path) -> Result<()> {
    let (mut node, mut shards) = cluster(dir)?;
    node.args.push("--shard-recovery-timeout=2s".to_owned());
    node.run().await?;
    shards.iter_mut().try_for_each(Shard::run)?;
    counting(&node, true).await?;
    let channel = node.channel()?;
    let durable = put(&channel, "/d/kept", "v").await?;
    let mut shown = durable;
    for n in 0..10 {
        shown = put(&channel, &format!("/r/{n}"), "v").await?;
    }
    node.kill();
    shards.iter_mut().for_each(|shard| shard.beside.kill());
    ensure(lose_power(&node)? > 0, || "nothing was lost".to_owned())?;
    let (_, said) = node.run_refused().await?;
    for part in ["did not connect", "--recover-without-shards"] {
        ensure(said.contains(part), || said.clone())?;
    }
    // Those that come back have nothing: that is said at once.
    shards.iter_mut().try_for_each(Shard::run)?;
    let (_, said) = node.run_refused().await?;
    ensure(said.contains("was started anew since"), || said.clone())?;
    // Nor does it start without the flags of shards, as if nothing were missing.
    let flags = node.args.clone();
    node.args.retain(|arg| {
        !["shard", "peer", "followers"]
            .iter()
            .any(|of| arg.contains(of))
    });
    let (_, said) = node.run_refused().await?;
    ensure(said.contains("They were not asked"), || said.clone())?;
    node.args = flags;
    node.args.push("--recover-without-shards".to_owned());
    node.run().await?;
    let (kvs, revision) = contents(&node.channel()?).await?;
    ensure(kvs.contains_key("/d/kept"), || format!("{kvs:?}"))?;
    ensure(revision > shown, || format!("{revision} after {shown}"))?;
    counting(&node, true).await?;
    shards
        .iter_mut()
        .try_for_each(|shard| shard.beside.stop())?;
    node.stop()?;
    Ok(())
}

/// What could not be given back does not count as held: a write larger than a shard's message waits
/// for the disk, and survives the power there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_no_shard_could_give_back_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let result = large(dir.path()).await;
    conclude(dir, result);
}

async fn large(dir: &Path) -> Result<()> {
    let (mut node, mut shards) = cluster(dir)?;
    node.args.push("--max-request-bytes=67108864".to_owned());
    node.run().await?;
    shards.iter_mut().try_for_each(Shard::run)?;
    counting(&node, true).await?;
    let value = "v".repeat(copies::shards::MAX_TOLD_BYTES + 1);
    put(&node.channel()?, "/r/large", &value).await?;
    counting(&node, true).await?;
    for n in 0..10 {
        put(&node.channel()?, &format!("/r/small/{n}"), "v").await?;
    }
    let before = revision(&node).await?;
    node.kill();
    lose_power(&node)?;
    node.run().await?;
    let after = revision(&node).await?;
    ensure(before == after, || {
        format!("{before} and {after}\n{}", node.said())
    })?;
    shards
        .iter_mut()
        .try_for_each(|shard| shard.beside.stop())?;
    node.stop()?;
    Ok(())
}

/// The store's revision, without its contents: they are larger than a client takes.
async fn revision(node: &Node) -> Result<i64> {
    Ok(node
        .metrics()
        .await?
        .sum("etcd_debugging_mvcc_current_revision", &[]) as i64)
}

/// What a certificate is for, it is for nothing else: a keeper's holds nothing, and with a shard's
/// nobody follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_may_do_nothing_else_and_nobody_else_may_hold() {
    let dir = tempfile::tempdir().unwrap();
    let result = roles(dir.path()).await;
    conclude(dir, result);
}

async fn roles(dir: &Path) -> Result<()> {
    let (mut node, mut shards) = cluster(dir)?;
    node.run().await?;
    let keepers = dir.join("pki/keeper/k1");
    let shard = &mut shards[0];
    let own = std::mem::replace(&mut shard.certs, keepers);
    shard.run()?;
    said(shard, "the certificate is for something else").await?;
    shard.beside.kill();

    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .arg("keeper")
        .arg(format!("--server={}", shard.server))
        .arg(format!("--data-dir={}", dir.join("copy").display()))
        .arg(format!("--metrics-addr=127.0.0.1:{}", free_port()?))
        .args(certificate(&own, ""));
    let mut keeper = Process::start("keeper", dir, &mut command)?;
    let began = Instant::now();
    while !keeper
        .tail()
        .contains("the certificate is for something else")
    {
        ensure(began.elapsed() < PATIENCE, || keeper.tail())?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    keeper.kill();
    node.stop()?;
    Ok(())
}

async fn said(shard: &Shard, what: &str) -> Result<()> {
    let began = Instant::now();
    while !shard.beside.tail().contains(what) {
        ensure(began.elapsed() < PATIENCE, || shard.beside.tail())?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
