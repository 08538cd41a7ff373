//! The decision against a model of a cluster that does what it is told, late, and does other
//! things too.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::facts::{Owner, Phase};

pub(super) const BUDGET: Budget = Budget {
    creates: 100,
    deletes: 100,
};

/// A cluster with one Seika.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) wanted: BTreeMap<String, u32>,
    pub(super) rolling: Rolling,
    pub(super) template: u32,
    pub(super) obstacles: BTreeMap<String, Obstacle>,
    pub(super) avoid: BTreeSet<(String, u32)>,
    /// Each with the template that it is of, its number, and how long its end is known.
    pub(super) pods: Vec<(Pod, u32, Option<u32>, u64)>,
    uids: u32,
    pub(super) created: u32,
}

impl Model {
    pub(super) fn new(wanted: &[(&str, u32)]) -> Self {
        Model {
            wanted: wanted.iter().map(|(n, w)| ((*n).into(), *w)).collect(),
            rolling: Rolling {
                max_unavailable: Share::Percent(25),
                max_surge: Share::Percent(25),
            },
            template: 0,
            obstacles: BTreeMap::new(),
            avoid: BTreeSet::new(),
            pods: Vec::new(),
            uids: 0,
            created: 0,
        }
    }

    pub(super) fn decide(&self, budget: Budget) -> Decision {
        let mut pods: BTreeMap<&str, Vec<PodView<'_>>> = BTreeMap::new();
        for (pod, template, slot, ended_for_ms) in &self.pods {
            let node = pod.node.as_deref().unwrap();
            pods.entry(node).or_default().push(PodView {
                pod,
                is_updated: *template == self.template,
                slot: *slot,
                ended_for_ms: *ended_for_ms,
            });
        }
        let input = Input {
            wanted: &self.wanted,
            rolling: self.rolling,
            pods,
            obstacles: &self.obstacles,
            avoid: &self.avoid,
        };
        super::decide(&input, budget)
    }

    pub(super) fn add(&mut self, node: &str, template: u32, slot: Option<u32>, phase: Phase) {
        self.uids += 1;
        let pod = Pod {
            name: format!("{node}-{}", slot.unwrap_or(1000 + self.uids)),
            uid: self.uids.to_string(),
            labels: BTreeMap::new(),
            owner: Some(Owner {
                uid: "s".into(),
                is_seika: true,
            }),
            node: Some(node.into()),
            phase,
            is_ending: false,
            failures: 0,
        };
        self.pods.push((pod, template, slot, 0));
    }

    /// Does what was decided.
    pub(super) fn carry_out(&mut self, decision: &Decision) {
        let pending = Phase::Pending {
            unschedulable: None,
        };
        for create in &decision.creates {
            let taken = self.pods.iter().any(|(pod, _, slot, _)| {
                *slot == Some(create.slot) && pod.node.as_ref() == Some(&create.node)
            });
            assert!(!taken, "a name twice: {create:?}");
            self.add(
                &create.node,
                self.template,
                Some(create.slot),
                pending.clone(),
            );
            self.pods.last_mut().unwrap().0.failures = create.failures;
            self.created += 1;
        }
        for delete in &decision.deletes {
            let at = self.pods.iter().position(|(pod, ..)| pod.uid == delete.uid);
            let at = at.expect("only what is there is deleted");
            assert!(!self.pods[at].0.is_ending, "deleted twice: {delete:?}");
            self.pods[at].0.is_ending = true;
        }
    }

    /// All pods get on: those that end are gone, the others are ready.
    pub(super) fn settle(&mut self) {
        self.pods.retain(|(pod, ..)| !pod.is_ending);
        for (pod, _, _, ended_for_ms) in &mut self.pods {
            match pod.phase {
                Phase::Ended { .. } => *ended_for_ms += BACKOFF_MAX_MS,
                Phase::Pending {
                    unschedulable: Some(_),
                } => {}
                _ => pod.phase = Phase::Ready,
            }
        }
    }

