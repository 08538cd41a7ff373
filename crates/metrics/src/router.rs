//! Series of `orlop-fleet router`. All of them are made at a scrape.

use crate::page::{self, Info};
use crate::registry::{Family, Kind, Origin, Registry, Source};

/// A pod at a scrape.
#[derive(Clone, Debug, Default)]
pub struct RouterPod {
    /// Its name.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// It is on this router's node.
    pub local: bool,
    /// Answers by the first digit of their code.
    pub answers: [u64; 6],
    /// Requests that were admitted to it.
    pub admitted: u64,
    /// Time that those waited in its queue, in seconds.
    pub queued_s: f64,
    /// Requests that it served to their end.
    pub served: u64,
    /// Time that those took, waiting included, in seconds.
    pub serving_s: f64,
    /// Requests that it serves now.
    pub in_flight: u64,
    /// Requests that wait in its queue.
    pub queued: u64,
    /// The way to it has failed.
    pub ejected: bool,
    /// How often.
    pub ejections: u64,
}

/// A service at a scrape.
#[derive(Clone, Debug, Default)]
pub struct RouterService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Requests that entered here.
    pub entered: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Requests that wait for any pod.
    pub waiting: u64,
    /// Weights of nodes, in percent.
    pub weights: Vec<(String, f64)>,
    /// Its pods.
    pub pods: Vec<RouterPod>,
}

/// What the router reads at a scrape.
#[derive(Clone, Debug, Default)]
pub struct RouterInput {
    /// Its node.
    pub node: String,
    /// Services.
    pub services: Vec<RouterService>,
    /// Other nodes, and whether their routers answer.
    pub peers: Vec<(String, bool)>,
    /// Requests that came to nothing, by why.
    pub failures: Vec<(&'static str, u64)>,
    /// Clients' requests under way.
    pub in_flight: u64,
    /// Other routers' requests under way.
    pub peer_in_flight: u64,
    /// Connections.
    pub connections: u64,
    /// Connections over the limit.
    pub connections_refused: u64,
    /// Connections that switched to another protocol.
    pub tunnels: u64,
    /// Answers that were broken off because they were not read.
    pub unread: u64,
    /// Tables that it has routed by.
    pub tables: u64,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
}

/// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
pub fn encode(version: &str, input: &RouterInput) -> String {
    let info = Info {
        name: "orlop_router_info",
        help: "1; the node and the version are its labels.",
        labels: &["node", "version"],
        values: &[&input.node, version],
    };
    page::text(&info, |r| at_scrape(r, input))
}

/// Every family, for the reference.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| at_scrape(r, &RouterInput::default());
    page::own(add, |name| name.starts_with("orlop_router_"))
}

type OfService = (&'static str, Kind, &'static str, fn(&RouterService) -> f64);
type OfPod = (&'static str, Kind, &'static str, fn(&RouterPod) -> f64);

const SERVICES: [OfService; 3] = [
    (
        "orlop_router_requests_total",
        Kind::Counter,
        "Requests of clients that entered at the node.",
        |s| s.entered as f64,
    ),
    (
        "orlop_router_retries_total",
        Kind::Counter,
        "Requests that entered at the node and were sent again after a failure.",
        |s| s.retries as f64,
    ),
    (
        "orlop_router_waiting",
        Kind::Gauge,
        "Requests that wait because no pod can be used.",
        |s| s.waiting as f64,
    ),
];

/// Of the node's pods together; `placement` reads these.
const SERVED: [OfService; 2] = [
    (
        "orlop_router_serving_seconds_count",
        Kind::Counter,
        "Requests that pods of the node served to the end of their answers.",
        |s| local(s).map(|pod| pod.served as f64).sum(),
    ),
    (
        "orlop_router_serving_seconds_sum",
        Kind::Counter,
        "Time that those took at the node, waiting in the pod's queue included, without the network between nodes.",
        |s| local(s).map(|pod| pod.serving_s).sum(),
    ),
];

/// Of pods of the node.
const PODS: [OfPod; 4] = [
    (
        "orlop_router_queue_seconds_count",
        Kind::Counter,
        "Requests that were admitted to a pod of the node.",
        |p| p.admitted as f64,
    ),
    (
        "orlop_router_queue_seconds_sum",
        Kind::Counter,
        "Time that those waited in the pod's queue.",
        |p| p.queued_s,
    ),
    (
        "orlop_router_pod_in_flight",
        Kind::Gauge,
        "Requests that a pod of the node serves.",
        |p| p.in_flight as f64,
    ),
    (
        "orlop_router_pod_queued",
        Kind::Gauge,
        "Requests that wait in the queue of a pod of the node.",
        |p| p.queued as f64,
    ),
];

/// Of all pods, as this router sees them.
const WAYS: [OfPod; 2] = [
    (
        "orlop_router_pod_ejected",
        Kind::Gauge,
        "Whether the way from this router to the pod has failed several times in a row, so that others are preferred: 1 if so.",
        |p| f64::from(u8::from(p.ejected)),
    ),
    (
        "orlop_router_pod_ejections_total",
        Kind::Counter,
        "How often it did.",
        |p| p.ejections as f64,
    ),
];

fn local(service: &RouterService) -> impl Iterator<Item = &RouterPod> {
    service.pods.iter().filter(|pod| pod.local)
}

const OF_SERVICE: &[&str] = &["namespace", "service", "node"];
const OF_POD: &[&str] = &["namespace", "service", "pod", "node"];

