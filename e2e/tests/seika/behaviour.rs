//! What Seika does on a cluster on which nothing fails.

use std::time::{Duration, Instant};

use e2e::kube::steps::Steps;
use e2e::kube::{Error, Result, ensure, eventually, fail};
use serde_json::{Value, json};

use super::documented;
use super::observer::Observer;
use super::rig::{CONVERGES, NAMESPACE, Rig, condition, is_ready, seika, seikas};

/// How long it is looked at what must not happen.
const LOOK: Duration = Duration::from_secs(3);

pub(crate) async fn all(rig: &mut Rig, observer: &Observer, steps: &mut Steps) -> Result<()> {
    schema(rig).await?;
    steps.done("what makes no sense is refused");
    calls(rig).await?;
    steps.done("as many calls as pods, and few statuses");
    // Each has Seikas of its own; most of the time is waiting.
    let (counts, rolls, owns, documented) = tokio::join!(
        counts(rig, observer),
        rolls(rig, observer),
        owns(rig),
        documented::example(rig)
    );
    of(rig, [counts, rolls, owns, documented])?;
    steps.done("numbers a node, columns, nodes taken off the map");
    steps.done("a changed template rolls within its bounds");
    steps.done("adoption, release, orphans");
    let (nodes, misfit, full, volume, failures) = tokio::join!(
        gone_and_cordoned(rig),
        misfit(rig),
        full(rig),
        volume(rig),
        failures(rig)
    );
    of(rig, [nodes, misfit, full, volume, failures])?;
    steps.done("nodes that are gone, cordoned, contradicted or full are said");
    steps.done("failed pods are replaced with back-off");
    // A quota is for all of the namespace.
    refusals(rig).await?;
    steps.done("a quota and an invalid template are said");
    Ok(())
}

