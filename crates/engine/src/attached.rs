//! Which keys are attached to which lease, as the visible state has it.

use crate::index::Index;
use crate::lease::Leases;
use crate::tail;

/// Answers of the visible state.
pub(crate) struct Attached<'a> {
    pub(crate) index: &'a Index,
    pub(crate) leases: &'a Leases,
}

impl<'a> Attached<'a> {
    /// The lease that a key is attached to.
    pub(crate) fn lease_of(&self, key: &[u8]) -> Option<i64> {
        let (_, version) = self.index.live(key)?;
        Some(tail::decode(version).lease).filter(|&lease| lease != 0)
    }

    /// The keys that are attached to a lease, in order.
    pub(crate) fn keys_of(&self, lease: i64) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.leases.attached(lease)
    }

    /// How many they are.
    pub(crate) fn count(&self, lease: i64) -> usize {
        self.leases.attached(lease).len()
    }
}
