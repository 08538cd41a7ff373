//! Prints what saving and restoring a snapshot costs, orlop beside etcd in one run.
//!
//! ```text
//! cargo build --release -p orlop
//! cargo run --release -p e2e --bin snapshots [KEYS [VALUE_BYTES]]
//! ```
//!
//! 1,000,000 keys of 1,024 random bytes, unless told otherwise; about 8 GB of disk below
//! the current directory for the time of the run, some ten minutes. Both servers are saved
//! with etcdctl, and both restore the same file, etcd's. Puts are watched beside nothing,
//! beside etcdctl, whose file is on the servers' disk, and beside a client that throws the
//! snapshot away: the server's own part.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use e2e::differential::rng::Rng;
use e2e::hostile::good::{Good, Latency};
use e2e::hostile::load::put_all;
use e2e::hostile::node::Node;
use e2e::kube::proc::free_port;
use e2e::kube::store::Kind;
use e2e::kube::{Error, Result, binaries, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::maintenance_client::MaintenanceClient;
use tokio::process::Command;
use tonic::Status;

const KEYS: usize = 1_000_000;
const VALUE_BYTES: usize = 1024;
/// How long at least puts are watched beside each thing: some 5,000 puts, so that p99.9
/// does not hang on one.
const WATCHED: Duration = Duration::from_secs(30);
/// No run takes longer.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Between the watched client's puts.
const PAUSE: Duration = Duration::from_micros(500);
/// Between looks at a process's memory.
const LOOK: Duration = Duration::from_millis(5);
/// etcd's default of 2 GiB is too near.
const QUOTA: &str = "--quota-backend-bytes=8589934592";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| match args.next() {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| Error::Failed(format!("{text} is no number"))),
    };
    let (keys, value_bytes) = (number(KEYS)?, number(VALUE_BYTES)?);
    // Not /tmp, which may be in memory.
    let dir = tempfile::tempdir_in(".")?;
    // Whichever is first, the servers end, and then the directory goes.
    tokio::select! {
        result = compare(dir.path(), keys, value_bytes) => result,
        () = tokio::time::sleep(LIMIT) => fail(format!("not done after {LIMIT:?}")),
        _ = tokio::signal::ctrl_c() => fail("interrupted"),
    }
}

async fn compare(dir: &Path, keys: usize, value_bytes: usize) -> Result<()> {
    let file = dir.join("snapshot.db");
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!(
        "{keys} keys of {value_bytes} bytes; load average {}",
        load.trim()
    );

    println!("\n{}", Saved::HEAD);
    let mut puts = Vec::new();
    // etcd last: its file is the one restored.
    for kind in [Kind::Orlop, Kind::Etcd] {
        let row = saved(kind, dir, &file, keys, value_bytes).await?;
        println!("{}", row.line(kind));
        puts.extend(row.puts_lines(kind));
    }
    println!("\n{}", Saved::PUTS_HEAD);
    for line in puts {
        println!("{line}");
    }
    println!("\n{}", Restored::HEAD);
    for kind in [Kind::Orlop, Kind::Etcd] {
        let row = restored(kind, dir, &file).await?;
        println!("{}", row.line(kind));
    }
    Ok(())
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Orlop => "orlop",
        Kind::Etcd => "etcd",
    }
}

/// A server of that kind, not yet started, with its data below `dir`.
fn node(kind: Kind, dir: &Path) -> Result<Node> {
    let mut node = Node::new(name(kind), dir, &[QUOTA])?;
    if kind == Kind::Etcd {
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        node.program = Some(kind.program()?);
        node.args.extend([
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}={peer}", name(kind)),
        ]);
    }
    Ok(node)
}

/// What saving cost.
struct Saved {
    times: Vec<Duration>,
    file_bytes: u64,
    memory: Memory,
    /// Puts beside nothing.
    idle: Latency,
    /// Puts beside a client that throws away what it is sent.
    sending: Latency,
    /// Puts beside etcdctl.
    saving: Latency,
}

