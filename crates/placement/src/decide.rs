//! The decision: where a pod is added, and which one goes.

mod wishes;

use std::collections::{BTreeMap, VecDeque};

use crate::assign::{Assignment, EPSILON, Table, assign};
use crate::demand::{Arrivals, Demand, Load};
use crate::response::Unqueued;
use crate::view::{Cluster, Move, Reason, ServiceView};
use crate::{Node, Room, ServingTimes, Settings};

use wishes::Kind;

/// Moves that are remembered of a service, for those who ask why.
const REMEMBERED_MOVES: usize = 16;
/// Nodes from which a pod may go that one round looks at.
const DOWN_CANDIDATES: usize = 16;

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
    /// Arrivals of each node over more than a window.
    arrivals: Arrivals,
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
    response: Unqueued<'a>,
    table: Table,
    settings: &'a Settings,
    room: &'a mut Room,
    counts: BTreeMap<Node, u32>,
    moves: Vec<Move>,
    steps: u64,
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
    memory.arrivals.counted(
        service.entries,
        service.round_s,
        settings.noise_factor + 1.0,
    );
    let mut round = Round {
        service,
        response: Unqueued::new(
            cluster.round_trips,
            memory.serving.unqueued(cluster.prior_ms, settings),
            settings,
        ),
        table: Table::default(),
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
    let serving_ms = memory.serving.unqueued_mean_ms(settings);
    let serving_ms = serving_ms.unwrap_or(cluster.prior_ms);
    // A pod never counts for less than what one request in a floor's time occupies.
    let serving_s = serving_ms.max(settings.floor_ms) / 1000.0;
    let a_pod = service.concurrency.max(f64::MIN_POSITIVE) * settings.target_utilization;
    let demand = Demand::new(&memory.arrivals, serving_s / a_pod, settings);
    let no_room = round.add(&demand);
    let added = round.moves.iter().any(|m| m.add);
    if added {
        (memory.spare_rounds, memory.spare) = (0, 0);
    } else {
        let (spare, going) = round.spare(&demand, memory.round);
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

    fn assign(&mut self, sources: &[Load]) -> Assignment {
        let pods: Vec<(Node, u32)> = self.counts.iter().map(|(n, c)| (*n, *c)).collect();
        assign(
            &mut self.table,
            &self.response,
            sources,
            &pods,
            &mut self.steps,
        )
    }

    fn takes_one_more(&self, node: Node) -> bool {
        let index = node.index();
        let here = || self.counts.get(&node).copied().unwrap_or(0);
        self.service.allowed.get(index).copied().unwrap_or(false)
            && !self.service.lost.get(index).copied().unwrap_or(true)
            && self.service.max_per_node.is_none_or(|most| here() < most)
            && !self.service.blocked.contains(&node)
            && self.room.fits(node, &self.service.request)
    }

    fn open_nodes(&self) -> Vec<Node> {
        (0..self.service.allowed.len())
            .map(|index| Node(index as u32))
            .filter(|node| self.takes_one_more(*node))
            .collect()
    }

    /// Adds pods while traffic wishes for them. Returns what found no room.
    fn add(&mut self, demand: &Demand) -> Vec<Load> {
        let sources = &demand.counted;
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
            let (mut wish, without_room) =
                self.wishes(&demand.at_least_together, &open, Kind::Unserved);
            no_room = without_room;
            if wish.is_none() {
                (wish, _) = self.wishes(&demand.at_least, &open, Kind::Nearer);
            }
            let Some(wish) = wish else { break };
            let Some((node, response_ms)) = wish.to else {
                break;
            };
            let traffic_of = wish.traffic_of;
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
                let by = if wish.unserved {
                    sources
                } else {
                    &demand.at_least
                };
                if !self.swap(by, node, reason) {
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
    fn swap(&mut self, sources: &[Load], to: Node, reason: Reason) -> bool {
        // A cost divided by the demand is a mean response time.
        let demand: f64 = sources.iter().map(|(_, demand)| demand).sum();
        let before = self.assign(sources).cost();
        let mut best: Option<(Node, f64)> = None;
        for from in self.down_candidates(sources, 0) {
            if from == to {
                continue;
            }
            let cost = self.with(to, 1, |round| {
                round.with(from, -1, |round| round.assign(sources).cost())
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
    fn down_candidates(&mut self, sources: &[Load], round: u64) -> Vec<Node> {
        let now = self.assign(sources);
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

    fn least_missed(&mut self, sources: &[Load]) -> Option<Node> {
        let mut best: Option<(Node, f64)> = None;
        for node in self.down_candidates(sources, 0) {
            let cost = self.with(node, -1, |round| round.assign(sources).cost());
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((node, cost));
            }
        }
        best.map(|(node, _)| node)
    }

    /// How many pods could go, and from where: those without which, at the most that demand may
    /// be, no traffic would wish for one.
    fn spare(&mut self, demand: &Demand, round: u64) -> (u32, Vec<Node>) {
        let sources = &demand.counted;
        let mut going = Vec::new();
        // What wants nothing with room everywhere wants nothing with less.
        let mut everywhere = self.open_nodes();
        let before = self.counts.clone();
        while self.total() > self.service.min_pods
            && going.len() < self.settings.moves_a_round as usize
        {
            let with_it = self.assign(&demand.at_most).cost();
            let mut best: Option<(Node, f64)> = None;
            for node in self.down_candidates(sources, round) {
                let mut open = everywhere.clone();
                if !open.contains(&node) {
                    open.push(node);
                }
                let cost = self.with(node, -1, |round| {
                    // A pod that nobody uses may go, even while others are wanted elsewhere.
                    let used = round.assign(&demand.at_most).cost() > with_it + EPSILON;
                    let wanted = used && round.would_be_missed(demand, &open);
                    (!wanted).then(|| round.assign(sources).cost())
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
}
