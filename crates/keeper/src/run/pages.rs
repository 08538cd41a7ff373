//! Pages for operators and probes, over plain HTTP on TCP and on the Unix socket in the copy's
//! directory: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 while it follows a server |
//! | `/v1/status` | where the copy stands and how far it is behind, as JSON |

use super::view::View;
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use journal::Proof;
use metrics::{KeeperInput, keeper_page};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use wire::{
    Address, Call, Code, Frame, Handler, HttpRequest, Inbound, ListenerConfig, LocalFuture,
    Outbound, Reply, Serves, Status,
};

/// Served until it is dropped.
#[derive(Debug)]
pub struct Pages(wire::Server);

impl Pages {
    /// Serves the pages at these addresses, each a `host:port`, and on a Unix socket. `version` is
    /// orlop's.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        view: Arc<View>,
        addresses: &[String],
        socket: Option<PathBuf>,
        version: &'static str,
    ) -> Result<Pages, wire::Error> {
        let http = Serves {
            grpc: false,
            http: true,
        };
        let tcp = addresses.iter().map(|address| ListenerConfig {
            serves: http,
            ..ListenerConfig::new(Address::Tcp(address.clone()), None)
        });
        let unix = socket.into_iter().map(|path| ListenerConfig {
            serves: http,
            unix_mode: Some(0o600),
            ..ListenerConfig::new(Address::Unix(path), None)
        });
        let bound = wire::bind(tcp.chain(unix).collect())?;
        let factory = move |_| Page {
            view: view.clone(),
            version,
        };
        let config = wire::Config::default();
        Ok(Pages(wire::Server::start(bound, config, &[], factory)?))
    }

    /// Where it listens, as URLs.
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

/// The handler of the one worker.
struct Page {
    view: Arc<View>,
    version: &'static str,
}

impl Handler for Page {
    fn unary(self: &Rc<Self>, _: Call, _: Bytes) -> Reply {
        Reply::Now(Err::<Frame, _>(no_grpc()))
    }

    fn stream(
        self: &Rc<Self>,
        _: Call,
        _: Inbound,
        _: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        Box::pin(async { Err(no_grpc()) })
    }

    fn http(self: &Rc<Self>, request: HttpRequest) -> LocalFuture<Response<Bytes>> {
        let answer = self.answer(&request.request);
        Box::pin(std::future::ready(answer))
    }
}

fn no_grpc() -> Status {
    Status::new(
        Code::Unimplemented,
        "orlop keeper: this endpoint speaks HTTP",
    )
}

impl Page {
    fn answer(&self, request: &http::Request<Bytes>) -> Response<Bytes> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if request.method() != Method::GET {
            return answer(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "Method Not Allowed\n".into(),
            );
        }
        match request.uri().path() {
            "/metrics" => {
                let page = keeper_page(&self.input(), self.version);
                answer(StatusCode::OK, metrics::CONTENT_TYPE, page)
            }
            "/healthz" => answer(StatusCode::OK, TEXT, "ok\n".into()),
            "/readyz" => {
                let seen = self.view.seen();
                let why = seen
                    .problem
                    .unwrap_or_else(|| "it has not followed yet".to_owned());
                match seen.following {
                    true => answer(StatusCode::OK, TEXT, "ok\n".into()),
                    false => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
                }
            }
            "/v1/status" => {
                let status = format!("{}\n", self.status());
                answer(StatusCode::OK, "application/json", status)
            }
            _ => answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".into()),
        }
    }

    fn input(&self) -> KeeperInput {
        let seen = self.view.seen();
        KeeperInput {
            following: seen.following,
            complete: seen.complete(),
            revision: seen.standing.revision,
            lag_records: seen.lag_records,
            lag_bytes: seen.lag_bytes,
            lag_s: seen.lag_ms as f64 / 1000.0,
            last_contact_unix_s: seen.last_contact_unix_ms as f64 / 1000.0,
            connects: seen.connects,
            snapshots: seen.snapshots,
            records: seen.records,
            log_bytes: seen.log_bytes,
        }
    }

    fn status(&self) -> Value {
        let seen = self.view.seen();
        let proof = seen.standing.followed.map(|at| match at.proof {
            Proof::None => "none",
            Proof::Waits => "the server waits for this keeper",
            Proof::Stopped => "the server stopped, and this copy has all up to its end",
        });
        let identity = seen.identity.as_ref();
        json!({
            "role": "keeper",
            "version": self.version,
            "server": seen.server,
            "following": seen.following,
            "joining": seen.joining,
            "problem": seen.problem,
            "cluster_id": identity.map(|of| format!("{:x}", of.cluster_id)),
            "raft_term": identity.map(|of| of.raft_term),
            "revision": seen.standing.revision,
            "proof": proof,
            "complete": seen.complete(),
            "lag_records": seen.lag_records,
            "lag_bytes": seen.lag_bytes,
            "lag_ms": seen.lag_ms,
            "silent_ms": seen.silent_ms,
            "connects": seen.connects,
            "snapshots": seen.snapshots,
            "records": seen.records,
            "log_bytes": seen.log_bytes,
        })
    }
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
