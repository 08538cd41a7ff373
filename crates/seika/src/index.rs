//! What the watches have shown, and what this process has done that they have not shown yet.
//!
//! A watch is behind. A pod that was created and is not shown would be created again, and of one
//! that was deleted and is still shown another would be thought to be missing less. So both count
//! until they are seen: a created pod is among the pods, a deleted one is one that ends. A ReplicaSet's
//! controller counts them as expectations; here they are known one by one.
//!
//! It also knows on which nodes of which Seika something has changed since it was last looked at, so
//! that a look costs what has changed, however many pods there are.
//!
//! Pure but for the time, which the caller gives. Memory: some 600 bytes a pod of a Seika or of
//! nobody; pods of other controllers are not kept.

mod nodes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::facts::Pod;

pub use nodes::Nodes;

/// After so long what was done counts no more although nothing was seen of it, as with a ReplicaSet.
pub const UNSEEN_MAX_MS: u64 = 300_000;

/// So often it is looked what counts no more.
const EXPIRE_MS: u64 = 1_000;

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
#[derive(Clone, Debug)]
struct Deletion {
    done_ms: u64,
    owner: String,
    at: At,
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

/// Where a pod is: its node, or none if it may still go to any.
type At = Option<String>;

/// A Seika's pods at one place.
#[derive(Debug, Default)]
struct Place {
    /// Namespace and name of those that are shown.
    shown: BTreeSet<(String, String)>,
    /// Uids of those that were created and are not shown.
    unseen: BTreeSet<String>,
}

/// Which places of a Seika are to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Changed {
    All,
    At(BTreeSet<At>),
}

/// The pods of a Seika at the places that were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// All of its pods are here, and no others count.
    pub is_whole: bool,
    /// Pods by node, as this process knows them. A place without pods is here too.
    pub pods: BTreeMap<At, Vec<Arc<Pod>>>,
}

/// Whom a change of a pod concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    /// The Seikas that own or owned it, by uid.
    pub owners: BTreeSet<String>,
    /// A pod without a controller: Seikas of this namespace may adopt it.
    pub orphan: Option<Arc<Pod>>,
}

/// Pods as they were last shown.
#[derive(Debug, Default)]
pub struct Index {
    pods: BTreeMap<String, ByName>,
    /// Names of the pods that nobody controls, by namespace.
    orphans: BTreeMap<String, BTreeSet<String>>,
    /// Each Seika's pods, by its uid.
    owned: HashMap<String, BTreeMap<At, Place>>,
    /// What is to be looked at, by the Seika's uid.
    changed: HashMap<String, Changed>,
    expired_ms: u64,
    ends: Ends,
    created: HashMap<String, Unseen>,
    deleted: HashMap<String, Deletion>,
    gone: HashSet<String>,
    gone_in_order: VecDeque<String>,
    /// A list that is under way: when it began, and what it has shown so far.
    listing: Option<(u64, BTreeMap<String, ByName>)>,
    is_known: bool,
}

