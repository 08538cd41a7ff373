//! Power losses of the store under a control plane that goes on running: it converges by
//! itself.
//!
//! Under `ephemeral`, in the middle of the work, the store is killed: once only that, then its
//! log also loses what was not on the disk. What the apiservers, the controllers, the scheduler and the nodes remember
//! is then more than there is. They must be told to list again, and come to the state that was
//! asked for: the right pods, caches without phantoms, one leader, and everything durable there.
//!
//! A scheduler ends itself when it sees a pod on another node than before, as one is whose
//! binding was lost (`UpdatePod` in pkg/scheduler/backend/cache/cache.go); a kubelet starts it
//! again, and so does this test. Nothing else may end.
//!
//! `ORLOP_POWER_ROUNDS=N` has N power losses instead of one, of three kinds in turn.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::env::number;
use e2e::kube::api::{Api, full_name, items, revision};
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::node::Nodes;
use e2e::kube::proc::conclude;
use e2e::kube::reflector::Reflector;
use e2e::kube::steps::Steps;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, ensure, eventually, fail, scenarios};
use e2e::power_loss::{End, Lost, take_the_end, take_the_marker};
use e2e::recorder::observer::Observer;
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::{COLLECTIONS, TURN, cache_work, caches_match_store, no_relists};

const NAMESPACE: &str = "power";
/// So many frames are to be lost in all.
const LOST_FRAMES: usize = 5;
/// So much not on the disk is worth a power loss; it is there for 100 ms at most.
const BUSY_BYTES: f64 = 6.0 * 4096.0;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Everything that watches is told soon.
const TOLD: Duration = Duration::from_secs(30);
/// Seconds are the rule. But a controller that was answered that its pod is created, and never
/// sees it, waits for it as long as Kubernetes lets it: 5 minutes (`ExpectationsTimeout` in
/// pkg/controller/controller_utils.go).
const CONVERGENCE: Duration = Duration::from_secs(330);
/// What client-go logs.
const LEADS: &str = "uccessfully acquired lease";
/// Durable writes come so seldom, because all before one is on the disk with it.
const WRITER_PAUSE: Duration = Duration::from_millis(700);
const SCHEDULERS: [&str; 2] = ["kube-scheduler", "kube-scheduler-2"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_converges_after_power_losses() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let result = start(dir.path()).await;
    conclude(dir, result);
}

async fn start(dir: &Path) -> Result<()> {
    let flags = ["--profile=ephemeral", "--watch-progress-notify-interval=5s"];
    let mut store = Store::start(Kind::Orlop, "store", dir, None, &flags).await?;
    let mut plane = ControlPlane::start(dir, "kube-1.37", &store, &[]).await?;
    let result = power_losses(dir, &mut store, &mut plane).await;
    plane.explain(result)
}

