//! What nodes have room for.

use crate::{Labels, Node, Taint};

/// What a pod asks for, or a node has to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Pods.
    pub pods: u64,
}

impl Resources {
    /// How often `each` fits into this; a pod takes at least one of `pods`.
    #[must_use]
    pub fn times(&self, each: &Resources) -> u64 {
        let times = |have: u64, want: u64| have.checked_div(want).unwrap_or(u64::MAX);
        times(self.cpu_millis, each.cpu_millis)
            .min(times(self.memory_bytes, each.memory_bytes))
            .min(times(self.pods, each.pods.max(1)))
    }

    /// What is left after `other` was taken; never below nothing.
    #[must_use]
    pub fn minus(&self, other: &Resources) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            pods: self.pods.saturating_sub(other.pods),
        }
    }
}

/// A node as placement sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum NodeState {
    /// No such node, or it is not ready: its pods serve nobody, and are wanted elsewhere.
    #[default]
    Lost,
    /// It keeps its pods, and gets no new ones.
    Cordoned,
    /// It takes pods that fit to its labels and taints.
    Ready {
        /// Labels.
        labels: Labels,
        /// Taints.
        taints: Vec<Taint>,
    },
}

/// What is left on each node in one round. Services that are decided one after the other take from
/// the same room, so that all together never pass what a node has.
#[derive(Clone, Debug, Default)]
pub struct Room {
    free: Vec<Resources>,
}

impl Room {
    /// Room by node: allocatable, less the requests of all pods that are there or wanted there.
    #[must_use]
    pub fn new(free: Vec<Resources>) -> Self {
        Self { free }
    }

    /// What is left on a node.
    #[must_use]
    pub fn left(&self, node: Node) -> Resources {
        self.free.get(node.index()).copied().unwrap_or_default()
    }

    /// Whether a pod fits.
    #[must_use]
    pub fn fits(&self, node: Node, request: &Resources) -> bool {
        let left = self.left(node);
        left.cpu_millis >= request.cpu_millis
            && left.memory_bytes >= request.memory_bytes
            && left.pods >= request.pods.max(1)
    }

    /// Takes the room of a pod; says whether there was room.
    pub fn take(&mut self, node: Node, request: &Resources) -> bool {
        if !self.fits(node, request) {
            return false;
        }
        let taken = Resources {
            pods: request.pods.max(1),
            ..*request
        };
        if let Some(free) = self.free.get_mut(node.index()) {
            *free = free.minus(&taken);
        }
        true
    }
}
