//! A pass: look at one Seika, decide, and carry out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kube::Client;
use parking_lot::Mutex;

use super::WRITES_AT_A_TIME;
use super::state::{GAP_MS, Key, Known, State, now_ms};
use super::tell::{Memory as ToldBefore, Teller};
use super::write::{Cluster, Created, Failed, Ramp, Writer};
use crate::claim::{Claim, claim};
use crate::decide::{Budget, Create, Decision, Delete, Input, NodeFinding, PodView, decide_on};
use crate::facts::Pod;
use crate::obstacles::obstacles;
use crate::parts::Parts;
use crate::status::Told;
use crate::template::{HASH_LABEL, Owned, rolling};

/// Most that one pass does, as a ReplicaSet's controller.
const BUDGET: Budget = Budget {
    creates: 500,
    deletes: 500,
};
/// A failure waits so long, the first time.
const RETRY_MIN_MS: u64 = 100;
/// A failure waits so long at the most.
const RETRY_MAX_MS: u64 = 60_000;
/// Names that others' pods have are looked at again after so many passes that found none.
const MAX_AVOIDED: usize = 1000;

/// What is remembered of a Seika between passes; nothing is lost with it but back-off.
#[derive(Debug, Default)]
struct Memory {
    uid: String,
    /// Passes in a row that failed.
    failures: u32,
    /// What was found, node by node.
    parts: Parts,
    work: Work,
    told: ToldBefore,
}

/// What the calls of earlier passes have taught.
#[derive(Debug, Default)]
struct Work {
    /// What the apiserver said when it refused a pod, and of which generation.
    refused: Option<(Option<i64>, String)>,
    /// Numbers whose names other pods have.
    avoid: BTreeSet<(String, u32)>,
    /// How many calls may be under way.
    ramp: Ramp,
}

/// What a pass has done.
#[derive(Default)]
struct Done {
    created: usize,
    deleted: usize,
    failure: Option<Failed>,
    /// Nodes that are to be decided about again: a name was another's, or a pod is gone again.
    undecided: Vec<String>,
}

/// Passes over Seikas.
#[derive(Debug)]
pub(super) struct Passes {
    client: Cluster,
    state: Arc<State>,
    writer: Writer,
    teller: Teller,
    memory: Mutex<BTreeMap<Key, Memory>>,
}

/// What a pass saw.
#[derive(Default)]
struct View {
    /// It is all of the Seika: else the nodes on which something has changed.
    is_whole: bool,
    /// Nodes on which something has changed; one may have no pods.
    changed: BTreeSet<String>,
    own: Vec<(Arc<Pod>, u64)>,
    adopt: Vec<Arc<Pod>>,
    release: Vec<Arc<Pod>>,
    /// Deletions whose outcome is open.
    again: Vec<Delete>,
}

/// How a pass ended.
struct Outcome {
    failure: Option<Failed>,
    again_in_ms: Option<u64>,
    /// The budget left something to do.
    has_more: bool,
}

impl Outcome {
    fn ended(failure: Option<Failed>) -> Self {
        Self {
            failure,
            again_in_ms: None,
            has_more: false,
        }
    }
}

impl Passes {
    pub(super) fn new(client: Client, state: Arc<State>) -> Self {
        Self {
            writer: Writer::new(Arc::clone(&state)),
            teller: Teller::new(client.clone(), &state),
            client: Cluster(client),
            state,
            memory: Mutex::default(),
        }
    }

    /// Makes passes for ever.
    pub(super) async fn work(self: Arc<Self>) {
        loop {
            let key = self.state.next().await;
            let began_ms = now_ms();
            let gap_ms = self.look_at(&key).await;
            let counters = &self.state.counters;
            let took_us = now_ms().saturating_sub(began_ms) * 1000;
            counters.passes.fetch_add(1, Ordering::Relaxed);
            counters.pass_us.fetch_add(took_us, Ordering::Relaxed);
            self.state.done(&key, gap_ms);
        }
    }

