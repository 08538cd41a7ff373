//! The decision: where a pod is added, and which one goes.

use std::collections::{BTreeMap, VecDeque};

use crate::assign::{Assignment, EPSILON, assign};
use crate::{Node, Resources, Response, Room, RoundTrips, ServingTimes, Settings};

/// Moves that are remembered of a service, for those who ask why.
const REMEMBERED_MOVES: usize = 16;
/// Nodes from which a pod may go that one round looks at.
const DOWN_CANDIDATES: usize = 16;
/// Requests a second below which a node has no traffic.
const NO_TRAFFIC: f64 = 1e-9;

/// What all services have in common in a round.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// L.
    pub round_trips: &'a RoundTrips,
    /// Mean serving time of all services in ms; stands for a service that has none yet.
    pub prior_ms: f64,
    /// Settings.
    pub settings: &'a Settings,
}

/// Pods of a service on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// That are wanted there: what the last decision said.
    pub wanted: u32,
    /// That are ready.
    pub ready: u32,
}

/// One service in a round.
#[derive(Clone, Debug)]
pub struct ServiceView<'a> {
    /// Requests a second that entered at each node, over the window.
    pub entries: &'a [(Node, f64)],
    /// Its pods. Nodes with none may be left out.
    pub pods: &'a [(Node, Pods)],
    /// Requests that a pod serves at once; above 0.
    pub concurrency: f64,
    /// What a pod asks for.
    pub request: Resources,
    /// By node: whether the template may run there. Nodes beyond the end may not.
    pub allowed: &'a [bool],
    /// By node: whether it is lost. Its pods are wanted elsewhere.
    pub lost: &'a [bool],
    /// By node: whether it holds the image.
    pub image_on: &'a [bool],
    /// Nodes that could not run what was wanted there: what is not ready is taken back, and they
    /// get nothing.
    pub blocked: &'a [Node],
    /// Most pods on a node.
    pub max_per_node: Option<u32>,
    /// Fewest pods in all.
    pub min_pods: u32,
    /// Most pods in all.
    pub max_pods: Option<u32>,
}

/// Why a pod was added, taken away or moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Traffic of a node had no pod with time for it.
    Unserved {
        /// Whose traffic.
        traffic_of: Node,
        /// R from there, in ms.
        response_ms: f64,
    },
    /// Traffic of a node was served much farther away.
    Nearer {
        /// Whose traffic.
        traffic_of: Node,
        /// R from there to the new pod, in ms.
        response_ms: f64,
    },
    /// The least number of pods.
    Minimum,
    /// The others bear the traffic.
    NotNeeded,
    /// More than the most that is allowed.
    Maximum,
    /// The node is lost.
    NodeLost,
    /// The node could not run it.
    NodeBlocked,
}

/// A change of the wanted number of pods of one node by one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// The node.
    pub node: Node,
    /// Whether a pod is added; else one is taken away.
    pub add: bool,
    /// Why.
    pub reason: Reason,
}

/// What a service's decisions remember from round to round.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Round in which it is now, counted by [`decide`].
    pub round: u64,
    /// P of this service.
    pub serving: ServingTimes,
    /// The last moves with their rounds, oldest first.
    pub last_moves: VecDeque<(u64, Move)>,
    /// Rounds in a row in which a pod could have gone.
    spare_rounds: u32,
    /// The fewest that could have gone in each of them.
    spare: u32,
}

/// What is wanted now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Wanted pods by node, nodes with none left out.
    pub wanted: BTreeMap<Node, u32>,
    /// What changes, in order.
    pub moves: Vec<Move>,
    /// Nodes whose traffic wants pods for which there is no room anywhere, with its size in pods.
    pub no_room: Vec<(Node, f64)>,
    /// Values of R that were looked at: the cost of the decision.
    pub steps: u64,
}

struct Round<'a> {
    service: &'a ServiceView<'a>,
    response: Response<'a>,
    settings: &'a Settings,
    room: &'a mut Room,
    counts: BTreeMap<Node, u32>,
    moves: Vec<Move>,
    steps: u64,
}

/// A wish of a node's traffic.
struct Wish {
    source: usize,
    /// In pods.
    size: f64,
    to: Option<(Node, f64)>,
    unserved: bool,
}

