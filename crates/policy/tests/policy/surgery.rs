//! Objects changed field by field, by an encoder of the tests' own: each thing that makes a
//! write essential, alone beside a status that changed.

use crate::stored::{Objects, profile, rules, volatile};
use policy::{Change, Class, Policy, Profile};

/// A field: its number, and an integer or bytes.
#[derive(Clone, Debug, PartialEq)]
enum Field {
    Integer(u64, u64),
    Bytes(u64, Vec<u8>),
}

impl Field {
    fn number(&self) -> u64 {
        match self {
            Field::Integer(number, _) | Field::Bytes(number, _) => *number,
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match field {
            Field::Integer(number, value) => {
                varint(number << 3, &mut out);
                varint(*value, &mut out);
            }
            Field::Bytes(number, bytes) => {
                varint(number << 3 | 2, &mut out);
                varint(bytes.len() as u64, &mut out);
                out.extend_from_slice(bytes);
            }
        }
    }
    out
}

fn read(message: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, rest) = message.split_first().expect("a whole varint");
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
        shift += 7;
    }
}

fn decode(mut message: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = read(&mut message);
        fields.push(match tag & 7 {
            0 => Field::Integer(tag >> 3, read(&mut message)),
            2 => {
                let length = read(&mut message) as usize;
                let (bytes, rest) = message.split_at(length);
                message = rest;
                Field::Bytes(tag >> 3, bytes.to_vec())
            }
            other => panic!("wire type {other}"),
        });
    }
    fields
}

/// Changes a stored object: `path` leads to a message (2 is the content, then 1 its metadata,
/// 2 its spec, 3 its status), whose fields `edit` changes.
fn changed(value: &[u8], path: &[u64], edit: impl FnOnce(&mut Vec<Field>)) -> Vec<u8> {
    fn within(message: &[u8], path: &[u64], edit: impl FnOnce(&mut Vec<Field>)) -> Vec<u8> {
        let mut fields = decode(message);
        match path {
            [] => edit(&mut fields),
            [number, path @ ..] => {
                let inner = fields.iter_mut().find(|f| f.number() == *number);
                let Some(Field::Bytes(_, bytes)) = inner else {
                    panic!("no message {number}")
                };
                *bytes = within(bytes, path, edit);
            }
        }
        encode(&fields)
    }
    let envelope = value.strip_prefix(b"k8s\0").expect("an envelope");
    [b"k8s\0", &within(envelope, path, edit)[..]].concat()
}

const CONTENT: &[u64] = &[2];
const METADATA: &[u64] = &[2, 1];
const SPEC: &[u64] = &[2, 2];
const STATUS: &[u64] = &[2, 3];

fn set(fields: &mut Vec<Field>, field: Field) {
    fields.retain(|f| f.number() != field.number());
    let at = fields
        .iter()
        .position(|f| f.number() > field.number())
        .unwrap_or(fields.len());
    fields.insert(at, field);
}

fn bytes(number: u64, content: &[u8]) -> Field {
    Field::Bytes(number, content.to_vec())
}

/// Progress, key by key: kind, old, new.
const PROGRESS: [(&str, &str, &str); 5] = [
    (
        "/registry/pods/a/b",
        "pod-of-replicaset+bound",
        "pod-of-replicaset+running",
    ),
    (
        "/registry/deployments/a/b",
        "deployment",
        "deployment+status",
    ),
    (
        "/registry/replicasets/a/b",
        "replicaset",
        "replicaset+status",
    ),
    ("/registry/minions/n", "node+status", "node+status-later"),
    (
        "/registry/leases/kube-node-lease/n",
        "lease",
        "lease+renewed",
    ),
];

fn is_durable(policy: &Policy, key: &str, old: &[u8], new: &[u8]) -> bool {
    policy
        .class(key.as_bytes(), Change::update(old, new))
        .is_durable()
}

#[test]
fn surgery_that_changes_nothing_changes_nothing() {
    let objects = Objects::of("1.37");
    for (_, old, new) in PROGRESS {
        for name in [old, new] {
            assert_eq!(
                changed(objects.get(name), STATUS.get(..1).unwrap(), |_| {}),
                objects.get(name),
                "{name}"
            );
        }
    }
}

#[test]
fn every_field_of_the_metadata_but_bookkeeping_is_essential() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Balanced);
    for (key, old, new) in PROGRESS {
        let (old, new) = (objects.get(old), objects.get(new));
        assert!(!is_durable(&policy, key, old, new), "{key}");
        for number in 1..=20 {
            let field = match number {
                7 | 10 => Field::Integer(number, 99),
                11 | 12 => bytes(number, b"\x0a\x01k\x12\x01v"),
                _ => bytes(number, b"\x0a\x01x"),
            };
            let other = changed(new, METADATA, |fields| set(fields, field.clone()));
            let expected = number != 17;
            assert_eq!(
                is_durable(&policy, key, old, &other),
                expected,
                "{key} metadata {number}"
            );
            // Gone instead of changed, and there before instead of after.
            let other = changed(old, METADATA, |fields| set(fields, field));
            assert_eq!(
                is_durable(&policy, key, &other, new),
                expected,
                "{key} metadata {number}"
            );
        }
    }
}

