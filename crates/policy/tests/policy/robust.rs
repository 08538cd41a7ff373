//! Values that are damaged, cut off, or not what they seem never become volatile by a doubt.

use crate::stored::{Objects, RELEASES, profile, rules};
use policy::{Change, Class, Policy, Profile};
use proptest::prelude::*;
use proptest::sample::Index;
use std::sync::LazyLock;

/// A change that `ephemeral` takes for volatile because of its values.
const VOLATILE: [(&str, &str); 6] = [
    (
        "/registry/pods/a/b",
        "pod-of-replicaset+bound > pod-of-replicaset+running",
    ),
    (
        "/registry/pods/a/b",
        "pod-of-replicaset > pod-of-replicaset+bound",
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

static NEWEST: LazyLock<Objects> = LazyLock::new(|| Objects::of("1.37"));
static BALANCED: LazyLock<Policy> = LazyLock::new(|| profile(Profile::Balanced));
static ASKING: LazyLock<Vec<Policy>> = LazyLock::new(asking);

/// How many cases each property gets; `POLICY_FUZZ_CASES` sets it.
fn cases() -> u32 {
    let asked = std::env::var("POLICY_FUZZ_CASES").ok();
    asked.map_or(500, |cases| {
        cases.parse().expect("POLICY_FUZZ_CASES is a number")
    })
}

/// The policies that look at values in every way that a rule can.
fn asking() -> Vec<Policy> {
    let conditions = [
        "change = \"status\"",
        "change = \"renewal\"",
        "change = [\"create\", \"delete\", \"status\", \"renewal\", \"mark\", \"authoritative\"]",
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
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes make it panic or hang.
    #[test]
    fn any_bytes_are_judged(
        magic in prop_oneof![Just(&b""[..]), Just(&b"k8s\0"[..]), Just(&b"{"[..]), Just(&b"k8s:enc:"[..])],
        old in proptest::collection::vec(any::<u8>(), 0..200),
        new in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (old, new) = ([magic, &old].concat(), [magic, &new].concat());
        for policy in &*ASKING {
            let class = policy.class(b"/x", Change::update(&old, &new));
            prop_assert_eq!(class, policy.explain(b"/x", Change::update(&old, &new)).class());
        }
    }

    /// However a stored object is damaged: if the write is still taken for progress, then an
    /// independent reader finds the same spec, and the same metadata but for bookkeeping, and
    /// a pod that has not ended.
    #[test]
    fn a_damaged_write_is_progress_only_if_it_is(
        pick in any::<Index>(), damages in proptest::collection::vec(damage(), 1..4), of_old in any::<bool>(),
    ) {
        let objects = &*NEWEST;
        let (key, change) = STATUS[pick.index(STATUS.len())];
        let change = objects.change(change);
        let (mut old, mut new) = (change.old.unwrap().to_vec(), change.new.unwrap().to_vec());
        let damaged = if of_old { &mut old } else { &mut new };
        for damage in &damages {
            damage.apply(damaged);
        }
        let policy = &*BALANCED;
        if policy.class(key.as_bytes(), Change::update(&old, &new)).is_durable() {
            return Ok(());
        }
        let (Some(old), Some(new)) = (Parts::of(&old), Parts::of(&new)) else {
            return Err(TestCaseError::fail(format!("{damages:?} of {key}: not an object, but volatile")));
        };
        prop_assert_eq!(&old.spec, &new.spec);
        let bookkeeping = if key.contains("/deployments/") { vec![17, 12] } else { vec![17] };
        prop_assert_eq!(old.metadata_but(&bookkeeping), new.metadata_but(&bookkeeping));
        if key.contains("/pods/") {
            for parts in [&old, &new] {
                let phase = last(&parts.status, 1).unwrap_or_default();
                prop_assert!([&b""[..], b"Pending", b"Running"].contains(&&phase[..]));
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

/// Progress of each kind that balanced knows.
const STATUS: [(&str, &str); 6] = [
    (
        "/registry/pods/a/b",
        "pod-of-replicaset+bound > pod-of-replicaset+running",
    ),
    (
        "/registry/pods/a/b",
        "pod-of-job+running > pod-of-job+ready",
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
    ("/registry/minions/n", "node+status > node+status+images"),
];

/// Something that happens to a value's bytes.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        (any::<Index>(), 1_usize..40).prop_map(|(at, length)| Damage::Remove(at, length)),
        (any::<Index>(), 1_usize..40).prop_map(|(at, length)| Damage::Repeat(at, length)),
    ]
}

impl Damage {
    fn apply(&self, value: &mut Vec<u8>) {
        if value.is_empty() {
            return;
        }
        let piece = |at: &Index, length: usize| {
            at.index(value.len())..(at.index(value.len()) + length).min(value.len())
        };
        match self {
            Damage::Set(at, byte) => {
                let at = at.index(value.len());
                value[at] = *byte;
            }
            Damage::Insert(at, byte) => value.insert(at.index(value.len()), *byte),
            Damage::Remove(at, length) => {
                value.drain(piece(at, *length));
            }
            Damage::Repeat(at, length) => {
                let range = piece(at, *length);
                let again = value[range.clone()].to_vec();
                value.splice(range.end..range.end, again);
            }
        }
    }
}

/// A stored object's parts, by a reader of its own.
struct Parts {
    metadata: Vec<u8>,
    spec: Vec<u8>,
    status: Vec<u8>,
}

impl Parts {
    fn of(value: &[u8]) -> Option<Self> {
        let raw = last(value.strip_prefix(b"k8s\0")?, 2)?;
        Some(Parts {
            metadata: last(&raw, 1)?,
            spec: last(&raw, 2).unwrap_or_default(),
            status: last(&raw, 3).unwrap_or_default(),
        })
    }

    fn metadata_but(&self, left_out: &[u64]) -> Vec<(u64, Vec<u8>)> {
        let mut fields = fields(&self.metadata).unwrap_or_default();
        fields.retain(|(number, _)| !left_out.contains(number));
        fields
    }
}

/// The last field with a number.
fn last(message: &[u8], wanted: u64) -> Option<Vec<u8>> {
    fields(message)?
        .into_iter()
        .rev()
        .find(|(number, _)| *number == wanted)
        .map(|(_, bytes)| bytes)
}

/// All fields: their numbers, and the bytes of those that have some.
fn fields(mut message: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let bytes = match tag & 7 {
            0 => varint(&mut message)?.to_be_bytes().to_vec(),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                bytes.to_vec()
            }
            _ => return None,
        };
        fields.push((tag >> 3, bytes));
    }
    Some(fields)
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
