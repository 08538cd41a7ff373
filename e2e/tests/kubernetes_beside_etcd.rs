//! The trial of docs/start/beside-etcd.md, step by step: a control plane on a real
//! etcd, its events and leases on the store under test by
//! `--etcd-servers-overrides`, and back again.
//!
//! `ORLOP_E2E_SETTLE_S` makes it watch the nodes that long after each change; they
//! would be NotReady after 50 s if the change had cut off their leases.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::env::number;
use e2e::kube::api::{Api, items};
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::node::Nodes;
use e2e::kube::pki::Authority;
use e2e::kube::proc::conclude;
use e2e::kube::store::{Kind, Store, Tls};
use e2e::kube::{Result, ensure, eventually, fail, scenarios};

/// What the trial moves.
const MOVED: [&str; 2] = ["/registry/events/", "/registry/leases/"];
const COMPONENTS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_leases_move_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let result = trial(dir.path()).await;
    conclude(dir, result);
}

async fn trial(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "etcd")?;
    let tls = Tls {
        server: authority.sign("server")?,
        ca: authority.cert.clone(),
        client: Some(authority.sign("apiserver-etcd-client")?),
    };
    let etcd = Store::start(Kind::Etcd, "etcd", dir, Some(tls.clone()), &[]).await?;
    let mut plane = ControlPlane::start(dir, "kube-1.37", &etcd, &[]).await?;
    for component in COMPONENTS {
        plane.start_component(component, component)?;
    }
    let result = there_and_back(&etcd, &mut plane, tls, dir).await;
    plane.explain(result)
}

async fn there_and_back(
    etcd: &Store,
    plane: &mut ControlPlane,
    tls: Tls,
    dir: &Path,
) -> Result<()> {
    let api = plane.api();
    let nodes = Nodes::start(Arc::clone(&api), 2).await?;
    scenarios::create_namespace_for_pods(&api, "trial").await?;
    scenarios::create_deployment(&api, "trial", "app", 3).await?;
    scenarios::wait_for_deployment(&api, "trial", "app", 3).await?;
    let old = scenarios::create_event(&api, "of-before").await?;

    // There.
    let mut orlop = Store::start(Kind::under_test()?, "orlop", dir, Some(tls), &[]).await?;
    plane
        .restart_apiserver(0, &[&overrides(&orlop.url())?])
        .await?;
    let before = etcd.etcdctl()?.keys("/registry/", 0)?;
    ensure(api.find(&old).await?.is_none(), || {
        "an event of etcd's shows".into()
    })?;
    let new = scenarios::create_event(&api, "of-the-trial").await?;
    works(plane, &api, 5).await?;
    settle(&api).await?;

    let in_orlop = orlop.etcdctl()?.keys("", 0)?;
    let strange = in_orlop.keys().find(|key| {
        !MOVED.iter().any(|prefix| key.starts_with(prefix)) && *key != "compact_rev_key"
    });
    ensure(strange.is_none(), || format!("orlop has {strange:?}"))?;
    for prefix in MOVED {
        let moved = in_orlop
            .keys()
            .filter(|key| key.starts_with(prefix))
            .count();
        ensure(moved > 0, || format!("orlop has no {prefix}"))?;
    }
    // What etcd has of them stays there as it is.
    let in_etcd = etcd.etcdctl()?.keys("/registry/", 0)?;
    let part = |keys: &BTreeMap<String, i64>| -> BTreeMap<String, i64> {
        let moved = |key: &str| MOVED.iter().any(|prefix| key.starts_with(prefix));
        keys.iter()
            .filter(|(key, _)| moved(key))
            .map(|(k, at)| (k.clone(), *at))
            .collect()
    };
    let (before, after) = (part(&before), part(&in_etcd));
    ensure(before == after && !before.is_empty(), || {
        format!("etcd's events and leases were {before:#?}\nand are {after:#?}")
    })?;
    without_orlop(plane, &api, &mut orlop).await?;
    works(plane, &api, 6).await?;
    orlop.check_running()?;

    // And back.
    plane.restart_apiserver(0, &[]).await?;
    orlop.stop()?;
    ensure(api.find(&old).await?.is_some(), || {
        "etcd's event is not back".into()
    })?;
    ensure(api.find(&new).await?.is_none(), || {
        "an event of orlop's shows".into()
    })?;
    works(plane, &api, 2).await?;
    settle(&api).await?;
    nodes.pods().check()?;
    plane.check_running()
}

