//! Pages for Prometheus and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 once it is known what there is to route to, until it drains |

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use metrics::router::{RouterInput, RouterPod, RouterService};
use wire::Page;

use crate::Error;
use crate::failure::Kind;
use crate::router::Router;

/// Running pages. They end when this is dropped.
#[derive(Debug)]
pub struct Pages(wire::Pages);

impl Pages {
    /// Serves them at these addresses, each a `host:port`. `dropped_lines` reads the log's counter.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        router: Arc<Router>,
        addresses: &[String],
        version: &'static str,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let page = move |path: &str| {
            Some(match path {
                "/metrics" => {
                    let mut input = input(&router);
                    input.log_lines_dropped = dropped_lines();
                    let text = metrics::router::encode(version, &input);
                    Page::new(metrics::CONTENT_TYPE, text)
                }
                "/healthz" => Page::text(StatusCode::OK, "ok"),
                "/readyz" => {
                    let known = router.counts.tables.load(Ordering::Relaxed) > 0;
                    match (known, router.draining.load(Ordering::Relaxed)) {
                        (true, false) => Page::text(StatusCode::OK, "ok"),
                        (_, true) => Page::text(StatusCode::SERVICE_UNAVAILABLE, "it drains"),
                        (false, false) => Page::text(
                            StatusCode::SERVICE_UNAVAILABLE,
                            "it is not known yet what there is to route to",
                        ),
                    }
                }
                _ => return None,
            })
        };
        Ok(Self(wire::Pages::start(
            "orlop-fleet router",
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

fn input(router: &Router) -> RouterInput {
    let mut services = Vec::new();
    for service in router.services() {
        let (namespace, name) = service.entry.split();
        let now_us = router.now_us();
        let pods = service.pods.iter().map(|pod| {
            let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (in_flight, queued) = {
                let queue = pod.queue.lock();
                (u64::from(queue.in_flight()), queue.waiting() as u64)
            };
            RouterPod {
                pod: pod.name.clone(),
                node: pod.node_name.clone(),
                local: pod.local,
                answers: pod.counts.answers.each_ref().map(of),
                admitted: of(&pod.counts.admitted),
                queued_s: of(&pod.counts.queued_us) as f64 / 1e6,
                served: of(&pod.counts.served),
                serving_s: of(&pod.counts.serving_us) as f64 / 1e6,
                in_flight,
                queued,
                ejected: !pod.load.lock().standing.is_good(now_us),
                ejections: of(&pod.counts.ejections),
            }
        });
        services.push(RouterService {
            namespace: namespace.to_owned(),
            service: name.to_owned(),
            entered: Router::entered(&service),
            retries: Router::retried(&service),
            waiting: Router::waiting(&service) as u64,
            weights: router.weights(&service),
            pods: pods.collect(),
        });
    }
    let counts = &router.counts;
    let limit = router.limits.in_flight;
    RouterInput {
        node: router.node.clone(),
        services,
        peers: router
            .links()
            .iter()
            .map(|link| (link.name.clone(), link.is_up()))
            .collect(),
        failures: Kind::ALL
            .iter()
            .zip(&counts.failures)
            .map(|(kind, count)| (kind.name(), count.load(Ordering::Relaxed)))
            .collect(),
        in_flight: (limit - router.permits.available_permits()) as u64,
        peer_in_flight: (limit - router.peer_permits.available_permits()) as u64,
        connections: u64::from(counts.connections.load(Ordering::Relaxed)),
        connections_refused: counts.connections_refused.load(Ordering::Relaxed),
        tunnels: u64::from(counts.tunnels.load(Ordering::Relaxed)),
        unread: counts.unread.load(Ordering::Relaxed),
        tables: counts.tables.load(Ordering::Relaxed),
        log_lines_dropped: 0,
    }
}
