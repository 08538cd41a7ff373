//! The pod template: its hash, what it asks of a node, and the pods that are made of it.

use aws_lc_rs::digest;
use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PodTemplateSpec,
};
use kube::core::{Selector, SelectorExt};
use placement::{Constraints, Requirement, Term};
use serde_json::{Map, Value, json};

use crate::api::{RollingUpdate, SeikaSpec};
use crate::decide::{Create, Obstacle, Rolling, Share};
use crate::reason::Reason;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Label of each pod: the hash of the template that it was made of.
pub const HASH_LABEL: &str = "batch.bonavadeur.io/template-hash";
/// Label of each pod: its node, as the first Seika had it. Absent if a label cannot hold the name.
pub const NODE_LABEL: &str = "bonavadeur.io/seika-hostname";
/// Annotation of a pod: how often its predecessors failed in a row.
pub const FAILURES_ANNOTATION: &str = "batch.bonavadeur.io/failures";
/// The pseudo label that stands for a node's name in [`Constraints`]. No label is called so.
pub const NAME_FIELD: &str = "field:metadata.name";

const DEFAULT_SHARE: Share = Share::Percent(25);
/// Label values have at most so many bytes.
const MAX_LABEL_BYTES: usize = 63;
/// What a pod's name keeps of the Seika's; with the rest it stays below Kubernetes' 253.
const MAX_NAME_BYTES: usize = 220;
const HASH_DIGITS: usize = 10;

/// A Seika's template and selector, read once.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its hash: what pods of it have as a label.
    pub hash: String,
    /// Which pods are the Seika's.
    pub selector: Selector,
    /// What it asks of a node.
    pub constraints: Constraints,
    /// Why no pods can be made of it.
    pub fault: Option<Obstacle>,
}

impl Template {
    /// Reads a spec.
    #[must_use]
    pub fn of(spec: &SeikaSpec) -> Self {
        let fault = |reason, message: String| Some(Obstacle { reason, message });
        let mut template = Template {
            hash: hash(&spec.template),
            selector: Selector::default(),
            constraints: Constraints::default(),
            fault: None,
        };
        let parsed: PodTemplateSpec = match serde_json::from_value(spec.template.clone()) {
            Ok(parsed) => parsed,
            Err(error) => {
                let text = format!("the template is no pod template: {error}");
                template.fault = fault(Reason::InvalidTemplate, text);
                PodTemplateSpec::default()
            }
        };
        let labels = parsed.metadata.and_then(|meta| meta.labels);
        match Selector::try_from(spec.selector.clone()) {
            Ok(selector) if selector.selects_all() => {
                template.fault = fault(
                    Reason::SelectorMismatch,
                    "the selector is empty: it would select every pod".into(),
                );
            }
            Ok(selector) => {
                if !selector.matches(&labels.unwrap_or_default()) && template.fault.is_none() {
                    template.fault = fault(
                        Reason::SelectorMismatch,
                        "the selector does not match the template's labels: correct \
                         spec.template.metadata.labels"
                            .into(),
                    );
                }
                template.selector = selector;
            }
            Err(error) => {
                template.fault = fault(
                    Reason::SelectorMismatch,
                    format!("the selector cannot be read: {error}"),
                );
            }
        }
        template.constraints = parsed.spec.as_ref().map(constraints).unwrap_or_default();
        template
    }

    /// Whether a pod with these labels is selected. A selector that cannot be read selects none.
    #[must_use]
    pub fn selects(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        !self.selector.selects_all() && self.selector.matches(labels)
    }
}

/// The digits of a SHA-256 that tell things apart.
fn digits(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut text: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    text.truncate(HASH_DIGITS);
    text
}

