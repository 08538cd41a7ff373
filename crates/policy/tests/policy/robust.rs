//! Values that are damaged, cut off, or not what they seem never become volatile by a doubt.

use crate::stored::{Objects, RELEASES, profile, rules};
use policy::{Change, Class, Policy, Profile};
use proptest::prelude::*;

/// A change that `ephemeral` takes for volatile because of its values.
const VOLATILE: [(&str, &str); 6] = [
    (
        "/registry/pods/a/b",
        "pod-of-replicaset+bound > pod-of-replicaset+running",
    ),
    (
        "/registry/pods/a/b",
        "pod-of-replicaset+running > pod-of-replicaset+running+deleting",
    ),
    (
        "/registry/deployments/a/b",
        "deployment > deployment+status",
    ),
    (
        "/registry/replicasets/a/b",
        "replicaset > replicaset+status",
    ),
    ("/registry/minions/n", "node+status > node+status-later"),
    (
        "/registry/leases/kube-node-lease/n",
        "lease > lease+renewed",
    ),
];

#[test]
fn what_is_cut_off_is_durable_at_every_length() {
    let policy = profile(Profile::Ephemeral);
    for release in RELEASES {
        let objects = Objects::of(release);
        for (key, change) in VOLATILE {
            let change = objects.change(change);
            let (old, new) = (change.old.expect("old"), change.new.expect("new"));
            assert!(!policy.class(key.as_bytes(), change).is_durable(), "{key}");
            for length in 0..new.len() {
                let cut = Change::update(old, &new[..length]);
                assert_eq!(
                    policy.class(key.as_bytes(), cut),
                    Class::Durable,
                    "{release} {key} {length}"
                );
            }
            for length in 0..old.len() {
                let cut = Change::update(&old[..length], new);
                assert_eq!(
                    policy.class(key.as_bytes(), cut),
                    Class::Durable,
                    "{release} {key} {length}"
                );
            }
        }
    }
}

#[test]
fn trailing_bytes_and_unknown_fields_are_durable() {
    let policy = profile(Profile::Ephemeral);
    let objects = Objects::of("1.37");
    for (key, change) in VOLATILE {
        let change = objects.change(change);
        let (old, new) = (change.old.expect("old"), change.new.expect("new"));
        // Raw bytes, a field that the envelope does not have, one that it has twice, a group.
        for tail in [
            &b"\0"[..],
            b"\x2a\x00",
            b"\x22\x00",
            b"\x2b\x2c",
            b"\n",
            b"\x08\x01",
        ] {
            let longer = [new, tail].concat();
            let change = Change::update(old, &longer);
            assert_eq!(
                policy.class(key.as_bytes(), change),
                Class::Durable,
                "{key} {tail:?}"
            );
            let longer = [old, tail].concat();
            let change = Change::update(&longer, new);
            assert_eq!(
                policy.class(key.as_bytes(), change),
                Class::Durable,
                "{key} {tail:?}"
            );
        }
    }
}

