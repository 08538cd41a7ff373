//! The loop in the world: objects are followed, measurements read, rounds made, Seikas written.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use election::{Place, Seat, Times};
use follow::{Followed, Shared as Follow, follow};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;

use crate::explain::{Explained, REASONS};
use crate::hold::Hold;
use crate::input::{Distances, Latencies, Meter};
use crate::objects::{self, LABEL, NodeFacts, ON, PodFacts, SeikaFacts};
use crate::state::{Outcome, Seen, Settings, State};
use crate::tell::{News, Teller, What};

/// Field manager of `spec.repurika`.
pub const MANAGER: &str = "orlop-placement";
/// Seikas that are written at once.
const WRITES_AT_ONCE: usize = 16;
/// How long one write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a loop is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// This process's name, as no other has it.
    pub identity: String,
    /// Namespace of the Lease.
    pub lease_namespace: String,
    /// Name of the Lease.
    pub lease_name: String,
    /// Times of the election.
    pub times: Times,
    /// Only Seikas of this namespace.
    pub namespace: Option<String>,
    /// The loop's numbers.
    pub settings: Settings,
    /// From one reading of round trips to the next, in seconds.
    pub latency_period_s: f64,
}

/// What has happened since the start.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Rounds.
    pub rounds: u64,
    /// How long the last round's decisions took, in seconds.
    pub decisions_s: f64,
    /// The same of all rounds.
    pub decisions_total_s: f64,
    /// Moves by direction (added, removed) and reason.
    pub moves: BTreeMap<(&'static str, &'static str), u64>,
    /// Writes by what came of them.
    pub writes: BTreeMap<&'static str, u64>,
    /// Readings that failed, by input.
    pub failures: BTreeMap<&'static str, u64>,
}

/// A loop, to be looked at from pages.
pub struct Loop {
    options: Options,
    seat: Seat,
    state: Mutex<State>,
    stats: Mutex<Stats>,
    nodes: Follow<NodeFacts>,
    pods: Follow<PodFacts>,
    seikas: Follow<SeikaFacts>,
    written: Mutex<BTreeMap<String, i64>>,
}

/// What pages show of a loop at one moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Whether it acts.
    pub acts: bool,
    /// Whether all objects have been listed.
    pub listed: bool,
    /// What has happened.
    pub stats: Stats,
    /// Services.
    pub services: Vec<String>,
    /// How many are held, by reason.
    pub holds: BTreeMap<&'static str, u64>,
    /// Wanted pods by service and node.
    pub wanted: Vec<(String, String, u32)>,
    /// Demand without room, in pods, by service.
    pub no_room: Vec<(String, f64)>,
    /// Seconds since round trips were read.
    pub latencies_age_s: Option<f64>,
    /// Values of R that the last round looked at.
    pub steps: u64,
}