/// Objects with their keys in order, and without what is not set, so that one template has one
/// hash.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
            entries.sort_by_key(|(key, _)| *key);
            let sorted = entries.into_iter().map(|(k, v)| (k.clone(), canonical(v)));
            Value::Object(sorted.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// The hash of a template.
#[must_use]
pub fn hash(template: &Value) -> String {
    digits(canonical(template).to_string().as_bytes())
}

/// A spec's rolling update. The schema lets nothing else through than numbers and percentages; what
/// came in before it did counts as not given.
#[must_use]
pub fn rolling(update: &RollingUpdate) -> Rolling {
    let share = |given: &Option<IntOrString>| match given {
        Some(IntOrString::Int(n)) => u32::try_from(*n).map_or(DEFAULT_SHARE, Share::Pods),
        Some(IntOrString::String(text)) => text
            .strip_suffix('%')
            .and_then(|number| number.parse().ok())
            .map_or(DEFAULT_SHARE, Share::Percent),
        None => DEFAULT_SHARE,
    };
    Rolling {
        max_unavailable: share(&update.max_unavailable),
        max_surge: share(&update.max_surge),
    }
}

fn requirement(from: &NodeSelectorRequirement, is_field: bool) -> Option<Requirement> {
    let key = match is_field {
        true => format!("field:{}", from.key),
        false => from.key.clone(),
    };
    scheduling::requirement(key, from)
}

fn term(from: &NodeSelectorTerm) -> Term {
    let labels = from.match_expressions.iter().flatten();
    let fields = from.match_fields.iter().flatten();
    labels
        .filter_map(|r| requirement(r, false))
        .chain(fields.filter_map(|r| requirement(r, true)))
        .collect()
}

fn constraints(spec: &PodSpec) -> Constraints {
    let tolerations = spec.tolerations.iter().flatten();
    Constraints {
        selector: spec.node_selector.clone().unwrap_or_default(),
        affinity: scheduling::required_terms(spec).map(|terms| terms.iter().map(term).collect()),
        tolerations: tolerations.map(scheduling::toleration).collect(),
    }
}

/// Who a pod is made for.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'a> {
    /// The Seika's name.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its uid.
    pub uid: &'a str,
}

impl Owned<'_> {
    /// What the names of its pods on `node` begin with: a number follows. The uid is in it, so a
    /// Seika of the same name that came later does not meet pods that an earlier one left.
    #[must_use]
    pub fn prefix(&self, node: &str) -> String {
        let end = self.name.floor_char_boundary(MAX_NAME_BYTES);
        let name = self.name[..end].trim_end_matches(['.', '-']);
        let hash = digits(format!("{}/{node}", self.uid).as_bytes());
        format!("{name}-{hash}-")
    }

    /// The reference that makes a pod its own.
    #[must_use]
    pub fn reference(&self) -> Value {
        json!({
            "apiVersion": "batch.bonavadeur.io/v1", "kind": "Seika",
            "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": true
        })
    }
}

/// Puts `over` over `base`: objects are joined, all else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

const TERMS: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/\
    nodeSelectorTerms";

/// The pod to create, as the apiserver takes it. It is bound to its node by affinity and not by
/// `nodeName`, so that the scheduler looks whether there is room.
#[must_use]
pub fn pod(template: &Value, hash: &str, owner: Owned<'_>, create: &Create) -> Value {
    let node = &create.node;
    let here = json!([{ "key": "metadata.name", "operator": "In", "values": [node] }]);
    // The terms are alternatives: each has to say the node. One name is taken for a field, so a
    // term that names another node than this one goes.
    let terms = template.pointer(TERMS).and_then(Value::as_array);
    let terms = match terms.filter(|terms| !terms.is_empty()) {
        Some(terms) => terms
            .iter()
            .filter(|term| may_be_on(term, node))
            .cloned()
            .map(|mut term| {
                merge(&mut term, json!({ "matchFields": here }));
                term
            })
            .collect(),
        None => vec![json!({ "matchFields": here })],
    };
    let mut pod = template.clone();
    let required = json!({ "nodeSelectorTerms": terms });
    merge(
        &mut pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{}{}", owner.prefix(node), create.slot),
                "namespace": owner.namespace,
                "labels": { HASH_LABEL: hash },
                "ownerReferences": [owner.reference()]
            },
            "spec": { "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": required
            } } }
        }),
    );
    if node.len() <= MAX_LABEL_BYTES {
        merge(
            &mut pod,
            json!({ "metadata": { "labels": { NODE_LABEL: node } } }),
        );
    }
    if create.failures > 0 {
        let failures = create.failures.to_string();
        merge(
            &mut pod,
            json!({ "metadata": { "annotations": { FAILURES_ANNOTATION: failures } } }),
        );
    }
    pod
}

