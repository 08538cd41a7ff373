//! Connections that have not asked for anything yet: in their handshake, or silent.
//!
//! They cost a client nothing, so there is a place for few of them. A new one always gets a place:
//! the one that has waited longest loses its own. A client that means it needs its place for some
//! milliseconds.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::listener::ListenerId;
use crate::local::Flag;

/// Those of one worker.
#[derive(Debug)]
pub(crate) struct HalfOpens {
    /// For each listener: one that is crowded costs others nothing.
    places: usize,
    inner: Rc<RefCell<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Of each listener, by age.
    by_listener: HashMap<ListenerId, BTreeMap<u64, Rc<Flag>>>,
}

impl HalfOpens {
    pub(crate) fn new(places: usize) -> Self {
        HalfOpens {
            places: places.max(1),
            inner: Rc::default(),
        }
    }

    /// A place for a new connection of a listener.
    pub(crate) fn enter(&self, listener: ListenerId) -> HalfOpen {
        let mut inner = self.inner.borrow_mut();
        let number = inner.next;
        inner.next += 1;
        let own = inner.by_listener.entry(listener).or_default();
        let lost = match own.len() < self.places {
            true => None,
            false => own.pop_first(),
        };
        let given_up = Rc::<Flag>::default();
        own.insert(number, Rc::clone(&given_up));
        drop(inner);
        if let Some((_, lost)) = lost {
            lost.raise();
        }
        HalfOpen {
            number,
            listener,
            given_up,
            among: Rc::clone(&self.inner),
        }
    }
}

/// The place of one.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    number: u64,
    listener: ListenerId,
    given_up: Rc<Flag>,
    among: Rc<RefCell<Inner>>,
}

impl HalfOpen {
    /// Waits until the place is lost.
    pub(crate) async fn given_up(&self) {
        self.given_up.wait().await;
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        if let Some(own) = self.among.borrow_mut().by_listener.get_mut(&self.listener) {
            own.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_listener_loses_its_place() {
        let all = HalfOpens::new(2);
        let (one, other) = (ListenerId(0), ListenerId(1));
        let first = all.enter(one);
        let apart = all.enter(other);
        let second = all.enter(one);
        let third = all.enter(one);
        let lost = |place: &HalfOpen| place.given_up.is_raised();
        assert_eq!(
            [lost(&first), lost(&second), lost(&third)],
            [true, false, false]
        );
        drop(second);
        let fourth = all.enter(one);
        assert!(!lost(&third) && !lost(&fourth) && !lost(&apart));
        drop((first, third, fourth, apart));
        let inner = all.inner.borrow();
        assert!(inner.by_listener.values().all(BTreeMap::is_empty));
    }
}
