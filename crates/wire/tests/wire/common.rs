//! A server with a few test methods, and a small gRPC client that shows what is on the wire.
#![allow(unreachable_pub, reason = "a module of a test, not an API")]

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use wire::{
    Address, Call, Code, Config, Event, Frame, Handler, HttpRequest, Inbound, Kind, ListenerConfig,
    LocalFuture, Method, Outbound, Reply, Server, Status,
};

const fn method(name: &'static str, kind: Kind, id: u16) -> Method {
    Method {
        service: "test.Echo",
        name,
        kind,
        id,
    }
}

pub static METHODS: [Method; 12] = [
    method("Echo", Kind::Unary, 0),
    method("Fail", Kind::Unary, 1),
    method("Later", Kind::Unary, 2),
    method("Hang", Kind::Unary, 3),
    method("Bidi", Kind::Stream, 4),
    method("Flood", Kind::Stream, 5),
    method("Wait", Kind::Stream, 6),
    method("Refuse", Kind::Stream, 7),
    method("Who", Kind::Unary, 8),
    method("Huge", Kind::Unary, 9),
    method("HugeStream", Kind::Stream, 10),
    method("Large", Kind::Unary, 11),
];

/// What the handlers of all workers count.
#[derive(Debug, Default)]
pub struct Counts {
    pub started: AtomicUsize,
    pub handled: AtomicUsize,
    pub canceled: AtomicUsize,
    pub received_bytes: AtomicUsize,
    pub sent_bytes: AtomicUsize,
    pub streams_open: AtomicUsize,
    pub flood_queued_max: AtomicUsize,
}

pub struct Echo(pub Arc<Counts>);

struct StreamOpen(Arc<Counts>);

impl Drop for StreamOpen {
    fn drop(&mut self) {
        self.0.streams_open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One that is too large for any client. It is never built.
fn huge() -> Frame {
    Frame::encode(wire::MAX_MESSAGE_BYTES + 1, |_| panic!("built"))
}

pub fn frame(payload: &[u8]) -> Frame {
    Frame::encode(payload.len(), |buf| buf.put_slice(payload))
}

impl Handler for Echo {
    fn unary(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        match call.method.name {
            "Fail" => Reply::Now(Err(Status::new(Code::OutOfRange, "50% gone: ü"))),
            "Later" => Reply::Later(Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(frame(&message))
            })),
            "Huge" => Reply::Now(Ok(huge())),
            // An answer as long as the request says, made when there is room for it.
            "Large" => Reply::Later(Box::pin(async move {
                let len = std::str::from_utf8(&message).unwrap().parse().unwrap();
                let claim = call.unread().claim(len).await;
                let answer = frame(&vec![b'l'; len]);
                drop(claim);
                Ok(answer)
            })),
            "Hang" => Reply::Later(Box::pin(std::future::pending())),
            "Who" => {
                let name = call
                    .peer
                    .tls
                    .as_ref()
                    .and_then(|tls| tls.common_name.clone());
                let name = name.unwrap_or_else(|| "nobody".to_owned());
                let worker = wire::current_worker().unwrap();
                Reply::Now(Ok(frame(
                    format!("{name}@{}#{worker}", call.peer.address).as_bytes(),
                )))
            }
            _ if &message[..] == b"panic now" => panic!("a handler's fault"),
            _ => Reply::Now(Ok(frame(&message))),
        }
    }

    fn stream(
        self: &Rc<Self>,
        call: Call,
        mut inbound: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        self.0.streams_open.fetch_add(1, Ordering::SeqCst);
        let open = StreamOpen(Arc::clone(&self.0));
        match call.method.name {
            "Flood" => Box::pin(async move {
                let shared = Bytes::from(vec![b'f'; 64 * 1024]);
                loop {
                    let queued = outbound.queued_bytes();
                    open.0.flood_queued_max.fetch_max(queued, Ordering::SeqCst);
                    if outbound.send(frame(&shared)).await.is_err() {
                        return Ok(());
                    }
                }
            }),
            "Wait" => Box::pin(async move {
                let _open = open;
                let closing = call.closing();
                outbound.try_send(frame(b"ready")).unwrap();
                closing.wait().await;
                Err(Status::new(Code::Unavailable, "server stopped"))
            }),
            "HugeStream" => Box::pin(async move {
                let _open = open;
                outbound.try_send(frame(b"first")).unwrap();
                assert!(outbound.try_send(huge()).is_err());
                Ok(())
            }),
            "Refuse" => Box::pin(async move {
                let _open = open;
                Err(Status::new(Code::PermissionDenied, "not you"))
            }),
            _ => Box::pin(async move {
                let _open = open;
                while let Some(message) = inbound.next().await? {
                    if outbound.send(frame(&message)).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }),
        }
    }

    fn http(self: &Rc<Self>, request: HttpRequest) -> LocalFuture<Response<Bytes>> {
        Box::pin(async move {
            let request = request.request;
            let text = format!(
                "{} {} {}",
                request.method(),
                request.uri(),
                request.body().len()
            );
            Response::new(Bytes::from(text))
        })
    }

    fn observe(&self, _method: &'static Method, event: Event) {
        match event {
            Event::Started => self.0.started.fetch_add(1, Ordering::SeqCst),
            Event::Received { bytes } => self.0.received_bytes.fetch_add(bytes, Ordering::SeqCst),
            Event::Sent { bytes } => self.0.sent_bytes.fetch_add(bytes, Ordering::SeqCst),
            Event::Handled { code, .. } => {
                if code == Code::Canceled {
                    self.0.canceled.fetch_add(1, Ordering::SeqCst);
                }
                self.0.handled.fetch_add(1, Ordering::SeqCst)
            }
        };
    }
}

pub struct Running {
    pub server: Server,
    pub address: SocketAddr,
    pub counts: Arc<Counts>,
}

/// A server on a free port.
pub fn start(config: Config) -> Running {
    start_on(
        config,
        ListenerConfig::new(Address::Tcp("127.0.0.1:0".to_owned()), None),
    )
}

pub fn start_on(config: Config, listener: ListenerConfig) -> Running {
    let bound = wire::bind(vec![listener]).unwrap();
    let address = bound[0]
        .local_addr()
        .unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
    let counts = Arc::new(Counts::default());
    let shared = Arc::clone(&counts);
    let server =
        Server::start(bound, config, &METHODS, move |_| Echo(Arc::clone(&shared))).unwrap();
    Running {
        server,
        address,
        counts,
    }
}

type Chunk = Result<hyper::body::Frame<Bytes>, std::convert::Infallible>;
pub type RequestBody = StreamBody<Pin<Box<dyn tokio_stream::Stream<Item = Chunk> + Send + Sync>>>;

/// A client's connection.
#[derive(Clone)]
pub struct Client {
    pub send: SendRequest<RequestBody>,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    pub http: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Empty for a trailers-only response.
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn code(&self) -> u32 {
        let place = if self.trailers.is_empty() {
            &self.headers
        } else {
            &self.trailers
        };
        place["grpc-status"].to_str().unwrap().parse().unwrap()
    }

