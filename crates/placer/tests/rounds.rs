//! Rounds without a cluster: what is known goes in, what is to be written comes out.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::DynamicObject;
use placement::{NodeState, Resources};
use placer::input::{Latencies, ServiceTraffic, Traffic};
use placer::objects::{self, NodeFacts, PodFacts, SeikaFacts};
use placer::state::{Outcome, Seen, Settings, State};
use proptest::prelude::*;
use serde_json::json;

const KEY: &str = "default/hello";

/// A cluster in which what is written is what there is in the next round.
struct World {
    state: State,
    nodes: BTreeMap<String, NodeFacts>,
    pods: BTreeMap<String, PodFacts>,
    seikas: BTreeMap<String, SeikaFacts>,
    latencies: Option<Latencies>,
    traffic: Result<Traffic, String>,
    objects_failing: Option<String>,
    written: BTreeMap<String, i64>,
    acts: bool,
    /// Wanted pods become pods, which are ready, but not on these nodes.
    broken: Vec<String>,
    makes_pods: bool,
}

fn node(cpu_millis: u64) -> NodeFacts {
    NodeFacts {
        state: NodeState::Ready {
            labels: BTreeMap::new(),
            taints: Vec::new(),
        },
        allocatable: Resources {
            cpu_millis,
            memory_bytes: 8 << 30,
            pods: 110,
        },
        ..NodeFacts::default()
    }
}

fn seika(annotations: serde_json::Value) -> SeikaFacts {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "batch.bonavadeur.io/v1", "kind": "Seika",
        "metadata": {
            "name": "hello", "namespace": "default", "generation": 1, "uid": "u",
            "annotations": annotations
        },
        "spec": { "template": { "spec": { "containers": [
            { "name": "c", "image": "i", "resources": { "requests": { "cpu": "500m" } } }
        ] } } }
    }))
    .unwrap();
    objects::seika(&object)
}

impl World {
    /// Nodes a and b near each other, c 50 ms away, with 2 cores each.
    fn new() -> Self {
        let names = ["a", "b", "c"];
        let mut latencies = Latencies::default();
        for from in names {
            for to in names {
                if from != to {
                    let ms = if from == "c" || to == "c" { 50.0 } else { 2.0 };
                    latencies.round_trips.push((from.into(), to.into(), ms));
                }
            }
        }
        let mut world = World {
            state: State::new(Settings::default()),
            nodes: names.map(|name| (name.to_owned(), node(2_000))).into(),
            pods: BTreeMap::new(),
            seikas: [(KEY.to_owned(), seika(json!({})))].into(),
            latencies: Some(latencies),
            traffic: Err(String::new()),
            objects_failing: None,
            written: BTreeMap::new(),
            acts: true,
            broken: Vec::new(),
            makes_pods: true,
        };
        world.traffic(&[("a", 200.0)]);
        world
    }

    /// Requests in the window, by node.
    fn traffic(&mut self, entered: &[(&str, f64)]) {
        let of = ServiceTraffic {
            entered: entered.iter().map(|(n, r)| ((*n).to_owned(), *r)).collect(),
            served: entered
                .iter()
                .map(|(n, r)| ((*n).to_owned(), (10.0, *r)))
                .collect(),
        };
        self.traffic = Ok(Traffic {
            services: [(KEY.to_owned(), of)].into(),
            window_s: 10.0,
        });
    }

    fn round(&mut self) -> Vec<Outcome> {
        let outcomes = self.state.round(
            &Seen {
                nodes: &self.nodes,
                pods: &self.pods,
                seikas: &self.seikas,
                objects_failing: self.objects_failing.as_deref(),
                latencies: self.latencies.as_ref(),
                latencies_failing: None,
                traffic: self.traffic.as_ref().map_err(String::as_str),
                written: &self.written,
            },
            self.acts,
        );
        for outcome in &outcomes {
            if let Some(write) = &outcome.write {
                let seika = self.seikas.get_mut(&outcome.key).unwrap();
                seika.generation += 1;
                seika.wanted = write
                    .iter()
                    .filter(|(_, count)| **count > 0)
                    .map(|(node, count)| (node.clone(), *count))
                    .collect();
            }
        }
        if self.makes_pods {
            self.make_pods();
        }
        outcomes
    }

