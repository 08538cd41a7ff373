//! A server's log, its shards and the network between them, under one seed: shards that crash, stand
//! still and come back, messages that are late, connections that break or carry one way only, power
//! that goes at any moment, a server that stands still while another one takes its place and then
//! goes on. What was acknowledged is there while one holder lives; what survives is a prefix; no
//! revision is given twice; nothing is acknowledged by a server that was replaced.
//!
//! `ORLOP_SHARDS_SEED=N cargo test -p copies --test shards` replays a failure,
//! `ORLOP_SHARDS_SEEDS=N` runs more.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

mod server;
mod world;

use copies::shards::Guards;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Protections that a run goes without.
#[derive(Clone, Copy, Debug, Default)]
struct Without {
    shards: Guards,
    held: bool,
    noted_set: bool,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    shown: u64,
    by_holders: u64,
    power_losses: u64,
    taken_over: u64,
    from_shards: u64,
    given_up: u64,
    jumps: u64,
    refused: u64,
    outdated_shown: u64,
}

fn run(seed: u64, without: Without) -> Result<Tally, String> {
    let mut world = World::new(seed, without);
    (0..700).try_for_each(|_| world.step())?;
    world.end()?;
    Ok(world.tally)
}

/// The same, where protections are switched off that asserts may stand in for.
fn run_without(seed: u64, without: Without) -> Result<Tally, String> {
    let run = AssertUnwindSafe(|| run(seed, without));
    catch_unwind(run).unwrap_or_else(|_| Err("a panic".to_owned()))
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    match number("ORLOP_SHARDS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ORLOP_SHARDS_SEEDS").unwrap_or(default),
    }
}

#[test]
fn nothing_acknowledged_is_lost_while_a_holder_lives() {
    let mut all = Tally::default();
    let range = seeds(300);
    let runs = range.end - range.start;
    for seed in range {
        let tally = run(seed, Without::default());
        let tally = tally.unwrap_or_else(|error| panic!("ORLOP_SHARDS_SEED={seed}: {error}"));
        all.shown += tally.shown;
        all.by_holders += tally.by_holders;
        all.power_losses += tally.power_losses;
        all.taken_over += tally.taken_over;
        all.from_shards += tally.from_shards;
        all.given_up += tally.given_up;
        all.jumps += tally.jumps;
        all.refused += tally.refused;
        all.outdated_shown += tally.outdated_shown;
    }
    println!("{all:?}");
    if runs >= 300 {
        // Each of what is to be proven happened, and often.
        assert!(
            all.by_holders > 10 * runs && all.power_losses > runs,
            "{all:?}"
        );
        assert!(
            all.from_shards > runs / 2 && all.taken_over > runs / 2,
            "{all:?}"
        );
        assert!(
            all.given_up > 10 && all.refused > 10 && all.jumps > 10,
            "{all:?}"
        );
    }
}

/// The first seed that fails without a protection.
fn first_failure(without: Without) -> (u64, String) {
    let failure = |seed| run_without(seed, without).err().map(|error| (seed, error));
    let found = (0..3000).find_map(failure);
    found.unwrap_or_else(|| panic!("nothing fails without {without:?}"))
}

macro_rules! guards {
    ($($name:ident: $without:expr;)*) => { $(
        #[test]
        fn $name() {
            let (seed, error) = first_failure($without);
            println!("seed {seed}: {error}");
        }
    )* };
}

fn shards(change: impl FnOnce(&mut Guards)) -> Without {
    let mut guards = Guards::default();
    change(&mut guards);
    Without {
        shards: guards,
        ..Without::default()
    }
}

guards! {
    guard_seal: shards(|guards| guards.seal = false);
    guard_fence_at_shards: shards(|guards| guards.fence = false);
    guard_incarnation: shards(|guards| guards.incarnation = false);
    guard_contiguity_at_shards: shards(|guards| guards.contiguity = false);
    guard_all_of_a_set: shards(|guards| guards.all = false);
    guard_held_before_visible: Without { held: true, ..Without::default() };
    guard_noted_set: Without { noted_set: true, ..Without::default() };
}