    pub fn text(&self) -> &str {
        let place = if self.trailers.is_empty() {
            &self.headers
        } else {
            &self.trailers
        };
        place
            .get("grpc-message")
            .map_or("", |value| value.to_str().unwrap())
    }
}

pub fn request(path: &str) -> http::request::Builder {
    Request::post(format!("http://test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

pub fn whole(body: Bytes) -> RequestBody {
    let chunk: Chunk = Ok(hyper::body::Frame::data(body));
    StreamBody::new(Box::pin(tokio_stream::once(chunk)))
}

/// A body without a frame.
pub fn no_body() -> RequestBody {
    StreamBody::new(Box::pin(tokio_stream::empty()))
}

/// A body that begins so and does not end.
pub fn unfinished(begin: Bytes) -> RequestBody {
    let chunk: Chunk = Ok(hyper::body::Frame::data(begin));
    let begin = tokio_stream::once(chunk);
    StreamBody::new(Box::pin(tokio_stream::StreamExt::chain(
        begin,
        tokio_stream::pending(),
    )))
}

pub fn wire_bytes(payload: &[u8]) -> Bytes {
    let mut buf = BytesMut::new();
    buf.put_u8(0);
    buf.put_u32(payload.len().try_into().unwrap());
    buf.put_slice(payload);
    buf.freeze()
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        Client::try_over(TcpStream::connect(address).await.unwrap())
            .await
            .unwrap()
    }

    /// Over any transport; errors if the server closes it at once.
    pub async fn try_over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> hyper::Result<Client> {
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
        tokio::spawn(connection);
        Ok(Client { send })
    }

    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        self.send.ready().await?;
        self.send.send_request(request).await
    }

    pub async fn ask(&mut self, request: Request<RequestBody>) -> Answer {
        let response = self.send(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        Answer {
            http: head.status,
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        }
    }

    pub async fn unary(&mut self, name: &str, payload: &[u8]) -> Answer {
        let request = request(&format!("/test.Echo/{name}")).body(whole(wire_bytes(payload)));
        self.ask(request.unwrap()).await
    }

    /// Opens a stream; the sender's drop closes the client's half.
    pub async fn stream(&mut self, name: &str) -> (mpsc::UnboundedSender<Bytes>, Opening) {
        let (tx, mut rx) = mpsc::unbounded_channel::<Bytes>();
        let stream = async_stream(move |cx| {
            rx.poll_recv(cx)
                .map(|item| item.map(|bytes| Ok(hyper::body::Frame::data(bytes))))
        });
        let request = request(&format!("/test.Echo/{name}"))
            .body(StreamBody::new(stream))
            .unwrap();
        self.send.ready().await.unwrap();
        (tx, Box::pin(self.send.send_request(request)))
    }
}

pub type Opening = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

fn async_stream<F>(poll: F) -> Pin<Box<dyn tokio_stream::Stream<Item = Chunk> + Send + Sync>>
where
    F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Chunk>>
        + Send
        + Sync
        + Unpin
        + 'static,
{
    struct Poller<F>(F);
    impl<F> tokio_stream::Stream for Poller<F>
    where
        F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Chunk>> + Unpin,
    {
        type Item = Chunk;
        fn poll_next(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Chunk>> {
            (self.0)(cx)
        }
    }
    Box::pin(Poller(poll))
}

/// The next chunk of a streaming response.
pub async fn next_chunk(body: &mut Incoming) -> Option<hyper::Result<hyper::body::Frame<Bytes>>> {
    tokio::time::timeout(Duration::from_secs(10), body.frame())
        .await
        .expect("no chunk came")
}

/// Waits until a condition holds, at most 10 s.
pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never happened: {what}");
}
