//! Kubernetes 1.37 and 1.30, as released, on orlop: nothing lost, nothing stuck. 1.37 also under
//! the profile `ephemeral`, where it converges by itself after power losses of the store.
//!
//! `ORLOP_E2E_STORE=etcd` runs the same on a real etcd. `ORLOP_E2E_SOAK_S` makes
//! the load of the first test last that much longer; after 7.5 minutes every
//! resource's consistency checker has run.

#[path = "kubernetes/power_loss.rs"]
mod power_loss;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::env::number;
use e2e::kube::api::{Api, full_name, items, revision};
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::ledger::Ledger;
use e2e::kube::metrics::Metrics;
use e2e::kube::node::Nodes;
use e2e::kube::pki::Authority;
use e2e::kube::proc::conclude;
use e2e::kube::reflector::Reflector;
use e2e::kube::steps::Steps;
use e2e::kube::store::{Kind, Store, Tls};
use e2e::kube::{Result, ensure, eventually, fail, scenarios};
use tokio::sync::Mutex;

/// One control plane at a time: two would share two cores.
static TURN: Mutex<()> = Mutex::const_new(());

/// Collections compared between the apiserver's cache and the store, and the
/// prefix of their keys.
const COLLECTIONS: [(&str, &str); 9] = [
    ("/api/v1/pods", "/registry/pods/"),
    ("/api/v1/configmaps", "/registry/configmaps/"),
    ("/api/v1/secrets", "/registry/secrets/"),
    ("/api/v1/nodes", "/registry/minions/"),
    ("/apis/apps/v1/deployments", "/registry/deployments/"),
    ("/apis/apps/v1/replicasets", "/registry/replicasets/"),
    ("/apis/batch/v1/jobs", "/registry/jobs/"),
    ("/apis/coordination.k8s.io/v1/leases", "/registry/leases/"),
    (
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/registry/clusterroles/",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_1_37_loses_nothing() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let result = kubernetes_1_37(dir.path()).await;
    conclude(dir, result);
}

async fn kubernetes_1_37(dir: &std::path::Path) -> Result<()> {
    let mut steps = Steps::start();
    let store_flags = ["--watch-progress-notify-interval=5s"];
    let mut store = Store::start(Kind::under_test()?, "store", dir, None, &store_flags).await?;
    steps.done("the store is ready");
    let flags = ["--event-ttl=20s", "--etcd-compaction-interval=15s"];
    let mut plane = ControlPlane::start(dir, "kube-1.37", &store, &flags).await?;
    steps.done("kube-apiserver is ready");
    let result = everything(&mut store, &mut plane, &flags, &mut steps).await;
    plane.explain(result)
}

async fn everything(
    store: &mut Store,
    plane: &mut ControlPlane,
    flags: &[&str],
    steps: &mut Steps,
) -> Result<()> {
    plane.start_component("kube-controller-manager", "kube-controller-manager")?;
    plane.start_component("kube-scheduler", "kube-scheduler")?;
    let api = plane.api();
    scenarios::create_crd(&api).await?;
    let nodes = Nodes::start(Arc::clone(&api), 3).await?;
    let event = scenarios::create_event(&api, "expires").await?;
    plane.add_apiserver(flags).await?;
    let apis: Vec<Arc<Api>> = plane
        .apiservers
        .iter()
        .map(|server| Arc::clone(&server.api))
        .collect();
    steps.done("a second kube-apiserver is ready");
    let scheduler = scenarios::wait_for_leader(&api, "kube-scheduler").await?;
    scenarios::wait_for_leader(&api, "kube-controller-manager").await?;
    steps.done("leaders are elected");

    scenarios::create_namespace(&api, "load").await?;
    let load = Ledger::start(&apis, "load", 4, Duration::from_millis(40));
    let mirrors: Vec<Reflector> = apis
        .iter()
        .map(|api| Reflector::start(Arc::clone(api), "/api/v1/configmaps"))
        .collect();
    tokio::try_join!(
        scenarios::deployments(Arc::clone(&api), "deployments"),
        scenarios::jobs(Arc::clone(&api), "jobs"),
        scenarios::custom_resources(Arc::clone(&api), "widgets"),
        scenarios::namespace_deletion(Arc::clone(&api), "doomed"),
        scenarios::paged_lists(Arc::clone(&api), "pages"),
        scenarios::watch_list(Arc::clone(&api), "streams"),
    )?;
    plane.check_running()?;
    steps.done("Deployments, Jobs, custom resources, a namespace's end, pages, streams");

    features_in_use(store, &apis).await?;
    steps.done("features are in use");

    plane.start_component("kube-scheduler", "kube-scheduler-2")?;
    plane.stop_component("kube-scheduler")?;
    eventually(
        "the second scheduler leads",
        Duration::from_secs(40),
        || async {
            let (holder, _) = scenarios::leader(&api, "kube-scheduler").await?;
            Ok((!holder.is_empty() && holder != scheduler).then_some(()))
        },
    )
    .await?;
    scenarios::scale(&api, "deployments", "two", 4).await?;
    scenarios::wait_for_deployment(&api, "deployments", "two", 4).await?;
    steps.done("the other scheduler took over");

    scenarios::event_expires(&api, &event).await?;
    let event = scenarios::create_event(&api, "expires-after-restarts").await?;
    steps.done("an event has expired");

    let before = cache_work(&apis).await?;
    scenarios::scale(&api, "deployments", "one", 8).await?;
    store.stop()?;
    let down = Instant::now();
    let ready = store.start_again().await?;
    println!("a clean restart took {} ms", ready.as_millis());
    load.wait_for_more(200, Duration::from_secs(30)).await?;
    println!("200 writes after {} ms", down.elapsed().as_millis());
    scenarios::wait_for_deployment(&api, "deployments", "one", 8).await?;
    no_relists(&before, &cache_work(&apis).await?)?;
    steps.done("a clean restart under load, no relists");

    for round in 0..2u64 {
        scenarios::scale(&api, "deployments", "one", 3 + round).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        store.kill();
        let ready = store.start_again().await?;
        println!("a restart after kill -9 took {} ms", ready.as_millis());
        load.wait_for_more(100, Duration::from_secs(30)).await?;
        scenarios::wait_for_deployment(&api, "deployments", "one", 3 + round).await?;
    }
    plane.check_running()?;
    steps.done("two times kill -9 under load");

    if let Some(seconds) = number("ORLOP_E2E_SOAK_S")? {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        consistency_checks(&apis).await?;
        plane.check_running()?;
        steps.done("soaked");
    }

    let summary = load.finish(&api).await?;
    println!("load: {summary:?}");
    ensure(summary.acked > 400 && summary.objects > 0, || {
        format!("{summary:?}")
    })?;
    same_everywhere(&apis, &mirrors).await?;
    for mirror in mirrors.iter().chain([nodes.pods()]) {
        mirror.check()?;
        ensure(mirror.lists() == 1, || {
            format!("a client listed {} times", mirror.lists())
        })?;
    }
    for api in &apis {
        caches_match_store(store, api).await?;
    }
    steps.done("nothing is lost, clients and caches match the store");

    scenarios::event_expires(&api, &event).await?;
    compacted(store)?;
    plane.check_running()?;
    store.check_running()?;
    steps.done("an event of before the restarts has expired, history is compacted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_1_30_loses_nothing() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let result = kubernetes_1_30(dir.path()).await;
    conclude(dir, result);
}

async fn kubernetes_1_30(dir: &std::path::Path) -> Result<()> {
    // With certificates on both sides, as kubeadm sets it up.
    let authority = Authority::new(dir, "store")?;
    let tls = Tls {
        server: authority.sign("server")?,
        ca: authority.cert.clone(),
        client: Some(authority.sign("apiserver-etcd-client")?),
    };
    let mut store = Store::start(Kind::under_test()?, "store", dir, Some(tls), &[]).await?;
    let mut plane = ControlPlane::start(dir, "kube-1.30", &store, &[]).await?;
    let result = the_same_shorter(&mut store, &mut plane).await;
    plane.explain(result)
}

/// What `kubernetes/power_loss.rs` does not do under `ephemeral`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "by hand: the tests of power losses have a kill -9 under ephemeral too"]
async fn kubernetes_1_37_loses_nothing_under_ephemeral() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let result = under(dir.path(), "ephemeral").await;
    conclude(dir, result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "by hand: ephemeral has all of its rules"]
async fn kubernetes_1_37_loses_nothing_under_balanced() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let result = under(dir.path(), "balanced").await;
    conclude(dir, result);
}

async fn under(dir: &std::path::Path, profile: &str) -> Result<()> {
    let flag = format!("--profile={profile}");
    let mut store = Store::start(Kind::Orlop, "store", dir, None, &[&flag]).await?;
    let mut plane = ControlPlane::start(dir, "kube-1.37", &store, &[]).await?;
    let result = async {
        the_same_shorter(&mut store, &mut plane).await?;
        let metrics = store.metrics().await?;
        let volatile = metrics.sum("orlop_writes_total", &["class=\"volatile\""]);
        ensure(volatile > 0.0, || {
            "no write since the last start was volatile".into()
        })
    }
    .await;
    plane.explain(result)
}

async fn the_same_shorter(store: &mut Store, plane: &mut ControlPlane) -> Result<()> {
    let mut steps = Steps::start();
    plane.start_component("kube-controller-manager", "kube-controller-manager")?;
    plane.start_component("kube-scheduler", "kube-scheduler")?;
    let api = plane.api();
    let nodes = Nodes::start(Arc::clone(&api), 2).await?;
    scenarios::create_namespace(&api, "load").await?;
    let load = Ledger::start(&[Arc::clone(&api)], "load", 2, Duration::from_millis(40));
    steps.done("Kubernetes is up");
    tokio::try_join!(
        scenarios::deployments(Arc::clone(&api), "deployments"),
        scenarios::jobs(Arc::clone(&api), "jobs"),
        scenarios::paged_lists(Arc::clone(&api), "pages"),
    )?;
    steps.done("Deployments, Jobs, pages");
    let before = cache_work(&[Arc::clone(&api)]).await?;
    store.stop()?;
    store.start_again().await?;
    load.wait_for_more(100, Duration::from_secs(30)).await?;
    no_relists(&before, &cache_work(&[Arc::clone(&api)]).await?)?;
    store.kill();
    store.start_again().await?;
    load.wait_for_more(100, Duration::from_secs(30)).await?;
    scenarios::scale(&api, "deployments", "one", 6).await?;
    scenarios::wait_for_deployment(&api, "deployments", "one", 6).await?;
    plane.check_running()?;
    steps.done("a clean restart and a kill -9 under load");
    println!("load: {:?}", load.finish(&api).await?);
    nodes.pods().check()?;
    caches_match_store(store, &api).await?;
    store.check_running()
}

/// What the apiservers' watch caches did so far: initializations and lists from
/// the store, a resource.
async fn cache_work(apis: &[Arc<Api>]) -> Result<BTreeMap<String, f64>> {
    let mut work = BTreeMap::new();
    for (n, api) in apis.iter().enumerate() {
        let metrics = api.metrics().await?;
        let name = "apiserver_watch_cache_initializations_total";
        for (labels, count) in metrics.series(name, &[]) {
            work.insert(format!("apiserver {} {labels}", n + 1), count);
        }
    }
    Ok(work)
}

fn no_relists(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Result<()> {
    ensure(!before.is_empty(), || {
        "the apiserver shows no initialized cache".to_owned()
    })?;
    let again: Vec<String> = after
        .iter()
        .filter(|(name, count)| before.get(*name).is_some_and(|before| before < *count))
        .map(|(name, count)| format!("{name}: {} to {count}", before[name]))
        .collect();
    ensure(again.is_empty(), || {
        format!(
            "a restart made {} watch caches list again:\n{}",
            again.len(),
            again.join("\n")
        )
    })
}

/// The store is used in the way that new releases of Kubernetes use etcd.
async fn features_in_use(store: &Store, apis: &[Arc<Api>]) -> Result<()> {
    let metrics = store.metrics().await?;
    let streams = metrics.sum(
        "grpc_server_started_total",
        &["grpc_method=\"RangeStream\""],
    );
    ensure(streams > 10.0, || {
        format!("RangeStream was called {streams} times")
    })?;
    let pages: Vec<Metrics> = {
        let mut pages = Vec::new();
        for api in apis {
            pages.push(api.metrics().await?);
        }
        pages
    };
    let sum = |name: &str, labels: &[&str]| pages.iter().map(|page| page.sum(name, labels)).sum();
    let from_cache: f64 = sum(
        "apiserver_watch_cache_consistent_read_total",
        &["success=\"true\"", "fallback=\"false\""],
    );
    let failed: f64 = sum(
        "apiserver_watch_cache_consistent_read_total",
        &["success=\"false\""],
    );
    let streamed: f64 = sum(
        "apiserver_storage_list_duration_seconds_count",
        &["streamed=\"true\""],
    );
    let watch_lists: f64 = sum("apiserver_watch_list_duration_seconds_count", &[]);
    let progress: f64 = sum("etcd_bookmark_total", &[]);
    println!(
        "RangeStream calls {streams}, consistent reads from cache {from_cache} (failed {failed}), \
         streamed lists {streamed}, watch lists {watch_lists}, progress {progress}"
    );
    ensure(from_cache > 50.0, || {
        format!("{from_cache} consistent reads from the cache")
    })?;
    ensure(failed * 10.0 <= from_cache, || {
        format!("{failed} consistent reads from the cache failed, {from_cache} did not")
    })?;
    ensure(watch_lists > 50.0, || {
        format!("{watch_lists} streaming lists")
    })?;
    ensure(progress > 50.0, || {
        format!("{progress} progress notifications")
    })
}

/// Every resource's own checker in the apiservers has found cache and store equal.
async fn consistency_checks(apis: &[Arc<Api>]) -> Result<()> {
    for api in apis {
        let metrics = api.metrics().await?;
        let count =
            |status: &str| metrics.sum("apiserver_storage_consistency_checks_total", &[status]);
        let (good, bad) = (count("status=\"success\""), count("status=\"failure\""));
        println!(
            "consistency checks: {good} good, {bad} bad, {} errors",
            count("status=\"error\"")
        );
        ensure(good > 0.0 && bad == 0.0, || {
            format!("{good} good, {bad} bad consistency checks")
        })?;
    }
    Ok(())
}

/// After the load all apiservers list the same, and clients that only watched have
/// it too.
async fn same_everywhere(apis: &[Arc<Api>], mirrors: &[Reflector]) -> Result<()> {
    let revisions = |list: &serde_json::Value| -> BTreeMap<String, i64> {
        items(list)
            .iter()
            .map(|item| (full_name(item), revision(item)))
            .collect()
    };
    let expected = revisions(&apis[0].get("/api/v1/configmaps").await?);
    for api in &apis[1..] {
        let found = revisions(&api.get("/api/v1/configmaps").await?);
        ensure(found == expected, || {
            "two apiservers list different ConfigMaps".to_owned()
        })?;
    }
    for mirror in mirrors {
        eventually(
            "a watching client has all",
            Duration::from_secs(10),
            || async {
                if mirror.revisions() == expected {
                    Ok(Some(()))
                } else {
                    fail("it differs")
                }
            },
        )
        .await?;
    }
    Ok(())
}

/// Compares lists from the apiserver's cache with the store's own keys at the same
/// revision: the same objects, each at the same revision.
async fn caches_match_store(store: &Store, api: &Api) -> Result<()> {
    let etcdctl = store.etcdctl()?;
    for (path, prefix) in COLLECTIONS {
        let list = api.get(path).await?;
        let cached: BTreeMap<String, i64> = items(&list)
            .iter()
            .map(|item| (full_name(item), revision(item)))
            .collect();
        let keys = etcdctl.keys(prefix, revision(&list))?;
        let stored: BTreeMap<String, i64> = keys
            .into_iter()
            .map(|(key, revision)| (key[prefix.len()..].to_owned(), revision))
            .collect();
        ensure(cached == stored, || {
            let odd = |a: &BTreeMap<String, i64>, b: &BTreeMap<String, i64>| {
                a.iter()
                    .filter(|(k, v)| b.get(*k) != Some(v))
                    .map(|(k, v)| format!("{k}@{v}"))
                    .collect::<Vec<_>>()
            };
            format!(
                "{path} at revision {}: in the cache only {:?}, in the store only {:?}",
                revision(&list),
                odd(&cached, &stored),
                odd(&stored, &cached)
            )
        })?;
        ensure(!cached.is_empty(), || {
            format!("{path} is empty: nothing was compared")
        })?;
    }
    Ok(())
}

/// kube-apiserver has compacted: early revisions are refused with etcd's words.
fn compacted(store: &Store) -> Result<()> {
    let answer = store
        .etcdctl()?
        .run(&["get", "compact_rev_key", "--rev=2"])?;
    let text = "etcdserver: mvcc: required revision has been compacted";
    ensure(answer.code != 0 && answer.err.contains(text), || {
        format!("{answer:?}")
    })
}
