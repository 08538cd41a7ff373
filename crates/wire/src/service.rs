//! From an HTTP request to the handler and back: routing, streams, plain HTTP.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use ledger::Charge;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::grpc::{self, Code, Status};
use crate::half_open::HalfOpens;
use crate::handler::{Call, Event, Handler, HttpRequest, Kind, LocalFuture, Method, Peer};
use crate::listener::Serves;
use crate::local::Flag;
use crate::memory::{ConnMemory, OpenCall, Unread, WorkerMemory};
use crate::message::{Assembler, Encoding, too_many_wait};
use crate::stream::{Body, Inbound, Observer, StreamBody};
use crate::turn;
use crate::unary::Unary;

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
    pub(crate) memory: Rc<WorkerMemory>,
    pub(crate) half_open: HalfOpens,
}

/// What the calls of one connection share.
pub(crate) struct Connection<H> {
    pub(crate) worker: Rc<WorkerState<H>>,
    pub(crate) peer: Rc<Peer>,
    pub(crate) serves: Serves,
    pub(crate) memory: Rc<ConnMemory>,
}

/// The future of one answer. It becomes a task and is moved a few times on the way: keep it small.
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
        let who = turn::Who::connection("http", &connection.peer);
        let served = serve_http(Rc::clone(connection), request);
        return Serving::Boxed(Box::pin(turn::Timed::new(who, served)));
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
        Ok((mut call, open, assembler)) => match method.kind {
            Kind::Unary => Serving::Unary(Unary::new(
                connection, call, open, assembler, body, observed,
            )),
            Kind::Stream => {
                call.settle(H::HEADERS);
                let connection = Rc::clone(connection);
                Serving::Boxed(Box::pin(stream(
                    connection, call, open, assembler, body, observed,
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
) -> Result<(Call, OpenCall, Assembler), Status> {
    let (worker, memory) = (&connection.worker, &connection.memory);
    let open = memory.open_call().map_err(|_| too_many_calls())?;
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
    let assembler = Assembler::new(
        Encoding::of(&headers)?,
        worker.config.max_message_bytes,
        &memory.requests,
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
            unread: Unread::new(memory),
        },
        open,
        assembler,
    ))
}

fn too_many_calls() -> Status {
    Status::new(
        Code::ResourceExhausted,
        "too many calls are open: close some, and read their answers",
    )
}

async fn next_frame(body: &mut Incoming) -> Option<Result<http_body::Frame<Bytes>, hyper::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// Runs a streaming call as a task beside its response.
async fn stream<H: Handler>(
    connection: Rc<Connection<H>>,
    call: Call,
    open: OpenCall,
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
    let memory = Rc::clone(&connection.memory);
    let (outbound, mut stream) =
        StreamBody::pair(worker.config.stream_queue_bytes, memory, observer);
    let (deadline, method) = (call.deadline, call.method);
    let handled = threads::contain(|| worker.handler.stream(call, inbound, outbound.clone()));
    let future = async move {
        let ended = match handled {
            Ok(future) => threads::Contained(future).await,
            Err(panicked) => Err(panicked),
        };
        ended.unwrap_or_else(|panicked| Err(Status::panicked(&panicked)))
    };
    let open = Rc::new(open);
    let with_task = Rc::clone(&open);
    let who = turn::Who::call(method, &connection.peer);
    let served = async move {
        let _open = with_task;
        let result = match deadline {
            None => future.await,
            Some(deadline) => timeout_at(deadline, future)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded())),
        };
        let status = result.err().unwrap_or(Status::OK);
        observed.end(status.code);
        outbound.finish(status);
    };
    let task = tokio::task::spawn_local(turn::Timed::new(who, served));
    stream.own(task.abort_handle(), open);
    match stream.first().await {
        Some(status) => trailers_only(&status),
        None => grpc_response(Body::Stream(stream)),
    }
}

/// What a plain HTTP request costs while its body is on its way, besides its bytes: the buffer
/// that its head is a slice of, and the table of its headers.
const HTTP_HEAD_BYTES: usize = 32 * 1024;

/// A header's place in its table, in bytes.
const HEADER_BYTES: usize = 160;

async fn serve_http<H: Handler>(
    connection: Rc<Connection<H>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let memory = &connection.memory;
    let Ok(_open) = memory.open_call() else {
        return http_refused(too_many_calls());
    };
    if memory.http_is_behind() {
        return http_refused(not_read());
    }
    let (head, body) = request.into_parts();
    let head_bytes = HTTP_HEAD_BYTES + head.headers.len() * HEADER_BYTES;
    let Ok(mut charge) = memory.requests.try_charge(head_bytes) else {
        return http_refused(too_many_wait());
    };
    let config = &connection.worker.config;
    let read = read_body(body, config.max_http_body_bytes, &mut charge);
    let read = tokio::time::timeout(config.body_timeout, read).await;
    let response = match read.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT)) {
        Ok(bytes) => {
            let request = Request::from_parts(head, bytes);
            let peer = Rc::clone(&connection.peer);
            let handler = &connection.worker.handler;
            let handled = threads::contain(|| handler.http(HttpRequest { request, peer }));
            let answered = match handled {
                Ok(future) => threads::Contained(future).await,
                Err(panicked) => Err(panicked),
            };
            answered.unwrap_or_else(|_| {
                let mut response = Response::new(Bytes::from_static(b"a bug in the server\n"));
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            })
        }
        Err(StatusCode::SERVICE_UNAVAILABLE) => return http_refused(too_many_wait()),
        Err(code) => {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = code;
            response
        }
    };
    // It is known only now how large the answer is. Small ones, such as probes get, have room
    // as long as any has.
    let len = response.body().len();
    if len > 0 && !memory.http_has_room(len) {
        return http_refused(not_read());
    }
    response.map(|bytes| Body::Full((len > 0).then(|| memory.answer(bytes))))
}

fn not_read() -> Status {
    Status::new(
        Code::ResourceExhausted,
        "too many answers are not read: read them, and ask again",
    )
}

/// A request's body, within its limit; what is held of it is charged.
async fn read_body(
    mut body: Incoming,
    limit_bytes: usize,
    charge: &mut Charge,
) -> Result<Bytes, StatusCode> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = next_frame(&mut body).await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        if bytes.len() + chunk.len() > limit_bytes {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let charged = charge.grow(chunk.len());
        charged.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// The answer to a plain HTTP request that no memory is left for. It has no body: those cost, too.
fn http_refused(why: Status) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if let Ok(why) = HeaderValue::from_str(&why.message) {
        response.headers_mut().insert("x-refused", why);
    }
    response
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

    pub(crate) fn method(&self) -> &'static Method {
        self.method
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
