//! Connections to members.

use crate::endpoint::{Endpoint, Scheme};
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::ConnectError;
use tonic::transport::Channel;
use wire::ClientTls;

/// How long a connection may take to come about, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection with a call on it is asked for a sign of life this often. etcd closes one that
/// asks more often than every 5 s, or without a call.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// So long may the sign of life take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW_BYTES: u32 = 4 << 20;

/// Makes lines.
#[derive(Clone, Debug)]
pub struct Dialer {
    tls: Option<Arc<ClientTls>>,
}

/// A connection to one member, made when it is first used and again when it was lost.
#[derive(Clone, Debug)]
pub struct Line {
    /// To be given to a client.
    pub channel: Channel,
    connected: Arc<AtomicU64>,
}

impl Line {
    /// How often a connection was made: what is timed over a new one tells of the handshake too.
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Dialer {
    /// With these TLS files, if any of the endpoints wants them.
    pub fn new(tls: Option<Arc<ClientTls>>) -> Self {
        Dialer { tls }
    }

    /// A line to an endpoint; within a runtime.
    pub fn line(&self, endpoint: &Endpoint) -> Line {
        let connected = Arc::new(AtomicU64::new(0));
        let (dialer, counted, to) = (self.clone(), connected.clone(), endpoint.clone());
        let connector = tower::service_fn(move |_: http::Uri| {
            let (dialer, counted, to) = (dialer.clone(), counted.clone(), to.clone());
            async move {
                let made = match tokio::time::timeout(CONNECT_TIMEOUT, dialer.connect(&to)).await {
                    Ok(made) => made,
                    Err(_) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
                    )),
                };
                counted.fetch_add(1, Ordering::Relaxed);
                // By this type a failed call is known not to have been sent.
                made.map(TokioIo::new)
                    .map_err(|error| ConnectError(Box::new(error)))
            }
        });
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(match endpoint.scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
        uri.authority = endpoint.authority().parse().ok();
        uri.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        // A host that no URI may have does not resolve either: the connector says so.
        let uri = http::Uri::from_parts(uri).unwrap_or_default();
        let settings = tonic::transport::Endpoint::from(uri)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        Line {
            channel: Channel::new(connector, settings),
            connected,
        }
    }

    async fn connect(&self, to: &Endpoint) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
        stream.set_nodelay(true)?;
        match (to.scheme, &self.tls) {
            (Scheme::Http, _) => Ok(Box::new(stream)),
            (Scheme::Https, Some(tls)) => Ok(Box::new(tls.connect(&to.host, stream).await?)),
            (Scheme::Https, None) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it wants TLS, and no CA is named",
            )),
        }
    }
}
