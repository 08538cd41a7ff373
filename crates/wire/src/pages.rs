//! Pages for operators and probes, over plain HTTP: read only. A process that serves no API of its
//! own (a proxy, a keeper) has nothing else to listen for.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};

use crate::{
    Address, Call, Code, Config, Error, Frame, Handler, HttpRequest, Inbound, ListenerConfig,
    LocalFuture, Outbound, Reply, Server, Serves, Status, bind,
};

/// What a path answers.
#[derive(Debug, Clone)]
pub struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Page {
    /// A page that is there.
    #[must_use]
    pub fn new(content_type: &'static str, body: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            body,
        }
    }

    /// A sentence, with or without a page; its line is ended here.
    #[must_use]
    pub fn text(status: StatusCode, text: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{text}\n"),
        }
    }

    /// A value that prints itself as JSON.
    #[must_use]
    pub fn json(value: &impl fmt::Display) -> Self {
        Self::new("application/json", format!("{value}\n"))
    }

    fn answer(self) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from(self.body));
        *answer.status_mut() = self.status;
        let content_type = header::HeaderValue::from_static(self.content_type);
        answer
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        answer
    }
}

/// Served on one worker, until it is dropped.
#[derive(Debug)]
pub struct Pages(Server);

impl Pages {
    /// Serves `page` by path, `None` for one that is not there, at these addresses, each a
    /// `host:port`, and on a Unix socket for its owner. `of` is the command, for who speaks gRPC.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        of: &'static str,
        addresses: &[String],
        socket: Option<PathBuf>,
        page: impl Fn(&str) -> Option<Page> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let serves = Serves {
            grpc: false,
            http: true,
        };
        let tcp = addresses.iter().map(|address| ListenerConfig {
            serves,
            ..ListenerConfig::new(Address::Tcp(address.clone()), None)
        });
        let unix = socket.into_iter().map(|path| ListenerConfig {
            serves,
            unix_mode: Some(0o600),
            ..ListenerConfig::new(Address::Unix(path), None)
        });
        let bound = bind(tcp.chain(unix).collect())?;
        let page: Arc<ByPath> = Arc::new(page);
        let factory = move |_| OnlyPages {
            of,
            page: Arc::clone(&page),
        };
        Ok(Self(Server::start(bound, Config::default(), &[], factory)?))
    }

    /// Where it listens, as URLs.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

type ByPath = dyn Fn(&str) -> Option<Page> + Send + Sync;

struct OnlyPages {
    of: &'static str,
    page: Arc<ByPath>,
}

impl OnlyPages {
    fn no_grpc(&self) -> Status {
        let text = format!("{}: this endpoint speaks HTTP", self.of);
        Status::new(Code::Unimplemented, text)
    }

    fn answer(&self, request: &http::Request<Bytes>) -> Page {
        if request.method() != Method::GET {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        (self.page)(request.uri().path())
            .unwrap_or_else(|| Page::text(StatusCode::NOT_FOUND, "404 page not found"))
    }
}

impl Handler for OnlyPages {
    fn unary(self: &Rc<Self>, _: Call, _: Bytes) -> Reply {
        Reply::Now(Err::<Frame, _>(self.no_grpc()))
    }

    fn stream(
        self: &Rc<Self>,
        _: Call,
        _: Inbound,
        _: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let status = self.no_grpc();
        Box::pin(async { Err(status) })
    }

    fn http(self: &Rc<Self>, request: HttpRequest) -> LocalFuture<Response<Bytes>> {
        let answer = self.answer(&request.request).answer();
        Box::pin(std::future::ready(answer))
    }
}
