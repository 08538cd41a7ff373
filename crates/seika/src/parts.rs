//! What was found of a Seika, node by node: each pass renews the nodes on which something has changed,
//! and the others stay as they were found. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::decide::{Decision, NodeFinding};

/// What was found on a Seika's nodes.
#[derive(Debug, Default)]
pub struct Parts {
    /// The generation that all of it is about; `None` if the whole is to be looked at.
    generation: Option<i64>,
    nodes: BTreeMap<String, NodeFinding>,
    open: BTreeSet<String>,
    /// Nodes that were renewed, since the start.
    renewed: u64,
}

impl Parts {
    /// Whether the whole is to be looked at, for a spec of this generation.
    #[must_use]
    pub fn needs_whole(&self, generation: Option<i64>) -> bool {
        self.generation.is_none() || self.generation != generation
    }

    /// Nodes that are to be looked at although nothing changes on them.
    #[must_use]
    pub fn open(&self) -> &BTreeSet<String> {
        &self.open
    }

    /// Takes a decision about `names`, which are all nodes if `is_whole`.
    pub fn take(
        &mut self,
        generation: Option<i64>,
        is_whole: bool,
        names: &BTreeSet<&str>,
        decision: &Decision,
    ) {
        self.generation = generation;
        if is_whole {
            self.nodes.clear();
            self.open.clear();
        }
        for name in names {
            self.nodes.remove(*name);
            self.open.remove(*name);
        }
        let found = decision.nodes.iter();
        self.nodes
            .extend(found.map(|one| (one.node.clone(), one.clone())));
        self.open.extend(decision.open.iter().cloned());
        self.renewed += names.len() as u64;
    }

    /// A node is to be looked at again.
    pub fn reopen(&mut self, node: &str) {
        self.open.insert(node.to_owned());
    }

    /// Something was not carried out: the whole is to be looked at.
    pub fn doubt(&mut self) {
        self.generation = None;
    }

    /// What was found on each node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeFinding> {
        self.nodes.values()
    }

    /// How many nodes have something to say.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many nodes were renewed since the start.
    #[must_use]
    pub fn renewed(&self) -> u64 {
        self.renewed
    }
}