/// Decides about one service. `room` is what is left by those decided before it, and shrinks by
/// what is added here; room of pods that go is free in the next round, when they are gone.
///
/// It has no clock and no I/O: the same arguments give the same decision.
pub fn decide(
    cluster: &Cluster<'_>,
    service: &ServiceView<'_>,
    memory: &mut Memory,
    room: &mut Room,
) -> Decision {
    memory.round += 1;
    let settings = cluster.settings;
    let mut round = Round {
        service,
        response: Response {
            round_trips: cluster.round_trips,
            serving: &memory.serving,
            prior_ms: cluster.prior_ms,
            settings,
        },
        settings,
        room,
        counts: service
            .pods
            .iter()
            .filter(|(_, pods)| pods.wanted > 0)
            .map(|(node, pods)| (*node, pods.wanted))
            .collect(),
        moves: Vec::new(),
        steps: 0,
    };
    round.withdraw();
    let sources = round.demand();
    let no_room = round.add(&sources);
    let added = round.moves.iter().any(|m| m.add);
    if added {
        (memory.spare_rounds, memory.spare) = (0, 0);
    } else {
        let (spare, going) = round.spare(&sources, memory.round);
        if spare == 0 {
            (memory.spare_rounds, memory.spare) = (0, 0);
        } else {
            memory.spare = if memory.spare_rounds == 0 {
                spare
            } else {
                memory.spare.min(spare)
            };
            memory.spare_rounds += 1;
        }
        if memory.spare_rounds > settings.down_rounds {
            for node in going.into_iter().take(memory.spare as usize) {
                round.change(node, false, Reason::NotNeeded);
            }
            (memory.spare_rounds, memory.spare) = (0, 0);
        }
    }
    let Round {
        counts,
        moves,
        steps,
        ..
    } = round;
    for m in &moves {
        if memory.last_moves.len() == REMEMBERED_MOVES {
            memory.last_moves.pop_front();
        }
        memory.last_moves.push_back((memory.round, *m));
    }
    Decision {
        wanted: counts,
        moves,
        no_room,
        steps,
    }
}

