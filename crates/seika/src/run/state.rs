//! What the parts of the controller share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use election::Seat;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, ResourceExt};
use metrics::seika::SeikaInput;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Settings;
use crate::api::{Seika, SeikaStatus};
use crate::facts::Pod;
use crate::index::{Index, Nodes};
use crate::queue::{Next, Queue};
use crate::template::Template;

/// A Seika: namespace and name.
pub(super) type Key = (String, String);

/// So long after a pass the next one of the same Seika comes at the earliest, so that changes are
/// looked at together.
pub(super) const GAP_MS: u64 = 50;
/// A status that is not this controller's is looked at after so long: most often it is its own, and
/// the answer to the call is still on its way.
const ANOTHERS_MS: u64 = 2_000;
/// How often it is looked whether this process still leads.
const LOOK: Duration = Duration::from_millis(100);

/// Milliseconds of a clock that also runs while the machine is suspended: a lease goes on then.
pub(super) fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (s, ns) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    s * 1000 + ns / 1_000_000
}

/// A Seika as it was last shown, and its template, read once.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) seika: Seika,
    pub(super) uid: String,
    pub(super) template: Template,
}

impl Known {
    pub(super) fn is_being_deleted(&self) -> bool {
        self.seika.metadata.deletion_timestamp.is_some()
    }

    /// For events.
    pub(super) fn reference(&self) -> ObjectReference {
        self.seika.object_ref(&())
    }
}

/// What is counted since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) writes: [AtomicU64; 6],
    pub(super) failures: [AtomicU64; 6],
    pub(super) passes: AtomicU64,
    pub(super) nodes_decided: AtomicU64,
    pub(super) pass_us: AtomicU64,
    pub(super) watch_errors: AtomicU64,
}

/// A call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Create,
    Delete,
    Adopt,
    Release,
    Status,
    Event,
}

