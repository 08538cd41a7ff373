//! Pages for operators, Prometheus and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 once all objects have been listed |
//! | `/v1/services` | names of the services, as JSON |
//! | `/v1/services/NAMESPACE/NAME` | one of them, explained, as JSON |

use std::sync::Arc;

use http::StatusCode;
use metrics::placement::PlacementInput;
use serde_json::json;
use wire::Page;

use crate::Error;
use crate::run::{Look, Loop};

/// Path below which services are.
pub const SERVICES: &str = "/v1/services";

/// Running pages. They end when this is dropped.
#[derive(Debug)]
pub struct Pages(wire::Pages);

impl Pages {
    /// Serves them at these addresses, each a `host:port`. `dropped_lines` reads the log's counter.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        of: Arc<Loop>,
        addresses: &[String],
        version: &'static str,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let page = move |path: &str| {
            Some(match path {
                "/metrics" => {
                    let mut input = input(&of.look());
                    input.log_lines_dropped = dropped_lines();
                    let text = metrics::placement::encode(version, &input);
                    Page::new(metrics::CONTENT_TYPE, text)
                }
                "/healthz" => Page::text(StatusCode::OK, "ok"),
                "/readyz" => match of.look().listed {
                    true => Page::text(StatusCode::OK, "ok"),
                    false => Page::text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "nodes, pods and Seikas have not all been listed yet",
                    ),
                },
                SERVICES => Page::json(&json!({ "services": of.look().services })),
                _ => {
                    let key = path.strip_prefix(SERVICES)?.strip_prefix('/')?;
                    match of.explain(key) {
                        Some(explained) => Page::json(&json!(explained)),
                        None => Page::text(
                            StatusCode::NOT_FOUND,
                            &format!(
                                "no Seika {key} is placed; has it the label orlop.io/placement=on?"
                            ),
                        ),
                    }
                }
            })
        };
        Ok(Self(wire::Pages::start(
            "orlop-fleet place",
            addresses,
            None,
            page,
        )?))
    }

    /// Where they are, as URLs.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

fn input(look: &Look) -> PlacementInput {
    let stats = &look.stats;
    PlacementInput {
        acts: look.acts,
        services: look.services.len(),
        rounds: stats.rounds,
        decisions_s: stats.decisions_s,
        decisions_total_s: stats.decisions_total_s,
        steps: look.steps,
        moves: stats.all_moves().collect(),
        writes: stats.writes.iter().map(|(k, v)| (*k, *v)).collect(),
        failures: stats.failures.iter().map(|(k, v)| (*k, *v)).collect(),
        holds: look.holds.iter().map(|(k, v)| (*k, *v)).collect(),
        wanted: look.wanted.clone(),
        no_room: look.no_room.clone(),
        latencies_age_s: look.latencies_age_s,
        log_lines_dropped: 0,
    }
}
