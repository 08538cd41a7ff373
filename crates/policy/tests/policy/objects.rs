//! The profiles on objects as controllers, kubelets and people write them.

use crate::stored::{Objects, RELEASES, profile, volatile};
use policy::{Class, Profile};

const D: Class = Class::Durable;
const V: Class = volatile(100);

/// Key, change (`old > new`), and the class under balanced, ephemeral and ci.
type Row = (&'static str, &'static str, Class, Class, Class);

fn check(rows: &[Row]) {
    let profiles = [Profile::Balanced, Profile::Ephemeral, Profile::Ci].map(profile);
    let strict = profile(Profile::Strict);
    for release in RELEASES {
        let objects = Objects::of(release);
        for (key, change, balanced, ephemeral, ci) in rows {
            let change_of = objects.change(change);
            let key = key.as_bytes();
            assert_eq!(strict.class(key, change_of), D);
            for (policy, expected) in profiles.iter().zip([balanced, ephemeral, ci]) {
                let explained = policy.explain(key, change_of);
                let what = format!("{release} {} {change}:\n{explained}", policy.name());
                assert_eq!(policy.class(key, change_of), *expected, "{what}");
                assert_eq!(explained.class(), *expected, "{what}");
                assert!(
                    expected.is_durable() || policy.may_be_volatile(key),
                    "{what}"
                );
            }
        }
    }
}

const POD: &str = "/registry/pods/default/p";

#[test]
fn a_deployment_from_create_to_ready_and_gone() {
    check(&[
        ("/registry/deployments/default/web", "> deployment", D, D, D),
        (
            "/registry/replicasets/default/web-1",
            "> replicaset",
            D,
            V,
            V,
        ),
        (
            "/registry/events/default/web.1",
            "> event",
            volatile(1000),
            volatile(1000),
            volatile(1000),
        ),
        (
            "/registry/deployments/default/web",
            "deployment > deployment+status",
            V,
            V,
            V,
        ),
        (POD, "> pod-of-replicaset", D, V, V),
        (
            "/registry/replicasets/default/web-1",
            "replicaset > replicaset+status",
            V,
            V,
            V,
        ),
        (POD, "pod-of-replicaset > pod-of-replicaset+bound", D, V, V),
        (
            "/registry/deployments/default/web",
            "deployment+status > deployment+status+available",
            V,
            V,
            V,
        ),
        (
            POD,
            "pod-of-replicaset+bound > pod-of-replicaset+running",
            V,
            V,
            V,
        ),
        (
            POD,
            "pod-of-replicaset+running > pod-of-replicaset+ready",
            V,
            V,
            V,
        ),
        (
            "/registry/services/endpoints/default/web",
            "> endpoints",
            D,
            D,
            D,
        ),
        (
            "/registry/endpointslices/default/web",
            "> configmap",
            D,
            D,
            D,
        ),
        (
            "/registry/deployments/default/web",
            "deployment+status >",
            D,
            D,
            D,
        ),
        (
            "/registry/replicasets/default/web-1",
            "replicaset+status >",
            D,
            V,
            V,
        ),
        (
            POD,
            "pod-of-replicaset+running > pod-of-replicaset+running+deleting",
            D,
            D,
            D,
        ),
        (
            POD,
            "pod-of-replicaset+running > pod-of-replicaset+failed",
            D,
            D,
            D,
        ),
        (POD, "pod-of-replicaset+running >", D, V, V),
        (
            "/registry/events/default/web.1",
            "event >",
            volatile(1000),
            volatile(1000),
            volatile(1000),
        ),
    ]);
}