impl What {
    const ALL: [(What, &'static str); 6] = [
        (What::Create, "create"),
        (What::Delete, "delete"),
        (What::Adopt, "adopt"),
        (What::Release, "release"),
        (What::Status, "status"),
        (What::Event, "event"),
    ];
}

impl Counters {
    pub(super) fn count(&self, what: What, succeeded: bool) {
        let of = if succeeded {
            &self.writes
        } else {
            &self.failures
        };
        of[what as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Seikas {
    by_key: BTreeMap<Key, Arc<Known>>,
    by_uid: HashMap<String, Key>,
    listing: Option<BTreeMap<Key, Arc<Known>>>,
    told: HashMap<Key, Arc<SeikaStatus>>,
}

/// What the parts of the controller share.
#[derive(Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) index: Mutex<Index>,
    pub(super) nodes: Mutex<Nodes>,
    pub(super) counters: Counters,
    seikas: Mutex<Seikas>,
    queue: Mutex<Queue<Key>>,
    wake: Notify,
    /// This process in the election.
    pub(super) seat: Seat,
}

impl State {
    /// Nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            seat: Seat::new(settings.identity.clone(), settings.times),
            settings,
            index: Mutex::default(),
            nodes: Mutex::default(),
            counters: Counters::default(),
            seikas: Mutex::default(),
            queue: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Whether this process may act now.
    pub(super) fn leads(&self) -> bool {
        self.seat.acts()
    }

    pub(super) async fn wait_to_lead(&self) {
        while !self.leads() {
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn wait_to_lead_no_more(&self) {
        while self.leads() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Begins with nothing known.
    pub(super) fn begin(&self) {
        *self.index.lock() = Index::default();
        *self.nodes.lock() = Nodes::default();
        *self.seikas.lock() = Seikas::default();
        *self.queue.lock() = Queue::default();
    }

    pub(super) fn end(&self) {
        self.begin();
    }

    /// Why a probe should not take this process for ready; `None` if it is.
    pub(super) fn not_ready(&self) -> Option<&'static str> {
        if self.seat.silent_ms() > self.settings.times.duration_ms.saturating_mul(2) {
            return Some("the apiserver does not answer, or refuses the Lease");
        }
        if self.leads() && !self.is_known() {
            return Some("it leads, and has not seen all Seikas, pods and nodes yet");
        }
        None
    }

    pub(super) fn is_known(&self) -> bool {
        self.index.lock().is_known() && self.nodes.lock().is_known()
    }

    // The queue.

    pub(super) fn ask(&self, key: Key, in_ms: u64) {
        self.queue.lock().add(key, now_ms() + in_ms);
        self.wake.notify_one();
    }

    pub(super) fn ask_all(&self) {
        let keys: Vec<Key> = self.seikas.lock().by_key.keys().cloned().collect();
        for key in keys {
            self.ask(key, 0);
        }
    }

    /// Waits for the next Seika to look at.
    pub(super) async fn next(&self) -> Key {
        loop {
            let next = self.queue.lock().next(now_ms());
            match next {
                Next::Key(key) => {
                    // There may be more for another worker.
                    self.wake.notify_one();
                    return key;
                }
                Next::Wait(ms) => {
                    let wait = Duration::from_millis(ms);
                    let _ = tokio::time::timeout(wait, self.wake.notified()).await;
                }
                Next::Nothing => self.wake.notified().await,
            }
        }
    }

    /// A pass is over; the next one of this Seika comes in so many ms at the earliest.
    pub(super) fn done(&self, key: &Key, gap_ms: u64) {
        self.queue.lock().done(key, now_ms() + gap_ms);
        self.wake.notify_one();
    }

    // The Seikas.

    fn known(seika: Seika) -> Option<(Key, Arc<Known>)> {
        let key = (seika.namespace()?, seika.name_any());
        let known = Known {
            uid: seika.uid()?,
            template: Template::of(&seika.spec),
            seika,
        };
        Some((key, Arc::new(known)))
    }

    pub(super) fn begin_seikas(&self) {
        self.seikas.lock().listing = Some(BTreeMap::new());
    }

    pub(super) fn list_seika(&self, seika: Seika) {
        if let Some((key, known)) = Self::known(seika)
            && let Some(listing) = &mut self.seikas.lock().listing
        {
            listing.insert(key, known);
        }
    }

    pub(super) fn end_seikas(&self) {
        let gone: Vec<Key> = {
            let mut seikas = self.seikas.lock();
            let listed = seikas.listing.take().unwrap_or_default();
            let before = std::mem::replace(&mut seikas.by_key, listed);
            seikas.by_uid = seikas
                .by_key
                .iter()
                .map(|(key, known)| (known.uid.clone(), key.clone()))
                .collect();
            let now = &seikas.by_key;
            let gone: Vec<Key> = before
                .into_keys()
                .filter(|key| !now.contains_key(key))
                .collect();
            for key in &gone {
                seikas.told.remove(key);
            }
            gone
        };
        for key in gone {
            self.ask(key, 0);
        }
        self.ask_all();
    }

    /// A Seika is shown as it is now. A new spec, a deletion, and a status that is not this
    /// controller's ask for a pass.
    pub(super) fn apply_seika(&self, seika: Seika) {
        let Some((key, known)) = Self::known(seika) else {
            return;
        };
        let mut seikas = self.seikas.lock();
        let uid = known.uid.clone();
        let before = seikas.by_key.insert(key.clone(), Arc::clone(&known));
        if let Some(before) = &before
            && before.uid != uid
        {
            seikas.by_uid.remove(&before.uid);
        }
        seikas.by_uid.insert(uid, key.clone());
        let told = seikas.told.get(&key).map(Arc::as_ref);
        let is_told = told.is_none_or(|told| known.seika.status.as_ref() == Some(told));
        drop(seikas);
        let same = before.is_some_and(|before| {
            before.uid == known.uid
                && before.seika.metadata.generation == known.seika.metadata.generation
                && before.is_being_deleted() == known.is_being_deleted()
        });
        if !same {
            self.ask(key, 0);
        } else if !is_told {
            self.ask(key, ANOTHERS_MS);
        }
    }

    pub(super) fn remove_seika(&self, seika: &Seika) {
        let key = (seika.namespace().unwrap_or_default(), seika.name_any());
        let mut seikas = self.seikas.lock();
        let uid = seika.uid();
        if seikas.by_key.get(&key).map(|k| &k.uid) == uid.as_ref() {
            seikas.by_key.remove(&key);
        }
        if let Some(uid) = uid {
            seikas.by_uid.remove(&uid);
        }
        seikas.told.remove(&key);
        drop(seikas);
        // Its pass forgets it.
        self.ask(key, 0);
    }

    pub(super) fn seika(&self, key: &Key) -> Option<Arc<Known>> {
        self.seikas.lock().by_key.get(key).cloned()
    }

    /// Asks for a pass of the Seika that is called `uid`.
    pub(super) fn ask_owner(&self, uid: &str) {
        let key = self.seikas.lock().by_uid.get(uid).cloned();
        match key {
            Some(key) => self.ask(key, 0),
            // Once it is known all of its pods are looked at.
            None => self.index.lock().forget_changes(uid),
        }
    }

    /// Asks for a pass of the Seikas that might adopt `pod`.
    pub(super) fn ask_adopters(&self, namespace: &str, pod: &Pod) {
        let first = (namespace.to_owned(), String::new());
        let keys: Vec<Key> = {
            let seikas = self.seikas.lock();
            let of_namespace = seikas.by_key.range(first..);
            of_namespace
                .take_while(|((of, _), _)| of == namespace)
                .filter(|(_, known)| known.template.selects(&pod.labels))
                .map(|(key, _)| key.clone())
                .collect()
        };
        for key in keys {
            self.ask(key, 0);
        }
    }

    /// Asks for a pass of the Seikas that want pods on one of these nodes: they have changed.
    pub(super) fn ask_wanting(&self, changed: &BTreeSet<String>) {
        let wanting: Vec<(Key, String, Vec<&String>)> = {
            let seikas = self.seikas.lock();
            let all = seikas.by_key.iter().map(|(key, known)| {
                let wanted = &known.seika.spec.repurika;
                let nodes = changed.iter().filter(|node| wanted.contains_key(*node));
                (key.clone(), known.uid.clone(), nodes.collect::<Vec<_>>())
            });
            all.filter(|(_, _, nodes)| !nodes.is_empty()).collect()
        };
        for (key, uid, nodes) in wanting {
            let mut index = self.index.lock();
            for node in nodes {
                index.node_changed(&uid, node);
            }
            drop(index);
            self.ask(key, 0);
        }
    }

    /// Remembers a status for the metrics.
    pub(super) fn told(&self, key: &Key, status: Arc<SeikaStatus>) {
        let mut seikas = self.seikas.lock();
        if seikas.by_key.contains_key(key) {
            seikas.told.insert(key.clone(), status);
        }
    }

    /// What the metrics say.
    pub(super) fn scrape(&self) -> SeikaInput {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let (kept, unseen) = self.index.lock().sizes();
        let told: Vec<Arc<SeikaStatus>> = self.seikas.lock().told.values().cloned().collect();
        let sum = |of: fn(&SeikaStatus) -> u64| told.iter().map(|status| of(status)).sum();
        let current =
            |status: &SeikaStatus| status.nodes.iter().map(|n| u64::from(n.current)).sum();
        let in_trouble = crate::reason::Reason::ALL.map(|reason| {
            let of = |status: &Arc<SeikaStatus>| {
                let name = Some(reason.as_str());
                let nodes = status.nodes.iter();
                count(nodes.filter(|n| n.reason.as_deref() == name).count())
            };
            (reason.as_str(), told.iter().map(of).sum())
        });
        let by_what = |counters: &[AtomicU64; 6]| {
            let all = What::ALL.iter();
            all.map(|(what, name)| (*name, counters[*what as usize].load(Ordering::Relaxed)))
                .collect()
        };
        SeikaInput {
            leads: self.leads(),
            seikas: count(self.seikas.lock().by_key.len()),
            queued: count(self.queue.lock().len()),
            pods_kept: count(kept),
            unseen: count(unseen),
            pods: vec![
                ("wanted", sum(|s| u64::from(s.wanted_total))),
                ("current", sum(current)),
                ("ready", sum(|s| u64::from(s.ready_total))),
                ("updated", sum(|s| u64::from(s.updated_total))),
            ],
            nodes_in_trouble: in_trouble.into(),
            writes: by_what(&self.counters.writes),
            failures: by_what(&self.counters.failures),
            passes: self.counters.passes.load(Ordering::Relaxed),
            nodes_decided: self.counters.nodes_decided.load(Ordering::Relaxed),
            pass_s: self.counters.pass_us.load(Ordering::Relaxed) as f64 / 1e6,
            watch_errors: self.counters.watch_errors.load(Ordering::Relaxed),
            log_lines_dropped: 0,
        }
    }
}
