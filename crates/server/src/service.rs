//! One worker's view of the server: which method goes where.

use crate::kv::SlowCall;
use crate::offload::Offload;
use crate::shared::Shared;
use crate::status;
use crate::store::Answer;
use crate::watch::Hub;
use bytes::Bytes;
use metrics::GrpcMethod;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use threads::CriticalTurns;
use wire::mailbox::Slots;
use wire::{
    Call, Event, Handler, HttpRequest, Inbound, Kind, LocalFuture, Method, Outbound, Reply, Status,
};

/// etcd's lock and election services: known, so that a sentence can say that they are not
/// offered. (`etcdctl lock` and `elect` do not use them.)
const NOT_OFFERED: [(&str, &str, Kind); 7] = [
    ("v3lockpb.Lock", "Lock", Kind::Unary),
    ("v3lockpb.Lock", "Unlock", Kind::Unary),
    ("v3electionpb.Election", "Campaign", Kind::Unary),
    ("v3electionpb.Election", "Proclaim", Kind::Unary),
    ("v3electionpb.Election", "Leader", Kind::Unary),
    ("v3electionpb.Election", "Resign", Kind::Unary),
    ("v3electionpb.Election", "Observe", Kind::Stream),
];

const METHOD_COUNT: usize = GrpcMethod::ALL.len() + NOT_OFFERED.len();

/// The methods that the transport routes, by [`GrpcMethod`] id; what has none is not
/// offered.
pub(crate) static METHODS: [Method; METHOD_COUNT] = methods();

const fn methods() -> [Method; METHOD_COUNT] {
    const EMPTY: Method = Method {
        service: "",
        name: "",
        kind: Kind::Unary,
        id: u16::MAX,
    };
    let mut table = [EMPTY; METHOD_COUNT];
    let mut i = 0;
    while i < NOT_OFFERED.len() {
        let (service, name, kind) = NOT_OFFERED[i];
        table[GrpcMethod::ALL.len() + i] = Method {
            service,
            name,
            kind,
            id: u16::MAX,
        };
        i += 1;
    }
    i = 0;
    while i < GrpcMethod::ALL.len() {
        let m = GrpcMethod::ALL[i];
        let kind = match m.kind() {
            metrics::GrpcKind::Unary => Kind::Unary,
            _ => Kind::Stream,
        };
        table[i] = Method {
            service: m.service(),
            name: m.name(),
            kind,
            id: m.id(),
        };
        i += 1;
    }
    table
}

/// The handler of one worker.
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) slots: Slots<Answer>,
    pub(crate) hub: Rc<RefCell<Hub>>,
    pub(crate) offload: Offload,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>, slots: Slots<Answer>) -> Self {
        let hub = Rc::new(RefCell::new(Hub::new(shared.clone())));
        Service {
            shared,
            slots,
            hub,
            offload: Offload::default(),
        }
    }

    fn count_client(&self, call: &Call, stream: bool) -> Result<(), Status> {
        let version = call.headers.get("client-api-version");
        let version = match version.map(|v| v.to_str()) {
            Some(Ok(v)) => Some(v),
            Some(Err(_)) => return Err(status::invalid_client_api_version()),
            None => None,
        };
        let requests = &self.shared.metrics.client_requests;
        if stream {
            requests.stream(version).inc()
        } else {
            requests.unary(version).inc()
        }
        Ok(())
    }

    /// A call of KV.
    pub(crate) fn kv(self: &Rc<Self>, method: GrpcMethod, call: Call, message: Bytes) -> Reply {
        use GrpcMethod as M;
        match method {
            M::KvRange => self.range(&call, message),
            M::KvPut => self.put(call, message),
            M::KvDeleteRange => self.delete_range(call, message),
            M::KvTxn => self.txn(call, message),
            _ => self.compact(call, message),
        }
    }

    /// A call of another service than KV.
    fn other_unary(self: &Rc<Self>, method: GrpcMethod, message: Bytes) -> Reply {
        use GrpcMethod as M;
        match method {
            M::LeaseGrant => self.lease_grant(message),
            M::LeaseRevoke => self.lease_revoke(message),
            M::LeaseTimeToLive => self.lease_time_to_live(message),
            M::LeaseLeases => Reply::Now(self.lease_leases()),
            M::ClusterMemberList => Reply::Now(self.member_list()),
            M::ClusterMemberAdd
            | M::ClusterMemberRemove
            | M::ClusterMemberUpdate
            | M::ClusterMemberPromote => Reply::Now(Err(status::one_member())),
            M::MaintenanceStatus => Reply::Now(Ok(self.status())),
            M::MaintenanceAlarm => self.alarm(message),
            M::MaintenanceDefragment => self.defragment(),
            M::MaintenanceHash => self.hash(),
            M::MaintenanceHashKv => self.hash_kv(message),
            M::MaintenanceMoveLeader => Reply::Now(self.move_leader(message)),
            M::MaintenanceDowngrade => Reply::Now(self.downgrade(message)),
            M::AuthStatus => Reply::Now(Ok(self.auth_status())),
            M::AuthAuthenticate => Reply::Now(Err(status::auth_not_enabled())),
            M::HealthCheck => Reply::Now(self.health_check(message)),
            M::HealthList => Reply::Now(Ok(self.health_list())),
            // Streams do not come here; what is left is the rest of Auth.
            _ => Reply::Now(Err(status::no_auth())),
        }
    }
}

