//! What the loop needs of Kubernetes' objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec,
};
use kube::api::{ApiResource, DynamicObject};
use placement::{Constraints, Labels, NodeState, Requirement, Resources};

use crate::quantity::{millis, whole};

/// Label of the Seikas that the loop decides about, with the value [`ON`].
pub const LABEL: &str = "orlop.io/placement";
/// Its value.
pub const ON: &str = "on";
/// Annotation: requests that a pod serves at once; 1 without it.
pub const CONCURRENCY: &str = "orlop.io/concurrency";
/// Annotation: most pods on a node.
pub const MAX_PER_NODE: &str = "orlop.io/max-per-node";
/// Annotation: fewest pods in all.
pub const MIN_PODS: &str = "orlop.io/min-pods";
/// Annotation: most pods in all.
pub const MAX_PODS: &str = "orlop.io/max-pods";
/// Annotation: `namespace/service` as the series of traffic have it; the Seika's own without it.
pub const TRAFFIC_OF: &str = "orlop.io/traffic-of";
/// Label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The kind Seika, for the API's client.
#[must_use]
pub fn seika_kind() -> ApiResource {
    ApiResource {
        group: "batch.bonavadeur.io".into(),
        version: "v1".into(),
        api_version: "batch.bonavadeur.io/v1".into(),
        kind: "Seika".into(),
        plural: "seikas".into(),
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Whether it is ready, and what it takes.
    pub state: NodeState,
    /// What it has to give.
    pub allocatable: Resources,
    /// Images that it holds.
    pub images: BTreeSet<String>,
    /// Its zone; empty without one.
    pub zone: String,
}

/// What is kept of a node.
#[must_use]
pub fn node(node: &Node) -> NodeFacts {
    let labels: Labels = node.metadata.labels.clone().unwrap_or_default();
    let zone = labels.get(ZONE).cloned().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.as_ref();
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let taints = spec.taints.unwrap_or_default();
    let state = if !ready || node.metadata.deletion_timestamp.is_some() {
        NodeState::Lost
    } else if spec.unschedulable == Some(true) {
        NodeState::Cordoned
    } else {
        NodeState::Ready {
            labels,
            taints: taints.into_iter().filter_map(scheduling::taint).collect(),
        }
    };
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    let amount = |name: &str, read: fn(&str) -> Option<u64>| {
        allocatable
            .and_then(|all| all.get(name))
            .and_then(|quantity| read(&quantity.0))
            .unwrap_or(0)
    };
    let images = status.and_then(|s| s.images.as_ref());
    NodeFacts {
        state,
        allocatable: Resources {
            cpu_millis: amount("cpu", millis),
            memory_bytes: amount("memory", whole),
            pods: amount("pods", whole),
        },
        images: images
            .into_iter()
            .flatten()
            .filter_map(|image| image.names.clone())
            .flatten()
            .collect(),
        zone,
    }
}

/// A pod that has a node and is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its node.
    pub node: String,
    /// What it asks for.
    pub request: Resources,
    /// `namespace/name` of the Seika that owns it.
    pub seika: Option<String>,
    /// It is ready, and stays.
    pub ready: bool,
}

/// What is kept of a pod; nothing of one that takes no room on a node.
#[must_use]
pub fn pod(pod: &Pod) -> Option<PodFacts> {
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.clone().filter(|name| !name.is_empty())?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let owners = pod.metadata.owner_references.iter().flatten();
    let seika = owners.filter(|o| o.kind == "Seika").find_map(|o| {
        let namespace = pod.metadata.namespace.as_deref()?;
        Some(format!("{namespace}/{}", o.name))
    });
    let conditions = status.and_then(|s| s.conditions.as_ref());
    let is_ready =
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    Some(PodFacts {
        node,
        request: request(spec),
        seika,
        ready: is_ready && pod.metadata.deletion_timestamp.is_none(),
    })
}

/// What a pod asks for: its containers together, or the largest init container if that is more;
/// those that go on running beside it count with the containers.
#[must_use]
pub fn request(spec: &PodSpec) -> Resources {
    let of = |container: &Container| {
        let requests = container.resources.as_ref();
        let requests = requests.and_then(|r| r.requests.as_ref());
        let amount = |name: &str, read: fn(&str) -> Option<u64>| {
            requests
                .and_then(|all| all.get(name))
                .and_then(|quantity| read(&quantity.0))
                .unwrap_or(0)
        };
        (amount("cpu", millis), amount("memory", whole))
    };
    let (mut cpu_millis, mut memory_bytes) = (0_u64, 0_u64);
    for container in &spec.containers {
        let (cpu, memory) = of(container);
        cpu_millis = cpu_millis.saturating_add(cpu);
        memory_bytes = memory_bytes.saturating_add(memory);
    }
    let (mut most_cpu, mut most_memory, mut beside_cpu, mut beside_memory) = (0_u64, 0, 0, 0);
    for container in spec.init_containers.iter().flatten() {
        let (cpu, memory) = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            beside_cpu += cpu;
            beside_memory += memory;
        } else {
            most_cpu = most_cpu.max(cpu + beside_cpu);
            most_memory = most_memory.max(memory + beside_memory);
        }
    }
    let overhead = |name: &str, read: fn(&str) -> Option<u64>| {
        let overhead = spec.overhead.as_ref().and_then(|all| all.get(name));
        overhead.and_then(|quantity| read(&quantity.0)).unwrap_or(0)
    };
    Resources {
        cpu_millis: cpu_millis
            .saturating_add(beside_cpu)
            .max(most_cpu)
            .saturating_add(overhead("cpu", millis)),
        memory_bytes: memory_bytes
            .saturating_add(beside_memory)
            .max(most_memory)
            .saturating_add(overhead("memory", whole)),
        pods: 1,
    }
}

