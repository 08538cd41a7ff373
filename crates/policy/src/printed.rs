//! What `kubectl get -o json` prints, in the form of what is stored.
//!
//! An API server stores built-in kinds as protobuf and prints them as JSON. Here the printed
//! object gets the form of a stored one, for explanations: each field under its number, as far
//! as a rule may look, and all that is below that as its JSON. So every rule judges a change as
//! it judges the same change of the stored values. Nobody else could read the result.

use crate::kinds;
use crate::unclear::Unclear;
use serde_json::{Map, Value};

/// The names of a message's fields in JSON: the first has number 1, and so on; an empty one is
/// a number that is not in use. They are those of Kubernetes' `generated.proto` files.
type Names = &'static [&'static str];
/// The number of a field that is not among the names: no message has it, so it is a doubt, as a
/// field that this version does not know is in a stored value.
const UNKNOWN: u32 = 63;

const OBJECT_META: Names = &[
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "",
    "",
    "managedFields",
];

const OWNER_REFERENCE: Names = &[
    "kind",
    "",
    "name",
    "uid",
    "apiVersion",
    "controller",
    "blockOwnerDeletion",
];

/// Without the fields that [`kinds::POD_SPEC`] leaves out.
const POD_SPEC: Names = &[
    "volumes",
    "containers",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "activeDeadlineSeconds",
    "dnsPolicy",
    "nodeSelector",
    "serviceAccountName",
    "serviceAccount",
    "nodeName",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "securityContext",
    "imagePullSecrets",
    "hostname",
    "subdomain",
    "affinity",
    "schedulerName",
    "initContainers",
    "automountServiceAccountToken",
    "tolerations",
    "hostAliases",
    "priorityClassName",
    "priority",
    "dnsConfig",
    "shareProcessNamespace",
    "readinessGates",
    "runtimeClassName",
    "enableServiceLinks",
    "preemptionPolicy",
    "overhead",
    "topologySpreadConstraints",
    "ephemeralContainers",
    "setHostnameAsFQDN",
    "os",
    "hostUsers",
    "schedulingGates",
    "resourceClaims",
    "resources",
    "hostnameOverride",
];

const VOLUME_SOURCE: Names = &[
    "hostPath",
    "emptyDir",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "azureFile",
    "configMap",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "projected",
    "storageos",
    "csi",
    "ephemeral",
    "image",
];

const POD_STATUS: Names = &[
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "podIP",
    "startTime",
    "containerStatuses",
    "qosClass",
    "initContainerStatuses",
    "nominatedNodeName",
    "podIPs",
    "ephemeralContainerStatuses",
    "resize",
    "resourceClaimStatuses",
    "hostIPs",
    "observedGeneration",
    "extendedResourceClaimStatus",
    "allocatedResources",
    "resources",
    "nodeAllocatableResourceClaimStatuses",
    "volumeHealth",
];

const NODE_STATUS: Names = &[
    "capacity",
    "allocatable",
    "phase",
    "conditions",
    "addresses",
    "daemonEndpoints",
    "nodeInfo",
    "images",
    "volumesInUse",
    "volumesAttached",
    "config",
    "runtimeHandlers",
    "features",
    "declaredFeatures",
];

const REPLICATION_CONTROLLER_STATUS: Names = &[
    "replicas",
    "fullyLabeledReplicas",
    "observedGeneration",
    "readyReplicas",
    "availableReplicas",
    "conditions",
];

const DEPLOYMENT_STATUS: Names = &[
    "observedGeneration",
    "replicas",
    "updatedReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "conditions",
    "readyReplicas",
    "collisionCount",
    "terminatingReplicas",
];

const REPLICA_SET_STATUS: Names = &[
    "replicas",
    "fullyLabeledReplicas",
    "observedGeneration",
    "readyReplicas",
    "availableReplicas",
    "conditions",
    "terminatingReplicas",
];

