//! The one queue of a pod.

use std::num::NonZeroU32;

use crate::line::{Line, Place};

/// A request that the pod serves. It ends once, by [`Queue::finish`], which takes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that was admitted has to be finished"]
pub struct Admission(());

/// What became of a request that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered<T> {
    /// The pod serves it now. What was given comes back.
    Admitted(Admission, T),
    /// It waits at this place.
    Waits(Place),
}

/// Why a request may not even wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many wait as may.
    Full,
    /// The pod takes no more.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

/// Admits at most `concurrency` requests (containerConcurrency) at a time, in the order of arrival.
/// `T` is how the caller reaches one that waits.
#[derive(Debug)]
pub struct Queue<T> {
    gate: Gate,
    concurrency: Option<NonZeroU32>,
    in_flight: u32,
    line: Line<T>,
}

impl<T> Queue<T> {
    /// An open queue: `concurrency` at a time (`None`: as many as come), `max_waiting` behind them.
    #[must_use]
    pub fn new(concurrency: Option<NonZeroU32>, max_waiting: usize) -> Self {
        Self {
            gate: Gate::Open,
            concurrency,
            in_flight: 0,
            line: Line::new(max_waiting),
        }
    }

    fn has_slot(&self) -> bool {
        self.concurrency
            .is_none_or(|max| self.in_flight < max.get())
    }

    fn admit(&mut self) -> Admission {
        self.in_flight += 1;
        Admission(())
    }

    /// A request comes.
    ///
    /// # Errors
    /// Why it is refused, and what was given.
    pub fn enter(&mut self, who: T) -> Result<Entered<T>, (Refusal, T)> {
        if self.gate == Gate::Closed {
            return Err((Refusal::Closed, who));
        }
        // Nobody overtakes: with a slot free nobody waits, and this keeps it so.
        if self.line.is_empty() && self.has_slot() {
            return Ok(Entered::Admitted(self.admit(), who));
        }
        match self.line.push(who) {
            Ok(place) => Ok(Entered::Waits(place)),
            Err(who) => Err((Refusal::Full, who)),
        }
    }

    /// A request that was admitted is over. The next, if one waits, is admitted.
    pub fn finish(&mut self, admission: Admission) -> Option<(Admission, T)> {
        let Admission(()) = admission;
        self.in_flight -= 1;
        self.next()
    }

    fn next(&mut self) -> Option<(Admission, T)> {
        if !self.has_slot() {
            return None;
        }
        let who = self.line.pop()?;
        Some((self.admit(), who))
    }

    /// One that waits gives up. `None` if it does not wait any more: it was admitted or sent away.
    pub fn leave(&mut self, place: Place) -> Option<T> {
        self.line.leave(place)
    }

    /// Other bounds. Those that are admitted by that are told.
    #[must_use = "who was admitted has to be told"]
    pub fn resize(
        &mut self,
        concurrency: Option<NonZeroU32>,
        max_waiting: usize,
    ) -> Vec<(Admission, T)> {
        self.concurrency = concurrency;
        self.line.set_max(max_waiting);
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The pod takes no more. Who waits is sent away; who was admitted may end.
    #[must_use = "who waited has to be told"]
    pub fn close(&mut self) -> Vec<T> {
        self.gate = Gate::Closed;
        self.line.drain()
    }

    /// Requests that the pod serves.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.len()
    }
}
