//! Who waits, in the order of arrival, up to a bound.

use std::collections::BTreeMap;

/// A place in a [`Line`]. Places are never given twice by one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

/// First in, first out; who waits may go at any time. Each of these is a step of the logarithm of
/// its length.
#[derive(Clone, Debug)]
pub struct Line<T> {
    waiting: BTreeMap<Place, T>,
    next: u64,
    max: usize,
}

impl<T> Line<T> {
    /// For at most `max`.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            next: 0,
            max,
        }
    }

    /// Another bound. Who waits already stays.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Waits behind all others.
    ///
    /// # Errors
    /// What was given, if the line is full.
    pub fn push(&mut self, who: T) -> Result<Place, T> {
        if self.waiting.len() >= self.max {
            return Err(who);
        }
        let place = Place(self.next);
        self.next += 1;
        self.waiting.insert(place, who);
        Ok(place)
    }

    /// Who has waited longest goes.
    pub fn pop(&mut self) -> Option<T> {
        self.waiting.pop_first().map(|(_, who)| who)
    }

    /// Who is at this place goes, if still there.
    pub fn leave(&mut self, place: Place) -> Option<T> {
        self.waiting.remove(&place)
    }

    /// All go, in their order.
    pub fn drain(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