/// A Seika that is decided about.
#[derive(Clone, Debug, PartialEq)]
pub struct SeikaFacts {
    /// Its UID: a Seika of the same name that is made later is another one.
    pub uid: String,
    /// Which writing of its spec this is.
    pub generation: i64,
    /// Wanted pods by node; nodes with none are left out.
    pub wanted: BTreeMap<String, u32>,
    /// Its pods, or why they cannot be decided about.
    pub asks: Result<Asks, String>,
}

/// What a Seika asks of a decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asks {
    /// `namespace/service` in the series of traffic.
    pub traffic_of: String,
    /// Requests that a pod serves at once.
    pub concurrency: f64,
    /// Most pods on a node.
    pub max_per_node: Option<u32>,
    /// Fewest pods.
    pub min_pods: u32,
    /// Most pods.
    pub max_pods: Option<u32>,
    /// Where the template may run.
    pub constraints: Constraints,
    /// What a pod asks for.
    pub request: Resources,
    /// The template's images.
    pub images: Vec<String>,
}

/// What is kept of a Seika.
#[must_use]
pub fn seika(object: &DynamicObject) -> SeikaFacts {
    let spec = &object.data["spec"];
    let wanted = spec["repurika"].as_object().map(|map| {
        map.iter()
            .filter_map(|(node, count)| Some((node.clone(), u32::try_from(count.as_u64()?).ok()?)))
            .filter(|(_, count)| *count > 0)
            .collect()
    });
    SeikaFacts {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or(0),
        wanted: wanted.unwrap_or_default(),
        asks: asks(object),
    }
}

fn asks(object: &DynamicObject) -> Result<Asks, String> {
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    let number = |name: &str, least: u32| match annotations.get(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u32>() {
            Ok(value) if value >= least => Ok(Some(value)),
            _ => Err(format!(
                "annotation {name} is {text:?}; it must be a whole number from {least}"
            )),
        },
    };
    let concurrency = match annotations.get(CONCURRENCY) {
        None => 1.0,
        Some(text) => text
            .parse::<f64>()
            .ok()
            .filter(|value| value.is_finite() && *value > 0.0)
            .ok_or_else(|| {
                format!("annotation {CONCURRENCY} is {text:?}; it must be a number above 0")
            })?,
    };
    let (min_pods, max_pods) = (number(MIN_PODS, 0)?.unwrap_or(0), number(MAX_PODS, 1)?);
    if max_pods.is_some_and(|most| most < min_pods) {
        return Err(format!("annotation {MIN_PODS} is above {MAX_PODS}"));
    }
    let template: PodTemplateSpec = serde_json::from_value(object.data["spec"]["template"].clone())
        .map_err(|error| format!("its template cannot be read: {error}"))?;
    let spec = template.spec.unwrap_or_default();
    Ok(Asks {
        traffic_of: match annotations.get(TRAFFIC_OF) {
            Some(name) => name.clone(),
            None => follow::key(object),
        },
        concurrency,
        max_per_node: number(MAX_PER_NODE, 1)?,
        min_pods,
        max_pods,
        constraints: constraints(&spec)?,
        request: request(&spec),
        images: spec
            .containers
            .iter()
            .filter_map(|container| container.image.clone())
            .collect(),
    })
}

fn constraints(spec: &PodSpec) -> Result<Constraints, String> {
    let terms = scheduling::required_terms(spec);
    let affinity = terms.map(|terms| terms.iter().map(term).collect::<Result<Vec<_>, _>>());
    let tolerations = spec.tolerations.iter().flatten();
    Ok(Constraints {
        selector: spec.node_selector.clone().unwrap_or_default(),
        affinity: affinity.transpose()?,
        tolerations: tolerations.map(scheduling::toleration).collect(),
    })
}

fn term(term: &NodeSelectorTerm) -> Result<Vec<Requirement>, String> {
    if term
        .match_fields
        .as_ref()
        .is_some_and(|all| !all.is_empty())
    {
        return Err("its node affinity has matchFields, which placement does not know".into());
    }
    let expressions = term.match_expressions.iter().flatten();
    expressions
        .map(|expression| {
            scheduling::requirement(expression.key.clone(), expression).ok_or_else(|| {
                let operator = &expression.operator;
                format!("its node affinity has the operator {operator:?}")
            })
        })
        .collect()
}
