//! From an HTTP request to the handler and back: routing, streams, plain HTTP.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::grpc::{self, Code, Status};
use crate::handler::{Call, Event, Handler, HttpRequest, Kind, LocalFuture, Method, Peer};
use crate::listener::Serves;
use crate::local::Flag;
use crate::message::{Assembler, Budget, Encoding};
use crate::stream::{Body, Inbound, Observer, StreamBody, StreamBytes};
use crate::unary::Unary;
use crate::unread::{Unread, WorkerUnread};

/// Finds methods by path.
#[derive(Debug)]
pub(crate) struct Routes {
    by_path: HashMap<String, &'static Method>,
    all: &'static [Method],
}

impl Routes {
    pub(crate) fn new(all: &'static [Method]) -> Self {
        let path = |method: &Method| format!("/{}/{}", method.service, method.name);
        Routes {
            by_path: all.iter().map(|method| (path(method), method)).collect(),
            all,
        }
    }

    /// The method of a path, or what Go's gRPC answers for an unknown one.
    fn find(&self, path: &str) -> Result<&'static Method, Status> {
        if let Some(method) = self.by_path.get(path) {
            return Ok(method);
        }
        let unknown = |text: String| Err(Status::new(Code::Unimplemented, text));
        match path
            .strip_prefix('/')
            .and_then(|path| path.rsplit_once('/'))
        {
            None => unknown(format!("malformed method name: {path:?}")),
            Some((service, name)) if self.all.iter().any(|known| known.service == service) => {
                unknown(format!("unknown method {name} for service {service}"))
            }
            Some((service, _)) => unknown(format!("unknown service {service}")),
        }
    }
}

/// What all connections of a worker share.
pub(crate) struct WorkerState<H> {
    pub(crate) handler: Rc<H>,
    pub(crate) routes: std::sync::Arc<Routes>,
    pub(crate) config: std::sync::Arc<Config>,
    pub(crate) closing: Rc<Flag>,
    pub(crate) unread: std::sync::Arc<WorkerUnread>,
    pub(crate) stream_bytes: StreamBytes,
}

/// What the calls of one connection share.
pub(crate) struct Connection<H> {
    pub(crate) worker: Rc<WorkerState<H>>,
    pub(crate) peer: Rc<Peer>,
    pub(crate) serves: Serves,
    pub(crate) open_calls: Cell<usize>,
    pub(crate) partial_budget: Rc<Budget>,
    pub(crate) unread: Unread,
}

/// The future of one answer. It becomes a task and is moved a few times on the way: keep it small.
#[expect(clippy::large_enum_variant, reason = "the large one is the common one")]
pub(crate) enum Serving<H: Handler> {
    Known(Option<Response<Body>>),
    Unary(Unary<H>),
    Boxed(LocalFuture<Response<Body>>),
}

