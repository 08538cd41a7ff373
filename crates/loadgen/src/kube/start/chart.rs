//! The objects of an install: as many of each kind, about as large, as the Helm chart
//! kube-prometheus-stack makes with its default values.
//!
//! Kinds, numbers and sizes were counted in the chart's templates and definitions
//! (`prometheus-community/helm-charts`, `charts/kube-prometheus-stack`); nothing of their
//! content is used. Names and texts are generated and always the same.

use serde_json::{Value, json};

use super::words::Words;

/// Rule files that are not for Windows and not superseded.
const RULES: usize = 35;
/// Dashboards, each in a ConfigMap.
const DASHBOARDS: usize = 28;
/// Jobs that ServiceMonitors are for: the control plane's parts, kubelet, DNS, exporters, and
/// the stack itself.
const MONITORED: [&str; 13] = [
    "alertmanager",
    "apiserver",
    "coredns",
    "kube-controller-manager",
    "kube-etcd",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
    "operator",
    "prometheus",
    "grafana",
    "kube-state-metrics",
    "node-exporter",
];
/// Of them, those with a Service of the chart.
const SERVED: [&str; 11] = [
    "alertmanager",
    "coredns",
    "kube-controller-manager",
    "kube-etcd",
    "kube-proxy",
    "kube-scheduler",
    "operator",
    "prometheus",
    "grafana",
    "kube-state-metrics",
    "node-exporter",
];
const DEPLOYMENTS: [&str; 3] = ["operator", "kube-state-metrics", "grafana"];
const ACCOUNTS: [&str; 6] = [
    "operator",
    "prometheus",
    "alertmanager",
    "grafana",
    "kube-state-metrics",
    "node-exporter",
];
const CLUSTER_ROLES: [&str; 4] = ["operator", "prometheus", "grafana", "kube-state-metrics"];
/// Helm keeps chart, values and manifest, compressed, in a Secret of this many characters of
/// base64: an estimate; what is certain is that it is below a Secret's 1 MiB.
const RELEASE_CHARS: usize = 500_000;

/// One object to create.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) kind: &'static str,
    /// The path of its collection.
    pub(crate) collection: String,
    pub(crate) name: String,
    pub(crate) body: Value,
}

impl Object {
    /// Its own path.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }
}

/// One install of the chart under a release's name.
#[derive(Debug)]
pub(crate) struct Release {
    name: String,
    words: Words,
}

impl Release {
    pub(crate) fn new(name: &str) -> Release {
        let seed = name
            .bytes()
            .fold(1, |seed, byte| seed * 31 + u64::from(byte));
        Release {
            name: name.to_owned(),
            words: Words::new(seed),
        }
    }

