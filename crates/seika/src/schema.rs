//! Parts of the resource's structural schema that the types do not say.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::api::{MAX_NODES, MAX_PODS_A_NODE};

pub(crate) fn repurika(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MAX_NODES,
        "additionalProperties": {
            "type": "integer", "format": "int32", "minimum": 0, "maximum": MAX_PODS_A_NODE
        }
    })
}

pub(crate) fn selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": { "type": "string", "maxLength": 63 }
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 64,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "minLength": 1, "maxLength": 317 },
                        "operator": {
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"]
                        },
                        "values": {
                            "type": "array",
                            "maxItems": 256,
                            "x-kubernetes-list-type": "atomic",
                            "items": { "type": "string", "maxLength": 63 }
                        }
                    },
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] \
                            ? has(self.values) && size(self.values) > 0 \
                            : !has(self.values) || size(self.values) == 0",
                        "message": "In and NotIn need values, Exists and DoesNotExist take none"
                    }]
                }
            }
        },
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [
            { "rule": "self == oldSelf", "message": "the selector cannot be changed" },
            {
                "rule": "(has(self.matchLabels) && size(self.matchLabels) > 0) \
                    || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                "message": "the selector may not be empty: it would select every pod"
            }
        ]
    })
}

pub(crate) fn template(_: &mut SchemaGenerator) -> Schema {
    let texts = json_schema!({ "type": "object", "additionalProperties": { "type": "string" } });
    json_schema!({
        "type": "object",
        "required": ["metadata", "spec"],
        "properties": {
            "metadata": {
                "type": "object",
                "required": ["labels"],
                "properties": { "labels": texts, "annotations": texts }
            },
            "spec": {
                "type": "object",
                "description": "The spec of the pods, as in a Deployment. It is checked when the \
                    first pod is created.",
                "required": ["containers"],
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "containers": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": { "name": { "type": "string", "minLength": 1 } },
                            "x-kubernetes-preserve-unknown-fields": true
                        }
                    },
                    "restartPolicy": { "type": "string", "enum": ["Always"] },
                    "nodeName": {
                        "type": "string",
                        "maxLength": 0,
                        "description": "May not be set: spec.repurika names the nodes."
                    }
                }
            }
        }
    })
}

fn share(description: &str) -> Schema {
    json_schema!({
        "description": description,
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "minimum": 0,
        "maximum": MAX_PODS_A_NODE,
        "pattern": "^(100|[0-9]{1,2})%$",
        "default": "25%"
    })
}

pub(crate) fn rolling_update(_: &mut SchemaGenerator) -> Schema {
    let unavailable = share(
        "Pods of a node that may be missing meanwhile: a number, or a percentage of what is wanted \
         there, rounded down.",
    );
    let surge = share(
        "Pods that a node may have beyond what is wanted, those that end included: a number, or a \
         percentage, rounded up.",
    );
    json_schema!({
        "type": "object",
        "default": {},
        "properties": { "maxUnavailable": unavailable, "maxSurge": surge }
    })
}

pub(crate) fn generation(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64" })
}

pub(crate) fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0 })
}

pub(crate) fn optional_string(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string" })
}

pub(crate) fn counts(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "additionalProperties": count(generator)
    })
}

pub(crate) fn nodes(generator: &mut SchemaGenerator) -> Schema {
    let count = count(generator);
    json_schema!({
        "type": "array",
        // One field for server-side apply: with each node's fields its record would be larger than
        // the status.
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "description": "The node's name." },
                "wanted": count,
                "current": count,
                "ready": count,
                "updated": count,
                "reason": {
                    "type": "string",
                    "description": "Why the pods are not as wanted; absent if they are."
                },
                "message": { "type": "string", "description": "The reason in words." }
            }
        }
    })
}

pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 }
            }
        }
    })
}
