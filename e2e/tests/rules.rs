//! The rules on the writes of a real control plane: a Deployment, a Job, a StatefulSet, a
//! DaemonSet and a custom resource on Kubernetes 1.37, every write judged under every profile;
//! and what the API server prints of these objects, judged as what it stores.
//!
//! `ORLOP_E2E_RULES_SET=kube-1.30` takes another pinned release.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use e2e::kube::api::{Api, items, revision};
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::node::Nodes;
use e2e::kube::proc::conclude;
use e2e::kube::reflector::watch;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Error, Result, ensure, eventually, fail, scenarios};
use etcd_api::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use policy::{Change, Class, Policy, Profile, WhatIf};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use tonic::transport::Endpoint;

const NAMESPACE: &str = "rules";
const WAIT: Duration = Duration::from_secs(60);
/// Long enough for leaders (2 s) and nodes (4 s here) to renew their leases.
const RENEWALS: Duration = Duration::from_secs(6);

/// A write to one key.
struct Write {
    key: String,
    /// Mod revisions of the values.
    old_at: i64,
    new_at: i64,
    old: Option<Bytes>,
    new: Option<Bytes>,
}

impl Write {
    fn change(&self) -> Change<'_> {
        Change {
            old: self.old.as_deref(),
            new: self.new.as_deref(),
        }
    }

    fn class(&self, policy: &Policy) -> Class {
        policy.class(self.key.as_bytes(), self.change())
    }
}

type Writes = Arc<Mutex<Vec<Write>>>;

/// Collects all writes from the first revision on.
async fn collect(store: &Store) -> Result<Writes> {
    let transport = |error: &dyn std::error::Error| Error::Transport(error.to_string());
    let channel = Endpoint::from_shared(store.url())
        .map_err(|e| transport(&e))?
        .connect()
        .await
        .map_err(|e| transport(&e))?;
    let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: 1,
        prev_kv: true,
        ..Default::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut answers = client
        .watch(requests)
        .await
        .map_err(|e| transport(&e))?
        .into_inner();
    let writes = Writes::default();
    let collected = Arc::clone(&writes);
    tokio::spawn(async move {
        while let Ok(Some(answer)) = answers.message().await {
            let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
            for event in answer.events {
                let is_put = event.r#type() == etcd_api::mvccpb::event::EventType::Put;
                let kv = event.kv.unwrap_or_default();
                collected.push(Write {
                    key: String::from_utf8_lossy(&kv.key).into_owned(),
                    old_at: event.prev_kv.as_ref().map_or(0, |old| old.mod_revision),
                    new_at: kv.mod_revision,
                    old: event.prev_kv.map(|old| old.value),
                    new: is_put.then_some(kv.value),
                });
            }
        }
    });
    Ok(writes)
}

/// What the API server prints of objects, by their revision.
type Printed = Arc<Mutex<BTreeMap<i64, Value>>>;

/// Kinds that rules look into, and another.
const PRINTED: [&str; 7] = [
    "/api/v1/pods",
    "/api/v1/nodes",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/replicasets",
    "/apis/apps/v1/daemonsets",
    "/apis/batch/v1/jobs",
    "/apis/coordination.k8s.io/v1/leases",
];

/// Collects what the API server prints of each version of each object, as kubectl shows it.
fn collect_printed(api: &Arc<Api>) -> Printed {
    let printed = Printed::default();
    for path in PRINTED {
        let (api, printed) = (Arc::clone(api), Arc::clone(&printed));
        tokio::spawn(async move {
            let query = format!("{path}?watch=true&resourceVersion=0");
            let seen = |kind: &str, mut object: Value| {
                let at = revision(&object);
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
                if kind != "DELETED" {
                    let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
                    printed.insert(at, object);
                }
            };
            // Its end is seen by the number of versions.
            let _ = watch(&api, &query, seen).await;
        });
    }
    printed
}