impl Loop {
    /// A loop that is not running yet.
    #[must_use]
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            seat: Seat::new(options.identity.clone(), options.times),
            state: Mutex::new(State::new(options.settings.clone())),
            stats: Mutex::default(),
            nodes: Follow::default(),
            pods: Follow::default(),
            seikas: Follow::default(),
            written: Mutex::default(),
            options,
        })
    }

    /// Explains a service.
    #[must_use]
    pub fn explain(&self, key: &str) -> Option<Explained> {
        self.state.lock().explain(key, self.seat.acts())
    }

    /// What pages show.
    #[must_use]
    pub fn look(&self) -> Look {
        // One lock at a time: a round takes several, in an order of its own.
        let listed = self.look_listed();
        let wanted = {
            let seikas = self.seikas.lock();
            let all = seikas.items.iter().flat_map(|(key, seika)| {
                let nodes = seika.wanted.iter();
                nodes.map(move |(node, count)| (key.clone(), node.clone(), *count))
            });
            all.collect()
        };
        let stats = self.stats.lock().clone();
        let state = self.state.lock();
        let mut holds: BTreeMap<&'static str, u64> = Hold::NAMES.map(|name| (name, 0)).into();
        for (_, hold) in state.holds() {
            *holds.entry(hold.name()).or_default() += 1;
        }
        let no_room = state.no_room();
        Look {
            acts: self.seat.acts(),
            listed,
            stats,
            services: state.services().map(str::to_owned).collect(),
            holds,
            wanted,
            no_room: no_room.map(|(key, pods)| (key.to_owned(), pods)).collect(),
            latencies_age_s: state.latencies_age_s(),
            steps: state.steps,
        }
    }

    /// Runs until `stop` is there, then gives back the Lease.
    pub async fn run(
        self: &Arc<Self>,
        client: Client,
        distances: &dyn Distances,
        meter: &dyn Meter,
        stop: impl Future<Output = ()>,
    ) {
        let place = Place {
            namespace: self.options.lease_namespace.clone(),
            name: self.options.lease_name.clone(),
            times: self.options.times,
        };
        let kind = objects::seika_kind();
        let namespaced = self.options.namespace.as_deref();
        let seikas: Api<DynamicObject> = match namespaced {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
            None => Api::all_with(client.clone(), &kind),
        };
        let selected = watcher::Config::default().labels(&format!("{LABEL}={ON}"));
        let all = watcher::Config::default;
        // Pods that are over take no room, and need not be sent.
        let running = all().fields("status.phase!=Succeeded,status.phase!=Failed");
        let follows = async {
            tokio::join!(
                follow(
                    Api::<Node>::all(client.clone()),
                    all(),
                    "Node",
                    |node| Some(objects::node(node)),
                    Arc::clone(&self.nodes),
                    |_| {},
                ),
                follow(
                    Api::<Pod>::all(client.clone()),
                    running,
                    "Pod",
                    objects::pod,
                    Arc::clone(&self.pods),
                    |_| {},
                ),
                follow(
                    seikas,
                    selected,
                    "Seika",
                    |seika| Some(objects::seika(seika)),
                    Arc::clone(&self.seikas),
                    |_| {},
                ),
            )
        };
        tokio::select! {
            _ = follows => {}
            () = election::stand(client.clone(), place.clone(), self.seat.clone()) => {}
            () = self.rounds(&client, distances, meter) => {}
            () = stop => {}
        }
        election::leave(client, &place, &self.seat).await;
    }

    async fn rounds(&self, client: &Client, distances: &dyn Distances, meter: &dyn Meter) {
        let round = Duration::from_secs_f64(self.options.settings.round_s);
        let latency_period = Duration::from_secs_f64(self.options.latency_period_s);
        let mut tick = tokio::time::interval(round);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut read_at: Option<Instant> = None;
        let mut held = BTreeMap::new();
        let teller = Teller::new(client.clone(), self.options.identity.clone());
        loop {
            tick.tick().await;
            // What is not listed yet says nothing.
            if !self.look_listed() {
                continue;
            }
            let read_latency = read_at.is_none_or(|at| at.elapsed() >= latency_period);
            let latencies = async {
                match read_latency {
                    true => Some(distances.read().await),
                    false => None,
                }
            };
            let (latencies, traffic) = tokio::join!(latencies, meter.read());
            if let Some(Ok(_)) = &latencies {
                read_at = Some(Instant::now());
            }
            let mut failures = Vec::new();
            let (latencies, latencies_failing) = match latencies {
                None => (None, None),
                Some(Ok(latencies)) => (Some(latencies), None),
                Some(Err(error)) => {
                    failures.push("latency");
                    (None, Some(error.to_string()))
                }
            };
            let traffic = traffic.map_err(|error| {
                failures.push("traffic");
                error.to_string()
            });
            let outcomes = self.decide(
                latencies.as_ref(),
                latencies_failing.as_deref(),
                traffic.as_ref().map_err(String::as_str),
                &failures,
            );
            let news = self.say(&outcomes, &mut held);
            self.write(client, outcomes).await;
            if self.seat.acts() {
                teller.tell(news).await;
            }
        }
    }

    fn look_listed(&self) -> bool {
        self.nodes.lock().listed && self.pods.lock().listed && self.seikas.lock().listed
    }

    fn decide(
        &self,
        latencies: Option<&Latencies>,
        latencies_failing: Option<&str>,
        traffic: Result<&crate::input::Traffic, &str>,
        failures: &[&'static str],
    ) -> Vec<Outcome> {
        let acts = self.seat.acts();
        let (nodes, pods, seikas) = (self.nodes.lock(), self.pods.lock(), self.seikas.lock());
        let failing = [
            nodes.failing.as_deref(),
            pods.failing.as_deref(),
            seikas.failing.as_deref(),
        ];
        let mut written = self.written.lock();
        written.retain(|key, _| seikas.items.contains_key(key));
        let seen = Seen {
            nodes: &nodes.items,
            pods: &pods.items,
            seikas: &seikas.items,
            objects_failing: failing.into_iter().flatten().next(),
            latencies,
            latencies_failing,
            traffic,
            written: &written,
        };
        let began = Instant::now();
        let outcomes = self.state.lock().round(&seen, acts);
        let took_s = began.elapsed().as_secs_f64();
        let mut stats = self.stats.lock();
        stats.rounds += 1;
        stats.decisions_s = took_s;
        stats.decisions_total_s += took_s;
        for input in failures {
            *stats.failures.entry(input).or_default() += 1;
        }
        for m in outcomes.iter().flat_map(|outcome| &outcome.moves) {
            let direction = if m.add { "added" } else { "removed" };
            *stats.moves.entry((direction, m.reason)).or_default() += 1;
        }
        outcomes
    }

    /// Logs moves, and which services are held or are no longer: a line for each reason. Returns
    /// what is to be told at the Seikas themselves.
    fn say(&self, outcomes: &[Outcome], held: &mut BTreeMap<String, &'static str>) -> Vec<News> {
        let mut at_seikas = Vec::new();
        let uid = |key: &str| {
            let seikas = self.seikas.lock();
            seikas
                .items
                .get(key)
                .map(|s| s.uid.clone())
                .unwrap_or_default()
        };
        for outcome in outcomes {
            for m in &outcome.moves {
                at_seikas.push(News {
                    key: outcome.key.clone(),
                    uid: uid(&outcome.key),
                    what: What::Moved(m.clone()),
                });
                let change = if m.add { "+1" } else { "-1" };
                tracing::info!(
                    service = outcome.key,
                    node = m.node,
                    change,
                    why = m.why,
                    "moves a pod"
                );
            }
        }
        let holds: Vec<(String, Hold)> = {
            let state = self.state.lock();
            let all = state.holds();
            all.map(|(key, hold)| (key.to_owned(), hold.clone()))
                .collect()
        };
        let mut now = BTreeMap::new();
        let mut news: BTreeMap<&'static str, (u64, String, String)> = BTreeMap::new();
        for (key, hold) in holds {
            // It is over in a moment.
            if hold == Hold::Behind {
                continue;
            }
            now.insert(key.clone(), hold.name());
            if held.get(&key) == Some(&hold.name()) {
                continue;
            }
            let entry = news.entry(hold.name());
            entry.or_insert_with(|| (0, key.clone(), hold.text())).0 += 1;
            // What holds all of them is said once, in the log.
            if let Hold::Seika(_) | Hold::NoSeries(_) = hold {
                at_seikas.push(News {
                    uid: uid(&key),
                    key,
                    what: What::Held(hold.text()),
                });
            }
        }
        for (services, service, why) in news.into_values() {
            tracing::warn!(services, service, why, "nothing is changed");
        }
        let again: BTreeSet<&String> = held.keys().filter(|key| !now.contains_key(*key)).collect();
        if let Some(service) = again.first() {
            tracing::info!(services = again.len(), service, "is decided about again");
        }
        *held = now;
        at_seikas
    }

    async fn write(&self, client: &Client, outcomes: Vec<Outcome>) {
        let kind = objects::seika_kind();
        let writes = outcomes.into_iter().filter_map(|outcome| {
            let wanted = outcome.write?;
            Some(self.write_one(client, &kind, outcome.key, wanted))
        });
        let writes = futures::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE);
        writes.collect::<Vec<()>>().await;
    }

    async fn write_one(
        &self,
        client: &Client,
        kind: &ApiResource,
        key: String,
        wanted: BTreeMap<String, u32>,
    ) {
        let Some((namespace, name)) = key.split_once('/') else {
            return;
        };
        let uid = self.seikas.lock().items.get(&key).map(|s| s.uid.clone());
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, kind);
        // The UID: without it, writing to a Seika that was deleted would make one.
        let patch = json!({
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": { "name": name, "namespace": namespace, "uid": uid },
            "spec": { "repurika": wanted },
        });
        // Another loop may act by now.
        let outcome = if !self.seat.acts() {
            "not_leader"
        } else {
            let params = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&patch);
            let call = api.patch(name, &params, &patch);
            match tokio::time::timeout(WRITE_TIMEOUT, call).await {
                Ok(Ok(object)) => {
                    let facts = objects::seika(&object);
                    self.written.lock().insert(key.clone(), facts.generation);
                    self.take_over(&key, facts);
                    "written"
                }
                Ok(Err(error)) => {
                    tracing::warn!(service = key, error = %error, "the Seika cannot be written; the next round tries again");
                    "failed"
                }
                Err(_) => {
                    tracing::warn!(
                        service = key,
                        "the Seika's write took too long; the next round tries again"
                    );
                    "failed"
                }
            }
        };
        *self.stats.lock().writes.entry(outcome).or_default() += 1;
    }

    /// What was written is known at once, without waiting for the watch.
    fn take_over(&self, key: &str, facts: SeikaFacts) {
        let mut seikas: parking_lot::MutexGuard<'_, Followed<SeikaFacts>> = self.seikas.lock();
        if let Some(known) = seikas.items.get_mut(key)
            && known.uid == facts.uid
            && known.generation < facts.generation
        {
            *known = facts;
        }
    }
}

impl Stats {
    /// Every series of moves, also those that nothing has counted.
    pub fn all_moves(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        ["added", "removed"].into_iter().flat_map(move |direction| {
            REASONS.into_iter().filter_map(move |reason| {
                let count = self.moves.get(&(direction, reason)).copied();
                count.map(|count| (direction, reason, count))
            })
        })
    }
}