#[test]
fn what_makes_a_pods_update_essential() {
    let from_running = |to: &'static str| -> (String, &'static str) {
        (
            format!("pod-of-replicaset+running > pod-of-replicaset{to}"),
            to,
        )
    };
    let cases: [(&str, Class); 12] = [
        ("+succeeded", D),
        ("+failed", D),
        ("+running+disrupted", D),
        ("+running+gate", D),
        ("+running+claimed", D),
        ("+running+adopted", D),
        ("+running+orphaned", D),
        ("+running+finalizer", D),
        ("+running+labelled", D),
        ("+running+deleting", D),
        // Not status alone, but of a pod whose controller would make it again.
        ("+running+managed", V),
        ("+ready", V),
    ];
    for (to, ephemeral) in cases {
        let (change, _) = from_running(to);
        let balanced = if to == "+ready" { V } else { D };
        let change: &'static str = change.leak();
        check(&[(POD, change, balanced, ephemeral, ephemeral)]);
    }
    check(&[
        (
            POD,
            "pod-of-replicaset+failed > pod-of-replicaset+failed-later",
            D,
            D,
            D,
        ),
        (
            POD,
            "pod-of-replicaset+ready > pod-of-replicaset+ready",
            D,
            V,
            V,
        ),
    ]);
}

/// A pod's life: created, bound, running, ready, failed, deleted.
fn life(pod: &str, classes: [Class; 6]) {
    let steps = [
        format!("> {pod}"),
        format!("{pod} > {pod}+bound"),
        format!("{pod}+bound > {pod}+running"),
        format!("{pod}+running > {pod}+ready"),
        format!("{pod}+ready > {pod}+failed"),
        format!("{pod}+failed >"),
    ];
    let policy = profile(Profile::Ephemeral);
    for release in RELEASES {
        let objects = Objects::of(release);
        for (change, expected) in steps.iter().zip(classes) {
            let explained = policy.explain(POD.as_bytes(), objects.change(change));
            assert_eq!(
                explained.class(),
                expected,
                "{release} {change}:\n{explained}"
            );
        }
    }
}

#[test]
fn whose_pods_are_volatile_in_ephemeral() {
    // How a pod ends is durable for all of them.
    let derived = [V, V, V, V, D, V];
    let kept = [D, D, V, V, D, D];
    for pod in [
        "pod-of-replicaset",
        "pod-of-daemonset",
        "pod-of-job",
        "pod-with-csi-inline",
    ] {
        life(pod, derived);
    }
    for pod in [
        "pod-of-statefulset",
        "pod-bare",
        "pod-mirror",
        "pod-of-other-replicaset",
        "pod-with-pvc",
        "pod-with-ephemeral-volume",
        "pod-with-attached-disk",
        "pod-with-device",
        "pod-of-taskrun",
        "pod-of-workflow",
        "pod-of-runner",
        "pod-of-gitlab",
        "pod-of-jenkins",
    ] {
        life(pod, kept);
    }
}

#[test]
fn ci_covers_the_pods_of_ci_systems() {
    let key = "/registry/pods/builds/p";
    for pod in [
        "pod-of-taskrun",
        "pod-of-workflow",
        "pod-of-runner",
        "pod-of-gitlab",
        "pod-of-jenkins",
    ] {
        for (change, ci) in [
            (format!("> {pod}"), V),
            (format!("{pod} > {pod}+bound"), V),
            (format!("{pod}+running > {pod}+failed"), D),
            (format!("{pod}+failed >"), V),
        ] {
            check(&[(key, change.leak(), D, D, ci)]);
        }
    }
    // By namespace, bare pods only.
    check(&[
        (POD, "> pod-bare", D, D, D),
        ("/registry/pods/ci/p", "> pod-bare", D, D, V),
        ("/registry/pods/ci-42/p", "> pod-bare", D, D, V),
        ("/registry/pods/ci/p", "> pod-of-statefulset", D, D, D),
        ("/registry/pods/cinema/p", "> pod-bare", D, D, D),
    ]);
}

#[test]
fn deployments_and_replicasets() {
    let (d, r) = (
        "/registry/deployments/default/d",
        "/registry/replicasets/default/r",
    );
    check(&[
        (
            d,
            "deployment+status > deployment+status+revision-2",
            V,
            V,
            V,
        ),
        (
            d,
            "deployment+status > deployment+status+annotated",
            D,
            D,
            D,
        ),
        (
            d,
            "deployment+status > deployment+status+collision",
            D,
            D,
            D,
        ),
        (d, "deployment+status > deployment+status+scaled", D, D, D),
        (r, "replicaset+status > replicaset+status+scaled", D, V, V),
        (r, "> replicaset-bare", D, D, D),
        (r, "replicaset-bare > replicaset-bare+status", V, V, V),
        (
            r,
            "replicaset-bare+status > replicaset-bare+status+scaled",
            D,
            D,
            D,
        ),
        (r, "replicaset-bare+status > replicaset+status", D, D, D),
        (r, "replicaset-bare >", D, D, D),
    ]);
}