const DAEMON_SET_STATUS: Names = &[
    "currentNumberScheduled",
    "numberMisscheduled",
    "desiredNumberScheduled",
    "numberReady",
    "observedGeneration",
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
    "collisionCount",
    "conditions",
];

const LEASE_SPEC: Names = &[
    "holderIdentity",
    "leaseDurationSeconds",
    "acquireTime",
    "renewTime",
    "leaseTransitions",
    "strategy",
    "preferredHolder",
];

/// What is looked at in a kind: fields of its spec, if any, and of its status. The kinds are
/// those of [`kinds::judged`].
fn parts(api_version: &str, kind: &str) -> Option<(Option<Names>, Names)> {
    Some(match (api_version, kind) {
        ("v1", "Pod") => (Some(POD_SPEC), POD_STATUS),
        ("v1", "Node") => (None, NODE_STATUS),
        ("v1", "ReplicationController") => (None, REPLICATION_CONTROLLER_STATUS),
        ("apps/v1", "Deployment") => (None, DEPLOYMENT_STATUS),
        ("apps/v1", "ReplicaSet") => (None, REPLICA_SET_STATUS),
        ("apps/v1", "DaemonSet") => (None, DAEMON_SET_STATUS),
        ("coordination.k8s.io/v1", "Lease") => (Some(LEASE_SPEC), &[]),
        _ => return None,
    })
}

/// What an API server prints of an object, in the form of a stored value: for
/// [`Policy::explain`](crate::Policy::explain), not to be stored. Of two such values every rule
/// says what it says of the stored ones. Custom resources stay JSON.
///
/// # Errors
/// If it is no Kubernetes object.
pub fn as_stored(printed: &Value) -> Result<Vec<u8>, Unclear> {
    let members = printed.as_object().ok_or(Unclear::Format)?;
    let text = |name: &'static str| {
        let value = members.get(name).and_then(Value::as_str);
        value.ok_or(Unclear::Missing(name))
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let metadata = members.get("metadata").and_then(Value::as_object);
    let mut metadata = metadata.ok_or(Unclear::Missing("metadata"))?.clone();
    // The store knows an object's revision; it is not in the value.
    metadata.remove("resourceVersion");
    if !kinds::is_built_in(api_version) {
        let mut object = members.clone();
        object.insert("metadata".to_owned(), Value::Object(metadata));
        return Ok(Value::Object(object).to_string().into_bytes());
    }
    let mut object = Message::default();
    object.bytes(1, &message(&metadata, OBJECT_META));
    let rest = members
        .iter()
        .filter(|(name, _)| !["apiVersion", "kind", "metadata"].contains(&name.as_str()));
    match parts(api_version, kind) {
        Some((spec_names, status_names)) => {
            for (name, value) in rest {
                match (name.as_str(), value, spec_names) {
                    ("spec", Value::Object(spec), Some(names)) => {
                        object.bytes(2, &message(spec, names));
                    }
                    ("spec", spec, _) => object.bytes(2, &opaque(spec)),
                    ("status", Value::Object(status), _) => {
                        object.bytes(3, &message(status, status_names));
                    }
                    (_, value, _) => object.bytes(UNKNOWN, &opaque(value)),
                }
            }
        }
        None => {
            let rest: Map<String, Value> = rest.map(|(n, v)| (n.clone(), v.clone())).collect();
            object.bytes(2, &opaque(&Value::Object(rest)));
        }
    }
    let mut types = Message::default();
    types.bytes(1, api_version.as_bytes());
    types.bytes(2, kind.as_bytes());
    let mut envelope = Message::default();
    envelope.bytes(1, &types.end());
    envelope.bytes(2, &object.end());
    envelope.bytes(3, b"");
    envelope.bytes(4, b"");
    Ok([b"k8s\0", &envelope.end()[..]].concat())
}

/// A protobuf message that is being written: numbers, and encoded fields.
#[derive(Default)]
struct Message(Vec<(u32, Vec<u8>)>);

