//! A small HTTP client: HTTP/2 over TLS with a bearer token for apiservers, and
//! HTTP/1.1 without TLS for health and metrics pages.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::{Error, Result};

/// Limit for one request's answer to begin and, for bodies read whole, to end.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(35);

type Body = Full<Bytes>;

/// A client of one server on 127.0.0.1. Over TLS all requests share a connection,
/// which is made anew after it broke.
#[derive(Debug)]
pub struct Client {
    port: u16,
    tls: Option<Tls>,
}

#[derive(Debug)]
struct Tls {
    connector: Connector,
    token: String,
    connection: Mutex<Option<http2::SendRequest<Body>>>,
}

struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

fn transport(error: impl std::fmt::Display) -> Error {
    Error::Transport(error.to_string())
}

impl Client {
    /// A client for plain HTTP/1.1, a connection a request.
    #[must_use]
    pub fn plain(port: u16) -> Self {
        Self { port, tls: None }
    }

    /// A client for HTTP/2 over TLS that trusts the authority in `ca_cert` and
    /// shows `token`.
    ///
    /// # Errors
    /// If the authority's file cannot be read.
    pub fn tls(port: u16, ca_cert: &Path, token: &str) -> Result<Self> {
        let cert = CertificateDer::from_pem_file(ca_cert)
            .map_err(|error| Error::Failed(format!("{}: {error}", ca_cert.display())))?;
        let mut roots = RootCertStore::empty();
        roots.add(cert).map_err(transport)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(transport)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Tls {
            connector: Connector(TlsConnector::from(Arc::new(config))),
            token: token.to_owned(),
            connection: Mutex::new(None),
        };
        Ok(Self {
            port,
            tls: Some(tls),
        })
    }

    /// Sends a request and returns the head of the answer, its body unread.
    ///
    /// # Errors
    /// [`Error::Transport`] if there is no answer within the limit.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let answer = async {
            let mut request = Request::builder().method(method);
            if !body.is_empty() {
                request = request.header("content-type", content_type);
            }
            match &self.tls {
                Some(tls) => {
                    let mut connection = self.connection(tls).await?;
                    let request = request
                        .uri(format!("https://127.0.0.1:{}{path}", self.port))
                        .header("authorization", format!("Bearer {}", tls.token))
                        .header("accept", "application/json")
                        .body(Full::new(body))
                        .map_err(transport)?;
                    connection.send_request(request).await.map_err(transport)
                }
                None => {
                    let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
                    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                        .await
                        .map_err(transport)?;
                    tokio::spawn(connection);
                    let request = request
                        .uri(path)
                        .header("host", format!("127.0.0.1:{}", self.port))
                        .body(Full::new(body))
                        .map_err(transport)?;
                    sender.send_request(request).await.map_err(transport)
                }
            }
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Transport(format!("{path}: time-out"))),
        }
    }

    /// Sends a request and reads the whole answer: status and body.
    ///
    /// # Errors
    /// [`Error::Transport`] if there is no whole answer within the limit.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes)> {
        let response = self.send(method, path, content_type, body).await?;
        let status = response.status().as_u16();
        match tokio::time::timeout(REQUEST_TIMEOUT, response.into_body().collect()).await {
            Ok(body) => Ok((status, body.map_err(transport)?.to_bytes())),
            Err(_) => Err(Error::Transport(format!("{path}: time-out in the body"))),
        }
    }

    /// GETs a page of text, whatever its status.
    ///
    /// # Errors
    /// [`Error::Transport`] if there is no whole answer within the limit.
    pub async fn page(&self, path: &str) -> Result<(u16, String)> {
        let (status, body) = self.call(Method::GET, path, "", Bytes::new()).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn connection(&self, tls: &Tls) -> Result<http2::SendRequest<Body>> {
        let mut slot = tls.connection.lock().await;
        if let Some(connection) = slot.as_mut()
            && !connection.is_closed()
            && connection.ready().await.is_ok()
        {
            return Ok(connection.clone());
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
        let stream = tls.connector.0.connect(name, stream).await?;
        let (connection, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(transport)?;
        tokio::spawn(driver);
        *slot = Some(connection.clone());
        Ok(connection)
    }
}