/// The policies that look at values in every way that a rule can.
fn asking() -> Vec<Policy> {
    let conditions = [
        "change = \"status\"",
        "change = \"renewal\"",
        "change = [\"create\", \"delete\", \"status\", \"renewal\", \"authoritative\"]",
        "owner = [\"ReplicaSet\", \"none\"]",
        "labels = { app = \"*\" }",
        "finalizers = [\"a\"]",
        "claims = false",
        "claims = true",
    ];
    let rule = |condition: &&str| {
        rules(&format!(
            "[[rule]]\nprefix = \"/\"\n{condition}\ndurability = \"volatile\"\n"
        ))
    };
    conditions.iter().map(rule).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes make it panic or hang.
    #[test]
    fn any_bytes_are_judged(
        magic in prop_oneof![Just(&b""[..]), Just(&b"k8s\0"[..]), Just(&b"{"[..]), Just(&b"k8s:enc:"[..])],
        old in proptest::collection::vec(any::<u8>(), 0..200),
        new in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (old, new) = ([magic, &old].concat(), [magic, &new].concat());
        for policy in asking() {
            let class = policy.class(b"/x", Change::update(&old, &new));
            prop_assert_eq!(class, policy.explain(b"/x", Change::update(&old, &new)).class());
        }
    }

    /// A change of one byte of what must not change is never taken for progress: if a write
    /// with it is volatile by `status`, then the byte is in what a status write may change.
    #[test]
    fn a_changed_byte_outside_of_the_status_is_essential(
        pick in 0_usize..1000, at in any::<proptest::sample::Index>(), with in any::<u8>(),
    ) {
        let objects = Objects::of("1.37");
        let names = ["pod-of-replicaset+bound", "deployment", "replicaset", "node", "pod-of-job+bound"];
        let old = objects.get(names[pick % names.len()]);
        let mut new = old.to_vec();
        let at = at.index(new.len());
        new[at] = with;
        let policy = rules("[[rule]]\nprefix = \"/\"\nchange = \"status\"\ndurability = \"volatile\"\n");
        let class = policy.class(b"/x", Change::update(old, &new));
        if !class.is_durable() {
            // These objects' status is at their end, but for the envelope's four last bytes.
            let (a, b) = (parts(old), parts(&new));
            prop_assert!(a.is_some() && b.is_some(), "byte {} of {}", at, old.len());
            let ((meta_a, spec_a, _), (meta_b, spec_b, _)) = (a.unwrap(), b.unwrap());
            prop_assert_eq!(spec_a, spec_b);
            prop_assert_eq!(meta_a, meta_b);
        }
    }

    /// The same for objects that are progress to begin with, changed in any byte: what is
    /// still volatile has the same spec and the same finalizers, owners and deletion time.
    #[test]
    fn a_damaged_progress_write_keeps_spec_and_metadata(
        pick in 0_usize..VOLATILE.len(), at in any::<proptest::sample::Index>(), with in any::<u8>(),
    ) {
        let objects = Objects::of("1.37");
        let (key, change) = VOLATILE[pick];
        let change = objects.change(change);
        let (old, mut new) = (change.old.unwrap(), change.new.unwrap().to_vec());
        let at = at.index(new.len());
        new[at] = with;
        let policy = profile(Profile::Balanced);
        if !policy.class(key.as_bytes(), Change::update(old, &new)).is_durable() {
            let (a, b) = (parts(old), parts(&new));
            prop_assert!(a.is_some() && b.is_some());
            if !key.contains("/leases/") {
                prop_assert_eq!(a.unwrap().1, b.unwrap().1);
            }
        }
    }

    /// Random rule files are refused or compiled, never a panic; what is compiled is compiled
    /// again the same.
    #[test]
    fn any_text_is_read(text in "(\\[\\[rule\\]\\]\n|prefix = \"[/a-z*]{0,6}\"\n|key = \\[?\"[/a-z*]{0,6}\"\\]?\n|change = \"(any|status|x)\"\n|durability = \"(durable|volatile|x)\"\n|sync_within = \"[0-9]{0,5}m?s\"\n|[ -~é]{0,5}\n){0,12}") {
        match Policy::parse("f", &text, None) {
            Ok(policy) => {
                prop_assert_eq!(policy.source(), text.as_str());
                policy.class(b"/registry/a", Change::create(b""));
            }
            Err(errors) => {
                let lines = text.matches('\n').count() + 1;
                prop_assert!(!errors.errors.is_empty());
                for error in &errors.errors {
                    prop_assert!((1..=lines).contains(&error.line) && error.column >= 1, "{:?}", error);
                }
            }
        }
    }
}

/// Metadata, spec and status of a stored object, by a reader of its own: if it is well-formed.
fn parts(value: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let envelope = value.strip_prefix(b"k8s\0")?;
    let raw = last(envelope, 2)?;
    Some((
        last(raw, 1)?,
        last(raw, 2).unwrap_or_default(),
        last(raw, 3).unwrap_or_default(),
    ))
}

fn last(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    let mut found = None;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let bytes = match tag & 7 {
            0 => {
                varint(&mut message)?;
                &[][..]
            }
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                bytes
            }
            _ => return None,
        };
        if tag >> 3 == wanted {
            found = Some(bytes);
        }
    }
    found
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
