//! The peer URLs: where followers connect. Each shows a certificate, and nothing else is served.

use super::session;
use crate::error::Error;
use crate::shared::Shared;
use bytes::Bytes;
use config::{Followers, Url};
use http::{Response, StatusCode};
use std::rc::Rc;
use std::sync::Arc;
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

static METHODS: [Method; 1] = [Method {
    service: copies::METHOD.0,
    name: copies::METHOD.1,
    kind: Kind::Stream,
    id: 0,
}];

/// The handler of the one worker.
struct Peers(Arc<Shared>);

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
        session::boxed(self.0.clone(), call, inbound, outbound)
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
            client_check: Some(|der| certs::may_follow(der).map_err(|e| e.to_string())),
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
    shared: &Arc<Shared>,
    listeners: Vec<wire::BoundListener>,
) -> Result<wire::Server, Error> {
    let config = wire::Config {
        workers: 1,
        max_message_bytes: MAX_MESSAGE_BYTES,
        max_connections: shared.followers.max + SPARE_CONNECTIONS,
        max_calls_per_connection: 4,
        keepalive_interval: KEEPALIVE.0,
        keepalive_timeout: KEEPALIVE.1,
        ..wire::Config::default()
    };
    let shared = shared.clone();
    let factory = move |_| Peers(shared.clone());
    let server = wire::Server::start(listeners, config, &METHODS, factory)?;
    for url in server.urls() {
        tracing::info!(%url, "serving followers, with a client certificate");
    }
    Ok(server)
}
