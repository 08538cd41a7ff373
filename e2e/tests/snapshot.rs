//! Snapshots in etcd's format: from orlop into a real etcd and back, at every retained
//! revision; while writes and compactions go on; for clients that do not read; and saved by
//! schedule.
//!
//! `ORLOP_SNAPSHOT_SEEDS` is how many random histories go round, `ORLOP_SNAPSHOT_SEED` one.

#[path = "snapshot/compare.rs"]
mod compare;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use compare::{answered, connect, hash_kv, same};
use e2e::differential::{FLAGS, Pair};
use e2e::env::number;
use e2e::kube::proc::run;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, binaries, ensure, eventually, fail};
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

const SEEDS: u64 = 2;
const STEPS: usize = 500;
const BUMP: i64 = 1_000_000_000;

fn etcdutl() -> Result<Command> {
    Ok(Command::new(binaries("etcd")?.join("etcdutl")))
}

/// What `etcdutl snapshot status` says.
fn status(file: &Path) -> Result<serde_json::Value> {
    let text = run(etcdutl()?
        .args(["snapshot", "status", "-w", "json"])
        .arg(file))?;
    serde_json::from_str(&text).or_else(|error| fail(format!("{error}: {text}")))
}

/// Where a store called `name` below `dir` has its data.
fn data_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}-data"))
}

/// A real etcd with what a snapshot holds.
async fn etcd_from(file: &Path, dir: &Path, name: &str, more: &[&str]) -> Result<Store> {
    run(etcdutl()?
        .args(["snapshot", "restore"])
        .arg(file)
        .arg("--data-dir")
        .arg(data_dir(dir, name))
        .args(more))?;
    Store::start(Kind::Etcd, name, dir, None, &FLAGS).await
}

/// orlop with what a snapshot holds.
async fn orlop_from(file: &Path, dir: &Path, name: &str, more: &[&str]) -> Result<Store> {
    run(Command::new(Kind::Orlop.program()?)
        .args(["snapshot", "restore"])
        .arg(file)
        .arg("--data-dir")
        .arg(data_dir(dir, name))
        .args(more))?;
    Store::start(Kind::Orlop, name, dir, None, &FLAGS).await
}

/// `etcdctl snapshot save`.
fn save(store: &Store, dir: &Path, name: &str) -> Result<PathBuf> {
    let file = dir.join(format!("{name}.db"));
    let name = file.display().to_string();
    store.etcdctl()?.ok(&["snapshot", "save", &name])?;
    Ok(file)
}

/// Revokes all leases, by id.
async fn revoke_all(store: &Store) -> Result<()> {
    let mut lease = LeaseClient::new(connect(store).await?);
    let listed = lease.lease_leases(pb::LeaseLeasesRequest {}).await;
    let listed = answered("LeaseLeases", listed)?.leases;
    let mut ids: Vec<i64> = listed.iter().map(|l| l.id).collect();
    ids.sort_unstable();
    for id in ids {
        let revoke = lease.lease_revoke(pb::LeaseRevokeRequest { id }).await;
        answered("LeaseRevoke", revoke)?;
    }
    Ok(())
}

