//! Whom an agent measures: everybody, or in a large cluster its own zone and a sample of the
//! others, and what that says of those who are not in the sample.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::NodeName;
use crate::prober::View;

/// Peers up to which all are measured.
pub const FULL_MESH: usize = 200;
/// Fewest nodes of another zone that are measured: of one, nobody could say how far it is off.
const LEAST_OF_A_ZONE: usize = 3;
/// The sample of a zone changes by one node in such a time.
pub const TURN_US: u64 = 60_000_000;

/// A node that can be measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its name.
    pub node: NodeName,
    /// Where its agent listens.
    pub address: SocketAddr,
    /// Its zone, if it has one.
    pub zone: Option<NodeName>,
}

/// FNV-1a, spread over all bits: the same number for a name on every machine.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Whom the agent of `me` measures at this time. `me` is left out. Up to [`FULL_MESH`] peers that
/// is everybody; of more, the own zone and some of each other one, in turn.
#[must_use]
pub fn choose(me: &str, own_zone: Option<&NodeName>, nodes: &[Target], now_us: u64) -> Vec<Target> {
    let others: Vec<&Target> = nodes.iter().filter(|t| &*t.node != me).collect();
    if others.len() <= FULL_MESH {
        return others.into_iter().cloned().collect();
    }
    let mut zones: BTreeMap<Option<&NodeName>, Vec<&Target>> = BTreeMap::new();
    for target in others {
        zones.entry(target.zone.as_ref()).or_default().push(target);
    }
    let own = zones.remove(&own_zone).unwrap_or_default();
    let for_others = LEAST_OF_A_ZONE * zones.len();
    // A zone that is too large itself is sampled as well.
    let own_most = FULL_MESH.saturating_sub(for_others).max(LEAST_OF_A_ZONE);
    let mut chosen = sample(me, own, own_most, now_us);
    let left = FULL_MESH.saturating_sub(chosen.len());
    let each = (left / zones.len().max(1)).max(LEAST_OF_A_ZONE);
    for zone in zones.into_values() {
        chosen.extend(sample(me, zone, each, now_us));
    }
    chosen
}

/// `most` of these, from a place in a ring that moves on with time. Each agent has a ring of its
/// own, so not all ask the same.
fn sample(me: &str, mut nodes: Vec<&Target>, most: usize, now_us: u64) -> Vec<Target> {
    if nodes.len() > most {
        nodes.sort_by_key(|t| (hash(format!("{me}/{}", t.node).as_bytes()), t.node.clone()));
        let turn = (now_us / TURN_US) as usize % nodes.len();
        nodes.rotate_left(turn);
        nodes.truncate(most);
    }
    nodes.into_iter().cloned().collect()
}

/// What is thought of the way to a zone's nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneEstimate {
    /// The zone; empty for nodes without one.
    pub zone: NodeName,
    /// Median of the nodes that were measured, in ms.
    pub round_trip_ms: f64,
    /// By how much a node that was measured differs from the median of the others, on average, in
    /// ms; absent if only one was.
    pub error_ms: Option<f64>,
    /// Nodes that were measured.
    pub measured: usize,
}

/// Estimates by zone, from what was measured.
#[must_use]
pub fn estimates(views: &[View]) -> Vec<ZoneEstimate> {
    let mut zones: BTreeMap<NodeName, Vec<f64>> = BTreeMap::new();
    for view in views {
        if let Some(ms) = view.stats.p50_ms.filter(|_| view.stats.up == Some(true)) {
            let zone = view.zone.clone().unwrap_or_else(|| "".into());
            zones.entry(zone).or_default().push(ms);
        }
    }
    zones
        .into_iter()
        .filter_map(|(zone, mut values)| {
            values.sort_by(f64::total_cmp);
            let errors: Vec<f64> = (0..values.len())
                .filter_map(|out| {
                    let others: Vec<f64> = values
                        .iter()
                        .enumerate()
                        .filter(|(n, _)| *n != out)
                        .map(|(_, ms)| *ms)
                        .collect();
                    Some((values[out] - median(&others)?).abs())
                })
                .collect();
            let error_ms =
                (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64);
            Some(ZoneEstimate {
                zone,
                round_trip_ms: median(&values)?,
                error_ms,
                measured: values.len(),
            })
        })
        .collect()
}

fn median(sorted: &[f64]) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
}
