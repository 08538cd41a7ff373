//! A member's page of metrics, over HTTP or HTTPS, on a connection that is kept.

use crate::page::MAX_PAGE_BYTES;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use telemetry::with_causes;
use tokio::net::TcpStream;
use upstream::{Endpoint, Scheme};
use wire::ClientTls;

/// Scrapes one address. A connection that failed is made again by the next scrape.
pub(crate) struct Scraper {
    at: Endpoint,
    tls: Option<Arc<ClientTls>>,
    open: Option<SendRequest<Empty<Bytes>>>,
}

impl Scraper {
    pub(crate) fn new(at: Endpoint, tls: Option<Arc<ClientTls>>) -> Self {
        Scraper {
            at,
            tls,
            open: None,
        }
    }

    /// The page, or why there is none, for an operator.
    pub(crate) async fn page(&mut self, deadline: Duration) -> Result<String, String> {
        match tokio::time::timeout(deadline, self.once()).await {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(why)) => {
                self.open = None;
                Err(format!("{}/metrics: {why}", self.at))
            }
            Err(_) => {
                self.open = None;
                let ms = deadline.as_millis();
                Err(format!("{}/metrics: no answer within {ms} ms", self.at))
            }
        }
    }

    async fn once(&mut self) -> Result<String, String> {
        let mut sender = match self.open.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => self.connect().await?,
        };
        let told = |e: &dyn std::error::Error| with_causes(e);
        sender.ready().await.map_err(|e| told(&e))?;
        let request = Request::get("/metrics")
            .header(header::HOST, self.at.authority())
            .body(Empty::new())
            .map_err(|e| told(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_PAGE_BYTES).collect();
        let body = body.await.map_err(|e| e.to_string())?.to_bytes();
        if status != StatusCode::OK {
            return Err(format!(
                "it answers {status}: metrics may have an address of their own there \
                 (--metrics-endpoints)"
            ));
        }
        self.open = Some(sender);
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let told = |e: std::io::Error| with_causes(&e);
        let (host, port) = (self.at.host.as_str(), self.at.port);
        let stream = TcpStream::connect((host, port)).await.map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        match (self.at.scheme, &self.tls) {
            (Scheme::Http, _) => begin(stream).await,
            (Scheme::Https, Some(tls)) => {
                begin(tls.connect(host, stream).await.map_err(told)?).await
            }
            (Scheme::Https, None) => Err("it wants TLS, and no CA is named".to_owned()),
        }
    }
}

async fn begin<S>(stream: S) -> Result<SendRequest<Empty<Bytes>>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|e| with_causes(&e))?;
    // Ends when the sender is dropped, or the peer closes.
    tokio::spawn(connection);
    Ok(sender)
}