/// All results, and whether everything still runs.
fn of<const N: usize>(rig: &mut Rig, results: [Result<()>; N]) -> Result<()> {
    for result in results {
        match (result, rig.check()) {
            (Err(error), Err(other)) => return fail(format!("{error}\nBesides: {other}")),
            (Err(error), _) | (_, Err(error)) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What the controller has called so far: creations, deletions, statuses; and nodes decided about.
async fn called(rig: &Rig) -> Result<[f64; 4]> {
    let write = |what: &str| format!("orlop_seika_writes_total{{what=\"{what}\"}}");
    Ok([
        rig.series(0, &write("create")).await?,
        rig.series(0, &write("delete")).await?,
        rig.series(0, &write("status")).await?,
        rig.series(0, "orlop_seika_nodes_decided_total").await?,
    ])
}

/// Scaling up from nothing: one call a pod, no deletion, no more statuses than their gaps allow, and
/// work in proportion to what happens to pods.
async fn calls(rig: &Rig) -> Result<()> {
    const EACH: u32 = 40;
    let wanted = ["node-0", "node-1", "node-2", "node-3"].map(|node| (node, EACH));
    rig.leader().await?;
    let before = called(rig).await?;
    let began = Instant::now();
    rig.create(&seika("calls", &wanted)).await?;
    rig.converges("calls", &wanted).await?;
    let gaps = began.elapsed().as_secs_f64() / 0.5;
    let now = called(rig).await?;
    let [created, deleted, statuses, decided] = [0, 1, 2, 3].map(|n| now[n] - before[n]);
    let pods = 4.0 * f64::from(EACH);
    println!(
        "{pods} pods: {created} creations, {statuses} statuses, {decided} nodes decided about"
    );
    ensure((created, deleted) == (pods, 0.0), || {
        format!("{created} creations and {deleted} deletions for {pods} pods")
    })?;
    ensure(statuses <= gaps + 2.0, || {
        format!("{statuses} statuses in {gaps} gaps")
    })?;
    // A pod changes some five times on its way: made, seen, bound, started, ready.
    ensure(decided <= 10.0 * pods, || {
        format!("{decided} nodes were decided about")
    })?;
    rig.remove("calls").await
}

/// Each of these is refused by the apiserver.
async fn schema(rig: &Rig) -> Result<()> {
    let change = |path: &str, value: Value| {
        let mut object = seika("refused", &[("node-0", 1)]);
        let (parent, key) = path.rsplit_once('/').unwrap_or(("", path));
        if let Some(parent) = object.pointer_mut(parent) {
            parent[key] = value;
        }
        object
    };
    let expression = json!([{ "key": "app", "operator": "In" }]);
    for (what, object) in [
        (
            "greater than or equal",
            change("/spec/repurika", json!({ "node-0": -1 })),
        ),
        (
            "less than or equal",
            change("/spec/repurika", json!({ "node-0": 1001 })),
        ),
        (
            "of type integer",
            change("/spec/repurika", json!({ "node-0": "1" })),
        ),
        ("select every pod", change("/spec/selector", json!({}))),
        (
            "need values",
            change("/spec/selector/matchExpressions", expression),
        ),
        (
            "nodeName",
            change("/spec/template/spec/nodeName", json!("node-1")),
        ),
        (
            "restartPolicy",
            change("/spec/template/spec/restartPolicy", json!("Never")),
        ),
        ("containers", change("/spec/template/spec", json!({}))),
        (
            "maxSurge",
            change("/spec/rollingUpdate", json!({ "maxSurge": "200%" })),
        ),
        (
            "maxUnavailable",
            change("/spec/rollingUpdate", json!({ "maxUnavailable": -1 })),
        ),
    ] {
        match rig.create(&object).await {
            Err(Error::Status {
                status: 422,
                message,
                ..
            }) => ensure(message.contains(what), || format!("{what}: {message}"))?,
            other => return fail(format!("{what}: {other:?}")),
        }
    }
    Ok(())
}

async fn counts(rig: &Rig, observer: &Observer) -> Result<()> {
    let wanted = [("node-0", 1), ("node-1", 2), ("node-2", 3)];
    observer.allow("counts", &[("node-0", 2), ("node-1", 3), ("node-2", 4)]);
    rig.create(&seika("counts", &wanted)).await?;
    let made = rig.converges("counts", &wanted).await?;
    let status = &made["status"];
    ensure(status["ready"] == "1-2-3/1-2-3", || status.to_string())?;
    ensure(
        status["repurika"] == json!({ "node-0": 1, "node-1": 2, "node-2": 3 }),
        || status.to_string(),
    )?;
    let table = rig.kubectl(&["get", "seika", "counts", "-n", NAMESPACE])?;
    for word in [
        "NODES",
        "READY",
        "UPDATED",
        "REASON",
        "1-2-3/1-2-3",
        "AsWanted",
    ] {
        ensure(table.contains(word), || format!("no {word} in {table}"))?;
    }
    // The selector stays what it is.
    let path = format!("{}/counts", seikas());
    let patch = json!({ "spec": { "selector": { "matchLabels": { "app": "other" } } } });
    match rig.api.patch(&path, &patch).await {
        Err(error) if error.to_string().contains("cannot be changed") => {}
        other => return fail(format!("the selector was changed: {other:?}")),
    }
    // Off the map, and onto it.
    rig.want("counts", &[("node-2", 1), ("node-3", 2)]).await?;
    rig.converges("counts", &[("node-2", 1), ("node-3", 2)])
        .await?;
    let events = rig.kubectl(&["get", "events", "-n", NAMESPACE])?;
    ensure(events.contains("Scaled"), || events.clone())?;
    rig.want("counts", &[]).await?;
    rig.converges("counts", &[]).await?;
    rig.remove("counts").await
}

async fn rolls(rig: &Rig, observer: &Observer) -> Result<()> {
    let wanted = [("node-0", 4), ("node-1", 8)];
    observer.allow("rolls", &[("node-0", 5), ("node-1", 10)]);
    rig.create(&seika("rolls", &wanted)).await?;
    rig.converges("rolls", &wanted).await?;
    let image = |image: &str| {
        let container = json!({ "name": "main", "image": image });
        json!({ "spec": { "template": { "spec": { "containers": [container] } } } })
    };
    let path = format!("{}/rolls", seikas());
    rig.api.patch(&path, &image("hello:2")).await?;
    rig.converges("rolls", &wanted).await?;
    for pod in rig.pods("rolls").await? {
        let has = &pod["spec"]["containers"][0]["image"];
        ensure(has == "hello:2", || format!("{has}"))?;
    }
    // Another change in the middle of one, and another number.
    rig.api.patch(&path, &image("hello:3")).await?;
    rig.api.patch(&path, &image("hello:4")).await?;
    rig.want("rolls", &[("node-0", 4), ("node-1", 3)]).await?;
    rig.converges("rolls", &[("node-0", 4), ("node-1", 3)])
        .await?;
    rig.remove("rolls").await
}

/// A pod that somebody made by hand, on a node.
fn by_hand(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": app } },
        "spec": { "nodeName": "node-0", "containers": [{ "name": "main", "image": "hello:1" }] }
    })
}

async fn owns(rig: &Rig) -> Result<()> {
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let controller = |pod: &Value| pod["metadata"]["ownerReferences"][0]["uid"].clone();
    let kind = |pod: &Value| {
        let kind = pod["metadata"]["ownerReferences"][0]["kind"].as_str();
        kind.unwrap_or_default().to_owned()
    };
    // A matching pod without a controller is adopted, and then it is one of another template.
    rig.api.create(&pods, &by_hand("by-hand", "owns")).await?;
    let configs = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let config =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "owner" } });
    let owner = rig.api.create(&configs, &config).await?;
    let mut anothers = by_hand("anothers", "owns");
    anothers["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "controller": true,
        "uid": owner["metadata"]["uid"]
    }]);
    rig.api.create(&pods, &anothers).await?;
    rig.create(&seika("owns", &[("node-0", 2)])).await?;
    eventually("it has two pods", CONVERGES, || async {
        let pods = rig.pods("owns").await?;
        let owned = pods
            .iter()
            .filter(|pod| is_ready(pod) && kind(pod) == "Seika");
        Ok((owned.count() == 2 && pods.len() == 3).then_some(()))
    })
    .await?;
    let kept = rig.api.get(&format!("{pods}/anothers")).await?;
    ensure(kind(&kept) == "ConfigMap", || kept.to_string())?;
    rig.api.delete(&format!("{pods}/anothers")).await?;
    rig.converges("owns", &[("node-0", 2)]).await?;
    let adopted = rig
        .series(0, "orlop_seika_writes_total{what=\"adopt\"}")
        .await?;
    ensure(adopted == 1.0, || format!("{adopted} pods were adopted"))?;
    // A pod whose labels cease to match is let go, and another takes its place.
    let name = rig.pods("owns").await?[0]["metadata"]["name"].clone();
    let released = format!("{pods}/{}", name.as_str().unwrap_or_default());
    let relabel = json!({ "metadata": { "labels": { "app": "released" } } });
    rig.api.patch(&released, &relabel).await?;
    eventually("the pod is released", CONVERGES, || async {
        let pod = rig.api.get(&released).await?;
        Ok(controller(&pod).is_null().then_some(()))
    })
    .await?;
    rig.converges("owns", &[("node-0", 2)]).await?;
    rig.api.delete(&released).await?;
    // Orphans are adopted by a Seika of the same selector, and kept: the template is the same.
    let uids = |pods: Vec<Value>| {
        let mut uids: Vec<String> = pods
            .iter()
            .map(|p| p["metadata"]["uid"].to_string())
            .collect();
        uids.sort();
        uids
    };
    let before = uids(rig.pods("owns").await?);
    let path = [
        "delete",
        "seika",
        "owns",
        "-n",
        NAMESPACE,
        "--cascade=orphan",
    ];
    rig.kubectl(&path)?;
    rig.create(&seika("owns", &[("node-0", 2)])).await?;
    rig.converges("owns", &[("node-0", 2)]).await?;
    let after = uids(rig.pods("owns").await?);
    ensure(before == after, || format!("{before:?}, then {after:?}"))?;
    rig.remove("owns").await
}

