//! A Kubernetes client that does little: HTTP/2 to the apiserver of a kubeconfig, answers
//! and watches in protobuf.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Result, proto};
use crate::Error;

/// Limit for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A watch is asked to stay open for so long, which is longer than any load. Without that the
/// apiserver ends it after half an hour or more.
const WATCH_TIMEOUT_S: u32 = 200_000;
/// An event is not larger; an object may have 1.5 MiB in etcd.
const MAX_EVENT_BYTES: usize = 64 << 20;
/// An answer is not larger. A pod takes some 2 KiB in a list, and there may be 200,000.
const MAX_ANSWER_BYTES: usize = 1 << 30;
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Which apiserver, and who we are to it.
#[derive(Clone)]
pub(crate) struct Target {
    host: String,
    port: u16,
    /// What URLs begin with: host, an IPv6 address in brackets, port, and perhaps a path.
    base: String,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    token: Option<String>,
}

impl Target {
    /// Reads the current context of a kubeconfig.
    pub(crate) fn from_kubeconfig(path: &Path) -> Result<Target> {
        let bad = |why: String| Error::Kubeconfig {
            path: path.to_owned(),
            why,
        };
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let config: serde_json::Value =
            serde_yaml_ng::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let named = |list: &str, name: &serde_json::Value, field: &str| {
            let found = config[list]
                .as_array()
                .into_iter()
                .flatten()
                .find(|entry| entry["name"] == *name);
            found
                .map(|entry| entry[field].clone())
                .ok_or_else(|| bad(format!("{list} has no entry called {name}")))
        };
        let context = named("contexts", &config["current-context"], "context")?;
        let cluster = named("clusters", &context["cluster"], "cluster")?;
        let user = named("users", &context["user"], "user")?;
        for (of, field) in [
            (&user, "exec"),
            (&user, "auth-provider"),
            (&cluster, "proxy-url"),
        ] {
            if !of[field].is_null() {
                return Err(bad(format!(
                    "`{field}` is not supported here; use a kubeconfig with a token or a client certificate"
                )));
            }
        }
        let server = cluster["server"].as_str().unwrap_or_default();
        let uri: http::Uri = server
            .parse()
            .map_err(|_| bad(format!("`{server}` is no URL")))?;
        let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(bad(format!("`{server}` is not https://HOST:PORT")));
        };
        let port = uri.port_u16().unwrap_or(443);
        let base = format!("https://{host}:{port}{}", uri.path().trim_end_matches('/'));
        let dir = path.parent().unwrap_or(Path::new("."));
        let data = |of: &serde_json::Value, field: &str| -> Result<Option<Vec<u8>>> {
            if let Some(text) = of[format!("{field}-data")].as_str() {
                let decoded = base64::engine::general_purpose::STANDARD.decode(text);
                return decoded
                    .map(Some)
                    .map_err(|e| bad(format!("{field}-data: {e}")));
            }
            match of[field].as_str() {
                None => Ok(None),
                Some(file) => {
                    let file: PathBuf = dir.join(file);
                    let read = std::fs::read(&file);
                    read.map(Some)
                        .map_err(|e| bad(format!("{}: {e}", file.display())))
                }
            }
        };
        let tls_bad = |error: &dyn std::fmt::Display| bad(format!("TLS: {error}"));
        let mut roots = RootCertStore::empty();
        let certificates = data(&cluster, "certificate-authority")?.ok_or_else(|| {
            bad("the cluster names no certificate-authority; others are not trusted here".into())
        })?;
        for cert in CertificateDer::pem_slice_iter(&certificates) {
            roots
                .add(cert.map_err(|e| tls_bad(&e))?)
                .map_err(|e| tls_bad(&e))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|e| tls_bad(&e))?
        .with_root_certificates(roots);
        let certificate = data(&user, "client-certificate")?;
        let mut tls = match (certificate, data(&user, "client-key")?) {
            (Some(certificate), Some(key)) => {
                let chain: std::result::Result<Vec<_>, _> =
                    CertificateDer::pem_slice_iter(&certificate).collect();
                let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| tls_bad(&e))?;
                builder
                    .with_client_auth_cert(chain.map_err(|e| tls_bad(&e))?, key)
                    .map_err(|e| tls_bad(&e))?
            }
            _ => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let token = match (user["token"].as_str(), data(&user, "tokenFile")?) {
            (Some(token), _) => Some(token.to_owned()),
            (None, Some(file)) => Some(String::from_utf8_lossy(&file).trim().to_owned()),
            (None, None) => None,
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = cluster["tls-server-name"]
            .as_str()
            .unwrap_or(&host)
            .to_owned();
        Ok(Target {
            server_name: ServerName::try_from(name).map_err(|e| tls_bad(&e))?,
            port,
            host,
            base,
            tls: Arc::new(tls),
            token,
        })
    }

    async fn connect(&self) -> Result<http2::SendRequest<Full<Bytes>>> {
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::clone(&self.tls))
                .connect(self.server_name.clone(), stream)
                .await
        };
        let stream = tokio::time::timeout(REQUEST_TIMEOUT, connecting)
            .await
            .map_err(|_| Error::Apiserver("no connection within 60 s".into()))?
            .map_err(|e| Error::Apiserver(format!("{}:{}: {e}", self.host, self.port)))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Error::Apiserver(e.to_string()))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// One connection to an apiserver.
