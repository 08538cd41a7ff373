//! A keeper whose disk is full.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::hostile::node::{contents, put};
use e2e::kube::pki::Authority;
use e2e::kube::proc::{conclude, run};
use e2e::kube::{Result, ensure, fail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Keeper, promoted_has, server};

/// The keeper's disk, and what a file of ours takes of it: one segment of the keeper's log fits
/// beside it, and a second one does not.
const DISK_BYTES: usize = 384 << 20;
const BALLAST_BYTES: u64 = 308 << 20;
/// More than what is left.
const WRITTEN_BYTES: usize = 90 << 20;
/// One value.
const VALUE_BYTES: usize = 1 << 20;
/// A keeper with a full disk rests 5 s between attempts; on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A full disk stops the copy, not the server; with room again the copy has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_with_a_full_disk_goes_on_when_it_has_room() {
    let dir = tempfile::tempdir().unwrap();
    let result = full(dir.path()).await;
    conclude(dir, result);
}

async fn full(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "peers")?;
    let (mut node, url) = server("a", dir, &authority, &[])?;
    node.run().await?;
    let mut keeper = Keeper::new("b", dir, url, &authority)?;
    std::fs::create_dir(&keeper.data)?;
    // In a mount namespace that only the keeper is in, so that nothing is left to unmount.
    let script = format!("mount -t tmpfs -o size={DISK_BYTES},mode=700 none \"$0\" && exec \"$@\"");
    let data = keeper.data.display().to_string();
    let launcher = ["unshare", "-rm", "sh", "-c", &script, &data];
    keeper.beside.launcher = launcher.iter().map(Into::into).collect();
    keeper.run()?;
    let channel = node.channel()?;
    let revision = put(&channel, "first", "v").await?;
    keeper.has(revision).await?;

    let Some(process) = keeper.beside.process().map(e2e::kube::proc::Process::id) else {
        return fail("no keeper");
    };
    let inside = Path::new("/proc").join(process.to_string());
    let inside = inside.join("root").join(data.trim_start_matches('/'));
    let ballast = inside.join("ballast");
    run(Command::new("fallocate")
        .arg(format!("--length={BALLAST_BYTES}"))
        .arg(&ballast))?;

    let mut revision = 0;
    for n in 0..WRITTEN_BYTES / VALUE_BYTES {
        let value = "x".repeat(VALUE_BYTES);
        revision = put(&channel, &format!("big/{}", n % 2), &value).await?;
    }
    let began = Instant::now();
    while !keeper.beside.tail().contains("no space") {
        ensure(began.elapsed() < PATIENCE, || keeper.beside.tail())?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The server does not care, and the keeper is there and says where it stands.
    for n in 0..20 {
        revision = put(&channel, &format!("small/{n}"), "v").await?;
    }
    let status = keeper.status().await?;
    ensure(status["revision"].as_i64() < Some(revision), || {
        status.to_string()
    })?;

    std::fs::remove_file(&ballast)?;
    keeper.has(revision).await?;
    // Its disk goes with its process.
    let (before, _) = contents(&channel).await?;
    node.kill();
    let Some(pid) = Pid::from_raw(process as i32) else {
        return fail("no process id");
    };
    kill_process(pid, Signal::STOP).map_err(std::io::Error::from)?;
    let copy = dir.join("copy");
    run(Command::new("cp").arg("-a").arg(&inside).arg(&copy))?;
    keeper.beside.kill();
    promoted_has(dir, &copy, &before).await
}