/// The flag as the documentation has it, for a store at `url`.
fn overrides(url: &str) -> Result<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/start/beside-etcd.md");
    let page = std::fs::read_to_string(page)?;
    let flag = page
        .split_whitespace()
        .find(|word| word.starts_with("--etcd-servers-overrides="));
    match flag {
        Some(flag) => Ok(flag.replace("https://127.0.0.1:12379", url)),
        None => fail("docs/start/beside-etcd.md has no --etcd-servers-overrides=..."),
    }
}

/// While orlop is away, what is in etcd can be read and written, events cannot, and
/// the apiserver says that it is not well.
async fn without_orlop(plane: &mut ControlPlane, api: &Api, orlop: &mut Store) -> Result<()> {
    orlop.stop()?;
    scenarios::scale(api, "trial", "app", 4).await?;
    let write = scenarios::create_event(api, "of-the-outage");
    let written = tokio::time::timeout(Duration::from_secs(3), write).await;
    ensure(!matches!(written, Ok(Ok(_))), || {
        "an event was written to a stopped store".into()
    })?;
    for page in ["/livez", "/readyz"] {
        eventually("a failing health check", SOON, || async {
            let (status, text) = api.client().page(page).await?;
            Ok((status == 500 && text.contains("[-]etcd-override")).then_some(()))
        })
        .await?;
    }
    for component in COMPONENTS {
        plane.wait_for_end(component, SOON).await?;
    }
    orlop.start_again().await?;
    for component in COMPONENTS {
        plane.start_component(component, component)?;
    }
    eventually("a healthy apiserver", SOON, || async {
        Ok((api.client().page("/readyz").await?.0 == 200).then_some(()))
    })
    .await
}

/// The cluster works: both leaders renew their leases, a Deployment scales, its
/// pods' events are there, and nodes renew their leases.
async fn works(plane: &mut ControlPlane, api: &Api, replicas: u64) -> Result<()> {
    // A leader whose lease has another holder in the store that it now asks has to
    // wait until that one is out of date. It gives up before, and is started again.
    let began = Instant::now();
    let mut leases = BTreeMap::new();
    let mut renewals = BTreeMap::from(COMPONENTS.map(|component| (component, 0)));
    while renewals.values().any(|count| *count < 2) {
        ensure(began.elapsed() < SOON, || {
            format!("leaders renew no leases: {leases:?}")
        })?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        plane.revive()?;
        for component in COMPONENTS {
            let Ok(now) = scenarios::leader(api, component).await else {
                continue;
            };
            let before = leases.insert(component, now.clone());
            let renewed = before.is_some_and(|(holder, at)| holder == now.0 && at < now.1);
            renewals
                .entry(component)
                .and_modify(|count| *count += u64::from(renewed));
        }
    }
    scenarios::scale(api, "trial", "app", replicas).await?;
    scenarios::wait_for_deployment(api, "trial", "app", replicas).await?;
    eventually("events of the Deployment", SOON, || async {
        let events = api.get("/api/v1/namespaces/trial/events").await?;
        let text = format!("to {replicas}");
        let found = items(&events).iter().any(|event| {
            event["message"]
                .as_str()
                .is_some_and(|message| message.contains(&text))
        });
        Ok(found.then_some(()))
    })
    .await?;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-0";
    let renewed = |lease: serde_json::Value| lease["spec"]["renewTime"].to_string();
    let first = eventually("a node's lease", SOON, || api.find(path))
        .await
        .map(renewed)?;
    eventually("a renewed node lease", SOON, || async {
        Ok((renewed(api.get(path).await?) > first).then_some(()))
    })
    .await
}

/// Nodes stay Ready as long as asked for.
async fn settle(api: &Api) -> Result<()> {
    for _ in 0..number("ORLOP_E2E_SETTLE_S")?.unwrap_or(1) {
        let list = api.get("/api/v1/nodes").await?;
        for node in items(&list) {
            let conditions = node["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            if !ready {
                return fail(format!(
                    "a node is not ready: {}",
                    node["status"]["conditions"]
                ));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