    fn object(
        &self,
        kind: &'static str,
        api: &str,
        plural: &str,
        part: &str,
        rest: Value,
    ) -> Object {
        let name = format!("{}-{part}", self.name);
        let namespaced = !plural.starts_with("cluster") && !plural.ends_with("configurations");
        let group = match api {
            "v1" => "/api/v1".to_owned(),
            _ => format!("/apis/{api}"),
        };
        let collection = match namespaced {
            true => format!("{group}/namespaces/default/{plural}"),
            false => format!("{group}/{plural}"),
        };
        let mut body = json!({
            "apiVersion": api, "kind": kind,
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/instance": self.name,
                    "app.kubernetes.io/managed-by": "Helm",
                    "app.kubernetes.io/part-of": "kube-prometheus-stack",
                    "app.kubernetes.io/component": part,
                    "chart": "kube-prometheus-stack",
                    "release": self.name,
                    "heritage": "Helm"
                },
                "annotations": {
                    "meta.helm.sh/release-name": self.name,
                    "meta.helm.sh/release-namespace": "default"
                }
            }
        });
        if let (Some(body), Value::Object(rest)) = (body.as_object_mut(), rest) {
            body.extend(rest);
        }
        Object {
            kind,
            collection,
            name,
            body,
        }
    }

    fn selector(&self, part: &str) -> Value {
        json!({ "app.kubernetes.io/name": part, "app.kubernetes.io/instance": self.name })
    }

    fn pod_template(&self, part: &str, restart: &str) -> Value {
        json!({
            "metadata": { "labels": self.selector(part) },
            "spec": {
                "serviceAccountName": "default",
                "restartPolicy": restart,
                "containers": [{
                    "name": part, "image": format!("quay.io/stack/{part}:v1"),
                    "args": (0..12).map(|n| format!("--{part}.argument-{n}=value")).collect::<Vec<_>>(),
                    "resources": { "requests": { "cpu": "10m", "memory": "32Mi" } }
                }]
            }
        })
    }

    /// What keeps the release itself; `revision` makes its content another.
    pub(crate) fn record(&self, revision: u64) -> Object {
        let mut words = Words::new(revision);
        let mut object = self.object(
            "Secret",
            "v1",
            "secrets",
            "record",
            json!({
                "type": "helm.sh/release.v1",
                "data": { "release": words.noise(RELEASE_CHARS / 4 * 4) }
            }),
        );
        object.name = format!("sh.helm.release.v1.{}.v1", self.name);
        object.body["metadata"]["name"] = object.name.clone().into();
        object
    }

    /// A hook of the chart: an account with its roles, and a Job that runs with them. Helm
    /// makes them one after the other, waits for the Job, and removes them all.
    pub(crate) fn hook(&self, job: &str) -> Vec<Object> {
        let part = "admission";
        let subjects = json!([{
            "kind": "ServiceAccount", "name": format!("{}-{part}", self.name),
            "namespace": "default"
        }]);
        let rules =
            json!([{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create"] }]);
        let role = |kind: &str| {
            json!({
                "apiGroup": "rbac.authorization.k8s.io", "kind": kind,
                "name": format!("{}-{part}", self.name)
            })
        };
        let rbac = "rbac.authorization.k8s.io/v1";
        vec![
            self.object("ServiceAccount", "v1", "serviceaccounts", part, json!({})),
            self.object(
                "ClusterRole",
                rbac,
                "clusterroles",
                part,
                json!({ "rules": rules }),
            ),
            self.object(
                "ClusterRoleBinding",
                rbac,
                "clusterrolebindings",
                part,
                json!({ "roleRef": role("ClusterRole"), "subjects": subjects }),
            ),
            self.object("Role", rbac, "roles", part, json!({ "rules": rules })),
            self.object(
                "RoleBinding",
                rbac,
                "rolebindings",
                part,
                json!({ "roleRef": role("Role"), "subjects": subjects }),
            ),
            self.object(
                "Job",
                "batch/v1",
                "jobs",
                &format!("{part}-{job}"),
                json!({ "spec": { "template": self.pod_template(part, "OnFailure") } }),
            ),
        ]
    }

    /// All other objects, kind by kind in the order in which Helm installs kinds.
    pub(crate) fn objects(&mut self) -> Vec<Vec<Object>> {
        let rbac = "rbac.authorization.k8s.io/v1";
        let mut kinds = Vec::new();
        kinds.push(
            ACCOUNTS
                .iter()
                .map(|part| {
                    self.object(
                        "ServiceAccount",
                        "v1",
                        "serviceaccounts",
                        part,
                        json!({ "automountServiceAccountToken": true }),
                    )
                })
                .collect(),
        );
        kinds.push(
            ["alertmanager", "grafana"]
                .iter()
                .map(|part| {
                    self.object(
                        "Secret",
                        "v1",
                        "secrets",
                        part,
                        json!({ "stringData": { "config": "route: {}", "password": "not one" } }),
                    )
                })
                .collect(),
        );
        kinds.push(self.config_maps());
        kinds.push(
            CLUSTER_ROLES
                .iter()
                .map(|part| self.cluster_role(part))
                .collect(),
        );
        kinds.push(CLUSTER_ROLES.iter().map(|part| {
            let name = format!("{}-{part}", self.name);
            self.object("ClusterRoleBinding", rbac, "clusterrolebindings", part, json!({
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
                "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "default" }]
            }))
        }).collect());
        kinds.push(vec![self.object(
            "Role",
            rbac,
            "roles",
            "grafana",
            json!({ "rules": [] }),
        )]);
        kinds.push(vec![self.object(
            "RoleBinding",
            rbac,
            "rolebindings",
            "grafana",
            json!({
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": "Role",
                    "name": format!("{}-grafana", self.name)
                }
            }),
        )]);
        kinds.push(
            SERVED
                .iter()
                .map(|part| {
                    self.object(
                        "Service",
                        "v1",
                        "services",
                        part,
                        json!({ "spec": {
                            "selector": self.selector(part),
                            "ports": [{ "name": "http-metrics", "port": 8080, "targetPort": 8080 }]
                        }}),
                    )
                })
                .collect(),
        );
        kinds.push(vec![self.object(
            "DaemonSet",
            "apps/v1",
            "daemonsets",
            "node-exporter",
            json!({ "spec": {
                "selector": { "matchLabels": self.selector("node-exporter") },
                "template": self.pod_template("node-exporter", "Always")
            }}),
        )]);
        kinds.push(
            DEPLOYMENTS
                .iter()
                .map(|part| {
                    self.object(
                        "Deployment",
                        "apps/v1",
                        "deployments",
                        part,
                        json!({ "spec": {
                            "replicas": 1,
                            "selector": { "matchLabels": self.selector(part) },
                            "template": self.pod_template(part, "Always")
                        }}),
                    )
                })
                .collect(),
        );
        for (kind, plural) in [
            (
                "MutatingWebhookConfiguration",
                "mutatingwebhookconfigurations",
            ),
            (
                "ValidatingWebhookConfiguration",
                "validatingwebhookconfigurations",
            ),
        ] {
            kinds.push(vec![self.webhook(kind, plural)]);
        }
        let monitoring = "monitoring.coreos.com/v1";
        for (kind, plural, part) in [
            ("Alertmanager", "alertmanagers", "alertmanager"),
            ("Prometheus", "prometheuses", "prometheus"),
        ] {
            kinds.push(vec![self.object(
                kind,
                monitoring,
                plural,
                part,
                json!({ "spec": {
                    "replicas": 1, "image": format!("quay.io/stack/{part}:v1"), "version": "v1",
                    "retention": "10d", "serviceAccountName": format!("{}-{part}", self.name)
                }}),
            )]);
        }
        kinds.push(self.rules());
        kinds.push(MONITORED.iter().map(|part| {
            self.object("ServiceMonitor", monitoring, "servicemonitors", part, json!({ "spec": {
                "jobLabel": "jobLabel",
                "selector": { "matchLabels": { "app": part, "release": self.name } },
                "namespaceSelector": { "matchNames": ["kube-system"] },
                "endpoints": [{ "port": "http-metrics", "scheme": "https", "path": "/metrics",
                    "bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token" }]
            }}))
        }).collect());
        kinds
    }

    /// Dashboards of 8 to 43 KB, and what configures the one who shows them.
    fn config_maps(&mut self) -> Vec<Object> {
        let mut all = Vec::new();
        for n in 0..DASHBOARDS {
            let text = self.words.text(8_000 + n % 8 * 5_000);
            all.push(self.object(
                "ConfigMap",
                "v1",
                "configmaps",
                &format!("dashboard-{n}"),
                json!({ "data": { format!("dashboard-{n}.json"): text } }),
            ));
        }
        for part in ["grafana", "grafana-config-dashboards", "grafana-datasource"] {
            all.push(self.object(
                "ConfigMap",
                "v1",
                "configmaps",
                part,
                json!({ "data": { "config": self.words.clone().text(800) } }),
            ));
        }
        all
    }

    fn cluster_role(&self, part: &str) -> Object {
        let groups = [
            "",
            "apps",
            "batch",
            "networking.k8s.io",
            "storage.k8s.io",
            "policy",
        ];
        let rules: Vec<_> = groups
            .iter()
            .map(|group| {
                json!({
                    "apiGroups": [group],
                    "resources": ["pods", "nodes", "services", "deployments", "jobs", "configmaps"],
                    "verbs": ["get", "list", "watch"]
                })
            })
            .collect();
        self.object(
            "ClusterRole",
            "rbac.authorization.k8s.io/v1",
            "clusterroles",
            part,
            json!({ "rules": rules }),
        )
    }

    /// No pod of a hollow node answers a webhook, so it selects no object.
    fn webhook(&self, kind: &'static str, plural: &str) -> Object {
        self.object(
            kind,
            "admissionregistration.k8s.io/v1",
            plural,
            "admission",
            json!({
                "webhooks": [{
                    "name": "prometheusrules.monitoring.example.com",
                    "failurePolicy": "Ignore", "sideEffects": "None", "timeoutSeconds": 10,
                    "admissionReviewVersions": ["v1"],
                    "clientConfig": { "service": {
                        "namespace": "default", "name": format!("{}-operator", self.name),
                        "path": "/admission"
                    }},
                    "objectSelector": { "matchLabels": { "none-has": "this" } },
                    "rules": [{
                        "apiGroups": ["monitoring.coreos.com"], "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE"], "resources": ["prometheusrules"]
                    }]
                }]
            }),
        )
    }

    /// Rules of 1 to 18 KB a file.
    fn rules(&mut self) -> Vec<Object> {
        (0..RULES).map(|n| {
            let rules: Vec<_> = (0..2 + n % 9 * 4).map(|rule| json!({
                "alert": format!("Alert{n}x{rule}"), "for": "15m",
                "expr": self.words.text(150),
                "labels": { "severity": "warning" },
                "annotations": { "description": self.words.text(140), "summary": self.words.text(40) }
            })).collect();
            self.object("PrometheusRule", "monitoring.coreos.com/v1", "prometheusrules",
                &format!("rules-{n}"),
                json!({ "spec": { "groups": [{ "name": format!("group-{n}"), "rules": rules }] } }))
        }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_install_has_the_numbers_of_the_documentation() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut bytes = 0;
        let mut release = Release::new("prometheus");
        for object in release.objects().iter().flatten() {
            *counts.entry(object.kind).or_default() += 1;
            bytes += object.body.to_string().len();
            assert!(object.path().starts_with("/api"), "{}", object.path());
        }
        assert_eq!(counts.values().sum::<usize>(), 116, "{counts:?}");
        assert_eq!((counts["ConfigMap"], counts["PrometheusRule"]), (31, 35));
        assert_eq!((counts["ServiceMonitor"], counts["Service"]), (13, 11));
        assert!((800_000..1_200_000).contains(&bytes), "{bytes}");
        assert_eq!(release.hook("create").len(), 6);
    }

    #[test]
    fn releases_do_not_get_in_each_others_way() {
        let names = |name| -> Vec<String> {
            let mut release = Release::new(name);
            let objects = release.objects().into_iter().flatten();
            objects.map(|object| object.path()).collect()
        };
        let second = names("prometheus1");
        assert!(
            names("prometheus")
                .iter()
                .all(|path| !second.contains(path))
        );
    }
}
