//! Policies, health, retries and budgets.

#![allow(clippy::unwrap_used, reason = "tests fail by panics")]

use std::collections::BTreeMap;

use placement::{Node, Response, RoundTrips, ServingTimes, Settings, weights};
use proptest::prelude::*;
use routing::{
    Attempt, Balancer, Budget, Candidate, Draw, Health, OutlierSettings, PeakEwma, Peer, PeerTimes,
    Policy, Progress, Retries, Standing, Stop, grpc_timeout_us,
};

fn candidates(nodes: &[u32]) -> Vec<Candidate> {
    let one = |(pod, node): (usize, &u32)| Candidate {
        pod,
        node: Node(*node),
        cost: 1.0,
    };
    nodes.iter().enumerate().map(one).collect()
}

/// Evenly spread draws: what a random source gives in the mean, without its noise.
fn draws(count: usize) -> impl Iterator<Item = Draw> {
    let golden = 0.618_033_988_749_895_f64;
    (0..count).map(move |n| {
        let n = n as f64;
        Draw((n * golden).fract(), (n * golden * golden).fract())
    })
}

fn shares(policy: Policy, here: u32, nodes: &[u32], w: &[(Node, f64)]) -> BTreeMap<usize, usize> {
    let (mut balancer, pods) = (Balancer::default(), candidates(nodes));
    let mut counts = BTreeMap::new();
    for draw in draws(10_000) {
        let pod = balancer.pick(policy, Node(here), &pods, w, draw).unwrap();
        *counts.entry(pod).or_default() += 1;
    }
    counts
}