/// A random history on a real etcd and on orlop at once; then from each into the other and
/// back, with and without a revision jump, writing on after it.
async fn round_trip(seed: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let etcd = Store::start(Kind::Etcd, "etcd", dir, None, &FLAGS).await?;
    let orlop = Store::start(Kind::Orlop, "orlop", dir, None, &FLAGS).await?;
    let mut pair = Pair::connect(&etcd, &orlop).await?;
    let summary = pair.run(seed, STEPS, 0).await?;
    drop(pair);
    let (of_etcd, of_orlop) = (save(&etcd, dir, "etcd")?, save(&orlop, dir, "orlop")?);
    let (there, here) = (status(&of_etcd)?, status(&of_orlop)?);
    for field in ["revision", "totalKey", "version"] {
        ensure(there[field] == here[field], || {
            format!("{there} and {here}")
        })?;
    }
    let from_orlop = etcd_from(&of_orlop, dir, "from-orlop", &[]).await?;
    let revisions = same("orlop in etcd", &etcd, &from_orlop).await?;
    let keep = &["--keep-revisions"];
    let from_etcd = orlop_from(&of_etcd, dir, "from-etcd", keep).await?;
    same("etcd in orlop", &etcd, &from_etcd).await?;
    // And back: etcd to orlop to etcd.
    let again = save(&from_etcd, dir, "again")?;
    let back = etcd_from(&again, dir, "back", &[]).await?;
    same("etcd in orlop in etcd", &etcd, &back).await?;
    drop((etcd, orlop, from_orlop, from_etcd, back));

    // With a jump, as from a backup.
    let bump = BUMP.to_string();
    let bump = ["--bump-revision", bump.as_str(), "--mark-compacted"];
    let etcd = etcd_from(&of_etcd, dir, "etcd-jumped", &bump).await?;
    let orlop = orlop_from(&of_orlop, dir, "orlop-jumped", &[]).await?;
    same("after a jump", &etcd, &orlop).await?;
    // They got their time anew all at once, and are listed by what is left of it.
    revoke_all(&etcd).await?;
    revoke_all(&orlop).await?;
    let mut pair = Pair::connect(&etcd, &orlop).await?;
    pair.run(seed + 1000, STEPS / 2, 0).await?;
    drop(pair);
    same("after a jump and writes", &etcd, &orlop).await?;
    let file = save(&orlop, dir, "orlop-jumped")?;
    let there = etcd_from(&file, dir, "jumped-there", &[]).await?;
    same("a jump from orlop in etcd", &etcd, &there).await?;
    let file = save(&etcd, dir, "etcd-jumped")?;
    let here = orlop_from(&file, dir, "jumped-here", keep).await?;
    same("a jump from etcd in orlop", &etcd, &here).await?;
    println!("seed {seed}: {summary:?}, {revisions} revisions");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_go_from_etcd_to_orlop_to_etcd() -> Result<()> {
    if let Some(seed) = number("ORLOP_SNAPSHOT_SEED")? {
        return round_trip(seed).await;
    }
    let seeds = number("ORLOP_SNAPSHOT_SEEDS")?.unwrap_or(SEEDS);
    for seed in 1..=seeds {
        if let Err(error) = round_trip(seed).await {
            return fail(format!("seed {seed}: {error}"));
        }
    }
    Ok(())
}

async fn put(channel: &Channel, key: &str, value: Bytes) -> Result<()> {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value,
        ..pb::PutRequest::default()
    };
    answered("Put", KvClient::new(channel.clone()).put(put).await).map(drop)
}

type Pieces = Streaming<pb::SnapshotResponse>;

async fn snapshot(channel: &Channel) -> std::result::Result<Pieces, tonic::Status> {
    let request = pb::SnapshotRequest {};
    let mut maintenance = MaintenanceClient::new(channel.clone());
    Ok(maintenance.snapshot(request).await?.into_inner())
}

async fn piece(pieces: &mut Pieces) -> Result<Option<pb::SnapshotResponse>> {
    pieces
        .message()
        .await
        .or_else(|status| fail(format!("Snapshot: {status}")))
}

/// 24 MiB: more than all buffers on the way to a client.
async fn fill(channel: &Channel) -> Result<()> {
    for n in 0..24 {
        put(
            channel,
            &format!("large/{n}"),
            vec![n as u8; 1 << 20].into(),
        )
        .await?;
    }
    for n in 0..2000 {
        put(channel, &format!("small/{n}"), format!("{n}").into()).await?;
    }
    Ok(())
}

/// Only what stood at its one revision is in a snapshot, however slowly it is read, and
/// whatever is written and compacted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_one_revision() -> Result<()> {
    of_one_revision(&[FLAGS[1]], false).await
}

/// As above, and it is the history's budget that compacts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_one_revision_though_the_budget_compacts() -> Result<()> {
    // What is deleted below is history of 24 MiB.
    of_one_revision(&[FLAGS[1], "--history-budget-bytes=4194304"], true).await
}

