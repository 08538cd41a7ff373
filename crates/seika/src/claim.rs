//! Whose a pod is: which pods are a Seika's, which it adopts, and which it lets go, by the rules of
//! a ReplicaSet.

use crate::facts::Pod;
use crate::template::Template;

/// What a pod is to a Seika.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the Seika's.
    Own,
    /// It is nobody's and selected: the Seika becomes its owner.
    Adopt,
    /// It is the Seika's and is selected no more: it goes on without an owner.
    Release,
    /// It is nothing to the Seika.
    None,
}

/// What `pod` is to the Seika `uid`. One that is itself being deleted adopts and releases nothing.
#[must_use]
pub fn claim(pod: &Pod, uid: &str, template: &Template, is_being_deleted: bool) -> Claim {
    let selected = template.selects(&pod.labels);
    match &pod.owner {
        Some(owner) if owner.uid != uid => Claim::None,
        Some(_) if selected => Claim::Own,
        // What ends need not be let go, and a selector that cannot be read says nothing.
        Some(_) if is_being_deleted || pod.is_ending || template.fault.is_some() => Claim::Own,
        Some(_) => Claim::Release,
        // A pod that may go to any node would count nowhere.
        None if selected && !is_being_deleted && pod.is_live() && pod.node.is_some() => {
            Claim::Adopt
        }
        None => Claim::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SeikaSpec;
    use crate::facts::{Owner, Phase};
    use serde_json::json;

    fn template() -> Template {
        let spec: SeikaSpec = serde_json::from_value(json!({
            "selector": { "matchLabels": { "app": "x" } },
            "template": { "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [] } }
        }))
        .unwrap();
        Template::of(&spec)
    }

    fn pod(app: &str, owner: Option<&str>) -> Pod {
        Pod {
            name: "p".into(),
            uid: "1".into(),
            labels: [("app".into(), app.into())].into(),
            owner: owner.map(|uid| Owner {
                uid: uid.into(),
                is_seika: true,
            }),
            node: Some("n".into()),
            phase: Phase::Starting,
            is_ending: false,
            failures: 0,
        }
    }

    fn claims(pod: &Pod) -> Claim {
        claim(pod, "me", &template(), false)
    }

    #[test]
    fn only_a_matching_pod_without_a_controller_is_adopted() {
        assert_eq!(claims(&pod("x", None)), Claim::Adopt);
        assert_eq!(claims(&pod("y", None)), Claim::None);
        assert_eq!(claims(&pod("x", Some("other"))), Claim::None);
        assert_eq!(claims(&pod("x", Some("me"))), Claim::Own);
    }

    #[test]
    fn a_pod_whose_labels_ceased_to_match_is_released() {
        assert_eq!(claims(&pod("y", Some("me"))), Claim::Release);
    }

    #[test]
    fn what_ends_is_neither_adopted_nor_released() {
        let ending = |app, owner| Pod {
            is_ending: true,
            ..pod(app, owner)
        };
        assert_eq!(claims(&ending("x", None)), Claim::None);
        assert_eq!(claims(&ending("y", Some("me"))), Claim::Own);
        let ended = Pod {
            phase: Phase::Ended { ran_long: false },
            ..pod("x", None)
        };
        assert_eq!(claims(&ended), Claim::None);
    }

    #[test]
    fn a_seika_that_is_being_deleted_leaves_all_as_it_is() {
        for (pod, expected) in [
            (pod("x", None), Claim::None),
            (pod("y", Some("me")), Claim::Own),
        ] {
            assert_eq!(claim(&pod, "me", &template(), true), expected);
        }
    }

    #[test]
    fn a_pod_that_may_go_anywhere_is_not_adopted() {
        let free = Pod {
            node: None,
            ..pod("x", None)
        };
        assert_eq!(claims(&free), Claim::None);
    }
}
