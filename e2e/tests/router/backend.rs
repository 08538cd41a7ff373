//! Pods of the tests: small HTTP servers that say who they are.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a pod counts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) now: AtomicU32,
    pub(crate) most: AtomicU32,
    pub(crate) all: AtomicU32,
}

/// A pod.
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Answers each request after `takes`, or after what a header `takes-ms` says.
    pub(crate) async fn start(name: &str, takes: Duration) -> Self {
        Self::start_at(name, Ipv4Addr::LOCALHOST.into(), takes).await
    }

    /// The same at another address of this machine.
    pub(crate) async fn start_at(name: &str, at: IpAddr, takes: Duration) -> Self {
        let listener = TcpListener::bind((at, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let (of, counted) = (name.to_owned(), counts.clone());
        let task = tokio::spawn(async move {
            // Ends with its connections when the pod is dropped.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (of, counted) = (of.clone(), counted.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let (of, counted) = (of.clone(), counted.clone());
                        async move { Ok::<_, Infallible>(serve(of, counted, request, takes).await) }
                    });
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            name: name.to_owned(),
            address,
            counts,
            task,
        }
    }

    pub(crate) fn all(&self) -> u32 {
        self.counts.all.load(Ordering::SeqCst)
    }
}

struct Busy(Arc<Counts>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

async fn serve(
    name: String,
    counts: Arc<Counts>,
    mut request: Request<Incoming>,
    takes: Duration,
) -> Response<Body> {
    let now = counts.now.fetch_add(1, Ordering::SeqCst) + 1;
    counts.most.fetch_max(now, Ordering::SeqCst);
    counts.all.fetch_add(1, Ordering::SeqCst);
    let busy = Busy(counts);
    let number = |name: &str| {
        let value = request.headers().get(name)?.to_str().ok()?;
        value.parse::<u64>().ok()
    };
    tokio::time::sleep(number("takes-ms").map_or(takes, Duration::from_millis)).await;
    let mut answer = match request.uri().path() {
        "/echo" => {
            let body = request.into_body().collect().await;
            full(body.map(|body| body.to_bytes()).unwrap_or_default())
        }
        "/large" => full(vec![b'x'; number("bytes").unwrap_or(1 << 20) as usize]),
        "/headers" => full(format!("{:?} {:?}", request.uri(), request.headers())),
        "/switch" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let _busy = busy;
                if let Ok(stream) = upgrade.await {
                    let (mut from, mut to) = tokio::io::split(TokioIo::new(stream));
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                }
            });
            let mut answer = Response::new(full(""));
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = answer.headers_mut();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            headers.insert("pod", HeaderValue::try_from(name).unwrap());
            return answer;
        }
        "/shop.Cart/Get" => {
            // As gRPC: what was asked for comes back, and the status is a trailer.
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [Frame::data(body), Frame::trailers(trailers)];
            let frames = frames.map(Ok::<_, Infallible>);
            StreamBody::new(tokio_stream::iter(frames)).boxed_unsync()
        }
        _ => full(name.clone()),
    };
    drop(busy);
    let mut response = Response::new(std::mem::replace(&mut answer, full("")));
    response
        .headers_mut()
        .insert("pod", HeaderValue::try_from(name).unwrap());
    // Ours, to be removed on the way.
    response
        .headers_mut()
        .insert("orlop-failed", HeaderValue::from_static("broken not-sent"));
    response
}
