//! What the decision knows of pods and nodes: no more than it needs, so that a cluster's pods fit
//! in little memory.

use std::collections::BTreeMap;

use placement::{Labels, Taint};

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has no node yet.
    Pending {
        /// Why the scheduler found no place, in its words; `None` while it has not looked.
        unschedulable: Option<String>,
    },
    /// It has a node and is not ready.
    Starting,
    /// It is ready.
    Ready,
    /// It has failed, or ended with success, and will not run again.
    Ended {
        /// It ran long enough before that what failed earlier counts no more.
        ran_long: bool,
    },
}

/// The controller that a pod names as its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner's uid.
    pub uid: String,
    /// It is a Seika.
    pub is_seika: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its controller.
    pub owner: Option<Owner>,
    /// The node that it runs on, or is bound to by its affinity; `None` if it may still go to any.
    pub node: Option<String>,
    /// Where it is in its life.
    pub phase: Phase,
    /// It was told to end.
    pub is_ending: bool,
    /// How often its predecessors have failed in a row, as the controller has written on it.
    pub failures: u32,
}

impl Pod {
    /// It will not run again.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// It counts as one of the node's pods.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.is_ending && !self.has_ended()
    }

    /// It serves.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_ending && self.phase == Phase::Ready
    }

    /// Why the scheduler found no place for it.
    #[must_use]
    pub fn unschedulable(&self) -> Option<&str> {
        match &self.phase {
            Phase::Pending { unschedulable } => unschedulable.as_deref(),
            _ => None,
        }
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// An operator has cordoned it.
    pub is_cordoned: bool,
    /// Its kubelet says that it is ready.
    pub is_ready: bool,
}
