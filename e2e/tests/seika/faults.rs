//! What Seika does when something fails in the middle: apiservers, controllers, watches, calls.

use std::time::{Duration, Instant};

use e2e::kube::steps::Steps;
use e2e::kube::{Result, ensure, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::observer::Observer;
use super::rig::{CONVERGES, NAMESPACE, Rig, seika, seikas};

/// Many enough that a fault comes in the middle.
const MANY: u32 = 80;

pub(crate) async fn all(rig: &mut Rig, observer: &Observer, steps: &mut Steps) -> Result<()> {
    rig.start_controller()?;
    killed_in_the_middle(rig, observer).await?;
    steps.done("a leader was killed in the middle of scaling up");
    stopped_and_resumed(rig, observer).await?;
    steps.done("a leader was suspended, another took over, and it came back");
    conflicts(rig, observer).await?;
    steps.done("pods and spec were changed by others all the time");
    api_restarts(rig, observer).await?;
    steps.done("the apiserver was restarted in the middle, with a gap in the watches");
    Ok(())
}

fn many(n: u32) -> [(&'static str, u32); 4] {
    ["node-0", "node-1", "node-2", "node-3"].map(|node| (node, n))
}

/// Creates `name` with `n` on each node, and returns when a few pods are there.
async fn in_the_middle(rig: &Rig, observer: &Observer, name: &str, n: u32) -> Result<()> {
    observer.allow(name, &many(n + n / 4));
    rig.create(&seika(name, &many(n))).await?;
    eventually("some pods are there", CONVERGES, || async {
        let pods = rig.pods(name).await?.len();
        Ok((pods >= 20).then_some(pods))
    })
    .await
    .map(|_| ())
}

async fn killed_in_the_middle(rig: &mut Rig, observer: &Observer) -> Result<()> {
    rig.leader().await?;
    in_the_middle(rig, observer, "killed", MANY).await?;
    let leader = rig.leader().await?;
    let mut dead = rig.controllers.remove(leader);
    dead.process.kill();
    let left = rig.pods("killed").await?.len();
    rig.converges("killed", &many(MANY)).await?;
    println!("killed with {left} of {} pods there", 4 * MANY);
    rig.start_controller()?;
    observer.check()?;
    rig.remove("killed").await
}

fn signal(rig: &Rig, controller: usize, signal: Signal) -> Result<()> {
    let id = i32::try_from(rig.controllers[controller].process.id()).ok();
    if let Some(pid) = id.and_then(Pid::from_raw) {
        kill_process(pid, signal).map_err(std::io::Error::from)?;
    }
    Ok(())
}

async fn stopped_and_resumed(rig: &mut Rig, observer: &Observer) -> Result<()> {
    let leader = rig.leader().await?;
    in_the_middle(rig, observer, "suspended", MANY).await?;
    signal(rig, leader, Signal::STOP)?;
    let other = 1 - leader;
    eventually("the other leads", CONVERGES, || async {
        Ok((rig.leader().await? == other).then_some(()))
    })
    .await?;
    // It comes back in the middle of the other's work, and has to see that it leads no more.
    rig.want("suspended", &many(MANY / 2)).await?;
    signal(rig, leader, Signal::CONT)?;
    rig.converges("suspended", &many(MANY / 2)).await?;
    ensure(rig.leader().await? == other, || "it took over again".into())?;
    eventually("it stands by", CONVERGES, || async {
        let leads = rig.series(leader, "orlop_seika_leads").await?;
        Ok((leads == 0.0).then_some(()))
    })
    .await?;
    observer.check()?;
    rig.remove("suspended").await
}

async fn conflicts(rig: &mut Rig, observer: &Observer) -> Result<()> {
    observer.allow("conflicts", &many(25));
    rig.create(&seika("conflicts", &many(10))).await?;
    let path = format!("{}/conflicts", seikas());
    for round in 0..20u32 {
        // Somebody else writes the Seika, its status, and deletes and relabels pods.
        let note = json!({ "metadata": { "annotations": { "round": round.to_string() } } });
        rig.api.patch(&path, &note).await?;
        let status = json!({ "status": { "readyTotal": 0, "wantedTotal": 77 } });
        rig.api.patch(&format!("{path}/status"), &status).await?;
        rig.want("conflicts", &many(5 + (round * 7) % 15)).await?;
        for pod in rig.pods("conflicts").await?.iter().take(5) {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let pod = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
            // It may be gone meanwhile.
            let _ = rig.api.delete(&pod).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.want("conflicts", &many(7)).await?;
    rig.converges("conflicts", &many(7)).await?;
    observer.check()?;
    rig.remove("conflicts").await
}

async fn api_restarts(rig: &mut Rig, observer: &Observer) -> Result<()> {
    in_the_middle(rig, observer, "restarts", MANY).await?;
    rig.plane.restart_apiserver(0, &[]).await?;
    // Changed before the controller has its watches again, if it is quick: a gap.
    for pod in rig.pods("restarts").await?.iter().take(10) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
        rig.api.delete(&path).await?;
    }
    rig.want("restarts", &many(MANY / 2)).await?;
    // The scheduler and the controller manager end if they lose their leases; a kubelet starts
    // them again.
    let wanted = many(MANY / 2);
    let began = Instant::now();
    while began.elapsed() < CONVERGES / 2 && rig.is_exact("restarts", &wanted).await.is_err() {
        rig.plane.revive()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rig.converges("restarts", &wanted).await?;
    observer.check()?;
    rig.remove("restarts").await
}