#[test]
fn the_rollouts_number_goes_with_a_deployments_status_only() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Balanced);
    let entry = bytes(12, b"\x0a\x21deployment.kubernetes.io/revision\x12\x01\x37");
    for (key, old, new) in &PROGRESS[..4] {
        let other = changed(objects.get(new), METADATA, |fields| {
            let at = fields
                .iter()
                .rposition(|f| f.number() <= 12)
                .map_or(0, |at| at + 1);
            fields.insert(at, entry.clone());
        });
        let durable = is_durable(&policy, key, objects.get(old), &other);
        assert_eq!(durable, !key.contains("deployments"), "{key}");
    }
}

#[test]
fn a_final_phase_is_essential_before_and_after() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Ephemeral);
    let running = objects.get("pod-of-replicaset+running");
    let ready = objects.get("pod-of-replicaset+ready");
    let key = "/registry/pods/a/b";
    assert!(!is_durable(&policy, key, running, ready));
    for phase in [&b"Failed"[..], b"Succeeded", b"Unknown", b"running", b"x"] {
        let ended = |pod: &[u8]| changed(pod, STATUS, |fields| set(fields, bytes(1, phase)));
        assert!(
            is_durable(&policy, key, running, &ended(ready)),
            "to {phase:?}"
        );
        assert!(
            is_durable(&policy, key, &ended(running), ready),
            "from {phase:?}"
        );
        assert!(
            is_durable(&policy, key, &ended(running), &ended(ready)),
            "within {phase:?}"
        );
    }
    for phase in [&b"Pending"[..], b""] {
        let began = changed(running, STATUS, |fields| set(fields, bytes(1, phase)));
        assert!(!is_durable(&policy, key, &began, ready), "from {phase:?}");
    }
}

/// Sets when an object was marked for deletion, and how long it may take.
fn mark(value: &[u8]) -> Vec<u8> {
    changed(value, METADATA, |fields| {
        set(fields, bytes(9, b"\x08\x01"));
        set(fields, Field::Integer(10, 30));
    })
}

#[test]
fn marks_for_deletion_are_told_of_every_kind_and_kept() {
    let objects = Objects::of("1.37");
    let marks = rules("[[rule]]\nprefix = \"/\"\nchange = \"mark\"\ndurability = \"volatile\"\n");
    for name in [
        "pod-of-replicaset+ready",
        "replicaset+status",
        "deployment+status",
        "job+status",
        "configmap",
        "lease",
    ] {
        let object = objects.get(name);
        let marked = mark(object);
        assert!(!is_durable(&marks, "/x", object, &marked), "{name}");
        let sooner = changed(&marked, METADATA, |fields| {
            set(fields, Field::Integer(10, 0))
        });
        assert!(!is_durable(&marks, "/x", &marked, &sooner), "{name}");
        assert!(is_durable(&marks, "/x", object, object), "{name}");
        assert!(is_durable(&marks, "/x", &marked, &marked), "{name}");
    }
    for profile in [Profile::Ephemeral, Profile::Ci].map(profile) {
        for (key, name) in [
            ("/registry/pods/a/b", "pod-of-replicaset+running"),
            ("/registry/pods/a/b", "pod-of-job+ready"),
            ("/registry/pods/a/b", "pod-of-gitlab+running"),
            ("/registry/replicasets/a/b", "replicaset+status"),
        ] {
            let object = objects.get(name);
            assert!(is_durable(&profile, key, object, &mark(object)), "{name}");
        }
    }
}

