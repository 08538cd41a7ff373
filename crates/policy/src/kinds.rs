//! What is known of Kubernetes' kinds: the messages' fields, and which fields of a status its
//! owner computes again.
//!
//! Field numbers are those of the `generated.proto` files of `k8s.io/api` and
//! `k8s.io/apimachinery`. A kind, version or field that is not here is not understood, and
//! what is not understood is durable; so this list may lag behind Kubernetes safely.

use crate::proto::{Shape, mask};

/// `runtime.Unknown`: type, content, content's encoding, content's type.
pub(crate) const ENVELOPE: Shape = Shape::new(&[], &[1, 2, 3, 4], &[]);

/// `runtime.TypeMeta`: API version, kind.
pub(crate) const TYPE_META: Shape = Shape::new(&[], &[1, 2], &[]);

/// `meta/v1.ObjectMeta`.
pub(crate) const OBJECT_META: Shape =
    Shape::new(&[7, 10], &[1, 2, 3, 4, 5, 6, 8, 9], &[11, 12, 13, 14, 17]);

/// Fields of `meta/v1.ObjectMeta`.
pub(crate) mod meta {
    /// When the object was marked for deletion.
    pub(crate) const DELETION_TIMESTAMP: u32 = 9;
    /// How long it may take to end.
    pub(crate) const DELETION_GRACE: u32 = 10;
    /// The labels, a map.
    pub(crate) const LABELS: u32 = 11;
    /// The annotations, a map.
    pub(crate) const ANNOTATIONS: u32 = 12;
    /// The owner references.
    pub(crate) const OWNERS: u32 = 13;
    /// The finalizers.
    pub(crate) const FINALIZERS: u32 = 14;
    /// Who set which field: bookkeeping of server-side apply.
    pub(crate) const MANAGED_FIELDS: u32 = 17;
}

/// `meta/v1.OwnerReference`: kind 1, name 3, uid 4, API version 5, controller 6,
/// blockOwnerDeletion 7.
pub(crate) const OWNER_REFERENCE: Shape = Shape::new(&[6, 7], &[1, 3, 4, 5], &[]);

/// An entry of a `map<string, string>`: key, value.
pub(crate) const MAP_ENTRY: Shape = Shape::new(&[], &[1, 2], &[]);

/// The layout that nearly all kinds share: metadata, spec, status.
pub(crate) const OBJECT: Shape = Shape::new(&[], &[1, 2, 3], &[]);

/// The annotation in which the deployment controller keeps a rollout's number: it is
/// computed again from the ReplicaSets.
pub(crate) const REVISION_ANNOTATION: &[u8] = b"deployment.kubernetes.io/revision";

/// `core/v1.PodSpec` as far as it was examined for what claims a volume or a device. Newer
/// fields (42 and up: scheduling groups, eviction responders) are left out on purpose.
pub(crate) const POD_SPEC: Shape = Shape::new(
    &[4, 5, 11, 12, 13, 21, 25, 27, 30, 35, 37],
    &[
        3, 6, 8, 9, 10, 14, 16, 17, 18, 19, 24, 26, 29, 31, 36, 40, 41,
    ],
    &[1, 2, 7, 15, 20, 22, 23, 28, 32, 33, 34, 38, 39],
);

/// Fields of `core/v1.PodSpec`.
pub(crate) mod pod_spec {
    /// The volumes.
    pub(crate) const VOLUMES: u32 = 1;
    /// The node that the pod is bound to; empty until then.
    pub(crate) const NODE_NAME: u32 = 10;
    /// Claims of devices.
    pub(crate) const RESOURCE_CLAIMS: u32 = 39;
}

/// `core/v1.Volume`: name, source.
pub(crate) const VOLUME: Shape = Shape::new(&[], &[1, 2], &[]);

/// `core/v1.VolumeSource`.
pub(crate) const VOLUME_SOURCE: Shape = Shape::new(
    &[],
    &[
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
        26, 27, 28, 29, 30,
    ],
    &[],
);

/// Sources of volumes that nothing must be claimed or attached for: hostPath 1, emptyDir 2,
/// gitRepo 5, secret 6, nfs 7, downwardAPI 16, configMap 19, projected 26, csi (in line) 28,
/// image 30.
pub(crate) const UNCLAIMED_SOURCES: u64 = mask(&[1, 2, 5, 6, 7, 16, 19, 26, 28, 30]);

/// What is known of a kind's status.
#[derive(Clone, Copy)]
pub(crate) struct Status {
    /// The status message's fields.
    pub(crate) shape: Shape,
    /// Those whose change is authoritative: nobody could compute it again.
    pub(crate) authoritative: u64,
    /// The field of conditions, 0 if there is none.
    pub(crate) conditions: u32,
    /// Types of conditions that their writer computes again; a change of any other is
    /// authoritative. `None`: all are computed again.
    pub(crate) computed_conditions: Option<&'static [&'static [u8]]>,
    /// The field of the phase, 0 if there is none. A phase other than empty, `Pending` and
    /// `Running`, before or after, makes the change authoritative.
    pub(crate) phase: u32,
    /// Whether the object is a pod: then what is written to its spec, labels, annotations and
    /// owners is authoritative too, but for what comes with its binding.
    pub(crate) is_pod: bool,
}

