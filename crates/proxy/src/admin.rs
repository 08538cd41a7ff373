//! Pages for operators and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process serves |
//! | `/readyz` | 200 while new connections get a member |
//! | `/v1/status` | members, leader, connections, as JSON |

use std::sync::Arc;

use http::StatusCode;
use metrics::{ProxyInput, ProxyMember};
use serde_json::{Value, json};
use tokio::time::Instant;
use upstream::{Health, MemberView, View};
use wire::Page;

use crate::error::Error;
use crate::route::{Service, why_nobody_leads};
use crate::serve::{Proxy, Shared};
use crate::settings::Fallback;

/// A running admin endpoint. It ends when it is dropped.
#[derive(Debug)]
pub struct Admin(wire::Pages);

impl Admin {
    /// Serves the pages of `proxy` at these addresses, each a `host:port`. `dropped_lines` reads
    /// the log's counter; `version` is orlop's.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        proxy: &Proxy,
        addresses: &[String],
        version: &'static str,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Admin, Error> {
        let pages = Pages {
            shared: proxy.shared(),
            version,
            dropped_lines: Box::new(dropped_lines),
        };
        let by_path = move |path: &str| pages.page(path);
        Ok(Admin(wire::Pages::start(
            "orlop proxy",
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

struct Pages {
    shared: Arc<Shared>,
    version: &'static str,
    dropped_lines: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Pages {
    fn page(&self, path: &str) -> Option<Page> {
        Some(match path {
            "/metrics" => {
                let page = self.shared.book.metrics.encode(&self.input());
                Page::new(metrics::CONTENT_TYPE, page)
            }
            "/healthz" => Page::text(StatusCode::OK, "ok"),
            "/readyz" => self.ready(),
            "/v1/status" => Page::json(&self.status()),
            _ => return None,
        })
    }

    fn ready(&self) -> Page {
        if matches!(*self.shared.service.borrow(), Service::DrainBy(_)) {
            return Page::text(StatusCode::SERVICE_UNAVAILABLE, "the proxy stops");
        }
        let view = self.shared.views.borrow();
        if let Some(leader) = &view.leader {
            let said = format!("ok: {} leads in term {}", leader.endpoint, leader.term);
            return Page::text(StatusCode::OK, &said);
        }
        let why = why_nobody_leads(&view);
        let follower = view
            .members
            .iter()
            .any(|m| m.health.is_healthy() && !m.learner);
        if follower && self.shared.settings.fallback == Fallback::Follower {
            let said = format!("ok: nobody leads, new connections wait and go to followers: {why}");
            return Page::text(StatusCode::OK, &said);
        }
        let said = format!("nobody leads: {why}");
        Page::text(StatusCode::SERVICE_UNAVAILABLE, &said)
    }

    /// Connections: at members, and of those leaving.
    fn at_members(&self) -> (usize, usize) {
        let members = self.shared.book.members();
        members
            .values()
            .fold((0, 0), |(open, leaving), of| (open + of.0, leaving + of.1))
    }

    fn input(&self) -> ProxyInput {
        let view = self.shared.views.borrow().clone();
        let at = self.shared.book.members();
        let seconds = |us: Option<u64>| us.map(|us| us as f64 / 1e6);
        let member = |m: &MemberView| ProxyMember {
            name: m.name.clone(),
            endpoint: m.endpoint.to_string(),
            leads: leads(&view, m),
            healthy: m.health.is_healthy(),
            term: m.term,
            raft_index: m.raft_index,
            db_bytes: m.db_size_bytes,
            round_trip_s: [
                seconds(m.round_trip.smoothed_us),
                seconds(m.round_trip.p50_us),
                seconds(m.round_trip.p99_us),
            ],
            connections: at.get(&m.endpoint).map_or(0, |of| of.0 as u64),
        };
        let (open, leaving) = self.at_members();
        let (_, waiting) = self.shared.book.numbers();
        ProxyInput {
            members: view.members.iter().map(member).collect(),
            has_leader: view.leader.is_some(),
            leader_changes: view.changes,
            open: open as u64,
            waiting: waiting as u64,
            leaving: leaving as u64,
            log_lines_dropped: (self.dropped_lines)(),
        }
    }

    /// Everything that `orlop proxy status` shows.
    fn status(&self) -> Value {
        let view = self.shared.views.borrow().clone();
        let at = self.shared.book.members();
        let book = &self.shared.book;
        let (accepted, waiting) = book.numbers();
        let (open, leaving) = self.at_members();
        let members: Vec<Value> = view
            .members
            .iter()
            .map(|m| member(&view, m, at.get(&m.endpoint).copied().unwrap_or_default()))
            .collect();
        let metrics = &book.metrics;
        let listens = self.shared.listens.iter().map(ToString::to_string);
        json!({
            "version": self.version,
            "listen": listens.collect::<Vec<_>>(),
            "draining": matches!(*self.shared.service.borrow(), Service::DrainBy(_)),
            "cluster_id": view.cluster_id.map(|id| format!("{id:x}")),
            "leader": view.leader.as_ref().map(|leader| json!({
                "member_id": format!("{:x}", leader.member_id),
                "endpoint": leader.endpoint.to_string(),
                "term": leader.term,
            })),
            "leader_changes": view.changes,
            "members": members,
            "connections": {
                "accepted_now": accepted,
                "waiting": waiting,
                "open": open,
                "leaving": leaving,
                "accepted": metrics.accepted.get(),
                "refused": metrics.refusals().collect::<std::collections::BTreeMap<_, _>>(),
                "ended": metrics.ends().collect::<std::collections::BTreeMap<_, _>>(),
                "begun_again": metrics.begun_again.get(),
            },
            "bytes": {
                "from_clients": metrics.client_bytes.get(),
                "from_members": metrics.member_bytes.get(),
            },
        })
    }
}

fn leads(view: &View, member: &MemberView) -> bool {
    let leader = view.leader.as_ref();
    leader.is_some_and(|leader| leader.endpoint == member.endpoint)
}

fn member(view: &View, m: &MemberView, (open, leaving): (usize, usize)) -> Value {
    let (health, why, for_ms) = match &m.health {
        Health::Unknown => ("unknown", None, None),
        Health::Healthy => ("healthy", None, None),
        Health::Unhealthy { since, why } => {
            let since = Instant::from_std(*since);
            let ms = Instant::now().saturating_duration_since(since).as_millis() as u64;
            ("unhealthy", Some(why), Some(ms))
        }
    };
    json!({
        "id": m.member_id.map(|id| format!("{id:x}")),
        "name": m.name,
        "endpoint": m.endpoint.to_string(),
        "leads": leads(view, m),
        "learner": m.learner,
        "health": health,
        "why": why,
        "unhealthy_for_ms": for_ms,
        "round_trip_us": {
            "smoothed": m.round_trip.smoothed_us,
            "p50": m.round_trip.p50_us,
            "p99": m.round_trip.p99_us,
        },
        "term": m.term,
        "raft_index": m.raft_index,
        "db_size_bytes": m.db_size_bytes,
        "version": m.version,
        "connections": open,
        "leaving": leaving,
    })
}
