//! What is to be created and deleted now: a pure function of what is wanted and what is there.
//!
//! No clock and no I/O. How long the controller has known of a pod's end is an input, and what was
//! created or deleted and is not seen yet the caller has put among the pods (`crate::index`).
//!
//! Of one node:
//! - A pod that is pending counts as a pod, so a full node gets no pods without end.
//! - Live pods and those that end are together never more than wanted and surge because of a
//!   creation.
//! - A deletion for the sake of a new template leaves at least wanted less `max_unavailable` ready
//!   pods, if there were as many.
//! - Nothing is created on a node that cannot take the template, or where a pod of the present
//!   template waits for room.
//! - A pod that has ended holds its place back for a while, the longer the more often it failed.

mod node;
#[cfg(test)]
mod seed_defects;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Pod;
use crate::reason::Reason;

/// A failed pod is replaced after so long, the first time.
pub const BACKOFF_MIN_MS: u64 = 1_000;
/// A failed pod is replaced after so long at the latest.
pub const BACKOFF_MAX_MS: u64 = 300_000;

/// A number of a node's pods, absolute or by what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Pods(u32),
    /// So many of a hundred.
    Percent(u32),
}

impl Share {
    fn rounded_down(self, of: u32) -> u32 {
        match self {
            Share::Pods(n) => n,
            Share::Percent(p) => percent(of, p, 0),
        }
    }

    fn rounded_up(self, of: u32) -> u32 {
        match self {
            Share::Pods(n) => n,
            Share::Percent(p) => percent(of, p, 99),
        }
    }
}

fn percent(of: u32, percent: u32, add: u64) -> u32 {
    let n = (u64::from(of) * u64::from(percent) + add) / 100;
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// How pods are replaced on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolling {
    /// Pods that may be missing.
    pub max_unavailable: Share,
    /// Pods that may be there beyond those wanted.
    pub max_surge: Share,
}

/// The same for one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Pods that may be missing.
    pub unavailable: u32,
    /// Pods that may be there beyond those wanted.
    pub surge: u32,
}

impl Rolling {
    /// For a node on which `wanted` pods are wanted. If both come out as 0, one pod may be missing,
    /// as with a Deployment: otherwise nothing could be replaced.
    #[must_use]
    pub fn room(self, wanted: u32) -> Room {
        let surge = self.max_surge.rounded_up(wanted);
        let unavailable = self.max_unavailable.rounded_down(wanted).min(wanted);
        Room {
            surge,
            unavailable: match (unavailable, surge) {
                (0, 0) => 1.min(wanted),
                (n, _) => n,
            },
        }
    }
}

/// Why a node takes no pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The reason.
    pub reason: Reason,
    /// The reason in words.
    pub message: String,
}

/// A pod, and how long the controller knows that it has ended: 0 if it has not.
#[derive(Clone, Debug)]
pub struct PodView<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// It is of the present template.
    pub is_updated: bool,
    /// The number in its name, if the controller gave it one.
    pub slot: Option<u32>,
    /// How long its end is known, in ms.
    pub ended_for_ms: u64,
}

/// What is wanted, and what is there.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// Pods wanted on each node.
    pub wanted: &'a BTreeMap<String, u32>,
    /// How they are replaced.
    pub rolling: Rolling,
    /// The pods that are this Seika's, by their node.
    pub pods: BTreeMap<&'a str, Vec<PodView<'a>>>,
    /// Nodes that take no pods. One that is not here takes them.
    pub obstacles: &'a BTreeMap<String, Obstacle>,
    /// Numbers that pods of others have the names of, by node.
    pub avoid: &'a BTreeSet<(String, u32)>,
}

/// Most that is done in one pass, so that a pass is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Pods created.
    pub creates: usize,
    /// Pods deleted.
    pub deletes: usize,
}

/// A pod to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// The node.
    pub node: String,
    /// The number in its name: the least that is free on the node.
    pub slot: u32,
    /// How often its predecessors failed in a row.
    pub failures: u32,
}

/// A pod to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// The node that it counts on.
    pub node: Option<String>,
    /// Its name.
    pub name: String,
    /// Its uid: a pod of the same name that came later is left alone.
    pub uid: String,
}

/// What is found on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFinding {
    /// The node.
    pub node: String,
    /// Pods wanted.
    pub wanted: u32,
    /// Live pods.
    pub current: u32,
    /// Ready ones.
    pub ready: u32,
    /// Live ones of the present template.
    pub updated: u32,
    /// Why they are not as wanted, and in words.
    pub trouble: Option<Obstacle>,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Pods to create. Each node gets its first one before another gets its second.
    pub creates: Vec<Create>,
    /// Pods to delete.
    pub deletes: Vec<Delete>,
    /// What is found on each node that was asked about, if pods are wanted or are there, by name.
    pub nodes: Vec<NodeFinding>,
    /// Nodes to be asked about again although nothing changes on them: the budget left something of
    /// theirs, or a back-off ends.
    pub open: BTreeSet<String>,
    /// When to decide again although nothing changes: a pod's back-off ends.
    pub again_in_ms: Option<u64>,
    /// More was to be done than the budget allows: decide again at once.
    pub has_more: bool,
}

/// Decides about all nodes on which pods are wanted or are.
#[must_use]
pub fn decide(input: &Input<'_>, budget: Budget) -> Decision {
    let wanted = input.wanted.keys().map(String::as_str);
    let names = wanted.chain(input.pods.keys().copied()).collect();
    decide_on(input, &names, budget)
}

/// Decides about these nodes only: pods of others need not be in the input. A node's part does not
/// depend on the other nodes, but for the budget.
#[must_use]
pub fn decide_on(input: &Input<'_>, names: &BTreeSet<&str>, budget: Budget) -> Decision {
    let mut all = Decision::default();
    let mut creates = Vec::new();
    let mut deletes = Vec::new();
    for name in names {
        let one = node::decide(name, input);
        deletes.extend(one.deletes.into_iter().map(|delete| (*name, delete)));
        if let Some(in_ms) = one.again_in_ms {
            all.again_in_ms = Some(all.again_in_ms.map_or(in_ms, |at: u64| at.min(in_ms)));
            all.open.insert((*name).to_owned());
        }
        // A node that is not wanted and has nothing any more is no news.
        if one.finding.wanted > 0 || one.finding.current > 0 || input.wanted.contains_key(*name) {
            all.nodes.push(one.finding);
        }
        creates.extend(one.creates.into_iter().enumerate());
    }
    // Stable: by turn, then by node.
    creates.sort_by_key(|(turn, _)| *turn);
    let creates_left = creates.split_off(budget.creates.min(creates.len()));
    let deletes_left = deletes.split_off(budget.deletes.min(deletes.len()));
    all.has_more = !creates_left.is_empty() || !deletes_left.is_empty();
    let nodes = creates_left.into_iter().map(|(_, create)| create.node);
    let others = deletes_left.into_iter().map(|(node, _)| node.to_owned());
    all.open.extend(nodes.chain(others));
    all.creates = creates.into_iter().map(|(_, create)| create).collect();
    all.deletes = deletes.into_iter().map(|(_, delete)| delete).collect();
    all
}

/// How long after its end a pod is replaced that is the `failures`th to fail in a row.
#[must_use]
pub fn backoff_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(20);
    (BACKOFF_MIN_MS << doublings).min(BACKOFF_MAX_MS)
}
