//! CustomResourceDefinitions of a wanted size, generated: what costs a store and an apiserver
//! is how large and how deep a schema is, not what it says.

use serde_json::{Map, Value, json};

use super::words::Words;
use crate::Error;
use crate::kube::Result;

/// How deep objects are nested in filled schemas, as containers with probes and environment are.
const DEPTH_MAX: usize = 9;
/// How near a schema comes to its size.
const TOLERANCE: f64 = 0.05;
/// How often a schema is generated anew to come near.
const TRIES: usize = 6;

/// What a definition is to be.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) version: &'static str,
    /// Its length as YAML.
    pub(crate) yaml_bytes: usize,
    /// Properties of its spec that objects use.
    pub(crate) used: Value,
}

impl Definition {
    /// The group of all of them.
    pub(crate) const GROUP: &'static str = "monitoring.coreos.com";

    /// The definition as it is posted.
    ///
    /// # Errors
    /// If it cannot be written as YAML, which is a bug here.
    pub(crate) fn object(&self) -> Result<Value> {
        let mut budget = self.yaml_bytes as f64;
        let mut object = self.filled(budget as usize);
        for _ in 0..TRIES {
            let len = yaml_len(&object)?;
            let wanted = self.yaml_bytes as f64;
            if (len - wanted).abs() <= wanted * TOLERANCE {
                break;
            }
            budget *= wanted / len;
            object = self.filled(budget as usize);
        }
        Ok(object)
    }

    /// A definition whose filling has about `budget` bytes by a rough count.
    fn filled(&self, budget: usize) -> Value {
        let mut words = Words::new(self.plural.len() as u64 * 1_000 + self.yaml_bytes as u64);
        let mut properties = self.used.as_object().cloned().unwrap_or_default();
        let mut left = budget;
        fill(&mut words, &mut properties, &mut left, 0);
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.{}", self.plural, Self::GROUP) },
            "spec": {
                "group": Self::GROUP,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_lowercase()
                },
                "scope": "Namespaced",
                "versions": [{
                    "name": self.version, "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": {
                        "type": "object",
                        "description": words.text(200),
                        "properties": {
                            "apiVersion": { "type": "string" },
                            "kind": { "type": "string" },
                            "metadata": { "type": "object" },
                            "spec": { "type": "object", "properties": properties }
                        }
                    }}
                }]
            }
        })
    }
}

/// The ten definitions of the Prometheus operator, with their lengths as YAML. Those lengths were
/// looked up in `prometheus-operator/prometheus-operator`, `example/prometheus-operator-crd`, in
/// commits of different ages; they grow with each release, so they are rounded.
pub(crate) fn definitions() -> Vec<Definition> {
    let definition = |kind, plural, version, yaml_bytes, used| Definition {
        kind,
        plural,
        version,
        yaml_bytes,
        used,
    };
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let rule = json!({ "type": "object", "required": ["expr"], "properties": {
        "alert": text, "record": text, "expr": text, "for": text,
        "labels": texts, "annotations": texts
    }});
    let rules = json!({ "groups": { "type": "array", "items": { "type": "object",
        "required": ["name"], "properties": {
            "name": text, "interval": text, "rules": { "type": "array", "items": rule }
    }}}});
    let monitor = json!({
        "jobLabel": text,
        "selector": { "type": "object", "properties": { "matchLabels": texts } },
        "namespaceSelector": { "type": "object", "properties": {
            "matchNames": { "type": "array", "items": text } } },
        "endpoints": { "type": "array", "items": { "type": "object", "properties": {
            "port": text, "path": text, "scheme": text, "interval": text,
            "bearerTokenFile": text
        }}}
    });
    let instance = json!({
        "replicas": { "type": "integer", "format": "int32" }, "image": text, "version": text,
        "retention": text, "serviceAccountName": text, "externalUrl": text
    });
    let none = json!({});
    vec![
        definition(
            "AlertmanagerConfig",
            "alertmanagerconfigs",
            "v1alpha1",
            685_000,
            none.clone(),
        ),
        definition(
            "Alertmanager",
            "alertmanagers",
            "v1",
            550_000,
            instance.clone(),
        ),
        definition("PodMonitor", "podmonitors", "v1", 80_000, none.clone()),
        definition("Probe", "probes", "v1", 60_000, none.clone()),
        definition(
            "PrometheusAgent",
            "prometheusagents",
            "v1alpha1",
            690_000,
            none.clone(),
        ),
        definition("Prometheus", "prometheuses", "v1", 700_000, instance),
        definition("PrometheusRule", "prometheusrules", "v1", 8_000, rules),
        definition(
            "ScrapeConfig",
            "scrapeconfigs",
            "v1alpha1",
            685_000,
            none.clone(),
        ),
        definition("ServiceMonitor", "servicemonitors", "v1", 71_000, monitor),
        definition("ThanosRuler", "thanosrulers", "v1", 567_000, none),
    ]
}

