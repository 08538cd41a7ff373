//! What the connections of a proxy have in common: places within its limits, who is at which
//! member, and counters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Counter, ProxyMetrics};
use parking_lot::Mutex;
use upstream::Endpoint;

use crate::life::Who;
use crate::relay::Count;

/// Has a member looked at: a connection to it failed, or it does not answer.
pub type Suspect = Box<dyn Fn(&Endpoint) + Send + Sync>;

/// Connections at one member.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    open: AtomicUsize,
    leaving: AtomicUsize,
}

/// Shared by all connections.
pub(crate) struct Book {
    pub(crate) metrics: Arc<ProxyMetrics>,
    client_bytes: Counter,
    member_bytes: Counter,
    suspect: Suspect,
    accepted: AtomicUsize,
    waiting: AtomicUsize,
    /// Locked when a connection comes to a member or leaves it, never while bytes move.
    members: Mutex<BTreeMap<Endpoint, Arc<Numbers>>>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book")
            .field("accepted", &self.accepted)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

impl Book {
    pub(crate) fn new(metrics: Arc<ProxyMetrics>, suspect: Suspect) -> Arc<Self> {
        Arc::new(Book {
            client_bytes: metrics.client_bytes.clone(),
            member_bytes: metrics.member_bytes.clone(),
            metrics,
            suspect,
            accepted: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            members: Mutex::default(),
        })
    }

    /// A place for a new connection, if there are fewer than so many.
    pub(crate) fn accept(self: &Arc<Self>, max: usize) -> Option<Accepted> {
        let place = Accepted(Arc::clone(self));
        let before = self.accepted.fetch_add(1, Relaxed);
        (before < max).then_some(place)
    }

    /// A place among those that wait, if there are fewer than so many.
    pub(crate) fn wait(self: &Arc<Self>, max: usize) -> Option<Waiting> {
        let place = self.wait_again();
        (self.waiting.load(Relaxed) <= max).then_some(place)
    }

    /// A place for one that has lost its member. It was let in before, and is not refused.
    pub(crate) fn wait_again(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(Arc::clone(self))
    }

    /// A connection is at this member.
    pub(crate) fn at_member(self: &Arc<Self>, member: &Endpoint) -> AtMember {
        let mut members = self.members.lock();
        let numbers = Arc::clone(members.entry(member.clone()).or_default());
        numbers.open.fetch_add(1, Relaxed);
        AtMember {
            book: Arc::clone(self),
            member: member.clone(),
            numbers,
            leaves: false,
        }
    }

    /// Connections: accepted, and of those waiting for a member.
    pub(crate) fn numbers(&self) -> (usize, usize) {
        (self.accepted.load(Relaxed), self.waiting.load(Relaxed))
    }

    /// Connections at members: of each, open and leaving.
    pub(crate) fn members(&self) -> BTreeMap<Endpoint, (usize, usize)> {
        let members = self.members.lock();
        let each = members.iter().map(|(member, n)| {
            let numbers = (n.open.load(Relaxed), n.leaving.load(Relaxed));
            (member.clone(), numbers)
        });
        each.collect()
    }

    pub(crate) fn suspect(&self, member: &Endpoint) {
        (self.suspect)(member);
    }

    pub(crate) fn connected(&self, waited: Duration) {
        self.metrics.wait.observe(waited);
    }

    pub(crate) fn connect_failed(&self) {
        self.metrics.connect_failures.inc();
    }

    pub(crate) fn begun_again(&self) {
        self.metrics.begun_again.inc();
    }
}

impl Count for Book {
    fn count(&self, from: Who, bytes: usize) {
        match from {
            Who::Client => self.client_bytes.add(bytes as u64),
            Who::Member => self.member_bytes.add(bytes as u64),
        }
    }
}

/// A connection's place among all.
#[derive(Debug)]
pub(crate) struct Accepted(Arc<Book>);

impl Drop for Accepted {
    fn drop(&mut self) {
        self.0.accepted.fetch_sub(1, Relaxed);
    }
}

/// A connection's place among those that wait.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Book>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// A connection's entry at its member.
#[derive(Debug)]
pub(crate) struct AtMember {
    book: Arc<Book>,
    member: Endpoint,
    numbers: Arc<Numbers>,
    leaves: bool,
}

impl AtMember {
    /// Which member.
    pub(crate) fn member(&self) -> &Endpoint {
        &self.member
    }

    /// Whether it is to leave it.
    pub(crate) fn leaves(&mut self, leaves: bool) {
        match (self.leaves, leaves) {
            (false, true) => self.numbers.leaving.fetch_add(1, Relaxed),
            (true, false) => self.numbers.leaving.fetch_sub(1, Relaxed),
            _ => 0,
        };
        self.leaves = leaves;
    }
}

impl Drop for AtMember {
    fn drop(&mut self) {
        self.leaves(false);
        // Members come and go; those with nobody at them are forgotten.
        let mut members = self.book.members.lock();
        if self.numbers.open.fetch_sub(1, Relaxed) == 1 {
            members.remove(&self.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_up_to_the_limit_and_back() {
        let metrics = Arc::new(ProxyMetrics::new(1, ""));
        let book = Book::new(metrics, Box::new(|_| {}));
        let first = book.accept(2);
        let second = book.accept(2);
        assert!(first.is_some() && second.is_some());
        assert!(book.accept(2).is_none());
        drop(first);
        assert!(book.accept(2).is_some());
        let waits = book.wait(1);
        assert!(waits.is_some() && book.wait(1).is_none());
        let again = book.wait_again();
        assert_eq!(book.numbers(), (1, 2));
        drop((waits, again, second));
        assert_eq!(book.numbers(), (0, 0));
    }

    #[test]
    fn members_are_known_while_somebody_is_there() {
        let metrics = Arc::new(ProxyMetrics::new(1, ""));
        let book = Book::new(metrics, Box::new(|_| {}));
        let member: Endpoint = "http://a:1".parse().unwrap();
        let one = book.at_member(&member);
        let mut other = book.at_member(&member);
        other.leaves(true);
        other.leaves(true);
        assert_eq!(book.members().get(&member), Some(&(2, 1)));
        drop(other);
        assert_eq!(book.members().get(&member), Some(&(1, 0)));
        drop(one);
        assert!(book.members().is_empty());
    }
}
