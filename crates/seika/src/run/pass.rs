//! A pass: look at one Seika, decide, and carry out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kube::Client;
use parking_lot::Mutex;

use super::state::{Key, Known, State, now_ms};
use super::tell::{Memory as ToldBefore, Teller};
use super::write::{Cluster, Created, Failed, Writer, slow_start};
use crate::claim::{Claim, claim};
use crate::decide::{Budget, Create, Decision, Delete, Input, PodView, decide};
use crate::facts::Pod;
use crate::obstacles::obstacles;
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
    /// What the apiserver said when it refused a pod, and of which generation.
    refused: Option<(Option<i64>, String)>,
    /// Numbers whose names other pods have.
    avoid: BTreeSet<(String, u32)>,
    told: ToldBefore,
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
struct View {
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
            self.look_at(&key).await;
            let counters = &self.state.counters;
            let took_us = now_ms().saturating_sub(began_ms) * 1000;
            counters.passes.fetch_add(1, Ordering::Relaxed);
            counters.pass_us.fetch_add(took_us, Ordering::Relaxed);
            self.state.done(&key);
        }
    }

    async fn look_at(&self, key: &Key) {
        let Some(known) = self.state.seika(key) else {
            self.memory.lock().remove(key);
            return;
        };
        // The lists ask for all when they are complete.
        if !self.state.is_known() || !self.state.leads() {
            return;
        }
        // One pass of a key at a time: nobody else has it meanwhile.
        let mut memory = self.memory.lock().remove(key).unwrap_or_default();
        if memory.uid != known.uid {
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
            Some(Failed::NotLeading) => {}
            Some(failure) => {
                let doublings = memory.failures.min(16);
                let wait_ms = (RETRY_MIN_MS << doublings).min(RETRY_MAX_MS);
                memory.failures += 1;
                let (namespace, name) = key;
                tracing::warn!(%namespace, seika = %name, error = %failure, wait_ms, "a pass failed");
                self.state.ask(key.clone(), wait_ms);
            }
        }
        self.memory.lock().insert(key.clone(), memory);
    }

    async fn pass(&self, key: &Key, known: &Known, memory: &mut Memory) -> Outcome {
        let owner = Owned {
            name: &key.1,
            namespace: &key.0,
            uid: &known.uid,
        };
        let view = self.view(known, owner);
        let mut failure = self.claim(known, owner, &view).await.err();
        // A Seika that is being deleted: the garbage collector has its pods.
        if known.is_being_deleted() || failure.is_some() {
            return Outcome {
                failure,
                again_in_ms: None,
            };
        }
        let generation = known.seika.metadata.generation;
        if memory
            .refused
            .as_ref()
            .is_some_and(|(of, _)| *of != generation)
        {
            memory.refused = None;
        }
        let mut decision = self.decide(known, owner, &view, memory, BUDGET);
        let mut deletes = view.again.clone();
        deletes.append(&mut decision.deletes);
        let creates = std::mem::take(&mut decision.creates);
        let has_written = !deletes.is_empty() || !creates.is_empty();
        let (deleted, created) = (deletes.len(), creates.len());
        if let Some(error) = self.delete(owner, deletes).await {
            failure = Some(error);
        }
        let created = match created {
            0 => {
                // Nothing is wanted that could be refused.
                if !decision.has_more {
                    memory.refused = None;
                }
                0
            }
            _ => {
                let (n, error) = self.create(known, owner, creates, memory).await;
                failure = error.or(failure);
                n
            }
        };
        if has_written {
            self.teller.did(known, created, deleted).await;
            // What it did is among the pods now.
            let nothing = Budget {
                creates: 0,
                deletes: 0,
            };
            let view = self.view(known, owner);
            let after = self.decide(known, owner, &view, memory, nothing);
            decision.nodes = after.nodes;
        }
        let refused = memory.refused.as_ref().map(|(_, words)| words.as_str());
        let told = Told {
            generation,
            nodes: &decision.nodes,
            fault: known.template.fault.as_ref(),
            refused,
        };
        let telling = self
            .teller
            .tell(&self.writer, key, known, &told, &mut memory.told)
            .await;
        let mut again_in_ms = decision.again_in_ms;
        let mut sooner = |ms: u64| again_in_ms = Some(again_in_ms.map_or(ms, |at| at.min(ms)));
        match telling {
            Ok(None) => {}
            Ok(Some(later_ms)) => sooner(later_ms),
            Err(error) => failure = failure.or(Some(error)),
        }
        if decision.has_more && failure.is_none() {
            sooner(0);
        }
        Outcome {
            failure,
            again_in_ms,
        }
    }

    /// What is known of a Seika's pods now.
    fn view(&self, known: &Known, owner: Owned<'_>) -> View {
        let now = now_ms();
        let mut index = self.state.index.lock();
        let mut view = View {
            own: Vec::new(),
            adopt: Vec::new(),
            release: Vec::new(),
            again: Vec::new(),
        };
        let deleting = known.is_being_deleted();
        let pods = index.pods_of(owner.uid, owner.namespace, now);
        let orphans: Vec<Arc<Pod>> = index.orphans(owner.namespace).cloned().collect();
        for pod in pods.into_iter().chain(orphans) {
            match claim(&pod, owner.uid, &known.template, deleting) {
                Claim::Own => {
                    if index.is_deletion_open(&pod.uid) {
                        view.again.push(Delete {
                            name: pod.name.clone(),
                            uid: pod.uid.clone(),
                        });
                    }
                    let ended_for_ms = index.ended_for_ms(&pod.uid, now);
                    view.own.push((pod, ended_for_ms));
                }
                Claim::Adopt => view.adopt.push(pod),
                Claim::Release => view.release.push(pod),
                Claim::None => {}
            }
        }
        view
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
        memory: &Memory,
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
        let names = spec.repurika.keys().map(String::as_str);
        let names: BTreeSet<&str> = names.chain(pods.keys().copied()).collect();
        let obstacles = {
            let index = self.state.index.lock();
            obstacles(&known.template, names.into_iter(), index.nodes())
        };
        let input = Input {
            wanted: &spec.repurika,
            rolling: rolling(&spec.rolling_update),
            pods,
            obstacles: &obstacles,
            avoid: &memory.avoid,
        };
        decide(&input, budget)
    }

    /// Deletes; why one failed, if one did.
    async fn delete(&self, owner: Owned<'_>, deletes: Vec<Delete>) -> Option<Failed> {
        let (_, failure) = slow_start(deletes, |delete| async move {
            let client = &self.client.0;
            self.writer.delete(client, owner.namespace, &delete).await
        })
        .await;
        failure
    }

    /// Creates; how many, and why not all.
    async fn create(
        &self,
        known: &Known,
        owner: Owned<'_>,
        creates: Vec<Create>,
        memory: &mut Memory,
    ) -> (usize, Option<Failed>) {
        let (done, failure) = slow_start(creates, |create| {
            self.writer.create(&self.client.0, known, owner, create)
        })
        .await;
        let mut created = 0;
        for one in done {
            match one {
                Created::Ours => created += 1,
                Created::Taken(create) => {
                    if memory.avoid.len() >= MAX_AVOIDED {
                        memory.avoid.clear();
                    }
                    memory.avoid.insert((create.node, create.slot));
                    self.state
                        .ask((owner.namespace.into(), owner.name.into()), 0);
                }
            }
        }
        match &failure {
            None => memory.refused = None,
            Some(Failed::Refused(words)) => {
                let generation = known.seika.metadata.generation;
                memory.refused = Some((generation, words.clone()));
            }
            Some(_) => {}
        }
        (created, failure)
    }
}