    /// Makes a pass; the next one of the same Seika comes after so many ms at the earliest.
    async fn look_at(&self, key: &Key) -> u64 {
        let Some(known) = self.state.seika(key) else {
            if let Some(memory) = self.memory.lock().remove(key) {
                self.state.index.lock().forget_changes(&memory.uid);
            }
            return GAP_MS;
        };
        // The lists ask for all when they are complete.
        if !self.state.is_known() || !self.state.leads() {
            return GAP_MS;
        }
        // One pass of a key at a time: nobody else has it meanwhile.
        let mut memory = self.memory.lock().remove(key).unwrap_or_default();
        if memory.uid != known.uid {
            self.state.index.lock().forget_changes(&memory.uid);
            memory = Memory {
                uid: known.uid.clone(),
                ..Memory::default()
            };
        }
        let outcome = self.pass(key, &known, &mut memory).await;
        if let Some(in_ms) = outcome.again_in_ms {
            self.state.ask(key.clone(), in_ms);
        }
        match &outcome.failure {
            None => memory.failures = 0,
            Some(Failed::NotLeading) => memory.parts.doubt(),
            Some(failure) => {
                // What it has decided was not carried out.
                memory.parts.doubt();
                let doublings = memory.failures.min(16);
                let wait_ms = (RETRY_MIN_MS << doublings).min(RETRY_MAX_MS);
                memory.failures += 1;
                let (namespace, name) = key;
                tracing::warn!(%namespace, seika = %name, error = %failure, wait_ms, "a pass failed");
                self.state.ask(key.clone(), wait_ms);
            }
        }
        self.memory.lock().insert(key.clone(), memory);
        if outcome.has_more { 0 } else { GAP_MS }
    }

    async fn pass(&self, key: &Key, known: &Known, memory: &mut Memory) -> Outcome {
        let owner = Owned {
            name: &key.1,
            namespace: &key.0,
            uid: &known.uid,
        };
        let generation = known.seika.metadata.generation;
        let view = self.view(known, owner, &memory.parts);
        let failure = self.claim(known, owner, &view).await.err();
        // A Seika that is being deleted: the garbage collector has its pods.
        if known.is_being_deleted() || failure.is_some() {
            memory.parts.doubt();
            return Outcome::ended(failure);
        }
        let work = &mut memory.work;
        work.refused.take_if(|(of, _)| *of != generation);
        let mut decision = self.decide(known, owner, &view, work, BUDGET);
        let names = self.names(known, &view);
        memory
            .parts
            .take(generation, view.is_whole, &names, &decision);
        self.count(names.len());
        let mut again_in_ms = decision.again_in_ms;
        let mut deletes = view.again.clone();
        deletes.append(&mut decision.deletes);
        let creates = std::mem::take(&mut decision.creates);
        let writes = deletes.len() + creates.len();
        if creates.is_empty() && !decision.has_more {
            // Nothing is wanted that could be refused.
            work.refused = None;
        }
        let words = work.words();
        let carried_out = self.carry_out(known, owner, deletes, creates, work);
        let telling = async {
            // Who makes many pods does not wait for the status: what was found is told meanwhile.
            if writes <= WRITES_AT_A_TIME {
                return Ok(None);
            }
            let (parts, told) = (&memory.parts, &mut memory.told);
            self.tell(key, known, parts, words, told).await
        };
        let (done, mut telling) = tokio::join!(carried_out, telling);
        for node in &done.undecided {
            memory.parts.reopen(node);
            self.state.ask(key.clone(), 0);
        }
        let mut failure = done.failure;
        let has_more = decision.has_more && failure.is_none();
        if !has_more {
            memory.work.ramp = Ramp::default();
        }
        if writes > 0 {
            self.teller.did(known, done.created, done.deleted).await;
        }
        if !has_more && telling.is_ok() {
            if writes > 0 {
                let after = self.find(known, owner, memory);
                again_in_ms = again_in_ms.into_iter().chain(after).min();
            }
            let words = memory.work.words();
            let (parts, told) = (&memory.parts, &mut memory.told);
            telling = self.tell(key, known, parts, words, told).await;
        }
        match telling {
            Ok(later_ms) => again_in_ms = again_in_ms.into_iter().chain(later_ms).min(),
            Err(error) => failure = failure.or(Some(error)),
        }
        if has_more {
            again_in_ms = Some(0);
        }
        Outcome {
            failure,
            again_in_ms,
            has_more,
        }
    }

