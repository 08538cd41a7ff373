//! What the decision promises, on random clusters, and in the cases that it was made for.

use std::collections::BTreeMap;

use placement::{
    Cluster, Decision, Entered, Memory, Node, Pods, Reason, Resources, Response, Room, RoundTrips,
    ServiceView, ServingTimes, Settings, decide, weights,
};
use proptest::prelude::*;

/// A service and its cluster, driven as a control loop would: each round what was decided is what
/// there is.
#[derive(Clone, Debug)]
struct World {
    settings: Settings,
    round_trips: RoundTrips,
    free: Vec<Resources>,
    allowed: Vec<bool>,
    lost: Vec<bool>,
    image_on: Vec<bool>,
    blocked: Vec<Node>,
    entries: Vec<(Node, f64)>,
    counts: BTreeMap<Node, u32>,
    memory: Memory,
    request: Resources,
    max_pods: Option<u32>,
    min_pods: u32,
    max_per_node: Option<u32>,
    /// Whether pods that are busy take longer, as a queue does.
    queues: bool,
}

const SERVING_MS: f64 = 10.0;
const WINDOW_S: f64 = 10.0;

impl World {
    fn new(nodes: usize, round_trip_ms: impl Fn(usize, usize) -> f64) -> Self {
        let settings = Settings::default();
        let mut round_trips = RoundTrips::new(nodes);
        for from in 0..nodes {
            for to in 0..nodes {
                if from != to {
                    let ms = round_trip_ms(from, to);
                    round_trips.measured(Node(from as u32), Node(to as u32), ms, &settings);
                }
            }
        }
        round_trips.settle();
        World {
            settings,
            round_trips,
            free: vec![room(10); nodes],
            allowed: vec![true; nodes],
            lost: vec![false; nodes],
            image_on: vec![false; nodes],
            blocked: Vec::new(),
            entries: Vec::new(),
            counts: BTreeMap::new(),
            memory: Memory::default(),
            request: room(1),
            max_pods: None,
            min_pods: 0,
            max_per_node: None,
            queues: false,
        }
    }

    fn traffic(mut self, entries: &[(u32, f64)]) -> Self {
        self.entries = entries.iter().map(|(n, rate)| (Node(*n), *rate)).collect();
        self
    }

    fn entered(&self) -> Vec<Entered> {
        let entries = self.entries.iter();
        entries
            .map(|(node, rate)| Entered {
                node: *node,
                requests: rate * WINDOW_S,
                over_s: WINDOW_S,
            })
            .collect()
    }

    fn round(&mut self) -> Decision {
        let rate: f64 = self.entries.iter().map(|(_, rate)| rate).sum();
        let pods: u32 = self.counts.values().sum();
        let busy = (rate * SERVING_MS / 1e3 / f64::from(pods.max(1))).min(0.95);
        let serving_ms = match self.queues {
            true => SERVING_MS / (1.0 - busy),
            false => SERVING_MS,
        };
        let serving: Vec<_> = self
            .counts
            .keys()
            .map(|node| (*node, serving_ms, 10.0))
            .collect();
        self.memory
            .serving
            .measured(&serving, SERVING_MS, &self.settings);
        let mut left = self.free.clone();
        for (node, count) in &self.counts {
            for _ in 0..*count {
                left[node.index()] = left[node.index()].minus(&self.request);
            }
        }
        let mut room = Room::new(left);
        let pods: Vec<_> = self
            .counts
            .iter()
            .map(|(node, count)| {
                let ready = if self.blocked.contains(node) {
                    0
                } else {
                    *count
                };
                (
                    *node,
                    Pods {
                        wanted: *count,
                        ready,
                    },
                )
            })
            .collect();
        let entries = self.entered();
        let decision = decide(
            &Cluster {
                round_trips: &self.round_trips,
                prior_ms: SERVING_MS,
                settings: &self.settings,
            },
            &ServiceView {
                entries: &entries,
                round_s: 2.0,
                pods: &pods,
                concurrency: 1.0,
                request: self.request,
                allowed: &self.allowed,
                lost: &self.lost,
                image_on: &self.image_on,
                blocked: &self.blocked,
                max_per_node: self.max_per_node,
                min_pods: self.min_pods,
                max_pods: self.max_pods,
            },
            &mut self.memory,
            &mut room,
        );
        self.counts = decision.wanted.clone();
        decision
    }

