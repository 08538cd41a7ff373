//! The pure core: when probes are sent, what becomes of them, whom an agent measures.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use node_latency::NodeName;
use node_latency::packet::Nonce;
use node_latency::prober::{Answer, Prober, Settings};
use node_latency::targets::{FULL_MESH, TURN_US, Target, choose, estimates};
use proptest::prelude::*;

const S: u64 = 1_000_000;

fn target(n: usize, zone: Option<&str>) -> Target {
    Target {
        node: format!("node-{n}").into(),
        address: SocketAddr::from(([10, 0, (n / 256) as u8, n as u8], 9478)),
        zone: zone.map(NodeName::from),
    }
}

fn counter() -> impl FnMut() -> Nonce {
    let mut n = 0_u128;
    move || {
        n += 1;
        n.to_be_bytes()
    }
}

/// Runs a prober for some time; each probe is answered after what `answer` says, if at all.
fn run(
    prober: &mut Prober,
    from_us: u64,
    until_us: u64,
    nonces: &mut impl FnMut() -> Nonce,
    mut answer: impl FnMut(SocketAddr) -> Option<u64>,
) -> Vec<(u64, SocketAddr)> {
    let mut sent = Vec::new();
    let mut answers: BTreeMap<(u64, Nonce), ()> = BTreeMap::new();
    let mut now = from_us;
    while now < until_us {
        let coming: Vec<_> = answers
            .range(..=(now, Nonce::from([255; 16])))
            .map(|(k, ())| *k)
            .collect();
        for (at, nonce) in coming {
            answers.remove(&(at, nonce));
            prober.answered(&nonce, at);
        }
        prober.expire(now);
        for probe in prober.due(now, &mut *nonces) {
            sent.push((now, probe.to));
            if let Some(after) = answer(probe.to) {
                answers.insert((now + after, probe.nonce), ());
            }
        }
        let next = prober.next_us().unwrap_or(until_us);
        let next = answers.keys().next().map_or(next, |(at, _)| next.min(*at));
        now = next.max(now + 1);
    }
    sent
}

#[test]
fn probes_of_a_peer_are_spread_over_the_period_and_peers_over_each_other() {
    let mut prober = Prober::new(Settings::default());
    let targets: Vec<Target> = (0..100).map(|n| target(n, None)).collect();
    prober.set_targets(&targets, 0);
    let sent = run(&mut prober, 0, 50 * S, &mut counter(), |_| Some(1_000));
    assert!((2_900..=3_100).contains(&sent.len()), "{}", sent.len());
    let mut by_peer: BTreeMap<SocketAddr, Vec<u64>> = BTreeMap::new();
    let mut by_step: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, to) in sent {
        by_peer.entry(to).or_default().push(at);
        *by_step.entry(at / 100_000).or_default() += 1;
    }
    for times in by_peer.values() {
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!((1_600_000..=1_700_000).contains(&gap), "{gap}");
        }
    }
    // 6 in 100 ms on average.
    assert!(by_step.values().all(|count| *count < 24), "{by_step:?}");
}

#[test]
fn a_clock_that_jumps_brings_no_burst_and_no_wrong_time() {
    let mut prober = Prober::new(Settings::default());
    let targets: Vec<Target> = (0..10).map(|n| target(n, None)).collect();
    prober.set_targets(&targets, 0);
    let mut nonces = counter();
    run(&mut prober, 0, 10 * S, &mut nonces, |_| Some(2_000));
    // The machine slept for an hour: at most one probe of each.
    let woke = 3_610 * S;
    prober.expire(woke);
    let probes = prober.due(woke, &mut nonces);
    assert!(probes.len() <= 10, "{}", probes.len());
    for probe in probes {
        // An answer that seems older than its question has no negative time.
        assert_eq!(prober.answered(&probe.nonce, woke - 5), Answer::Counted);
    }
    for view in prober.views(woke) {
        assert!(view.stats.now_ms.is_none_or(|ms| (0.0..=2.0).contains(&ms)));
    }
}

