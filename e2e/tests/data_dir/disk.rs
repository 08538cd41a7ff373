//! Disks that are full, and disks that fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::hostile::node::Node;
use e2e::kube::proc::{Process, conclude};
use e2e::kube::{Result, ensure, eventually, fail};
use etcd_api::etcdserverpb as pb;
use pb::maintenance_client::MaintenanceClient;
use tonic::Code;

use crate::support::{FLAGS, defragment, failed, keys, put, refused, try_put, until};

/// The small disk, in bytes, and what a file of ours takes of it.
const DISK_BYTES: usize = 16 << 20;
const BALLAST_BYTES: usize = 6 << 20;

/// A server whose data is on a small file system of its own: a tmpfs in a mount
/// namespace that only it is in, so that nothing is left to unmount.
async fn on_small_disk(dir: &Path) -> Result<(Node, PathBuf)> {
    let mut node = Node::new("orlop", dir, &FLAGS)?;
    std::fs::create_dir(&node.data)?;
    let script = format!("mount -t tmpfs -o size={DISK_BYTES},mode=700 none \"$0\" && exec \"$@\"");
    let data = node.data.display().to_string();
    let launcher = ["unshare", "-rm", "sh", "-c", &script, &data];
    node.launcher = launcher.iter().map(Into::into).collect();
    if let Err(error) = node.run().await {
        return fail(format!(
            "no server on a small disk; this test needs user and mount namespaces \
             (`unshare -rm`): {error}"
        ));
    }
    let inside = PathBuf::from(format!("/proc/{}/root{data}", node.id()?));
    Ok((node, inside))
}

async fn alarms(node: &Node) -> Result<usize> {
    let mut client = MaintenanceClient::new(node.channel()?);
    let answer = client.alarm(pb::AlarmRequest::default()).await;
    Ok(answer.or_else(failed("alarm"))?.into_inner().alarms.len())
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let result = full(dir.path()).await;
    conclude(dir, result);
}

async fn full(dir: &Path) -> Result<()> {
    let (mut node, inside) = on_small_disk(dir).await?;
    let ballast = inside.join("ballast");
    std::fs::write(&ballast, vec![1; BALLAST_BYTES])?;
    let value = "x".repeat(50_000);
    let mut written = 0;
    for round in 0..2 {
        let began = Instant::now();
        loop {
            match try_put(&node, &format!("key/{written:06}"), &value).await {
                Ok(()) => written += 1,
                Err(status) => {
                    let known = status.code() == Code::ResourceExhausted
                        && status.message() == "etcdserver: mvcc: database space exceeded";
                    ensure(known, || format!("a full disk answers {status}"))?;
                    break;
                }
            }
            ensure(began.elapsed() < Duration::from_secs(30), || {
                "the disk does not fill".to_owned()
            })?;
        }
        ensure(alarms(&node).await? == 1, || "there is no alarm".to_owned())?;
        ensure(keys(&node).await?.len() == written, || {
            "reads do not go on".to_owned()
        })?;
        for page in ["/livez", "/readyz"] {
            let (status, text) = node.page(page).await?;
            ensure(status == 200, || format!("{page}: {status} {text}"))?;
        }
        node.check_running()?;
        if round == 1 {
            break;
        }
        std::fs::remove_file(&ballast)?;
        eventually("writes come back", Duration::from_secs(10), || async {
            put(&node, &format!("key/{written:06}"), "back")
                .await
                .map(Some)
        })
        .await?;
        written += 1;
        ensure(alarms(&node).await? == 0, || "the alarm stays".to_owned())?;
    }
    println!("{written} writes of 50 KB before the disk of {DISK_BYTES} bytes was full twice");
    ensure(keys(&node).await?.len() == written, || {
        "keys are gone".to_owned()
    })?;
    ensure(node.stop()?.success(), || {
        "it did not stop cleanly".to_owned()
    })
}

/// A log that fills the disk with versions of one key makes room for itself.
#[tokio::test]
async fn a_log_full_of_history_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let result = history(dir.path()).await;
    conclude(dir, result);
}

async fn history(dir: &Path) -> Result<()> {
    let (mut node, _inside) = on_small_disk(dir).await?;
    let value = "x".repeat(50_000);
    let mut count = 0;
    while try_put(&node, "key", &value).await.is_ok() {
        count += 1;
        ensure(count < 2000, || "the disk does not fill".to_owned())?;
    }
    // As an operator of etcd would: compact, then defragment.
    let mut kv = pb::kv_client::KvClient::new(node.channel()?);
    let compact = pb::CompactionRequest {
        revision: count,
        physical: true,
    };
    kv.compact(compact)
        .await
        .map(drop)
        .or_else(failed("compact"))?;
    tokio::time::timeout(Duration::from_secs(20), defragment(&node))
        .await
        .or_else(|_| fail("defragment does not end on a full disk"))??;
    eventually("writes come back", Duration::from_secs(10), || async {
        put(&node, "key", &value).await.map(Some)
    })
    .await?;
    node.check_running()
}

#[tokio::test]
async fn a_failed_sync_acknowledges_nothing_and_ends_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let result = failed_sync(dir.path()).await;
    conclude(dir, result);
}

async fn failed_sync(dir: &Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &FLAGS).await?;
    for n in 0..20 {
        put(&node, &format!("before/{n:03}"), "value").await?;
    }
    // strace makes the kernel refuse; each thread counts for itself.
    let mut strace = Process::start(
        "strace",
        dir,
        Command::new("strace")
            .args(["-f", "-e", "trace=fdatasync,fsync"])
            .args(["-e", "inject=fdatasync,fsync:error=EIO:when=4+"])
            .args(["-p", &node.id()?.to_string()]),
    )?;
    let log = strace.log().to_owned();
    until(
        "strace (Debian package strace; needs ptrace) to attach",
        || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("attached")),
    )
    .await?;
    strace.check_running()?;
    let mut acknowledged = 0;
    while try_put(&node, &format!("key/{acknowledged:03}"), "value")
        .await
        .is_ok()
    {
        acknowledged += 1;
        ensure(acknowledged < 50, || "no sync failed".to_owned())?;
    }
    ensure(acknowledged == 3, || {
        format!("the fourth sync failed, and {acknowledged} writes were acknowledged")
    })?;
    let status = node.wait_end(Duration::from_secs(10)).await?;
    ensure(status.code().is_some_and(|code| code != 0), || {
        format!("with a failed sync the server ended {status}")
    })?;
    let said = node.said();
    ensure(said.contains("Input/output error"), || said.clone())?;
    drop(strace);
    node.run().await?;
    let found = keys(&node).await?.len();
    ensure(found == 23 || found == 24, || {
        format!("23 writes were acknowledged, one was not; {found} are there")
    })
}

/// What the disk holds is unknown to an old process: a wrong answer is worse than none.
#[tokio::test]
async fn an_unreadable_directory_is_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let result = async {
        let mut node = Node::new("orlop", dir.path(), &FLAGS)?;
        std::fs::write(&node.data, "a file")?;
        refused(&mut node, &["is not a directory"]).await?;
        node.data = PathBuf::from("/proc/orlop-cannot-be-here");
        refused(&mut node, &["/proc/orlop-cannot-be-here"])
            .await
            .map(drop)
    }
    .await;
    conclude(dir, result);
}
