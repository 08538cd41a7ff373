//! Pods and nodes as they are read from the apiserver: only the fields that are looked at, so that
//! the rest of a large object is skipped and never held.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource;
use kube::core::ObjectMeta;
use placement::Labels;
use serde::{Deserialize, Deserializer, Serialize};

use crate::facts::{Node, Owner, Phase, Pod};
use crate::template::{FAILURES_ANNOTATION, NAME_FIELD};

/// A pod that ran for so long before it failed has not failed in a row.
const RAN_LONG_S: i64 = 600;
const GROUP: &str = "batch.bonavadeur.io/";

/// A pod, as it is read.
#[derive(Resource, Clone, Debug, Serialize, Deserialize)]
#[resource(inherit = core::Pod)]
pub struct SlimPod {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    affinity: Option<core::Affinity>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    start_time: Option<Time>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    state: Option<core::ContainerState>,
}

/// What is read of an object's metadata. Above all `managedFields` is not: it is half of a pod.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<Labels>,
    annotations: Annotations,
    owner_references: Option<Vec<OwnerReference>>,
    deletion_timestamp: Option<Time>,
}

/// The one annotation that is looked at.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "batch.bonavadeur.io/failures")]
    failures: Option<String>,
}

fn slim_metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let slim = SlimMetadata::deserialize(from)?;
    let failures = slim.annotations.failures;
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        labels: slim.labels,
        annotations: failures.map(|n| [(FAILURES_ANNOTATION.to_owned(), n)].into()),
        owner_references: slim.owner_references,
        deletion_timestamp: slim.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

/// The answer to a creation, of which only the metadata is asked for.
#[derive(Debug, Deserialize)]
pub struct Made {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
}

/// A pod that was just created for `node`. `None` if the answer has not what a pod has.
#[must_use]
pub fn made(from: Made, node: &str) -> Option<(String, Pod)> {
    let (namespace, made) = pod(SlimPod {
        metadata: from.metadata,
        spec: PodSpec::default(),
        status: PodStatus::default(),
    })?;
    let node = Some(node.to_owned());
    Some((namespace, Pod { node, ..made }))
}

/// A node, as it is read.
#[derive(Resource, Clone, Debug, Serialize, Deserialize)]
#[resource(inherit = core::Node)]
pub struct SlimNode {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeSpec {
    unschedulable: bool,
    taints: Vec<core::Taint>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    conditions: Vec<Condition>,
}

fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// The only node that a pod's affinity leaves, by name.
fn pinned_to(affinity: &core::Affinity) -> Option<String> {
    let required = affinity
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut names = required.node_selector_terms.iter().map(|term| {
        let fields = term.match_fields.as_ref()?;
        let named = fields
            .iter()
            .find(|f| f.key == "metadata.name" && f.operator == "In")?;
        match named.values.as_deref() {
            Some([name]) => Some(name.clone()),
            _ => None,
        }
    });
    let first = names.next()??;
    names
        .all(|name| name.as_ref() == Some(&first))
        .then_some(first)
}

impl PodStatus {
    fn ran_long(&self) -> bool {
        let Some(started) = &self.start_time else {
            return false;
        };
        let ends = self.container_statuses.iter().filter_map(|container| {
            let ended = container.state.as_ref()?.terminated.as_ref()?;
            ended.finished_at.as_ref()
        });
        ends.map(|end| end.0.as_second()).max().is_some_and(|end| {
            // Both are the kubelet's clock.
            end - started.0.as_second() >= RAN_LONG_S
        })
    }

