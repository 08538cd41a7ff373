//! Times how long it takes to name a write's class:
//!
//!     cargo run --release -p policy --example policy_bench
//!
//! Prints nanoseconds a write, the best of several rounds, under each profile.

use policy::{Change, Policy, Profile, WhatIf};
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = 400;
const WRITES: u32 = 500;

#[path = "../tests/policy/stored.rs"]
#[allow(dead_code, clippy::expect_used, clippy::panic)]
mod stored;

fn main() -> Result<(), Box<dyn Error>> {
    let objects = stored::Objects::of("1.37");
    let policies = Profile::ALL.map(|profile| Policy::profile(profile, None));
    let policies = policies.into_iter().collect::<Result<Vec<_>, _>>()?;
    let what_if = WhatIf::new(None)?;
    let pod = objects.get("pod-of-replicaset+ready").len();
    println!("ns a write; a ready pod has {pod} bytes");
    print!("{:<58}", "");
    for policy in &policies {
        print!("{:>10}", policy.name());
    }
    println!("{:>10}", "what-if");
    for (key, change) in [
        ("/registry/pods/a/b", "> pod-of-replicaset"),
        (
            "/registry/pods/a/b",
            "pod-of-replicaset > pod-of-replicaset+bound",
        ),
        (
            "/registry/pods/a/b",
            "pod-of-replicaset+running > pod-of-replicaset+ready",
        ),
        (
            "/registry/pods/a/b",
            "pod-of-statefulset+running > pod-of-statefulset+failed",
        ),
        ("/registry/pods/a/b", "> pod-bare"),
        (
            "/registry/deployments/a/b",
            "deployment > deployment+status",
        ),
        (
            "/registry/replicasets/a/b",
            "replicaset > replicaset+status",
        ),
        (
            "/registry/leases/kube-node-lease/n",
            "lease > lease+renewed",
        ),
        ("/registry/events/a/b", "> event"),
        ("/registry/configmaps/a/b", "> configmap"),
    ] {
        let change_of = objects.change(change);
        print!(
            "{:<58}",
            format!("{} {change}", key.split('/').nth(2).unwrap_or(key))
        );
        for policy in &policies {
            print!(
                "{:>10}",
                time(|| policy.class(black_box(key.as_bytes()), black_box(change_of)))
            );
        }
        let ns = time(|| what_if.volatile_in(black_box(key.as_bytes()), black_box(change_of)));
        println!("{ns:>10}");
    }
    let widget = |ready: u32| {
        let pad = "x".repeat(3800);
        format!(
            r#"{{"apiVersion":"example.com/v1","kind":"Widget","metadata":{{"labels":{{"app":"web"}},"name":"w"}},"spec":{{"pad":"{pad}"}},"status":{{"ready":{ready}}}}}"#
        )
    };
    let (old, new) = (widget(0), widget(1));
    let text = "[[rule]]\nprefix = \"/\"\nchange = \"status\"\ndurability = \"volatile\"\n";
    let policy = Policy::parse("json", text, None)?;
    let change = Change::update(old.as_bytes(), new.as_bytes());
    let ns = time(|| policy.class(b"/x", black_box(change)));
    println!(
        "status of a custom resource of {} bytes of JSON: {ns}",
        old.len()
    );
    Ok(())
}

fn time<T>(mut work: impl FnMut() -> T) -> u128 {
    let round = |_| {
        let begin = Instant::now();
        for _ in 0..WRITES {
            black_box(work());
        }
        begin.elapsed().as_nanos() / u128::from(WRITES)
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}
