//! Where pods are wanted, by policy.

use std::collections::BTreeMap;

use placement::{Cluster, Node, Pods, Resources, Room, ServiceView, decide};

use crate::Policy;
use crate::engine::World;

/// The most pods of a node and a service that the seed's code has, for nodes without a number of
/// their own.
const SEED_MAX_PER_NODE: u32 = 10;
/// The oracle plans with this part of a pod's time.
const ORACLE_UTILIZATION: f64 = 0.5;

/// Decides about one service and writes what is wanted into its pools.
pub(crate) fn place(world: &mut World<'_>, service: usize, room: &mut Room) -> u64 {
    let (wanted, steps) = match world.policy {
        Policy::Even | Policy::Nearest | Policy::LeastRequest => (spread(world, service, room), 0),
        Policy::Seed => (seed(world, service), 0),
        Policy::Ours => ours(world, service, room),
        Policy::Oracle => (oracle(world, service, room), 0),
    };
    let of = &mut world.services[service];
    for (node, pool) in &mut of.pools {
        pool.wanted = wanted.get(node).copied().unwrap_or(0);
    }
    for (node, count) in wanted {
        of.pools.entry(node).or_default().wanted = count;
    }
    steps
}

fn current(world: &World<'_>, service: usize) -> BTreeMap<u32, u32> {
    world.services[service]
        .pools
        .iter()
        .filter(|(_, pool)| pool.wanted > 0)
        .map(|(node, pool)| (*node, pool.wanted))
        .collect()
}

/// Requests a second by node.
fn rates(world: &World<'_>, service: usize) -> Vec<(Node, f64)> {
    let entries = world.services[service].entries.iter();
    entries
        .map(|entered| (entered.node, entered.requests / entered.over_s))
        .collect()
}

/// Pods' worth of a rate of requests, as everybody estimates it.
fn pods_for(world: &World<'_>, service: usize, rate: f64) -> f64 {
    let of = &world.services[service];
    let ms = of.memory.serving.mean_ms().unwrap_or(world.prior_ms);
    let settings = &world.scenario.placement;
    let concurrency = f64::from(world.scenario.service[of.group].concurrency);
    rate * ms.max(settings.floor_ms) / 1000.0 / (concurrency * settings.target_utilization)
}

/// As many pods as ours would want by traffic alone, on the nodes with the fewest: a Deployment
/// with an autoscaler.
fn spread(world: &mut World<'_>, service: usize, room: &mut Room) -> BTreeMap<u32, u32> {
    let mut wanted = current(world, service);
    wanted.retain(|node, _| world.node_up(*node));
    let rate: f64 = rates(world, service).iter().map(|(_, r)| r).sum();
    let demand = pods_for(world, service, rate);
    let settings = &world.scenario.placement;
    let group = &world.scenario.service[world.services[service].group];
    let most = group.max_pods.unwrap_or(u32::MAX);
    let least = group.min_pods.max(u32::from(rate > 0.0));
    let total: u32 = wanted.values().sum();
    let up = (demand / settings.up_factor).ceil() as u32;
    let goal = up.max(least).min(most);
    let request = world.services[service].request;
    if goal > total {
        world.services[service].spare_rounds = 0;
        for _ in total..goal {
            let node = (0..world.nodes.len() as u32)
                .filter(|n| world.node_up(*n) && room.fits(Node(*n), &request))
                .min_by_key(|n| {
                    let free = room.left(Node(*n)).cpu_millis;
                    (wanted.get(n).copied().unwrap_or(0), u64::MAX - free, *n)
                });
            let Some(node) = node else { break };
            room.take(Node(node), &request);
            *wanted.entry(node).or_default() += 1;
        }
        return wanted;
    }
    let keep = ((demand * settings.down_factor).ceil() as u32).max(least);
    if keep >= total {
        world.services[service].spare_rounds = 0;
        return wanted;
    }
    world.services[service].spare_rounds += 1;
    if world.services[service].spare_rounds > settings.down_rounds {
        for _ in keep..total {
            let fullest = wanted.iter().max_by_key(|(n, count)| (**count, **n));
            let Some((&node, _)) = fullest else { break };
            if let Some(count) = wanted.get_mut(&node) {
                *count -= 1;
            }
            wanted.retain(|_, count| *count > 0);
        }
        world.services[service].spare_rounds = 0;
    }
    wanted
}

