//! Lanes: ways of writes into the log, one a storage class.

use std::ops::{Index, IndexMut};

/// The way of a write into the log. The writes of one lane become visible in the order of their
/// admission; those of different lanes in any order. A stronger lane is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Writes that are answered when they are in the log, and on disk a little later.
    Volatile,
    /// Writes that are answered when they are on disk.
    Durable,
}

impl Lane {
    /// Every lane, weakest first.
    pub const ALL: [Lane; 2] = [Lane::Volatile, Lane::Durable];
}

/// A value a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLane<T>([T; Lane::ALL.len()]);

impl<T> PerLane<T> {
    /// The values of a function.
    pub fn new(of: impl FnMut(Lane) -> T) -> Self {
        PerLane(Lane::ALL.map(of))
    }

    /// The values with their lanes, weakest first.
    pub fn iter(&self) -> impl Iterator<Item = (Lane, &T)> {
        Lane::ALL.into_iter().zip(&self.0)
    }

    /// The values, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }

    /// The values of the other lanes.
    pub(crate) fn others(&self, than: Lane) -> impl Iterator<Item = (Lane, &T)> {
        self.iter().filter(move |(lane, _)| *lane != than)
    }
}

impl<T> Index<Lane> for PerLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        &self.0[lane as usize]
    }
}

impl<T> IndexMut<Lane> for PerLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        &mut self.0[lane as usize]
    }
}