    /// Looks at what this pass itself has changed, without doing more. When to come again.
    fn find(&self, known: &Known, owner: Owned<'_>, memory: &mut Memory) -> Option<u64> {
        let nothing = Budget {
            creates: 0,
            deletes: 0,
        };
        let generation = known.seika.metadata.generation;
        let view = self.view(known, owner, &memory.parts);
        let decision = self.decide(known, owner, &view, &memory.work, nothing);
        let names = self.names(known, &view);
        let parts = &mut memory.parts;
        parts.take(generation, view.is_whole, &names, &decision);
        self.count(names.len());
        if !view.release.is_empty() || !view.again.is_empty() {
            // Looked at, and left for the next pass, which was asked for.
            parts.doubt();
        }
        decision.again_in_ms
    }

    fn count(&self, nodes: usize) {
        let counter = &self.state.counters.nodes_decided;
        counter.fetch_add(nodes as u64, Ordering::Relaxed);
    }

    /// Tells what was found, if it is time. In how many ms to come again, if it is not.
    async fn tell(
        &self,
        key: &Key,
        known: &Known,
        parts: &Parts,
        refused: Option<String>,
        told: &mut ToldBefore,
    ) -> Result<Option<u64>, Failed> {
        if let Some(wait_ms) = told.wait_ms() {
            return Ok(Some(wait_ms));
        }
        let nodes: Vec<NodeFinding> = parts.nodes().cloned().collect();
        let telling = Told {
            generation: known.seika.metadata.generation,
            nodes: &nodes,
            fault: known.template.fault.as_ref(),
            refused: refused.as_deref(),
        };
        self.teller
            .tell(&self.writer, key, known, &telling, told)
            .await
    }

    /// Deletes and creates.
    async fn carry_out(
        &self,
        known: &Known,
        owner: Owned<'_>,
        deletes: Vec<Delete>,
        creates: Vec<Create>,
        work: &mut Work,
    ) -> Done {
        let (deleted, failure) = work
            .ramp
            .run(deletes, |delete| async move {
                let client = &self.client.0;
                self.writer.delete(client, owner, &delete).await
            })
            .await;
        let mut done = Done {
            deleted: deleted.len(),
            failure,
            ..Done::default()
        };
        if !creates.is_empty() {
            self.create(known, owner, creates, work, &mut done).await;
        }
        done
    }

    /// What is known of a Seika's pods now.
    fn view(&self, known: &Known, owner: Owned<'_>, parts: &Parts) -> View {
        let now = now_ms();
        let claim = |pod: &Pod| {
            let deleting = known.is_being_deleted();
            claim(pod, owner.uid, &known.template, deleting)
        };
        let whole = parts.needs_whole(known.seika.metadata.generation);
        let mut index = self.state.index.lock();
        let orphans = index.orphans(owner.namespace);
        let adopt: Vec<Arc<Pod>> = orphans
            .filter(|pod| claim(pod) == Claim::Adopt)
            .cloned()
            .collect();
        // An adopted pod counts beside all others of its node.
        let adopting = adopt.iter().filter_map(|pod| pod.node.as_deref());
        let also = parts.open().iter().map(String::as_str).chain(adopting);
        let look = index.look(owner.uid, owner.namespace, whole, also, now);
        let mut view = View {
            is_whole: look.is_whole,
            ..View::default()
        };
        for (at, pods) in look.pods {
            view.changed.extend(at);
            for pod in pods {
                match claim(&pod) {
                    Claim::Own => {
                        if index.is_deletion_open(&pod.uid) {
                            view.again.push(Delete {
                                node: pod.node.clone(),
                                name: pod.name.clone(),
                                uid: pod.uid.clone(),
                            });
                        }
                        let ended_for_ms = index.ended_for_ms(&pod.uid, now);
                        view.own.push((pod, ended_for_ms));
                    }
                    Claim::Release => view.release.push(pod),
                    Claim::Adopt | Claim::None => {}
                }
            }
        }
        view.adopt = adopt;
        view
    }

