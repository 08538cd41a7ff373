//! Every field of every built-in kind's status, named.

use crate::stored::{RELEASES, rules, status_fields, volatile};
use policy::{Change, Class};
use std::collections::BTreeSet;

/// Status fields whose writer computes them again. Everything else in any status of any
/// built-in kind is authoritative, and named in `AUTHORITATIVE`.
const COMPUTED: &[(&str, &str)] = &[
    (
        "v1 Pod",
        "observedGeneration message reason hostIP hostIPs podIP podIPs startTime qosClass \
         containerStatuses initContainerStatuses ephemeralContainerStatuses nominatedNodeName \
         resize allocatedResources resources volumeHealth",
    ),
    (
        "v1 Node",
        "phase daemonEndpoints nodeInfo images runtimeHandlers features declaredFeatures",
    ),
    (
        "v1 ReplicationController",
        "replicas fullyLabeledReplicas readyReplicas availableReplicas observedGeneration",
    ),
    (
        "apps/v1 Deployment",
        "observedGeneration replicas updatedReplicas readyReplicas availableReplicas \
         unavailableReplicas terminatingReplicas",
    ),
    (
        "apps/v1 ReplicaSet",
        "replicas fullyLabeledReplicas readyReplicas availableReplicas observedGeneration \
         terminatingReplicas",
    ),
    (
        "apps/v1 DaemonSet",
        "currentNumberScheduled numberMisscheduled desiredNumberScheduled numberReady \
         observedGeneration updatedNumberScheduled numberAvailable numberUnavailable",
    ),
];

/// Authoritative status fields. For conditions and the phase: of types and values whose
/// writer does not compute them again; tests of objects have those that it does.
const AUTHORITATIVE: &[(&str, &str)] = &[
    (
        "v1 Pod",
        "phase conditions resourceClaimStatuses extendedResourceClaimStatus \
         nodeAllocatableResourceClaimStatuses",
    ),
    (
        "v1 Node",
        "capacity allocatable conditions addresses volumesInUse volumesAttached config",
    ),
    ("v1 ReplicationController", "conditions"),
    ("apps/v1 Deployment", "collisionCount conditions"),
    ("apps/v1 ReplicaSet", "conditions"),
    ("apps/v1 DaemonSet", "collisionCount conditions"),
    (
        "apps/v1 StatefulSet",
        "observedGeneration replicas readyReplicas currentReplicas updatedReplicas \
         currentRevision updateRevision collisionCount conditions availableReplicas",
    ),
    (
        "batch/v1 Job",
        "conditions startTime completionTime active succeeded failed terminating completedIndexes \
         failedIndexes uncountedTerminatedPods ready",
    ),
    (
        "batch/v1 CronJob",
        "active lastScheduleTime lastSuccessfulTime",
    ),
    ("v1 Namespace", "phase conditions"),
    ("v1 Service", "loadBalancer conditions"),
    (
        "v1 PersistentVolume",
        "phase message reason lastPhaseTransitionTime",
    ),
    (
        "v1 PersistentVolumeClaim",
        "phase accessModes capacity conditions allocatedResources allocatedResourceStatuses \
         currentVolumeAttributesClassName modifyVolumeStatus healthStatus",
    ),
    ("v1 ResourceQuota", "hard used"),
    (
        "policy PodDisruptionBudget",
        "observedGeneration disruptedPods disruptionsAllowed currentHealthy desiredHealthy \
         expectedPods conditions",
    ),
    (
        "autoscaling HorizontalPodAutoscaler",
        "observedGeneration lastScaleTime currentReplicas desiredReplicas \
         currentCPUUtilizationPercentage currentMetrics conditions",
    ),
    (
        "certificates.k8s.io CertificateSigningRequest",
        "conditions certificate",
    ),
    (
        "certificates.k8s.io PodCertificateRequest",
        "conditions certificateChain notBefore beginRefreshAt notAfter",
    ),
    (
        "storage.k8s.io VolumeAttachment",
        "attached attachmentMetadata attachError detachError",
    ),
    ("storage.k8s.io CSINode", "storageHealth"),
    (
        "resource.k8s.io ResourceClaim",
        "allocation reservedFor devices deallocationRequested driverName",
    ),
    ("resource.k8s.io PodSchedulingContext", "resourceClaims"),
    ("resource.k8s.io DeviceTaintRule", "conditions"),
    (
        "resource.k8s.io ResourcePoolStatusRequest",
        "conditions pools poolCount",
    ),
    ("networking.k8s.io Ingress", "loadBalancer"),
    ("networking.k8s.io ServiceCIDR", "conditions"),
    (
        "admissionregistration.k8s.io ValidatingAdmissionPolicy",
        "observedGeneration typeChecking conditions",
    ),
    ("flowcontrol.apiserver.k8s.io FlowSchema", "conditions"),
    (
        "flowcontrol.apiserver.k8s.io PriorityLevelConfiguration",
        "conditions",
    ),
    (
        "internal.apiserver.k8s.io StorageVersion",
        "storageVersions commonEncodingVersion conditions",
    ),
    (
        "storagemigration.k8s.io StorageVersionMigration",
        "conditions resourceVersion",
    ),
    (
        "scheduling.k8s.io PodGroup",
        "conditions resourceClaimStatuses",
    ),
    ("scheduling.k8s.io CompositePodGroup", "conditions"),
    (
        "lifecycle.k8s.io Eviction",
        "conditions observedGeneration requesters targetResponders responders",
    ),
    (
        "lifecycle.k8s.io EvictionRequest",
        "conditions observedGeneration",
    ),
];