async fn of_one_revision(flags: &[&str], by_budget: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let orlop = Store::start(Kind::Orlop, "orlop", dir, None, flags).await?;
    let channel = connect(&orlop).await?;
    fill(&channel).await?;
    let before = hash_kv(&channel, 0).await?;
    let mut pieces = match snapshot(&channel).await {
        Ok(pieces) => pieces,
        Err(status) => return fail(format!("Snapshot: {status}")),
    };
    let Some(first) = piece(&mut pieces).await? else {
        return fail("an empty snapshot");
    };
    let mut kv = KvClient::new(channel.clone());
    let everything = pb::DeleteRangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..pb::DeleteRangeRequest::default()
    };
    answered("DeleteRange", kv.delete_range(everything).await)?;
    put(&channel, "after", "1".into()).await?;
    if by_budget {
        const FORCED: &str = "orlop_history_compactions_forced_total";
        let orlop = &orlop;
        eventually("compaction", Duration::from_secs(20), || async move {
            let forced = orlop.metrics().await?.sum(FORCED, &[]);
            Ok((forced > 0.0).then_some(()))
        })
        .await?;
    } else {
        let compact = pb::CompactionRequest {
            revision: before.hash_revision + 2,
            physical: true,
        };
        answered("Compact", kv.compact(compact).await)?;
    }

    let total = first.remaining_bytes + first.blob.len() as u64;
    ensure(
        first.version == "3.7.0" && total.is_multiple_of(4096),
        || format!("{} bytes, version {}", total, first.version),
    )?;
    let mut bytes = first.blob.to_vec();
    while let Some(next) = piece(&mut pieces).await? {
        bytes.extend_from_slice(&next.blob);
        let left = total.saturating_sub(bytes.len() as u64);
        ensure(next.remaining_bytes == left, || {
            format!("{} remain, {left} expected", next.remaining_bytes)
        })?;
    }
    ensure(bytes.len() as u64 == total + 32, || {
        format!("{} bytes of {total} and 32", bytes.len())
    })?;
    let file = dir.join("held.db");
    std::fs::write(&file, bytes)?;
    let etcd = etcd_from(&file, dir, "etcd", &[]).await?;
    let after = hash_kv(&connect(&etcd).await?, 0).await?;
    ensure(
        (after.hash, after.hash_revision) == (before.hash, before.hash_revision),
        || format!("{before:?} and {after:?}"),
    )
}

/// Clients that do not read are few, and nobody waits for them; when they leave, others
/// get their turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_stop_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [FLAGS[1]];
    let orlop = Store::start(Kind::Orlop, "orlop", dir.path(), None, &flags).await?;
    let channel = connect(&orlop).await?;
    fill(&channel).await?;
    let mut held = Vec::new();
    let mut refused = None;
    for _ in 0..16 {
        // Each on a connection of its own: windows are per connection too.
        let mut pieces = match snapshot(&connect(&orlop).await?).await {
            Ok(pieces) => pieces,
            Err(status) => {
                refused = Some(status);
                break;
            }
        };
        piece(&mut pieces).await?;
        held.push(pieces);
    }
    let Some(status) = refused else {
        return fail("16 clients are sent a snapshot at once");
    };
    ensure(
        status.code() == Code::ResourceExhausted && status.message().contains("snapshots"),
        || format!("{status}"),
    )?;
    let began = std::time::Instant::now();
    put(&channel, "meanwhile", "1".into()).await?;
    ensure(began.elapsed() < Duration::from_secs(1), || {
        format!("a put took {:?}", began.elapsed())
    })?;
    drop(held);
    let channel = &channel;
    eventually("another turn", Duration::from_secs(10), || async move {
        let Ok(mut pieces) = snapshot(channel).await else {
            return Ok(None);
        };
        while piece(&mut pieces).await?.is_some() {}
        Ok(Some(()))
    })
    .await
}

/// Defragment is a snapshot of the journal: it says so when there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_defragment_that_does_nothing_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let orlop = Store::start(Kind::Orlop, "orlop", dir.path(), None, &[FLAGS[1]]).await?;
    let mut maintenance = MaintenanceClient::new(connect(&orlop).await?);
    let (snap, away) = (orlop.data_dir().join("snap"), dir.path().join("away"));
    std::fs::rename(&snap, &away)?;
    std::fs::write(&snap, "in the way")?;
    let answer = maintenance.defragment(pb::DefragmentRequest {}).await;
    let refused = answer.map_err(|s| (s.code(), s.message().contains("cannot write the snapshot")));
    ensure(matches!(refused, Err((Code::Internal, true))), || {
        format!("{refused:?}")
    })?;
    std::fs::remove_file(&snap)?;
    std::fs::rename(&away, &snap)?;
    let answer = maintenance.defragment(pb::DefragmentRequest {}).await;
    answered("Defragment", answer)?;
    ensure(names(&snap)?.len() == 1, || "no snapshot".into())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Saved by themselves, so that etcd's tools take them; the oldest go; a directory that