/// Length of an object as YAML.
pub(crate) fn yaml_len(object: &Value) -> Result<f64> {
    serde_yaml_ng::to_string(object)
        .map(|text| text.len() as f64)
        .map_err(|error| Error::Argument(error.to_string()))
}

/// Adds properties until `left` bytes are used.
fn fill(words: &mut Words, into: &mut Map<String, Value>, left: &mut usize, depth: usize) {
    // A level has a few properties; only the outermost has as many as there is room for.
    let most = if depth == 0 {
        usize::MAX
    } else {
        3 + words.below(10)
    };
    let mut count = 0;
    while *left > 0 && count < most {
        count += 1;
        let description = match words.below(4) {
            0 => words.text(250),
            _ => words.text(80),
        };
        let indent = 4 * depth + 16;
        let cost = description.len() + 3 * indent + 40;
        *left = left.saturating_sub(cost);
        let mut property = Map::new();
        property.insert("description".into(), description.into());
        let kind = match words.below(10) {
            0..=3 if depth < DEPTH_MAX => {
                let mut nested = Map::new();
                fill(words, &mut nested, left, depth + 1);
                let object = json!({ "type": "object", "properties": nested });
                match words.below(3) {
                    0 => {
                        property.insert("items".into(), object);
                        "array"
                    }
                    _ => {
                        property.insert("properties".into(), object["properties"].clone());
                        "object"
                    }
                }
            }
            4 => "boolean",
            5 => {
                property.insert("format".into(), "int32".into());
                "integer"
            }
            6 => {
                property.insert("enum".into(), json!([words.word(), words.word(), ""]));
                "string"
            }
            7 => {
                property.insert("items".into(), json!({ "type": "string" }));
                "array"
            }
            _ => "string",
        };
        property.insert("type".into(), kind.into());
        into.insert(words.name(), property.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(value: &Value) -> usize {
        match value {
            Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
            Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn there_are_ten_definitions_of_four_megabytes() {
        let all = definitions();
        let bytes: usize = all.iter().map(|definition| definition.yaml_bytes).sum();
        assert_eq!((all.len(), bytes), (10, 4_096_000));
    }

    #[test]
    fn definitions_have_their_size_and_are_deep_and_always_the_same() {
        for yaml_bytes in [60_000, 640_000] {
            let definition = Definition {
                kind: "Thing",
                plural: "things",
                version: "v1",
                yaml_bytes,
                used: json!({ "replicas": { "type": "integer" } }),
            };
            let object = definition.object().unwrap();
            let len = yaml_len(&object).unwrap();
            let off = (len - yaml_bytes as f64).abs() / yaml_bytes as f64;
            assert!(off <= TOLERANCE, "{len} bytes instead of {yaml_bytes}");
            assert_eq!(object, definition.object().unwrap());
            let schema = &object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let spec = &schema["properties"]["spec"]["properties"];
            assert_eq!(spec["replicas"]["type"], "integer");
            assert!(depth(spec) >= 10, "{} levels", depth(spec));
        }
    }
}
