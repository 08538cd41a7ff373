//! Engine, journal and watch cursors on a simulated disk, under a seed.
//!
//! One thread and no clock: a seed decides what clients ask for, when batches are taken,
//! committed and completed, how far a snapshot or a compaction gets in between, when the
//! disk is full, a sync fails, the power goes or the process dies. What starts again is
//! the shipped recovery. After each step and each start an oracle in plain Rust
//! (`simulation/model.rs`) says what must be so: answers, revisions, events, leases,
//! hashes.
//!
//! `ORLOP_SIM_SEED=S` replays a seed, `ORLOP_SIM_SEEDS=N` runs N of them (default 400).

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/world.rs"]
mod world;

use files::sim::Lies;
use journal::Guards;
use world::{Tally, Without, run};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    assert!(text.parse::<u64>().is_ok(), "{name}={text}: not a number");
    text.parse().ok()
}

#[test]
fn every_seed_keeps_its_promises() {
    if let Some(seed) = number("ORLOP_SIM_SEED") {
        println!("{:?}", run(seed, Without::default()).unwrap());
        return;
    }
    let seeds = number("ORLOP_SIM_SEEDS").unwrap_or(400);
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    for seed in 0..seeds {
        match run(seed, Without::default()) {
            Ok(one) => tally.add(&one),
            Err(text) => failed.push(format!("ORLOP_SIM_SEED={seed}: {text}")),
        }
    }
    println!("{seeds} seeds: {tally:?}");
    let count = failed.len();
    failed.truncate(5);
    assert!(
        failed.is_empty(),
        "{count} of {seeds} seeds failed:\n{}",
        failed.join("\n")
    );
    // A simulation in which nothing happens finds nothing.
    for (what, count) in tally.all() {
        assert!(count * 20 >= seeds, "only {count} times {what}");
    }
}

#[test]
fn a_seed_means_the_same_every_time() {
    let runs = [(); 2].map(|()| run(3, Without::default()).unwrap());
    assert_eq!(runs[0], runs[1]);
}

/// Without a guard, some seed must come to a bad end.
fn some_seed_fails(without: Without) {
    let failed = (0..300).filter(|seed| run(*seed, without).is_err()).count();
    assert!(failed > 0, "no seed noticed that the guard is gone");
    println!("{failed} of 300 seeds failed");
}

#[test]
fn without_the_fdatasync_seeds_fail() {
    some_seed_fails(Without {
        lies: Lies {
            sync_data: true,
            ..Lies::default()
        },
        ..Without::default()
    });
}

#[test]
fn without_the_directory_sync_seeds_fail() {
    some_seed_fails(Without {
        lies: Lies {
            sync_dir: true,
            ..Lies::default()
        },
        ..Without::default()
    });
}

#[test]
fn without_the_checksum_seeds_fail() {
    some_seed_fails(Without {
        guards: Guards {
            checksum: false,
            ..Guards::default()
        },
        ..Without::default()
    });
}

/// Marks tell damage from a torn end: what was synced and noted, and then lost, must stop
/// the start instead of passing for a crash.
#[test]
fn without_the_mark_damage_passes_for_a_crash() {
    let noticed = |mark| {
        (0..60)
            .filter(|seed| world::damage_is_noticed(*seed, mark).unwrap())
            .count()
    };
    assert_eq!(noticed(true), 60);
    assert!(noticed(false) < 60, "the mark changes nothing");
}