async fn gone_and_cordoned(rig: &Rig) -> Result<()> {
    // A node that is not there.
    rig.create(&seika("gone", &[("node-0", 1), ("no-such-node", 2)]))
        .await?;
    rig.says("gone", "no-such-node", "NodeNotFound").await?;
    // A cordoned one.
    rig.kubectl(&["cordon", "node-1"])?;
    rig.want("gone", &[("node-0", 1), ("node-1", 2)]).await?;
    rig.says("gone", "node-1", "NodeCordoned").await?;
    let now = rig.api.get(&format!("{}/gone", seikas())).await?;
    let usable = condition(&now, "NodesUsable");
    ensure(
        usable["status"] == "False" && usable["reason"] == "NodeCordoned",
        || usable.to_string(),
    )?;
    ensure(rig.pods("gone").await?.len() == 1, || "more pods".into())?;
    rig.kubectl(&["uncordon", "node-1"])?;
    rig.converges("gone", &[("node-0", 1), ("node-1", 2)])
        .await?;
    rig.remove("gone").await
}

/// A template that contradicts the node.
async fn misfit(rig: &Rig) -> Result<()> {
    let mut misfit = seika("misfit", &[("node-0", 1)]);
    misfit["spec"]["template"]["spec"]["nodeSelector"] = json!({ "zone": "moon" });
    rig.create(&misfit).await?;
    let words = rig.says("misfit", "node-0", "TemplateMisfit").await?;
    ensure(words.contains("zone=moon"), || words.clone())?;
    ensure(rig.pods("misfit").await?.is_empty(), || "pods".into())?;
    rig.remove("misfit").await
}