/// The printed values have the classes of the stored ones.
fn judge_printed(writes: &[Write], printed: &BTreeMap<i64, Value>) -> Result<()> {
    let stored = |at: i64| match printed.get(&at) {
        Some(object) => policy::as_stored(object)
            .map(Some)
            .map_err(|error| Error::Failed(format!("{error}: {object}"))),
        None => Ok(None),
    };
    let (mut compared, mut volatile) = (0, 0);
    for profile in [Profile::Balanced, Profile::Ephemeral] {
        let policy = Policy::profile(profile, None).map_err(|e| Error::Failed(e.to_string()))?;
        for write in writes {
            let old = stored(write.old_at)?.filter(|_| write.old.is_some());
            let new = stored(write.new_at)?.filter(|_| write.new.is_some());
            if old.is_some() != write.old.is_some() || new.is_some() != write.new.is_some() {
                continue;
            }
            let change = Change {
                old: old.as_deref(),
                new: new.as_deref(),
            };
            let key = write.key.as_bytes();
            let (told, expected) = (policy.explain(key, change), write.class(&policy));
            ensure(told.class() == expected, || {
                let stored = policy.explain(key, write.change());
                format!("{}: printed: {told}stored: {stored}", write.key)
            })?;
            compared += 1;
            volatile += usize::from(!expected.is_durable());
        }
    }
    println!("{compared} writes judged by what is printed, {volatile} of them volatile");
    ensure(compared > 60 && volatile > 30, || {
        format!("{compared} writes compared, {volatile} of them volatile")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_of_a_control_plane_gets_the_class_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let result = control_plane(dir.path()).await;
    conclude(dir, result);
}

async fn control_plane(dir: &std::path::Path) -> Result<()> {
    let set = std::env::var("ORLOP_E2E_RULES_SET").unwrap_or_else(|_| "kube-1.37".to_owned());
    let store = Store::start(Kind::under_test()?, "store", dir, None, &[]).await?;
    let writes = collect(&store).await?;
    let mut plane = ControlPlane::start(dir, &set, &store, &[]).await?;
    let printed = collect_printed(&plane.api());
    let result = async {
        plane.start_component("kube-controller-manager", "kube-controller-manager")?;
        plane.start_component("kube-scheduler", "kube-scheduler")?;
        workloads(&plane.api()).await
    }
    .await;
    plane.explain(result)?;
    let writes = std::mem::take(&mut *writes.lock().unwrap_or_else(PoisonError::into_inner));
    judge(&writes)?;
    let printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
    judge_printed(&writes, &printed)
}

/// Everything is created, comes to rest, and is deleted.
async fn workloads(api: &Arc<Api>) -> Result<()> {
    let _nodes = Nodes::start(Arc::clone(api), 2).await?;
    scenarios::create_crd(api).await?;
    scenarios::create_namespace_for_pods(api, NAMESPACE).await?;
    let core = format!("/api/v1/namespaces/{NAMESPACE}");
    let apps = format!("/apis/apps/v1/namespaces/{NAMESPACE}");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] }
    });
    api.create(&format!("{core}/services"), &service).await?;
    scenarios::create_deployment(api, NAMESPACE, "web", 1).await?;
    scenarios::wait_for_deployment(api, NAMESPACE, "web", 1).await?;
    let template = |app: &str, restart: &str| {
        json!({
            "metadata": { "labels": { "app": app } },
            "spec": {
                "restartPolicy": restart, "terminationGracePeriodSeconds": 1,
                "containers": [{ "name": "c", "image": "example.invalid/app" }]
            }
        })
    };
    let selector = |app: &str| json!({ "matchLabels": { "app": app } });
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "job" },
        "spec": { "completions": 1, "template": template("job", "Never") }
    });
    let stateful = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "state" },
        "spec": { "replicas": 1, "serviceName": "state", "selector": selector("state"),
                  "template": template("state", "Always") }
    });
    let daemons = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "agent" },
        "spec": { "selector": selector("agent"), "template": template("agent", "Always") }
    });
    let widget = json!({
        "apiVersion": "e2e.example.com/v1", "kind": "Widget",
        "metadata": { "name": "widget" }, "spec": { "size": 1 }
    });
    let widgets = format!("/apis/e2e.example.com/v1/namespaces/{NAMESPACE}/widgets");
    let jobs = format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs");
    api.create(&jobs, &job).await?;
    api.create(&format!("{apps}/statefulsets"), &stateful)
        .await?;
    api.create(&format!("{apps}/daemonsets"), &daemons).await?;
    api.create(&widgets, &widget).await?;
    let is = |path: String, field: &'static str, wanted: u64| async move {
        eventually(&format!("{path} with {field} {wanted}"), WAIT, || async {
            let object = api.get(&path).await?;
            Ok((object["status"][field] == wanted).then_some(()))
        })
        .await
    };
    is(format!("{jobs}/job"), "succeeded", 1).await?;
    is(format!("{apps}/statefulsets/state"), "readyReplicas", 1).await?;
    is(format!("{apps}/daemonsets/agent"), "numberReady", 2).await?;
    tokio::time::sleep(RENEWALS).await;
    api.delete(&format!("{apps}/deployments/web")).await?;
    eventually("the Deployment's pods gone", WAIT, || async {
        let pods: Value = api
            .get(&format!("{core}/pods?labelSelector=app%3Dweb"))
            .await?;
        Ok(items(&pods).is_empty().then_some(()))
    })
    .await
}