impl Index {
    /// Pods were listed at least once.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
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
        self.is_known = true;
        self.pods = listed;
        self.orphans.clear();
        let before = std::mem::take(&mut self.owned);
        for uid in before.into_keys() {
            self.changed.insert(uid, Changed::All);
        }
        let mut ends = Ends::new();
        let shown: Vec<(String, Arc<Pod>)> = self
            .pods
            .iter()
            .flat_map(|(namespace, pods)| pods.values().map(|pod| (namespace.clone(), pod.clone())))
            .collect();
        for (namespace, pod) in shown {
            if pod.has_ended() {
                let since = self.ends.get(&pod.uid).copied().unwrap_or(now_ms);
                ends.insert(pod.uid.clone(), since);
            }
            self.created.remove(&pod.uid);
            if let Some(owner) = &pod.owner {
                self.changed.insert(owner.uid.clone(), Changed::All);
            }
            self.place(&namespace, &pod);
        }
        self.ends = ends;
        self.created.retain(|_, unseen| unseen.done_ms >= began_ms);
        self.deleted.retain(|_, d| d.done_ms >= began_ms);
        let unseen: Vec<Arc<Pod>> = self.created.values().map(|u| u.pod.clone()).collect();
        for pod in unseen {
            self.place_unseen(&pod);
        }
    }

    /// What is kept of a shown pod beside itself.
    fn place(&mut self, namespace: &str, pod: &Pod) {
        match &pod.owner {
            Some(owner) => {
                let at = self.owned.entry(owner.uid.clone()).or_default();
                let place = at.entry(pod.node.clone()).or_default();
                place.shown.insert((namespace.to_owned(), pod.name.clone()));
            }
            None => {
                let names = self.orphans.entry(namespace.to_owned()).or_default();
                names.insert(pod.name.clone());
            }
        }
    }

    fn place_unseen(&mut self, pod: &Pod) {
        if let Some(owner) = &pod.owner {
            let at = self.owned.entry(owner.uid.clone()).or_default();
            let place = at.entry(pod.node.clone()).or_default();
            place.unseen.insert(pod.uid.clone());
        }
    }

    /// Takes a pod away from where it is kept beside itself.
    fn displace(&mut self, namespace: &str, pod: &Pod) {
        let Some(owner) = &pod.owner else {
            if let Some(names) = self.orphans.get_mut(namespace) {
                names.remove(&pod.name);
                if names.is_empty() {
                    self.orphans.remove(namespace);
                }
            }
            return;
        };
        let key = (namespace.to_owned(), pod.name.clone());
        self.leave(&owner.uid, &pod.node, |place| {
            place.shown.remove(&key);
        });
    }

    fn leave(&mut self, owner: &str, at: &At, change: impl FnOnce(&mut Place)) {
        let Some(places) = self.owned.get_mut(owner) else {
            return;
        };
        if let Some(place) = places.get_mut(at) {
            change(place);
            if place.shown.is_empty() && place.unseen.is_empty() {
                places.remove(at);
            }
        }
        if places.is_empty() {
            self.owned.remove(owner);
        }
    }

    /// Something has changed where a pod is.
    fn touch(&mut self, pod: &Pod) {
        if let Some(owner) = &pod.owner {
            self.touch_at(&owner.uid, pod.node.clone());
        }
    }

    fn touch_at(&mut self, owner: &str, at: At) {
        let nothing = || Changed::At(BTreeSet::new());
        let changed = self.changed.entry(owner.to_owned()).or_insert_with(nothing);
        if let Changed::At(places) = changed {
            places.insert(at);
        }
    }

    /// Something else than a pod has changed on a node of the Seika `uid`: it is looked at next time.
    pub fn node_changed(&mut self, uid: &str, node: &str) {
        self.touch_at(uid, Some(node.to_owned()));
    }

    /// The Seika `uid` is not known, or no more: nobody will look at its pods.
    pub fn forget_changes(&mut self, uid: &str) {
        self.changed.remove(uid);
    }

    /// A pod is shown as it is now.
    pub fn apply_pod(&mut self, namespace: &str, pod: Pod, now_ms: u64) -> Concerned {
        self.seen(&pod.uid);
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
        self.place(namespace, &pod);
        self.touch(&pod);
        match &pod.owner {
            Some(owner) => {
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
        self.seen(uid);
        self.deleted.remove(uid);
        self.ends.remove(uid);
    }

    /// A pod that was created is shown, or counts no more.
    fn seen(&mut self, uid: &str) {
        let Some(unseen) = self.created.remove(uid) else {
            return;
        };
        self.touch(&unseen.pod);
        if let Some(owner) = &unseen.pod.owner {
            self.leave(&owner.uid, &unseen.pod.node, |place| {
                place.unseen.remove(uid);
            });
        }
    }

    fn disown(&mut self, namespace: &str, pod: &Pod, concerned: &mut Concerned) {
        self.displace(namespace, pod);
        self.touch(pod);
        if let Some(owner) = &pod.owner {
            concerned.owners.insert(owner.uid.clone());
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
        self.place_unseen(&unseen.pod);
        self.touch(&unseen.pod);
        self.created.insert(unseen.pod.uid.clone(), unseen);
    }

    /// This process deletes a pod of the Seika `owner` on `node`, and that is not shown yet.
    pub fn deleted(&mut self, owner: &str, node: Option<&str>, uid: &str, now_ms: u64) {
        let deletion = Deletion {
            done_ms: now_ms,
            owner: owner.to_owned(),
            at: node.map(str::to_owned),
            answer: Answer::Good,
        };
        self.deleted.insert(uid.to_owned(), deletion);
        self.touch_at(owner, node.map(str::to_owned));
    }

    /// Whether a pod was deleted is not known: the call had no answer. Until it is called again the
    /// pod counts as one that ends, so that no other is deleted in its stead.
    pub fn deletion_is_open(&mut self, uid: &str) {
        if let Some(deletion) = self.deleted.get_mut(uid) {
            deletion.answer = Answer::Open;
            let (owner, at) = (deletion.owner.clone(), deletion.at.clone());
            self.touch_at(&owner, at);
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
        if let Some(deletion) = self.deleted.remove(uid) {
            self.touch_at(&deletion.owner, deletion.at);
        }
    }

    /// What was done so long ago that it counts no more.
    fn expire(&mut self, now_ms: u64) {
        if now_ms < self.expired_ms + EXPIRE_MS {
            return;
        }
        self.expired_ms = now_ms;
        let is_over = |done_ms: u64| now_ms.saturating_sub(done_ms) >= UNSEEN_MAX_MS;
        let created = self.created.iter().filter(|(_, u)| is_over(u.done_ms));
        let created: Vec<String> = created.map(|(uid, _)| uid.clone()).collect();
        for uid in created {
            self.seen(&uid);
        }
        let deleted = self.deleted.iter().filter(|(_, d)| is_over(d.done_ms));
        let deleted: Vec<String> = deleted.map(|(uid, _)| uid.clone()).collect();
        for uid in deleted {
            self.not_deleted(&uid);
        }
    }

    /// The pods of the Seika `uid`: on all nodes, if `whole` or if a list came; else where something
    /// has changed since the last look, and on the nodes `also`. What is returned has been looked at.
    pub fn look<'a>(
        &mut self,
        uid: &str,
        namespace: &str,
        whole: bool,
        also: impl IntoIterator<Item = &'a str>,
        now_ms: u64,
    ) -> Look {
        self.expire(now_ms);
        let changed = self.changed.remove(uid);
        let places = self.owned.get(uid);
        let (is_whole, at): (bool, BTreeSet<At>) = match (whole, changed) {
            (true, _) | (_, Some(Changed::All)) => (
                true,
                places
                    .into_iter()
                    .flat_map(BTreeMap::keys)
                    .cloned()
                    .collect(),
            ),
            (false, Some(Changed::At(at))) => (false, at),
            (false, None) => (false, BTreeSet::new()),
        };
        let also = also.into_iter().map(|node| Some(node.to_owned()));
        let at = at.into_iter().chain(also);
        let pods = at.map(|at| {
            let pods = places.and_then(|places| places.get(&at));
            let pods = pods.map(|place| self.pods_at(place, namespace));
            (at, pods.unwrap_or_default())
        });
        let pods = pods.collect();
        Look { is_whole, pods }
    }

    fn pods_at(&self, place: &Place, namespace: &str) -> Vec<Arc<Pod>> {
        let shown = self.pods.get(namespace);
        let owned = place.shown.iter().filter(|(of, _)| of == namespace);
        let owned = owned.filter_map(|(_, name)| shown?.get(name));
        let unseen = place.unseen.iter().filter_map(|uid| self.created.get(uid));
        let unseen = unseen.filter(|u| u.namespace == namespace);
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
        let names = self.orphans.get(namespace).into_iter().flatten();
        let pods = self.pods.get(namespace);
        names.filter_map(move |name| pods?.get(name))
    }

    /// For how long it is known that a pod has ended, in ms.
    #[must_use]
    pub fn ended_for_ms(&self, uid: &str, now_ms: u64) -> u64 {
        let since = self.ends.get(uid).copied();
        since.map_or(0, |since| now_ms.saturating_sub(since))
    }

    /// Pods that are kept, and what is done and not seen: for the metrics.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        let pods = self.pods.values().map(BTreeMap::len).sum();
        (pods, self.created.len() + self.deleted.len())
    }
}
