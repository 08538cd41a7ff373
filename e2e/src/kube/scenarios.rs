//! What users and controllers do with a cluster, each in a namespace of its own,
//! so that several can run at once on one control plane.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::api::{Api, items, revision};
use super::reflector::watch;
use super::{Error, Result, ensure, eventually, fail};

/// Controllers talk to the apiserver at 20 requests a second by default and share
/// two cores with everything else here.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// The garbage collector looks for new resource types every 30 s, and deletion of
/// a namespace has waits of its own.
const COLLECTION: Duration = Duration::from_secs(90);

/// Custom resources that [`create_crd`] defines.
const WIDGETS: &str = "/apis/e2e.example.com/v1";

/// Creates a namespace.
///
/// # Errors
/// If the apiserver refuses.
pub async fn create_namespace(api: &Api, name: &str) -> Result<()> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name }
    });
    api.create("/api/v1/namespaces", &namespace)
        .await
        .map(|_| ())
}

/// Creates a namespace and waits for its default ServiceAccount, without which no
/// pod is admitted.
///
/// # Errors
/// If it does not come.
pub async fn create_namespace_for_pods(api: &Api, name: &str) -> Result<()> {
    create_namespace(api, name).await?;
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    eventually("a default ServiceAccount", CONVERGENCE, || {
        api.find(&account)
    })
    .await
    .map(|_| ())
}

fn pod_template(app: &str, version: &str, restart: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app, "version": version } },
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "c", "image": format!("example.invalid/app:{version}") }]
        }
    })
}

/// A Deployment's path.
fn deployment_path(namespace: &str, name: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
}

/// Creates a Deployment.
///
/// # Errors
/// If the apiserver refuses.
pub async fn create_deployment(
    api: &Api,
    namespace: &str,
    name: &str,
    replicas: u64,
) -> Result<()> {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": pod_template(name, "1", "Always")
        }
    });
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    api.create(&path, &deployment).await.map(|_| ())
}

/// Sets a Deployment's number of replicas.
///
/// # Errors
/// If the apiserver refuses.
pub async fn scale(api: &Api, namespace: &str, name: &str, replicas: u64) -> Result<()> {
    let patch = json!({ "spec": { "replicas": replicas } });
    api.patch(&deployment_path(namespace, name), &patch)
        .await
        .map(|_| ())
}

/// Waits until a Deployment has exactly `replicas` replicas, all of its newest
/// template and ready, and its pods are those and no others.
///
/// # Errors
/// If that does not happen.
pub async fn wait_for_deployment(
    api: &Api,
    namespace: &str,
    name: &str,
    replicas: u64,
) -> Result<()> {
    let path = deployment_path(namespace, name);
    let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{name}");
    let what = format!("{namespace}/{name} with {replicas} ready replicas");
    eventually(&what, CONVERGENCE, || async {
        let deployment = api.get(&path).await?;
        let status = &deployment["status"];
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        let observed = status["observedGeneration"] == deployment["metadata"]["generation"];
        let fields = ["replicas", "updatedReplicas", "readyReplicas"];
        if !observed || fields.iter().any(|field| count(field) != replicas) {
            return fail(format!("its status is {status}"));
        }
        let version = &deployment["spec"]["template"]["metadata"]["labels"]["version"];
        let pods = api.get(&pods).await?;
        let right = items(&pods).iter().filter(|pod| {
            pod["metadata"]["labels"]["version"] == *version && pod["status"]["phase"] == "Running"
        });
        let (right, all) = (right.count() as u64, items(&pods).len() as u64);
        if right != replicas || all != replicas {
            return fail(format!("{all} pods, {right} of them right"));
        }
        Ok(Some(()))
    })
    .await
}

/// Deployments: creation, scaling up and down, a rollout, an undone rollout.
///
/// # Errors
/// If one does not come to its end.
pub async fn deployments(api: Arc<Api>, namespace: &str) -> Result<()> {
    let api = &api;
    create_namespace_for_pods(api, namespace).await?;
    let names = ["one", "two", "three"];
    for name in names {
        create_deployment(api, namespace, name, 3).await?;
    }
    for name in names {
        wait_for_deployment(api, namespace, name, 3).await?;
    }
    scale(api, namespace, "one", 12).await?;
    scale(api, namespace, "two", 0).await?;
    let rollout = |version: &'static str| async move {
        let patch = json!({ "spec": { "template": pod_template("three", version, "Always") } });
        api.patch(&deployment_path(namespace, "three"), &patch)
            .await
    };
    rollout("2").await?;
    wait_for_deployment(api, namespace, "one", 12).await?;
    wait_for_deployment(api, namespace, "two", 0).await?;
    wait_for_deployment(api, namespace, "three", 3).await?;
    rollout("1").await?;
    scale(api, namespace, "one", 2).await?;
    wait_for_deployment(api, namespace, "one", 2).await?;
    wait_for_deployment(api, namespace, "three", 3).await
}