    /// The nodes that are decided about.
    fn names<'a>(&self, known: &'a Known, view: &'a View) -> BTreeSet<&'a str> {
        let wanted = view.is_whole.then(|| known.seika.spec.repurika.keys());
        let wanted = wanted.into_iter().flatten();
        let names = wanted.chain(&view.changed);
        names.map(String::as_str).collect()
    }

    /// Takes what is to be adopted, lets go what is to be released.
    async fn claim(&self, known: &Known, owner: Owned<'_>, view: &View) -> Result<(), Failed> {
        let client = &self.client.0;
        for pod in &view.release {
            self.writer.own(client, owner, pod, false).await?;
            tracing::info!(namespace = owner.namespace, seika = owner.name, pod = %pod.name, "released");
        }
        if view.adopt.is_empty() {
            return Ok(());
        }
        if !self.writer.may_adopt(client, known).await? {
            return Err(Failed::Passing(
                "it is being deleted or was made anew: it adopts nothing".into(),
            ));
        }
        for pod in &view.adopt {
            self.writer.own(client, owner, pod, true).await?;
            tracing::info!(namespace = owner.namespace, seika = owner.name, pod = %pod.name, "adopted");
        }
        Ok(())
    }

    fn decide(
        &self,
        known: &Known,
        owner: Owned<'_>,
        view: &View,
        work: &Work,
        budget: Budget,
    ) -> Decision {
        let spec = &known.seika.spec;
        let adopted = view.adopt.iter().map(|pod| (pod, 0));
        let own = view
            .own
            .iter()
            .map(|(pod, ended_for_ms)| (pod, *ended_for_ms));
        let mut by_node: BTreeMap<&str, Vec<(&Arc<Pod>, u64)>> = BTreeMap::new();
        for (pod, ended_for_ms) in own.chain(adopted) {
            if let Some(node) = &pod.node {
                by_node.entry(node).or_default().push((pod, ended_for_ms));
            }
        }
        let mut pods: BTreeMap<&str, Vec<PodView<'_>>> = BTreeMap::new();
        for (node, of_node) in by_node {
            let prefix = owner.prefix(node);
            let views = of_node.into_iter().map(|(pod, ended_for_ms)| PodView {
                pod: pod.as_ref(),
                is_updated: pod.labels.get(HASH_LABEL) == Some(&known.template.hash),
                slot: pod
                    .name
                    .strip_prefix(&prefix)
                    .and_then(|number| number.parse().ok()),
                ended_for_ms,
            });
            pods.insert(node, views.collect());
        }
        let names = self.names(known, view);
        let obstacles = {
            let nodes = self.state.nodes.lock();
            obstacles(&known.template, names.iter().copied(), &nodes)
        };
        let input = Input {
            wanted: &spec.repurika,
            rolling: rolling(&spec.rolling_update),
            pods,
            obstacles: &obstacles,
            avoid: &work.avoid,
        };
        decide_on(&input, &names, budget)
    }

    async fn create(
        &self,
        known: &Known,
        owner: Owned<'_>,
        creates: Vec<Create>,
        work: &mut Work,
        done: &mut Done,
    ) {
        let create = |create| self.writer.create(&self.client.0, known, owner, create);
        let (made, failure) = work.ramp.run(creates, create).await;
        for one in made {
            match one {
                Created::Ours => done.created += 1,
                Created::Taken(create) => {
                    if work.avoid.len() >= MAX_AVOIDED {
                        work.avoid.clear();
                    }
                    done.undecided.push(create.node.clone());
                    work.avoid.insert((create.node, create.slot));
                }
                Created::Gone(create) => done.undecided.push(create.node),
            }
        }
        match &failure {
            None => work.refused = None,
            Some(Failed::Refused(words)) => {
                let generation = known.seika.metadata.generation;
                work.refused = Some((generation, words.clone()));
            }
            Some(_) => {}
        }
        done.failure = failure.or(done.failure.take());
    }
}

impl Work {
    /// What the apiserver said when it refused a pod.
    fn words(&self) -> Option<String> {
        self.refused.as_ref().map(|(_, words)| words.clone())
    }
}