    fn rounds(&mut self, count: usize) -> Vec<placement::Move> {
        (0..count).flat_map(|_| self.round().moves).collect()
    }

    fn on(&self, node: u32) -> u32 {
        self.counts.get(&Node(node)).copied().unwrap_or(0)
    }

    fn total(&self) -> u32 {
        self.counts.values().sum()
    }
}

fn room(pods: u64) -> Resources {
    Resources {
        cpu_millis: pods * 100,
        memory_bytes: pods << 20,
        pods,
    }
}

/// Two edge nodes near each other, a third one 50 ms away, as in the seed's demonstration.
fn three_nodes() -> World {
    World::new(3, |from, to| if from == 2 || to == 2 { 50.0 } else { 1.0 })
}

#[test]
fn the_first_pod_is_where_its_traffic_enters() {
    for entry in 0..3 {
        let mut world = three_nodes().traffic(&[(entry, 1.0)]);
        world.round();
        assert_eq!((world.total(), world.on(entry)), (1, 1));
    }
}

#[test]
fn a_full_node_gets_no_pod_and_the_nearest_other_does() {
    let mut world = three_nodes().traffic(&[(0, 1.0)]);
    world.free[0] = room(0);
    world.round();
    assert_eq!((world.on(0), world.on(1), world.on(2)), (0, 1, 0));
    // A cluster that is full says whose traffic found no room.
    let mut world = three_nodes().traffic(&[(0, 1.0)]);
    world.free = vec![room(0); 3];
    let decision = world.round();
    assert!(decision.wanted.is_empty());
    assert_eq!(decision.no_room[0].0, Node(0));
}

#[test]
fn the_maximum_of_a_node_is_that_of_the_node_that_gets_the_pod() {
    // The seed looked at the maximum of the node that asked.
    let mut world = three_nodes().traffic(&[(0, 250.0)]);
    world.max_per_node = Some(2);
    world.rounds(5);
    assert_eq!((world.on(0), world.on(1)), (2, 2));
}

#[test]
fn traffic_that_is_served_far_away_gets_a_pod_near_it() {
    let mut world = three_nodes().traffic(&[(0, 10.0)]);
    world.rounds(3);
    world.entries = vec![(Node(2), 10.0)];
    let moves = world.rounds(30);
    assert_eq!((world.on(0), world.on(2)), (0, 1));
    // One comes before the other goes, and nothing else moves.
    assert_eq!(moves.len(), 2);
    assert!(moves[0].add && matches!(moves[0].reason, Reason::Nearer { .. }));
    assert!(!moves[1].add && moves[1].reason == Reason::NotNeeded);
}

#[test]
fn a_node_with_the_image_wins_a_near_tie_only() {
    let mut world = World::new(3, |_, to| if to == 1 { 20.0 } else { 21.0 });
    world.free[0] = room(0);
    world.image_on[2] = true;
    let mut world = world.traffic(&[(0, 1.0)]);
    world.round();
    assert_eq!(world.on(2), 1);

    let mut world = World::new(3, |_, to| if to == 1 { 20.0 } else { 60.0 });
    world.free[0] = room(0);
    world.image_on[2] = true;
    let mut world = world.traffic(&[(0, 1.0)]);
    world.round();
    assert_eq!(world.on(1), 1);
}

#[test]
fn nothing_goes_before_it_was_spare_for_a_window() {
    let mut world = three_nodes().traffic(&[(0, 200.0)]);
    world.rounds(10);
    let before = world.total();
    assert!(before >= 3);
    world.entries = vec![(Node(0), 20.0)];
    let quiet = world.settings.down_rounds as usize;
    assert!(world.rounds(quiet).is_empty());
    world.rounds(1);
    assert!(world.total() < before);
    world.rounds(20);
    assert_eq!(world.total(), 1);
    // And without traffic to nothing, or to the minimum.
    world.min_pods = 1;
    world.entries.clear();
    world.rounds(20);
    assert_eq!(world.total(), 1);
    world.min_pods = 0;
    world.rounds(20);
    assert_eq!(world.total(), 0);
}

