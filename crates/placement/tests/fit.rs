//! Node selectors, required node affinity, taints and tolerations, by Kubernetes' rules; and room.

use placement::{
    Constraints, Effect, Labels, Node, Operator, Requirement, Resources, Room, Settings, Taint,
    Toleration, misfit,
};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn requirement(operator: Operator, values: &[&str]) -> Requirement {
    Requirement {
        key: "n".into(),
        operator,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

#[test]
fn each_operator_compares_as_kubernetes_does() {
    let none = labels(&[]);
    for (operator, values, with_5, without) in [
        (Operator::In, &["5", "6"][..], true, false),
        (Operator::In, &["6"], false, false),
        (Operator::NotIn, &["5"], false, true),
        (Operator::NotIn, &["6"], true, true),
        (Operator::Exists, &[], true, false),
        (Operator::DoesNotExist, &[], false, true),
        (Operator::Gt, &["4"], true, false),
        (Operator::Gt, &["5"], false, false),
        (Operator::Lt, &["6"], true, false),
        (Operator::Lt, &["five"], false, false),
    ] {
        let requirement = requirement(operator, values);
        let five = labels(&[("n", "5")]);
        assert_eq!(requirement.met_by(&five), with_5, "{requirement:?}");
        assert_eq!(requirement.met_by(&none), without, "{requirement:?}");
    }
}

#[test]
fn why_a_template_does_not_fit_is_said() {
    let node = labels(&[("zone", "a"), ("n", "5")]);
    let says = |constraints: &Constraints, taints: &[Taint]| {
        misfit(constraints, &node, taints).unwrap_or_default()
    };
    let mut constraints = Constraints::default();
    assert_eq!(says(&constraints, &[]), "");
    constraints.selector = labels(&[("zone", "b")]);
    assert!(says(&constraints, &[]).contains("zone=b, this one has zone=a"));
    constraints.selector = labels(&[("disk", "ssd")]);
    assert!(says(&constraints, &[]).contains("no such label"));
    constraints.selector.clear();
    // One term is enough; a term without requirements fits nowhere.
    constraints.affinity = Some(vec![vec![]]);
    assert!(says(&constraints, &[]).contains("affinity"));
    constraints.affinity = Some(vec![vec![], vec![requirement(Operator::Exists, &[])]]);
    assert_eq!(says(&constraints, &[]), "");
}

#[test]
fn a_taint_needs_a_toleration_that_covers_it() {
    let taint = |effect| Taint {
        key: "gpu".into(),
        value: "yes".into(),
        effect,
    };
    let says = |tolerations: Vec<Toleration>, effect| {
        let constraints = Constraints {
            tolerations,
            ..Constraints::default()
        };
        misfit(&constraints, &Labels::new(), &[taint(effect)])
    };
    let toleration = |key: Option<&str>, value: Option<&str>, effect| Toleration {
        key: key.map(String::from),
        value: value.map(String::from),
        effect,
    };
    let text = says(vec![], Effect::NoSchedule).unwrap();
    assert!(text.contains("gpu=yes:NoSchedule"), "{text}");
    assert_eq!(says(vec![], Effect::PreferNoSchedule), None);
    for (covers, tolerated) in [
        (toleration(None, None, None), true),
        (toleration(Some("gpu"), None, None), true),
        (toleration(Some("gpu"), Some("yes"), None), true),
        (toleration(Some("gpu"), Some("no"), None), false),
        (toleration(Some("other"), None, None), false),
        (toleration(Some("gpu"), None, Some(Effect::NoExecute)), true),
        (
            toleration(Some("gpu"), None, Some(Effect::NoSchedule)),
            false,
        ),
    ] {
        let said = says(vec![covers.clone()], Effect::NoExecute);
        assert_eq!(said.is_none(), tolerated, "{covers:?}");
    }
}

#[test]
fn room_is_the_scarcest_resource() {
    let free = Resources {
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        pods: 3,
    };
    let request = Resources {
        cpu_millis: 400,
        memory_bytes: 1 << 20,
        pods: 1,
    };
    let mut room = Room::new(vec![free]);
    assert!(room.take(Node(0), &request) && room.take(Node(0), &request));
    assert!(!room.take(Node(0), &request), "200 of 1000 are left");
    // A pod that asks for nothing still is a pod.
    let nothing = Resources::default();
    assert!(room.take(Node(0), &nothing));
    assert!(!room.take(Node(0), &nothing));
    assert!(!room.take(Node(1), &nothing), "no such node");
}

#[test]
fn settings_out_of_range_are_named() {
    assert_eq!(Settings::default().check(), Ok(()));
    let wrong = Settings {
        target_utilization: 1.5,
        ..Settings::default()
    };
    let error = wrong.check().unwrap_err().to_string();
    assert!(error.contains("target_utilization is 1.5"), "{error}");
}