/// A full node: 64 processors, 40 a pod.
async fn full(rig: &Rig) -> Result<()> {
    let mut full = seika("full", &[("node-0", 1)]);
    full["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "40" } });
    rig.create(&full).await?;
    rig.converges("full", &[("node-0", 1)]).await?;
    rig.want("full", &[("node-0", 2)]).await?;
    let words = rig.says("full", "node-0", "Unschedulable").await?;
    ensure(words.contains("Insufficient cpu"), || words.clone())?;
    rig.want("full", &[("node-0", 9)]).await?;
    tokio::time::sleep(LOOK).await;
    let pods = rig.pods("full").await?.len();
    ensure(pods == 2, || format!("{pods} pods on a full node"))?;
    // What waits goes first.
    rig.want("full", &[("node-0", 1)]).await?;
    rig.converges("full", &[("node-0", 1)]).await?;
    rig.remove("full").await
}

/// A volume that is bound to another place: the scheduler's words are passed on, and no more pods are
/// made.
async fn volume(rig: &Rig) -> Result<()> {
    let mut volume = seika("volume", &[("node-0", 3)]);
    volume["spec"]["template"]["spec"]["volumes"] =
        json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "elsewhere" } }]);
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "elsewhere" },
          "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "none", "hostPath": { "path": "/data" },
            "claimRef": { "name": "elsewhere", "namespace": NAMESPACE },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": ["node-3"] }] }] } }
          } },
        { "apiVersion": "v1", "kind": "PersistentVolumeClaim",
          "metadata": { "name": "elsewhere", "namespace": NAMESPACE },
          "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
            "volumeName": "elsewhere", "resources": { "requests": { "storage": "1Gi" } } } }
    ] });
    for object in objects["items"].as_array().into_iter().flatten() {
        let path = match object["kind"].as_str() {
            Some("PersistentVolume") => "/api/v1/persistentvolumes".to_owned(),
            _ => format!("/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"),
        };
        rig.api.create(&path, object).await?;
    }
    rig.create(&volume).await?;
    eventually("the scheduler speaks of the volume", CONVERGES, || async {
        let words = rig.says("volume", "node-0", "Unschedulable").await?;
        Ok(words.to_lowercase().contains("volume").then_some(()))
    })
    .await?;
    let pods = rig.pods("volume").await?.len();
    ensure(pods <= 3, || format!("{pods} pods, three are wanted"))?;
    rig.remove("volume").await
}