#[test]
fn nodes() {
    let key = "/registry/minions/node-1";
    let h = volatile(5000);
    check(&[
        (key, "> node", D, D, D),
        (key, "node+status > node+status-later", h, h, h),
        (key, "node+status > node+status+images", h, h, h),
        (key, "node+status > node+status+attached", D, D, D),
        (key, "node+status > node+status+in-use", D, D, D),
        (key, "node+status > node+status+capacity", D, D, D),
        (key, "node+status > node+status+network", D, D, D),
        (key, "node+status > node+status+tainted", D, D, D),
        (key, "node+status >", D, D, D),
    ]);
}

#[test]
fn leases() {
    let renewals = [
        ("/registry/leases/kube-node-lease/node-1", 30_000),
        ("/registry/leases/kube-system/apiserver-abc", 30_000),
        ("/registry/leases/kube-system/kube-scheduler", 10_000),
        (
            "/registry/leases/kube-system/kube-controller-manager",
            10_000,
        ),
        ("/registry/leases/kube-system/other", 1000),
        ("/registry/leases/kube-system/kube-scheduler-2", 1000),
        ("/registry/leases/default/app", 1000),
    ];
    for (key, sync_within_ms) in renewals {
        let v = volatile(sync_within_ms);
        check(&[
            (key, "lease > lease+renewed", v, v, v),
            (key, "> lease", D, D, D),
            (key, "lease >", D, D, D),
            (key, "lease > lease+taken", D, D, D),
            (key, "lease > lease+taken-again", D, D, D),
            (key, "lease > lease+released", D, D, D),
            (key, "lease+released > lease+taken", D, D, D),
            (key, "lease > lease+longer", D, D, D),
            (key, "lease > lease+labelled", D, D, D),
            (key, "lease > lease", D, D, D),
        ]);
    }
    let elected = Objects::of("1.37");
    let change = elected.change("lease-elected > lease-elected+renewed");
    let policy = profile(Profile::Balanced);
    assert_eq!(
        policy.class(b"/registry/leases/kube-system/kube-scheduler", change),
        D
    );
}

#[test]
fn everything_else_is_durable() {
    check(&[
        ("/registry/configmaps/default/c", "> configmap", D, D, D),
        ("/registry/secrets/default/s", "> secret", D, D, D),
        ("/registry/jobs/default/j", "job > job+status", D, D, D),
        (
            "/registry/example.com/widgets/default/w",
            "> configmap",
            D,
            D,
            D,
        ),
        ("compact_rev_key", "configmap > secret", D, D, D),
        ("/registry/ranges/serviceips", "configmap > secret", D, D, D),
        (
            "/registry/masterleases/10.0.0.1",
            "> endpoints",
            volatile(5000),
            volatile(5000),
            volatile(5000),
        ),
        (
            "/registry/peerserverleases/apiserver-abc",
            "> endpoints",
            volatile(5000),
            volatile(5000),
            volatile(5000),
        ),
    ]);
}

#[test]
fn a_weaker_profile_has_every_rule_of_the_stronger() {
    let rules = |p: Profile| -> Vec<String> {
        let text = p.text();
        let blocks = text.split("[[rule]]\n").skip(1);
        blocks
            .map(|b| {
                b.split("\n\n")
                    .next()
                    .unwrap_or_default()
                    .trim()
                    .to_string()
            })
            .collect()
    };
    let (balanced, ephemeral, ci) = (
        rules(Profile::Balanced),
        rules(Profile::Ephemeral),
        rules(Profile::Ci),
    );
    assert!(ephemeral.starts_with(&balanced) && ci.starts_with(&ephemeral));
    assert!(balanced.len() > 5 && ephemeral.len() > balanced.len() && ci.len() > ephemeral.len());
}
