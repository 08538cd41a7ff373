//! The resource `seikas.batch.bonavadeur.io/v1`, as the apiserver stores it.
//!
//! Field names are the first Seika's (`repurika`, `ready`), so that what was written for it works.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Most pods that may be wanted on one node.
pub const MAX_PODS_A_NODE: u32 = 1000;
/// Most nodes of one Seika.
pub const MAX_NODES: u32 = 5000;

/// So many pods on each node.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "batch.bonavadeur.io",
    version = "v1",
    kind = "Seika",
    plural = "seikas",
    namespaced,
    status = "SeikaStatus",
    doc = "Seika keeps so many pods of a template on each node that it names.",
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodeCount",
        description = "Nodes on which pods are wanted."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.ready",
        description = "Ready pods and wanted pods: a node each, or sums if there are many."
    ),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.updatedTotal",
        description = "Pods of the present template."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why not all are ready."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SeikaSpec {
    /// Pods that are wanted on each node, by the node's name (`metadata.name`). Pods on nodes that
    /// are not named are taken away.
    #[serde(default)]
    #[schemars(schema_with = "schema::repurika")]
    pub repurika: BTreeMap<String, u32>,
    /// Which pods are this Seika's. It cannot be changed, and the template's labels have to match
    /// it.
    #[schemars(schema_with = "schema::selector")]
    pub selector: LabelSelector,
    /// The pods. The node is added to their required node affinity; `nodeName` may not be set.
    #[schemars(schema_with = "schema::template")]
    pub template: serde_json::Value,
    /// How pods are replaced on a node after a change of the template.
    #[serde(default)]
    #[schemars(schema_with = "schema::rolling_update")]
    pub rolling_update: RollingUpdate,
}

/// How pods are replaced on a node. Both hold for each node by itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdate {
    /// Pods of a node that may be missing meanwhile: a number or a percentage of what is wanted
    /// there, rounded down. Without it 25%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
    /// Pods that a node may have beyond what is wanted, those that end included: a number or a
    /// percentage, rounded up. Without it 25%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<IntOrString>,
}

/// What the controller has seen.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeikaStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::generation")]
    pub observed_generation: Option<i64>,
    /// Pods on each node now, ready or not, without those that end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::counts")]
    pub repurika: BTreeMap<String, u32>,
    /// Ready and wanted pods: `1-2-3/1-2-3` in the order of the nodes' names, or sums if there are
    /// more than eight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_string")]
    pub ready: Option<String>,
    /// Nodes on which pods are wanted.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub node_count: u32,
    /// Pods that are wanted on all nodes.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub wanted_total: u32,
    /// Ready pods on all nodes.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub ready_total: u32,
    /// Pods of the present template on all nodes.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub updated_total: u32,
    /// Each node on which pods are wanted or are. Those in trouble come first if there is no room
    /// for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::nodes")]
    pub nodes: Vec<NodeStatus>,
    /// Nodes that are not in `nodes` for lack of room.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "schema::count")]
    pub nodes_omitted: u32,
    /// `Ready`, `Valid` and `NodesUsable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Pods of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// Pods that are wanted.
    pub wanted: u32,
    /// Pods that are there, ready or not, without those that end.
    pub current: u32,
    /// Ready ones.
    pub ready: u32,
    /// Those of the present template.
    pub updated: u32,
    /// Why they are not as wanted; absent if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The reason in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}
