//! What traffic wishes for: pods where none has time, or much nearer ones.

use super::Round;
use crate::Node;
use crate::assign::EPSILON;
use crate::demand::{Demand, Load};

/// Which wishes are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of traffic that no pod has time for.
    Unserved,
    /// Of traffic that is served much farther away than it need be.
    Nearer,
    /// Of either.
    Both,
}

/// A wish of a node's traffic.
pub(super) struct Wish {
    pub(super) traffic_of: Node,
    /// In pods.
    pub(super) size: f64,
    pub(super) to: Option<(Node, f64)>,
    pub(super) unserved: bool,
}

impl Round<'_> {
    /// `argmin_j R[from][j]` over nodes with room. Of those in a near tie, one with the image
    /// wins.
    pub(super) fn nearest_with_room(&mut self, from: Node, open: &[Node]) -> Option<(Node, f64)> {
        self.steps += open.len() as u64;
        let mut best: Option<(Node, f64)> = None;
        let mut with_image: Option<(Node, f64)> = None;
        for &node in open {
            let Some(ms) = self.response.ms(from, node) else {
                continue;
            };
            // A node itself wins over equals; else the lowest number does.
            let nearer = |other: Option<(Node, f64)>| {
                other.is_none_or(|(_, least)| ms < least || (ms == least && node == from))
            };
            let image = self.service.image_on.get(node.index()).copied() == Some(true);
            if nearer(best) {
                best = Some((node, ms));
            }
            if image && nearer(with_image) {
                with_image = Some((node, ms));
            }
        }
        let (_, least) = best?;
        with_image
            .filter(|(_, ms)| *ms <= least * (1.0 + self.settings.near_tie_ratio))
            .or(best)
    }

    /// The greatest wish of traffic, and what nobody can fulfil.
    pub(super) fn wishes(
        &mut self,
        sources: &[Load],
        open: &[Node],
        kind: Kind,
    ) -> (Option<Wish>, Vec<Load>) {
        let now = self.assign(sources);
        // No node is nearer than this. Where that is not much nearer nobody need be looked for.
        let nearest_ms = self.response.least_ms();
        let mut far: Vec<Vec<(f64, f64)>> = vec![Vec::new(); sources.len()];
        for flow in &now.flows {
            far[flow.source].push((flow.ms, flow.amount));
        }
        let mut greatest: Option<Wish> = None;
        let mut no_room = Vec::new();
        // Without pods, the whole demand may be too small to be seen, and one is needed all the
        // same; and scraps of sources are one wish together.
        for (source, (from, _)) in sources.iter().enumerate() {
            let unserved = match kind {
                Kind::Nearer => 0.0,
                Kind::Unserved | Kind::Both => now.unserved[source],
            };
            let is_unserved = unserved > EPSILON || (self.counts.is_empty() && unserved > 0.0);
            let farthest = far[source].iter().map(|(ms, _)| *ms).fold(0.0, f64::max);
            let served_near =
                kind == Kind::Unserved || !self.settings.much_nearer(nearest_ms, farthest);
            if !is_unserved && served_near {
                continue;
            }
            let to = self.nearest_with_room(*from, open);
            let much_farther: f64 = match to {
                Some((_, ms)) if kind != Kind::Unserved => far[source]
                    .iter()
                    .filter(|(now_ms, _)| self.settings.much_nearer(ms, *now_ms))
                    .map(|(_, amount)| amount)
                    .sum(),
                _ => 0.0,
            };
            if is_unserved && to.is_none() {
                no_room.push((*from, unserved));
                continue;
            }
            let size = unserved + much_farther;
            if !is_unserved && much_farther < self.settings.near_demand {
                continue;
            }
            let first = greatest
                .as_ref()
                .is_none_or(|wish| (is_unserved, size) > (wish.unserved, wish.size));
            if first {
                greatest = Some(Wish {
                    traffic_of: *from,
                    size,
                    to,
                    unserved: is_unserved,
                });
            }
        }
        (greatest, no_room)
    }

    /// Whether traffic would wish for a pod, at the most that demand may be.
    pub(super) fn would_be_missed(&mut self, demand: &Demand, open: &[Node]) -> bool {
        let (wish, no_room) = self.wishes(&demand.at_most_together, open, Kind::Both);
        wish.is_some()
            || !no_room.is_empty()
            || self.wishes(&demand.at_most, open, Kind::Nearer).0.is_some()
    }
}
