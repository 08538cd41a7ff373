//! Pages for Prometheus and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 once it is known which nodes there are |
//! | `/v1/histograms` | round trips by peer and bucket since the start, as JSON; they are in no series |

use std::fmt::{self, Write as _};

use http::StatusCode;
use metrics::latency::{LatencyInput, LatencyPeer, LatencyZone};
use wire::Page;

use crate::Error;
use crate::agent::{Board, Snapshot};
use crate::prober::BUCKETS_MS;

/// Running pages. They end when this is dropped.
#[derive(Debug)]
pub struct Pages(wire::Pages);

impl Pages {
    /// Serves them at these addresses, each a `host:port`. `dropped_lines` reads the log's counter.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        board: Board,
        addresses: &[String],
        version: &'static str,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let page = move |path: &str| {
            Some(match path {
                "/metrics" => {
                    let mut input = input(&board.read());
                    input.log_lines_dropped = dropped_lines();
                    Page::new(
                        metrics::CONTENT_TYPE,
                        metrics::latency::encode(version, &input),
                    )
                }
                "/healthz" => Page::text(StatusCode::OK, "ok"),
                "/readyz" => match board.read().roster_known {
                    true => Page::text(StatusCode::OK, "ok"),
                    false => Page::text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "it is not known yet which nodes there are",
                    ),
                },
                "/v1/histograms" => Page::json(&Histograms(&board.read())),
                _ => return None,
            })
        };
        let pages = wire::Pages::start("orlop-fleet latency", addresses, None, page)?;
        Ok(Self(pages))
    }

    /// Where they are, as URLs.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

fn input(snapshot: &Snapshot) -> LatencyInput {
    let counters = &snapshot.counters;
    LatencyInput {
        node: snapshot.node.to_string(),
        peers: snapshot
            .peers
            .iter()
            .map(|peer| LatencyPeer {
                node: peer.node.to_string(),
                now_ms: peer.stats.now_ms,
                quantiles_ms: [peer.stats.p50_ms, peer.stats.p99_ms],
                loss: peer.stats.loss,
                age_s: peer.stats.age_s,
                up: peer.stats.up,
                answered: peer.answered,
                lost: peer.lost,
            })
            .collect(),
        zones: snapshot
            .zones
            .iter()
            .map(|zone| LatencyZone {
                zone: zone.zone.to_string(),
                round_trip_ms: zone.round_trip_ms,
                error_ms: zone.error_ms,
                measured: zone.measured,
            })
            .collect(),
        nodes: snapshot.nodes,
        nodes_current: snapshot.roster_known && snapshot.roster_failing.is_none(),
        nodes_failures: snapshot.roster_failures,
        packets: vec![
            ("answered", counters.answered),
            ("refused", counters.refused),
            ("unknown", counters.unknown),
            ("stray", counters.stray),
            ("unsent", counters.unsent),
        ],
        log_lines_dropped: 0,
    }
}

/// Names of nodes are DNS names: nothing in them is to be escaped but what is escaped here.
struct Histograms<'a>(&'a Snapshot);

impl fmt::Display for Histograms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"bounds_ms\":{BUCKETS_MS:?},\"peers\":{{")?;
        for (n, peer) in self.0.peers.iter().enumerate() {
            if n > 0 {
                f.write_char(',')?;
            }
            let name = peer.node.replace(['"', '\\'], "_");
            write!(f, "\"{name}\":{:?}", peer.histogram)?;
        }
        f.write_str("}}")
    }
}
