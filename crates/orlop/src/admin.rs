//! Asks a running server's admin endpoint, over its Unix socket.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// An answer is some kilobytes.
const LIMIT_BYTES: usize = 4 << 20;
/// A switch to stricter rules waits for the disk; longer than this is an incident.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which server.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// The data directory of the server, which must run on this machine.
    #[arg(long, default_value = "default.orlop", env = "ORLOP_DATA_DIR")]
    data_dir: PathBuf,
    /// Its admin socket, if that is not in the data directory.
    #[arg(long, conflicts_with = "data_dir")]
    admin_socket: Option<PathBuf>,
}

impl Target {
    fn socket(&self) -> PathBuf {
        let own = || self.data_dir.join(server::ADMIN_SOCKET);
        self.admin_socket.clone().unwrap_or_else(own)
    }
}

/// What to ask for.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) body: String,
}

/// Asks; returns the body, or a sentence on why there is none.
pub(crate) fn ask(target: &Target, ask: &Ask<'_>) -> Result<String, String> {
    let socket = target.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, exchange(&socket, ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!(
                "no answer on {} for {} s: the server's disk may stand still",
                socket.display(),
                PATIENCE.as_secs()
            )),
        }
    })
}

async fn exchange(socket: &Path, ask: &Ask<'_>) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot talk to {}: {e}", socket.display());
    let stream = UnixStream::connect(socket).await.map_err(|e| {
        format!(
            "no server answers on {}: {e}; is it running, and is this its data directory (--data-dir, --admin-socket)?",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    // Ends with the exchange.
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header("host", "orlop")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(ask.body.clone())))
        .map_err(|e| failed(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LIMIT_BYTES);
    let body = body.collect().await.map_err(|e| failed(&e))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        return Ok(text);
    }
    let told: Option<Value> = serde_json::from_str(&text).ok();
    let told = told.as_ref().and_then(|v| v.get("error")?.as_str());
    Err(told.map_or_else(|| format!("the server answered {status}"), str::to_owned))
}
