//! A Seika is looked at in parts: those on which something has changed.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use seika::decide::{Budget, Decision, Input, NodeFinding, PodView, Rolling, Share, decide_on};
use seika::facts::{Owner, Phase, Pod};
use seika::index::{Index, Look};
use seika::parts::Parts;

const ALL: Budget = Budget {
    creates: usize::MAX,
    deletes: usize::MAX,
};

fn pod(node: usize, number: usize, uid: &str, phase: Phase) -> Pod {
    Pod {
        name: format!("n{node}-{number}"),
        uid: uid.into(),
        labels: BTreeMap::new(),
        owner: Some(Owner {
            uid: "s".into(),
            is_seika: true,
        }),
        node: Some(format!("n{node}")),
        phase,
        is_ending: false,
        failures: 0,
    }
}

struct World {
    index: Index,
    wanted: BTreeMap<String, u32>,
    now_ms: u64,
    created: usize,
}

impl World {
    fn carry_out(&mut self, decision: Decision) {
        for create in decision.creates {
            self.created += 1;
            let uid = format!("created-{}", self.created);
            let node = create.node[1..].parse().unwrap();
            let phase = Phase::Pending {
                unschedulable: None,
            };
            let pod = pod(node, create.slot as usize, &uid, phase);
            self.index.created("ns", pod, self.now_ms);
        }
        for delete in decision.deletes {
            let (node, uid) = (delete.node.as_deref(), &delete.uid);
            self.index.deleted("s", node, uid, self.now_ms);
        }
    }

    fn decide(&self, look: &Look, budget: Budget) -> (Decision, BTreeSet<String>) {
        let of = |at: &Option<String>, pods: &Vec<Arc<Pod>>| (at.clone(), pods.clone());
        let pods: Vec<(Option<String>, Vec<Arc<Pod>>)> =
            look.pods.iter().map(|(at, pods)| of(at, pods)).collect();
        let mut views: BTreeMap<&str, Vec<PodView<'_>>> = BTreeMap::new();
        for (at, pods) in &pods {
            let Some(at) = at else { continue };
            let view = |pod: &'_ Arc<Pod>| -> (Option<u32>, u64) {
                let slot = pod.name.rsplit_once('-').and_then(|(_, n)| n.parse().ok());
                (slot, self.index.ended_for_ms(&pod.uid, self.now_ms))
            };
            let of_node = views.entry(at).or_default();
            for pod in pods {
                let (slot, ended_for_ms) = view(pod);
                of_node.push(PodView {
                    pod,
                    is_updated: true,
                    slot,
                    ended_for_ms,
                });
            }
        }
        let mut names: BTreeSet<String> = look.pods.keys().flatten().cloned().collect();
        if look.is_whole {
            names.extend(self.wanted.keys().cloned());
        }
        let input = Input {
            wanted: &self.wanted,
            rolling: Rolling {
                max_unavailable: Share::Percent(25),
                max_surge: Share::Percent(25),
            },
            pods: views,
            obstacles: &BTreeMap::new(),
            avoid: &BTreeSet::new(),
        };
        let decided = decide_on(&input, &names.iter().map(String::as_str).collect(), budget);
        (decided, names)
    }

    /// A look at what has changed.
    fn look(&mut self, parts: &mut Parts, budget: Budget) -> (Decision, usize) {
        let open: Vec<String> = parts.open().iter().cloned().collect();
        let whole = parts.needs_whole(Some(1));
        let open = open.iter().map(String::as_str);
        let look = self.index.look("s", "ns", whole, open, self.now_ms);
        let (decision, names) = self.decide(&look, budget);
        let names = names.iter().map(String::as_str).collect();
        parts.take(Some(1), look.is_whole, &names, &decision);
        (decision, look.pods.values().map(Vec::len).sum())
    }
}

fn world(nodes: usize, pods: u32) -> World {
    let mut index = Index::default();
    index.begin_pods(0);
    index.end_pods(0);
    let wanted = (0..nodes).map(|n| (format!("n{n}"), pods));
    World {
        index,
        wanted: wanted.collect(),
        now_ms: 1,
        created: 0,
    }
}