    pub(super) fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods
            .iter()
            .map(|(pod, ..)| pod)
            .filter(move |pod| pod.node.as_deref() == Some(node))
    }

    pub(super) fn live(&self, node: &str) -> u32 {
        self.on(node).filter(|pod| pod.is_live()).count() as u32
    }

    pub(super) fn there(&self, node: &str) -> u32 {
        self.on(node).filter(|pod| !pod.has_ended()).count() as u32
    }

    pub(super) fn ready(&self, node: &str) -> u32 {
        self.on(node).filter(|pod| pod.is_ready()).count() as u32
    }

    /// Decides and settles until there is nothing to do; how often it took.
    pub(super) fn converge(&mut self) -> u32 {
        for round in 0..500 {
            let decision = self.decide(BUDGET);
            if decision.creates.is_empty() && decision.deletes.is_empty() {
                return round;
            }
            self.carry_out(&decision);
            self.settle();
        }
        panic!("it does not converge: {self:?}");
    }

    pub(super) fn is_exact(&self) -> bool {
        let nodes: BTreeSet<&str> = self
            .wanted
            .keys()
            .map(String::as_str)
            .chain(self.pods.iter().filter_map(|(pod, ..)| pod.node.as_deref()))
            .collect();
        nodes.iter().all(|node| {
            let want = self.wanted.get(*node).copied().unwrap_or(0);
            let here = || {
                self.pods
                    .iter()
                    .filter(|(p, ..)| p.node.as_deref() == Some(node))
            };
            here().count() as u32 == want
                && here().all(|(pod, template, ..)| pod.is_live() && *template == self.template)
        })
    }
}

/// What happens to a cluster between two decisions.
#[derive(Clone, Debug)]
enum Happens {
    Want(usize, u32),
    TakeOff(usize),
    Template,
    Ready(usize),
    Unready(usize),
    Fail(usize, bool),
    NoRoom(usize),
    Gone,
    Deleted(usize),
    Adopted(usize),
    Cordon(usize),
    Uncordon(usize),
    Time(u64),
    Rolling(Rolling),
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![
        (0..4u32).prop_map(Share::Pods),
        (0..=100u32).prop_map(Share::Percent)
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    use Happens::*;
    prop_oneof![
        2 => (0..3usize, 0..7u32).prop_map(|(node, n)| Want(node, n)),
        1 => (0..3usize).prop_map(TakeOff),
        1 => Just(Template),
        6 => any::<usize>().prop_map(Ready),
        2 => any::<usize>().prop_map(Unready),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(pod, long)| Fail(pod, long)),
        1 => any::<usize>().prop_map(NoRoom),
        4 => Just(Gone),
        1 => any::<usize>().prop_map(Deleted),
        1 => (0..3usize).prop_map(Adopted),
        1 => (0..3usize).prop_map(Cordon),
        1 => (0..3usize).prop_map(Uncordon),
        2 => (1..400_000u64).prop_map(Time),
        1 => (share(), share()).prop_map(|(max_unavailable, max_surge)| {
            Rolling(super::Rolling { max_unavailable, max_surge })
        }),
    ]
}

const NODES: [&str; 3] = ["a", "b", "c"];

fn pod_at(model: &mut Model, n: usize) -> Option<&mut (Pod, u32, Option<u32>, u64)> {
    let len = model.pods.len();
    model.pods.get_mut(n.checked_rem(len)?)
}

