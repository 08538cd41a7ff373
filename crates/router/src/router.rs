//! What a router knows, and how it chooses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use placement::{Node, Numbers, Response, RoundTrips, ServingTimes};
use routing::{Balancer, Candidate, Draw, Line, OutlierSettings, PeerTimes, Place, Queue, Retries};
use tokio::sync::{Semaphore, oneshot};
use wire::ClientTls;

use crate::body::{self, AllAnswers};
use crate::client;
use crate::failure::{Failure, Kind};
use crate::peers::Link;
use crate::pod::{Load, Pod, PodCounts};
use crate::table::{ServiceEntry, Table};

/// Limits of a router.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of clients.
    pub connections: usize,
    /// Requests under way, waiting ones included: those of clients, and apart from them those of
    /// other routers.
    pub in_flight: usize,
    /// Time for the head of a request, for a handshake, and for the first request of a connection.
    pub head_timeout: Duration,
    /// Time without a request after which a connection is closed.
    pub idle_timeout: Duration,
    /// Time in which some part of a request's body has to come, or of an answer to be read.
    pub body_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            in_flight: 10_000,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            body_timeout: Duration::from_secs(60),
        }
    }
}

/// A service's own state, which outlives changes of its pods.
struct Run {
    choice: Mutex<Choice>,
    room: Mutex<Line<oneshot::Sender<()>>>,
    entered: AtomicU64,
    retries: AtomicU64,
}

#[derive(Default)]
struct Choice {
    balancer: Balancer,
    weights: Vec<(Node, f64)>,
    serving: ServingTimes,
    /// Sums of ms and numbers of requests since the last look.
    samples: BTreeMap<Node, (f64, f64)>,
    retries: Retries,
}

/// A service as of one table.
pub(crate) struct Service {
    pub(crate) entry: ServiceEntry,
    pub(crate) pods: Vec<Arc<Pod>>,
    run: Arc<Run>,
}

/// All that one table says.
#[derive(Default)]
struct Routes {
    by_host: HashMap<String, Arc<Service>>,
    by_name: HashMap<String, Arc<Service>>,
    links: HashMap<String, Arc<Link>>,
}

struct Learned {
    numbers: Numbers,
    round_trips: RoundTrips,
}

/// Counters of the process, which only grow.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) failures: [AtomicU64; Kind::ALL.len()],
    pub(crate) connections_refused: AtomicU64,
    pub(crate) unread: AtomicU64,
    /// Tables that were applied.
    pub(crate) tables: AtomicU64,
    pub(crate) tunnels: AtomicU32,
    pub(crate) connections: AtomicU32,
}

/// A router.
pub struct Router {
    pub(crate) node: String,
    pub(crate) limits: Limits,
    pub(crate) began: Instant,
    pub(crate) answers: AllAnswers,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) peer_permits: Arc<Semaphore>,
    pub(crate) draining: AtomicBool,
    pub(crate) counts: Counts,
    pub(crate) access_log: bool,
    peer_tls: Option<Arc<ClientTls>>,
    routes: RwLock<Arc<Routes>>,
    learned: Mutex<Learned>,
    outlier: OutlierSettings,
    settings: placement::Settings,
}

/// A place among those that wait for any pod; it is given up when this is dropped.
struct Waits<'a> {
    room: &'a Mutex<Line<oneshot::Sender<()>>>,
    place: Place,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let left = self.room.lock().leave(self.place);
        drop(left);
    }
}

impl Router {
    /// A router of this node that knows no service yet. Without `peer_tls` a table may have no
    /// other node.
    #[must_use]
    pub fn new(
        node: String,
        limits: Limits,
        peer_tls: Option<Arc<ClientTls>>,
        access_log: bool,
    ) -> Arc<Self> {
        let mut numbers = Numbers::default();
        numbers.give(&node);
        Arc::new(Self {
            node,
            permits: Arc::new(Semaphore::new(limits.in_flight)),
            peer_permits: Arc::new(Semaphore::new(limits.in_flight)),
            limits,
            began: Instant::now(),
            answers: AllAnswers::default(),
            draining: AtomicBool::new(false),
            counts: Counts::default(),
            access_log,
            peer_tls,
            routes: RwLock::default(),
            learned: Mutex::new(Learned {
                numbers,
                round_trips: RoundTrips::new(1),
            }),
            outlier: OutlierSettings::default(),
            settings: placement::Settings::default(),
        })
    }