fn at_scrape(r: &mut Registry, input: &RouterInput) {
    use Kind::{Counter, Gauge};
    use Origin::Orlop;
    for (name, kind, help, read) in SERVICES {
        let mut family = r.family(name, kind, OF_SERVICE, Orlop, help);
        for of in &input.services {
            let labels = [of.namespace.as_str(), &of.service, &input.node];
            family.sample(&labels, Source::Constant(read(of)));
        }
        family.done();
    }
    for (name, kind, help, read) in SERVED {
        let mut family = r.family(name, kind, OF_SERVICE, Orlop, help);
        for of in input
            .services
            .iter()
            .filter(|of| local(of).next().is_some())
        {
            let labels = [of.namespace.as_str(), &of.service, &input.node];
            family.sample(&labels, Source::Constant(read(of)));
        }
        family.done();
    }
    let mut pods = |list: &[OfPod], of_node: bool| {
        for (name, kind, help, read) in list {
            let mut family = r.family(name, *kind, OF_POD, Orlop, help);
            for of in &input.services {
                for pod in of.pods.iter().filter(|pod| pod.local || !of_node) {
                    let labels = [of.namespace.as_str(), &of.service, &pod.pod, &pod.node];
                    family.sample(&labels, Source::Constant(read(pod)));
                }
            }
            family.done();
        }
    };
    pods(&PODS, true);
    pods(&WAYS, false);
    answers(r, input);
    let mut family = r.family(
        "orlop_router_weight_percent",
        Gauge,
        &["namespace", "service", "to"],
        Orlop,
        "Part of the requests that enter here which `latency-weighted` sends to a node, while its router answers.",
    );
    for of in &input.services {
        for (to, weight) in &of.weights {
            family.sample(&[&of.namespace, &of.service, to], Source::Constant(*weight));
        }
    }
    family.done();
    let mut family = r.family(
        "orlop_router_peer_up",
        Gauge,
        &["to"],
        Orlop,
        "Whether another node's router answers: 1 if so.",
    );
    for (to, up) in &input.peers {
        family.sample(&[to], Source::Constant(f64::from(u8::from(*up))));
    }
    family.done();
    page::by_label(
        r,
        "orlop_router_failures_total",
        Counter,
        &["reason"],
        "Requests of clients and of other routers that came to nothing, by why.",
        &input.failures,
    );
    process(r, input);
}

fn answers(r: &mut Registry, input: &RouterInput) {
    let mut family = r.family(
        "orlop_router_answers_total",
        Kind::Counter,
        &["namespace", "service", "pod", "node", "code"],
        Origin::Orlop,
        "Answers of pods that this router passed on, by the class of their code; those that came from another router are counted by both.",
    );
    for of in &input.services {
        for pod in &of.pods {
            for (class, count) in pod.answers.iter().enumerate().filter(|(_, n)| **n > 0) {
                let code = format!("{class}xx");
                let labels = [
                    of.namespace.as_str(),
                    &of.service,
                    &pod.pod,
                    &pod.node,
                    &code,
                ];
                family.sample(&labels, Source::Constant(*count as f64));
            }
        }
    }
    family.done();
}

fn process(r: &mut Registry, input: &RouterInput) {
    use Kind::{Counter, Gauge};
    for (name, kind, help, value) in [
        (
            "orlop_router_in_flight",
            Gauge,
            "Requests of clients that are under way, waiting ones included.",
            input.in_flight,
        ),
        (
            "orlop_router_peer_in_flight",
            Gauge,
            "Requests of other routers that are under way.",
            input.peer_in_flight,
        ),
        (
            "orlop_router_connections",
            Gauge,
            "Connections of clients and other routers.",
            input.connections,
        ),
        (
            "orlop_router_connections_refused_total",
            Counter,
            "Connections that were closed at once because there were too many.",
            input.connections_refused,
        ),
        (
            "orlop_router_tunnels",
            Gauge,
            "Connections that have switched to another protocol (WebSocket).",
            input.tunnels,
        ),
        (
            "orlop_router_unread_answers_total",
            Counter,
            "Answers that were broken off because they were not read.",
            input.unread,
        ),
        (
            "orlop_router_tables_total",
            Counter,
            "Tables of services by which it has routed: the first, and one for each change.",
            input.tables,
        ),
        (
            "orlop_log_lines_dropped_total",
            Counter,
            "Log lines that were dropped because the output did not take them.",
            input.log_lines_dropped,
        ),
    ] {
        page::single(r, name, kind, help, value as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_finds_its_series_under_the_names_that_it_asks_for() {
        let pod = |name: &str, local, served| RouterPod {
            pod: name.to_owned(),
            node: if local { "a" } else { "b" }.to_owned(),
            local,
            served,
            serving_s: served as f64 / 100.0,
            answers: [0, 0, served, 0, 0, 1],
            ..RouterPod::default()
        };
        let input = RouterInput {
            node: "a".to_owned(),
            services: vec![RouterService {
                namespace: "shop".to_owned(),
                service: "cart".to_owned(),
                entered: 7,
                pods: vec![pod("x", true, 20), pod("y", true, 30), pod("z", false, 0)],
                ..RouterService::default()
            }],
            ..RouterInput::default()
        };
        let text = encode("0.1.0", &input);
        for line in [
            "orlop_router_requests_total{namespace=\"shop\",service=\"cart\",node=\"a\"} 7",
            "orlop_router_serving_seconds_count{namespace=\"shop\",service=\"cart\",node=\"a\"} 50",
            "orlop_router_serving_seconds_sum{namespace=\"shop\",service=\"cart\",node=\"a\"} 0.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