const D: Class = Class::Durable;
const V: Class = Class::Volatile {
    sync_within_ms: 100,
};
const EVENT: Class = Class::Volatile {
    sync_within_ms: 1000,
};

/// Compares the classes of all writes with what the contract says of them.
fn judge(writes: &[Write]) -> Result<()> {
    let profile = |p| Policy::profile(p, None).map_err(|e| Error::Failed(e.to_string()));
    let [strict, balanced, ephemeral, ci] = [
        Profile::Strict,
        Profile::Balanced,
        Profile::Ephemeral,
        Profile::Ci,
    ]
    .map(profile);
    let (strict, balanced, ephemeral, ci) = (strict?, balanced?, ephemeral?, ci?);
    let what_if = WhatIf::new(None).map_err(|e| Error::Failed(e.to_string()))?;
    let mut by_key: BTreeMap<&str, Vec<&Write>> = BTreeMap::new();
    let mut shares = [0_u64; 3];
    for write in writes {
        by_key.entry(&write.key).or_default().push(write);
        ensure(write.class(&strict) == D, || {
            format!("{} under strict", write.key)
        })?;
        let spared = what_if.volatile_in(write.key.as_bytes(), write.change());
        for (i, policy) in [&balanced, &ephemeral, &ci].into_iter().enumerate() {
            let class = write.class(policy);
            shares[i] += u64::from(!class.is_durable());
            ensure(spared.contains(i) != class.is_durable(), || {
                format!("what-if: {}", write.key)
            })?;
            // Nothing but what the rules are about.
            let resource = write.key.split('/').nth(2).unwrap_or_default();
            let is_known = [
                "events",
                "leases",
                "masterleases",
                "peerserverleases",
                "minions",
                "pods",
                "deployments",
                "replicasets",
            ]
            .contains(&resource);
            ensure(is_known || class == D, || {
                format!("{} is {class}", write.key)
            })?;
        }
    }
    println!(
        "{} writes; volatile under balanced {}, under ephemeral {}, under ci {}",
        writes.len(),
        shares[0],
        shares[1],
        shares[2]
    );
    let marks = Policy::parse("marks", MARKS, None).map_err(|e| Error::Failed(e.to_string()))?;
    let check = Check {
        balanced,
        ephemeral,
        marks,
    };
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, writes) in &by_key {
        let what = check.key(key, writes)?;
        *seen.entry(what).or_default() += 1;
    }
    println!("keys by what they are: {seen:?}");
    for (what, least) in [
        ("deployment", 1),
        ("replicaset", 1),
        ("pod of a Deployment", 1),
        ("pod of a Job", 1),
        ("pod of a StatefulSet", 1),
        ("pod of a DaemonSet", 2),
        ("event", 5),
        ("endpoints", 1),
        ("node lease", 2),
        ("leader", 2),
        ("job", 1),
        ("widget", 1),
        ("masterlease", 1),
    ] {
        let count = seen.get(what).copied().unwrap_or_default();
        ensure(count >= least, || {
            format!("{count} keys are a {what}: {seen:?}")
        })?;
    }
    Ok(())
}

/// Takes marks for deletion and nothing else.
const MARKS: &str = "[[rule]]\nprefix = \"/\"\nchange = \"mark\"\ndurability = \"volatile\"\n";

struct Check {
    balanced: Policy,
    ephemeral: Policy,
    marks: Policy,
}

impl Check {
    /// Fails unless a write's class is as expected under balanced and ephemeral.
    fn expect(&self, write: &Write, balanced: Class, ephemeral: Class) -> Result<()> {
        for (policy, expected) in [(&self.balanced, balanced), (&self.ephemeral, ephemeral)] {
            let told = policy.explain(write.key.as_bytes(), write.change());
            ensure(told.class() == expected, || {
                format!(
                    "{} under {}: {expected} expected, but {told}",
                    write.key,
                    policy.name()
                )
            })?;
        }
        Ok(())
    }