#[test]
fn what_somebody_writes_to_a_pod_is_kept() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Ephemeral);
    let key = "/registry/pods/a/b";
    let class = |old: &[u8], new: &[u8]| policy.class(key.as_bytes(), Change::update(old, new));
    let (pod, bound) = (
        objects.get("pod-of-replicaset"),
        objects.get("pod-of-replicaset+bound"),
    );
    let (running, ready) = (
        objects.get("pod-of-replicaset+running"),
        objects.get("pod-of-replicaset+ready"),
    );
    let entry = bytes(11, b"\x0a\x01k\x12\x01v");
    let label = |value: &[u8]| changed(value, METADATA, |fields| set(fields, entry.clone()));
    let annotation = |value: &[u8]| {
        changed(value, METADATA, |fields| {
            set(fields, bytes(12, b"\x0a\x01k\x12\x01v"));
        })
    };
    let deadline = |value: &[u8]| changed(value, SPEC, |spec| set(spec, Field::Integer(5, 60)));
    let node = |value: &[u8], name: &[u8]| changed(value, SPEC, |spec| set(spec, bytes(10, name)));
    // The binding may bring both, as its author says.
    assert_eq!(class(pod, bound), volatile(100));
    assert_eq!(class(pod, &label(bound)), volatile(100));
    assert_eq!(class(pod, &annotation(bound)), volatile(100));
    assert_eq!(class(pod, &deadline(bound)), Class::Durable);
    assert_eq!(class(bound, &node(bound, b"node-2")), Class::Durable);
    assert_eq!(class(bound, &node(bound, b"")), Class::Durable);
    // Alone, or with the pod's progress.
    assert_eq!(class(running, ready), volatile(100));
    for old in [running, ready] {
        assert_eq!(class(old, &label(ready)), Class::Durable);
        assert_eq!(class(old, &annotation(ready)), Class::Durable);
        assert_eq!(class(old, &deadline(ready)), Class::Durable);
    }
    let also_owned = changed(ready, METADATA, |fields| {
        let at = fields.iter().position(|f| f.number() == 13);
        let reference = [
            bytes(1, b"Other"),
            bytes(3, b"n"),
            bytes(4, b"u"),
            bytes(5, b"v1"),
        ];
        let owner = Field::Bytes(13, encode(&reference));
        fields.insert(at.expect("an owner") + 1, owner);
    });
    assert_eq!(class(ready, &also_owned), Class::Durable);
}

#[test]
fn a_renewal_needs_a_holder_and_times() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Balanced);
    let (key, old, new) = PROGRESS[4];
    let (old, new) = (objects.get(old), objects.get(new));
    let both = |edit: fn(&mut Vec<Field>)| {
        is_durable(
            &policy,
            key,
            &changed(old, SPEC, edit),
            &changed(new, SPEC, edit),
        )
    };
    assert!(!both(|_| {}));
    assert!(both(|spec| set(spec, bytes(1, b""))));
    assert!(both(|spec| spec.retain(|f| f.number() != 1)));
    assert!(both(|spec| set(spec, bytes(6, b"OldestEmulationVersion"))));
    assert!(both(|spec| set(spec, bytes(7, b"other"))));
    assert!(both(|spec| set(spec, bytes(8, b"new"))));
    let without = |value| changed(value, SPEC, |spec| spec.retain(|f| f.number() != 4));
    assert!(is_durable(&policy, key, &without(old), new));
    assert!(is_durable(&policy, key, old, &without(new)));
    for number in [1, 2, 3, 5] {
        let field = if number == 2 || number == 5 {
            Field::Integer(number, 9)
        } else {
            bytes(number, b"\x08\x01")
        };
        let other = changed(new, SPEC, |spec| set(spec, field));
        assert!(is_durable(&policy, key, old, &other), "lease spec {number}");
    }
    let with_status = |value| changed(value, CONTENT, |parts| parts.push(bytes(3, b"x")));
    assert!(is_durable(
        &policy,
        key,
        &with_status(old),
        &with_status(new)
    ));
}

#[test]
fn an_envelope_that_is_not_plain_is_not_understood() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Balanced);
    for (key, old, new) in PROGRESS {
        let (old, new) = (objects.get(old), objects.get(new));
        let both = |edit: &dyn Fn(&mut Vec<Field>)| {
            is_durable(
                &policy,
                key,
                &changed(old, &[], edit),
                &changed(new, &[], edit),
            )
        };
        assert!(both(&|envelope| set(envelope, bytes(3, b"gzip"))), "{key}");
        assert!(
            both(&|envelope| set(envelope, bytes(4, b"application/json"))),
            "{key}"
        );
        assert!(!both(&|envelope| set(
            envelope,
            bytes(4, b"application/vnd.kubernetes.protobuf")
        )));
        assert!(
            both(&|envelope| envelope.retain(|f| f.number() != 1)),
            "{key}"
        );
        assert!(
            both(&|envelope| envelope.retain(|f| f.number() != 2)),
            "{key}"
        );
        let one = |path: &[u64], edit: &dyn Fn(&mut Vec<Field>)| {
            is_durable(&policy, key, old, &changed(new, path, edit))
        };
        // Another kind or version, of one of them or of both.
        assert!(one(&[1], &|kind| set(kind, bytes(1, b"v9"))), "{key}");
        assert!(one(&[1], &|kind| set(kind, bytes(2, b"Other"))), "{key}");
        let other = |value| changed(value, &[1], |kind| set(kind, bytes(1, b"example.com/v1")));
        assert!(is_durable(&policy, key, &other(old), &other(new)), "{key}");
        assert!(
            one(CONTENT, &|parts| parts.retain(|f| f.number() != 1)),
            "{key}"
        );
        assert!(one(CONTENT, &|parts| parts.push(bytes(4, b"new"))), "{key}");
    }
}

