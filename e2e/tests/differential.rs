//! orlop beside a real etcd: equal answers, equal events, equal hashes, for seeded
//! sequences of operations, under every profile.
//!
//! What a profile's rules allow to differ is what a *power loss* takes: of volatile writes at
//! most those of the last `sync_within`, after which revisions go on higher up and every watch
//! is told to begin anew. There is none here, so nothing at all may differ, whatever the class
//! of a write, nor after a kill -9 at the end of a sequence. What a power loss may take is
//! checked by the journal's tests and by `kubernetes.rs`.
//!
//! `ORLOP_DIFF_SEED` runs one seed instead of those of every run, `ORLOP_DIFF_STEPS`
//! sets how many operations a seed has, `ORLOP_DIFF_SECONDS` goes on with new seeds
//! for that long, `ORLOP_DIFF_TOLERATE` only prints that many differences, and
//! `ORLOP_DIFF_SHOW=1` prints each operation.

use std::time::{Duration, Instant};

use e2e::differential::kubernetes::Objects;
use e2e::differential::{FLAGS, Pair};
use e2e::env::number;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, ensure, fail};

/// How many seeds every run does: 1 and on. Both sizes of key spaces and of values
/// are among them.
const SEEDS: u64 = 3;
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

/// The rules that orlop is started with.
#[derive(Clone, Copy)]
enum Rules {
    /// None are named.
    Default,
    /// Of a file with this text.
    File(&'static str),
    /// A profile as it ships, with the keys and objects that its rules are about.
    Profile(&'static str),
}

async fn compare(sides: [Kind; 2], rules: Rules, seed: u64, steps: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut left = Store::start(sides[0], "left", dir.path(), None, &FLAGS).await?;
    let file = dir.path().join("rules.toml");
    let flag = match rules {
        Rules::Default => None,
        Rules::File(text) => {
            std::fs::write(&file, text)?;
            Some(format!("--rules={}", file.display()))
        }
        Rules::Profile(name) => Some(format!("--profile={name}")),
    };
    let flags: Vec<&str> = FLAGS.into_iter().chain(flag.as_deref()).collect();
    let mut right = Store::start(sides[1], "right", dir.path(), None, &flags).await?;
    let began = Instant::now();
    let mut pair = Pair::connect(&left, &right).await?;
    pair.tolerate(number("ORLOP_DIFF_TOLERATE")?.unwrap_or(0) as usize);
    if number("ORLOP_DIFF_SHOW")?.is_some_and(|shown| shown != 0) {
        pair.show_operations();
    }
    if let Rules::Profile(_) = rules {
        pair.work_on(Objects::read()?);
    }
    match pair.run(seed, steps, EXPIRIES).await {
        Ok(summary) => {
            let seconds = began.elapsed().as_secs_f32();
            println!("seed {seed}: {summary:?} in {seconds:.1} s");
            if summary.refused > summary.ops / 2 {
                return fail("most operations are refused, so little was compared");
            }
            match rules {
                Rules::Profile(name) => same_after_a_kill(name, &left, &mut right).await,
                Rules::Default | Rules::File(_) => Ok(()),
            }
        }
        Err(error) => {
            println!("{error}");
            left.check_running()?;
            right.check_running()?;
            Err(error)
        }
    }
}

/// The rules of the profile did take writes, and a killed process has lost none of them.
async fn same_after_a_kill(profile: &str, left: &Store, right: &mut Store) -> Result<()> {
    let metrics = right.metrics().await?;
    let writes = |class: &str| metrics.sum("orlop_writes_total", &[class]);
    let volatile = writes("class=\"volatile\"");
    let durable = writes("class=\"durable\"");
    println!("{profile}: {durable} durable writes, {volatile} volatile ones");
    let right_classes = match profile {
        "strict" => volatile == 0.0,
        _ => volatile > 20.0,
    };
    ensure(right_classes && durable > 50.0, || {
        format!("{profile}: {durable} durable writes, {volatile} volatile ones")
    })?;
    right.kill();
    right.start_again().await?;
    // Compares revision, keys, values and hash of both.
    Pair::connect(left, right).await?;
    // Else its marker would stay in memory.
    right.stop()
}

/// Does what the environment asks for, or the first `seeds` seeds.
async fn run(sides: [Kind; 2], rules: Rules, seeds: u64) -> Result<()> {
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
    run([Kind::Etcd, Kind::Orlop], Rules::Default, SEEDS).await
}

/// Without a crash no class makes a difference that a client could see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_as_etcd_does_whatever_the_class() -> Result<()> {
    run([Kind::Etcd, Kind::Orlop], Rules::File(RULES), 1).await
}

/// `strict` and the weaker profiles as they ship: equal answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_as_etcd_does_under_strict() -> Result<()> {
    run([Kind::Etcd, Kind::Orlop], Rules::Profile("strict"), 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_as_etcd_does_under_balanced() -> Result<()> {
    run([Kind::Etcd, Kind::Orlop], Rules::Profile("balanced"), 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orlop_answers_as_etcd_does_under_ephemeral() -> Result<()> {
    run([Kind::Etcd, Kind::Orlop], Rules::Profile("ephemeral"), 1).await
}

/// The comparison itself: a difference between two real etcds would be a race that
/// it does not account for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_answers_as_itself() -> Result<()> {
    run([Kind::Etcd; 2], Rules::Default, 1).await
}