/// A kind whose changes can be judged.
#[derive(Clone, Copy)]
pub(crate) enum Judged {
    /// Metadata, spec and status.
    Status(&'static Status),
    /// A `coordination.k8s.io/v1` Lease.
    Lease,
}

/// Claims made for a Pod, which stand in its status: resourceClaimStatuses 15,
/// extendedResourceClaimStatus 18, nodeAllocatableResourceClaimStatuses 21.
pub(crate) const POD_STATUS_CLAIMS: u64 = mask(&[15, 18, 21]);

/// `core/v1.PodStatus`.
pub(crate) const POD: Status = Status {
    shape: Shape::new(
        &[17],
        &[1, 3, 4, 5, 6, 7, 9, 11, 14, 18, 20],
        &[2, 8, 10, 12, 13, 15, 16, 19, 21, 22],
    ),
    authoritative: POD_STATUS_CLAIMS,
    conditions: 2,
    // The kubelet's and the scheduler's. Not DisruptionTarget, which says why a pod ended;
    // not a readiness gate's, whose writer may set it once.
    computed_conditions: Some(&[
        b"PodScheduled",
        b"Ready",
        b"ContainersReady",
        b"Initialized",
        b"PodReadyToStartContainers",
        b"PodResizePending",
        b"PodResizeInProgress",
        b"AllContainersRestarting",
    ]),
    phase: 1,
    is_pod: true,
};

/// `core/v1.NodeStatus`: capacity 1 and allocatable 2 can be advertised by hand; addresses 5
/// are a cloud controller's, who looks every 5 minutes only; volumesInUse 9 and
/// volumesAttached 10 decide whether a disk may be detached; config 11 is not the kubelet's
/// alone.
const NODE: Status = Status {
    shape: Shape::new(&[], &[3, 6, 7, 11, 13], &[1, 2, 4, 5, 8, 9, 10, 12, 14]),
    authoritative: mask(&[1, 2, 5, 9, 10, 11]),
    conditions: 4,
    // The kubelet's. NetworkUnavailable and those of agents are set once by some writers.
    computed_conditions: Some(&[b"Ready", b"MemoryPressure", b"DiskPressure", b"PIDPressure"]),
    phase: 0,
    is_pod: false,
};

/// `apps/v1.DeploymentStatus`: collisionCount 8 is part of the next ReplicaSet's name.
const DEPLOYMENT: Status = Status {
    shape: Shape::new(&[1, 2, 3, 4, 5, 7, 8, 9], &[], &[6]),
    authoritative: mask(&[8]),
    conditions: 6,
    computed_conditions: Some(&[b"Available", b"Progressing", b"ReplicaFailure"]),
    phase: 0,
    is_pod: false,
};

/// `apps/v1.ReplicaSetStatus`.
const REPLICA_SET: Status = Status {
    shape: Shape::new(&[1, 2, 3, 4, 5, 7], &[], &[6]),
    authoritative: 0,
    conditions: 6,
    computed_conditions: Some(&[b"ReplicaFailure"]),
    phase: 0,
    is_pod: false,
};

/// `apps/v1.DaemonSetStatus`: collisionCount 9.
const DAEMON_SET: Status = Status {
    shape: Shape::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[], &[10]),
    authoritative: mask(&[9]),
    conditions: 10,
    computed_conditions: Some(&[]),
    phase: 0,
    is_pod: false,
};

/// `core/v1.ReplicationControllerStatus`.
const REPLICATION_CONTROLLER: Status = Status {
    shape: Shape::new(&[1, 2, 3, 4, 5], &[], &[6]),
    authoritative: 0,
    conditions: 6,
    computed_conditions: Some(&[b"ReplicaFailure"]),
    phase: 0,
    is_pod: false,
};

/// A condition's type is field 1 in every kind's condition message.
pub(crate) const CONDITION_TYPE: u32 = 1;

/// `coordination/v1.LeaseSpec`: holderIdentity 1, leaseDurationSeconds 2, acquireTime 3,
/// renewTime 4, leaseTransitions 5, strategy 6, preferredHolder 7.
pub(crate) const LEASE_SPEC: Shape = Shape::new(&[2, 5], &[1, 3, 4, 6, 7], &[]);

/// Fields of `coordination/v1.LeaseSpec`.
pub(crate) mod lease_spec {
    /// Who holds it.
    pub(crate) const HOLDER: u32 = 1;
    /// When it was last renewed.
    pub(crate) const RENEW_TIME: u32 = 4;
    /// How a holder is chosen by the control plane, which then compares the renewal time
    /// with the clock.
    pub(crate) const STRATEGY: u32 = 6;
    /// Who should hold it.
    pub(crate) const PREFERRED_HOLDER: u32 = 7;
}

/// What is known of a kind, by the API version and kind that its stored value names.
pub(crate) fn judged(api_version: &[u8], kind: &[u8]) -> Option<Judged> {
    Some(match (api_version, kind) {
        (b"v1", b"Pod") => Judged::Status(&POD),
        (b"v1", b"Node") => Judged::Status(&NODE),
        (b"v1", b"ReplicationController") => Judged::Status(&REPLICATION_CONTROLLER),
        (b"apps/v1", b"Deployment") => Judged::Status(&DEPLOYMENT),
        (b"apps/v1", b"ReplicaSet") => Judged::Status(&REPLICA_SET),
        (b"apps/v1", b"DaemonSet") => Judged::Status(&DAEMON_SET),
        (b"coordination.k8s.io/v1", b"Lease") => Judged::Lease,
        _ => return None,
    })
}

/// Whether a group is Kubernetes' own, so that its objects are stored as protobuf unless the
/// API server was told otherwise. Custom resources may be in groups below `k8s.io` too, with
/// more than one label before it (`gateway.networking.k8s.io`).
pub(crate) fn is_built_in(api_version: &str) -> bool {
    let Some((group, _)) = api_version.split_once('/') else {
        return true;
    };
    match group.strip_suffix(".k8s.io") {
        Some("rbac.authorization" | "flowcontrol.apiserver" | "internal.apiserver") => true,
        Some(name) => !name.contains('.'),
        None => !group.contains('.'),
    }
}
