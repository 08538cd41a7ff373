//! The peer URLs: where followers connect. Each shows a certificate, and nothing else is served.

use super::session;
use crate::error::Error;
use crate::shards::{self, Shards};
use crate::shared::Shared;
use bytes::Bytes;
use config::{Followers, Url};
use http::{Response, StatusCode};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wire::{
    Address, Call, Code, Frame, Handler, HttpRequest, Inbound, Kind, ListenerConfig, LocalFuture,
    Method, Outbound, Reply, Serves, Status,
};

/// Silence after which a follower is asked whether it is there, and how long it may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// Connections beyond those that may follow: one that comes back while its old one is not known to
/// be gone, and some that are refused with a reason.
const SPARE_CONNECTIONS: usize = 16;
const MAX_MESSAGE_BYTES: usize = 64 << 10;
const FOLLOW: u16 = 0;
const HOLD: u16 = 1;

static METHODS: [Method; 2] = [
    Method {
        service: copies::METHOD.0,
        name: copies::METHOD.1,
        kind: Kind::Stream,
        id: FOLLOW,
    },
    Method {
        service: copies::shards::METHOD.0,
        name: copies::shards::METHOD.1,
        kind: Kind::Stream,
        id: HOLD,
    },
];

/// What is served at the peer URLs. Shards come in before the log is open, keepers when there is
/// something to follow.
pub(crate) struct PeerHost {
    shards: Option<Arc<Shards>>,
    max_connections: usize,
    shared: OnceLock<Arc<Shared>>,
}

impl PeerHost {
    /// With these shards, if any may connect, and so many followers of any kind.
    pub(crate) fn new(shards: Option<Arc<Shards>>, followers: usize) -> Arc<Self> {
        Arc::new(PeerHost {
            shards,
            max_connections: followers + SPARE_CONNECTIONS,
            shared: OnceLock::new(),
        })
    }

    /// There is something to follow.
    pub(crate) fn follow(&self, shared: &Arc<Shared>) {
        // A server starts once.
        let _ = self.shared.set(shared.clone());
    }
}

type Served = LocalFuture<Result<(), Status>>;

fn refused(code: Code, text: &'static str) -> Served {
    Box::pin(std::future::ready(Err(Status::new(code, text))))
}

/// Whether the certificate of whoever calls is one for that.
fn may(call: &Call, check: fn(&[u8]) -> Result<(), certs::RoleError>) -> bool {
    let certificate = call
        .peer
        .tls
        .as_ref()
        .and_then(|tls| tls.certificate.as_ref());
    certificate.is_some_and(|der| check(der).is_ok())
}

/// The handler of the one worker.
struct Peers(Arc<PeerHost>);

impl Handler for Peers {
    fn unary(self: &Rc<Self>, _: Call, _: Bytes) -> Reply {
        Reply::Now(Err::<Frame, _>(Status::new(
            Code::Unimplemented,
            "orlop: only followers are served here",
        )))
    }

    fn stream(
        self: &Rc<Self>,
        call: Call,
        inbound: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let of_role = "orlop: the certificate is for something else";
        match (call.method.id, &self.0.shards, self.0.shared.get()) {
            (HOLD, _, _) if !may(&call, certs::may_hold) => {
                refused(Code::PermissionDenied, of_role)
            }
            (HOLD, Some(shards), _) => Box::pin(shards::session::serve(
                shards.clone(),
                call,
                inbound,
                outbound,
            )),
            (HOLD, None, _) => refused(
                Code::FailedPrecondition,
                "orlop: no shard may connect (--max-shards)",
            ),
            _ if !may(&call, certs::may_follow) => refused(Code::PermissionDenied, of_role),
            (_, _, None) => refused(Code::Unavailable, "orlop: the server is starting"),
            (_, _, Some(shared)) => session::boxed(shared.clone(), call, inbound, outbound),
        }
    }

    fn http(self: &Rc<Self>, _: HttpRequest) -> LocalFuture<Response<Bytes>> {
        let mut answer = Response::new(Bytes::from_static(b"only followers are served here\n"));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        Box::pin(std::future::ready(answer))
    }
}

/// Takes the addresses, before anything else is done.
///
/// # Errors
/// An address that cannot be listened on, or files that cannot be used.
pub(crate) fn bind(followers: &Followers) -> Result<Vec<wire::BoundListener>, Error> {
    let listener = |url: &Url| {
        let tls = wire::TlsConfig {
            client_ca_file: Some(followers.trusted_ca_file.clone()),
            crl_file: followers.crl_file.clone(),
            allowed_common_names: followers.allowed_cns.clone(),
            allowed_hostnames: followers.allowed_hostnames.clone(),
            client_check: Some(|der| certs::may_connect_to_peer(der).map_err(|e| e.to_string())),
            keep_certificate: true,
            ..wire::TlsConfig::new(&followers.cert_file, &followers.key_file)
        };
        let address = match url.socket_addr() {
            Some(address) => address.to_string(),
            None => format!("{}:{}", url.host(), url.port().unwrap_or(0)),
        };
        ListenerConfig {
            serves: Serves {
                grpc: true,
                http: false,
            },
            ..ListenerConfig::new(Address::Tcp(address), Some(tls))
        }
    };
    Ok(wire::bind(
        followers.listen_urls.iter().map(listener).collect(),
    )?)
}

/// Serves followers, on a thread of its own.
///
/// # Errors
/// No thread.
pub(crate) fn listen(
    host: &Arc<PeerHost>,
    listeners: Vec<wire::BoundListener>,
) -> Result<wire::Server, Error> {
    let config = wire::Config {
        workers: 1,
        max_message_bytes: match host.shards {
            Some(_) => copies::shards::MAX_TOLD_BYTES,
            None => MAX_MESSAGE_BYTES,
        },
        max_connections: host.max_connections,
        max_calls_per_connection: 4,
        keepalive_interval: KEEPALIVE.0,
        keepalive_timeout: KEEPALIVE.1,
        ..wire::Config::default()
    };
    let host = host.clone();
    let factory = move |_| Peers(host.clone());
    let server = wire::Server::start(listeners, config, &METHODS, factory)?;
    for url in server.urls() {
        tracing::info!(%url, "serving followers, with a client certificate");
    }
    Ok(server)
}
