//! What the watches have shown, and what this process has done that they have not shown yet.
//!
//! A watch is behind. A pod that was created and is not shown would be created again, and of one
//! that was deleted and is still shown another would be thought to be missing less. So both count
//! until they are seen: a created pod is among the pods, a deleted one is one that ends. A ReplicaSet's
//! controller counts them as expectations; here they are known one by one.
//!
//! Pure but for the time, which the caller gives. Memory: some 500 bytes a pod of a Seika or of
//! nobody; pods of other controllers are not kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::facts::{Node, Pod};

/// After so long what was done counts no more although nothing was seen of it, as with a ReplicaSet.
pub const UNSEEN_MAX_MS: u64 = 300_000;

/// So many pods that are gone are remembered: the answer to a creation may come after all of the
/// pod's life was shown.
const GONE_MAX: usize = 10_000;

/// A pod of this process's making or ending that is not seen yet.
#[derive(Debug)]
struct Unseen {
    done_ms: u64,
    namespace: String,
    pod: Arc<Pod>,
}

/// A deletion of this process's that is not seen yet.
#[derive(Clone, Copy, Debug)]
struct Deletion {
    done_ms: u64,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The call is under way, or it succeeded.
    Good,
    /// It failed in a way that leaves open whether the pod was deleted: it is to be called again.
    Open,
}

/// A pod that is known to have ended, since when.
type Ends = HashMap<String, u64>;

/// The pods of one namespace, by name.
type ByName = BTreeMap<String, Arc<Pod>>;

/// Whom a change of a pod concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    /// The Seikas that own or owned it, by uid.
    pub owners: BTreeSet<String>,
    /// A pod without a controller: Seikas of this namespace may adopt it.
    pub orphan: Option<Arc<Pod>>,
}

/// Pods and nodes as they were last shown.
#[derive(Debug, Default)]
pub struct Index {
    pods: BTreeMap<String, ByName>,
    /// Namespace and name of each Seika's pods, by the Seika's uid.
    owned: HashMap<String, BTreeSet<(String, String)>>,
    nodes: BTreeMap<String, Node>,
    ends: Ends,
    created: HashMap<String, Unseen>,
    deleted: HashMap<String, Deletion>,
    gone: HashSet<String>,
    gone_in_order: VecDeque<String>,
    /// A list that is under way: when it began, and what it has shown so far.
    listing: Option<(u64, BTreeMap<String, ByName>)>,
    node_listing: Option<BTreeMap<String, Node>>,
    pods_known: bool,
    nodes_known: bool,
}

impl Index {
    /// Pods and nodes were listed at least once.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.pods_known && self.nodes_known
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    /// A list of the pods begins.
    pub fn begin_pods(&mut self, now_ms: u64) {
        self.listing = Some((now_ms, BTreeMap::new()));
    }

    /// The list that is under way shows a pod.
    pub fn list_pod(&mut self, namespace: String, pod: Pod) {
        if let Some((_, listed)) = &mut self.listing {
            let of_namespace = listed.entry(namespace).or_default();
            of_namespace.insert(pod.name.clone(), Arc::new(pod));
        }
    }

    /// The list is complete: what it did not show is gone, and what was done before it began has
    /// been seen or is undone.
    pub fn end_pods(&mut self, now_ms: u64) {
        let Some((began_ms, listed)) = self.listing.take() else {
            return;
        };
        self.pods_known = true;
        self.pods = listed;
        self.owned.clear();
        let mut ends = Ends::new();
        for (namespace, pods) in &self.pods {
            for pod in pods.values() {
                if let Some(owner) = &pod.owner {
                    let owned = self.owned.entry(owner.uid.clone()).or_default();
                    owned.insert((namespace.clone(), pod.name.clone()));
                }
                if pod.has_ended() {
                    let since = self.ends.get(&pod.uid).copied().unwrap_or(now_ms);
                    ends.insert(pod.uid.clone(), since);
                }
                self.created.remove(&pod.uid);
            }
        }
        self.ends = ends;
        self.created.retain(|_, unseen| unseen.done_ms >= began_ms);
        self.deleted.retain(|_, d| d.done_ms >= began_ms);
    }

