//! What is told of a decision: the resource's status and its conditions. Pure.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::{NodeStatus, SeikaStatus};
use crate::decide::{NodeFinding, Obstacle};
use crate::reason::Reason;

/// Up to so many nodes `ready` has each by itself.
const NODES_BY_THEMSELVES: usize = 8;
/// What `nodes` may take, so that the object stays far below what a store takes.
const NODES_BYTES: usize = 512 << 10;
/// What `repurika` may take; a larger one is left out.
const COUNTS_BYTES: usize = 384 << 10;
/// A node's entry without its texts, about.
const ENTRY_BYTES: usize = 80;
/// Nodes that a condition names.
const NODES_NAMED: usize = 5;

/// What a status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The generation that was decided on.
    pub generation: Option<i64>,
    /// What was found on the nodes.
    pub nodes: &'a [NodeFinding],
    /// Why no pods can be made.
    pub fault: Option<&'a Obstacle>,
    /// What the apiserver said when it refused a pod.
    pub refused: Option<&'a str>,
}

/// The status, with the times of `before` where a condition is as it was.
#[must_use]
pub fn status(told: &Told<'_>, before: &[Condition], now: &Time) -> SeikaStatus {
    let mut nodes: Vec<NodeStatus> = told.nodes.iter().map(node).collect();
    if let Some(words) = told.refused {
        for node in nodes.iter_mut().filter(|n| n.updated < n.wanted) {
            if node.reason.as_deref().is_none_or(is_on_its_way) {
                node.reason = Some(Reason::CreateFailed.as_str().into());
                node.message = Some(words.to_owned());
            }
        }
    }
    let wanted: Vec<&NodeStatus> = nodes.iter().filter(|n| n.wanted > 0).collect();
    let sum = |of: fn(&NodeStatus) -> u32| nodes.iter().map(of).fold(0, u32::saturating_add);
    let mut status = SeikaStatus {
        observed_generation: told.generation,
        repurika: counts(&nodes),
        ready: Some(ready(&nodes)),
        node_count: u32::try_from(wanted.len()).unwrap_or(u32::MAX),
        wanted_total: sum(|n| n.wanted),
        ready_total: sum(|n| n.ready),
        updated_total: sum(|n| n.updated),
        conditions: conditions(told, &nodes, before, now),
        ..SeikaStatus::default()
    };
    (status.nodes, status.nodes_omitted) = that_fit(nodes);
    status
}

fn node(found: &NodeFinding) -> NodeStatus {
    let trouble = found.trouble.as_ref();
    NodeStatus {
        name: found.node.clone(),
        wanted: found.wanted,
        current: found.current,
        ready: found.ready,
        updated: found.updated,
        reason: trouble.map(|t| t.reason.as_str().into()),
        message: trouble.map(|t| t.message.clone()),
    }
}

fn counts(nodes: &[NodeStatus]) -> std::collections::BTreeMap<String, u32> {
    let bytes: usize = nodes.iter().map(|n| n.name.len() + 10).sum();
    let nodes = if bytes <= COUNTS_BYTES { nodes } else { &[] };
    nodes.iter().map(|n| (n.name.clone(), n.current)).collect()
}

/// Whether a node's reason goes away by waiting.
fn is_on_its_way(reason: &str) -> bool {
    let known = Reason::ALL.into_iter().find(|r| r.as_str() == reason);
    known.is_some_and(|r| !r.needs_somebody())
}

fn ready(nodes: &[NodeStatus]) -> String {
    let joined = |of: fn(&NodeStatus) -> u32| -> String {
        if nodes.len() <= NODES_BY_THEMSELVES {
            let each: Vec<_> = nodes.iter().map(|n| of(n).to_string()).collect();
            each.join("-")
        } else {
            let sum: u32 = nodes.iter().map(of).fold(0, u32::saturating_add);
            sum.to_string()
        }
    };
    format!("{}/{}", joined(|n| n.ready), joined(|n| n.wanted))
}