impl<H: Handler> Future for Serving<H> {
    type Output = Result<Response<Body>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Serving::Known(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
            Serving::Unary(call) => call.poll(cx).map(Ok),
            Serving::Boxed(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}

/// Answers one request.
pub(crate) fn serve<H: Handler>(
    connection: &Rc<Connection<H>>,
    request: Request<Incoming>,
) -> Serving<H> {
    let is_grpc = request.version() == Version::HTTP_2 && grpc::is_grpc(request.headers());
    if is_grpc && connection.serves.grpc {
        return serve_grpc(connection, request);
    }
    if connection.serves.http {
        return Serving::Boxed(Box::pin(serve_http(Rc::clone(connection), request)));
    }
    // As Go's gRPC answers on a port that speaks nothing else.
    let given = request.headers().get(http::header::CONTENT_TYPE);
    let given = given.map_or("".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    let text = format!("invalid gRPC request content-type {given:?}");
    let mut response = trailers_only(&Status::new(Code::InvalidArgument, text));
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Serving::Known(Some(response))
}

fn serve_grpc<H: Handler>(
    connection: &Rc<Connection<H>>,
    request: Request<Incoming>,
) -> Serving<H> {
    let known = |response| Serving::Known(Some(response));
    let (head, body) = request.into_parts();
    if head.method != HttpMethod::POST {
        let given = head.method.as_str();
        let text = format!("Received a HEADERS frame with :method {given:?} which should be POST");
        let mut response = trailers_only(&Status::new(Code::Internal, text));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return known(response);
    }
    let worker = &connection.worker;
    let method = match worker.routes.find(head.uri.path()) {
        Ok(method) => method,
        Err(status) => return known(trailers_only(&status)),
    };
    let started = Instant::now();
    let mut observed = Observed::start(Rc::clone(&worker.handler), method, started);
    match begin(connection, method, head.headers, started) {
        Err(status) => known(observed.fail(&status)),
        Ok((call, assembler)) => match method.kind {
            Kind::Unary => Serving::Unary(Unary::new(connection, call, assembler, body, observed)),
            Kind::Stream => {
                let connection = Rc::clone(connection);
                Serving::Boxed(Box::pin(stream(
                    connection, call, assembler, body, observed,
                )))
            }
        },
    }
}

/// Reads what a call's headers ask for.
fn begin<H: Handler>(
    connection: &Connection<H>,
    method: &'static Method,
    headers: HeaderMap,
    started: Instant,
) -> Result<(Call, Assembler), Status> {
    let worker = &connection.worker;
    if connection.open_calls.get() >= worker.config.max_calls_per_connection {
        return Err(Status::new(
            Code::ResourceExhausted,
            "too many calls are open on this connection: close some, or use more connections",
        ));
    }
    let deadline = match headers.get("grpc-timeout") {
        None => None,
        Some(value) => {
            let timeout = grpc::parse_timeout(value.as_bytes()).map_err(|text| {
                Status::new(Code::Internal, format!("malformed grpc-timeout: {text}"))
            })?;
            if timeout.is_zero() {
                return Err(Status::deadline_exceeded());
            }
            // One that does not fit into the clock never passes.
            started.checked_add(timeout)
        }
    };
    let budget = Rc::clone(&connection.partial_budget);
    let assembler = Assembler::new(
        Encoding::of(&headers)?,
        worker.config.max_message_bytes,
        budget,
    );
    let (peer, closing) = (Rc::clone(&connection.peer), Rc::clone(&worker.closing));
    Ok((
        Call {
            method,
            headers,
            peer,
            started,
            deadline,
            closing,
            unread: connection.unread.clone(),
        },
        assembler,
    ))
}

async fn next_frame(body: &mut Incoming) -> Option<Result<http_body::Frame<Bytes>, hyper::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// Runs a streaming call as a task beside its response.
async fn stream<H: Handler>(
    connection: Rc<Connection<H>>,
    call: Call,
    assembler: Assembler,
    body: Incoming,
    mut observed: Observed<H>,
) -> Response<Body> {
    let worker = &connection.worker;
    let observer: Observer = {
        let (handler, method) = (Rc::clone(&worker.handler), call.method);
        Rc::new(move |event| handler.observe(method, event))
    };
    let inbound = Inbound::new(body, assembler, Rc::clone(&observer));
    let (outbound, mut stream) = StreamBody::pair(
        worker.config.stream_queue_bytes,
        worker.stream_bytes.clone(),
        observer,
    );
    let deadline = call.deadline;
    let future = worker.handler.stream(call, inbound, outbound.clone());
    let open = OpenCall::new(&connection);
    let task = tokio::task::spawn_local(async move {
        let _open = open;
        let result = match deadline {
            None => future.await,
            Some(deadline) => timeout_at(deadline, future)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded())),
        };
        let status = result.err().unwrap_or(Status::OK);
        observed.end(status.code);
        outbound.finish(status);
    });
    stream.own(task.abort_handle());
    match stream.first().await {
        Some(status) => trailers_only(&status),
        None => grpc_response(Body::Stream(stream)),
    }
}

async fn serve_http<H: Handler>(
    connection: Rc<Connection<H>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let config = &connection.worker.config;
    let (head, mut body) = request.into_parts();
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = next_frame(&mut body).await {
            let Ok(frame) = frame else {
                return Err(StatusCode::BAD_REQUEST);
            };
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            if bytes.len() + chunk.len() > config.max_http_body_bytes {
                return Err(StatusCode::PAYLOAD_TOO_LARGE);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    let read = tokio::time::timeout(config.body_timeout, read).await;
    let response = match read.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT)) {
        Ok(bytes) => {
            let request = Request::from_parts(head, bytes);
            let peer = Rc::clone(&connection.peer);
            connection
                .worker
                .handler
                .http(HttpRequest { request, peer })
                .await
        }
        Err(code) => {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = code;
            response
        }
    };
    response.map(|bytes| Body::Full((!bytes.is_empty()).then_some(bytes)))
}

pub(crate) fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// A response that is only a status: what gRPC sends for a call without messages.
pub(crate) fn trailers_only(status: &Status) -> Response<Body> {
    let mut response = grpc_response(Body::Empty);
    status.write_to(response.headers_mut());
    response
}

/// Tells the handler's metrics that a call started, and exactly once how it ended.
pub(crate) struct Observed<H: Handler> {
    handler: Rc<H>,
    method: &'static Method,
    started: Instant,
    ended: bool,
}

impl<H: Handler> Observed<H> {
    pub(crate) fn start(handler: Rc<H>, method: &'static Method, started: Instant) -> Self {
        handler.observe(method, Event::Started);
        Observed {
            handler,
            method,
            started,
            ended: false,
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        self.handler.observe(self.method, event);
    }

    pub(crate) fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.tell(Event::Handled {
                code,
                started: self.started,
            });
        }
    }

    pub(crate) fn fail(&mut self, status: &Status) -> Response<Body> {
        self.end(status.code);
        trailers_only(status)
    }
}

impl<H: Handler> Drop for Observed<H> {
    fn drop(&mut self) {
        self.end(Code::Canceled);
    }
}

/// Counts a call as open on its connection while it lives.
pub(crate) struct OpenCall<H>(Rc<Connection<H>>);

impl<H> OpenCall<H> {
    pub(crate) fn new(connection: &Rc<Connection<H>>) -> Self {
        connection.open_calls.set(connection.open_calls.get() + 1);
        OpenCall(Rc::clone(connection))
    }
}

impl<H> std::ops::Deref for OpenCall<H> {
    type Target = Connection<H>;

    fn deref(&self) -> &Connection<H> {
        &self.0
    }
}

impl<H> Drop for OpenCall<H> {
    fn drop(&mut self) {
        self.open_calls.set(self.open_calls.get() - 1);
    }
}
