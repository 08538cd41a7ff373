//! What the sequences of `differential.rs` do not reach, asked of orlop and of a
//! real etcd: status, alarms, health, calls that do not exist, requests that are
//! too large or no requests at all. Clients match on codes and texts, so those must
//! be equal. Where orlop means to answer otherwise, the case is not here; see
//! `docs/reference/api.md`.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use e2e::hostile::call::Raw;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use etcd_api::health as hpb;
use hpb::health_client::HealthClient;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// The same for both stores, and small.
const MAX_REQUEST_BYTES: usize = 16_384;
/// How long an event may take.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks one store everything and writes the answers down, one a line.
#[derive(Debug)]
struct Asker {
    channel: Channel,
    answers: Vec<(&'static str, String)>,
}

impl Asker {
    async fn connect(store: &Store) -> Result<Self> {
        let endpoint = match Endpoint::from_shared(store.url()) {
            Ok(endpoint) => endpoint,
            Err(error) => return fail(format!("{}: {error}", store.url())),
        };
        match endpoint.connect().await {
            Ok(channel) => Ok(Self {
                channel,
                answers: Vec::new(),
            }),
            Err(error) => fail(format!("{}: {error:?}", store.url())),
        }
    }

    fn note<T: Debug>(
        &mut self,
        name: &'static str,
        answer: std::result::Result<Response<T>, Status>,
        keep: impl FnOnce(T) -> String,
    ) {
        let text = match answer {
            Ok(response) => keep(response.into_inner()),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.answers.push((name, text));
    }

    /// Sends bytes to a path. Of the answer only the code is kept if `code_only`,
    /// because the text is that of some library.
    async fn raw(&mut self, name: &'static str, path: &'static str, body: Bytes, code_only: bool) {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let answer = match client.ready().await {
            Ok(()) => {
                let path = PathAndQuery::from_static(path);
                client.unary(Request::new(body), path, Raw).await
            }
            Err(error) => Err(Status::unknown(format!("{error:?}"))),
        };
        let text = match answer {
            Ok(_) => "accepted".to_owned(),
            Err(status) if code_only => format!("{:?}", status.code()),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.answers.push((name, text));
    }

    async fn everything(&mut self) {
        self.wrong_calls().await;
        self.sizes().await;
        self.maintenance().await;
        self.health_and_auth().await;
        self.leases().await;
        self.sorted_stream().await;
        self.half_closed_watch().await;
    }

    /// Without an order, a target other than the key means ascending.
    async fn sorted_stream(&mut self) {
        let mut kv = KvClient::new(self.channel.clone());
        for key in ["sorted/b", "sorted/c", "sorted/a"] {
            let put = pb::PutRequest {
                key: Bytes::from_static(key.as_bytes()),
                ..pb::PutRequest::default()
            };
            let answer = kv.put(put).await;
            self.note("put what is to be sorted", answer, |_| "done".to_owned());
        }
        let request = pb::RangeRequest {
            key: Bytes::from_static(b"sorted/"),
            range_end: Bytes::from_static(b"sorted0"),
            sort_target: pb::range_request::SortTarget::Mod.into(),
            ..pb::RangeRequest::default()
        };
        let text = match kv.range_stream(request).await {
            Ok(response) => match response.into_inner().message().await {
                Ok(Some(m)) => {
                    let kvs = m.range_response.unwrap_or_default().kvs;
                    format!("{:?}", kvs.iter().map(|kv| &kv.key).collect::<Vec<_>>())
                }
                Ok(None) => "nothing".to_owned(),
                Err(status) => format!("{:?}: {}", status.code(), status.message()),
            },
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.answers.push(("sorted stream", text));
    }

    /// A client that has sent its request and closed its half still gets events.
    async fn half_closed_watch(&mut self) {
        use pb::watch_request::RequestUnion;

        let create = pb::WatchCreateRequest {
            key: Bytes::from_static(b"half"),
            ..pb::WatchCreateRequest::default()
        };
        let request = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let mut watch = WatchClient::new(self.channel.clone());
        let mut events = match watch.watch(tokio_stream::iter([request])).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                self.note::<()>("half-closed watch", Err(status), |()| String::new());
                return;
            }
        };
        for name in ["half-closed watch begins", "half-closed watch goes on"] {
            let next = tokio::time::timeout(WATCH_TIMEOUT, events.message()).await;
            let text = match next {
                Ok(Ok(Some(m))) => format!("created {} events {}", m.created, m.events.len()),
                Ok(Ok(None)) => "the stream has ended".to_owned(),
                Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
                Err(_) => "nothing came".to_owned(),
            };
            self.answers.push((name, text));
            let put = pb::PutRequest {
                key: Bytes::from_static(b"half"),
                ..pb::PutRequest::default()
            };
            let answer = KvClient::new(self.channel.clone()).put(put).await;
            self.note("put beside a half-closed watch", answer, |_| {
                "done".to_owned()
            });
        }
    }

    async fn wrong_calls(&mut self) {
        let none = Bytes::new;
        self.raw(
            "unknown method",
            "/etcdserverpb.KV/Frobnicate",
            none(),
            false,
        )
        .await;
        self.raw(
            "unknown service",
            "/etcdserverpb.Nothing/Range",
            none(),
            false,
        )
        .await;
        self.raw("no method", "/etcdserverpb.KV", none(), false)
            .await;
        self.raw("empty request", "/etcdserverpb.KV/Range", none(), false)
            .await;
        let garbage = Bytes::from_static(b"\xff\xff\xff\xff\xff");
        self.raw("garbage", "/etcdserverpb.KV/Range", garbage.clone(), true)
            .await;
        self.raw("garbage put", "/etcdserverpb.KV/Put", garbage.clone(), true)
            .await;
        self.raw(
            "garbage grant",
            "/etcdserverpb.Lease/LeaseGrant",
            garbage,
            true,
        )
        .await;
        // Field 15 does not exist and is passed over; field 1 is cut short.
        let unknown_field = Bytes::from_static(b"\x0a\x01k\x78\x05");
        self.raw(
            "unknown field",
            "/etcdserverpb.KV/Range",
            unknown_field,
            false,
        )
        .await;
        let cut = Bytes::from_static(b"\x0a\x05k");
        self.raw("cut field", "/etcdserverpb.KV/Range", cut, true)
            .await;
    }

    async fn sizes(&mut self) {
        let mut kv = KvClient::new(self.channel.clone());
        for (name, bytes) in [
            ("put below the limit", MAX_REQUEST_BYTES - 200),
            ("put above the limit", MAX_REQUEST_BYTES + 1),
            ("put far above the limit", MAX_REQUEST_BYTES + (500 << 10)),
            (
                "put above what is received",
                MAX_REQUEST_BYTES + (600 << 10),
            ),
        ] {
            let request = pb::PutRequest {
                key: Bytes::from_static(b"k"),
                value: Bytes::from(vec![b'v'; bytes]),
                ..pb::PutRequest::default()
            };
            let answer = kv.put(request).await;
            // How many bytes the message has depends on its encoder.
            self.note(name, answer, |_| "done".to_owned());
        }
        let large_and_wrong = pb::PutRequest {
            value: Bytes::from(vec![b'v'; MAX_REQUEST_BYTES + 1]),
            ..pb::PutRequest::default()
        };
        let answer = kv.put(large_and_wrong).await;
        self.note("large put without a key", answer, |_| "done".to_owned());
        let large_range = pb::RangeRequest {
            key: Bytes::from(vec![b'k'; MAX_REQUEST_BYTES + 1]),
            ..pb::RangeRequest::default()
        };
        let answer = kv.range(large_range).await;
        self.note("large range", answer, |response| {
            format!("count {}", response.count)
        });
        let large_delete = pb::DeleteRangeRequest {
            key: Bytes::from(vec![b'k'; MAX_REQUEST_BYTES + 1]),
            ..pb::DeleteRangeRequest::default()
        };
        let answer = kv.delete_range(large_delete).await;
        self.note("large delete", answer, |response| {
            format!("{}", response.deleted)
        });
    }

    async fn maintenance(&mut self) {
        use pb::alarm_request::AlarmAction;
        use pb::downgrade_request::DowngradeAction;

        let mut client = MaintenanceClient::new(self.channel.clone());
        let answer = client.status(pb::StatusRequest {}).await;
        self.note("status", answer, |status| {
            format!(
                "{} {} {:?} {} {:?} leader {} sizes {}",
                status.version,
                status.storage_version,
                status.errors,
                status.is_learner,
                status.downgrade_info,
                status
                    .header
                    .is_some_and(|header| header.member_id == status.leader),
                status.db_size > 0
                    && status.db_size_in_use > 0
                    && status.db_size >= status.db_size_in_use
                    && status.db_size_quota > 0,
            )
        });
        for (name, action, alarm) in [
            ("alarms", AlarmAction::Get, pb::AlarmType::None),
            (
                "no such alarm",
                AlarmAction::Deactivate,
                pb::AlarmType::Nospace,
            ),
        ] {
            let request = pb::AlarmRequest {
                action: action.into(),
                member_id: 0,
                alarm: alarm.into(),
            };
            let answer = client.alarm(request).await;
            self.note(name, answer, |response| format!("{:?}", response.alarms));
        }
        let answer = client
            .move_leader(pb::MoveLeaderRequest { target_id: 5 })
            .await;
        self.note("move leader", answer, |_| "done".to_owned());
        for (name, action, version) in [
            ("validate a downgrade", DowngradeAction::Validate, "3.6.0"),
            ("validate nonsense", DowngradeAction::Validate, "nonsense"),
            ("validate a leap", DowngradeAction::Validate, "3.4.0"),
            ("validate the same", DowngradeAction::Validate, "3.7.0"),
            ("cancel no downgrade", DowngradeAction::Cancel, ""),
        ] {
            let request = pb::DowngradeRequest {
                action: action.into(),
                version: version.to_owned(),
            };
            let answer = client.downgrade(request).await;
            self.note(name, answer, |response| response.version);
        }
        let answer = client.defragment(pb::DefragmentRequest {}).await;
        self.note("defragment", answer, |_| "done".to_owned());
    }

    async fn health_and_auth(&mut self) {
        let mut client = HealthClient::new(self.channel.clone());
        for (name, service) in [
            ("health", ""),
            ("health of KV", "etcdserverpb.KV"),
            ("health of nothing", "nothing"),
        ] {
            let request = hpb::HealthCheckRequest {
                service: service.to_owned(),
            };
            let answer = client.check(request).await;
            self.note(name, answer, |response| format!("{:?}", response.status()));
        }
        let mut client = AuthClient::new(self.channel.clone());
        let answer = client.auth_status(pb::AuthStatusRequest {}).await;
        self.note("auth status", answer, |status| {
            format!("{} {}", status.enabled, status.auth_revision)
        });
        let request = pb::AuthenticateRequest {
            name: "root".to_owned(),
            password: "secret".to_owned(),
        };
        let answer = client.authenticate(request).await;
        self.note("authenticate", answer, |response| response.token);
    }

    async fn leases(&mut self) {
        let mut client = LeaseClient::new(self.channel.clone());
        for (name, ttl) in [
            ("least ttl", 1),
            ("no ttl", 0),
            ("ttl below nothing", -5),
            ("ttl above all", i64::MAX),
        ] {
            let request = pb::LeaseGrantRequest { ttl, id: 0 };
            let answer = client.lease_grant(request).await;
            self.note(name, answer, |response| {
                format!("{} {} {:?}", response.ttl, response.id > 0, response.error)
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_other_calls_as_etcd_does() -> Result<()> {
    let flags = [format!("--max-request-bytes={MAX_REQUEST_BYTES}")];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir()?;
    let mut answers = Vec::new();
    for (kind, name) in [(Kind::Etcd, "etcd"), (Kind::Orlop, "orlop")] {
        let store = Store::start(kind, name, dir.path(), None, &flags).await?;
        let mut asker = Asker::connect(&store).await?;
        asker.everything().await;
        answers.push(asker.answers);
    }
    let mut different = String::new();
    for ((name, etcd), (_, orlop)) in answers[0].iter().zip(&answers[1]) {
        println!("{name}: {etcd}");
        if etcd != orlop {
            different += &format!("\n{name}\n  etcd:  {etcd}\n  orlop: {orlop}");
        }
    }
    ensure(different.is_empty(), || {
        format!("different answers:{different}")
    })
}