#[test]
fn a_lost_node_is_replaced_with_the_moves_that_this_needs() {
    let mut world = three_nodes().traffic(&[(0, 60.0), (1, 60.0)]);
    world.rounds(20);
    let on_lost = world.on(0) as usize;
    assert!(on_lost >= 1);
    world.lost[0] = true;
    world.allowed[0] = false;
    // Its router is gone as well.
    world.entries = vec![(Node(1), 120.0)];
    let moves = world.rounds(1);
    assert_eq!(world.on(0), 0);
    let lost = moves
        .iter()
        .filter(|m| m.reason == Reason::NodeLost)
        .count();
    assert_eq!((lost, moves.len()), (on_lost, 2 * on_lost));
    assert!(world.rounds(50).is_empty());
    // It comes back.
    world.lost[0] = false;
    world.allowed[0] = true;
    world.entries = vec![(Node(0), 60.0), (Node(1), 60.0)];
    world.rounds(20);
    assert!(world.rounds(50).is_empty());
}

#[test]
fn pods_that_a_node_cannot_run_are_taken_back_and_wanted_elsewhere() {
    let mut world = three_nodes().traffic(&[(0, 10.0)]);
    world.round();
    world.blocked = vec![Node(0)];
    let moves = world.rounds(1);
    assert_eq!(moves[0].reason, Reason::NodeBlocked);
    assert_eq!((world.on(0), world.on(1)), (0, 1));
    assert!(world.rounds(50).is_empty(), "no pod without end");
}

#[test]
fn a_link_that_dies_is_gone_round() {
    let mut world = World::new(3, |_, _| 20.0).traffic(&[(0, 10.0)]);
    world.free[0] = room(0);
    world.rounds(5);
    let host = *world.counts.keys().next().unwrap();
    world.round_trips.down(Node(0), host);
    let moves = world.rounds(15);
    assert_eq!(
        (world.total(), world.counts.contains_key(&host)),
        (1, false)
    );
    assert_eq!(moves.len(), 2);
    // It comes back: both are as far, so nothing moves.
    world
        .round_trips
        .measured(Node(0), host, 20.0, &world.settings);
    assert!(world.rounds(50).is_empty());
}

#[test]
fn at_the_most_pods_one_moves_if_that_is_clearly_better() {
    let mut world = three_nodes().traffic(&[(0, 10.0)]);
    world.max_pods = Some(1);
    world.rounds(3);
    world.entries = vec![(Node(2), 10.0)];
    let moves = world.rounds(10);
    assert_eq!((world.on(0), world.on(2), moves.len()), (0, 1, 2));
}

#[test]
fn noise_on_latency_moves_nothing() {
    for seed in 0..20_u64 {
        let mut world = World::new(8, |from, to| 5.0 + ((from * 7 + to * 7) % 40) as f64)
            .traffic(&[(0, 30.0), (3, 50.0), (5, 5.0), (7, 8.0)]);
        for node in [0, 5] {
            world.free[node] = room(0);
        }
        let truth = world.round_trips.clone();
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut noise = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            0.8 + 0.4 * (state % 10_000) as f64 / 10_000.0
        };
        let mut after_warm_up = 0;
        for round in 0..300 {
            for from in (0..8).map(Node) {
                for to in (0..8).map(Node) {
                    if let Some(ms) = truth.ms(from, to, &world.settings)
                        && from != to
                    {
                        let ms = ms * noise();
                        world.round_trips.measured(from, to, ms, &world.settings);
                    }
                }
            }
            world.round_trips.settle();
            let moves = world.round().moves.len();
            if round >= 30 {
                after_warm_up += moves;
            }
        }
        assert_eq!(after_warm_up, 0, "seed {seed}");
    }
}

/// Draws of a Poisson process: the sum of draws of whether something came, in small steps.
fn poisson(mean: f64, state: &mut u64) -> f64 {
    let mut uniform = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (mut passed, mut count) = (0.0, 0.0);
    loop {
        passed -= uniform().max(1e-12).ln();
        if passed > mean {
            return count;
        }
        count += 1.0;
    }
}

