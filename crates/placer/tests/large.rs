//! What rounds of a large cluster cost: 500 nodes, 1,000 services with traffic at 20 nodes each.
//! `cargo test --release -p placer --test large -- --ignored --nocapture` prints it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use placement::{NodeState, Resources};
use placer::input::{Latencies, ServiceTraffic, Traffic};
use placer::objects::{Asks, NodeFacts, PodFacts, SeikaFacts};
use placer::state::{Seen, Settings, State};

const NODES: usize = 500;
const SERVICES: usize = 1_000;

fn name(node: usize) -> String {
    format!("node-{node:03}.example.internal")
}

fn key(service: usize) -> String {
    format!("default/service-{service:04}")
}

fn asks(service: usize) -> Asks {
    Asks {
        traffic_of: key(service),
        concurrency: 1.0,
        request: Resources {
            cpu_millis: 100,
            memory_bytes: 64 << 20,
            pods: 1,
        },
        images: vec!["registry.example.com/function:1".into()],
        ..Asks::default()
    }
}

/// Five zones, 1 ms within and 20 to 50 ms between.
fn round_trip_ms(from: usize, to: usize) -> f64 {
    let (a, b) = (from / 100, to / 100);
    match a.abs_diff(b) {
        0 => 1.0,
        apart => 10.0 + 10.0 * apart as f64,
    }
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kb: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kb / 1e3
}

#[test]
#[ignore = "measures; its figures are in docs/performance.md"]
fn five_hundred_nodes_and_a_thousand_services() {
    let nodes: BTreeMap<String, NodeFacts> = (0..NODES)
        .map(|n| {
            let facts = NodeFacts {
                state: NodeState::Ready {
                    labels: [("kubernetes.io/hostname".to_owned(), name(n))].into(),
                    taints: Vec::new(),
                },
                allocatable: Resources {
                    cpu_millis: 32_000,
                    memory_bytes: 128 << 30,
                    pods: 250,
                },
                zone: format!("zone-{}", n / 100),
                ..NodeFacts::default()
            };
            (name(n), facts)
        })
        .collect();
    let mut latencies = Latencies::default();
    for from in 0..NODES {
        for to in (0..NODES).filter(|to| *to != from) {
            let ms = round_trip_ms(from, to);
            latencies.round_trips.push((name(from), name(to), ms));
        }
    }
    let mut seikas: BTreeMap<String, SeikaFacts> = (0..SERVICES)
        .map(|s| {
            let facts = SeikaFacts {
                uid: String::new(),
                generation: 1,
                wanted: BTreeMap::new(),
                asks: Ok(asks(s)),
            };
            (key(s), facts)
        })
        .collect();
    let mut state = State::new(Settings::default());
    let mut pods: BTreeMap<String, PodFacts> = BTreeMap::new();
    let mut seen_traffic = 0_usize;
    let (mut spent, mut longest, mut rounds) = (Duration::ZERO, Duration::ZERO, 0);
    for round in 0..60 {
        seen_traffic += 1;
        let mut traffic = Traffic {
            window_s: 10.0,
            ..Traffic::default()
        };
        for service in 0..SERVICES {
            let mut of = ServiceTraffic::default();
            for n in 0..20 {
                // Two zones; counts that differ from round to round.
                let at = (service * 37 + n * 10 + (n % 2) * 100) % NODES;
                let noise = ((service + n * 7 + seen_traffic * 13) % 11) as f64 - 5.0;
                of.entered.insert(name(at), 30.0 + noise);
                of.served.insert(name(at), (15.0, 30.0));
            }
            traffic.services.insert(key(service), of);
        }
        // Round trips are read every 5 s, that is every third round at the most.
        let read = round % 3 == 0;
        let began = Instant::now();
        let outcomes = state.round(
            &Seen {
                nodes: &nodes,
                pods: &pods,
                seikas: &seikas,
                objects_failing: None,
                latencies: read.then_some(&latencies),
                latencies_failing: None,
                traffic: Ok(&traffic),
                written: &BTreeMap::new(),
            },
            true,
        );
        let took = began.elapsed();
        if round >= 30 {
            spent += took;
            longest = longest.max(took);
            rounds += 1;
        }
        for outcome in outcomes {
            let Some(write) = outcome.write else { continue };
            let seika = seikas.get_mut(&outcome.key).unwrap();
            seika.wanted = write.into_iter().filter(|(_, count)| *count > 0).collect();
        }
        pods = seikas
            .iter()
            .flat_map(|(key, seika)| {
                let request = seika.asks.as_ref().unwrap().request;
                seika.wanted.iter().flat_map(move |(node, count)| {
                    (0..*count).map(move |n| {
                        let pod = PodFacts {
                            node: node.clone(),
                            request,
                            seika: Some(key.clone()),
                            ready: true,
                        };
                        (format!("{key}-{node}-{n}"), pod)
                    })
                })
            })
            .collect();
    }
    let a_round_s = spent.as_secs_f64() / f64::from(rounds);
    println!(
        "{} pods; a settled round takes {:.0} ms on average, {:.0} ms at most: {:.2} of a core at one \
         round every 2 s; {:.0} MB resident, inputs and all",
        pods.len(),
        a_round_s * 1e3,
        longest.as_secs_f64() * 1e3,
        a_round_s / 2.0,
        resident_mb()
    );
    assert!(!pods.is_empty() && state.holds().next().is_none());
}
