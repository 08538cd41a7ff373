//! The gRPC methods of etcd 3.7, and the `grpc_server_*` series over them.
//!
//! Facts: the `service` definitions in etcd 3.7.3's `api/etcdserverpb/rpc.proto`
//! and gRPC's `health.proto`; the series and labels of go-grpc-middleware's
//! Prometheus provider, which etcd registers every method with at start, so
//! that all are there at zero.

use std::sync::Arc;

use crate::cells::{Histogram, Run};
use crate::registry::{Kind, Origin, Registry, Source};
use crate::{exponential, shape};

/// How many messages flow each way in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrpcKind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl GrpcKind {
    /// The `grpc_type` label.
    pub const fn label(self) -> &'static str {
        match self {
            GrpcKind::Unary => "unary",
            GrpcKind::ServerStream => "server_stream",
            GrpcKind::BidiStream => "bidi_stream",
        }
    }
}

/// The names of the gRPC status codes 0 to 16, as in the `grpc_code` label.
pub const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The code `Unknown`, which codes that gRPC does not define count as.
const UNKNOWN: u8 = 2;

macro_rules! methods {
    ($($variant:ident = $service:literal $name:literal $kind:ident,)*) => {
        /// A method of etcd's gRPC API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum GrpcMethod {
            $(#[doc = concat!("`/", $service, "/", $name, "`")] $variant,)*
        }

        impl GrpcMethod {
            /// Every method; a method's id is its index.
            pub const ALL: [GrpcMethod; [$(stringify!($variant)),*].len()] = [$(GrpcMethod::$variant),*];

            /// The full name of the service, the `grpc_service` label.
            pub const fn service(self) -> &'static str {
                match self { $(GrpcMethod::$variant => $service,)* }
            }

            /// The method's name in its service, the `grpc_method` label.
            pub const fn name(self) -> &'static str {
                match self { $(GrpcMethod::$variant => $name,)* }
            }

            /// Unary or a kind of stream.
            pub const fn kind(self) -> GrpcKind {
                match self { $(GrpcMethod::$variant => GrpcKind::$kind,)* }
            }

            /// The method that a request's `:path` names.
            pub fn from_path(path: &str) -> Option<GrpcMethod> {
                match path {
                    $(concat!("/", $service, "/", $name) => Some(GrpcMethod::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

methods! {
    KvRange = "etcdserverpb.KV" "Range" Unary,
    KvTxn = "etcdserverpb.KV" "Txn" Unary,
    KvPut = "etcdserverpb.KV" "Put" Unary,
    KvDeleteRange = "etcdserverpb.KV" "DeleteRange" Unary,
    KvCompact = "etcdserverpb.KV" "Compact" Unary,
    KvRangeStream = "etcdserverpb.KV" "RangeStream" ServerStream,
    WatchWatch = "etcdserverpb.Watch" "Watch" BidiStream,
    LeaseGrant = "etcdserverpb.Lease" "LeaseGrant" Unary,
    LeaseRevoke = "etcdserverpb.Lease" "LeaseRevoke" Unary,
    LeaseKeepAlive = "etcdserverpb.Lease" "LeaseKeepAlive" BidiStream,
    LeaseTimeToLive = "etcdserverpb.Lease" "LeaseTimeToLive" Unary,
    LeaseLeases = "etcdserverpb.Lease" "LeaseLeases" Unary,
    ClusterMemberAdd = "etcdserverpb.Cluster" "MemberAdd" Unary,
    ClusterMemberRemove = "etcdserverpb.Cluster" "MemberRemove" Unary,
    ClusterMemberUpdate = "etcdserverpb.Cluster" "MemberUpdate" Unary,
    ClusterMemberList = "etcdserverpb.Cluster" "MemberList" Unary,
    ClusterMemberPromote = "etcdserverpb.Cluster" "MemberPromote" Unary,
    MaintenanceAlarm = "etcdserverpb.Maintenance" "Alarm" Unary,
    MaintenanceStatus = "etcdserverpb.Maintenance" "Status" Unary,
    MaintenanceDefragment = "etcdserverpb.Maintenance" "Defragment" Unary,
    MaintenanceHash = "etcdserverpb.Maintenance" "Hash" Unary,
    MaintenanceHashKv = "etcdserverpb.Maintenance" "HashKV" Unary,
    MaintenanceSnapshot = "etcdserverpb.Maintenance" "Snapshot" ServerStream,
    MaintenanceMoveLeader = "etcdserverpb.Maintenance" "MoveLeader" Unary,
    MaintenanceDowngrade = "etcdserverpb.Maintenance" "Downgrade" Unary,
    AuthEnable = "etcdserverpb.Auth" "AuthEnable" Unary,
    AuthDisable = "etcdserverpb.Auth" "AuthDisable" Unary,
    AuthStatus = "etcdserverpb.Auth" "AuthStatus" Unary,
    AuthAuthenticate = "etcdserverpb.Auth" "Authenticate" Unary,
    AuthUserAdd = "etcdserverpb.Auth" "UserAdd" Unary,
    AuthUserGet = "etcdserverpb.Auth" "UserGet" Unary,
    AuthUserList = "etcdserverpb.Auth" "UserList" Unary,
    AuthUserDelete = "etcdserverpb.Auth" "UserDelete" Unary,
    AuthUserChangePassword = "etcdserverpb.Auth" "UserChangePassword" Unary,
    AuthUserGrantRole = "etcdserverpb.Auth" "UserGrantRole" Unary,
    AuthUserRevokeRole = "etcdserverpb.Auth" "UserRevokeRole" Unary,
    AuthRoleAdd = "etcdserverpb.Auth" "RoleAdd" Unary,
    AuthRoleGet = "etcdserverpb.Auth" "RoleGet" Unary,
    AuthRoleList = "etcdserverpb.Auth" "RoleList" Unary,
    AuthRoleDelete = "etcdserverpb.Auth" "RoleDelete" Unary,
    AuthRoleGrantPermission = "etcdserverpb.Auth" "RoleGrantPermission" Unary,
    AuthRoleRevokePermission = "etcdserverpb.Auth" "RoleRevokePermission" Unary,
    HealthCheck = "grpc.health.v1.Health" "Check" Unary,
    HealthWatch = "grpc.health.v1.Health" "Watch" ServerStream,
    HealthList = "grpc.health.v1.Health" "List" Unary,
}

impl GrpcMethod {
    /// The method's index in [`GrpcMethod::ALL`], stable within one build.
    pub const fn id(self) -> u16 {
        self as u16
    }

    /// The method with this id.
    pub const fn from_id(id: u16) -> Option<GrpcMethod> {
        if (id as usize) < Self::ALL.len() {
            Some(Self::ALL[id as usize])
        } else {
            None
        }
    }
}

/// Cells of one method: started, received, sent, then one a code.
const STARTED: usize = 0;
const RECEIVED: usize = 1;
const SENT: usize = 2;
const HANDLED: usize = 3;
const CELLS: usize = HANDLED + GRPC_CODES.len();

/// The `grpc_server_*` series. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Grpc {
    cells: Run,
    /// By method; `None` unless `--metrics=extensive`.
    handling: Option<Arc<[Histogram]>>,
}

impl Grpc {
    /// A call began.
    pub fn started(&self, method: GrpcMethod) {
        self.add(method, STARTED, 1);
    }

    /// A message of the client was received whole.
    pub fn msg_received(&self, method: GrpcMethod) {
        self.add(method, RECEIVED, 1);
    }

    /// A message was given to the transport.
    pub fn msg_sent(&self, method: GrpcMethod) {
        self.add(method, SENT, 1);
    }

    /// A call ended with this status code (0 to 16; others count as `Unknown`).
    pub fn handled(&self, method: GrpcMethod, code: u8) {
        let code = if usize::from(code) < GRPC_CODES.len() {
            code
        } else {
            UNKNOWN
        };
        self.add(method, HANDLED + usize::from(code), 1);
    }

    /// How long a call took, from its start to its status. Does nothing
    /// without `--metrics=extensive`.
    pub fn handling(&self, method: GrpcMethod, seconds: f64) {
        let histograms = self.handling.as_deref().unwrap_or_default();
        if let Some(histogram) = histograms.get(usize::from(method.id())) {
            histogram.observe_s(seconds);
        }
    }

    /// Calls started so far.
    pub fn started_total(&self, method: GrpcMethod) -> u64 {
        self.cells.sum(usize::from(method.id()) * CELLS + STARTED)
    }

    fn add(&self, method: GrpcMethod, cell: usize, n: u64) {
        self.cells.add(usize::from(method.id()) * CELLS + cell, n);
    }

    pub(crate) fn declare(registry: &mut Registry, extensive: bool) -> Grpc {
        const LABELS: &[&str] = &["grpc_method", "grpc_service", "grpc_type"];
        const CODE_LABELS: &[&str] = &["grpc_code", "grpc_method", "grpc_service", "grpc_type"];
        let cells = registry.run(GrpcMethod::ALL.len() * CELLS);
        let per_method = [
            (
                STARTED,
                "grpc_server_started_total",
                "Calls that began, by method.",
            ),
            (
                RECEIVED,
                "grpc_server_msg_received_total",
                "Messages received from clients, by method; a stream has many.",
            ),
            (
                SENT,
                "grpc_server_msg_sent_total",
                "Messages sent to clients, by method; a stream has many.",
            ),
        ];
        for (cell, name, help) in per_method {
            let mut family = registry.family(name, Kind::Counter, LABELS, Origin::Etcd, help);
            for method in sorted() {
                let at = cells.at(usize::from(method.id()) * CELLS + cell);
                family.sample(&labels(method), Source::Cell(at));
            }
            family.done();
        }

        let mut family = registry.family(
            "grpc_server_handled_total",
            Kind::Counter,
            CODE_LABELS,
            Origin::Etcd,
            "Calls that ended, by method and status code. Started minus handled is what is open now.",
        );
        for (code, code_name) in GRPC_CODES.iter().enumerate() {
            for method in sorted() {
                let at = cells.at(usize::from(method.id()) * CELLS + HANDLED + code);
                let [name, service, kind] = labels(method);
                family.sample(&[code_name, name, service, kind], Source::Cell(at));
            }
        }
        family.done();

        // The default buckets of Go's client library, which etcd leaves as they are.
        let shape = shape(
            vec![
                0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            ],
            exponential::NANOS,
        );
        let mut family = registry.family(
            "grpc_server_handling_seconds",
            Kind::Histogram,
            LABELS,
            Origin::Etcd,
            "How long calls took, by method; a stream's time is its life. Only with --metrics=extensive.",
        );
        let mut handling = None;
        if extensive {
            let histograms: Arc<[Histogram]> = GrpcMethod::ALL
                .iter()
                .map(|_| family.histogram_of(&shape))
                .collect();
            for method in sorted() {
                if let Some(histogram) = histograms.get(usize::from(method.id())) {
                    family.sample(&labels(method), Source::Histogram(histogram.clone()));
                }
            }
            handling = Some(histograms);
        }
        family.done();
        Grpc { cells, handling }
    }
}

fn labels(method: GrpcMethod) -> [&'static str; 3] {
    [method.name(), method.service(), method.kind().label()]
}

/// The methods in the order of their labels, as Go's library writes them.
fn sorted() -> Vec<GrpcMethod> {
    let mut methods = GrpcMethod::ALL.to_vec();
    methods.sort_by_key(|method| (method.name(), method.service()));
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_lead_back_to_the_method() {
        for (index, method) in GrpcMethod::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(method.id()), index);
            assert_eq!(GrpcMethod::from_id(method.id()), Some(method));
            let path = format!("/{}/{}", method.service(), method.name());
            assert_eq!(GrpcMethod::from_path(&path), Some(method));
        }
        assert_eq!(GrpcMethod::from_id(45), None);
        assert_eq!(GrpcMethod::from_path("/etcdserverpb.KV/Nothing"), None);
    }

    #[test]
    fn methods_and_codes_do_not_share_cells() {
        let mut registry = Registry::new(1);
        let grpc = Grpc::declare(&mut registry, false);
        for (nth, method) in GrpcMethod::ALL.into_iter().enumerate() {
            for _ in 0..=nth {
                grpc.started(method);
            }
            for code in 0..=17 {
                grpc.handled(method, code);
            }
            grpc.handling(method, 1.0);
        }
        for (nth, method) in GrpcMethod::ALL.into_iter().enumerate() {
            assert_eq!(grpc.started_total(method), nth as u64 + 1);
            for code in 0..17 {
                let expected = if code == usize::from(UNKNOWN) { 2 } else { 1 };
                assert_eq!(grpc.cells.sum(nth * CELLS + HANDLED + code), expected);
            }
        }
    }
}