#[test]
fn a_dead_peer_is_an_absent_value_and_a_counter() {
    let mut prober = Prober::new(Settings::default());
    prober.set_targets(&[target(0, None), target(1, None)], 0);
    let dead = target(1, None).address;
    run(&mut prober, 0, 30 * S, &mut counter(), |to| {
        (to != dead).then_some(3_000)
    });
    let views = prober.views(30 * S);
    assert_eq!(views[0].stats.now_ms, Some(3.0));
    assert_eq!((views[0].stats.loss, views[0].lost), (Some(0.0), 0));
    assert_eq!(
        (views[1].stats.now_ms, views[1].stats.up),
        (None, Some(false))
    );
    assert_eq!((views[1].stats.loss, views[1].answered), (Some(1.0), 0));
    assert!(views[1].lost >= 15, "{}", views[1].lost);
    // Nobody waits for ever.
    assert!(prober.waiting() <= 4);
}

#[test]
fn answers_that_nobody_waits_for_count_for_nothing() {
    let mut prober = Prober::new(Settings::default());
    prober.set_targets(&[target(0, None)], 0);
    let probe = prober.due(5 * S, counter())[0];
    assert_eq!(prober.answered(&[9; 16], 5 * S), Answer::Stray);
    assert_eq!(prober.answered(&probe.nonce, 5 * S + 700), Answer::Counted);
    assert_eq!(prober.answered(&probe.nonce, 5 * S + 800), Answer::Stray);
    assert_eq!(prober.views(6 * S)[0].answered, 1);
    let late = prober.due(10 * S, || [7; 16])[0];
    prober.expire(13 * S);
    assert_eq!(prober.answered(&late.nonce, 13 * S), Answer::Stray);
    let view = &prober.views(13 * S)[0];
    assert_eq!((view.answered, view.lost), (1, 1));
}

#[test]
fn peers_come_and_go_and_one_with_another_address_begins_anew() {
    let mut prober = Prober::new(Settings::default());
    prober.set_targets(&[target(0, None), target(1, None)], 0);
    let mut nonces = counter();
    run(&mut prober, 0, 10 * S, &mut nonces, |_| Some(1_000));
    let mut moved = target(1, None);
    moved.address = SocketAddr::from(([10, 9, 9, 9], 9478));
    prober.set_targets(&[moved.clone(), target(2, None)], 10 * S);
    let views = prober.views(10 * S);
    let names: Vec<&str> = views.iter().map(|v| &*v.node).collect();
    assert_eq!(names, ["node-1", "node-2"]);
    assert_eq!(views[0].answered, 0);
    let sent = run(&mut prober, 10 * S, 20 * S, &mut nonces, |_| Some(1_000));
    let to: BTreeSet<SocketAddr> = sent.into_iter().map(|(_, to)| to).collect();
    assert_eq!(to, [moved.address, target(2, None).address].into());
    // The same again changes nothing.
    let before = prober.views(20 * S);
    prober.set_targets(&[target(2, None), moved], 20 * S);
    assert_eq!(prober.views(20 * S), before);
}

fn zoned(zones: usize, each: usize) -> Vec<Target> {
    (0..zones * each)
        .map(|n| target(n, Some(&format!("zone-{}", n % zones))))
        .collect()
}

#[test]
fn up_to_200_peers_all_are_measured_and_above_the_own_zone_and_some_of_each_other() {
    let nodes = zoned(5, 40);
    assert_eq!(choose("node-0", None, &nodes, 0).len(), 199);
    let nodes = zoned(5, 100);
    let own = NodeName::from("zone-0");
    let chosen = choose("node-0", Some(&own), &nodes, 0);
    assert!(chosen.len() <= FULL_MESH, "{}", chosen.len());
    let of = |zone: &str| {
        let mut in_zone = chosen.iter().filter(|t| t.zone.as_deref() == Some(zone));
        let first = in_zone.next().map_or(0, |_| 1);
        first + in_zone.count()
    };
    assert_eq!(of("zone-0"), 99);
    for zone in ["zone-1", "zone-2", "zone-3", "zone-4"] {
        assert!(of(zone) >= 3, "{zone}: {}", of(zone));
    }
}