/// Jobs: all completions are counted, each once.
///
/// # Errors
/// If one does not complete.
pub async fn jobs(api: Arc<Api>, namespace: &str) -> Result<()> {
    create_namespace_for_pods(&api, namespace).await?;
    let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
    let names = ["first", "second"];
    for name in names {
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
            "spec": {
                "completions": 6, "parallelism": 3,
                "template": pod_template(name, "1", "Never")
            }
        });
        api.create(&path, &job).await?;
    }
    for name in names {
        let job = eventually("a completed Job", CONVERGENCE, || async {
            let job = api.get(&format!("{path}/{name}")).await?;
            let conditions = job["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let complete = conditions.iter().any(|c| c["type"] == "Complete");
            if complete {
                Ok(Some(job))
            } else {
                fail(job["status"].to_string())
            }
        })
        .await?;
        ensure(job["status"]["succeeded"] == 6, || {
            format!("Job {name}: {}", job["status"])
        })?;
    }
    Ok(())
}

/// Defines a custom resource, `widgets` in the group `e2e.example.com`, and waits
/// until it is served.
///
/// # Errors
/// If it is not.
pub async fn create_crd(api: &Api) -> Result<()> {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.e2e.example.com" },
        "spec": {
            "group": "e2e.example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object", "properties": { "spec": any } } }
            }]
        }
    });
    api.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &crd,
    )
    .await?;
    eventually("a served custom resource", CONVERGENCE, || {
        api.find("/apis/e2e.example.com/v1/widgets")
    })
    .await
    .map(|_| ())
}

/// Custom resources, their update with a stale revision (refused), and garbage
/// collection of what they own: a chain of three, custom and built-in.
///
/// # Errors
/// If one is not as written, or a dependent stays.
pub async fn custom_resources(api: Arc<Api>, namespace: &str) -> Result<()> {
    create_namespace(&api, namespace).await?;
    let widgets = format!("{WIDGETS}/namespaces/{namespace}/widgets");
    let owner = |object: &Value| {
        json!([{ "apiVersion": object["apiVersion"], "kind": object["kind"],
                 "name": object["metadata"]["name"], "uid": object["metadata"]["uid"] }])
    };
    let widget = |name: String, owners: Value, size: u64| {
        json!({
            "apiVersion": "e2e.example.com/v1", "kind": "Widget",
            "metadata": { "name": name, "ownerReferences": owners },
            "spec": { "size": size }
        })
    };
    let root = api
        .create(&widgets, &widget("root".into(), json!([]), 0))
        .await?;
    for n in 0..20 {
        let child = widget(format!("child-{n}"), owner(&root), n);
        let mut child = api.create(&widgets, &child).await?;
        let stale = child.clone();
        child["spec"]["size"] = json!(n + 100);
        let path = format!("{widgets}/child-{n}");
        let updated = api.replace(&path, &child).await?;
        ensure(revision(&updated) > revision(&child), || {
            format!("{path}: no new revision")
        })?;
        match api.replace(&path, &stale).await {
            Err(Error::Status { status: 409, .. }) => {}
            other => return fail(format!("{path}: a stale update gave {other:?}")),
        }
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": format!("of-{n}"), "ownerReferences": owner(&updated) }
        });
        api.create(
            &format!("/api/v1/namespaces/{namespace}/configmaps"),
            &config,
        )
        .await?;
    }
    let list = api.get(&widgets).await?;
    let sizes: u64 = items(&list)
        .iter()
        .filter_map(|item| item["spec"]["size"].as_u64())
        .sum();
    ensure(items(&list).len() == 21 && sizes == 2_190, || {
        format!("{} widgets, sizes add up to {sizes}", items(&list).len())
    })?;
    api.delete(&format!("{widgets}/root")).await?;
    for path in [
        widgets.clone(),
        format!("/api/v1/namespaces/{namespace}/configmaps"),
    ] {
        eventually("dependents collected", COLLECTION, || async {
            let list = api.get(&path).await?;
            let left = items(&list)
                .iter()
                .filter(|o| o["metadata"]["name"] != "kube-root-ca.crt");
            match left.count() {
                0 => Ok(Some(())),
                left => fail(format!("{left} left in {path}")),
            }
        })
        .await?;
    }
    Ok(())
}

/// A namespace full of things goes away with all of them.
///
/// # Errors
/// If it stays.
pub async fn namespace_deletion(api: Arc<Api>, namespace: &str) -> Result<()> {
    create_namespace_for_pods(&api, namespace).await?;
    create_deployment(&api, namespace, "doomed", 4).await?;
    for n in 0..30 {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": format!("s-{n}") }
        });
        api.create(&format!("/api/v1/namespaces/{namespace}/secrets"), &secret)
            .await?;
    }
    wait_for_deployment(&api, namespace, "doomed", 4).await?;
    let path = format!("/api/v1/namespaces/{namespace}");
    api.delete(&path).await?;
    eventually("the namespace gone", COLLECTION, || async {
        match api.find(&path).await? {
            None => Ok(Some(())),
            Some(namespace) => fail(namespace["status"].to_string()),
        }
    })
    .await?;
    let left = api.get(&format!("{path}/secrets")).await?;
    ensure(items(&left).is_empty(), || {
        format!("{} secrets left", items(&left).len())
    })
}

