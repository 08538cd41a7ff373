//! Seika on a real control plane: exact numbers on each node, whatever happens meanwhile.
//!
//! `ORLOP_SEIKA_NODES` and `ORLOP_SEIKA_PODS` (a node) make the comparison with Deployments larger;
//! `ORLOP_SEIKA_ROUNDS` repeats it.

#[path = "seika/behaviour.rs"]
mod behaviour;
#[path = "seika/documented.rs"]
mod documented;
#[path = "seika/faults.rs"]
mod faults;
#[path = "seika/observer.rs"]
mod observer;
#[path = "seika/rig.rs"]
mod rig;
#[path = "seika/scale.rs"]
mod scale;
#[path = "seika/with_prometheus.rs"]
mod with_prometheus;

use e2e::kube::proc::conclude;
use e2e::kube::steps::Steps;

use observer::Observer;
use rig::Rig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seika_keeps_exact_numbers_whatever_happens() {
    let dir = tempfile::tempdir().unwrap();
    let result = async {
        let mut steps = Steps::start();
        let mut rig = Rig::start(dir.path(), 4).await?;
        steps.done("the control plane is ready, Seika is installed");
        let observer = Observer::start(rig.api.clone());
        rig.start_controller()?;
        behaviour::all(&mut rig, &observer, &mut steps).await?;
        faults::all(&mut rig, &observer, &mut steps).await?;
        observer.check()?;
        rig.check()
    };
    let result = result.await;
    conclude(dir, result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; its figures are in docs/performance.md"]
async fn scales_as_fast_as_deployments() {
    let dir = tempfile::tempdir().unwrap();
    let result = scale::compare(dir.path()).await;
    conclude(dir, result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; needs Prometheus; its result is in docs/internals/testing.md"]
async fn pods_follow_the_traffic_that_a_real_prometheus_has_seen() {
    let dir = tempfile::tempdir().unwrap();
    let result = with_prometheus::follows(dir.path()).await;
    conclude(dir, result);
}
