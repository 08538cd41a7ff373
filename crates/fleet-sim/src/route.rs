//! Which node a request goes to, by policy.

use placement::{Node, Response, Target, choose, weights};
use rand::Rng as _;

use crate::Policy;
use crate::engine::World;

/// The node for a request that entered at `entry`; `None` while no pod can be reached.
pub(crate) fn route(world: &mut World<'_>, service: usize, entry: u32) -> Option<u32> {
    match world.policy {
        Policy::Even => even(world, service),
        Policy::Nearest => nearest(world, service, entry),
        Policy::LeastRequest => least_request(world, service),
        Policy::Seed => by_weight(world, service, entry),
        Policy::Ours => ours(world, service, entry),
        Policy::Oracle => oracle(world, service, entry),
    }
}

/// The node of the pod at `turn` of all ready pods.
fn pod_at(world: &World<'_>, service: usize, turn: u64) -> Option<u32> {
    let service = &world.services[service];
    let all: u64 = service.ready().map(|(_, pool)| u64::from(pool.ready)).sum();
    let mut left = turn.checked_rem(all)?;
    for (node, pool) in service.ready() {
        match left.checked_sub(u64::from(pool.ready)) {
            Some(rest) => left = rest,
            None => return Some(node),
        }
    }
    None
}

fn even(world: &mut World<'_>, service: usize) -> Option<u32> {
    world.services[service].turn += 1;
    pod_at(world, service, world.services[service].turn)
}

fn nearest(world: &World<'_>, service: usize, entry: u32) -> Option<u32> {
    world.services[service]
        .ready()
        .filter_map(|(node, _)| {
            let ms = world
                .round_trips
                .ms(Node(entry), Node(node), &world.scenario.placement)?;
            Some((ms, node))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, node)| node)
}

fn least_request(world: &mut World<'_>, service: usize) -> Option<u32> {
    let (a, b) = (world.route_rng.random(), world.route_rng.random());
    let (a, b) = (pod_at(world, service, a)?, pod_at(world, service, b)?);
    let load = |node: u32| {
        world.services[service]
            .pools
            .get(&node)
            .map_or(0.0, |pool| {
                f64::from(pool.in_flight) / f64::from(pool.ready.max(1))
            })
    };
    Some(if load(b) < load(a) { b } else { a })
}

fn by_weight(world: &mut World<'_>, service: usize, entry: u32) -> Option<u32> {
    let ready: Vec<Node> = world.services[service]
        .ready()
        .map(|(n, _)| Node(n))
        .collect();
    if ready.is_empty() {
        return None;
    }
    let response = Response {
        round_trips: &world.round_trips,
        serving: &world.services[service].memory.serving,
        prior_ms: world.prior_ms,
        settings: &world.scenario.placement,
    };
    let weights = weights(&response, Node(entry), &ready);
    let mut draw = world.route_rng.random_range(0.0..100.0);
    for (node, weight) in &weights {
        if draw < *weight {
            return Some(node.0);
        }
        draw -= weight;
    }
    weights.last().map(|(node, _)| node.0)
}

fn ours(world: &World<'_>, service: usize, entry: u32) -> Option<u32> {
    let of = &world.services[service];
    let concurrency = f64::from(world.scenario.service[of.group].concurrency);
    let targets: Vec<Target> = of
        .ready()
        .filter_map(|(node, pool)| {
            let own = pool.in_flight_from.get(&entry).copied().unwrap_or(0);
            Some(Target {
                node: Node(node),
                round_trip_ms: world.round_trips.ms(
                    Node(entry),
                    Node(node),
                    &world.scenario.placement,
                )?,
                serving_ms: world.busy_ms(service, node),
                slots: f64::from(pool.ready) * concurrency,
                // What others have there is known as of the last report.
                in_flight: f64::from(own.max(pool.reported)),
            })
        })
        .collect();
    choose(&targets).map(|node| node.0)
}

fn oracle(world: &World<'_>, service: usize, entry: u32) -> Option<u32> {
    let of = &world.services[service];
    let group = &world.scenario.service[of.group];
    of.ready()
        .filter(|(node, _)| world.reachable(entry, *node))
        .map(|(node, pool)| {
            let (round_trip_ms, _) = world.true_link(entry, node);
            let slots = f64::from(pool.ready) * f64::from(group.concurrency);
            let turns = (f64::from(pool.in_flight + 1) / slots).max(1.0);
            (
                round_trip_ms + world.true_serving_ms(service, node) * turns,
                node,
            )
        })
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, node)| node)
}
