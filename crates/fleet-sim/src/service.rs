//! A service in the simulation: its pods, its traffic, and what its policy remembers.

use std::collections::{BTreeMap, VecDeque};

use placement::{Entered, Memory, Resources};

/// Index of a request.
pub(crate) type RequestId = usize;

/// The pods of one service on one node.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// As decided.
    pub(crate) wanted: u32,
    /// Created, not ready.
    pub(crate) starting: u32,
    /// Of those, so many are not wanted any more and go when they are ready.
    pub(crate) cancelled: u32,
    pub(crate) ready: u32,
    /// Requests that are served now.
    pub(crate) busy: u32,
    /// Arrived, and when.
    pub(crate) queue: VecDeque<(RequestId, u64)>,
    /// Sent here and not answered, from all nodes.
    pub(crate) in_flight: u32,
    /// The same by the node that sent them.
    pub(crate) in_flight_from: BTreeMap<u32, u32>,
    /// `in_flight` as other nodes know it.
    pub(crate) reported: u32,
}

impl Pool {
    /// Pods that take room.
    pub(crate) fn created(&self) -> u32 {
        self.starting - self.cancelled + self.ready
    }
}

/// A sum over the last rounds.
#[derive(Debug)]
pub(crate) struct Window<T> {
    rounds: VecDeque<T>,
    now: T,
}

impl<T: Default + Copy> Default for Window<T> {
    fn default() -> Self {
        Self {
            rounds: VecDeque::new(),
            now: T::default(),
        }
    }
}

impl<T: Default + Copy> Window<T> {
    pub(crate) fn now(&mut self) -> &mut T {
        &mut self.now
    }

    /// Ends a round; returns the last `most` ones.
    pub(crate) fn turn(&mut self, most: usize) -> impl Iterator<Item = T> + '_ {
        self.rounds.push_back(std::mem::take(&mut self.now));
        while self.rounds.len() > most {
            self.rounds.pop_front();
        }
        self.rounds.iter().copied()
    }
}

/// One service.
#[derive(Debug, Default)]
pub(crate) struct Service {
    /// Index of its group in the scenario.
    pub(crate) group: usize,
    pub(crate) request: Resources,
    pub(crate) pools: BTreeMap<u32, Pool>,
    /// Requests that entered, by node.
    pub(crate) entered: BTreeMap<u32, Window<u32>>,
    /// Serving time in ms and requests, by node.
    pub(crate) served: BTreeMap<u32, Window<(f64, u32)>>,
    /// Requests that wait for a pod, with the node where they entered.
    pub(crate) waiting: VecDeque<RequestId>,
    /// What `placement` remembers; also its P for the policies that need one.
    pub(crate) memory: Memory,
    /// Requests by node over the window, as of the last round.
    pub(crate) entries: Vec<Entered>,
    /// Rounds in which a spreading policy had a pod too many.
    pub(crate) spare_rounds: u32,
    /// What the seed wanted for each node in the last round.
    pub(crate) seed_wanted: BTreeMap<u32, u32>,
    /// Turn of round robin.
    pub(crate) turn: u64,
    /// True rates that the oracle knows, by node: users and arrivals.
    pub(crate) truth: Vec<TrueRate>,
}

/// A source of requests as the oracle knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrueRate {
    pub(crate) node: u32,
    pub(crate) rate: f64,
    pub(crate) from_s: f64,
    pub(crate) until_s: f64,
}

impl Service {
    /// Nodes with ready pods, and how many.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (u32, &Pool)> {
        self.pools
            .iter()
            .filter(|(_, pool)| pool.ready > 0)
            .map(|(node, pool)| (*node, pool))
    }
}