#[derive(Clone)]
pub(crate) struct Client {
    target: Arc<Target>,
    sender: http2::SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn connect(target: Arc<Target>) -> Result<Client> {
        let sender = target.connect().await?;
        Ok(Client { target, sender })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let target = &self.target;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", target.base))
            .header("accept", accept)
            .header("user-agent", "orlop-bench");
        if let Some(token) = &target.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|e| Error::Apiserver(e.to_string()))?;
        let sending = self.sender.clone().send_request(request);
        match tokio::time::timeout(REQUEST_TIMEOUT, sending).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Error::Apiserver(format!("{path}: {error}"))),
            Err(_) => Err(Error::Apiserver(format!("{path}: no answer within 60 s"))),
        }
    }

    /// Sends a request, perhaps with an object in JSON, and reads the answer: its body, an
    /// object in protobuf.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        self.answer(method, path, PROTOBUF, body).await
    }

    async fn answer(&self, method: Method, path: &str, accept: &str, body: Bytes) -> Result<Bytes> {
        let response = self.send(method.clone(), path, accept, body).await?;
        let status = response.status().as_u16();
        let reading = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect();
        let body = match tokio::time::timeout(REQUEST_TIMEOUT, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(Error::Apiserver(format!("{path}: {error}"))),
            Err(_) => return Err(Error::Apiserver(format!("{path}: half an answer"))),
        };
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let message = match proto::object::<proto::Status>(&body) {
            Ok(status) => status.message,
            Err(_) => String::from_utf8_lossy(&body).chars().take(300).collect(),
        };
        Err(refused(method.as_str(), path, status, message))
    }

    pub(crate) async fn get<T: prost::Message + Default>(&self, path: &str) -> Result<T> {
        let body = self.call(Method::GET, path, Bytes::new()).await?;
        proto::object(&body).map_err(Error::Decode)
    }

    /// A page of text.
    pub(crate) async fn page(&self, path: &str) -> Result<String> {
        let body = self.answer(Method::GET, path, "*/*", Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    pub(crate) async fn watch(&self, path: &str, resource_version: &str) -> Result<Watch> {
        let path = format!(
            "{path}?watch=true&resourceVersion={resource_version}&timeoutSeconds={WATCH_TIMEOUT_S}"
        );
        let accept = format!("{PROTOBUF};stream=watch");
        let response = self.send(Method::GET, &path, &accept, Bytes::new()).await?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(refused("WATCH", &path, status, "no reason given".into()));
        }
        Ok(Watch {
            body: response.into_body(),
            pending: BytesMut::new(),
        })
    }
}

/// An answer that is not a success.
fn refused(method: &str, path: &str, status: u16, message: String) -> Error {
    Error::Cluster(playground::Error::Status {
        method: method.to_owned(),
        path: path.to_owned(),
        status,
        message,
    })
}

/// A watch stream: frames of a length in four bytes and an event.
pub(crate) struct Watch {
    body: Incoming,
    pending: BytesMut,
}

impl Watch {
    /// The next event: its kind and its encoded object. None at the stream's end.
    pub(crate) async fn next(&mut self) -> Result<Option<(String, Bytes)>> {
        loop {
            if let Some(length) = self.pending.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_EVENT_BYTES {
                    return Err(Error::Decode(format!("an event of {length} bytes")));
                }
                if self.pending.len() >= 4 + length {
                    self.pending.advance(4);
                    let frame = self.pending.split_to(length).freeze();
                    return proto::event(frame).map(Some).map_err(Error::Decode);
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::Apiserver(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<Target> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, config).unwrap();
        Target::from_kubeconfig(&path)
    }

    #[test]
    fn what_a_kubeconfig_may_not_have_is_named() {
        let config = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
                      clusters: [{name: k, cluster: {server: SERVER}}]\nusers: [{name: u, user: USER}]\n";
        let told = |server: &str, user: &str| {
            let text = config.replace("SERVER", server).replace("USER", user);
            read(&text).err().unwrap().to_string()
        };
        assert!(told("\"https://h:1\"", "{exec: {}}").contains("exec"));
        assert!(told("\"http://h:1\"", "{}").contains("https"));
        assert!(told("\"https://h:1\"", "{}").contains("certificate-authority"));
        assert!(read("current-context: x").is_err());
    }

    #[test]
    fn urls_begin_as_the_server_is_written() {
        let config = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
                      clusters: [{name: k, cluster: {server: \"SERVER\", certificate-authority-data: \"\"}}]\n\
                      users: [{name: u, user: {token: t}}]\n";
        for (server, host, base) in [
            ("https://h:6443", "h", "https://h:6443"),
            ("https://[::1]", "::1", "https://[::1]:443"),
            ("https://h/clusters/c/", "h", "https://h:443/clusters/c"),
        ] {
            let target = read(&config.replace("SERVER", server)).unwrap();
            assert_eq!((target.host.as_str(), target.base.as_str()), (host, base));
        }
    }
}
