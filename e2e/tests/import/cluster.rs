//! An etcd of three members as the source: one ends, the leader moves, and at last there is
//! no majority.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::kube::binaries;
use e2e::kube::proc::free_port;
use e2e::kube::store::{Kind, Setup, Store};
use etcd_api::etcdserverpb as pb;
use pb::maintenance_client::MaintenanceClient;

use crate::support::{
    Result, Writer, conclude, connect, data_dir, ensure, equal, fail, orlop, serve, text, view,
};
use crate::{Import, signal};

const MEMBERS: usize = 3;
/// Changes that may fail while the leader moves.
const MAX_FAILED: u32 = 20;
/// Longest end of an import that nobody answers: its calls are made again for 30 s.
const GIVES_UP: Duration = Duration::from_secs(90);

/// Three etcds that are one cluster, ready.
async fn members(dir: &Path) -> Result<Vec<Store>> {
    let mut peers = Vec::new();
    for n in 0..MEMBERS {
        peers.push((
            format!("m{n}"),
            format!("http://127.0.0.1:{}", free_port()?),
        ));
    }
    let all: Vec<_> = peers
        .iter()
        .map(|(name, url)| format!("{name}={url}"))
        .collect();
    let all = all.join(",");
    let start = async |n: usize| {
        let (name, peer) = &peers[n];
        let mut setup = Setup::new(Kind::Etcd, binaries("etcd")?.join("etcd"));
        // Given later than those for one member, they are those that count.
        setup.flags = vec![
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={all}"),
        ];
        Store::start_as(setup, name, dir, None).await
    };
    let (a, b, c) = tokio::try_join!(start(0), start(1), start(2))?;
    Ok(vec![a, b, c])
}

/// What a member says of itself.
async fn status(store: &Store) -> Result<pb::StatusResponse> {
    let mut client = MaintenanceClient::new(connect(store).await?);
    Ok(client
        .status(pb::StatusRequest::default())
        .await?
        .into_inner())
}

/// Its own id.
async fn id(store: &Store) -> Result<u64> {
    let header = status(store).await?.header;
    Ok(header.map_or(0, |header| header.member_id))
}

/// Takes the leader out of the members.
async fn take_leader(members: &mut Vec<Store>) -> Result<Store> {
    for n in 0..members.len() {
        if status(&members[n]).await?.leader == id(&members[n]).await? {
            return Ok(members.swap_remove(n));
        }
    }
    fail("no leader")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_taken_over_while_members_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let result = taken_over(dir.path()).await;
    conclude(dir, result);
}

async fn taken_over(dir: &Path) -> Result<()> {
    let mut followers = members(dir).await?;
    let mut leader = take_leader(&mut followers).await?;
    let [asked, next] = &mut followers[..] else {
        return fail("there are not two followers");
    };
    let mut writer = Writer::new(&leader, 11).await?;
    writer.steps(100).await?;
    writer.keep = 1000;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut failed = 0;
        while !stopped.load(Ordering::Relaxed) {
            if let Err(error) = writer.step().await {
                failed += 1;
                ensure(failed <= MAX_FAILED, || format!("writes fail: {error}"))?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Result::Ok(())
    });

    // The member that is asked ends; then the leader is another one.
    let ours = data_dir("ours", dir);
    let from = [asked.url(), next.url(), leader.url()].join(",");
    let mut import = Import::start(&from, &ours, &dir.join("import.log"))?;
    import.until_says("following").await?;
    asked.kill();
    let going_on = format!("going on with {}", next.url());
    import.until_says(&going_on).await?;
    let target_id = id(next).await?;
    MaintenanceClient::new(connect(&leader).await?)
        .move_leader(pb::MoveLeaderRequest { target_id })
        .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    writing.await??;
    import.until_says("quiet at revision").await?;
    let said = import.finish()?;
    ensure(
        said.contains("verified: HashKV") && !said.contains("WARNING"),
        || said.clone(),
    )?;
    let mut store = serve("ours", dir).await?;
    equal(&view(next).await?, &view(&store).await?)?;
    store.stop()?;

    // One member of three may not know what the others have agreed on: neither for an import
    // that is to finish then, nor for one that only begins.
    let from = [next.url(), leader.url()].join(",");
    let (late, later) = (data_dir("late", dir), data_dir("later", dir));
    let mut follows = Import::start(&from, &late, &dir.join("late.log"))?;
    follows.until_says("following").await?;
    leader.kill();
    signal(&follows.child, rustix::process::Signal::INT)?;
    let mut begins = Import::start(&from, &later, &dir.join("later.log"))?;
    for (import, target) in [(&mut follows, &late), (&mut begins, &later)] {
        gives_up(import).await?;
        let left = text(target).to_owned() + ".import";
        ensure(!target.exists() && !Path::new(&left).exists(), || {
            format!("it left a directory: {}", import.said())
        })?;
    }
    Ok(())
}

/// Waits for the end of an import that cannot know whether it has everything.
async fn gives_up(import: &mut Import) -> Result<()> {
    let began = Instant::now();
    let status = loop {
        if let Some(status) = import.child.try_wait()? {
            break status;
        }
        ensure(began.elapsed() < GIVES_UP, || import.said())?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let said = import.said();
    let right = said.contains("majority of the members") && !said.contains("verified:");
    ensure(!status.success() && right, || said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_two_clusters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let result = two_clusters(dir.path()).await;
    conclude(dir, result);
}

async fn two_clusters(dir: &Path) -> Result<()> {
    let one = Store::start(Kind::Etcd, "one", dir, None, &[]).await?;
    let other = Store::start(Kind::Etcd, "other", dir, None, &[]).await?;
    let from = [one.url(), other.url()].join(",");
    let ours = data_dir("ours", dir);
    let import = ["import", "--from", &from, "--data-dir", text(&ours)];
    orlop(&import)?.refused(&[&other.url(), "of one cluster"])?;
    ensure(!ours.exists(), || "it left a directory".to_owned())
}
