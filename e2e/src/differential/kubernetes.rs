//! Kubernetes' keys and stored objects, for sequences that the rules that ship are about.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::rng::Rng;
use crate::kube::{Result, ensure, fail};

/// Keys, and the objects that are put there: those whose name is the second word, or begins
/// with it and `+`. They are one object before and after all sorts of changes.
const KEYS: [(&str, &str); 18] = [
    ("/registry/pods/default/a", "pod-of-replicaset"),
    ("/registry/pods/default/b", "pod-of-job"),
    ("/registry/pods/default/c", "pod-of-statefulset"),
    ("/registry/events/default/a", "event"),
    ("/registry/replicasets/default/a", "replicaset"),
    ("/registry/deployments/default/a", "deployment"),
    ("/registry/leases/kube-node-lease/a", "lease"),
    ("/registry/minions/a", "node"),
    ("/registry/configmaps/default/a", "configmap"),
    ("/registry/pods/default/d", "pod-of-daemonset"),
    ("/registry/pods/default/e", "pod-bare"),
    ("/registry/pods/default/f", "pod-of-replicaset"),
    ("/registry/pods/kube-system/a", "pod-with-device"),
    ("/registry/events/default/b", "event"),
    ("/registry/masterleases/192.0.2.1", "endpoints"),
    (
        "/registry/leases/kube-system/kube-controller-manager",
        "lease",
    ),
    ("/registry/jobs/default/a", "job"),
    ("/registry/secrets/default/a", "secret"),
];

/// Keys and what can be stored there.
#[derive(Debug, Clone)]
pub struct Objects(BTreeMap<&'static str, Vec<Bytes>>);

impl Objects {
    /// Reads the objects of Kubernetes 1.37 that the tests of the crate `policy` have.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates/policy/testdata/1.37/objects.txt");
        let text = std::fs::read_to_string(&path)?;
        let mut of: BTreeMap<&str, Vec<Bytes>> = BTreeMap::new();
        for line in text.lines() {
            let Some((name, value)) = line.split_once('\t') else {
                return fail(format!("{}: {line}", path.display()));
            };
            let Ok(value) = STANDARD.decode(value) else {
                return fail(format!("{}: {name} is not base64", path.display()));
            };
            let object = name.split('+').next().unwrap_or_default();
            of.entry(object).or_default().push(Bytes::from(value));
        }
        let mut keys = BTreeMap::new();
        for (key, object) in KEYS {
            let values = of.get(object).cloned().unwrap_or_default();
            ensure(!values.is_empty(), || {
                format!("{}: there is no {object}", path.display())
            })?;
            keys.insert(key, values);
        }
        Ok(Self(keys))
    }

    /// One of the first `count` keys.
    pub(super) fn key(&self, count: usize, rng: &mut Rng) -> Bytes {
        let (key, _) = KEYS[rng.below(count.min(KEYS.len()))];
        Bytes::from_static(key.as_bytes())
    }

    /// Something that is stored at `key`; `None` if it is not one of the keys.
    pub(super) fn value(&self, key: &[u8], rng: &mut Rng) -> Option<Bytes> {
        let key = std::str::from_utf8(key).ok()?;
        let values = self.0.get(key)?;
        Some(values[rng.below(values.len())].clone())
    }
}