fn names(table: &[(&str, &str)], kind: &str) -> BTreeSet<String> {
    let fields = table.iter().filter(|(name, _)| *name == kind);
    fields
        .flat_map(|(_, fields)| fields.split_whitespace())
        .map(str::to_string)
        .collect()
}

/// How the tables call a kind. Kinds of which changes can be judged stand with their version:
/// another version of them is not understood.
fn name(api_version: &str, kind: &str) -> String {
    let full = format!("{api_version} {kind}");
    if COMPUTED
        .iter()
        .chain(AUTHORITATIVE)
        .any(|(name, _)| *name == full)
    {
        return full;
    }
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    format!("{group} {kind}")
}

/// Versions that Kubernetes 1.28 does not store any more, of kinds whose newest is judged.
const OLD_VERSIONS: [&str; 4] = [
    "apps/v1beta1",
    "apps/v1beta2",
    "batch/v1beta1",
    "extensions/v1beta1",
];

#[test]
fn every_field_of_every_status_is_judged_as_named() {
    // The rule that weakens most: any status change of anything.
    let status =
        rules("[[rule]]\nprefix = \"/\"\nchange = \"status\"\ndurability = \"volatile\"\n");
    let authoritative = rules(
        "[[rule]]\nprefix = \"/\"\nchange = \"authoritative\"\ndurability = \"durable\"\n\
         [[rule]]\nprefix = \"/\"\ndurability = \"volatile\"\n",
    );
    let mut seen = BTreeSet::new();
    let mut unnamed = BTreeSet::new();
    for release in RELEASES {
        for field in status_fields(release) {
            let is_old = OLD_VERSIONS.contains(&field.api_version.as_str());
            let kind = name(&field.api_version, &field.kind);
            let is_computed = !is_old && names(COMPUTED, &kind).contains(&field.field);
            if !is_old && !is_computed && !names(AUTHORITATIVE, &kind).contains(&field.field) {
                unnamed.insert(format!("{release} {kind} {}", field.field));
            }
            let change = Change::update(&field.old, &field.new);
            let expected = if is_computed {
                volatile(100)
            } else {
                Class::Durable
            };
            for policy in [&status, &authoritative] {
                let explained = policy.explain(b"/x", change);
                let what = format!("{release} {kind} {}:\n{explained}", field.field);
                assert_eq!(policy.class(b"/x", change), expected, "{what}");
            }
            seen.insert((kind, field.field));
        }
    }
    assert_eq!(unnamed, BTreeSet::new(), "fields that no table names");
    for (kind, fields) in COMPUTED.iter().chain(AUTHORITATIVE) {
        for field in fields.split_whitespace() {
            assert!(
                seen.contains(&(kind.to_string(), field.to_string())),
                "{kind} has no {field}"
            );
        }
    }
}

#[test]
fn the_fields_that_the_contract_names_are_authoritative() {
    let named = [
        ("apps/v1 Deployment", "collisionCount"),
        ("v1 Node", "volumesInUse volumesAttached"),
        (
            "v1 Pod",
            "phase resourceClaimStatuses extendedResourceClaimStatus nodeAllocatableResourceClaimStatuses",
        ),
        (
            "batch/v1 Job",
            "uncountedTerminatedPods succeeded failed completedIndexes",
        ),
        ("resource.k8s.io ResourceClaim", "allocation"),
        (
            "certificates.k8s.io CertificateSigningRequest",
            "certificate",
        ),
        ("v1 PersistentVolumeClaim", "phase"),
        ("v1 PersistentVolume", "phase"),
        ("storage.k8s.io VolumeAttachment", "attached"),
        ("v1 ResourceQuota", "used"),
        ("policy PodDisruptionBudget", "disruptedPods"),
        ("v1 Service", "loadBalancer"),
    ];
    let newest: BTreeSet<(String, String)> = status_fields("1.37")
        .into_iter()
        .map(|f| (name(&f.api_version, &f.kind), f.field))
        .collect();
    for (kind, fields) in named {
        for field in fields.split_whitespace() {
            assert!(names(AUTHORITATIVE, kind).contains(field), "{kind} {field}");
            assert!(
                newest.contains(&(kind.to_string(), field.to_string())),
                "{kind} {field} is gone"
            );
        }
    }
}