async fn power_losses(dir: &Path, store: &mut Store, plane: &mut ControlPlane) -> Result<()> {
    let mut steps = Steps::start();
    plane.start_component("kube-controller-manager", "kube-controller-manager")?;
    for name in SCHEDULERS {
        plane.start_component("kube-scheduler", name)?;
    }
    let api = plane.api();
    let nodes = Nodes::start(Arc::clone(&api), 3).await?;
    plane.add_apiserver(&[]).await?;
    let apis: Vec<Arc<Api>> = plane
        .apiservers
        .iter()
        .map(|server| Arc::clone(&server.api))
        .collect();
    scenarios::wait_for_leader(&api, "kube-scheduler").await?;
    scenarios::wait_for_leader(&api, "kube-controller-manager").await?;
    scenarios::create_namespace_for_pods(&api, NAMESPACE).await?;
    for name in ["one", "two", "three"] {
        scenarios::create_deployment(&api, NAMESPACE, name, 3).await?;
    }
    create_job(&api, "before").await?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "durable" }
    });
    api.create(&format!("/api/v1/namespaces/{NAMESPACE}/secrets"), &secret)
        .await?;
    converged(plane, &[("one", 3), ("two", 3), ("three", 3)]).await?;
    let mirrors: Vec<Mirror> = apis.iter().map(Mirror::start).collect();
    let writer = Writer::start(Arc::clone(&api));
    steps.done("the control plane is up, with two apiservers and two schedulers");

    killed(store, plane, &apis, &mirrors).await?;
    steps.done("a kill -9, and nobody noticed");

    let mut sum = Taken::default();
    let rounds = number("ORLOP_POWER_ROUNDS")?.unwrap_or(1) as usize;
    let mut round = 0;
    // A power loss that took nothing is no trial.
    while round < rounds || sum.lost.frames < LOST_FRAMES || sum.differences == 0 {
        ensure(round < rounds + 3, || {
            format!("too little was lost: {sum:?}")
        })?;
        let end = [End::Gone, End::Torn, End::Hole][round % 3];
        let caches = cache_work(&apis).await?;
        let watch = watch_everything(store).await?;
        let goal = ask(&api, round).await?;
        busy(store).await?;
        let taken = lose_power(store, &mirrors, round, end).await?;
        println!("round {round}: {taken:?}");
        sum.lost.frames += taken.lost.frames;
        sum.differences += taken.differences;
        told(&watch, &caches, &apis).await?;
        steps.done("a power loss, and everybody was told");

        converged(plane, &goal).await?;
        steps.done("the Deployments are as asked for");
        counted_once(&api, &format!("count-{round}")).await?;
        no_phantoms(store, &apis, &mirrors, &nodes).await?;
        one_leader(dir, plane).await?;
        plane.check_running()?;
        steps.done("the caches are the store's, there is one leader");
        round += 1;
    }

    another_scheduler(dir, plane, &api).await?;
    scenarios::deployments(Arc::clone(&api), "after").await?;
    steps.done("another scheduler took over, and all goes on");
    let restamped = writer.finish(&api, &mirrors).await?;
    println!("{restamped} durable writes had their revision taken, and have another");
    plane.check_running()?;
    // Else its marker would stay in memory.
    store.stop()
}

/// A killed process is no power loss: nothing is missing, of any class, and nobody lists again.
async fn killed(
    store: &mut Store,
    plane: &mut ControlPlane,
    apis: &[Arc<Api>],
    mirrors: &[Mirror],
) -> Result<()> {
    let caches = cache_work(apis).await?;
    let running = plane.pids();
    scenarios::scale(&apis[0], NAMESPACE, "one", 8).await?;
    busy(store).await?;
    store.kill();
    let known = mirrors[0].pods.revisions();
    store.start_again().await?;
    let stored = pods_of(store)?;
    let lost = known.iter().find(|(name, at)| {
        // It may have changed since, but not to what it was before.
        stored.get(*name).is_some_and(|now| now < *at)
    });
    ensure(lost.is_none(), || format!("{lost:?} went back"))?;
    converged(plane, &[("one", 8), ("two", 3), ("three", 3)]).await?;
    ensure(plane.pids() == running, || "a component ended".into())?;
    no_relists(&caches, &cache_work(apis).await?)?;
    for mirror in mirrors {
        mirror.pods.check()?;
        ensure(mirror.pods.lists() == 1, || "a client listed again".into())?;
    }
    Ok(())
}

/// What a power loss took.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    lost: Lost,
    /// Pods that clients knew otherwise than the store has them now: gone, older, or back.
    differences: usize,
}

/// Asks for work that a power loss can interrupt; returns Deployments and their pods in the
/// end.
async fn ask(api: &Api, round: usize) -> Result<Vec<(&'static str, u64)>> {
    create_job(api, &format!("count-{round}")).await?;
    let goal = match round % 3 {
        // Pods come ...
        0 => {
            if round == 0 {
                scenarios::create_deployment(api, NAMESPACE, "four", 12).await?;
            }
            vec![("one", 20), ("two", 20), ("three", 3), ("four", 12)]
        }
        1 => vec![("one", 26), ("two", 26), ("three", 12), ("four", 12)],
        // ... are replaced, and go.
        _ => {
            let labels = json!({ "app": "three", "version": round.to_string() });
            let patch = json!({ "spec": { "template": { "metadata": { "labels": labels } } } });
            let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/three");
            api.patch(&path, &patch).await?;
            vec![("one", 2), ("two", 0), ("three", 12), ("four", 4)]
        }
    };
    for (name, replicas) in &goal {
        scenarios::scale(api, NAMESPACE, name, *replicas).await?;
    }
    Ok(goal)
}

