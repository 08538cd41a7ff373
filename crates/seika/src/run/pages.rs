//! Pages for operators and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 while the apiserver answers and, if it leads, all is seen |

use std::sync::Arc;

use http::StatusCode;
use wire::Page;

use super::state::State;
use crate::error::Error;

/// Running pages. They end when this is dropped.
#[derive(Debug)]
pub struct Pages(wire::Pages);

impl Pages {
    /// Serves at these addresses, each a `host:port`. `dropped_lines` reads the log's counter;
    /// `version` is orlop's.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        state: Arc<State>,
        addresses: &[String],
        version: &'static str,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let by_path = move |path: &str| {
            Some(match path {
                "/metrics" => {
                    let mut input = state.scrape();
                    input.log_lines_dropped = dropped_lines();
                    Page::new(
                        metrics::CONTENT_TYPE,
                        metrics::seika::encode(version, &input),
                    )
                }
                "/healthz" => Page::text(StatusCode::OK, "ok"),
                "/readyz" => match state.not_ready() {
                    None => Page::text(StatusCode::OK, "ok"),
                    Some(why) => Page::text(StatusCode::SERVICE_UNAVAILABLE, why),
                },
                _ => return None,
            })
        };
        let pages = wire::Pages::start("orlop-fleet seika run", addresses, None, by_path);
        Ok(Self(pages.map_err(Error::Pages)?))
    }

    /// Where it listens, as URLs.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}
