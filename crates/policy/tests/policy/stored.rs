//! Reads `testdata`: objects made by Kubernetes' own types and serializer, see
//! `testdata/gen/main.go`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use policy::{Change, Class, Policy, Profile};
use std::collections::BTreeMap;
use std::path::Path;

/// The releases that there are objects of.
pub(crate) const RELEASES: [&str; 2] = ["1.28", "1.37"];

fn base64(text: &str) -> Vec<u8> {
    STANDARD.decode(text).expect("base64")
}

fn lines(release: &str, file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(release)
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The objects of a release by name.
pub(crate) struct Objects(BTreeMap<String, Vec<u8>>);

impl Objects {
    pub(crate) fn of(release: &str) -> Self {
        let parse = |line: &str| {
            let (name, value) = line.split_once('\t').expect("a name and a value");
            (name.to_string(), base64(value))
        };
        Objects(lines(release, "objects.txt").lines().map(parse).collect())
    }

    pub(crate) fn find(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub(crate) fn get(&self, name: &str) -> &[u8] {
        self.find(name)
            .unwrap_or_else(|| panic!("no object {name}"))
    }

    /// `old > new`, where either may be empty.
    pub(crate) fn change(&self, change: &str) -> Change<'_> {
        let (old, new) = change.split_once('>').expect("old > new");
        let get = |name: &str| (!name.trim().is_empty()).then(|| self.get(name.trim()));
        Change {
            old: get(old),
            new: get(new),
        }
    }
}

/// One field of one kind's status.
pub(crate) struct StatusField {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) field: String,
    pub(crate) old: Vec<u8>,
    pub(crate) new: Vec<u8>,
}

pub(crate) fn status_fields(release: &str) -> Vec<StatusField> {
    let parse = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [api_version, kind, field, _, old, new] => StatusField {
            api_version: api_version.to_string(),
            kind: kind.to_string(),
            field: field.to_string(),
            old: base64(old),
            new: base64(new),
        },
        _ => panic!("not a line of status fields: {line}"),
    };
    lines(release, "status-fields.txt")
        .lines()
        .map(parse)
        .collect()
}

pub(crate) fn profile(profile: Profile) -> Policy {
    Policy::profile(profile, None).expect("a profile that ships")
}

pub(crate) fn rules(text: &str) -> Policy {
    Policy::parse("test.toml", text, None).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) const fn volatile(sync_within_ms: u32) -> Class {
    Class::Volatile { sync_within_ms }
}
