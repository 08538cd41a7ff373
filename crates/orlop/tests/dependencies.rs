//! The store's command has no Kubernetes client in its dependency tree.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};

/// Packages below `root` by the workspace's lock file: development dependencies of the workspace's
/// own crates are in it, too.
fn below(root: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    let lock: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let mut uses: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
        for dependency in dependencies.into_iter().flatten() {
            // `NAME`, or `NAME VERSION` where there are several.
            let dependency = dependency.as_str().unwrap();
            let dependency = dependency.split(' ').next().unwrap();
            uses.entry(name).or_default().push(dependency);
        }
    }
    let mut found = BTreeSet::new();
    let mut left = vec![root];
    while let Some(name) = left.pop() {
        if found.insert(name.to_owned()) {
            left.extend(uses.get(name).into_iter().flatten());
        }
    }
    found
}

#[test]
fn no_kubernetes_client() {
    let tree = below("orlop");
    assert!(tree.contains("engine"), "the lock file is not understood");
    let clients: Vec<_> = tree
        .iter()
        .filter(|name| {
            *name == "kube"
                || name.starts_with("kube-")
                || name.starts_with("k8s-")
                || *name == "placement"
                || *name == "fleet-sim"
                || *name == "seika"
        })
        .collect();
    assert!(clients.is_empty(), "orlop depends on {clients:?}");
}