#[test]
fn a_kind_that_changed_is_not_understood() {
    let objects = Objects::of("1.37");
    let policy =
        rules("[[rule]]\nprefix = \"/\"\nchange = \"status\"\ndurability = \"volatile\"\n");
    // Status messages alike enough to be compared.
    let old = objects.get("replicaset");
    let new = objects.get("replicaset+status");
    assert!(!is_durable(&policy, "/x", old, new));
    let other = changed(old, &[1], |kind| set(kind, bytes(2, b"DaemonSet")));
    assert!(is_durable(&policy, "/x", &other, new));
    let other = changed(new, &[1], |kind| set(kind, bytes(2, b"DaemonSet")));
    assert!(is_durable(&policy, "/x", old, &other));
}

#[test]
fn fields_doubled_or_out_of_order_are_not_understood() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Balanced);
    for (key, old, new) in PROGRESS {
        let (old, new) = (objects.get(old), objects.get(new));
        for path in [
            &[][..],
            CONTENT,
            METADATA,
            if key.contains("leases") { SPEC } else { STATUS },
        ] {
            let swapped = changed(new, path, |fields| {
                let last = fields.len() - 1;
                fields.swap(0, last);
            });
            assert!(
                is_durable(&policy, key, old, &swapped),
                "{key} {path:?} swapped"
            );
            let singular = |f: &Field| !matches!(f.number(), 2 | 11..=14 | 17) || path.len() < 2;
            let doubled = changed(new, path, |fields| {
                let at = fields.iter().position(singular).expect("a singular field");
                fields.insert(at, fields[at].clone());
            });
            let repeated = key.contains("minions") && path == STATUS;
            assert!(
                repeated || is_durable(&policy, key, old, &doubled),
                "{key} {path:?} doubled"
            );
            let group = changed(new, path, |fields| fields.push(Field::Integer(63, 1)));
            assert!(
                is_durable(&policy, key, old, &group),
                "{key} {path:?} unknown"
            );
        }
    }
}

#[test]
fn two_controllers_are_a_doubt() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Ephemeral);
    let key = "/registry/pods/a/b";
    let pod = objects.get("pod-of-replicaset");
    let create = |pod: &[u8]| policy.class(key.as_bytes(), Change::create(pod));
    assert_eq!(create(pod), volatile(100));
    let edited = |edit: &dyn Fn(&mut Vec<Field>, usize)| {
        changed(pod, METADATA, |fields| {
            let at = fields
                .iter()
                .position(|f| f.number() == 13)
                .expect("an owner");
            edit(fields, at);
        })
    };
    let twice = edited(&|fields, at| fields.insert(at, fields[at].clone()));
    assert_eq!(create(&twice), Class::Durable);
    let reference = |kind: &[u8], controller: u64| {
        let fields = [
            bytes(1, kind),
            bytes(3, b"n"),
            bytes(4, b"u"),
            bytes(5, b"apps/v1"),
            Field::Integer(6, controller),
            Field::Integer(7, 1),
        ];
        Field::Bytes(13, encode(&fields))
    };
    let also = edited(&|fields, at| fields.insert(at, reference(b"Other", 0)));
    assert_eq!(create(&also), volatile(100));
    let no_controller = edited(&|fields, at| fields[at] = reference(b"ReplicaSet", 0));
    assert_eq!(create(&no_controller), Class::Durable);
    let unknown = edited(&|fields, at| fields[at] = bytes(13, b"\x42\x00"));
    assert_eq!(create(&unknown), Class::Durable);
}

#[test]
fn what_a_newer_pod_may_claim_is_a_doubt() {
    let objects = Objects::of("1.37");
    let policy = profile(Profile::Ephemeral);
    let pod = objects.get("pod-of-replicaset");
    for number in [42, 43, 44, 45, 63] {
        let newer = changed(pod, SPEC, |spec| spec.push(bytes(number, b"x")));
        assert_eq!(
            policy.class(b"/registry/pods/a/b", Change::create(&newer)),
            Class::Durable,
            "{number}"
        );
    }
    for source in 1..=31 {
        let volume = encode(&[
            bytes(1, b"v"),
            Field::Bytes(2, encode(&[bytes(source, b"")])),
        ]);
        let with = changed(pod, SPEC, |spec| spec.insert(0, Field::Bytes(1, volume)));
        let class = policy.class(b"/registry/pods/a/b", Change::create(&with));
        let is_harmless = [1, 2, 5, 6, 7, 16, 19, 26, 28, 30].contains(&source);
        assert_eq!(!class.is_durable(), is_harmless, "volume source {source}");
    }
}