impl Round<'_> {
    fn change(&mut self, node: Node, add: bool, reason: Reason) {
        let count = self.counts.entry(node).or_default();
        *count = if add {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            self.counts.remove(&node);
        }
        self.moves.push(Move { node, add, reason });
    }

    fn total(&self) -> u32 {
        self.counts.values().sum()
    }

    /// Takes back what cannot be: pods on lost nodes, and what blocked nodes could not run.
    fn withdraw(&mut self) {
        for (node, pods) in self.service.pods {
            let (keep, reason) = if self.service.lost.get(node.index()).copied().unwrap_or(true) {
                (0, Reason::NodeLost)
            } else if self.service.blocked.contains(node) {
                (pods.ready.min(pods.wanted), Reason::NodeBlocked)
            } else {
                continue;
            };
            for _ in keep..pods.wanted {
                self.change(*node, false, reason);
            }
        }
    }

    /// Demand by node in pods, greatest first.
    fn demand(&self) -> Vec<(Node, f64)> {
        let serving_ms = self
            .response
            .serving
            .mean_ms()
            .unwrap_or(self.response.prior_ms);
        // A pod never counts for less than what one request in a floor's time occupies.
        let serving_s = serving_ms.max(self.settings.floor_ms) / 1000.0;
        let a_pod =
            self.service.concurrency.max(f64::MIN_POSITIVE) * self.settings.target_utilization;
        let mut sources: Vec<(Node, f64)> = self
            .service
            .entries
            .iter()
            .filter(|(_, rate)| rate.is_finite() && *rate > NO_TRAFFIC)
            .map(|(node, rate)| (*node, rate * serving_s / a_pod))
            .collect();
        sources.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        sources
    }

    fn assign(&mut self, sources: &[(Node, f64)], factor: f64) -> Assignment {
        let scaled: Vec<(Node, f64)> = sources.iter().map(|(n, d)| (*n, d * factor)).collect();
        let pods: Vec<(Node, u32)> = self.counts.iter().map(|(n, c)| (*n, *c)).collect();
        assign(&self.response, &scaled, &pods, &mut self.steps)
    }

    fn takes_one_more(&self, node: Node) -> bool {
        let index = node.index();
        let here = self.counts.get(&node).copied().unwrap_or(0);
        self.service.allowed.get(index).copied().unwrap_or(false)
            && !self.service.lost.get(index).copied().unwrap_or(true)
            && self.service.max_per_node.is_none_or(|most| here < most)
            && !self.service.blocked.contains(&node)
            && self.room.fits(node, &self.service.request)
    }

    /// `argmin_j R[from][j]` over nodes with room. Of those in a near tie, one with the image
    /// wins.
    fn nearest_with_room(&mut self, from: Node, open: &[Node]) -> Option<(Node, f64)> {
        self.steps += open.len() as u64;
        let mut best: Option<(Node, f64)> = None;
        let mut with_image: Option<(Node, f64)> = None;
        for &node in open {
            let Some(ms) = self.response.ms(from, node) else {
                continue;
            };
            // A node itself wins over equals; else the lowest number does.
            let nearer = |other: Option<(Node, f64)>| {
                other.is_none_or(|(_, least)| ms < least || (ms == least && node == from))
            };
            let image = self.service.image_on.get(node.index()).copied() == Some(true);
            if nearer(best) {
                best = Some((node, ms));
            }
            if image && nearer(with_image) {
                with_image = Some((node, ms));
            }
        }
        let (_, least) = best?;
        with_image
            .filter(|(_, ms)| *ms <= least * (1.0 + self.settings.near_tie_ratio))
            .or(best)
    }

    /// What traffic wishes for, greatest wish first, and what nobody can fulfil.
    fn wishes(
        &mut self,
        sources: &[(Node, f64)],
        factor: f64,
        open: &[Node],
    ) -> (Option<Wish>, Vec<(Node, f64)>) {
        let now = self.assign(sources, factor);
        let mut far: Vec<Vec<(f64, f64)>> = vec![Vec::new(); sources.len()];
        for flow in &now.flows {
            far[flow.source].push((flow.ms, flow.amount));
        }
        let mut greatest: Option<Wish> = None;
        let mut no_room = Vec::new();
        // Without pods, the whole demand may be too small to be seen, and one is needed all the
        // same; and scraps of sources are one wish together.
        for (source, (from, _)) in sources.iter().enumerate() {
            let unserved = now.unserved[source];
            let farthest = far[source].iter().map(|(ms, _)| *ms).fold(0.0, f64::max);
            let served_near =
                unserved <= EPSILON && !self.settings.much_nearer(self.settings.floor_ms, farthest);
            if served_near {
                continue;
            }
            let to = self.nearest_with_room(*from, open);
            let much_farther: f64 = match to {
                Some((_, ms)) => far[source]
                    .iter()
                    .filter(|(now_ms, _)| self.settings.much_nearer(ms, *now_ms))
                    .map(|(_, amount)| amount)
                    .sum(),
                None => 0.0,
            };
            let is_unserved = unserved > EPSILON || (self.counts.is_empty() && unserved > 0.0);
            if is_unserved && to.is_none() {
                no_room.push((*from, unserved));
                continue;
            }
            let size = unserved + much_farther;
            if !is_unserved && much_farther < self.settings.near_demand {
                continue;
            }
            let first = greatest
                .as_ref()
                .is_none_or(|wish| (is_unserved, size) > (wish.unserved, wish.size));
            if first {
                greatest = Some(Wish {
                    source,
                    size,
                    to,
                    unserved: is_unserved,
                });
            }
        }
        (greatest, no_room)
    }

    fn open_nodes(&self) -> Vec<Node> {
        (0..self.service.allowed.len())
            .map(|index| Node(index as u32))
            .filter(|node| self.takes_one_more(*node))
            .collect()
    }

    /// Adds pods while traffic wishes for them. Returns what found no room.
    fn add(&mut self, sources: &[(Node, f64)]) -> Vec<(Node, f64)> {
        let mut open = self.open_nodes();
        let mut no_room = Vec::new();
        let most = self.service.max_pods.unwrap_or(u32::MAX);
        while self.total() > most {
            let Some(node) = self.least_missed(sources) else {
                break;
            };
            self.change(node, false, Reason::Maximum);
        }
        for _ in 0..self.settings.moves_a_round {
            let (wish, without_room) = self.wishes(sources, 1.0 / self.settings.up_factor, &open);
            no_room = without_room;
            let Some(wish) = wish else { break };
            let Some((node, response_ms)) = wish.to else {
                break;
            };
            let traffic_of = sources[wish.source].0;
            let reason = if wish.unserved {
                Reason::Unserved {
                    traffic_of,
                    response_ms,
                }
            } else {
                Reason::Nearer {
                    traffic_of,
                    response_ms,
                }
            };
            if self.total() >= most {
                if !self.swap(sources, node, reason) {
                    if wish.unserved {
                        no_room.push((traffic_of, wish.size));
                    }
                    break;
                }
            } else if self.room.take(node, &self.service.request) {
                self.change(node, true, reason);
            }
            open.retain(|node| self.takes_one_more(*node));
        }
        while self.total() < self.service.min_pods.min(most) {
            let near = sources.first().map(|(node, _)| *node);
            let node = near
                .and_then(|from| self.nearest_with_room(from, &open).map(|(node, _)| node))
                .or_else(|| open.first().copied());
            let Some(node) = node else { break };
            if self.room.take(node, &self.service.request) {
                self.change(node, true, Reason::Minimum);
            }
            open.retain(|node| self.takes_one_more(*node));
        }
        no_room
    }

    /// Moves a pod to `to` from where it is missed least, if that makes the whole clearly cheaper.
    fn swap(&mut self, sources: &[(Node, f64)], to: Node, reason: Reason) -> bool {
        // A cost divided by the demand is a mean response time.
        let demand: f64 = sources.iter().map(|(_, demand)| demand).sum();
        let before = self.assign(sources, 1.0).cost();
        let mut best: Option<(Node, f64)> = None;
        for from in self.down_candidates(sources, 0) {
            if from == to {
                continue;
            }
            let cost = self.with(to, 1, |round| {
                round.with(from, -1, |round| round.assign(sources, 1.0).cost())
            });
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((from, cost));
            }
        }
        let Some((from, cost)) = best else {
            return false;
        };
        if !self.settings.much_nearer(cost / demand, before / demand)
            || !self.room.take(to, &self.service.request)
        {
            return false;
        }
        self.change(to, true, reason);
        self.change(from, false, Reason::Maximum);
        true
    }

    /// Calls `look` as if `node` had `by` pods more.
    fn with<T>(&mut self, node: Node, by: i32, look: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.counts.get(&node).copied().unwrap_or(0);
        let changed = before.saturating_add_signed(by);
        if changed == 0 {
            self.counts.remove(&node);
        } else {
            self.counts.insert(node, changed);
        }
        let seen = look(self);
        if before == 0 {
            self.counts.remove(&node);
        } else {
            self.counts.insert(node, before);
        }
        seen
    }

    /// Nodes from which a pod may go, those with the least work for their last pod first. When
    /// there are many, each round looks at others.
    fn down_candidates(&mut self, sources: &[(Node, f64)], round: u64) -> Vec<Node> {
        let now = self.assign(sources, 1.0);
        let mut nodes: Vec<(f64, Node)> = self
            .counts
            .iter()
            .zip(&now.used)
            .map(|((node, count), used)| ((used - f64::from(*count - 1)).max(0.0), *node))
            .collect();
        nodes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        if nodes.len() > DOWN_CANDIDATES {
            let idle = nodes
                .iter()
                .take_while(|(work, _)| *work <= EPSILON)
                .count();
            let keep = idle.min(DOWN_CANDIDATES / 2);
            let rest = nodes.len() - keep;
            nodes[keep..].rotate_left((round as usize * DOWN_CANDIDATES) % rest);
            nodes.truncate(DOWN_CANDIDATES);
        }
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    fn least_missed(&mut self, sources: &[(Node, f64)]) -> Option<Node> {
        let mut best: Option<(Node, f64)> = None;
        for node in self.down_candidates(sources, 0) {
            let cost = self.with(node, -1, |round| round.assign(sources, 1.0).cost());
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((node, cost));
            }
        }
        best.map(|(node, _)| node)
    }

    /// How many pods could go, and from where: those without which, at a demand that is greater by
    /// the down factor, no traffic would wish for one.
    fn spare(&mut self, sources: &[(Node, f64)], round: u64) -> (u32, Vec<Node>) {
        let mut going = Vec::new();
        let factor = self.settings.down_factor;
        // What wants nothing with room everywhere wants nothing with less.
        let mut everywhere = self.open_nodes();
        let before = self.counts.clone();
        while self.total() > self.service.min_pods
            && going.len() < self.settings.moves_a_round as usize
        {
            let with_it = self.assign(sources, factor).cost();
            let mut best: Option<(Node, f64)> = None;
            for node in self.down_candidates(sources, round) {
                let mut open = everywhere.clone();
                if !open.contains(&node) {
                    open.push(node);
                }
                let cost = self.with(node, -1, |round| {
                    // A pod that nobody uses may go, even while others are wanted elsewhere.
                    let used = round.assign(sources, factor).cost() > with_it + EPSILON;
                    let wanted = used && round.unserved_or_far(sources, factor, &open);
                    (!wanted).then(|| round.assign(sources, 1.0).cost())
                });
                if let Some(cost) = cost
                    && best.is_none_or(|(_, least)| cost < least)
                {
                    best = Some((node, cost));
                }
            }
            let Some((node, _)) = best else { break };
            going.push(node);
            if !everywhere.contains(&node) {
                everywhere.push(node);
            }
            match self.counts.get_mut(&node) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    self.counts.remove(&node);
                }
            }
        }
        self.counts = before;
        (going.len() as u32, going)
    }

    fn unserved_or_far(&mut self, sources: &[(Node, f64)], factor: f64, open: &[Node]) -> bool {
        let (wish, no_room) = self.wishes(sources, factor, open);
        wish.is_some() || !no_room.is_empty()
    }
}