/// Lists in pages, from the store and at one revision, while objects are added: a
/// page's revision is that of the first, and no later object shows.
///
/// # Errors
/// If a page is wrong.
pub async fn paged_lists(api: Arc<Api>, namespace: &str) -> Result<()> {
    const OBJECTS: usize = 60;
    create_namespace(&api, namespace).await?;
    let path = format!("/api/v1/namespaces/{namespace}/secrets");
    let secret = |name: String| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name } });
    for n in 0..OBJECTS {
        api.create(&path, &secret(format!("s-{n:03}"))).await?;
    }
    let (mut names, mut continuation, mut first) = (Vec::new(), String::new(), 0);
    loop {
        let page = api
            .get(&format!("{path}?limit=25&continue={continuation}"))
            .await?;
        if first == 0 {
            first = revision(&page);
        }
        ensure(revision(&page) == first, || {
            format!("{} after {first}", revision(&page))
        })?;
        let found = items(&page)
            .iter()
            .filter_map(|o| o["metadata"]["name"].as_str());
        names.extend(found.map(String::from));
        let rest = page["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
        ensure(names.len() + rest as usize == OBJECTS, || {
            format!("{} objects and {rest} remaining, of {OBJECTS}", names.len())
        })?;
        continuation = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if continuation.is_empty() {
            break;
        }
        api.create(&path, &secret(format!("s-000-{}", names.len())))
            .await?;
    }
    let expected: Vec<String> = (0..OBJECTS).map(|n| format!("s-{n:03}")).collect();
    ensure(names == expected, || format!("pages give {names:?}"))
}

/// A streaming list: all objects as events, then a bookmark that says so, at a
/// revision that is not before the last write.
///
/// # Errors
/// If it is not so.
pub async fn watch_list(api: Arc<Api>, namespace: &str) -> Result<()> {
    create_namespace(&api, namespace).await?;
    let path = format!("/api/v1/namespaces/{namespace}/secrets");
    let mut last = 0;
    for n in 0..10 {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": format!("s-{n}") }
        });
        last = revision(&api.create(&path, &secret).await?);
    }
    let query = format!(
        "{path}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true\
         &resourceVersionMatch=NotOlderThan&timeoutSeconds=4"
    );
    let (mut added, mut end) = (0, None);
    watch(&api, &query, |kind, object| {
        let done = &object["metadata"]["annotations"]["k8s.io/initial-events-end"];
        if kind == "ADDED" {
            added += 1;
        } else if kind == "BOOKMARK" && done == "true" && end.is_none() {
            end = Some((added, revision(&object)));
        }
    })
    .await?;
    ensure(
        end.is_some_and(|(added, at)| added == 10 && at >= last),
        || format!("10 objects up to revision {last}; the streaming list ended with {end:?}"),
    )
}

/// Writes an event and returns its path; it is to vanish after the apiserver's
/// event TTL.
///
/// # Errors
/// If the apiserver refuses.
pub async fn create_event(api: &Api, name: &str) -> Result<String> {
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": name },
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "none" },
        "reason": "Tested", "message": "an event that expires", "type": "Normal"
    });
    api.create("/api/v1/namespaces/default/events", &event)
        .await?;
    Ok(format!("/api/v1/namespaces/default/events/{name}"))
}

/// Waits until the event at `path` has gone away by itself.
///
/// # Errors
/// If it does not.
pub async fn event_expires(api: &Api, path: &str) -> Result<()> {
    eventually("the event has expired", CONVERGENCE, || async {
        Ok(api.find(path).await?.is_none().then_some(()))
    })
    .await
}

/// Who holds the leader lease of `component` and when it was renewed last.
///
/// # Errors
/// If there is no such lease.
pub async fn leader(api: &Api, component: &str) -> Result<(String, String)> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{component}");
    let lease = api.get(&path).await?;
    let text = |field: &str| lease["spec"][field].as_str().unwrap_or_default().to_owned();
    Ok((text("holderIdentity"), text("renewTime")))
}

/// Waits until `component` has a leader that renews its lease.
///
/// # Errors
/// If it does not.
pub async fn wait_for_leader(api: &Api, component: &str) -> Result<String> {
    let what = format!("a leader of {component} that renews its lease");
    let last = Mutex::new((String::new(), String::new()));
    eventually(&what, CONVERGENCE, || async {
        let (holder, renewed) = leader(api, component).await?;
        let now = (holder.clone(), renewed.clone());
        let before = std::mem::replace(&mut *last.lock().await, now);
        Ok((!holder.is_empty() && before.0 == holder && before.1 < renewed).then_some(holder))
    })
    .await
}
