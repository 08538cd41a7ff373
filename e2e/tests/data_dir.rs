//! The data directory of the real program: whose it is, what damage, copies, full and
//! failing disks do to it, and that an etcd never takes it for its own.

#[path = "data_dir/disk.rs"]
mod disk;
#[path = "data_dir/etcd_name.rs"]
mod etcd_name;
#[path = "data_dir/support.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::hostile::node::Node;
use e2e::kube::proc::conclude;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, binaries, ensure, fail};
use support::{FLAGS, Files, check, keys, put, refused, until};

#[tokio::test]
async fn no_etcd_starts_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let result = etcd_refuses(dir.path()).await;
    conclude(dir, result);
}

async fn etcd_refuses(dir: &Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &FLAGS).await?;
    put(&node, "key", "value").await?;
    node.stop()?;
    let before = Files::read(&node.data)?;
    for set in ["etcd", "etcd-3.6", "etcd-3.5"] {
        let mut etcd = Node::new(set, dir, &[])?;
        etcd.data = node.data.clone();
        etcd.program = Some(binaries(set)?.join("etcd"));
        let peer = format!("http://127.0.0.1:{}", e2e::kube::proc::free_port()?);
        etcd.args = vec![
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={set}={peer}"),
        ];
        let (status, said) = etcd.run_refused().await?;
        ensure(!status.success(), || format!("{set} ended well: {said}"))?;
        ensure(Files::read(&node.data)? == before, || {
            format!("{set} changed the directory: {said}")
        })?;
    }
    node.run().await?;
    ensure(keys(&node).await?.len() == 1, || {
        "the key is gone".to_owned()
    })
}

#[tokio::test]
async fn etcds_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let result = refuses_etcd(dir.path()).await;
    conclude(dir, result);
}

async fn refuses_etcd(dir: &Path) -> Result<()> {
    let mut etcd = Store::start(Kind::Etcd, "etcd", dir, None, &[]).await?;
    etcd.stop()?;
    let mut node = Node::new("orlop", dir, &FLAGS)?;
    node.data = dir.join("etcd-data");
    let before = Files::read(&node.data)?;
    refused(&mut node, &["is an etcd data directory", "--data-dir"]).await?;
    let (code, said) = check(&node.data)?;
    ensure(
        code == Some(1) && said.contains("etcd data directory"),
        || said,
    )?;
    ensure(Files::read(&node.data)? == before, || {
        "a refused directory was changed".to_owned()
    })
}

#[tokio::test]
async fn a_member_of_a_lost_cluster_does_not_start_empty() {
    let dir = tempfile::tempdir().unwrap();
    let result = existing(dir.path()).await;
    conclude(dir, result);
}

async fn existing(dir: &Path) -> Result<()> {
    let mut node = Node::new("orlop", dir, &FLAGS)?;
    node.args
        .push("--initial-cluster-state=existing".to_owned());
    refused(&mut node, &["--initial-cluster-state", "existing"]).await?;
    ensure(!node.data.join("format").exists(), || {
        "it made a directory all the same".to_owned()
    })?;
    // With data there, it is what every restart of a kubeadm's member says.
    node.args.pop();
    node.run().await?;
    put(&node, "key", "value").await?;
    node.stop()?;
    node.args
        .push("--initial-cluster-state=existing".to_owned());
    node.run().await?;
    ensure(keys(&node).await?.len() == 1, || {
        "the key is gone".to_owned()
    })
}

#[tokio::test]
async fn a_second_server_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let result = second(dir.path()).await;
    conclude(dir, result);
}

async fn second(dir: &Path) -> Result<()> {
    let node = Node::start("orlop", dir, &FLAGS).await?;
    let mut other = Node::new("second", dir, &FLAGS)?;
    other.data = node.data.clone();
    let pid = format!("process {}", node.id()?);
    refused(&mut other, &["in use by another orlop", &pid]).await?;
    let (code, said) = check(&node.data)?;
    ensure(code == Some(1) && said.contains("in use"), || said)?;
    put(&node, "key", "value").await
}

#[tokio::test]
async fn damage_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let result = damage(dir.path()).await;
    conclude(dir, result);
}

/// Segments in use, oldest first.
fn segments(data: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data.join("log"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "seg") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Puts enough to fill several segments.
async fn fill(node: &Node, from: usize, count: usize) -> Result<()> {
    let value = "x".repeat(100_000);
    for n in from..from + count {
        put(node, &format!("key/{n:04}"), &value).await?;
    }
    Ok(())
}

async fn damage(dir: &Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &FLAGS).await?;
    fill(&node, 0, 30).await?;
    node.stop()?;
    let (code, said) = check(&node.data)?;
    ensure(
        code == Some(0) && said.contains("can be started from"),
        || said,
    )?;
    let whole = Files::read(&node.data)?;
    let segments = segments(&node.data)?;
    ensure(segments.len() > 2, || format!("only {segments:?}"))?;
    for (path, offset) in [(&segments[0], 50_001), (&segments[1], 150_000)] {
        let mut bytes = std::fs::read(path)?;
        bytes[offset] ^= 0x10;
        std::fs::write(path, bytes)?;
        let damaged = Files::read(&node.data)?;
        let name = path.display().to_string();
        let said = refused(&mut node, &[&name, "damaged at offset", "Lost:", "restore"]).await?;
        let place = said.split("damaged at offset ").nth(1);
        let place = place.and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        ensure(
            place.is_some_and(|at| at <= offset && offset < at + 110_000),
            || format!("the byte at {offset} was damaged: {said}"),
        )?;
        let (code, said) = check(&node.data)?;
        ensure(code == Some(1) && said.contains(&name), || said)?;
        ensure(Files::read(&node.data)? == damaged, || {
            "a damaged directory was changed".to_owned()
        })?;
        whole.write(&node.data)?;
    }
    // A segment that is gone, at the front, in the middle, at the end.
    for path in &segments[..segments.len() - 1] {
        std::fs::remove_file(path)?;
        refused(&mut node, &[]).await?;
        ensure(check(&node.data)?.0 == Some(1), || {
            "check found nothing".to_owned()
        })?;
        whole.write(&node.data)?;
    }
    node.run().await?;
    ensure(keys(&node).await?.len() == 30, || {
        "keys are gone".to_owned()
    })
}