/// goes missing stops nothing but them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_snapshots_are_saved_and_pruned() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let target = dir.join("backup");
    std::fs::create_dir(&target)?;
    std::fs::write(target.join("mine.db"), "not orlop's")?;
    let flag = format!("--snapshot-dir={}", target.display());
    let flags = [
        &flag,
        "--snapshot-interval=1s",
        "--snapshot-keep=2",
        FLAGS[1],
    ];
    let mut orlop = Store::start(Kind::Orlop, "orlop", dir, None, &flags).await?;
    let channel = connect(&orlop).await?;
    for n in 0..50 {
        put(&channel, &format!("k{n}"), "v".into()).await?;
    }
    const SAVED: &str = "orlop_scheduled_snapshot_duration_seconds_count";
    const FAILED: &str = "orlop_scheduled_snapshot_failures_total";
    let at_least = |name: &'static str, count: f64| {
        let orlop = &orlop;
        eventually(name, Duration::from_secs(20), move || async move {
            let sum = orlop.metrics().await?.sum(name, &[]);
            Ok((sum >= count).then_some(sum))
        })
    };
    let saved = at_least(SAVED, 4.0).await?;
    // The third that begins from now on has all puts, and its prune is over with it.
    at_least(SAVED, saved + 2.0).await?;
    let metrics = orlop.metrics().await?;
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_s = now_s.map_or(0.0, |d| d.as_secs_f64());
    let last_s = metrics.sum(
        "orlop_scheduled_snapshot_last_success_timestamp_seconds",
        &[],
    );
    ensure((now_s - 10.0..=now_s + 1.0).contains(&last_s), || {
        format!("saved at {last_s}, now is {now_s}")
    })?;
    ensure(metrics.sum(FAILED, &[]) == 0.0, || "a failure".into())?;

    // The directory goes away, and comes back.
    let away = dir.join("away");
    std::fs::rename(&target, &away)?;
    at_least(FAILED, 1.0).await?;
    put(&channel, "meanwhile", "1".into()).await?;
    let found = names(&away)?;
    let ours: Vec<&String> = found.iter().filter(|n| n.starts_with("orlop-")).collect();
    ensure(ours.len() == 2 && found.len() == 3, || format!("{found:?}"))?;
    let newest = away.join(ours[1]);
    let status = status(&newest)?;
    ensure(status["totalKey"] == 50 && status["revision"] == 51, || {
        format!("{status}")
    })?;
    let etcd = etcd_from(&newest, dir, "etcd", &[]).await?;
    let restored = hash_kv(&connect(&etcd).await?, 0).await?;
    let own = hash_kv(&channel, 51).await?;
    ensure(restored.hash == own.hash, || {
        format!("{restored:?} {own:?}")
    })?;
    std::fs::rename(&away, &target)?;
    let saved = orlop.metrics().await?.sum(SAVED, &[]);
    at_least(SAVED, saved + 1.0).await?;

    // A start within the interval does not save at once, and knows the last one.
    orlop.stop()?;
    std::fs::write(target.join(format!("{}.partial", ours[0])), "half")?;
    let before = names(&target)?;
    let last = before
        .iter()
        .rfind(|n| n.ends_with(".db") && n.starts_with("orlop-"));
    let later = [&flag, "--snapshot-interval=1h", FLAGS[1]];
    let again = Store::start(Kind::Orlop, "orlop", dir, None, &later).await?;
    let known = eventually("its time", Duration::from_secs(5), || async {
        let metrics = again.metrics().await?;
        let s = metrics.sum(
            "orlop_scheduled_snapshot_last_success_timestamp_seconds",
            &[],
        );
        Ok((s > 0.0).then_some(s))
    })
    .await?;
    ensure(known >= last_s, || format!("{known}, before {last_s}"))?;
    let after = names(&target)?;
    ensure(
        last.is_some_and(|n| after.contains(n)) && !after.iter().any(|n| n.ends_with(".partial")),
        || format!("{after:?}"),
    )?;
    ensure(after.len() == before.len() - 1, || {
        format!("{before:?} {after:?}")
    })
}