impl Message {
    fn field(&mut self, number: u32, wire_type: u32, value: u64, content: &[u8]) {
        let mut field = Vec::new();
        varint(u64::from(number << 3 | wire_type), &mut field);
        varint(value, &mut field);
        field.extend_from_slice(content);
        self.0.push((number, field));
    }

    fn bytes(&mut self, number: u32, content: &[u8]) {
        self.field(number, 2, content.len() as u64, content);
    }

    fn integer(&mut self, number: u32, value: u64) {
        self.field(number, 0, value, &[]);
    }

    /// The message, its fields in the order of their numbers.
    fn end(mut self) -> Vec<u8> {
        self.0.sort_by_key(|(number, _)| *number);
        self.0.into_iter().flat_map(|(_, field)| field).collect()
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A message of a JSON object's members.
fn message(members: &Map<String, Value>, names: Names) -> Vec<u8> {
    let mut message = Message::default();
    for (name, value) in members {
        let at = names.iter().position(|known| known == name);
        let number = at.map_or(UNKNOWN, |at| at as u32 + 1);
        match value {
            Value::Null => {}
            Value::Bool(value) => message.integer(number, u64::from(*value)),
            Value::Number(value) => match value.as_i64() {
                Some(value) => message.integer(number, value as u64),
                None => message.bytes(number, value.to_string().as_bytes()),
            },
            Value::Array(items) => {
                for item in items {
                    message.bytes(number, &part(name, item));
                }
            }
            Value::Object(entries) if matches!(name.as_str(), "labels" | "annotations") => {
                for (key, value) in entries {
                    let mut entry = Message::default();
                    entry.bytes(1, key.as_bytes());
                    entry.bytes(2, &opaque(value));
                    message.bytes(number, &entry.end());
                }
            }
            value => message.bytes(number, &part(name, value)),
        }
    }
    message.end()
}

/// A field's content, or one item's of a list: a message where rules look into it.
fn part(name: &str, value: &Value) -> Vec<u8> {
    let Value::Object(members) = value else {
        return opaque(value);
    };
    match name {
        "ownerReferences" => message(members, OWNER_REFERENCE),
        "conditions" => {
            let mut condition = Message::default();
            if let Some(kind) = members.get("type") {
                condition.bytes(1, &opaque(kind));
            }
            condition.bytes(2, &opaque(value));
            condition.end()
        }
        "volumes" => {
            let mut source = members.clone();
            let mut volume = Message::default();
            if let Some(name) = source.remove("name") {
                volume.bytes(1, &opaque(&name));
            }
            volume.bytes(2, &message(&source, VOLUME_SOURCE));
            volume.end()
        }
        _ => opaque(value),
    }
}

/// What no rule looks into, and text.
fn opaque(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        value => value.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_kubernetes_numbers() {
        let fields = include_str!("../testdata/1.37/status-fields.txt");
        let mut compared = 0;
        for line in fields.lines() {
            let [api_version, kind, field, number, _, _] = line.split('\t').collect::<Vec<_>>()[..]
            else {
                panic!("{line}");
            };
            let judged = kinds::judged(api_version.as_bytes(), kind.as_bytes());
            let parts = parts(api_version, kind);
            assert_eq!(parts.is_some(), judged.is_some(), "{api_version} {kind}");
            let Some((_, names)) = parts else {
                continue;
            };
            let at = names.iter().position(|name| *name == field);
            assert_eq!(
                at.map(|at| (at + 1).to_string()).as_deref(),
                Some(number),
                "{api_version} {kind} {field}"
            );
            compared += 1;
        }
        assert!(compared > 60, "{compared}");
        assert_eq!(OBJECT_META[16], "managedFields");
        assert_eq!(POD_SPEC[38], "resourceClaims");
        assert_eq!(VOLUME_SOURCE[29], "image");
    }
}
