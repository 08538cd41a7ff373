//! Numbers for nodes.

use std::collections::{HashMap, HashSet};

use placement::Node;

/// Nodes by number: names keep their number as long as somebody has a use for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    by_name: HashMap<String, Node>,
    names: Vec<Option<String>>,
}

impl Numbers {
    pub(crate) fn give(&mut self, name: &str) -> Node {
        if let Some(node) = self.by_name.get(name) {
            return *node;
        }
        let free = self.names.iter().position(Option::is_none);
        let index = free.unwrap_or(self.names.len());
        if free.is_none() {
            self.names.push(None);
        }
        self.names[index] = Some(name.to_owned());
        let node = Node(index as u32);
        self.by_name.insert(name.to_owned(), node);
        node
    }

    pub(crate) fn of(&self, name: &str) -> Option<Node> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn name(&self, node: Node) -> &str {
        let name = self.names.get(node.index()).and_then(Option::as_deref);
        name.unwrap_or("?")
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Takes back the numbers of all others.
    pub(crate) fn keep(&mut self, names: &HashSet<&str>) -> Vec<Node> {
        let gone: Vec<String> = self
            .by_name
            .keys()
            .filter(|name| !names.contains(name.as_str()))
            .cloned()
            .collect();
        gone.iter()
            .filter_map(|name| {
                let node = self.by_name.remove(name)?;
                self.names[node.index()] = None;
                Some(node)
            })
            .collect()
    }
}