impl Handler for Service {
    const HEADERS: &'static [&'static str] = &["client-api-version"];

    fn unary(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        use GrpcMethod as M;
        if let Err(s) = self.count_client(&call, false) {
            return Reply::Now(Err(s));
        }
        let Some(method) = GrpcMethod::from_id(call.method.id) else {
            return Reply::Now(Err(status::no_lock_service()));
        };
        threads::fault_point("call");
        match method {
            M::KvRange | M::KvPut | M::KvDeleteRange | M::KvTxn | M::KvCompact => {
                self.read_or_write(method, call, message)
            }
            _ => {
                let slow = SlowCall::new(self, &call, method, message.clone());
                match self.other_unary(method, message) {
                    Reply::Now(answer) => {
                        slow.answered(&answer);
                        Reply::Now(answer)
                    }
                    Reply::Later(answer) => Reply::Later(Box::pin(async move {
                        let answer = answer.await;
                        slow.answered(&answer);
                        answer
                    })),
                }
            }
        }
    }

    fn stream(
        self: &Rc<Self>,
        call: Call,
        mut inbound: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        if let Err(s) = self.count_client(&call, true) {
            return Box::pin(async move { Err(s) });
        }
        self.shared.metrics.streams.inc();
        let open = StreamGauge(self.shared.clone());
        let this = self.clone();
        match GrpcMethod::from_id(call.method.id) {
            Some(GrpcMethod::WatchWatch) => {
                // The hub is of all watches of the worker: half changed, it would leave out events.
                let watch = CriticalTurns(self.watch(call, inbound, outbound));
                Box::pin(async move {
                    let _open = open;
                    watch.await
                })
            }
            Some(GrpcMethod::LeaseKeepAlive) => {
                let keep_alive = self.lease_keep_alive(call, inbound, outbound);
                Box::pin(async move {
                    let _open = open;
                    keep_alive.await
                })
            }
            Some(GrpcMethod::KvRangeStream) => Box::pin(async move {
                let _open = open;
                let message = inbound.next().await?.unwrap_or_default();
                this.range_stream(message, outbound).await
            }),
            Some(GrpcMethod::HealthWatch) => Box::pin(async move {
                let _open = open;
                let message = inbound.next().await?.unwrap_or_default();
                this.health_watch(call, message, outbound).await
            }),
            Some(GrpcMethod::MaintenanceSnapshot) => {
                let snapshot = self.snapshot(call, outbound);
                Box::pin(async move {
                    let _open = open;
                    snapshot.await
                })
            }
            _ => Box::pin(async { Err(status::no_lock_service()) }),
        }
    }

    fn http(self: &Rc<Self>, request: HttpRequest) -> LocalFuture<http::Response<Bytes>> {
        let this = self.clone();
        Box::pin(async move { this.http_request(request) })
    }

    fn turn_took(&self, took: Duration) {
        self.shared.metrics.worker_turn.observe(took);
    }

    fn observe(&self, method: &'static Method, event: Event) {
        let Some(m) = GrpcMethod::from_id(method.id) else {
            return;
        };
        let metrics = &self.shared.metrics;
        match event {
            Event::Started => metrics.grpc.started(m),
            Event::Received { bytes } => {
                metrics.grpc.msg_received(m);
                metrics.client_received_bytes.add(bytes as u64);
            }
            Event::Sent { bytes } => {
                metrics.grpc.msg_sent(m);
                metrics.client_sent_bytes.add(bytes as u64);
            }
            Event::Handled { code, started } => {
                let took = started.elapsed();
                metrics.grpc.handled(m, code as u8);
                metrics.grpc.handling(m, took.as_secs_f64());
            }
        }
    }
}

struct StreamGauge(Arc<Shared>);

impl Drop for StreamGauge {
    fn drop(&mut self) {
        self.0.metrics.streams.dec();
    }
}
