//! Numbers for nodes.

use std::collections::HashMap;

use crate::Node;

/// Nodes by number: names keep their number as long as somebody has a use for it.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    by_name: HashMap<String, Node>,
    names: Vec<Option<String>>,
}

impl Numbers {
    /// The number of a name; one that has none gets one that is free.
    pub fn give(&mut self, name: &str) -> Node {
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

    /// The number of a name, if it has one.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<Node> {
        self.by_name.get(name).copied()
    }

    /// The name of a number; `?` for one that nobody has.
    #[must_use]
    pub fn name(&self, node: Node) -> &str {
        let name = self.names.get(node.index()).and_then(Option::as_deref);
        name.unwrap_or("?")
    }

    /// Numbers up to the highest that was given.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether none was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Takes back the numbers of all that are not used, and says which.
    pub fn keep(&mut self, is_used: impl Fn(&str) -> bool) -> Vec<Node> {
        let gone: Vec<String> = self
            .by_name
            .keys()
            .filter(|name| !is_used(name))
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