    fn make_pods(&mut self) {
        self.pods.retain(|_, pod| pod.seika.is_none());
        for (key, seika) in &self.seikas {
            let Ok(asks) = &seika.asks else { continue };
            for (node, count) in &seika.wanted {
                for n in 0..*count {
                    let pod = PodFacts {
                        node: node.clone(),
                        request: asks.request,
                        seika: Some(key.clone()),
                        ready: !self.broken.contains(node),
                    };
                    self.pods.insert(format!("{key}-{node}-{n}"), pod);
                }
            }
        }
    }

    fn rounds(&mut self, count: usize) -> usize {
        (0..count)
            .flat_map(|_| self.round())
            .map(|outcome| outcome.moves.len())
            .sum()
    }

    fn wanted(&self) -> Vec<(&str, u32)> {
        let wanted = &self.seikas[KEY].wanted;
        wanted.iter().map(|(n, c)| (n.as_str(), *c)).collect()
    }

    fn hold(&self) -> Option<&'static str> {
        self.state.holds().next().map(|(_, hold)| hold.name())
    }
}

#[test]
fn pods_are_where_traffic_enters_and_follow_it() {
    let mut world = World::new();
    world.rounds(3);
    assert_eq!(world.wanted(), [("a", 1)]);
    world.traffic(&[("a", 0.0), ("c", 200.0)]);
    let moves = world.rounds(15);
    assert_eq!((world.wanted(), moves), (vec![("c", 1)], 2));
    assert_eq!(world.rounds(50), 0);
}

#[test]
fn a_node_that_loses_its_pods_is_written_with_0() {
    let mut world = World::new();
    world.rounds(3);
    world.traffic(&[("c", 200.0)]);
    let mut writes = Vec::new();
    for _ in 0..20 {
        writes.extend(world.round().into_iter().filter_map(|o| o.write));
    }
    // Somebody else may own that field: without it, the old number would stay.
    assert_eq!(writes.last().unwrap().get("a"), Some(&0));
}

#[test]
fn what_is_missing_or_old_changes_nothing_and_is_said() {
    let mut world = World::new();
    world.latencies = None;
    assert!(world.round().is_empty());
    assert_eq!(world.hold(), Some("latency"));

    let mut world = World::new();
    world.rounds(3);
    let before = world.seikas[KEY].wanted.clone();
    world.traffic(&[("c", 200.0)]);
    let traffic = std::mem::replace(&mut world.traffic, Err("silent".into()));
    assert!(world.round().is_empty());
    assert_eq!(world.hold(), Some("traffic"));
    // No series is not no traffic.
    world.traffic = Ok(Traffic::default());
    assert!(world.round().is_empty());
    assert_eq!(world.hold(), Some("no_series"));
    world.traffic = traffic;
    world.objects_failing = Some("gone".into());
    assert!(world.round().is_empty());
    assert_eq!(world.hold(), Some("objects"));
    world.objects_failing = None;
    // Its own write is not seen yet.
    world.written = [(KEY.to_owned(), i64::MAX)].into();
    assert!(world.round().is_empty());
    assert_eq!(world.hold(), Some("behind"));
    world.written.clear();
    assert_eq!(world.seikas[KEY].wanted, before);
    // Round trips grow old: 30 s are 15 rounds.
    world.latencies = None;
    let held = (0..20).filter(|_| {
        world.round();
        world.hold() == Some("latency")
    });
    assert!((3..8).contains(&held.count()));
}

#[test]
fn who_does_not_act_decides_nothing() {
    let mut world = World::new();
    world.acts = false;
    assert_eq!(world.rounds(10), 0);
    world.acts = true;
    assert!(world.rounds(1) > 0);
}

