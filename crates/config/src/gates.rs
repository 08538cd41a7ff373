//! etcd 3.7's feature gates.

use std::collections::BTreeMap;

use crate::golang::{parse_bool, quote};

/// A gate's maturity, which `AllAlpha` and `AllBeta` go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Alpha,
    Beta,
}

/// One feature gate of etcd 3.7.
pub(crate) struct Gate {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    pub(crate) default: bool,
    /// Whether orlop has the feature whatever the gate says.
    pub(crate) inherent: bool,
    /// What it comes to here.
    pub(crate) note: &'static str,
}

const fn gate(
    name: &'static str,
    stage: Stage,
    default: bool,
    inherent: bool,
    note: &'static str,
) -> Gate {
    Gate {
        name,
        stage,
        default,
        inherent,
        note,
    }
}

const PEERS: &str = "Concerns several members.";
const PERFORMANCE: &str = "A matter of etcd's own machinery.";

/// All gates, by name.
pub(crate) static GATES: &[Gate] = &[
    gate("CompactHashCheck", Stage::Alpha, false, false, PEERS),
    gate("FastLeaseKeepAlive", Stage::Beta, true, false, PERFORMANCE),
    gate(
        "InitialCorruptCheck",
        Stage::Alpha,
        false,
        true,
        "Always on: every start verifies the checksums of the journal it reads.",
    ),
    gate("LeaseCheckpoint", Stage::Alpha, false, false, PEERS),
    gate("LeaseCheckpointPersist", Stage::Alpha, false, false, PEERS),
    gate("PriorityRequest", Stage::Alpha, false, false, PERFORMANCE),
    gate("SetMemberLocalAddr", Stage::Alpha, false, false, PEERS),
    gate(
        "StopGRPCServiceOnDefrag",
        Stage::Alpha,
        false,
        false,
        "Defragmentation does not stop the service.",
    ),
    gate(
        "TxnModeWriteWithSharedBuffer",
        Stage::Beta,
        true,
        false,
        PERFORMANCE,
    ),
];

const ALL: [&str; 2] = ["AllAlpha", "AllBeta"];

/// Reads `Gate=true,Other=false`. The errors are etcd's.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, bool>, String> {
    let mut set = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), value.trim()),
            None => return Err(format!("missing bool value for {}", part.trim())),
        };
        let on = parse_bool(value).ok_or_else(|| {
            format!(
                "invalid value of {name}={value}, err: strconv.ParseBool: parsing {}: invalid syntax",
                quote(value)
            )
        })?;
        if !ALL.contains(&name) && !GATES.iter().any(|gate| gate.name == name) {
            return Err(format!("unrecognized feature gate: {name}"));
        }
        set.insert(name.to_owned(), on);
    }
    Ok(set)
}

/// Whether a gate is on, given those that were set.
pub(crate) fn enabled(set: &BTreeMap<String, bool>, name: &str) -> bool {
    let Some(gate) = GATES.iter().find(|gate| gate.name == name) else {
        return false;
    };
    let all = match gate.stage {
        Stage::Alpha => "AllAlpha",
        Stage::Beta => "AllBeta",
    };
    let explicit = set.get(name).or_else(|| set.get(all));
    explicit.copied().unwrap_or(gate.default)
}