#[test]
fn the_sample_turns_by_one_and_comes_to_everybody() {
    let nodes = zoned(3, 200);
    let own = NodeName::from("zone-0");
    let names = |turn: u64| -> BTreeSet<NodeName> {
        choose("node-0", Some(&own), &nodes, turn * TURN_US)
            .into_iter()
            .map(|t| t.node)
            .collect()
    };
    let changed = names(0).difference(&names(1)).count();
    assert!(changed <= 3, "{changed}");
    let mut all = BTreeSet::new();
    for turn in 0..200 {
        all.extend(names(turn));
    }
    assert_eq!(all.len(), 599);
}

proptest! {
    #[test]
    fn nobody_measures_itself_or_one_twice_or_too_many(
        zones in 1_usize..60, each in 1_usize..30, me in 0_usize..100, turn in 0_u64..1_000,
    ) {
        let nodes = zoned(zones, each);
        let me = format!("node-{me}");
        let own = nodes.iter().find(|t| *t.node == *me).and_then(|t| t.zone.clone());
        let chosen = choose(&me, own.as_ref(), &nodes, turn * TURN_US);
        let names: BTreeSet<&str> = chosen.iter().map(|t| &*t.node).collect();
        prop_assert_eq!(names.len(), chosen.len());
        prop_assert!(!names.contains(me.as_str()));
        // Every zone has somebody.
        let seen: BTreeSet<_> = chosen.iter().map(|t| t.zone.clone()).collect();
        let there: BTreeSet<_> = nodes.iter().filter(|t| *t.node != *me).map(|t| t.zone.clone()).collect();
        prop_assert_eq!(seen, there);
        prop_assert!(chosen.len() <= FULL_MESH.max(3 * zones + 3), "{}", chosen.len());
    }

    #[test]
    fn what_was_sent_is_answered_lost_or_on_its_way(
        rtts in prop::collection::vec(prop::option::of(0_u64..3_000_000), 1..40),
        seconds in 1_u64..60,
    ) {
        let mut prober = Prober::new(Settings::default());
        let targets: Vec<Target> = (0..rtts.len()).map(|n| target(n, None)).collect();
        prober.set_targets(&targets, 0);
        let sent = run(&mut prober, 0, seconds * S, &mut counter(), |to| {
            rtts[targets.iter().position(|t| t.address == to).unwrap()]
        });
        let views = prober.views(seconds * S);
        let over: u64 = views.iter().map(|v| v.answered + v.lost).sum();
        prop_assert_eq!(over as usize + prober.waiting(), sent.len());
        for view in &views {
            let loss = view.stats.loss.unwrap_or(0.0);
            prop_assert!((0.0..=1.0).contains(&loss));
            prop_assert_eq!(view.histogram.iter().sum::<u64>(), view.answered);
            prop_assert!(view.stats.p99_ms.is_none_or(|ms| ms <= 2_000.0));
        }
    }
}

#[test]
fn a_zone_is_estimated_by_its_sample_with_the_error_shown() {
    let mut prober = Prober::new(Settings::default());
    let targets: Vec<Target> = (0..6)
        .map(|n| target(n, Some(if n < 4 { "far" } else { "near" })))
        .collect();
    prober.set_targets(&targets, 0);
    let times = [20_000, 22_000, 24_000, 30_000, 1_000, 1_000];
    run(&mut prober, 0, 20 * S, &mut counter(), |to| {
        Some(times[targets.iter().position(|t| t.address == to).unwrap()])
    });
    let zones = estimates(&prober.views(20 * S));
    assert_eq!((&*zones[0].zone, zones[0].measured), ("far", 4));
    assert_eq!(zones[0].round_trip_ms, 23.0);
    // 4, 2, 2 and 8 ms from the median of the other three.
    assert_eq!(zones[0].error_ms, Some(4.0));
    assert_eq!(
        (zones[1].round_trip_ms, zones[1].error_ms),
        (1.0, Some(0.0))
    );
}
