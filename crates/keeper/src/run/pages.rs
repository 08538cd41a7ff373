//! Pages for operators and probes, over plain HTTP on TCP and on the Unix socket in the copy's
//! directory: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 while it follows a server |
//! | `/v1/status` | where the copy stands and how far it is behind, as JSON |

use super::view::View;
use http::StatusCode;
use journal::Proof;
use metrics::{KeeperInput, keeper_page};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use wire::Page;

/// Served until it is dropped.
#[derive(Debug)]
pub struct Pages(wire::Pages);

impl Pages {
    /// Serves the pages at these addresses, each a `host:port`, and on a Unix socket. `version` is
    /// orlop's.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        view: Arc<View>,
        addresses: &[String],
        socket: Option<PathBuf>,
        version: &'static str,
    ) -> Result<Pages, wire::Error> {
        let shown = Shown { view, version };
        let by_path = move |path: &str| shown.page(path);
        Ok(Pages(wire::Pages::start(
            "orlop keeper",
            addresses,
            socket,
            by_path,
        )?))
    }

    /// Where it listens, as URLs.
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

struct Shown {
    view: Arc<View>,
    version: &'static str,
}

impl Shown {
    fn page(&self, path: &str) -> Option<Page> {
        Some(match path {
            "/metrics" => {
                let page = keeper_page(&self.input(), self.version);
                Page::new(metrics::CONTENT_TYPE, page)
            }
            "/healthz" => Page::text(StatusCode::OK, "ok"),
            "/readyz" => {
                let seen = self.view.seen();
                let why = seen.problem.as_deref().unwrap_or("it has not followed yet");
                match seen.following {
                    true => Page::text(StatusCode::OK, "ok"),
                    false => Page::text(StatusCode::SERVICE_UNAVAILABLE, why),
                }
            }
            "/v1/status" => Page::json(&self.status()),
            _ => return None,
        })
    }

    fn input(&self) -> KeeperInput {
        let seen = self.view.seen();
        KeeperInput {
            following: seen.following,
            complete: seen.complete(),
            revision: seen.standing.revision,
            lag_records: seen.lag_records,
            lag_bytes: seen.lag_bytes,
            lag_s: seen.lag_ms as f64 / 1000.0,
            last_contact_unix_s: seen.last_contact_unix_ms as f64 / 1000.0,
            connects: seen.connects,
            snapshots: seen.snapshots,
            records: seen.records,
            log_bytes: seen.log_bytes,
            saved_last_unix_s: seen.saved.last_unix_s as f64,
            saved_bytes: seen.saved.bytes,
            saved_failures: seen.saved.failures,
        }
    }

    fn status(&self) -> Value {
        let seen = self.view.seen();
        let proof = seen.standing.followed.map(|at| match at.proof {
            Proof::None => "none",
            Proof::Waits => "the server waits for this keeper",
            Proof::Stopped => "the server stopped, and this copy has all up to its end",
        });
        let identity = seen.identity.as_ref();
        json!({
            "role": "keeper",
            "version": self.version,
            "server": seen.server,
            "following": seen.following,
            "joining": seen.joining,
            "problem": seen.problem,
            "cluster_id": identity.map(|of| format!("{:x}", of.cluster_id)),
            "raft_term": identity.map(|of| of.raft_term),
            "revision": seen.standing.revision,
            "proof": proof,
            "complete": seen.complete(),
            "lag_records": seen.lag_records,
            "lag_bytes": seen.lag_bytes,
            "lag_ms": seen.lag_ms,
            "silent_ms": seen.silent_ms,
            "connects": seen.connects,
            "snapshots": seen.snapshots,
            "records": seen.records,
            "log_bytes": seen.log_bytes,
            "saved_snapshot_unix_s": seen.saved.last_unix_s,
            "saved_snapshot_failures": seen.saved.failures,
        })
    }
}
