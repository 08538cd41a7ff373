//! What clients write: plain keys, or keys and objects as kube-apiserver writes them.

/// The names of keys, and what values look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum World {
    /// `k0`, `k1` and so on, with any text.
    #[default]
    Plain,
    /// ConfigMaps, Events, Pods of a ReplicaSet and node leases in turn. Pods and leases are
    /// stored objects, of which an update changes only the status or the renewal time; so the
    /// rules that ship take some of these writes by their key, some by what they change, and
    /// some not at all.
    Kubernetes,
}

impl World {
    /// The key with this number.
    #[must_use]
    pub fn key(self, n: usize) -> String {
        match (self, n % 4) {
            (Self::Plain, _) => format!("k{n}"),
            (Self::Kubernetes, 0) => format!("/registry/configmaps/ns/c{n}"),
            (Self::Kubernetes, 1) => format!("/registry/events/ns/e{n}"),
            (Self::Kubernetes, 2) => format!("/registry/pods/ns/p{n}"),
            (Self::Kubernetes, _) => format!("/registry/leases/kube-node-lease/n{n}"),
        }
    }

    /// A value for `key` that no other text gives.
    #[must_use]
    pub fn value(self, key: &str, text: String) -> String {
        if key.starts_with("/registry/pods/") {
            pod(text.trim_end())
        } else if key.starts_with("/registry/leases/") {
            lease(text.trim_end())
        } else {
            text
        }
    }

    /// Prefixes of keys to watch; the second has all of them.
    #[must_use]
    pub fn prefixes(self) -> [&'static str; 3] {
        match self {
            Self::Plain => ["k1", "k", "k3"],
            Self::Kubernetes => ["/registry/events/", "/registry/", "/registry/pods/"],
        }
    }
}

/// A protobuf message of strings and messages, which come in the order of their numbers. It is
/// short, so that every length is one byte below 128, and all of it is valid text.
fn message(fields: &[(u8, &str)]) -> String {
    let mut out = String::new();
    for (number, content) in fields {
        assert!(*number < 16 && content.len() < 128, "{content}");
        out.push(char::from(number << 3 | 2));
        out.push(char::from(content.len() as u8));
        out.push_str(content);
    }
    out
}

/// A stored object, as `runtime.Unknown`.
fn stored(api_version: &str, kind: &str, raw: &str) -> String {
    let types = message(&[(1, api_version), (2, kind)]);
    format!(
        "k8s\0{}",
        message(&[(1, &*types), (2, raw), (3, ""), (4, "")])
    )
}

/// A running pod of a ReplicaSet, with `text` as its status' message.
fn pod(text: &str) -> String {
    // kind, name, uid, apiVersion; then controller (6): true.
    let owner = message(&[(1, "ReplicaSet"), (3, "rs"), (4, "u"), (5, "apps/v1")]) + "\x30\x01";
    let raw = message(&[
        (1, &*message(&[(1, "pod"), (13, &*owner)])),
        (2, &*message(&[(3, "Always")])),
        (3, &*message(&[(1, "Running"), (3, text)])),
    ]);
    stored("v1", "Pod", &raw)
}

/// A held lease, with `text` in the place of its renewal time: that is compared, not read.
fn lease(text: &str) -> String {
    let raw = message(&[
        (1, &*message(&[(1, "node")])),
        (2, &*message(&[(1, "node"), (4, text)])),
    ]);
    stored("coordination.k8s.io/v1", "Lease", &raw)
}
