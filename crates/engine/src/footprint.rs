//! What a write reads and writes, as far as others must know.

use crate::lane::Lane;
use crate::op::KeyRange;

/// A key or range that an operation reads or writes, or both.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) range: KeyRange,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

/// What an operation of a lane wants with a key or range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) lane: Lane,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Want {
    /// Whether it must wait for a pending write of a lane.
    pub(crate) fn waits_for_write(self, held: Lane) -> bool {
        self.reads || (self.writes && held != self.lane)
    }

    /// Whether it must wait for a pending read of a lane.
    pub(crate) fn waits_for_read(self, held: Lane) -> bool {
        self.writes && held != self.lane
    }
}

/// What happens to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    /// It is granted.
    Granted(i64),
    /// It ends, and the keys that are attached to it go. They are not named here: they may
    /// change until the end is admitted, and there may be very many.
    Ended(i64),
}

impl LeaseChange {
    pub(crate) fn id(self) -> i64 {
        match self {
            LeaseChange::Granted(id) | LeaseChange::Ended(id) => id,
        }
    }
}

/// What an operation reads and writes.
#[derive(Clone, Debug)]
pub(crate) struct Footprint {
    /// How it becomes visible.
    pub(crate) lane: Lane,
    /// Most operations have one access; it needs no allocation.
    first: Option<Access>,
    rest: Vec<Access>,
    /// Leases that it needs to go on existing.
    pub(crate) leases_used: Vec<i64>,
    /// The lease that it grants or ends.
    pub(crate) lease: Option<LeaseChange>,
    /// It reads at a fixed revision.
    pub(crate) reads_history: bool,
    /// It moves the compact revision.
    pub(crate) compacts: bool,
}

impl Footprint {
    /// Nothing yet.
    pub(crate) fn new(lane: Lane) -> Self {
        Footprint {
            lane,
            first: None,
            rest: Vec::new(),
            leases_used: Vec::new(),
            lease: None,
            reads_history: false,
            compacts: false,
        }
    }

    /// Its evaluation reads `range`.
    pub(crate) fn read(&mut self, range: KeyRange) {
        self.access(range, true, false);
    }

    /// It writes `range`: a key, or the whole range of a DeleteRange.
    pub(crate) fn write(&mut self, range: KeyRange) {
        self.access(range, false, true);
    }

    /// It does both.
    pub(crate) fn change(&mut self, range: KeyRange) {
        self.access(range, true, true);
    }

    fn access(&mut self, range: KeyRange, reads: bool, writes: bool) {
        match &mut self.first {
            Some(a) if a.range == range => {
                a.reads |= reads;
                a.writes |= writes;
            }
            Some(_) => self.rest.push(Access {
                range,
                reads,
                writes,
            }),
            first => {
                *first = Some(Access {
                    range,
                    reads,
                    writes,
                });
            }
        }
    }

    pub(crate) fn accesses(&self) -> impl Iterator<Item = &Access> {
        self.first.iter().chain(&self.rest)
    }

    /// What it wants with one of its accesses.
    pub(crate) fn want(&self, access: &Access) -> Want {
        Want {
            lane: self.lane,
            reads: access.reads,
            writes: access.writes,
        }
    }

    /// Number of its parts, about: what a look at it costs.
    pub(crate) fn len(&self) -> usize {
        1 + self.rest.len() + self.leases_used.len()
    }
}
