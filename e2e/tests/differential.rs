//! orlop beside a real etcd: equal answers, equal events, equal hashes, for seeded
//! sequences of operations.
//!
//! `ORLOP_DIFF_SEED` runs one seed instead of those of every run, `ORLOP_DIFF_STEPS`
//! sets how many operations a seed has, `ORLOP_DIFF_SECONDS` goes on with new seeds
//! for that long, `ORLOP_DIFF_TOLERATE` only prints that many differences, and
//! `ORLOP_DIFF_SHOW=1` prints each operation.

use std::time::{Duration, Instant};

use e2e::differential::{FLAGS, Pair};
use e2e::env::number;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, fail};

/// How many seeds every run does: 1 and on. Both sizes of key spaces and of values
/// are among them.
const SEEDS: u64 = 6;
/// Operations of each.
const STEPS: u64 = 1000;
/// Seconds pass in an expiry, so there are few.
const EXPIRIES: usize = 1;

/// Some keys volatile, some only when they come or go.
const RULES: &str = r#"
[[rule]]
prefix = ["a/", "b", "z/"]
change = ["create", "delete"]
durability = "volatile"

[[rule]]
prefix = ["a", "c", "registry/"]
durability = "volatile"
sync_within = "1ms"
"#;

async fn compare(sides: [Kind; 2], rules: Option<&str>, seed: u64, steps: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut left = Store::start(sides[0], "left", dir.path(), None, &FLAGS).await?;
    let mut flags = FLAGS.to_vec();
    let file = dir.path().join("rules.toml");
    let flag = format!("--rules={}", file.display());
    if let Some(rules) = rules {
        std::fs::write(&file, rules)?;
        flags.push(&flag);
    }
    let mut right = Store::start(sides[1], "right", dir.path(), None, &flags).await?;
    let began = Instant::now();
    let mut pair = Pair::connect(&left, &right).await?;
    pair.tolerate(number("ORLOP_DIFF_TOLERATE")?.unwrap_or(0) as usize);
    if number("ORLOP_DIFF_SHOW")?.is_some_and(|shown| shown != 0) {
        pair.show_operations();
    }
    match pair.run(seed, steps, EXPIRIES).await {
        Ok(summary) => {
            let seconds = began.elapsed().as_secs_f32();
            println!("seed {seed}: {summary:?} in {seconds:.1} s");
            if summary.refused > summary.ops / 2 {
                return fail("most operations are refused, so little was compared");
            }
            Ok(())
        }
        Err(error) => {
            println!("{error}");
            left.check_running()?;
            right.check_running()?;
            Err(error)
        }
    }
}

/// Does what the environment asks for, or the first `seeds` seeds.
async fn run(sides: [Kind; 2], rules: Option<&str>, seeds: u64) -> Result<()> {
    let steps = number("ORLOP_DIFF_STEPS")?.unwrap_or(STEPS) as usize;
    if let Some(seed) = number("ORLOP_DIFF_SEED")? {
        return compare(sides, rules, seed, steps).await;
    }
    let time = Duration::from_secs(number("ORLOP_DIFF_SECONDS")?.unwrap_or(0));
    let began = Instant::now();
    let mut seed = 0;
    while seed < seeds || began.elapsed() < time {
        seed += 1;
        compare(sides, rules, seed, steps).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_as_etcd_does() -> Result<()> {
    run([Kind::Etcd, Kind::Orlop], None, SEEDS).await
}

/// Without a crash no class makes a difference that a client could see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_as_etcd_does_whatever_the_class() -> Result<()> {
    run([Kind::Etcd, Kind::Orlop], Some(RULES), 2).await
}

/// The comparison itself: a difference between two real etcds would be a race that
/// it does not account for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_answers_as_itself() -> Result<()> {
    run([Kind::Etcd; 2], None, 1).await
}