proptest! {
    #[test]
    fn shares_converge_to_the_weights(
        ms in proptest::collection::vec(0.5..80.0_f64, 4),
        pods in proptest::collection::vec(0..4_u32, 1..12),
    ) {
        let settings = Settings::default();
        let mut round_trips = RoundTrips::new(4);
        for (to, ms) in ms.iter().enumerate().skip(1) {
            for _ in 0..20 { round_trips.measured(Node(0), Node(to as u32), *ms, &settings); }
        }
        round_trips.settle();
        let serving = ServingTimes::default();
        let response = Response { round_trips: &round_trips, serving: &serving, prior_ms: 8.0, settings: &settings };
        let mut ready: Vec<Node> = pods.iter().map(|n| Node(*n)).collect();
        ready.sort();
        ready.dedup();
        let w = weights(&response, Node(0), &ready);
        let counts = shares(Policy::LatencyWeighted, 0, &pods, &w);
        for (node, weight) in &w {
            let of_node: Vec<usize> = pods.iter().enumerate()
                .filter(|(_, n)| **n == node.0)
                .map(|(pod, _)| counts.get(&pod).copied().unwrap_or(0)).collect();
            let sum: usize = of_node.iter().sum();
            prop_assert!((sum as f64 - weight * 100.0).abs() < 150.0, "{:?} {:?}", w, counts);
            // Its pods in turn: no two differ by more than one.
            let (least, most) = (of_node.iter().min().unwrap(), of_node.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{:?}", of_node);
        }
    }

    #[test]
    fn only_candidates_are_picked(
        nodes in proptest::collection::vec(0..5_u32, 1..10), a in 0.0..1.0_f64, b in 0.0..1.0_f64,
        w in proptest::collection::vec((0..6_u32, 0.0..100.0_f64), 0..6),
    ) {
        let pods = candidates(&nodes);
        let w: Vec<(Node, f64)> = w.into_iter().map(|(n, w)| (Node(n), w)).collect();
        for policy in [Policy::LatencyWeighted, Policy::LeastRequest, Policy::RoundRobin, Policy::LocalFirst] {
            let mut balancer = Balancer::default();
            let pod = balancer.pick(policy, Node(0), &pods, &w, Draw(a, b)).unwrap();
            prop_assert!(pod < pods.len());
            if policy == Policy::LocalFirst && nodes.contains(&0) {
                prop_assert_eq!(nodes[pod], 0);
            }
            prop_assert_eq!(balancer.pick(policy, Node(0), &[], &w, Draw(a, b)), None);
        }
    }
}

#[test]
fn round_robin_is_even_and_the_least_of_two_avoids_the_slow_one() {
    let counts = shares(Policy::RoundRobin, 0, &[0, 1, 1, 2], &[]);
    assert!(counts.values().all(|n| *n == 2_500), "{counts:?}");
    let (mut balancer, mut pods) = (Balancer::default(), candidates(&[0, 0, 0]));
    pods[1].cost = 50.0;
    let picked = draws(1_000).map(|draw| {
        balancer
            .pick(Policy::LeastRequest, Node(0), &pods, &[], draw)
            .unwrap()
    });
    assert!(picked.into_iter().all(|pod| pod != 1));
}

#[test]
fn a_peak_counts_at_once_and_fades() {
    let mut ewma = PeakEwma::default();
    ewma.observe(5.0, 0);
    ewma.observe(500.0, 1_000);
    assert_eq!(ewma.ms(), Some(500.0));
    assert!(ewma.cost(0) > PeakEwma::default().cost(100));
    ewma.observe(5.0, 1_000 + 3 * PeakEwma::DECAY_US);
    assert!(ewma.ms().unwrap() < 35.0);
    ewma.observe(f64::NAN, 0);
    assert!(ewma.ms().unwrap() < 35.0);
}

#[test]
fn a_pod_that_fails_is_left_alone_longer_each_time() {
    let settings = OutlierSettings::default();
    let mut pod = Standing::default();
    for _ in 1..settings.failures {
        assert!(!pod.failed(0, &settings));
    }
    pod.succeeded();
    for _ in 1..settings.failures {
        assert!(!pod.failed(0, &settings));
    }
    assert!(pod.is_good(0) && pod.failed(0, &settings) && !pod.is_good(0));
    // What was under way changes nothing.
    assert!(!pod.failed(1, &settings));
    let again = settings.eject_us;
    assert!(!pod.is_good(again - 1) && pod.is_good(again));
    assert!(pod.failed(again, &settings));
    assert!(!pod.is_good(again + 2 * settings.eject_us - 1));
    for _ in 0..1_000 {
        let now = u64::MAX / 2;
        pod.failed(now, &settings);
    }
    assert!(pod.is_good(u64::MAX / 2 + settings.eject_max_us));
    pod.succeeded();
    assert!(pod.is_good(0));
}

#[test]
fn a_silent_peer_is_down_within_half_a_second_and_an_answer_brings_it_back() {
    let times = PeerTimes::default();
    assert!(times.down_after_us <= 500_000);
    let mut peer = Peer::new(0);
    assert_eq!((peer.health(), peer.is_used()), (Health::Unknown, true));
    peer.answered(1_000);
    assert!(!peer.tick(times.down_after_us, &times));
    assert!(peer.tick(times.down_after_us + 1_000, &times));
    assert!(!peer.is_used() && !peer.tick(u64::MAX, &times));
    peer.answered(2_000_000);
    assert_eq!(peer.health(), Health::Up);
    // One that ends is not used, and not lost either.
    peer.leaves(2_500_000);
    assert!(!peer.is_used() && peer.silent_us(2_600_000) == 100_000);
}

#[test]
fn only_what_is_safe_is_sent_again_and_not_without_end() {
    let attempt = |progress, idempotent, whole| Attempt {
        progress,
        idempotent,
        whole,
    };
    let mut retries = Retries::default();
    for (progress, idempotent, whole, may) in [
        (Progress::NotSent, false, true, true),
        (Progress::NotSent, true, false, false),
        (Progress::Sent, true, true, true),
        (Progress::Sent, true, false, false),
        (Progress::Sent, false, true, false),
    ] {
        let said = retries.again(attempt(progress, idempotent, whole), 0);
        assert_eq!(said.is_ok(), may, "{progress:?} {idempotent} {whole}");
    }
    let good = attempt(Progress::NotSent, true, true);
    assert_eq!(retries.again(good, Retries::MAX), Err(Stop::Attempts));
    let made = (0..10_000)
        .filter(|_| retries.again(good, 0).is_ok())
        .count();
    assert_eq!(made, Retries::TOKENS_MAX as usize - 2);
    assert_eq!(retries.again(good, 0), Err(Stop::Budget));
    (0..6).for_each(|_| retries.earned());
    assert_eq!(retries.again(good, 0), Ok(()));
}

#[test]
fn a_budget_only_shrinks() {
    let budget = Budget::new(100, 1_000).at_most(500, 10_000);
    assert_eq!(budget.left_us(600), Some(500));
    assert_eq!(budget.at_most(600, 50).left_us(600), Some(50));
    assert_eq!((budget.left_us(1_100), budget.left_us(5_000)), (None, None));
    for (text, us) in [
        ("100m", Some(100_000)),
        ("1S", Some(1_000_000)),
        ("99999999H", Some(99_999_999 * 3_600_000_000)),
        ("5000n", Some(5)),
        ("123456789S", None),
        ("S", None),
        ("", None),
        ("+1S", None),
        ("1x", None),
        ("1é", None),
    ] {
        assert_eq!(grpc_timeout_us(text), us, "{text}");
    }
}
