//! What Kubernetes' objects say of where pods may run, as [`placement`] has it: taints, tolerations,
//! node affinity.
//!
//! It reads and decides nothing. What a word means that it does not know is its caller's matter.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint as KubeTaint,
    Toleration as KubeToleration,
};
use placement::{Effect, Operator, Requirement, Taint, Toleration};

/// Kubernetes' word for what a taint does; `None` for one that is not known.
#[must_use]
pub fn effect(name: &str) -> Option<Effect> {
    match name {
        "NoSchedule" => Some(Effect::NoSchedule),
        "PreferNoSchedule" => Some(Effect::PreferNoSchedule),
        "NoExecute" => Some(Effect::NoExecute),
        _ => None,
    }
}

/// A node's taint; `None` if its effect is not known.
#[must_use]
pub fn taint(from: KubeTaint) -> Option<Taint> {
    Some(Taint {
        effect: effect(&from.effect)?,
        key: from.key,
        value: from.value.unwrap_or_default(),
    })
}

/// A template's toleration.
#[must_use]
pub fn toleration(from: &KubeToleration) -> Toleration {
    Toleration {
        key: from.key.clone().filter(|key| !key.is_empty()),
        value: match from.operator.as_deref() {
            Some("Exists") => None,
            _ => Some(from.value.clone().unwrap_or_default()),
        },
        effect: from.effect.as_deref().and_then(effect),
    }
}

/// A requirement of a node's label, called `key`; `None` if its operator is not known.
#[must_use]
pub fn requirement(key: String, from: &NodeSelectorRequirement) -> Option<Requirement> {
    let operator = match from.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::Gt,
        "Lt" => Operator::Lt,
        _ => return None,
    };
    Some(Requirement {
        key,
        operator,
        values: from.values.clone().unwrap_or_default(),
    })
}

/// The terms of which a node has to meet one; `None` if any node will do.
#[must_use]
pub fn required_terms(spec: &PodSpec) -> Option<&[NodeSelectorTerm]> {
    let node = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = node
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    Some(&required.node_selector_terms)
}