/// The seed's rule, with its defects: each node's traffic asks for its own pods; +1 goes to the
/// least R while the *asking* node is below its maximum, whatever has room; -1 takes one of the
/// asking node, or none.
fn seed(world: &mut World<'_>, service: usize) -> BTreeMap<u32, u32> {
    let mut wanted = current(world, service);
    let rates = rates(world, service);
    let mut asked: BTreeMap<u32, u32> = BTreeMap::new();
    for (node, rate) in &rates {
        let pods = pods_for(world, service, *rate).ceil() as u32;
        if pods > 0 {
            asked.insert(node.0, pods);
        }
    }
    let before = std::mem::take(&mut world.services[service].seed_wanted);
    let askers: std::collections::BTreeSet<u32> =
        asked.keys().chain(before.keys()).copied().collect();
    for node in askers {
        let now = asked.get(&node).copied().unwrap_or(0);
        let then = before.get(&node).copied().unwrap_or(0);
        for _ in then..now {
            if wanted.get(&node).copied().unwrap_or(0) >= SEED_MAX_PER_NODE {
                break;
            }
            let response = world.response(service);
            let nearest = (0..world.nodes.len() as u32)
                .filter_map(|to| Some((response.ms(Node(node), Node(to))?, to)))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((_, to)) = nearest {
                *wanted.entry(to).or_default() += 1;
            }
        }
        for _ in now..then {
            if let Some(count) = wanted.get_mut(&node) {
                *count = count.saturating_sub(1);
            }
        }
    }
    world.services[service].seed_wanted = asked;
    wanted.retain(|_, count| *count > 0);
    wanted
}

fn ours(world: &mut World<'_>, service: usize, room: &mut Room) -> (BTreeMap<u32, u32>, u64) {
    let group = &world.scenario.service[world.services[service].group];
    let of = &mut world.services[service];
    let pods: Vec<(Node, Pods)> = of
        .pools
        .iter()
        .map(|(node, pool)| {
            (
                Node(*node),
                Pods {
                    wanted: pool.wanted,
                    ready: pool.ready,
                },
            )
        })
        .collect();
    let decision = decide(
        &Cluster {
            round_trips: &world.round_trips,
            prior_ms: world.prior_ms,
            settings: &world.scenario.placement,
        },
        &ServiceView {
            entries: &of.entries,
            round_s: world.scenario.round_s,
            pods: &pods,
            concurrency: f64::from(group.concurrency),
            request: of.request,
            allowed: &world.allowed,
            lost: &world.lost,
            image_on: &[],
            blocked: &[],
            max_per_node: None,
            min_pods: group.min_pods,
            max_pods: group.max_pods,
        },
        &mut of.memory,
        room,
    );
    let wanted = decision.wanted.iter().map(|(n, c)| (n.0, *c)).collect();
    (wanted, decision.steps)
}

/// As many pods as there is any use for, nearest to the traffic that will come.
fn oracle(world: &mut World<'_>, service: usize, room: &mut Room) -> BTreeMap<u32, u32> {
    let of = &world.services[service];
    let group = &world.scenario.service[of.group];
    let now_s = world.now_s();
    let ahead_s = world.scenario.round_s;
    // It decides anew each round: what it has now is free to it.
    let mut own: BTreeMap<u32, u32> = of.pools.iter().map(|(n, p)| (*n, p.created())).collect();
    let mut by_node: BTreeMap<u32, f64> = BTreeMap::new();
    for rate in &of.truth {
        if rate.from_s <= now_s + ahead_s && now_s < rate.until_s {
            *by_node.entry(rate.node).or_default() += rate.rate;
        }
    }
    let mut wanted: BTreeMap<u32, u32> = BTreeMap::new();
    let most = group.max_pods.unwrap_or(u32::MAX);
    let request: Resources = of.request;
    for (entry, rate) in by_node {
        let mut nodes: Vec<(f64, u32)> = (0..world.nodes.len() as u32)
            .filter(|node| world.reachable(entry, *node))
            .map(|node| {
                let (way_ms, _) = world.true_link(entry, node);
                (way_ms + world.true_serving_ms(service, node), node)
            })
            .collect();
        nodes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut left = rate;
        for (_, node) in nodes {
            let a_pod = f64::from(group.concurrency) * ORACLE_UTILIZATION * 1000.0
                / world.true_serving_ms(service, node);
            while left > 0.0 && wanted.values().sum::<u32>() < most {
                let had = own.get(&node).copied().unwrap_or(0);
                if had > 0 {
                    own.insert(node, had - 1);
                } else if !room.take(Node(node), &request) {
                    break;
                }
                *wanted.entry(node).or_default() += 1;
                left -= a_pod;
            }
        }
    }
    wanted
}