impl Saved {
    const HEAD: &str = "save     times  median s  file MiB  RSS before MiB  RSS rise MiB  \
         anon rise MiB";
    const PUTS_HEAD: &str = "puts     beside      count  p50 ms  p99.9 ms  rise of p99.9 ms";

    fn line(&self, kind: Kind) -> String {
        let mut times = self.times.clone();
        times.sort();
        format!(
            "{:<8} {:>5} {:>9.2} {:>9} {:>15} {:>13} {:>14}",
            name(kind),
            times.len(),
            times[times.len() / 2].as_secs_f64(),
            self.file_bytes >> 20,
            self.memory.before.rss >> 20,
            (self.memory.peak.rss - self.memory.before.rss) >> 20,
            (self.memory.peak.anon - self.memory.before.anon) >> 20,
        )
    }

    fn puts_lines(&self, kind: Kind) -> Vec<String> {
        let ms = |latency: &Latency, share| latency.quantile(share).as_secs_f64() * 1e3;
        let watched = [
            ("nothing", &self.idle),
            ("sending", &self.sending),
            ("etcdctl", &self.saving),
        ];
        let line = |(beside, latency): (&str, &Latency)| {
            format!(
                "{:<8} {:<9} {:>7} {:>7.2} {:>9.2} {:>+17.2}",
                name(kind),
                beside,
                latency.count(),
                ms(latency, 0.5),
                ms(latency, 0.999),
                ms(latency, 0.999) - ms(&self.idle, 0.999),
            )
        };
        watched.into_iter().map(line).collect()
    }
}

async fn saved(
    kind: Kind,
    dir: &Path,
    file: &Path,
    keys: usize,
    value_bytes: usize,
) -> Result<Saved> {
    let mut node = node(kind, dir)?;
    node.run().await?;
    fill(&node, keys, value_bytes).await?;
    // etcd commits and orlop snapshots its journal on their own after the load.
    tokio::time::sleep(Duration::from_secs(10)).await;

    let (_, idle) = beside(&node, value_bytes, async || {
        tokio::time::sleep(WATCHED).await;
        Ok(())
    })
    .await?;
    // Before etcdctl, whose files the disk has to do with for a while.
    let (_, sending) = beside(&node, value_bytes, async || receive(&node).await).await?;
    let watch = Watch::start(node.id()?)?;
    let (times, saving) = beside(&node, value_bytes, async || save(&node, file).await).await?;
    let memory = watch.finish()?;
    node.stop()?;
    std::fs::remove_dir_all(&node.data)?;
    Ok(Saved {
        times,
        file_bytes: std::fs::metadata(file)?.len(),
        memory,
        idle,
        sending,
        saving,
    })
}

/// Watches puts while `operation` is done again and again for [`WATCHED`], at least once.
/// Returns how long it took each time, and the puts.
async fn beside(
    node: &Node,
    value_bytes: usize,
    mut operation: impl AsyncFnMut() -> Result<()>,
) -> Result<(Vec<Duration>, Latency)> {
    let puts = Good::start(node.url(), 64, value_bytes, PAUSE);
    let began = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || began.elapsed() < WATCHED {
        let one = Instant::now();
        operation().await?;
        times.push(one.elapsed());
    }
    Ok((times, puts.finish()?))
}

/// Saves to `file` with etcdctl.
async fn save(node: &Node, file: &Path) -> Result<()> {
    let status = Command::new(binaries("etcd")?.join("etcdctl"))
        .arg(format!("--endpoints={}", node.url()))
        .args(["snapshot", "save", "--command-timeout=300s"])
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    ensure(status.success(), || {
        format!("etcdctl snapshot save: {status}")
    })
}

