//! Flags that etcd 3.6 or 3.7 removed, which older manifests still pass.

use crate::value::Kind;

/// What a removed flag turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// A flag of the same kind.
    Flag(&'static str),
    /// A feature gate.
    Gate(&'static str),
    /// Nothing: these values are ignored with a warning, others are refused
    /// with the sentence.
    Nothing {
        /// Values that ask for nothing; empty: all.
        harmless: &'static [&'static str],
        /// Why the others are refused.
        why: &'static str,
    },
}

/// A flag of etcd 3.5 or 3.6 that etcd 3.7 does not have.
#[derive(Clone, Copy, Debug)]
pub struct Removed {
    /// Its name.
    pub name: &'static str,
    /// The release that removed it.
    pub release: &'static str,
    /// What form its value has.
    pub kind: Kind,
    /// What it turned into.
    pub successor: Successor,
}

const fn to_flag(name: &'static str, kind: Kind, successor: &'static str) -> Removed {
    Removed {
        name,
        release: "3.7",
        kind,
        successor: Successor::Flag(successor),
    }
}

const fn to_gate(name: &'static str, gate: &'static str) -> Removed {
    Removed {
        name,
        release: "3.7",
        kind: Kind::Bool,
        successor: Successor::Gate(gate),
    }
}

const fn gone(
    name: &'static str,
    release: &'static str,
    kind: Kind,
    harmless: &'static [&'static str],
    why: &'static str,
) -> Removed {
    Removed {
        name,
        release,
        kind,
        successor: Successor::Nothing { harmless, why },
    }
}

const UINT: Kind = Kind::Uint { bits: 64 };
const V2: &str = "there is no v2 API; use v3 clients";
const DISCOVERY: &str = "discovery finds other members, and there is one member; remove the flag";
const PROXY: &str = "there is no v2 proxy; remove the flag";

/// Every flag of etcd 3.5.35 and 3.6.16 that etcd 3.7.3 does not register, by
/// name.
pub static REMOVED: &[Removed] = &[
    gone("discovery", "3.7", Kind::Text, &[""], DISCOVERY),
    gone("discovery-proxy", "3.7", Kind::Text, &[], ""),
    gone("enable-v2", "3.6", Kind::Bool, &["false"], V2),
    to_flag(
        "experimental-bootstrap-defrag-threshold-megabytes",
        UINT,
        "bootstrap-defrag-threshold-megabytes",
    ),
    to_gate(
        "experimental-compact-hash-check-enabled",
        "CompactHashCheck",
    ),
    to_flag(
        "experimental-compact-hash-check-time",
        Kind::Duration,
        "compact-hash-check-time",
    ),
    to_flag(
        "experimental-compaction-batch-limit",
        Kind::Int,
        "compaction-batch-limit",
    ),
    to_flag(
        "experimental-compaction-sleep-interval",
        Kind::Duration,
        "compaction-sleep-interval",
    ),
    to_flag(
        "experimental-corrupt-check-time",
        Kind::Duration,
        "corrupt-check-time",
    ),
    to_flag(
        "experimental-distributed-tracing-address",
        Kind::Text,
        "distributed-tracing-address",
    ),
    to_flag(
        "experimental-distributed-tracing-instance-id",
        Kind::Text,
        "distributed-tracing-instance-id",
    ),
    to_flag(
        "experimental-distributed-tracing-sampling-rate",
        Kind::Int,
        "distributed-tracing-sampling-rate",
    ),
    to_flag(
        "experimental-distributed-tracing-service-name",
        Kind::Text,
        "distributed-tracing-service-name",
    ),
    to_flag(
        "experimental-downgrade-check-time",
        Kind::Duration,
        "downgrade-check-time",
    ),
    to_flag(
        "experimental-enable-distributed-tracing",
        Kind::Bool,
        "enable-distributed-tracing",
    ),
    to_gate("experimental-enable-lease-checkpoint", "LeaseCheckpoint"),
    to_gate(
        "experimental-enable-lease-checkpoint-persist",
        "LeaseCheckpointPersist",
    ),
    gone("experimental-enable-v2v3", "3.6", Kind::Text, &[""], V2),
    to_gate("experimental-initial-corrupt-check", "InitialCorruptCheck"),
    to_flag("experimental-memory-mlock", Kind::Bool, "memory-mlock"),
    to_flag(
        "experimental-peer-skip-client-san-verification",
        Kind::Bool,
        "peer-skip-client-san-verification",
    ),
    to_flag(
        "experimental-snapshot-catchup-entries",
        UINT,
        "snapshot-catchup-entries",
    ),
    to_gate(
        "experimental-stop-grpc-service-on-defrag",
        "StopGRPCServiceOnDefrag",
    ),
    to_gate(
        "experimental-txn-mode-write-with-shared-buffer",
        "TxnModeWriteWithSharedBuffer",
    ),
    to_flag(
        "experimental-warning-apply-duration",
        Kind::Duration,
        "warning-apply-duration",
    ),
    to_flag(
        "experimental-warning-unary-request-duration",
        Kind::Duration,
        "warning-unary-request-duration",
    ),
    to_flag(
        "experimental-watch-progress-notify-interval",
        Kind::Duration,
        "watch-progress-notify-interval",
    ),
    gone(
        "proxy",
        "3.6",
        Kind::Choice(&["off", "readonly", "on"]),
        &["off"],
        PROXY,
    ),
    gone("proxy-dial-timeout", "3.6", UINT, &[], ""),
    gone("proxy-failure-wait", "3.6", UINT, &[], ""),
    gone("proxy-read-timeout", "3.6", UINT, &[], ""),
    gone("proxy-refresh-interval", "3.6", UINT, &[], ""),
    gone("proxy-write-timeout", "3.6", UINT, &[], ""),
];

/// The removed flag of this name.
pub(crate) fn find(name: &str) -> Option<&'static Removed> {
    REMOVED.iter().find(|removed| removed.name == name)
}

/// The names of the flags that etcd 3.6 or 3.7 removed and orlop still takes.
#[must_use]
pub fn removed_flag_names() -> Vec<&'static str> {
    REMOVED.iter().map(|removed| removed.name).collect()
}