/// The entries for which there is room, by name, and how many have none: those in trouble are kept
/// first.
fn that_fit(mut nodes: Vec<NodeStatus>) -> (Vec<NodeStatus>, u32) {
    nodes.sort_by_key(|n| Reverse(n.reason.as_deref().map(|r| !is_on_its_way(r))));
    let mut bytes = 0;
    let fit = nodes.iter().take_while(|n| {
        let texts = n.name.len()
            + n.reason.as_ref().map_or(0, String::len)
            + n.message.as_ref().map_or(0, String::len);
        bytes += ENTRY_BYTES + texts;
        bytes <= NODES_BYTES
    });
    let fit = fit.count();
    let omitted = nodes.split_off(fit).len();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    (nodes, u32::try_from(omitted).unwrap_or(u32::MAX))
}

/// `N nodes: a, b and 3 more`.
fn named(nodes: &[&NodeStatus]) -> String {
    let names: Vec<_> = nodes
        .iter()
        .take(NODES_NAMED)
        .map(|n| match (&n.reason, &n.message) {
            (Some(reason), Some(message)) => format!("{} ({reason}: {message})", n.name),
            _ => n.name.clone(),
        })
        .collect();
    match nodes.len().saturating_sub(names.len()) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn conditions(
    told: &Told<'_>,
    nodes: &[NodeStatus],
    before: &[Condition],
    now: &Time,
) -> Vec<Condition> {
    let troubled: Vec<&NodeStatus> = nodes.iter().filter(|n| n.reason.is_some()).collect();
    let stuck: Vec<&NodeStatus> = troubled
        .iter()
        .copied()
        .filter(|n| n.reason.as_deref().is_some_and(|r| !is_on_its_way(r)))
        .collect();
    let first = stuck.first().or(troubled.first());
    let ready = match first {
        None => ("True", "AsWanted".to_owned(), String::new()),
        Some(node) => {
            let reason = node.reason.clone().unwrap_or_default();
            let of = if stuck.is_empty() { &troubled } else { &stuck };
            // The numbers of what is on its way change all the time; the status has them.
            let words = match stuck.is_empty() {
                true => String::from("see status.nodes"),
                false => named(of),
            };
            ("False", reason, words)
        }
    };
    let valid = match (told.fault, told.refused) {
        (Some(fault), _) => (
            "False",
            fault.reason.as_str().to_owned(),
            fault.message.clone(),
        ),
        (None, Some(words)) => (
            "False",
            Reason::CreateFailed.as_str().to_owned(),
            words.to_owned(),
        ),
        (None, None) => ("True", "Valid".to_owned(), String::new()),
    };
    let of_seika = [
        Reason::SelectorMismatch,
        Reason::InvalidTemplate,
        Reason::CreateFailed,
    ];
    let unusable: Vec<&NodeStatus> = stuck
        .iter()
        .copied()
        .filter(|n| {
            let is = |reason: &Reason| n.reason.as_deref() == Some(reason.as_str());
            !of_seika.iter().any(is)
        })
        .collect();
    let usable = match unusable.first() {
        None => ("True", "Usable".to_owned(), String::new()),
        Some(node) => (
            "False",
            node.reason.clone().unwrap_or_default(),
            named(&unusable),
        ),
    };
    let all = [("Ready", ready), ("Valid", valid), ("NodesUsable", usable)];
    all.into_iter()
        .map(|(type_, (status, reason, message))| {
            let same = before
                .iter()
                .find(|c| c.type_ == type_ && c.status == status);
            Condition {
                type_: type_.into(),
                status: status.into(),
                reason,
                message,
                last_transition_time: same.map_or(now, |c| &c.last_transition_time).clone(),
                observed_generation: told.generation,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(node: &str, wanted: u32, ready: u32, trouble: Option<Reason>) -> NodeFinding {
        NodeFinding {
            node: node.into(),
            wanted,
            current: ready,
            ready,
            updated: ready,
            trouble: trouble.map(|reason| Obstacle {
                reason,
                message: "words".into(),
            }),
        }
    }

    fn of(nodes: &[NodeFinding], refused: Option<&str>) -> SeikaStatus {
        let told = Told {
            generation: Some(7),
            nodes,
            fault: None,
            refused,
        };
        status(&told, &[], &time(1))
    }

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn condition<'a>(status: &'a SeikaStatus, type_: &str) -> &'a Condition {
        let found = status.conditions.iter().find(|c| c.type_ == type_);
        found.unwrap()
    }

    #[test]
    fn ready_has_each_node_of_a_few_and_sums_of_many() {
        let few = [found("a", 2, 1, None), found("b", 3, 3, None)];
        assert_eq!(of(&few, None).ready.as_deref(), Some("1-3/2-3"));
        let many: Vec<_> = (0..9)
            .map(|n| found(&format!("n{n}"), 2, 1, None))
            .collect();
        assert_eq!(of(&many, None).ready.as_deref(), Some("9/18"));
    }

    #[test]
    fn what_needs_somebody_is_the_reason_before_what_is_on_its_way() {
        let nodes = [
            found("a", 1, 0, Some(Reason::Starting)),
            found("b", 1, 0, Some(Reason::NodeCordoned)),
        ];
        let status = of(&nodes, None);
        let ready = condition(&status, "Ready");
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("False", "NodeCordoned")
        );
        assert!(ready.message.contains("b (NodeCordoned: words)"));
        assert_eq!(condition(&status, "NodesUsable").status, "False");
        assert_eq!(condition(&status, "Valid").status, "True");
    }

    #[test]
    fn a_refusal_is_said_of_the_seika_and_of_its_nodes() {
        let status = of(&[found("a", 1, 0, Some(Reason::Starting))], Some("quota"));
        let valid = condition(&status, "Valid");
        assert_eq!(
            (valid.reason.as_str(), valid.message.as_str()),
            ("CreateFailed", "quota")
        );
        assert_eq!(status.nodes[0].reason.as_deref(), Some("CreateFailed"));
        assert_eq!(condition(&status, "NodesUsable").status, "True");
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let nodes = [found("a", 1, 1, None)];
        let first = of(&nodes, None);
        let told = Told {
            generation: Some(8),
            nodes: &nodes,
            fault: None,
            refused: None,
        };
        let second = status(&told, &first.conditions, &time(2));
        assert_eq!(
            condition(&second, "Ready").last_transition_time,
            condition(&first, "Ready").last_transition_time
        );
        let none = [found("a", 1, 0, Some(Reason::Starting))];
        let told = Told {
            nodes: &none,
            ..told
        };
        let third = status(&told, &first.conditions, &time(2));
        assert_eq!(condition(&third, "Ready").last_transition_time, time(2));
    }

    #[test]
    fn a_status_comes_back_as_it_was_written() {
        let nodes = [
            found("a", 2, 1, Some(Reason::NodeCordoned)),
            found("b", 1, 1, None),
        ];
        let status = of(&nodes, None);
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(
            serde_json::from_str::<SeikaStatus>(&text).unwrap(),
            status,
            "{text}"
        );
    }

    #[test]
    fn a_status_of_the_largest_seika_has_room_in_a_store() {
        let name = |n: usize| format!("{n:0>253}");
        let nodes: Vec<_> = (0..5000)
            .map(|n| {
                let trouble = (n == 4999).then_some(Reason::NodeNotFound);
                found(&name(n), 1, 1, trouble)
            })
            .collect();
        let status = of(&nodes, None);
        assert!(status.nodes_omitted > 0);
        let kept: Vec<_> = status.nodes.iter().map(|n| n.name.clone()).collect();
        assert!(kept.contains(&name(4999)), "the one in trouble is kept");
        let bytes = serde_json::to_vec(&status).unwrap().len();
        assert!(bytes < 1 << 20, "{bytes}");
    }
}