#[test]
fn counts_of_random_arrivals_move_nothing() {
    let mean = [(0, 30.0), (3, 50.0), (5, 6.0), (7, 1.5)];
    for seed in 0..20_u64 {
        let mut world = World::new(8, |from, to| 5.0 + ((from * 7 + to * 7) % 40) as f64);
        world.queues = true;
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        // Five rounds are a window.
        let mut rounds: std::collections::VecDeque<Vec<f64>> = Default::default();
        let mut after_warm_up = 0;
        for round in 0..360 {
            let came = mean.iter().map(|(_, rate)| poisson(rate * 2.0, &mut state));
            rounds.push_back(came.collect());
            if rounds.len() > 5 {
                rounds.pop_front();
            }
            let window_s = 2.0 * rounds.len() as f64;
            world.entries = mean
                .iter()
                .enumerate()
                .map(|(n, (node, _))| {
                    let requests: f64 = rounds.iter().map(|round| round[n]).sum();
                    (Node(*node), requests / window_s)
                })
                .collect();
            let moves = world.round().moves.len();
            if round >= 60 {
                after_warm_up += moves;
            }
        }
        assert_eq!(after_warm_up, 0, "seed {seed}");
    }
}

#[test]
fn queues_that_the_decision_makes_itself_move_nothing() {
    for rate in 1..40 {
        let rate = f64::from(rate) * 4.0;
        let mut world = three_nodes().traffic(&[(0, rate), (1, rate), (2, rate / 2.0)]);
        world.queues = true;
        world.rounds(60);
        assert!(world.rounds(300).is_empty(), "{rate} requests a second");
    }
}

#[test]
fn a_first_request_starts_a_pod_at_once_and_little_traffic_gets_one_near_it_in_time() {
    let mut world = World::new(3, |_, _| 300.0).traffic(&[(2, 0.1)]);
    assert_eq!(world.round().moves.len(), 1);
    // 0.5 requests a second of 100 ms: 5 in a window, which may be 2 or 9.
    let mut world = World::new(3, |_, _| 3_000.0).traffic(&[(0, 40.0)]);
    world.rounds(10);
    world.settings.near_demand = 0.001;
    world.entries.push((Node(2), 0.5));
    assert!(world.rounds(2).is_empty());
    world.rounds(40);
    assert_eq!(world.on(2), 1);
}

#[test]
fn a_change_that_shows_in_one_window_is_followed_at_once() {
    let mut world = three_nodes().traffic(&[(0, 40.0)]);
    world.rounds(60);
    world.entries = vec![(Node(2), 40.0)];
    world.rounds(1);
    assert!(world.on(2) >= 1);
    world.rounds(15);
    assert_eq!((world.on(0), world.on(1)), (0, 0));
}

#[test]
fn a_settled_service_of_a_large_cluster_costs_few_steps() {
    let nodes = 500;
    let mut world = World::new(
        nodes,
        |from, to| if from / 50 == to / 50 { 1.0 } else { 30.0 },
    );
    let entries: Vec<_> = (0..20).map(|n| (n * 25, 3.0)).collect();
    let mut world = {
        world.free = vec![room(100); nodes];
        world.traffic(&entries)
    };
    world.rounds(20);
    let steps = world.round().steps;
    // 20 nodes with traffic look at 500 nodes at most once, and at the pods some times.
    assert!(steps <= 60_000, "{steps} values of R");
}

