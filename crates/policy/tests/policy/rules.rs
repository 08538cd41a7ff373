//! Rule files: what they may say, and how mistakes are told.

use crate::stored::{Objects, profile, rules, volatile};
use policy::{Change, Class, Policy, Profile, WhatIf};

fn mistakes(text: &str) -> String {
    match Policy::parse("r.toml", text, None) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn mistakes_are_told_with_line_column_and_reason() {
    let rule = |body: &str| format!("\n[[rule]]\nprefix = \"/a/\"\n{body}\n");
    for (text, expected) in [
        (
            rule("durability = \"replicated\"\ncopies = 9"),
            "r.toml:5:10: copies is a number from 1 to 8",
        ),
        (
            rule("durability = \"volatile\"\ncopies = 2"),
            "r.toml:5:1: copies goes with durability = \"replicated\" only",
        ),
        (
            rule("durability = \"none\""),
            "r.toml:4:14: durability \"none\" does not exist",
        ),
        (
            rule("durability = \"volatile\"\nnotify = \"deferred\""),
            "r.toml:5:1: a rule has no \"notify\"; it has ",
        ),
        (
            rule("durability = \"volatile\"\nsync_within = \"31s\""),
            "r.toml:5:15: sync_within is 31s",
        ),
        (
            rule("durability = \"volatile\"\nsync_within = \"0ms\""),
            "r.toml:5:15: sync_within is 0ms",
        ),
        (
            rule("durability = \"volatile\"\nsync_within = 5"),
            "r.toml:5:15: sync_within is a string",
        ),
        (
            rule("durability = \"durable\"\nsync_within = \"1s\""),
            "r.toml:5:1: sync_within goes with",
        ),
        (
            rule("durability = \"volatile\"\nchange = \"update\""),
            "r.toml:5:10: change \"update\" does not exist",
        ),
        (
            rule("durability = \"volatile\"\nchange = []"),
            "r.toml:5:10: change is an empty list",
        ),
        (
            rule("durability = \"volatile\"\nowner = \"apps/ReplicaSet\""),
            "r.toml:5:9: owner \"apps/ReplicaSet\" is not",
        ),
        (
            rule("durability = \"volatile\"\nlabels = {}"),
            "r.toml:5:10: labels is empty",
        ),
        (
            rule("durability = \"volatile\"\nclaims = \"no\""),
            "r.toml:5:10: claims is true or false",
        ),
        (
            rule("durability = \"volatile\"\nprefixes = \"/b\""),
            "r.toml:5:1: a rule has no \"prefixes\"",
        ),
        (rule(""), "r.toml:2:1: the rule has no durability"),
        (
            "[[rule]]\ndurability = \"volatile\"\n".into(),
            "r.toml:1:1: the rule has neither prefix nor key",
        ),
        (
            "[[rule]]\nprefix = \"/a/*\"\ndurability = \"volatile\"\n".into(),
            "r.toml:2:10: prefix \"/a/*\" has a *",
        ),
        (
            "[[rule]]\nkey = \"/a/**/b\"\ndurability = \"volatile\"\n".into(),
            "r.toml:2:7: key \"/a/**/b\" goes on",
        ),
        (
            "rules = []".into(),
            "r.toml:1:1: a rule file has no \"rules\"",
        ),
        (
            "[rule]\nprefix = \"/a\"".into(),
            "r.toml:1:1: rule is a list of tables",
        ),
        ("a = \n".into(), "r.toml:1:5: not TOML"),
        ("[[rule]]\nprefix = \"/a\nx".into(), "r.toml:2:"),
    ] {
        let told = mistakes(&text);
        assert!(
            told.starts_with(expected),
            "{text}\ntold:     {told}\nexpected: {expected}"
        );
    }
}

#[test]
fn all_mistakes_are_told_in_order() {
    let told = mistakes(
        "[[rule]]\nprefix = \"/a\"\ndurability = \"x\"\nchange = \"y\"\n\n[[rule]]\nprefix = 5\nnotify = \"x\"\n",
    );
    let lines: Vec<&str> = told
        .lines()
        .map(|l| l.split(": ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        lines,
        ["r.toml:3:14", "r.toml:4:10", "r.toml:7:10", "r.toml:8:1"],
        "{told}"
    );
}

#[test]
fn columns_count_characters() {
    let told = mistakes("[[rule]]\nprefix = [\"/é\", \"/*\"]\ndurability = \"volatile\"\n");
    assert!(told.starts_with("r.toml:2:17: "), "{told}");
}

#[test]
fn first_match_wins_and_the_default_is_durable() {
    let policy = rules(
        r#"
[[rule]]
prefix = "/registry/configmaps/kube-system/"
durability = "durable"

[[rule]]
prefix = ["/registry/configmaps/", "/other/"]
durability = "volatile"

[[rule]]
prefix = "/registry/configmaps/a/"
durability = "volatile"
sync_within = "1s"
"#,
    );
    let change = Change::create(b"x");
    assert_eq!(
        policy.class(b"/registry/configmaps/kube-system/c", change),
        Class::Durable
    );
    assert_eq!(
        policy.class(b"/registry/configmaps/a/c", change),
        volatile(100)
    );
    assert_eq!(policy.class(b"/other/c", change), volatile(100));
    assert_eq!(policy.class(b"/registry/secrets/a", change), Class::Durable);
    assert!(!policy.may_be_volatile(b"/registry/configmaps/kube-system/c"));
    assert!(policy.may_be_volatile(b"/registry/configmaps/a/c"));
    assert!(!policy.may_be_volatile(b"/registry/secrets/a"));
    assert!(!policy.needs_old(b"/registry/configmaps/a/c"));
    assert_eq!(policy.max_sync_within_ms(), Some(1000));
}

#[test]
fn presence_is_enough_for_create_and_delete() {
    let policy = rules(
        "[[rule]]\nprefix = \"/a/\"\nchange = [\"create\", \"delete\"]\ndurability = \"volatile\"\n",
    );
    assert!(policy.needs_old(b"/a/x"));
    assert!(!policy.needs_old(b"/b/x"));
    assert_eq!(
        policy.class(b"/a/x", Change::create(b"not an object")),
        volatile(100)
    );
    assert_eq!(
        policy.class(b"/a/x", Change::delete(b"not an object")),
        volatile(100)
    );
    assert_eq!(
        policy.class(b"/a/x", Change::update(b"a", b"b")),
        Class::Durable
    );
}

#[test]
fn encrypted_values_are_judged_by_key_alone() {
    let policy = profile(Profile::Ephemeral);
    let change = Change::update(b"k8s:enc:aescbc:v1:key1:a", b"k8s:enc:aescbc:v1:key1:b");
    assert_eq!(policy.class(b"/registry/pods/a/b", change), Class::Durable);
    assert_eq!(
        policy.class(b"/registry/events/a/b", change),
        volatile(1000)
    );
    let explained = policy.explain(b"/registry/pods/a/b", change).to_string();
    assert!(explained.contains("encrypted at rest"), "{explained}");
}

#[test]
fn another_prefix_of_the_api_server() {
    let objects = Objects::of("1.37");
    let change = objects.change("> pod-of-replicaset");
    let key = b"/clusters/a/pods/default/p";
    let other = Policy::profile(Profile::Ephemeral, Some("clusters/a/")).expect("a profile");
    assert_eq!(other.class(key, change), volatile(100));
    assert_eq!(
        other.class(b"/registry/pods/default/p", change),
        Class::Durable
    );
    assert_eq!(
        profile(Profile::Ephemeral).class(key, change),
        Class::Durable
    );
    assert_ne!(other.digest(), profile(Profile::Ephemeral).digest());
    let text = format!(
        "etcd_prefix = [\"/registry\", \"/clusters/a\"]\n{}",
        Profile::Ephemeral.text()
    );
    let both = rules(&text);
    assert_eq!(both.class(key, change), volatile(100));
    assert_eq!(
        both.class(b"/registry/pods/default/p", change),
        volatile(100)
    );
    assert_eq!(
        both.class(b"/clusters/ab/pods/default/p", change),
        Class::Durable
    );
}

const WIDGET: &str = r#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"annotations":{"a":"b"},"creationTimestamp":"2026-01-01T00:00:00Z","finalizers":["f"],"generation":1,"labels":{"app":"web"},"managedFields":[{"manager":"a"}],"name":"w","namespace":"d","ownerReferences":[{"apiVersion":"example.com/v1","controller":true,"kind":"Set","name":"s","uid":"u"}],"uid":"x"},"spec":{"size":1},"status":{"ready":0}}"#;

#[test]
fn custom_resources_are_read_as_json() {
    let key = b"/registry/example.com/widgets/d/w";
    let status = rules(
        "[[rule]]\nprefix = \"/registry/example.com/widgets/\"\nchange = \"status\"\ndurability = \"volatile\"\n",
    );
    let with = |from: &str, to: &str| {
        assert!(WIDGET.contains(from));
        format!("{}\n", WIDGET.replace(from, to))
    };
    let old = format!("{WIDGET}\n");
    let class = |policy: &Policy, new: &str| {
        policy.class(key, Change::update(old.as_bytes(), new.as_bytes()))
    };
    assert_eq!(
        class(&status, &with("\"ready\":0", "\"ready\":1")),
        volatile(100)
    );
    let both = with("\"ready\":0", "\"ready\":1").replace("\"manager\":\"a\"", "\"manager\":\"b\"");
    assert_eq!(class(&status, &both), volatile(100));
    for essential in [
        old.clone(),
        with("\"size\":1", "\"size\":2"),
        with("\"manager\":\"a\"", "\"manager\":\"b\""),
        with("\"ready\":0", "\"ready\":1").replace("\"generation\":1", "\"generation\":2"),
        with("\"ready\":0", "\"ready\":1").replace("\"f\"", "\"g\""),
        with("\"ready\":0", "\"ready\":1").replace(
            "example.com/v1\",\"kind\":\"W",
            "example.com/v2\",\"kind\":\"W",
        ),
        with(
            "\"status\":{\"ready\":0}",
            "\"status\":{\"ready\":1},\"x\":1",
        ),
        with("\"ready\":0}", "\"ready\":1"),
    ] {
        assert_eq!(class(&status, &essential), Class::Durable, "{essential}");
    }
    for (condition, takes) in [
        ("owner = \"Set.example.com\"", true),
        ("owner = \"Set\"", true),
        ("owner = \"Set.other.com\"", false),
        ("owner = \"none\"", false),
        ("labels = { app = \"web\" }", true),
        ("labels = { app = \"*\" }", true),
        ("labels = { app = \"db\" }", false),
        ("finalizers = [\"f\", \"g\"]", true),
        ("finalizers = []", false),
        ("claims = false", false),
        ("change = \"authoritative\"", false),
        ("change = \"renewal\"", false),
        ("change = \"mark\"", false),
    ] {
        let policy = rules(&format!(
            "[[rule]]\nprefix = \"/registry/example.com/\"\n{condition}\ndurability = \"volatile\"\n"
        ));
        let class = class(&policy, &with("\"ready\":0", "\"ready\":1"));
        assert_eq!(!class.is_durable(), takes, "{condition}");
    }
    let mark = rules("[[rule]]\nprefix = \"/\"\nchange = \"mark\"\ndurability = \"volatile\"\n");
    let marked = with(
        "\"finalizers\"",
        "\"deletionTimestamp\":\"2026-01-02T00:00:00Z\",\"finalizers\"",
    );
    assert_eq!(class(&mark, &marked), volatile(100));
}

#[test]
fn a_built_in_object_stored_as_json_is_not_judged() {
    let policy =
        rules("[[rule]]\nprefix = \"/\"\nchange = \"status\"\ndurability = \"volatile\"\n");
    for api_version in [
        "v1",
        "apps/v1",
        "apiextensions.k8s.io/v1",
        "rbac.authorization.k8s.io/v1",
    ] {
        let old = WIDGET.replace(
            "\"example.com/v1\",\"kind\":\"W",
            &format!("\"{api_version}\",\"kind\":\"W"),
        );
        let new = old.replace("\"ready\":0", "\"ready\":1");
        assert_eq!(
            policy.class(b"/x", Change::update(old.as_bytes(), new.as_bytes())),
            Class::Durable
        );
    }
    let gateway = WIDGET.replace(
        "example.com/v1\",\"kind\":\"W",
        "gateway.networking.k8s.io/v1\",\"kind\":\"W",
    );
    let new = gateway.replace("\"ready\":0", "\"ready\":1");
    assert_eq!(
        policy.class(b"/x", Change::update(gateway.as_bytes(), new.as_bytes())),
        volatile(100)
    );
}

#[test]
fn a_durable_rule_takes_what_either_side_asks_for() {
    let objects = Objects::of("1.37");
    let policy = rules(
        "[[rule]]\nprefix = \"/\"\nowner = \"StatefulSet.apps\"\ndurability = \"durable\"\n\
         [[rule]]\nprefix = \"/\"\nclaims = true\ndurability = \"durable\"\n\
         [[rule]]\nprefix = \"/\"\ndurability = \"volatile\"\n",
    );
    for (change, durable) in [
        (
            "pod-of-replicaset+running > pod-of-replicaset+running+adopted",
            true,
        ),
        (
            "pod-of-replicaset+running+adopted > pod-of-replicaset+running",
            true,
        ),
        ("pod-of-replicaset > pod-with-pvc", true),
        ("pod-with-pvc > pod-of-replicaset", true),
        (
            "pod-of-replicaset+running > pod-of-replicaset+running+claimed",
            true,
        ),
        ("pod-of-replicaset > pod-of-replicaset+running", false),
        // Not pods, so nobody can say what they claim.
        ("configmap > configmap", true),
    ] {
        let explained = policy.explain(b"/x", objects.change(change));
        assert_eq!(
            explained.class().is_durable(),
            durable,
            "{change}\n{explained}"
        );
    }
}

/// `shared` is `ephemeral` with another class, so that its rules are as safe.
#[test]
fn shared_is_ephemeral_with_copies() {
    let [shared, ephemeral] = [Profile::Shared, Profile::Ephemeral].map(|of| {
        let rules = of.text().split_once("\n[[rule]]").unwrap().1;
        rules.replace("\"replicated\"", "\"volatile\"")
    });
    assert_eq!(shared, ephemeral);
    let policy = rules("[[rule]]\nprefix = \"/a/\"\ndurability = \"replicated\"\ncopies = 3\n");
    let class = policy.class(
        b"/a/1",
        Change {
            old: None,
            new: Some(b"v"),
        },
    );
    let expected = Class::Replicated {
        copies: 3,
        sync_within_ms: 1000,
    };
    assert_eq!(class, expected);
    assert_eq!(
        class.to_string(),
        "replicated to 3 shards, synced within 1s"
    );
}

#[test]
fn profiles_say_what_a_power_loss_may_take() {
    assert_eq!(Policy::strict().power_loss(), None);
    assert!(Policy::strict().is_strict() && profile(Profile::Strict).is_strict());
    assert_eq!(Policy::strict().digest(), profile(Profile::Strict).digest());
    for weak in [Profile::Balanced, Profile::Ephemeral, Profile::Ci] {
        let policy = profile(weak);
        let sentence = policy.power_loss().expect("a sentence");
        assert!(
            sentence.starts_with("A power loss may take") && !sentence.contains('\n'),
            "{sentence}"
        );
        assert_eq!(policy.max_sync_within_ms(), Some(30_000));
        assert_eq!(policy.source(), weak.text());
        assert_eq!(weak.name().parse::<Profile>(), Ok(weak));
    }
    // Shards hold what is not on the disk.
    let shared = profile(Profile::Shared);
    assert_eq!((shared.power_loss(), shared.copies()), (None, Some(2)));
    assert_eq!("shared".parse::<Profile>(), Ok(Profile::Shared));
    let own = rules("[[rule]]\nprefix = \"/a/\"\ndurability = \"volatile\"\n");
    let sentence = own.power_loss().expect("a sentence");
    assert!(
        sentence.contains("test.toml") && sentence.contains("100ms"),
        "{sentence}"
    );
    assert!("lax".parse::<Profile>().is_err());
}

#[test]
fn what_if_agrees_with_the_profiles() {
    let what_if = WhatIf::new(None).expect("profiles");
    let policies = WhatIf::PROFILES.map(profile);
    let objects = Objects::of("1.37");
    for (key, change) in [
        (
            "/registry/pods/a/b",
            "pod-of-replicaset+bound > pod-of-replicaset+running",
        ),
        ("/registry/pods/a/b", "> pod-of-replicaset"),
        ("/registry/configmaps/a/b", "> configmap"),
        ("/registry/events/a/b", "> event"),
    ] {
        let set = what_if.volatile_in(key.as_bytes(), objects.change(change));
        for (i, policy) in policies.iter().enumerate() {
            let is_volatile = !policy
                .class(key.as_bytes(), objects.change(change))
                .is_durable();
            assert_eq!(set.contains(i), is_volatile, "{key} {change}");
        }
        assert!(!set.contains(policies.len()));
    }
    assert!(what_if.needs_old(b"/registry/pods/a/b") && !what_if.needs_old(b"/registry/secrets/a"));
}

#[test]
fn a_key_is_explained_without_values() {
    let policy = profile(Profile::Ephemeral);
    let told = policy.explain_key(b"/registry/pods/a/b").to_string();
    assert!(
        told.contains("(progress of pods)") && told.contains("change status"),
        "{told}"
    );
    assert!(told.trim_end().ends_with("no rule takes it"), "{told}");
    let told = policy.explain_key(b"/registry/events/a/b").to_string();
    assert_eq!(told.lines().count(), 1, "{told}");
    let told = policy.explain_key(b"/registry/secrets/a/b").to_string();
    assert_eq!(told, "durable: every write to this key: no rule takes it\n");
}