    /// Microseconds since its start.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Routes by this table from now on. What waits for a pod that is gone is sent elsewhere.
    /// To be called within a runtime.
    ///
    /// # Errors
    /// What is wrong with it; the one before stays in force.
    pub fn apply(self: &Arc<Self>, table: &Table) -> Result<(), String> {
        let hosts = table.check()?;
        let others = table.nodes.iter().filter(|node| node.name != self.node);
        if self.peer_tls.is_none() && others.clone().next().is_some() {
            return Err(
                "it names other nodes, but there is no certificate for their routers: \
                        give --peer-cert-file, --peer-key-file and --peer-trusted-ca-file"
                    .to_owned(),
            );
        }
        let before = self.routes.read().clone();
        let mut learned = self.learned.lock();
        let mut used: BTreeSet<&str> = table.nodes.iter().map(|node| node.name.as_str()).collect();
        used.extend(
            table
                .services
                .iter()
                .flat_map(|s| s.pods.iter().map(|pod| pod.node.as_str())),
        );
        used.insert(&self.node);
        for node in learned.numbers.keep(|name| used.contains(name)) {
            learned.round_trips.forget(node);
        }
        let numbers: HashMap<&str, Node> = used
            .iter()
            .map(|name| (*name, learned.numbers.give(name)))
            .collect();
        let count = learned.numbers.len();
        learned.round_trips.grow(count);
        drop(learned);

        let mut routes = Routes::default();
        for node in others {
            let kept = before.links.get(&node.name);
            let kept = kept.filter(|l| l.address == node.peer && l.node == numbers[&*node.name]);
            let link = match (kept, &self.peer_tls) {
                (Some(link), _) => link.clone(),
                (None, Some(tls)) => self.link(node, numbers[&*node.name], tls.clone()),
                (None, None) => continue,
            };
            routes.links.insert(node.name.clone(), link);
        }
        let services: Vec<Arc<Service>> = table
            .services
            .iter()
            .map(|entry| {
                let kept = before.by_name.get(&entry.name);
                let service = Arc::new(self.service(entry, kept, &numbers));
                routes.by_name.insert(entry.name.clone(), service.clone());
                service
            })
            .collect();
        for (host, at) in hosts {
            routes.by_host.insert(host, services[at].clone());
        }
        let routes = Arc::new(routes);
        *self.routes.write() = routes.clone();
        // Pods that are gone, after nobody finds them any more.
        for (name, service) in &before.by_name {
            let now = routes.by_name.get(name);
            for pod in &service.pods {
                let stays = now.is_some_and(|now| now.pods.iter().any(|p| Arc::ptr_eq(p, pod)));
                if !stays {
                    pod.close();
                }
            }
            if now.is_none() {
                wake(&service.run.room);
            }
        }
        self.learn();
        self.wake_all();
        self.counts.tables.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            nodes = routes.links.len(),
            services = services.len(),
            pods = services.iter().map(|s| s.pods.len()).sum::<usize>(),
            "routes by a new table"
        );
        Ok(())
    }

    fn link(
        self: &Arc<Self>,
        node: &crate::table::NodeEntry,
        number: Node,
        tls: Arc<ClientTls>,
    ) -> Arc<Link> {
        let weak = Arc::downgrade(self);
        let changed = Arc::new(move || {
            if let Some(router) = weak.upgrade() {
                router.wake_all();
            }
        });
        Link::start(
            node.name.clone(),
            node.peer,
            number,
            tls,
            self.began,
            changed,
        )
    }

    fn service(
        &self,
        entry: &ServiceEntry,
        kept: Option<&Arc<Service>>,
        numbers: &HashMap<&str, Node>,
    ) -> Service {
        let run = kept.map_or_else(
            || {
                Arc::new(Run {
                    choice: Mutex::default(),
                    room: Mutex::new(Line::new(entry.waiting)),
                    entered: AtomicU64::new(0),
                    retries: AtomicU64::new(0),
                })
            },
            |kept| kept.run.clone(),
        );
        run.room.lock().set_max(entry.waiting);
        let pod = |of: &crate::table::PodEntry| {
            let node = numbers[&*of.node];
            let same = |pod: &&Arc<Pod>| {
                pod.name == of.name
                    && pod.node_name == of.node
                    && pod.node == node
                    && pod.address == of.address
                    && pod.protocol == entry.protocol
            };
            if let Some(pod) = kept.and_then(|kept| kept.pods.iter().find(same)) {
                pod.resize(entry.concurrency, entry.queue);
                return pod.clone();
            }
            Arc::new(Pod {
                name: of.name.clone(),
                node_name: of.node.clone(),
                node,
                address: of.address,
                protocol: entry.protocol,
                local: of.node == self.node,
                queue: Mutex::new(Queue::new(entry.concurrency, entry.queue)),
                load: Mutex::<Load>::default(),
                in_flight: AtomicU32::new(0),
                client: client::to_pod(of.address, entry.protocol),
                counts: PodCounts::default(),
            })
        };
        Service {
            pods: entry.pods.iter().map(pod).collect(),
            entry: entry.clone(),
            run,
        }
    }

    /// The service that is asked for by this host.
    pub(crate) fn of_host(&self, host: &str) -> Option<Arc<Service>> {
        self.routes.read().by_host.get(host).cloned()
    }

    /// The service of this name.
    pub(crate) fn of_name(&self, name: &str) -> Option<Arc<Service>> {
        self.routes.read().by_name.get(name).cloned()
    }

    /// All services, by name.
    pub(crate) fn services(&self) -> Vec<Arc<Service>> {
        let mut all: Vec<_> = self.routes.read().by_name.values().cloned().collect();
        all.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        all
    }

    /// Ways to other nodes, by name.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let mut all: Vec<_> = self.routes.read().links.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The way to a pod's node.
    pub(crate) fn link_to(&self, pod: &Pod) -> Option<Arc<Link>> {
        self.routes.read().links.get(&pod.node_name).cloned()
    }

    /// Pods for a request, but none of those that were tried. Pods whose way has failed are taken
    /// when there is no other.
    fn candidates(&self, service: &Service, tried: &[Arc<Pod>]) -> Vec<Candidate> {
        let now_us = self.now_us();
        let routes = self.routes.read().clone();
        let (mut good, mut failing) = (Vec::new(), Vec::new());
        for (at, pod) in service.pods.iter().enumerate() {
            let link = || routes.links.get(&pod.node_name);
            let reached = pod.local || link().is_some_and(|link| link.is_used());
            if !reached || tried.iter().any(|tried| Arc::ptr_eq(tried, pod)) {
                continue;
            }
            let load = pod.load.lock();
            let cost = load.ewma.cost(pod.in_flight.load(Ordering::Relaxed));
            let candidate = Candidate {
                pod: at,
                node: pod.node,
                cost,
            };
            match load.standing.is_good(now_us) {
                true => good.push(candidate),
                false => failing.push(candidate),
            }
        }
        if good.is_empty() { failing } else { good }
    }

    /// Whether there is a pod beside those that were tried.
    pub(crate) fn has_pod(&self, service: &Service, tried: &[Arc<Pod>]) -> bool {
        !self.candidates(service, tried).is_empty()
    }

    /// A pod for a request, but none of those that were tried.
    pub(crate) fn pick(&self, service: &Service, tried: &[Arc<Pod>]) -> Option<Arc<Pod>> {
        let candidates = self.candidates(service, tried);
        let draw = Draw(rand::random(), rand::random());
        let choice = &mut *service.run.choice.lock();
        let (policy, weights) = (service.entry.policy, &choice.weights);
        let picked = choice
            .balancer
            .pick(policy, HERE, &candidates, weights, draw)?;
        service.pods.get(picked).cloned()
    }

    /// Waits until a pod of the service may be there. Bound the wait.
    pub(crate) async fn wait_for_pod(&self, service: &Service) -> Result<(), Failure> {
        let (sender, receiver) = oneshot::channel();
        let place = service.run.room.lock().push(sender);
        let place = place.map_err(|_| Failure::not_sent(Kind::WaitingFull))?;
        let waits = Waits {
            room: &service.run.room,
            place,
        };
        // One that came between the look and the place would be missed; there is a look a tick.
        let _ = receiver.await;
        drop(waits);
        Ok(())
    }

    /// Requests that wait for any pod of a service.
    pub(crate) fn waiting(service: &Service) -> usize {
        service.run.room.lock().len()
    }

    /// Requests that entered here.
    pub(crate) fn entered(service: &Service) -> u64 {
        service.run.entered.load(Ordering::Relaxed)
    }

    /// Requests that were sent again.
    pub(crate) fn retried(service: &Service) -> u64 {
        service.run.retries.load(Ordering::Relaxed)
    }

    /// The weights of a service's nodes, in percent, by name.
    pub(crate) fn weights(&self, service: &Service) -> Vec<(String, f64)> {
        let weights = service.run.choice.lock().weights.clone();
        let learned = self.learned.lock();
        let named = weights
            .into_iter()
            .map(|(n, w)| (learned.numbers.name(n).to_owned(), w));
        named.collect()
    }

    pub(crate) fn count_entered(service: &Service) {
        service.run.entered.fetch_add(1, Ordering::Relaxed);
        service.run.choice.lock().retries.earned();
    }

    /// Whether a failed request may be sent again; counts it if so.
    pub(crate) fn may_retry(service: &Service, attempt: routing::Attempt, before: u32) -> bool {
        let may = service
            .run
            .choice
            .lock()
            .retries
            .again(attempt, before)
            .is_ok();
        if may {
            service.run.retries.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// An answer of a pod began; at its node that took `at_node_ms`, with the way `whole_ms`.
    pub(crate) fn succeeded(&self, service: &Service, pod: &Pod, at_node_ms: f64, whole_ms: f64) {
        pod.succeeded(whole_ms, self.now_us());
        let mut choice = service.run.choice.lock();
        let sample = choice.samples.entry(pod.node).or_default();
        sample.0 += at_node_ms;
        sample.1 += 1.0;
    }

    /// The way to a pod failed.
    pub(crate) fn failed(&self, pod: &Pod) {
        pod.failed(self.now_us(), &self.outlier);
    }

    fn wake_all(&self) {
        for service in self.services() {
            wake(&service.run.room);
        }
    }

    /// Health of peers, and those that wait. To be called several times a second.
    pub(crate) fn tick(&self) {
        let (now_us, times) = (self.now_us(), PeerTimes::default());
        for link in self.links() {
            link.tick(now_us, &times);
        }
        for service in self.services() {
            if Self::waiting(&service) > 0 && self.has_pod(&service, &[]) {
                wake(&service.run.room);
            }
        }
    }

    /// Answers that nobody reads.
    pub(crate) fn sweep(&self) {
        let unread = body::sweep(&self.answers, self.limits.body_timeout);
        self.counts
            .unread
            .fetch_add(unread as u64, Ordering::Relaxed);
    }

    /// New weights by what was measured. To be called once a second or two.
    pub(crate) fn learn(&self) {
        let mut learned = self.learned.lock();
        for link in self.links() {
            if let Some(ms) = link.take_round_trip_ms() {
                learned
                    .round_trips
                    .measured(HERE, link.node, ms, &self.settings);
            }
        }
        learned.round_trips.settle();
        for service in self.services() {
            let mut nodes: Vec<Node> = service.pods.iter().map(|pod| pod.node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            let choice = &mut *service.run.choice.lock();
            let prior_ms = self.settings.prior_serving_ms;
            let samples: Vec<(Node, f64, f64)> = std::mem::take(&mut choice.samples)
                .into_iter()
                .map(|(node, (sum, count))| (node, sum / count, count))
                .collect();
            choice.serving.measured(&samples, prior_ms, &self.settings);
            let response = Response {
                round_trips: &learned.round_trips,
                serving: &choice.serving,
                prior_ms,
                settings: &self.settings,
            };
            choice.weights = placement::weights(&response, HERE, &nodes);
            choice.balancer.keep(|node| nodes.contains(&node));
        }
    }

    pub(crate) fn count_failure(&self, kind: Kind) {
        if let Some(at) = Kind::ALL.iter().position(|k| *k == kind) {
            self.counts.failures[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The own node: it has the first number, which it never gives back.
const HERE: Node = Node(0);

/// All who wait look again, in their order.
fn wake(room: &Mutex<Line<oneshot::Sender<()>>>) {
    let waiting = room.lock().drain();
    for waits in waiting {
        let _ = waits.send(());
    }
}