fn a_cluster() -> impl Strategy<Value = World> {
    (2_usize..8).prop_flat_map(|nodes| {
        (
            proptest::collection::vec(0.1_f64..100.0, nodes * nodes),
            proptest::collection::vec(0_u64..6, nodes),
            proptest::collection::vec(any::<bool>(), nodes),
            proptest::collection::vec((0..nodes as u32, 0.0_f64..150.0), 0..nodes),
            proptest::option::of(1_u32..6),
        )
            .prop_map(move |(ms, free, image, entries, max_pods)| {
                let mut world = World::new(nodes, |from, to| ms[from * nodes + to]);
                world.free = free.into_iter().map(room).collect();
                world.image_on = image;
                world.max_pods = max_pods;
                let by_node: BTreeMap<u32, f64> = entries.into_iter().collect();
                world.entries = by_node.into_iter().map(|(n, r)| (Node(n), r)).collect();
                world
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn response_is_serving_time_and_round_trip(l in 0.0_f64..500.0, p in 0.0_f64..500.0) {
        let settings = Settings::default();
        let mut round_trips = RoundTrips::new(2);
        round_trips.measured(Node(0), Node(1), l, &settings);
        let mut serving = ServingTimes::default();
        serving.measured(&[(Node(1), p, 1.0)], 1.0, &settings);
        let response = Response { round_trips: &round_trips, serving: &serving, prior_ms: 1.0, settings: &settings };
        let ms = response.ms(Node(0), Node(1)).unwrap();
        prop_assert!((ms - (l + p).max(settings.floor_ms)).abs() < 1e-3, "{ms}");
        round_trips.down(Node(0), Node(1));
        let response = Response { round_trips: &round_trips, serving: &serving, prior_ms: 1.0, settings: &settings };
        prop_assert!(response.ms(Node(0), Node(1)).is_none());
    }

    #[test]
    fn weights_are_shares_that_fall_with_response_time(
        rows in proptest::collection::vec((0.0_f64..200.0, 0.1_f64..200.0), 1..10)
    ) {
        let settings = Settings::default();
        let nodes = rows.len() + 1;
        let mut round_trips = RoundTrips::new(nodes);
        let mut serving = ServingTimes::default();
        let mut ready = Vec::new();
        for (n, (l, p)) in rows.iter().enumerate() {
            let node = Node(n as u32 + 1);
            round_trips.measured(Node(0), node, *l, &settings);
            serving.measured(&[(node, *p, 1.0)], 1.0, &settings);
            ready.push(node);
        }
        let response = Response { round_trips: &round_trips, serving: &serving, prior_ms: 1.0, settings: &settings };
        let row = weights(&response, Node(0), &ready);
        let sum: f64 = row.iter().map(|(_, w)| w).sum();
        prop_assert!((sum - 100.0).abs() < 1e-6);
        for (a, wa) in &row {
            for (b, wb) in &row {
                let (ra, rb) = (response.ms(Node(0), *a).unwrap(), response.ms(Node(0), *b).unwrap());
                prop_assert!((wa * ra - wb * rb).abs() < 1e-6, "w is as 1 / R");
            }
        }
        prop_assert_eq!(weights(&response, Node(0), &[]), vec![(Node(0), 100.0)]);
    }

    #[test]
    fn never_over_capacity(mut world in a_cluster(), rounds in 1_usize..20) {
        for _ in 0..rounds {
            let decision = world.round();
            for (node, count) in &decision.wanted {
                prop_assert!(u64::from(*count) <= world.free[node.index()].pods);
            }
            prop_assert!(world.max_pods.is_none_or(|most| world.total() <= most));
        }
    }

    #[test]
    fn services_together_never_pass_a_nodes_room(
        mut worlds in proptest::collection::vec(a_cluster(), 2..5)
    ) {
        let nodes = worlds.iter().map(|w| w.free.len()).min().unwrap();
        let free = worlds[0].free.clone();
        let mut room = Room::new(free[..nodes].to_vec());
        let mut sum: BTreeMap<Node, u64> = BTreeMap::new();
        for world in &mut worlds {
            let entries = world.entered();
            let decision = decide(
                &Cluster { round_trips: &world.round_trips, prior_ms: 10.0, settings: &world.settings },
                &ServiceView {
                    entries: &entries, round_s: 2.0, pods: &[], concurrency: 1.0, request: world.request,
                    allowed: &world.allowed[..nodes], lost: &world.lost, image_on: &world.image_on,
                    blocked: &[], max_per_node: None, min_pods: 1, max_pods: None,
                },
                &mut world.memory,
                &mut room,
            );
            for (node, count) in decision.wanted {
                *sum.entry(node).or_default() += u64::from(count);
            }
        }
        for (node, count) in sum {
            prop_assert!(count <= free[node.index()].pods);
        }
    }

    #[test]
    fn constant_load_comes_to_rest_with_all_served_that_has_room(mut world in a_cluster()) {
        world.rounds(150);
        let moves = world.rounds(40);
        prop_assert!(moves.is_empty(), "still moving: {moves:?}");
        let decision = world.round();
        let open = world.free.iter().enumerate().any(|(n, free)| {
            world.counts.get(&Node(n as u32)).copied().unwrap_or(0) < free.pods as u32
        });
        let at_most = world.max_pods.is_some_and(|most| world.total() >= most);
        prop_assert!(decision.no_room.is_empty() || !open || at_most);
    }

    #[test]
    fn the_same_input_gives_the_same_decision(world in a_cluster()) {
        let mut again = world.clone();
        let mut first = world;
        for _ in 0..10 {
            prop_assert_eq!(first.round(), again.round());
        }
    }
}