const COMPLETIONS: u64 = 8;

async fn create_job(api: &Api, name: &str) -> Result<()> {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
        "spec": {
            "completions": COMPLETIONS, "parallelism": 4,
            "template": { "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "containers": [{ "name": "c", "image": "example.invalid/app" }]
            } }
        }
    });
    let path = format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs");
    api.create(&path, &job).await.map(drop)
}

/// The Job is complete, and no end of a pod was counted twice or missed.
async fn counted_once(api: &Api, name: &str) -> Result<()> {
    let path = format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}");
    eventually("the Job is complete", CONVERGENCE, || async {
        let job = api.get(&path).await?;
        let status = &job["status"];
        ensure(status["failed"].as_u64().unwrap_or(0) == 0, || {
            format!("a pod of the Job failed: {status}")
        })?;
        let done = status["completionTime"].is_string();
        ensure(!done || status["succeeded"] == COMPLETIONS, || {
            format!("{COMPLETIONS} were asked for: {status}")
        })?;
        Ok(done.then_some(()))
    })
    .await
}

/// Waits for a moment in which much is not on the disk.
async fn busy(store: &Store) -> Result<()> {
    let began = Instant::now();
    while store.metrics().await?.sum("orlop_unsynced_bytes", &[]) < BUSY_BYTES {
        ensure(began.elapsed() < BUSY_TIMEOUT, || {
            "the store has nothing to do".to_owned()
        })?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn lose_power(
    store: &mut Store,
    mirrors: &[Mirror],
    round: usize,
    end: End,
) -> Result<Taken> {
    store.kill();
    let shown = mirrors.iter().map(Mirror::revision).max().unwrap_or(0);
    let known = mirrors[0].pods.revisions();
    let lost = take_the_end(&store.data_dir(), end)?;
    // A disk that was taken away and came back leaves the memory as it was. Without a loss
    // such a start rightly notices nothing.
    if round % 3 != 1 || lost.frames == 0 {
        take_the_marker(&store.data_dir())?;
    }
    let ready = store.start_again().await?;
    let stored = pods_of(store)?;
    let now = revision_of(store).await?;
    println!("ready after {ready:?}; revision {shown} was shown, {now} is next");
    ensure(now > shown, || {
        format!("the revision went from {shown} to {now}")
    })?;
    let gone_or_older = known
        .iter()
        .filter(|(name, at)| stored.get(*name) != Some(*at));
    let back = stored.keys().filter(|name| !known.contains_key(*name));
    Ok(Taken {
        lost,
        differences: gone_or_older.count() + back.count(),
    })
}

fn pods_of(store: &Store) -> Result<BTreeMap<String, i64>> {
    const PREFIX: &str = "/registry/pods/";
    let keys = store.etcdctl()?.keys(PREFIX, 0)?;
    let name = |key: String| key[PREFIX.len()..].to_owned();
    Ok(keys.into_iter().map(|(key, at)| (name(key), at)).collect())
}

fn channel(store: &Store) -> Result<Channel> {
    match Endpoint::from_shared(store.url()) {
        Ok(endpoint) => Ok(endpoint.connect_lazy()),
        Err(error) => fail(format!("{}: {error}", store.url())),
    }
}

async fn revision_of(store: &Store) -> Result<i64> {
    let range = pb::RangeRequest {
        key: "none".into(),
        ..Default::default()
    };
    match KvClient::new(channel(store)?).range(range).await {
        Ok(answer) => Ok(answer.into_inner().header.unwrap_or_default().revision),
        Err(status) => fail(format!("range: {status}")),
    }
}

/// A watch of all keys from now on.
async fn watch_everything(store: &Store) -> Result<Observer> {
    let from = revision_of(store).await? + 1;
    Ok(Observer::start(channel(store)?, "\0", b"\0", from))
}

/// A watch that goes on where it was is refused, and each cache of each apiserver was filled
/// anew.
async fn told(watch: &Observer, before: &BTreeMap<String, f64>, apis: &[Arc<Api>]) -> Result<()> {
    let what = "the watch of everything is told that its revision is compacted";
    eventually(what, TOLD, || async {
        Ok(watch.wrong().filter(|text| text.contains("compacted")))
    })
    .await?;
    eventually("each watch cache lists again", TOLD, || async {
        let now = cache_work(apis).await?;
        let stale: Vec<&String> = before
            .iter()
            .filter(|(name, count)| now.get(*name).is_none_or(|now| now <= *count))
            .map(|(name, _)| name)
            .collect();
        match stale[..] {
            [] => Ok(Some(())),
            [first, ..] => fail(format!("{} did not, as {first}", stale.len())),
        }
    })
    .await
}

/// Waits until each Deployment has its pods and no others. A scheduler that ends is started
/// again.
async fn converged(plane: &mut ControlPlane, goal: &[(&str, u64)]) -> Result<()> {
    let api = plane.api();
    let began = Instant::now();
    let all = async {
        for (name, replicas) in goal {
            while let Err(error) =
                scenarios::wait_for_deployment(&api, NAMESPACE, name, *replicas).await
            {
                ensure(began.elapsed() < CONVERGENCE, || {
                    format!("after {:?}: {error}", began.elapsed())
                })?;
                println!("after {:?}: {error}", began.elapsed());
            }
        }
        Ok(())
    };
    let before = plane.pids();
    tokio::pin!(all);
    let result = loop {
        tokio::select! {
            result = &mut all => break result,
            () = tokio::time::sleep(Duration::from_millis(200)) => plane.revive()?,
        }
    };
    let after = plane.pids();
    let restarted = before.iter().filter(|process| !after.contains(process));
    let restarted: Vec<&str> = restarted.map(|(name, _)| name.as_str()).collect();
    if !restarted.is_empty() {
        println!("ended by themselves, and started again: {restarted:?}");
    }
    let expected = restarted.iter().all(|name| SCHEDULERS.contains(name));
    ensure(expected, || format!("{restarted:?} ended"))?;
    result
}

/// What a client keeps by list and watch.
struct Mirror {
    /// Durable, all of them.
    config_maps: Reflector,
    pods: Reflector,
}

impl Mirror {
    fn start(api: &Arc<Api>) -> Self {
        let follow = |path: &str| Reflector::start(Arc::clone(api), path);
        Self {
            config_maps: follow("/api/v1/configmaps"),
            pods: follow("/api/v1/pods"),
        }
    }

    fn revision(&self) -> i64 {
        self.config_maps.revision().max(self.pods.revision())
    }
}

fn revisions(list: &serde_json::Value) -> BTreeMap<String, i64> {
    items(list)
        .iter()
        .map(|item| (full_name(item), revision(item)))
        .collect()
}

/// Lists of each apiserver, consistent and from its cache as it is, are what the store has,
/// and so is what clients and nodes keep.
async fn no_phantoms(
    store: &Store,
    apis: &[Arc<Api>],
    mirrors: &[Mirror],
    nodes: &Nodes,
) -> Result<()> {
    for api in apis {
        eventually("consistent lists are the store's", TOLD, || async {
            caches_match_store(store, api).await.map(Some)
        })
        .await?;
        for (path, prefix) in COLLECTIONS {
            let what = format!("{path} from the cache is the store's");
            eventually(&what, TOLD, || async {
                let cached = revisions(&api.get(&format!("{path}?resourceVersion=0")).await?);
                let keys = store.etcdctl()?.keys(prefix, 0)?;
                let name = |key: String| key[prefix.len()..].to_owned();
                let stored: BTreeMap<String, i64> =
                    keys.into_iter().map(|(key, at)| (name(key), at)).collect();
                Ok((cached == stored).then_some(()))
            })
            .await?;
        }
    }
    let caches = mirrors.iter().map(|mirror| &mirror.pods);
    for cache in caches.chain([nodes.pods()]) {
        eventually("a client has the pods that there are", TOLD, || async {
            Ok((cache.revisions() == pods_of(store)?).then_some(()))
        })
        .await?;
        ensure(cache.lists() > 1, || "a client did not list again".into())?;
    }
    Ok(())
}

/// Schedulers that took the lease and run, by their logs: one that loses it ends.
fn leading(dir: &Path, plane: &ControlPlane) -> Vec<String> {
    let leads = |(name, id): &(String, u32)| {
        let log = std::fs::read(dir.join(format!("{name}.log"))).unwrap_or_default();
        let (log, id) = (String::from_utf8_lossy(&log), id.to_string());
        // Severity and date, time, process.
        log.lines()
            .any(|line| line.contains(LEADS) && line.split_whitespace().nth(2) == Some(&id))
    };
    let schedulers = plane.pids().into_iter();
    let schedulers = schedulers.filter(|(name, _)| SCHEDULERS.contains(&name.as_str()));
    schedulers.filter(leads).map(|(name, _)| name).collect()
}

async fn one_leader(dir: &Path, plane: &ControlPlane) -> Result<()> {
    for component in ["kube-scheduler", "kube-controller-manager"] {
        scenarios::wait_for_leader(&plane.api(), component).await?;
    }
    let leading = leading(dir, plane);
    ensure(leading.len() == 1, || format!("leaders: {leading:?}"))
}

/// The leading scheduler ends, and the other one takes its place.
async fn another_scheduler(dir: &Path, plane: &mut ControlPlane, api: &Api) -> Result<()> {
    let (before, _) = scenarios::leader(api, "kube-scheduler").await?;
    let first = leading(dir, plane);
    for name in &first {
        plane.stop_component(name)?;
    }
    eventually("the other scheduler takes the lease", TOLD, || async {
        Ok((leading(dir, plane).len() == 1).then_some(()))
    })
    .await?;
    let after = scenarios::wait_for_leader(api, "kube-scheduler").await?;
    ensure(after != before, || format!("{after} leads still"))
}

/// Creates ConfigMaps, one after the other, and keeps the names of those that were answered:
/// they are durable.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<BTreeMap<String, i64>>,
}

impl Writer {
    fn start(api: Arc<Api>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
            let (mut answered, mut n) = (BTreeMap::new(), 0_u64);
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                let name = format!("durable-{n}");
                let object = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
                    "data": { "name": name }
                });
                // The store is down now and then.
                if let Ok(created) = api.create(&path, &object).await {
                    answered.insert(full_name(&created), revision(&created));
                }
                tokio::time::sleep(WRITER_PAUSE).await;
            }
            answered
        });
        Self { stop, task }
    }

    /// Everything that was answered is there, at the revision that was answered or at a later
    /// one: a power loss may take the note of when a durable write became visible, and then
    /// it becomes so again (decision 6). Returns how many these are.
    async fn finish(self, api: &Api, mirrors: &[Mirror]) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(answered) = self.task.await else {
            return fail("the writer failed");
        };
        let list = api.get("/api/v1/configmaps").await?;
        let there = revisions(&list);
        let lost: Vec<_> = answered
            .iter()
            .filter(|(name, at)| there.get(*name).is_none_or(|now| now < *at))
            .collect();
        ensure(lost.is_empty(), || {
            format!("{} durable writes are lost, as {:?}", lost.len(), lost[0])
        })?;
        ensure(answered.len() > 20, || {
            format!("{} durable writes", answered.len())
        })?;
        for mirror in mirrors {
            // Nothing went back, not even for a moment.
            mirror.config_maps.check()?;
            eventually("a client has all ConfigMaps", TOLD, || async {
                Ok((mirror.config_maps.revisions() == there).then_some(()))
            })
            .await?;
        }
        let moved = |(name, at): &(&String, &i64)| there.get(*name) != Some(*at);
        Ok(answered.iter().filter(moved).count())
    }
}
