//! Which Seikas are to be looked at, and when: each at most once at a time, however often it is
//! asked for. Its size is bounded by the number of Seikas.
//!
//! Pure but for the time, which the caller gives in ms.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<K> {
    /// Look at this one, and say [`Queue::done`] afterwards.
    Key(K),
    /// Nothing is due before so many ms are over.
    Wait(u64),
    /// Nothing is due until something is added.
    Nothing,
}

/// A queue of keys with times.
#[derive(Debug)]
pub struct Queue<K> {
    due: BTreeSet<(u64, K)>,
    at: HashMap<K, u64>,
    /// Those that are looked at, and when they were asked for again meanwhile.
    running: HashMap<K, Option<u64>>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            due: BTreeSet::new(),
            at: HashMap::new(),
            running: HashMap::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Queue<K> {
    /// Asks for `key` at `due_ms`. What was asked for earlier stays.
    pub fn add(&mut self, key: K, due_ms: u64) {
        if let Some(again) = self.running.get_mut(&key) {
            *again = Some(again.map_or(due_ms, |at| at.min(due_ms)));
            return;
        }
        if let Some(at) = self.at.get(&key).copied() {
            if at <= due_ms {
                return;
            }
            self.due.remove(&(at, key.clone()));
        }
        self.at.insert(key.clone(), due_ms);
        self.due.insert((due_ms, key));
    }

    /// Takes what is due.
    pub fn next(&mut self, now_ms: u64) -> Next<K> {
        match self.due.first() {
            None => Next::Nothing,
            Some((due_ms, _)) if *due_ms > now_ms => Next::Wait(due_ms - now_ms),
            Some(_) => match self.due.pop_first() {
                Some((_, key)) => {
                    self.at.remove(&key);
                    self.running.insert(key.clone(), None);
                    Next::Key(key)
                }
                None => Next::Nothing,
            },
        }
    }

    /// `key` was looked at. If it was asked for meanwhile it is due again, but not before
    /// `not_before_ms`, so that many changes are looked at together.
    pub fn done(&mut self, key: &K, not_before_ms: u64) {
        if let Some(Some(due_ms)) = self.running.remove(key) {
            self.add(key.clone(), due_ms.max(not_before_ms));
        }
    }

    /// Keys that wait or are looked at.
    #[must_use]
    pub fn len(&self) -> usize {
        self.at.len() + self.running.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_there_once_at_its_earliest_time() {
        let mut queue = Queue::default();
        queue.add("a", 10);
        queue.add("a", 5);
        queue.add("a", 20);
        assert_eq!(queue.next(4), Next::Wait(1));
        assert_eq!(queue.next(5), Next::Key("a"));
        assert_eq!(queue.next(50), Next::Nothing);
    }

    #[test]
    fn a_key_that_is_looked_at_comes_again_if_it_was_asked_for_and_not_before() {
        let mut queue = Queue::default();
        queue.add("a", 0);
        assert_eq!(queue.next(0), Next::Key("a"));
        for at in 1..100 {
            queue.add("a", at);
        }
        assert_eq!(queue.next(100), Next::Nothing, "never twice at a time");
        assert_eq!(queue.len(), 1);
        queue.done(&"a", 150);
        assert_eq!(queue.next(100), Next::Wait(50));
        assert_eq!(queue.next(150), Next::Key("a"));
        queue.done(&"a", 200);
        assert!(queue.is_empty());
    }
}
