//! Which nodes take no pods of a template, and why.

use std::collections::BTreeMap;

use placement::{Effect, Taint, misfit};

use crate::decide::Obstacle;
use crate::facts::Node;
use crate::index::Nodes;
use crate::reason::Reason;
use crate::template::Template;

/// The taint of a cordoned node.
const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Taints of a node that is not ready or not heard of.
const LOST: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

/// Why `node` takes no pods of `template`; `None` if it takes them, room provided.
#[must_use]
pub fn obstacle(template: &Template, node: Option<&Node>) -> Option<Obstacle> {
    let say = |reason, message: String| Some(Obstacle { reason, message });
    if template.fault.is_some() {
        return template.fault.clone();
    }
    let Some(node) = node else {
        return say(
            Reason::NodeNotFound,
            "there is no node of this name; take it off spec.repurika if it will not come back"
                .into(),
        );
    };
    let mut taints = node.taints.clone();
    let mut cordoned = Taint {
        key: CORDONED.into(),
        value: String::new(),
        effect: Effect::NoSchedule,
    };
    // The field is set before the taint is, and cleared before it.
    taints.retain(|taint| taint.key != CORDONED);
    if node.is_cordoned {
        let only = std::slice::from_ref(&cordoned);
        let mut tolerated = template.constraints.clone();
        tolerated.selector.clear();
        tolerated.affinity = None;
        if misfit(&tolerated, &node.labels, only).is_some() {
            return say(
                Reason::NodeCordoned,
                "the node is cordoned; its pods stay, and no new ones come until it is uncordoned"
                    .into(),
            );
        }
    }
    cordoned.key = String::from(LOST[0]);
    if !node.is_ready && !taints.iter().any(|t| LOST.contains(&t.key.as_str())) {
        taints.push(cordoned);
    }
    let lost = |words: &str| LOST.iter().any(|taint| words.contains(taint));
    match misfit(&template.constraints, &node.labels, &taints) {
        Some(words) if lost(&words) => say(
            Reason::NodeNotReady,
            format!("the node is not ready: {words}"),
        ),
        Some(words) => say(Reason::TemplateMisfit, words),
        None => None,
    }
}

/// The obstacles among `names`.
#[must_use]
pub fn obstacles<'a>(
    template: &Template,
    names: impl Iterator<Item = &'a str>,
    nodes: &Nodes,
) -> BTreeMap<String, Obstacle> {
    names
        .filter_map(|name| Some((name.to_owned(), obstacle(template, nodes.get(name))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SeikaSpec;
    use crate::template::NAME_FIELD;
    use serde_json::{Value, json};

    fn template(spec: Value) -> Template {
        let mut pods = json!({
            "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [] }
        });
        for (key, value) in spec.as_object().unwrap() {
            pods["spec"][key] = value.clone();
        }
        let spec: SeikaSpec = serde_json::from_value(json!({
            "selector": { "matchLabels": { "app": "x" } }, "template": pods
        }))
        .unwrap();
        Template::of(&spec)
    }

    fn node() -> Node {
        let labels = [("zone", "a"), (NAME_FIELD, "n1")];
        Node {
            labels: labels.map(|(k, v)| (k.into(), v.into())).into(),
            is_ready: true,
            ..Node::default()
        }
    }

    fn reason(spec: Value, node: &Node) -> Option<Reason> {
        obstacle(&template(spec), Some(node)).map(|o| o.reason)
    }

    #[test]
    fn a_ready_node_takes_pods() {
        assert_eq!(reason(json!({}), &node()), None);
    }

    #[test]
    fn a_cordoned_node_takes_only_what_tolerates_that() {
        let mut cordoned = node();
        cordoned.is_cordoned = true;
        assert_eq!(reason(json!({}), &cordoned), Some(Reason::NodeCordoned));
        let tolerates = json!({ "tolerations": [
            { "key": CORDONED, "operator": "Exists", "effect": "NoSchedule" }] });
        assert_eq!(reason(tolerates, &cordoned), None);
    }

    #[test]
    fn a_node_that_is_not_ready_takes_none_with_or_without_its_taint() {
        let mut lost = node();
        lost.is_ready = false;
        assert_eq!(reason(json!({}), &lost), Some(Reason::NodeNotReady));
        lost.is_ready = true;
        lost.taints.push(Taint {
            key: LOST[1].into(),
            value: String::new(),
            effect: Effect::NoExecute,
        });
        assert_eq!(reason(json!({}), &lost), Some(Reason::NodeNotReady));
    }

    #[test]
    fn a_template_that_contradicts_a_node_is_said() {
        let here = node();
        for (spec, fits) in [
            (json!({ "nodeSelector": { "zone": "b" } }), false),
            (json!({ "nodeSelector": { "zone": "a" } }), true),
            (by_affinity("matchExpressions", "zone", "b"), false),
            (by_affinity("matchFields", "metadata.name", "n2"), false),
            (by_affinity("matchFields", "metadata.name", "n1"), true),
        ] {
            let found = reason(spec.clone(), &here);
            let expected = (!fits).then_some(Reason::TemplateMisfit);
            assert_eq!(found, expected, "{spec}");
        }
    }

    fn by_affinity(kind: &str, key: &str, value: &str) -> Value {
        json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { kind: [{ "key": key, "operator": "In", "values": [value] }] }
            ] } } } })
    }

    #[test]
    fn a_node_that_is_gone_takes_none() {
        let found = obstacle(&template(json!({})), None).unwrap();
        assert_eq!(found.reason, Reason::NodeNotFound);
    }
}