/// Takes a snapshot and throws it away.
async fn receive(node: &Node) -> Result<()> {
    let failed = |status: Status| Error::Failed(format!("Snapshot: {status}"));
    let mut maintenance = MaintenanceClient::new(node.channel()?);
    let answer = maintenance.snapshot(pb::SnapshotRequest {}).await;
    let mut pieces = answer.map_err(failed)?.into_inner();
    while pieces.message().await.map_err(failed)?.is_some() {}
    Ok(())
}

/// Puts all keys, with values that do not compress.
async fn fill(node: &Node, keys: usize, value_bytes: usize) -> Result<()> {
    put_all(&node.channel()?, keys, move |n| {
        let mut random = Rng::new(n as u64);
        let words = (0..value_bytes.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes());
        pb::PutRequest {
            key: format!("/registry/things/namespace/{n:08}").into(),
            value: words.take(value_bytes).collect::<Vec<u8>>().into(),
            ..Default::default()
        }
    })
    .await
}

/// What restoring cost.
struct Restored {
    took: Duration,
    memory: Memory,
    ready: Duration,
    rss: u64,
}

impl Restored {
    const HEAD: &str =
        "restore  took s  peak RSS MiB  peak anon MiB  then start to ready s  its RSS MiB";

    fn line(&self, kind: Kind) -> String {
        format!(
            "{:<8} {:>6.2} {:>13} {:>14} {:>22.2} {:>12}",
            name(kind),
            self.took.as_secs_f64(),
            self.memory.peak.rss >> 20,
            self.memory.peak.anon >> 20,
            self.ready.as_secs_f64(),
            self.rss >> 20,
        )
    }
}

async fn restored(kind: Kind, dir: &Path, file: &Path) -> Result<Restored> {
    let mut node = node(kind, dir)?;
    let program: PathBuf = match kind {
        Kind::Orlop => kind.program()?,
        Kind::Etcd => binaries("etcd")?.join("etcdutl"),
    };
    let mut command = Command::new(program);
    command
        .args(["snapshot", "restore"])
        .arg(file)
        .arg(format!("--data-dir={}", node.data.display()))
        .args(["--bump-revision=1000000000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    if kind == Kind::Etcd {
        command.arg("--mark-compacted");
    }
    let began = Instant::now();
    let mut child = command.spawn()?;
    let watch = Watch::start(child.id().unwrap_or_default())?;
    let status = child.wait().await?;
    let took = began.elapsed();
    let memory = watch.finish()?;
    ensure(status.success(), || {
        format!("{} restore: {status}", name(kind))
    })?;
    let ready = node.run().await?;
    let rss = Sizes::of(node.id()?).rss;
    node.stop()?;
    std::fs::remove_dir_all(&node.data)?;
    Ok(Restored {
        took,
        memory,
        ready,
        rss,
    })
}

/// Memory of a process, in bytes; 0 if it has ended.
#[derive(Debug, Clone, Copy, Default)]
struct Sizes {
    /// All that is resident, mapped files too.
    rss: u64,
    /// Without mapped files.
    anon: u64,
}

impl Sizes {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let size = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Self {
            rss: size("VmRSS:"),
            anon: size("RssAnon:"),
        }
    }
}

/// Memory of a process at first and at most.
struct Memory {
    before: Sizes,
    peak: Sizes,
}

/// Looks at a process's memory all the time.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Memory>,
}

impl Watch {
    fn start(pid: u32) -> Result<Self> {
        let before = Sizes::of(pid);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new().spawn(move || {
            let mut peak = before;
            while !stopping.load(Ordering::SeqCst) {
                let now = Sizes::of(pid);
                peak.rss = peak.rss.max(now.rss);
                peak.anon = peak.anon.max(now.anon);
                std::thread::sleep(LOOK);
            }
            Memory { before, peak }
        })?;
        Ok(Self { stop, thread })
    }

    fn finish(self) -> Result<Memory> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.join() {
            Ok(memory) => Ok(memory),
            Err(_) => fail("the watching thread panicked"),
        }
    }
}
