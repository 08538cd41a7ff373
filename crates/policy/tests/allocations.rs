//! Naming a write's class allocates nothing, but for a few bytes with custom resources.

#![allow(clippy::expect_used, clippy::panic)] // a test

#[path = "policy/stored.rs"]
#[allow(dead_code)]
mod stored;

use policy::{Change, Policy, Profile, WhatIf};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

// The only test of this binary, so that nobody else allocates meanwhile.
#[test]
fn a_class_costs_no_allocation() {
    let objects = stored::Objects::of("1.37");
    let policies = Profile::ALL.map(stored::profile);
    let what_if = WhatIf::new(None).expect("profiles");
    let status = "[[rule]]\nprefix = \"/\"\nchange = \"status\"\nlabels = { app = \"*\" }\nowner = \"none\"\ndurability = \"volatile\"\n";
    let json = Policy::parse("json", status, None).expect("rules");
    let widget = |ready| {
        format!(
            r#"{{"apiVersion":"example.com/v1","kind":"Widget","metadata":{{"labels":{{"app":"web"}},"name":"w"}},"status":{{"ready":{ready}}}}}"#
        )
    };
    let (old, new) = (widget(0), widget(1));
    let changes = [
        (
            "/registry/pods/a/b",
            "pod-of-replicaset+bound > pod-of-replicaset+running",
        ),
        ("/registry/pods/a/b", "> pod-of-gitlab"),
        ("/registry/minions/n", "node+status > node+status-later"),
        (
            "/registry/deployments/a/b",
            "deployment > deployment+status",
        ),
        (
            "/registry/leases/kube-node-lease/n",
            "lease > lease+renewed",
        ),
    ]
    .map(|(key, change)| (key.as_bytes(), objects.change(change)));
    // The first use of a thread-local or the like does not count.
    for _ in 0..2 {
        let region = Region::new(ALLOCATOR);
        for (key, change) in changes {
            for policy in &policies {
                black_box((policy.may_be_volatile(key), policy.needs_old(key)));
                black_box(policy.class(key, change));
            }
            black_box(what_if.volatile_in(key, change));
        }
        assert_eq!(region.change().allocations, 0);
        // serde_json remembers nesting in a buffer.
        let change = Change::update(old.as_bytes(), new.as_bytes());
        assert!(!black_box(json.class(b"/x", change)).is_durable());
        assert!(region.change().bytes_allocated < 256);
    }
}