fn happen(model: &mut Model, what: &Happens) {
    match what {
        Happens::Want(node, n) => {
            model.wanted.insert(NODES[*node].into(), *n);
        }
        Happens::TakeOff(node) => {
            model.wanted.remove(NODES[*node]);
        }
        Happens::Template => model.template += 1,
        Happens::Rolling(rolling) => model.rolling = *rolling,
        Happens::Gone => model.pods.retain(|(pod, ..)| !pod.is_ending),
        Happens::Adopted(node) => model.add(NODES[*node], 99, None, Phase::Starting),
        Happens::Cordon(node) => {
            let obstacle = Obstacle {
                reason: Reason::NodeCordoned,
                message: String::new(),
            };
            model.obstacles.insert(NODES[*node].into(), obstacle);
        }
        Happens::Uncordon(node) => {
            model.obstacles.remove(NODES[*node]);
        }
        Happens::Time(ms) => {
            for (pod, _, _, ended_for_ms) in &mut model.pods {
                if pod.has_ended() {
                    *ended_for_ms += ms;
                }
            }
        }
        Happens::Ready(n) => become_(model, *n, Phase::Ready),
        Happens::Unready(n) => become_(model, *n, Phase::Starting),
        Happens::Fail(n, ran_long) => {
            become_(
                model,
                *n,
                Phase::Ended {
                    ran_long: *ran_long,
                },
            );
        }
        Happens::NoRoom(n) => {
            if let Some((pod, ..)) = pod_at(model, *n)
                && matches!(pod.phase, Phase::Pending { .. })
            {
                pod.phase = Phase::Pending {
                    unschedulable: Some("0/3 nodes".into()),
                };
            }
        }
        Happens::Deleted(n) => {
            if let Some((pod, ..)) = pod_at(model, *n) {
                pod.is_ending = true;
            }
        }
    }
}

fn become_(model: &mut Model, n: usize, phase: Phase) {
    if let Some((pod, ..)) = pod_at(model, n)
        && !pod.has_ended()
    {
        pod.phase = phase;
    }
}