async fn refusals(rig: &Rig) -> Result<()> {
    let quotas = format!("/api/v1/namespaces/{NAMESPACE}/resourcequotas");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "few" },
        "spec": { "hard": { "pods": "2" } }
    });
    rig.api.create(&quotas, &quota).await?;
    eventually("the quota is counted", CONVERGES, || async {
        let quota = rig.api.get(&format!("{quotas}/few")).await?;
        Ok((quota["status"]["hard"]["pods"] == "2").then_some(()))
    })
    .await?;
    rig.create(&seika("refused", &[("node-0", 9)])).await?;
    rig.says("refused", "node-0", "CreateFailed").await?;
    let now = rig.api.get(&format!("{}/refused", seikas())).await?;
    let valid = condition(&now, "Valid");
    ensure(
        valid["message"]
            .as_str()
            .unwrap_or_default()
            .contains("quota"),
        || valid.to_string(),
    )?;
    ensure(rig.pods("refused").await?.len() <= 2, || "a quota".into())?;
    rig.api.delete(&format!("{quotas}/few")).await?;
    rig.converges("refused", &[("node-0", 9)]).await?;
    rig.remove("refused").await?;

    // Only the apiserver knows that no pod can be made of this.
    let mut invalid = seika("invalid", &[("node-0", 1)]);
    invalid["spec"]["template"]["spec"]["containers"][0]["name"] = json!("Not A Name");
    rig.create(&invalid).await?;
    rig.says("invalid", "node-0", "CreateFailed").await?;
    let path = format!("{}/invalid", seikas());
    let labels = json!({ "spec": { "template": { "metadata": { "labels": { "app": "x" } },
        "spec": { "containers": [{ "name": "main", "image": "hello:1" }] } } } });
    rig.api.patch(&path, &labels).await?;
    rig.says("invalid", "node-0", "SelectorMismatch").await?;
    let labels = json!({ "spec": { "template": { "metadata": {
        "labels": { "app": "invalid" } } } } });
    rig.api.patch(&path, &labels).await?;
    rig.converges("invalid", &[("node-0", 1)]).await?;
    rig.remove("invalid").await
}

/// Says that a pod has failed, as a kubelet does that evicts it.
async fn fail_pod(rig: &Rig, pod: &Value) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}/status");
    let patch = json!({ "status": { "phase": "Failed", "reason": "Evicted", "conditions": [] } });
    rig.api.patch(&path, &patch).await.map(|_| ())
}

async fn failures(rig: &Rig) -> Result<()> {
    rig.create(&seika("fails", &[("node-0", 2)])).await?;
    rig.converges("fails", &[("node-0", 2)]).await?;
    let annotation = |pod: &Value| {
        let annotations = &pod["metadata"]["annotations"];
        annotations["batch.bonavadeur.io/failures"].clone()
    };
    // Each successor knows how many failed before it, and takes the place of the one that has.
    for failures in 1..=3u32 {
        let before = (failures > 1).then(|| (failures - 1).to_string());
        let pods = rig.pods("fails").await?;
        let victim = pods.iter().find(|pod| match &before {
            Some(before) => annotation(pod) == before.as_str(),
            None => annotation(pod).is_null(),
        });
        let Some(victim) = victim else {
            return fail(format!("no pod after {before:?} failures in {pods:?}"));
        };
        fail_pod(rig, victim).await?;
        let uid = &victim["metadata"]["uid"];
        eventually("the failed pod is replaced", CONVERGES, || async {
            let pods = rig.pods("fails").await?;
            let gone = pods.iter().all(|pod| pod["metadata"]["uid"] != *uid);
            Ok((gone && pods.len() == 2).then_some(()))
        })
        .await?;
    }
    rig.converges("fails", &[("node-0", 2)]).await?;
    let pods = rig.pods("fails").await?;
    ensure(pods.iter().any(|pod| annotation(pod) == "3"), || {
        format!("{pods:?}")
    })?;
    let events = rig.kubectl(&["get", "events", "-n", NAMESPACE])?;
    ensure(events.contains("PodsFailing"), || events.clone())?;
    rig.remove("fails").await
}