    /// A pod is shown as it is now.
    pub fn apply_pod(&mut self, namespace: &str, pod: Pod, now_ms: u64) -> Concerned {
        self.created.remove(&pod.uid);
        if pod.is_ending {
            self.deleted.remove(&pod.uid);
        }
        if pod.has_ended() {
            self.ends.entry(pod.uid.clone()).or_insert(now_ms);
        }
        let pods = self.pods.entry(namespace.to_owned()).or_default();
        let pod = Arc::new(pod);
        let before = pods.insert(pod.name.clone(), Arc::clone(&pod));
        if before.as_ref() == Some(&pod) {
            return Concerned::default();
        }
        let mut concerned = Concerned::default();
        if let Some(before) = before {
            self.disown(namespace, &before, &mut concerned);
            if before.uid != pod.uid {
                self.forget(&before.uid);
            }
        }
        match &pod.owner {
            Some(owner) => {
                let owned = self.owned.entry(owner.uid.clone()).or_default();
                owned.insert((namespace.to_owned(), pod.name.clone()));
                concerned.owners.insert(owner.uid.clone());
            }
            None => concerned.orphan = Some(pod),
        }
        concerned
    }

    /// A pod is shown to be gone, or to be another controller's now.
    pub fn remove_pod(&mut self, namespace: &str, name: &str, uid: &str) -> Concerned {
        self.forget(uid);
        if self.gone.insert(uid.to_owned()) {
            self.gone_in_order.push_back(uid.to_owned());
        }
        if self.gone_in_order.len() > GONE_MAX
            && let Some(oldest) = self.gone_in_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
        let mut concerned = Concerned::default();
        let Some(pods) = self.pods.get_mut(namespace) else {
            return concerned;
        };
        // A pod of the same name may have come since.
        if pods.get(name).is_some_and(|pod| pod.uid == uid)
            && let Some(pod) = pods.remove(name)
        {
            if pods.is_empty() {
                self.pods.remove(namespace);
            }
            self.disown(namespace, &pod, &mut concerned);
        }
        concerned
    }

    fn forget(&mut self, uid: &str) {
        self.created.remove(uid);
        self.deleted.remove(uid);
        self.ends.remove(uid);
    }

    fn disown(&mut self, namespace: &str, pod: &Pod, concerned: &mut Concerned) {
        let Some(owner) = &pod.owner else { return };
        concerned.owners.insert(owner.uid.clone());
        if let Some(owned) = self.owned.get_mut(&owner.uid) {
            owned.remove(&(namespace.to_owned(), pod.name.clone()));
            if owned.is_empty() {
                self.owned.remove(&owner.uid);
            }
        }
    }

    /// This process has created `pod`, and it is not shown yet.
    pub fn created(&mut self, namespace: &str, pod: Pod, now_ms: u64) {
        let shown = self
            .pods
            .get(namespace)
            .and_then(|pods| pods.get(&pod.name));
        if shown.is_some_and(|shown| shown.uid == pod.uid) || self.gone.contains(&pod.uid) {
            return;
        }
        let unseen = Unseen {
            done_ms: now_ms,
            namespace: namespace.to_owned(),
            pod: Arc::new(pod),
        };
        self.created.insert(unseen.pod.uid.clone(), unseen);
    }

    /// This process deletes a pod, and that is not shown yet.
    pub fn deleted(&mut self, uid: &str, now_ms: u64) {
        let deletion = Deletion {
            done_ms: now_ms,
            answer: Answer::Good,
        };
        self.deleted.insert(uid.to_owned(), deletion);
    }

    /// Whether a pod was deleted is not known: the call had no answer. Until it is called again the
    /// pod counts as one that ends, so that no other is deleted in its stead.
    pub fn deletion_is_open(&mut self, uid: &str) {
        if let Some(deletion) = self.deleted.get_mut(uid) {
            deletion.answer = Answer::Open;
        }
    }

    /// Whether a pod's deletion is to be called again.
    #[must_use]
    pub fn is_deletion_open(&self, uid: &str) -> bool {
        let deletion = self.deleted.get(uid);
        deletion.is_some_and(|deletion| deletion.answer == Answer::Open)
    }

    /// The apiserver has refused to delete a pod.
    pub fn not_deleted(&mut self, uid: &str) {
        self.deleted.remove(uid);
    }