#[derive(Clone, Debug)]
enum Happens {
    Shown(usize, usize, u8),
    Gone(usize, usize),
    Created(usize, usize),
    Deleted(usize, usize),
    Open(usize, usize),
    Refused(usize, usize),
    Listed,
    Time(u64),
    Look(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    let place = || (0..4usize, 0..4usize);
    prop_oneof![
        4 => (place(), 0..5u8).prop_map(|((n, i), p)| Happens::Shown(n, i, p)),
        2 => place().prop_map(|(n, i)| Happens::Gone(n, i)),
        2 => place().prop_map(|(n, i)| Happens::Created(n, i)),
        2 => place().prop_map(|(n, i)| Happens::Deleted(n, i)),
        1 => place().prop_map(|(n, i)| Happens::Open(n, i)),
        1 => place().prop_map(|(n, i)| Happens::Refused(n, i)),
        1 => Just(Happens::Listed),
        1 => (1..400_000u64).prop_map(Happens::Time),
        4 => (0..4usize).prop_map(Happens::Look),
    ]
}

proptest! {
    /// What is known of the nodes on which nothing has changed is what a look at all of them finds.
    #[test]
    fn what_is_found_in_parts_is_what_is_found_of_the_whole(
        all in proptest::collection::vec(happens(), 1..60)
    ) {
        let mut world = world(3, 2);
        let mut parts = Parts::default();
        for one in all {
            let now_ms = world.now_ms;
            let uid = |n: usize, i: usize| format!("{n}/{i}");
            match one {
                Happens::Shown(n, i, phase) => {
                    let phase = match phase {
                        0 => Phase::Pending { unschedulable: None },
                        1 => Phase::Pending { unschedulable: Some("full".into()) },
                        2 => Phase::Starting,
                        3 => Phase::Ended { ran_long: false },
                        _ => Phase::Ready,
                    };
                    world.index.apply_pod("ns", pod(n, i, &uid(n, i), phase), now_ms);
                }
                Happens::Gone(n, i) => {
                    world.index.remove_pod("ns", &format!("n{n}-{i}"), &uid(n, i));
                }
                Happens::Created(n, i) => {
                    let phase = Phase::Pending { unschedulable: None };
                    world.index.created("ns", pod(n, i, &uid(n, i), phase), now_ms);
                }
                Happens::Deleted(n, i) => {
                    let node = format!("n{n}");
                    world.index.deleted("s", Some(&node), &uid(n, i), now_ms);
                }
                Happens::Open(n, i) => world.index.deletion_is_open(&uid(n, i)),
                Happens::Refused(n, i) => world.index.not_deleted(&uid(n, i)),
                Happens::Listed => {
                    world.index.begin_pods(now_ms);
                    let ready = pod(1, 1, &uid(1, 1), Phase::Ready);
                    world.index.list_pod("ns".into(), ready);
                    world.index.end_pods(now_ms);
                }
                Happens::Time(ms) => world.now_ms += ms,
                Happens::Look(budget) => {
                    let budget = Budget { creates: budget, deletes: budget };
                    let (decision, _) = world.look(&mut parts, budget);
                    world.carry_out(decision);
                }
            }
        }
        let (found, _) = world.look(&mut parts, ALL);
        let whole = world.index.look("s", "ns", true, [], world.now_ms);
        let (all, _) = world.decide(&whole, ALL);
        let parts: Vec<NodeFinding> = parts.nodes().cloned().collect();
        prop_assert_eq!(parts, all.nodes);
        // Nothing is left to do on the nodes that were not looked at.
        prop_assert_eq!(found.creates.len(), all.creates.len());
        prop_assert_eq!(found.deletes.len(), all.deletes.len());
    }
}

/// 500 nodes, 20 pods on each: an event costs a look at its node's pods, not at 10,000.
#[test]
fn a_look_costs_what_has_changed() {
    let (nodes, each) = (500, 20);
    let mut world = world(nodes, 20);
    let mut parts = Parts::default();
    let (decision, seen) = world.look(&mut parts, ALL);
    assert_eq!((decision.creates.len(), seen), (nodes * each, 0));
    assert_eq!(parts.renewed(), 500);
    let mut steps = 0;
    for i in 0..each {
        for n in 0..nodes {
            let uid = format!("{n}/{i}");
            for phase in [Phase::Starting, Phase::Ready] {
                world.index.apply_pod("ns", pod(n, i, &uid, phase), 2);
                let (_, seen) = world.look(&mut parts, ALL);
                assert_eq!(seen, i + 1);
                steps += seen;
            }
        }
    }
    // On average half of a node's pods for each of 20,000 events.
    assert_eq!(steps, 2 * nodes * (1..=each).sum::<usize>());
    assert_eq!(parts.renewed(), 500 + 20_000);
    assert!(
        parts
            .nodes()
            .all(|node| node.ready == 20 && node.trouble.is_none())
    );
    let (decision, seen) = world.look(&mut parts, ALL);
    assert_eq!((decision, seen), (Decision::default(), 0));
}