/// Whether a term leaves the node's name open or gives this one. An empty term matches nothing, and
/// would match if a name were added.
fn may_be_on(term: &Value, node: &str) -> bool {
    let term: NodeSelectorTerm = match serde_json::from_value(term.clone()) {
        Ok(term) => term,
        Err(_) => return false,
    };
    let parsed = self::term(&term);
    let name = [(NAME_FIELD.to_owned(), node.to_owned())].into();
    let by_name = parsed.iter().filter(|r| r.key == NAME_FIELD);
    !parsed.is_empty() && by_name.into_iter().all(|r| r.met_by(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owned<'_> = Owned {
        name: "hello",
        namespace: "default",
        uid: "u-1",
    };

    fn create(node: &str, failures: u32) -> Create {
        Create {
            node: node.into(),
            slot: 3,
            failures,
        }
    }

    #[test]
    fn a_hash_does_not_depend_on_the_order_of_keys_and_stays_the_same() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":2,"d":null}}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"b":{"c":2},"a":1}"#).unwrap();
        assert_eq!(hash(&one), hash(&two));
        // A release that changes this replaces every pod of every user.
        assert_eq!(hash(&one), "007f2c1c10");
        assert_ne!(hash(&one), hash(&json!({"a": 1, "b": {"c": 3}})));
    }

    #[test]
    fn a_pod_is_bound_by_affinity_and_not_by_node_name() {
        let template = json!({
            "metadata": { "labels": { "app": "x" } },
            "spec": { "containers": [{ "name": "c" }], "futureField": 1 }
        });
        let made = pod(&template, "h", OWNER, &create("n1", 2));
        let spec = &made["spec"];
        assert_eq!(spec.get("nodeName"), None);
        assert_eq!(spec["futureField"], 1);
        let required =
            &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(
            required["nodeSelectorTerms"],
            json!([{ "matchFields": [
                { "key": "metadata.name", "operator": "In", "values": ["n1"] }
            ] }])
        );
        let metadata = &made["metadata"];
        assert_eq!(metadata["labels"]["app"], "x");
        assert_eq!(metadata["labels"][HASH_LABEL], "h");
        assert_eq!(metadata["labels"][NODE_LABEL], "n1");
        assert_eq!(metadata["annotations"][FAILURES_ANNOTATION], "2");
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1");
        let name = metadata["name"].as_str().unwrap();
        assert!(name.starts_with("hello-") && name.ends_with("-3"), "{name}");
    }

    #[test]
    fn terms_of_the_template_are_kept_and_each_gets_the_node() {
        let template = json!({ "spec": { "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] },
                { "matchFields": [
                    { "key": "metadata.name", "operator": "In", "values": ["other"] }] },
                {},
            ] }
        } } } });
        let made = pod(&template, "h", OWNER, &create("n1", 0));
        let terms = &made["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"];
        assert_eq!(
            terms,
            &json!([{
                "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }],
                "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }]
            }])
        );
        assert_eq!(made["metadata"].get("annotations"), None);
    }

    #[test]
    fn names_are_short_enough_and_differ_by_node_and_owner() {
        let long = "x".repeat(219) + ".yyy";
        let owner = Owned {
            name: &long,
            ..OWNER
        };
        let prefix = owner.prefix(&"n".repeat(253));
        assert!(prefix.len() < 245 && !prefix.contains(".-"), "{prefix}");
        assert_ne!(OWNER.prefix("a"), OWNER.prefix("b"));
        assert_ne!(
            OWNER.prefix("a"),
            Owned {
                uid: "u-2",
                ..OWNER
            }
            .prefix("a")
        );
    }
}