    /// The pods of the Seika `uid`, as this process knows them.
    pub fn pods_of(&mut self, uid: &str, namespace: &str, now_ms: u64) -> Vec<Arc<Pod>> {
        self.created
            .retain(|_, u| now_ms.saturating_sub(u.done_ms) < UNSEEN_MAX_MS);
        self.deleted
            .retain(|_, d| now_ms.saturating_sub(d.done_ms) < UNSEEN_MAX_MS);
        let shown = self.pods.get(namespace);
        let owned = self.owned.get(uid).into_iter().flatten();
        let owned = owned
            .filter(|(of, _)| of == namespace)
            .filter_map(|(_, name)| shown?.get(name));
        let unseen = self.created.values().filter(|u| {
            u.namespace == namespace && u.pod.owner.as_ref().is_some_and(|owner| owner.uid == uid)
        });
        let as_done = |pod: &Arc<Pod>| match self.deleted.contains_key(&pod.uid) {
            true => Arc::new(Pod {
                is_ending: true,
                ..Pod::clone(pod)
            }),
            false => Arc::clone(pod),
        };
        owned
            .chain(unseen.map(|unseen| &unseen.pod))
            .map(as_done)
            .collect()
    }

    /// Pods of a namespace that nobody controls.
    pub fn orphans(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let pods = self.pods.get(namespace).into_iter().flatten();
        pods.map(|(_, pod)| pod).filter(|pod| pod.owner.is_none())
    }

    /// For how long it is known that a pod has ended, in ms.
    #[must_use]
    pub fn ended_for_ms(&self, uid: &str, now_ms: u64) -> u64 {
        let since = self.ends.get(uid).copied();
        since.map_or(0, |since| now_ms.saturating_sub(since))
    }

    /// A list of the nodes begins.
    pub fn begin_nodes(&mut self) {
        self.node_listing = Some(BTreeMap::new());
    }

    /// The list that is under way shows a node.
    pub fn list_node(&mut self, name: String, node: Node) {
        if let Some(listed) = &mut self.node_listing {
            listed.insert(name, node);
        }
    }

    /// The list is complete. The names of nodes that came, went or changed.
    pub fn end_nodes(&mut self) -> BTreeSet<String> {
        let Some(listed) = self.node_listing.take() else {
            return BTreeSet::new();
        };
        self.nodes_known = true;
        let before = std::mem::replace(&mut self.nodes, listed);
        let names = before.keys().chain(self.nodes.keys());
        names
            .filter(|name| before.get(*name) != self.nodes.get(*name))
            .cloned()
            .collect()
    }

    /// A node is shown as it is now, or gone; whether anything changed.
    pub fn set_node(&mut self, name: &str, node: Option<Node>) -> bool {
        let before = match &node {
            Some(node) => self.nodes.insert(name.to_owned(), node.clone()),
            None => self.nodes.remove(name),
        };
        before != node
    }

    /// Pods that are kept, and what is done and not seen: for the metrics.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        let pods = self.pods.values().map(BTreeMap::len).sum();
        (pods, self.created.len() + self.deleted.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Owner, Phase};

    fn pod(name: &str, uid: &str) -> Pod {
        Pod {
            name: name.into(),
            uid: uid.into(),
            labels: BTreeMap::new(),
            owner: Some(Owner {
                uid: "s".into(),
                is_seika: true,
            }),
            node: Some("n".into()),
            phase: Phase::Starting,
            is_ending: false,
            failures: 0,
        }
    }

    fn listed(pods: Vec<Pod>) -> Index {
        let mut index = Index::default();
        list(&mut index, pods, 0);
        index
    }

    fn list(index: &mut Index, pods: Vec<Pod>, at_ms: u64) {
        index.begin_pods(at_ms);
        for pod in pods {
            index.list_pod("ns".into(), pod);
        }
        index.end_pods(at_ms);
    }

    fn view(index: &mut Index, now_ms: u64) -> Vec<(String, bool)> {
        let pods = index.pods_of("s", "ns", now_ms);
        let mut seen: Vec<_> = pods.iter().map(|p| (p.uid.clone(), p.is_ending)).collect();
        seen.sort();
        seen
    }

    #[test]
    fn a_created_pod_counts_until_it_is_seen_and_once() {
        let mut index = listed(vec![]);
        index.created("ns", pod("a", "1"), 5);
        assert_eq!(view(&mut index, 6), [("1".into(), false)]);
        index.apply_pod("ns", pod("a", "1"), 7);
        assert_eq!(view(&mut index, 8), [("1".into(), false)]);
        index.remove_pod("ns", "a", "1");
        assert_eq!(view(&mut index, 9), []);
    }

    #[test]
    fn a_pod_that_is_seen_before_its_creation_is_answered_counts_once() {
        let mut index = listed(vec![]);
        index.apply_pod("ns", pod("a", "1"), 1);
        index.created("ns", pod("a", "1"), 2);
        assert_eq!(view(&mut index, 3), [("1".into(), false)]);
    }