/// What holds of every decision, whatever the cluster is like.
fn check(model: &Model, decision: &Decision, budget: Budget) {
    assert!(decision.creates.len() <= budget.creates);
    assert!(decision.deletes.len() <= budget.deletes);
    let mut after = model.clone();
    after.carry_out(decision);
    for node in NODES {
        let want = model.wanted.get(node).copied().unwrap_or(0);
        let room = model.rolling.room(want);
        let creates = decision.creates.iter().filter(|c| c.node == node).count() as u32;
        let deletes = |of: &dyn Fn(&Pod) -> bool| {
            let is = |d: &&Delete| model.on(node).any(|pod| pod.uid == d.uid && of(pod));
            decision.deletes.iter().filter(is).count() as u32
        };
        if creates > 0 {
            assert!(
                model.there(node) + creates <= want + room.surge,
                "{node}: {creates} created above wanted and surge"
            );
            assert!(
                !model.obstacles.contains_key(node),
                "{node}: created in spite of an obstacle"
            );
            let waits = |pod: &Pod, t: u32| pod.is_live() && t == model.template;
            assert!(
                !model.pods.iter().any(|(pod, t, ..)| {
                    pod.node.as_deref() == Some(node)
                        && waits(pod, *t)
                        && pod.unschedulable().is_some()
                }),
                "{node}: created although one waits for room"
            );
        }
        // Ready pods are only given up above what has to be there.
        let least = want - room.unavailable;
        let ready = model.ready(node);
        assert!(
            after.ready(node) >= ready.min(least),
            "{node}: {ready} ready, then {}, of at least {least}",
            after.ready(node)
        );
        // Without another template only what is too much goes.
        let rolls = model.pods.iter().any(|(pod, t, ..)| {
            pod.node.as_deref() == Some(node) && pod.is_live() && *t != model.template
        });
        let live_deletes = deletes(&Pod::is_live);
        if !rolls {
            assert_eq!(
                live_deletes.min(model.live(node).saturating_sub(want)),
                live_deletes,
                "{node}: more deleted than too many"
            );
        }
        // What has ended stays bounded, too.
        let ended = after
            .on(node)
            .filter(|pod| pod.has_ended() && !pod.is_ending)
            .count() as u32;
        if !decision.has_more {
            assert!(ended <= want, "{node}: {ended} ended pods of {want} wanted");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_rule_is_broken_and_the_end_is_exact(
        steps in proptest::collection::vec((happens(), any::<bool>()), 1..80),
        creates in 1..5usize,
    ) {
        let small = Budget { creates, deletes: 3 };
        let mut model = Model::new(&[("a", 2), ("b", 3)]);
        for (what, is_small) in &steps {
            happen(&mut model, what);
            let budget = if *is_small { small } else { BUDGET };
            let decision = model.decide(budget);
            check(&model, &decision, budget);
            model.carry_out(&decision);
        }
        // Now nothing more happens, and what was in the way is gone.
        model.obstacles.clear();
        for (pod, ..) in &mut model.pods {
            if pod.unschedulable().is_some() {
                pod.phase = Phase::Starting;
            }
        }
        model.settle();
        let rounds = model.converge();
        prop_assert!(model.is_exact(), "{model:?}");
        prop_assert!(rounds < 100, "{rounds} rounds");
        let again = model.decide(BUDGET);
        prop_assert!(again.nodes.iter().all(|n| n.trouble.is_none()), "{:?}", again.nodes);
        prop_assert_eq!(again.again_in_ms, None);
    }

    #[test]
    fn a_failing_pod_is_retried_ever_more_rarely(wanted in 1..6u32, ran_long in any::<bool>()) {
        let mut model = Model::new(&[("a", wanted)]);
        let mut waited_ms = 0;
        // Half an hour of a template that fails at once.
        while waited_ms < 1_800_000 {
            let decision = model.decide(BUDGET);
            model.carry_out(&decision);
            model.pods.retain(|(pod, ..)| !pod.is_ending);
            for (pod, _, _, ended_for_ms) in &mut model.pods {
                pod.phase = Phase::Ended { ran_long };
                *ended_for_ms += decision.again_in_ms.unwrap_or(0);
            }
            waited_ms += decision.again_in_ms.unwrap_or(0);
        }
        let each = model.created / wanted;
        if ran_long {
            // It ran for ten minutes each time: the wait is the first one's.
            prop_assert!(each > 1_000);
        } else {
            prop_assert!((8..=16).contains(&each), "{each} of each place");
        }
    }
}

#[test]
fn a_budget_is_spent_on_all_nodes_in_turn() {
    let model = Model::new(&[("a", 5), ("b", 5), ("c", 5)]);
    let decision = model.decide(Budget {
        creates: 6,
        deletes: 0,
    });
    let nodes: Vec<&str> = decision.creates.iter().map(|c| c.node.as_str()).collect();
    assert_eq!(nodes, ["a", "b", "c", "a", "b", "c"]);
    assert!(decision.has_more);
}

#[test]
fn a_name_that_another_pod_has_is_passed_over() {
    let mut model = Model::new(&[("a", 2)]);
    model.avoid.insert(("a".into(), 0));
    let slots: Vec<u32> = model
        .decide(BUDGET)
        .creates
        .iter()
        .map(|c| c.slot)
        .collect();
    assert_eq!(slots, [1, 2]);
}

#[test]
fn pods_that_end_keep_their_room_until_they_are_gone() {
    let mut model = Model::new(&[("a", 4)]);
    model.rolling.max_surge = Share::Pods(1);
    model.converge();
    for (pod, ..) in model.pods.iter_mut().take(3) {
        pod.is_ending = true;
    }
    let decision = model.decide(BUDGET);
    assert_eq!(decision.creates.len(), 1, "only the surge is free");
    model.carry_out(&decision);
    assert_eq!(model.there("a"), 5);
    let trouble = model.decide(BUDGET).nodes[0].trouble.clone();
    assert_eq!(trouble.map(|t| t.reason), Some(Reason::PodsEnding));
}

#[test]
fn shares_round_as_a_deployment_does() {
    let rolling = Rolling {
        max_unavailable: Share::Percent(25),
        max_surge: Share::Percent(25),
    };
    let room = |wanted| {
        let room = rolling.room(wanted);
        (room.unavailable, room.surge)
    };
    assert_eq!(
        [room(0), room(1), room(4), room(5)],
        [(0, 0), (0, 1), (1, 1), (1, 2)]
    );
    let none = Rolling {
        max_unavailable: Share::Pods(0),
        max_surge: Share::Percent(0),
    };
    assert_eq!(none.room(3).unavailable, 1, "otherwise nothing could move");
}