#[tokio::test]
async fn old_and_new_segments_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let result = mixed(dir.path()).await;
    conclude(dir, result);
}

async fn mixed(dir: &Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &FLAGS).await?;
    fill(&node, 0, 25).await?;
    node.stop()?;
    let old = Files::read(&node.data)?;
    let old_segments = segments(&node.data)?;
    node.run().await?;
    fill(&node, 25, 40).await?;
    node.stop()?;
    let new = Files::read(&node.data)?;
    let new_segments = segments(&node.data)?;
    let added: Vec<_> = new_segments
        .iter()
        .filter(|s| !old_segments.contains(s))
        .collect();
    ensure(added.len() > 2, || format!("{new_segments:?}"))?;
    // The last segments are missing but for the very last: a copy that was stopped.
    std::fs::remove_file(added[0])?;
    refused(&mut node, &[]).await?;
    ensure(check(&node.data)?.0 == Some(1), || {
        "check found nothing".to_owned()
    })?;
    // The old directory, with a new segment that does not follow.
    old.write(&node.data)?;
    new.write_one(added[added.len() - 1])?;
    refused(&mut node, &[]).await?;
    ensure(check(&node.data)?.0 == Some(1), || {
        "check found nothing".to_owned()
    })?;
    // Another server's segment.
    new.write(&node.data)?;
    let mut other = Node::start("other", dir, &FLAGS).await?;
    fill(&other, 0, 25).await?;
    other.stop()?;
    let foreign = segments(&other.data)?;
    std::fs::copy(&foreign[1], &new_segments[1])?;
    refused(&mut node, &[]).await?;
    ensure(check(&node.data)?.0 == Some(1), || {
        "check found nothing".to_owned()
    })?;
    new.write(&node.data)?;
    node.run().await?;
    ensure(keys(&node).await?.len() == 65, || {
        "keys are gone".to_owned()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_copy_of_a_live_directory_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let result = copies(dir.path()).await;
    conclude(dir, result);
}

async fn copies(dir: &Path) -> Result<()> {
    const COPIES: usize = 16;
    let node = Arc::new(Node::start("orlop", dir, &FLAGS).await?);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writer = {
        let (node, acknowledged) = (node.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let value = "x".repeat(20_000);
            for n in 0u64.. {
                if put(&node, &format!("key/{n:08}"), &value).await.is_err() {
                    return;
                }
                acknowledged.store(n + 1, Ordering::SeqCst);
                // So that log and copies stay small; the first write of the test is the
                // one that a copy most likely loses, and so is the last.
                if n.is_multiple_of(20) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        })
    };
    let (mut started, mut refusals) = (0, 0);
    let began = Instant::now();
    for n in 0..COPIES {
        until("writes", || {
            acknowledged.load(Ordering::SeqCst) > 50 * (n as u64 + 1)
        })
        .await?;
        if n == COPIES / 2 {
            // With a snapshot of the journal under way, and old segments on their way out.
            let node = node.clone();
            tokio::spawn(async move { drop(support::defragment(&node).await) });
        }
        let expected = acknowledged.load(Ordering::SeqCst);
        let mut copy = Node::new(&format!("copy{n}"), dir, &FLAGS)?;
        let status = Command::new("cp")
            .arg("-a")
            .args([&node.data, &copy.data])
            .status()?;
        // A file that is removed under way makes cp fail, and a person notice.
        if !status.success() {
            refusals += 1;
            continue;
        }
        let (code, checked) = check(&copy.data)?;
        match copy.run().await {
            Ok(_) => {
                started += 1;
                let found = keys(&copy).await?;
                let gapless = found
                    .iter()
                    .enumerate()
                    .all(|(n, key)| *key == format!("key/{n:08}"));
                ensure(found.len() as u64 >= expected && gapless, || {
                    format!(
                        "{expected} keys were acknowledged before the copy began, it has {} \
                         (gapless: {gapless})",
                        found.len()
                    )
                })?;
                ensure(code == Some(0), || {
                    format!("it starts, but check says {checked}")
                })?;
                copy.stop()?;
            }
            Err(error) => {
                refusals += 1;
                ensure(code == Some(1), || {
                    format!("{error}, but check says {checked}")
                })?;
                let said = copy.said();
                ensure(said.contains("What to do") || said.contains("copy"), || {
                    format!("refused without advice: {said}")
                })?;
            }
        }
        std::fs::remove_dir_all(&copy.data)?;
    }
    writer.abort();
    println!(
        "of {COPIES} copies {started} started, {refusals} were refused; {} writes in {:?}",
        acknowledged.load(Ordering::SeqCst),
        began.elapsed()
    );
    if started == 0 {
        return fail("no copy could be started from");
    }
    Ok(())
}
