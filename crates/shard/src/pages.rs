//! Pages for operators and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 while a server has taken it |
//! | `/v1/status` | whom it holds for and what, as JSON |

use crate::view::View;
use http::StatusCode;
use metrics::{ShardInput, shard_page};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::Page;

/// Served until it is dropped.
#[derive(Debug)]
pub struct Pages(wire::Pages);

impl Pages {
    /// Serves the pages at these addresses, each a `host:port`. `version` is orlop's.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        view: Arc<View>,
        addresses: &[String],
        version: &'static str,
    ) -> Result<Pages, wire::Error> {
        let by_path = move |path: &str| page(&view, version, path);
        Ok(Pages(wire::Pages::start(
            "orlop shard",
            addresses,
            None,
            by_path,
        )?))
    }

    /// Where it listens, as URLs.
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

fn page(view: &View, version: &'static str, path: &str) -> Option<Page> {
    Some(match path {
        "/metrics" => Page::new(metrics::CONTENT_TYPE, shard_page(&input(view), version)),
        "/healthz" => Page::text(StatusCode::OK, "ok"),
        "/readyz" => {
            let seen = view.seen();
            let why = seen
                .problem
                .as_deref()
                .unwrap_or("no server has taken it yet");
            match seen.connected {
                true => Page::text(StatusCode::OK, "ok"),
                false => Page::text(StatusCode::SERVICE_UNAVAILABLE, why),
            }
        }
        "/v1/status" => Page::json(&status(view, version)),
        _ => return None,
    })
}

fn input(view: &View) -> ShardInput {
    let seen = view.seen();
    ShardInput {
        connected: seen.connected,
        frames: seen.frames,
        bytes: seen.bytes,
        limit_bytes: seen.limit_bytes,
        connects: seen.connects,
        messages: seen.messages,
    }
}

fn status(view: &View, version: &'static str) -> Value {
    let seen = view.seen();
    json!({
        "role": "shard",
        "version": version,
        "name": seen.name,
        "zone": seen.zone,
        "incarnation": format!("{:x}", seen.incarnation),
        "server": seen.server,
        "connected": seen.connected,
        "problem": seen.problem,
        "set": seen.set,
        "held": seen.held,
        "frames": seen.frames,
        "bytes": seen.bytes,
        "limit_bytes": seen.limit_bytes,
        "connects": seen.connects,
    })
}