    #[test]
    fn a_pod_whose_whole_life_was_shown_before_its_creation_is_answered_does_not_count() {
        let mut index = listed(vec![]);
        index.apply_pod("ns", pod("a", "1"), 1);
        index.remove_pod("ns", "a", "1");
        index.created("ns", pod("a", "1"), 2);
        assert_eq!(view(&mut index, 3), []);
    }

    #[test]
    fn a_deleted_pod_ends_until_that_is_seen() {
        let mut index = listed(vec![pod("a", "1")]);
        index.deleted("1", 5);
        assert_eq!(view(&mut index, 6), [("1".into(), true)]);
        // An older state of it is shown meanwhile.
        let ready = Pod {
            phase: Phase::Ready,
            ..pod("a", "1")
        };
        index.apply_pod("ns", ready, 7);
        assert_eq!(view(&mut index, 8), [("1".into(), true)]);
        index.remove_pod("ns", "a", "1");
        assert_eq!(view(&mut index, 9), []);
    }

    #[test]
    fn a_deletion_without_an_answer_is_called_again_and_stands_for_itself() {
        let mut index = listed(vec![pod("a", "1")]);
        index.deleted("1", 5);
        assert!(!index.is_deletion_open("1"));
        index.deletion_is_open("1");
        assert!(index.is_deletion_open("1"));
        assert_eq!(view(&mut index, 6), [("1".into(), true)]);
        index.not_deleted("1");
        assert_eq!(view(&mut index, 6), [("1".into(), false)]);
    }

    #[test]
    fn a_list_that_began_later_settles_what_was_done_before() {
        let mut index = listed(vec![pod("old", "0")]);
        index.created("ns", pod("a", "1"), 5);
        index.deleted("0", 5);
        // It began before: it may not have them yet.
        list(&mut index, vec![pod("old", "0")], 4);
        assert_eq!(
            view(&mut index, 6),
            [("0".into(), true), ("1".into(), false)]
        );
        // The created one was deleted in a gap of the watch; the deletion was undone by nobody, but
        // a list of after it has the pod.
        list(&mut index, vec![pod("old", "0")], 6);
        assert_eq!(view(&mut index, 7), [("0".into(), false)]);
    }

    #[test]
    fn what_nothing_is_seen_of_counts_for_five_minutes() {
        let mut index = listed(vec![]);
        index.created("ns", pod("a", "1"), 5);
        assert_eq!(view(&mut index, 5 + UNSEEN_MAX_MS - 1).len(), 1);
        assert_eq!(view(&mut index, 5 + UNSEEN_MAX_MS).len(), 0);
    }

    #[test]
    fn a_successor_of_the_same_name_is_not_removed_with_its_predecessor() {
        let mut index = listed(vec![pod("a", "1")]);
        index.apply_pod("ns", pod("a", "2"), 1);
        index.remove_pod("ns", "a", "1");
        assert_eq!(view(&mut index, 2), [("2".into(), false)]);
    }

    #[test]
    fn a_change_concerns_who_owned_it_and_who_owns_it() {
        let mut index = listed(vec![pod("a", "1")]);
        let same = index.apply_pod("ns", pod("a", "1"), 1);
        assert_eq!(same, Concerned::default());
        let mut orphan = pod("a", "1");
        orphan.owner = None;
        let concerned = index.apply_pod("ns", orphan, 2);
        assert!(concerned.owners.contains("s") && concerned.orphan.is_some());
        assert_eq!(view(&mut index, 3), []);
        assert_eq!(index.orphans("ns").count(), 1);
    }

    #[test]
    fn the_time_of_an_end_is_when_it_was_first_known() {
        let ended = Pod {
            phase: Phase::Ended { ran_long: false },
            ..pod("a", "1")
        };
        let mut index = listed(vec![]);
        index.apply_pod("ns", ended.clone(), 10);
        list(&mut index, vec![ended], 50);
        assert_eq!(index.ended_for_ms("1", 60), 50);
        assert_eq!(index.ended_for_ms("unknown", 60), 0);
    }

    #[test]
    fn nodes_that_differ_after_a_list_are_named() {
        let mut index = Index::default();
        index.begin_nodes();
        index.list_node("a".into(), Node::default());
        index.list_node("b".into(), Node::default());
        assert_eq!(index.end_nodes().len(), 2);
        assert!(!index.set_node("a", Some(Node::default())));
        index.begin_nodes();
        index.list_node("a".into(), Node::default());
        assert_eq!(index.end_nodes(), ["b".to_owned()].into());
        assert!(index.set_node("a", None));
    }
}