    /// Checks all writes to a key and says what it is.
    fn key(&self, key: &str, writes: &[&Write]) -> Result<&'static str> {
        let parts: Vec<&str> = key.trim_start_matches('/').split('/').collect();
        let created = writes.iter().filter(|w| w.old.is_none());
        let deleted = writes.iter().filter(|w| w.new.is_none());
        let updated: Vec<&&Write> = writes
            .iter()
            .filter(|w| w.old.is_some() && w.new.is_some())
            .collect();
        let ends: Vec<&&Write> = created.chain(deleted).collect();
        let all = |writes: &[&&Write], balanced, ephemeral| {
            writes
                .iter()
                .try_for_each(|w| self.expect(w, balanced, ephemeral))
        };
        match parts[..] {
            ["registry", "events", ..] => {
                all(&ends, EVENT, EVENT)?;
                all(&updated, EVENT, EVENT)?;
                Ok("event")
            }
            ["registry", "deployments", NAMESPACE, _] => {
                all(&ends, D, D)?;
                // Nobody but the controller wrote between create and delete.
                all(&updated, V, V)?;
                ensure(updated.len() >= 2, || {
                    format!("{} updates of {key}", updated.len())
                })?;
                Ok("deployment")
            }
            ["registry", "replicasets", NAMESPACE, _] => {
                all(&ends, D, V)?;
                all(&updated, V, V)?;
                Ok("replicaset")
            }
            ["registry", "pods", NAMESPACE, name] => self.pod(name, writes),
            ["registry", "services", "endpoints", NAMESPACE, _]
            | ["registry", "endpointslices", NAMESPACE, _] => {
                all(&ends, D, D)?;
                all(&updated, D, D)?;
                Ok("endpoints")
            }
            ["registry", "leases", "kube-node-lease", _] => {
                let renewal = Class::Volatile {
                    sync_within_ms: 30_000,
                };
                all(&ends, D, D)?;
                all(&updated, renewal, renewal)?;
                ensure(!updated.is_empty(), || format!("{key} was never renewed"))?;
                Ok("node lease")
            }
            [
                "registry",
                "leases",
                "kube-system",
                "kube-scheduler" | "kube-controller-manager",
            ] => {
                let renewal = Class::Volatile {
                    sync_within_ms: 10_000,
                };
                all(&ends, D, D)?;
                all(&updated, renewal, renewal)?;
                ensure(updated.len() >= 2, || format!("{key} was hardly renewed"))?;
                Ok("leader")
            }
            ["registry", lease @ ("masterleases" | "peerserverleases"), _] => {
                let class = Class::Volatile {
                    sync_within_ms: 5000,
                };
                all(&ends, class, class)?;
                all(&updated, class, class)?;
                Ok(match lease {
                    "masterleases" => "masterlease",
                    _ => "peer lease",
                })
            }
            ["registry", "jobs", ..] => {
                all(&updated, D, D)?;
                Ok("job")
            }
            ["registry", "e2e.example.com", "widgets", ..] => Ok("widget"),
            _ => Ok("other"),
        }
    }

    /// A pod's writes in their order: create, binding, progress, end.
    fn pod(&self, name: &str, writes: &[&Write]) -> Result<&'static str> {
        let (what, derived) = match name.split('-').next() {
            Some("web") => ("pod of a Deployment", V),
            Some("job") => ("pod of a Job", V),
            Some("agent") => ("pod of a DaemonSet", V),
            Some("state") => ("pod of a StatefulSet", D),
            _ => return Ok("other"),
        };
        let [create, binding, rest @ ..] = writes else {
            return fail(format!("{name} has {} writes", writes.len()));
        };
        self.expect(create, D, derived)?;
        self.expect(binding, D, derived)?;
        let is_final = |value: &Option<Bytes>| {
            let phases: [&[u8]; 2] = [b"\x0a\x09Succeeded", b"\x0a\x06Failed"];
            value.as_deref().is_some_and(|v| {
                phases
                    .iter()
                    .any(|phase| v.windows(phase.len()).any(|w| w == *phase))
            })
        };
        let mut progress = 0;
        for write in rest {
            let is_end = is_final(&write.new) && !is_final(&write.old);
            if is_end || !write.class(&self.marks).is_durable() {
                self.expect(write, D, D)?;
            } else if write.class(&self.balanced) == V {
                self.expect(write, V, V)?;
                progress += 1;
            } else {
                // Removal, a finalizer taken off.
                self.expect(write, D, derived)?;
            }
        }
        ensure(progress > 0, || format!("{name} made no progress"))?;
        Ok(what)
    }
}
