//! What `packaging/` holds is what its users' tools take: systemd, kubeadm, Prometheus,
//! Grafana, and builders of images.
//!
//! The tests that need `packaging/build`'s output are in `packaging/dist.rs`, and run only
//! when asked for.

#[path = "packaging/dashboards.rs"]
mod dashboards;
#[path = "packaging/dist.rs"]
mod dist;
#[path = "packaging/fleet.rs"]
mod fleet;
#[path = "packaging/keeper.rs"]
mod keeper;
#[path = "packaging/proxy.rs"]
mod proxy;
#[path = "packaging/rules.rs"]
mod rules;
#[path = "packaging/shard.rs"]
mod shard;
#[path = "packaging/static_pod.rs"]
mod static_pod;
#[path = "packaging/unit.rs"]
mod unit;

use std::path::PathBuf;
use std::process::Command;

use e2e::kube::{Result, ensure, fail};

/// A file of the checkout, by its path from the root.
fn repo(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(path)
}

/// Runs a program that must succeed, and returns what it printed on both outputs.
fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            return fail(format!(
                "{program}: {error}; run-tests says what to install"
            ));
        }
    };
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure(output.status.success(), || format!("{program}: {said}"))?;
    Ok(said)
}

/// The image is made of what `packaging/build` makes, for every platform, and of nothing
/// that has to be fetched.
#[test]
fn the_image_needs_no_other() {
    let text = std::fs::read_to_string(repo("packaging/Containerfile")).unwrap();
    let instructions: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect();
    let from: Vec<_> = instructions
        .iter()
        .filter(|line| line.starts_with("FROM"))
        .collect();
    assert_eq!(from, [&"FROM scratch"]);
    // Nothing can run in an empty image while it is built.
    assert!(!instructions.iter().any(|line| line.starts_with("RUN")));
    assert!(instructions.contains(&"ARG TARGETARCH"));
    assert!(instructions.contains(&"COPY linux-${TARGETARCH}/ /usr/local/bin/"));
    // kubeadm names the command and, if it wants one, the user.
    assert!(instructions.contains(&r#"CMD ["etcd"]"#));
    assert!(
        !instructions
            .iter()
            .any(|line| line.starts_with("ENTRYPOINT") || line.starts_with("USER"))
    );
}