#[test]
fn a_node_that_makes_no_pod_ready_gets_none_for_a_while() {
    let mut world = World::new();
    world.broken = vec!["a".into()];
    // It has 120 s.
    world.rounds(55);
    assert_eq!(world.wanted(), [("a", 1)]);
    world.rounds(10);
    assert_eq!(world.wanted(), [("b", 1)]);
    assert_eq!(world.rounds(50), 0, "no pod without end");
}

#[test]
fn where_no_pods_are_made_at_all_no_node_is_blamed() {
    let mut world = World::new();
    world.makes_pods = false;
    world.rounds(200);
    assert_eq!(world.wanted(), [("a", 1)]);
}

#[test]
fn room_is_what_all_pods_leave_and_what_is_wanted_counts() {
    let mut world = World::new();
    world.makes_pods = false;
    // 20 pods' worth of traffic at a: 4 pods fit on each node, and none where another one is.
    world.traffic(&[("a", 14_000.0)]);
    let other = PodFacts {
        node: "b".into(),
        request: Resources {
            cpu_millis: 1_800,
            ..Resources::default()
        },
        seika: None,
        ready: true,
    };
    world.pods.insert("default/other".into(), other);
    world.rounds(10);
    assert_eq!(world.wanted(), [("a", 4), ("c", 4)]);
    assert!(world.state.no_room().next().is_some());
    assert_eq!(world.rounds(20), 0);
}

#[test]
fn a_lost_node_and_one_that_leaves_lose_their_pods() {
    let mut world = World::new();
    world.rounds(3);
    world.nodes.get_mut("a").unwrap().state = NodeState::Lost;
    world.rounds(1);
    assert_eq!(world.wanted(), [("b", 1)]);
    world.nodes.remove("b");
    world.rounds(1);
    assert_eq!(world.wanted(), [("c", 1)]);
    // One that comes under its name is another one.
    world.nodes.insert("b".into(), node(2_000));
    world.rounds(20);
    assert_eq!(world.rounds(20), 0);
}

#[test]
fn annotations_bound_the_pods_and_a_wrong_one_is_said() {
    let mut world = World::new();
    let bounded = json!({ "orlop.io/min-pods": "2", "orlop.io/max-per-node": "1" });
    world.seikas.insert(KEY.into(), seika(bounded));
    world.rounds(3);
    assert_eq!(world.wanted(), [("a", 1), ("b", 1)]);
    for (name, value) in [
        ("orlop.io/concurrency", "0"),
        ("orlop.io/min-pods", "x"),
        ("orlop.io/max-pods", "0"),
    ] {
        world
            .seikas
            .insert(KEY.into(), seika(json!({ name: value })));
        world.rounds(1);
        assert_eq!(world.hold(), Some("seika"), "{name}");
    }
}

#[test]
fn a_zone_stands_for_nodes_that_are_not_measured() {
    let mut world = World::new();
    for (name, zone) in [("a", "near"), ("b", "near"), ("c", "far")] {
        world.nodes.get_mut(name).unwrap().zone = zone.into();
    }
    // Only a and b are measured, and what is thought of the zones.
    let latencies = world.latencies.as_mut().unwrap();
    latencies
        .round_trips
        .retain(|(from, to, _)| from != "c" && to != "c");
    latencies.zones = vec![
        ("a".into(), "far".into(), 50.0),
        ("b".into(), "far".into(), 50.0),
    ];
    world.nodes.get_mut("a").unwrap().allocatable.cpu_millis = 0;
    world.rounds(3);
    assert_eq!(world.wanted(), [("b", 1)]);
    let explained = world.state.explain(KEY, true).unwrap();
    assert_eq!(explained.traffic[0].to[0].round_trip_ms, Some(2.0));
}

