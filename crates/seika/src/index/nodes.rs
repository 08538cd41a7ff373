//! The nodes as they were last shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Node;

/// The nodes as they were last shown.
#[derive(Debug, Default)]
pub struct Nodes {
    known: Option<BTreeMap<String, Node>>,
    listing: Option<BTreeMap<String, Node>>,
}

impl Nodes {
    /// They were listed at least once.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// A node.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.known.as_ref()?.get(name)
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.listing = Some(BTreeMap::new());
    }

    /// The list that is under way shows a node.
    pub fn list(&mut self, name: String, node: Node) {
        if let Some(listed) = &mut self.listing {
            listed.insert(name, node);
        }
    }

    /// The list is complete. The names of nodes that came, went or changed.
    pub fn end(&mut self) -> BTreeSet<String> {
        let Some(listed) = self.listing.take() else {
            return BTreeSet::new();
        };
        let before = self.known.take().unwrap_or_default();
        let names = before.keys().chain(listed.keys());
        let changed = names.filter(|name| before.get(*name) != listed.get(*name));
        let changed = changed.cloned().collect();
        self.known = Some(listed);
        changed
    }

    /// A node is shown as it is now, or gone; whether anything changed.
    pub fn set(&mut self, name: &str, node: Option<Node>) -> bool {
        let Some(known) = &mut self.known else {
            return false;
        };
        let before = match &node {
            Some(node) => known.insert(name.to_owned(), node.clone()),
            None => known.remove(name),
        };
        before != node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_differ_after_a_list_are_named() {
        let mut nodes = Nodes::default();
        nodes.begin();
        nodes.list("a".into(), Node::default());
        nodes.list("b".into(), Node::default());
        assert_eq!(nodes.end().len(), 2);
        assert!(!nodes.set("a", Some(Node::default())));
        nodes.begin();
        nodes.list("a".into(), Node::default());
        assert_eq!(nodes.end(), ["b".to_owned()].into());
        assert!(nodes.set("a", None) && nodes.is_known() && nodes.get("a").is_none());
    }
}