    fn phase(&self, has_node: bool) -> Phase {
        let is = |type_| find(&self.conditions, type_).is_some_and(|c| c.status == "True");
        match self.phase.as_deref() {
            Some("Failed" | "Succeeded") => Phase::Ended {
                ran_long: self.ran_long(),
            },
            _ if is("Ready") => Phase::Ready,
            _ if has_node => Phase::Starting,
            _ => Phase::Pending {
                unschedulable: find(&self.conditions, "PodScheduled")
                    .filter(|c| c.status == "False")
                    .filter(|c| c.reason.as_deref() == Some("Unschedulable"))
                    .map(|c| c.message.clone().unwrap_or_default()),
            },
        }
    }
}

/// A pod's namespace and what is kept of it. `None` if it is another controller's: nothing of it
/// is ever asked for.
#[must_use]
pub fn pod(from: SlimPod) -> Option<(String, Pod)> {
    let meta = from.metadata;
    let owner = meta.owner_references.unwrap_or_default();
    let owner = owner.into_iter().find(|o| o.controller == Some(true));
    let owner = owner.map(|o| Owner {
        is_seika: o.kind == "Seika" && o.api_version.starts_with(GROUP),
        uid: o.uid,
    });
    if owner.as_ref().is_some_and(|owner| !owner.is_seika) {
        return None;
    }
    let has_node = from.spec.node_name.is_some();
    let failures = meta.annotations.as_ref().and_then(|annotations| {
        let text = annotations.get(FAILURES_ANNOTATION)?;
        text.parse().ok()
    });
    let pod = Pod {
        name: meta.name?,
        uid: meta.uid?,
        labels: meta.labels.unwrap_or_default(),
        owner,
        node: from
            .spec
            .node_name
            .or_else(|| from.spec.affinity.as_ref().and_then(pinned_to)),
        phase: from.status.phase(has_node),
        is_ending: meta.deletion_timestamp.is_some(),
        failures: failures.unwrap_or(0),
    };
    Some((meta.namespace?, pod))
}

/// A node's name and what is kept of it.
#[must_use]
pub fn node(from: SlimNode) -> Option<(String, Node)> {
    let name = from.metadata.name?;
    let mut labels: Labels = from.metadata.labels.unwrap_or_default();
    labels.insert(NAME_FIELD.to_owned(), name.clone());
    let taints = from.spec.taints.into_iter().filter_map(scheduling::taint);
    let node = Node {
        labels,
        taints: taints.collect(),
        is_cordoned: from.spec.unschedulable,
        is_ready: find(&from.status.conditions, "Ready").is_some_and(|c| c.status == "True"),
    };
    Some((name, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Option<(String, Pod)> {
        pod(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_pending_pod_is_on_the_node_that_its_affinity_names() {
        let terms = |names: &[&str]| {
            let terms: Vec<_> = names
                .iter()
                .map(|name| {
                    json!({ "matchFields": [
                    { "key": "metadata.name", "operator": "In", "values": [name] }] })
                })
                .collect();
            let (_, pod) = read(json!({
                "metadata": { "name": "p", "namespace": "n", "uid": "u" },
                "spec": { "affinity": { "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": terms } } } },
                "status": { "phase": "Pending", "conditions": [
                    { "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                      "message": "no room" }] }
            }))
            .unwrap();
            pod
        };
        let pod = terms(&["n1", "n1"]);
        assert_eq!(pod.node.as_deref(), Some("n1"));
        assert_eq!(pod.unschedulable(), Some("no room"));
        assert_eq!(terms(&["n1", "n2"]).node, None);
    }

    #[test]
    fn of_metadata_only_what_is_looked_at_is_read() {
        let (_, pod) = read(json!({
            "metadata": { "name": "p", "namespace": "n", "uid": "u", "labels": { "app": "x" },
                "annotations": { "large": "value", FAILURES_ANNOTATION: "3" },
                // Not as it should be: it is skipped.
                "managedFields": 7, "creationTimestamp": false }
        }))
        .unwrap();
        assert_eq!((pod.failures, pod.labels["app"].as_str()), (3, "x"));
    }

    #[test]
    fn a_pod_that_was_made_is_on_the_node_that_it_was_made_for() {
        let answer = json!({ "kind": "PartialObjectMetadata", "metadata": {
            "name": "p", "namespace": "n", "uid": "u", "ownerReferences": [{
                "apiVersion": "batch.bonavadeur.io/v1", "kind": "Seika", "name": "x",
                "uid": "o", "controller": true }] } });
        let (namespace, pod) = made(serde_json::from_value(answer).unwrap(), "n1").unwrap();
        assert_eq!((namespace.as_str(), pod.node.as_deref()), ("n", Some("n1")));
        assert!(pod.is_live() && pod.owner.is_some_and(|owner| owner.uid == "o"));
    }

    #[test]
    fn pods_of_other_controllers_are_not_kept() {
        let owned = |kind: &str, api: &str| {
            read(json!({ "metadata": {
                "name": "p", "namespace": "n", "uid": "u", "ownerReferences": [
                    { "apiVersion": api, "kind": kind, "name": "x", "uid": "o", "controller": true }
                ] } }))
        };
        assert!(owned("ReplicaSet", "apps/v1").is_none());
        assert!(owned("Seika", "example.com/v1").is_none());
        assert!(owned("Seika", "batch.bonavadeur.io/v1").is_some());
    }

    #[test]
    fn a_pod_that_ran_for_ten_minutes_did_not_fail_in_a_row() {
        let ended = |end: &str| {
            let (_, pod) = read(json!({
                "metadata": { "name": "p", "namespace": "n", "uid": "u" },
                "spec": { "nodeName": "n1" },
                "status": { "phase": "Failed", "startTime": "2026-01-01T00:00:00Z",
                    "containerStatuses": [{ "state": { "terminated": {
                        "exitCode": 1, "finishedAt": end } } }] }
            }))
            .unwrap();
            pod.phase
        };
        let long = Phase::Ended { ran_long: true };
        assert_eq!(ended("2026-01-01T00:10:00Z"), long);
        assert_ne!(ended("2026-01-01T00:09:59Z"), long);
    }
}