#[test]
fn an_explanation_has_l_p_r_weights_and_the_last_moves() {
    let mut world = World::new();
    world.traffic(&[("a", 150.0), ("c", 150.0)]);
    world.rounds(20);
    let explained = world.state.explain(KEY, true).unwrap();
    let way = &explained.traffic[0].to[1];
    assert_eq!(
        (explained.traffic[0].node.as_str(), way.node.as_str()),
        ("a", "c")
    );
    assert_eq!(
        (way.round_trip_ms, way.response_ms),
        (Some(50.0), Some(60.0))
    );
    let weights: f64 = explained.traffic[0]
        .to
        .iter()
        .map(|w| w.weight_percent)
        .sum();
    assert!((weights - 100.0).abs() < 1e-9);
    assert_eq!(explained.moves.len(), 2);
    let text = explained.to_string();
    for said in ["traffic of c", "60.0", "85.7 %", "s ago"] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
    let json = serde_json::to_string(&explained).unwrap();
    let back: placer::explain::Explained = serde_json::from_str(&json).unwrap();
    assert_eq!(back, explained);
    assert!(world.state.explain("default/nobody", true).is_none());
}

#[test]
fn kubernetes_objects_are_read() {
    let object: Node = serde_json::from_value(json!({
        "metadata": { "name": "n", "labels": { "topology.kubernetes.io/zone": "z", "k": "v" } },
        "spec": { "taints": [{ "key": "t", "value": "x", "effect": "NoSchedule" }] },
        "status": {
            "allocatable": { "cpu": "3800m", "memory": "7Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True" }],
            "images": [{ "names": ["repo/i:1", "repo/i@sha256:0"], "sizeBytes": 1 }]
        }
    }))
    .unwrap();
    let facts = objects::node(&object);
    assert_eq!(
        (facts.allocatable.cpu_millis, facts.allocatable.pods),
        (3_800, 110)
    );
    assert_eq!((facts.zone.as_str(), facts.images.len()), ("z", 2));
    assert!(matches!(&facts.state, NodeState::Ready { taints, .. } if taints.len() == 1));
    let pod = |status: serde_json::Value| {
        let object: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "default", "ownerReferences": [
                { "apiVersion": "batch.bonavadeur.io/v1", "kind": "Seika", "name": "hello", "uid": "u" }
            ] },
            "spec": { "nodeName": "n", "containers": [
                { "name": "a", "resources": { "requests": { "cpu": "100m", "memory": "1Mi" } } },
                { "name": "b", "resources": { "requests": { "cpu": "200m" } } }
            ], "initContainers": [
                { "name": "i", "resources": { "requests": { "cpu": "1", "memory": "1Ki" } } }
            ] },
            "status": status
        }))
        .unwrap();
        objects::pod(&object)
    };
    let ready =
        pod(json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] }));
    let ready = ready.unwrap();
    assert_eq!(
        (ready.request.cpu_millis, ready.request.memory_bytes),
        (1_000, 1 << 20)
    );
    assert_eq!((ready.seika.as_deref(), ready.ready), (Some(KEY), true));
    assert!(pod(json!({ "phase": "Succeeded" })).is_none());
    assert!(!pod(json!({ "phase": "Pending" })).unwrap().ready);
}

proptest! {
    /// Whatever happens: never more on a node than it has room for, and constant load comes to rest.
    #[test]
    fn nothing_is_wanted_where_there_is_no_room(
        cpus in prop::collection::vec(0_u64..6_000, 3),
        loads in prop::collection::vec(0.0_f64..3_000.0, 3),
        lost in prop::option::of(0_usize..3),
    ) {
        let mut world = World::new();
        for (facts, cpu) in world.nodes.values_mut().zip(&cpus) {
            facts.allocatable.cpu_millis = *cpu;
        }
        let names = ["a", "b", "c"];
        let entered: Vec<(&str, f64)> = names.into_iter().zip(loads).collect();
        world.traffic(&entered);
        world.rounds(10);
        if let Some(lost) = lost {
            world.nodes.get_mut(names[lost]).unwrap().state = NodeState::Lost;
        }
        world.rounds(60);
        for (name, count) in &world.seikas[KEY].wanted {
            let at = names.iter().position(|n| n == name).unwrap();
            prop_assert!(u64::from(*count) * 500 <= cpus[at], "{count} on {name}");
            prop_assert!(lost != Some(at));
        }
        prop_assert_eq!(world.rounds(30), 0);
    }
}
