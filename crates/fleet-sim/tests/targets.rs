//! The scenarios that come with the simulator, against what placement promises. All bounds are
//! counts of simulated things: they do not depend on the machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::path::Path;

use fleet_sim::{Outcome, Policy, Scenario, Summary, run, summarize};

fn scenario(name: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scenarios")
        .join(name);
    Scenario::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn all(scenario: &Scenario) -> BTreeMap<&'static str, Summary> {
    let outcomes: Vec<Outcome> = scenario
        .policies
        .iter()
        .flat_map(|policy| scenario.seeds.iter().map(|seed| (*policy, *seed)))
        .map(|(policy, seed)| run(scenario, policy, seed).unwrap())
        .collect();
    summarize(scenario, &outcomes)
        .into_iter()
        .map(|summary| (summary.policy.name(), summary))
        .collect()
}

fn meets_the_targets(name: &str) {
    let all = all(&scenario(name));
    let (ours, even, oracle) = (&all["ours"], &all["even"], &all["oracle"]);
    assert!(ours.completed >= 1.15 * even.completed, "{all:#?}");
    assert!(ours.completion >= 0.9, "{all:#?}");
    assert!(ours.fast_at_edge >= 0.75, "{all:#?}");
    assert!(ours.completed >= 0.95 * oracle.completed, "{all:#?}");
    assert!(
        oracle.completed >= ours.completed * 0.99,
        "an oracle that knows less"
    );
}

#[test]
fn three_nodes_one_50_ms_away() {
    meets_the_targets("three-nodes.toml");
}

#[test]
fn fifty_users_between_edge_and_cloud() {
    meets_the_targets("fifty-users.toml");
}

#[test]
fn noise_on_latency_moves_nothing() {
    nothing_moves("noise.toml");
}

#[test]
fn random_arrivals_at_constant_rates_move_nothing() {
    nothing_moves("arrivals.toml");
}

fn nothing_moves(name: &str) {
    let scenario = scenario(name);
    for seed in &scenario.seeds {
        let outcome = run(&scenario, Policy::Ours, *seed).unwrap();
        assert_eq!(outcome.moves, 0, "seed {seed}");
        assert!(outcome.completion() > 0.99, "seed {seed}");
    }
}

#[test]
fn failures_are_over_within_three_windows_and_leave_no_pod_without_room() {
    let scenario = scenario("failures.toml");
    for seed in &scenario.seeds {
        let outcome = run(&scenario, Policy::Ours, *seed).unwrap();
        for event in &scenario.event {
            let rest = event.at_s + 3.0 * scenario.window_s;
            let still: Vec<_> = outcome
                .rounds
                .iter()
                .filter(|r| r.at_s > rest && r.at_s < event.at_s + 59.0)
                .filter(|r| r.added + r.removed > 0 || r.stuck > 0)
                .collect();
            assert!(
                still.is_empty(),
                "seed {seed}, event at {}: {still:?}",
                event.at_s
            );
        }
        // What the dead node had, there and back, once each; and as much for the link.
        assert!(outcome.moves <= 24, "seed {seed}: {} moves", outcome.moves);
    }
}

#[test]
fn a_round_of_a_large_cluster_looks_at_a_bounded_number_of_values() {
    let mut scenario = scenario("large.toml");
    scenario.duration_s = 30.0;
    scenario.warm_up_s = 20.0;
    let outcome = run(&scenario, Policy::Ours, 1).unwrap();
    // A settled service of 20 sources: see `placement`'s own count.
    assert!(
        outcome.most_steps_a_round <= 1_000 * 300_000,
        "{} values of R",
        outcome.most_steps_a_round
    );
    assert!(outcome.completion() > 0.9, "{}", outcome.completion());
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    let mut scenario = scenario("three-nodes.toml");
    scenario.duration_s = 70.0;
    for policy in Policy::ALL {
        let (a, b) = (
            run(&scenario, policy, 7).unwrap(),
            run(&scenario, policy, 7).unwrap(),
        );
        assert_eq!(a.latencies_us, b.latencies_us);
        assert_eq!(a.rounds, b.rounds);
    }
}

#[test]
fn what_is_wrong_with_a_scenario_is_said() {
    let good = include_str!("../scenarios/three-nodes.toml");
    for (from, to, said) in [
        ("duration_s = 180", "duration_s = 0", "duration_s"),
        (
            "zone = \"node3\"\ncount = 10",
            "zone = \"node9\"\ncount = 10",
            "no zone node9",
        ),
        ("serving_ms = 8", "serving_ms = -1", "serving_ms"),
        ("deadline_ms", "deadlines_ms", "deadline"),
        (
            "between = [\"node1\", \"node2\"]",
            "between = [\"node1\", \"node1\"]",
            "none between",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        let error = Scenario::parse(&good.replacen(from, to, 1)).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}
