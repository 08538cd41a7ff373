//! The defects of the first Seika, each a test of what happens instead.
//!
//! 1. Pods without a node were not counted, so a full node got pods without end.
//! 2. Nodes taken off the map kept their pods.
//! 3. A changed template replaced nothing.
//! 4. `matchExpressions` were ignored.
//! 5. A node that is gone, cordoned or full got pods without end, and nobody was told.
//! 6. Pods were found by labels alone: no adoption, no release, pods of others were deleted.

use super::tests::{BUDGET, Model};
use super::*;
use crate::claim::{Claim, claim};
use crate::facts::Phase;
use crate::template::Template;
use serde_json::json;

fn full() -> Phase {
    Phase::Pending {
        unschedulable: Some("0/3 nodes are available: 1 Insufficient cpu.".into()),
    }
}

#[test]
fn defect_1_pending_pods_count_as_pods() {
    let mut model = Model::new(&[("a", 3)]);
    for _ in 0..10 {
        let decision = model.decide(BUDGET);
        model.carry_out(&decision);
        for (pod, ..) in &mut model.pods {
            pod.phase = full();
        }
    }
    assert_eq!(model.created, 3);
    assert_eq!(model.live("a"), 3);
}

#[test]
fn defect_2_nodes_taken_off_the_map_are_scaled_down() {
    let mut model = Model::new(&[("a", 3), ("b", 2)]);
    model.converge();
    model.wanted.remove("a");
    model.converge();
    assert!(model.is_exact());
    assert_eq!((model.live("a"), model.live("b")), (0, 2));
}

#[test]
fn defect_3_a_changed_template_rolls_within_its_bounds() {
    let mut model = Model::new(&[("a", 4)]);
    model.converge();
    model.template += 1;
    let mut rounds = 0;
    while !model.is_exact() {
        let decision = model.decide(BUDGET);
        model.carry_out(&decision);
        assert!(model.there("a") <= 5, "more than wanted and surge");
        assert!(model.ready("a") >= 3, "fewer than may be");
        model.settle();
        rounds += 1;
        assert!(rounds < 20);
    }
}

#[test]
fn defect_4_match_expressions_select() {
    let template = Template::of(
        &serde_json::from_value(json!({
            "selector": { "matchExpressions": [
                { "key": "app", "operator": "In", "values": ["x", "y"] },
                { "key": "old", "operator": "DoesNotExist" }
            ] },
            "template": {
                "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [] }
            }
        }))
        .unwrap(),
    );
    assert_eq!(template.fault, None);
    let selects = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        template.selects(&labels.collect())
    };
    assert!(selects(&[("app", "y")]));
    assert!(!selects(&[("app", "z")]));
    assert!(!selects(&[("app", "x"), ("old", "1")]));
}

#[test]
fn defect_5_a_node_that_takes_no_pods_gets_none_and_says_why() {
    for reason in [
        Reason::NodeNotFound,
        Reason::NodeCordoned,
        Reason::TemplateMisfit,
    ] {
        let mut model = Model::new(&[("a", 3)]);
        let obstacle = Obstacle {
            reason,
            message: "words".into(),
        };
        model.obstacles.insert("a".into(), obstacle.clone());
        for _ in 0..10 {
            let decision = model.decide(BUDGET);
            assert_eq!(decision.nodes[0].trouble.as_ref(), Some(&obstacle));
            model.carry_out(&decision);
            model.settle();
        }
        assert_eq!(model.created, 0);
    }
    // A full one has at most the pods that are wanted, and says what the scheduler says.
    let mut model = Model::new(&[("a", 1)]);
    model.carry_out(&model.decide(BUDGET));
    model.pods[0].0.phase = full();
    model.wanted.insert("a".into(), 5);
    let decision = model.decide(BUDGET);
    assert_eq!(decision.creates, []);
    let trouble = decision.nodes[0].trouble.clone().unwrap();
    assert_eq!(trouble.reason, Reason::Unschedulable);
    assert!(trouble.message.contains("Insufficient cpu"), "{trouble:?}");
}

#[test]
fn defect_6_pods_are_owned_by_reference_and_not_by_labels() {
    let template = Template::of(
        &serde_json::from_value(json!({
            "selector": { "matchLabels": { "app": "x" } },
            "template": {
                "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [] }
            }
        }))
        .unwrap(),
    );
    let mut model = Model::new(&[]);
    model.add("a", 0, None, Phase::Ready);
    let mut pod = model.pods.remove(0).0;
    pod.labels = [("app".to_owned(), "x".to_owned())].into();
    let mut claims = |owner: Option<&str>| {
        pod.owner = owner.map(|uid| crate::facts::Owner {
            uid: uid.into(),
            is_seika: true,
        });
        claim(&pod, "me", &template, false)
    };
    assert_eq!(claims(Some("another")), Claim::None);
    assert_eq!(claims(None), Claim::Adopt);
    assert_eq!(claims(Some("me")), Claim::Own);
    pod.labels.clear();
    assert_eq!(claim(&pod, "me", &template, false), Claim::Release);
}
