//! Which leases that have run out are to be ended now.

use crate::store::Waiter;
use engine::lease::DueLease;
use engine::op::Write;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// How many are ended a round at most, so that a mass expiry leaves room for others.
pub(crate) const AT_ONCE: usize = 200;
/// After an end that was refused, the next try is so much later than the one before.
const RETRY_MS: u64 = 1_000;

/// A lease's end that was asked for.
#[derive(Debug)]
struct Asked {
    at_ms: u64,
    /// Gone when the write has been answered: before, asking again would only fill the queue.
    write: Weak<()>,
}

/// Leases whose end has been asked for, and that are due still.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    asked: HashMap<DueLease, Asked>,
}

/// What a round brought.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// To be submitted.
    pub(crate) writes: Vec<(Write, Waiter)>,
    /// Leases that were met for the first time.
    pub(crate) new: u64,
}

impl Expiry {
    /// The writes that end what is due. An answer to one needs no look: whatever it is, a lease
    /// that is due still is met again in the next round.
    pub(crate) fn round(&mut self, due: Vec<DueLease>, now_ms: u64) -> Round {
        let mut round = Round::default();
        let mut before = std::mem::take(&mut self.asked);
        for lease in due {
            let asked = match before.remove(&lease) {
                Some(asked) if !asked.again(now_ms) => asked,
                earlier => {
                    round.new += u64::from(earlier.is_none());
                    let unanswered = Arc::new(());
                    let asked = Asked {
                        at_ms: now_ms,
                        write: Arc::downgrade(&unanswered),
                    };
                    let waiter = Waiter::Expiry {
                        _unanswered: unanswered,
                    };
                    round.writes.push((Write::LeaseExpire(lease), waiter));
                    asked
                }
            };
            self.asked.insert(lease, asked);
        }
        round
    }
}

impl Asked {
    fn again(&self, now_ms: u64) -> bool {
        self.write.strong_count() == 0 && now_ms.saturating_sub(self.at_ms) >= RETRY_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::op::Class;
    use engine::sequencer::Answers;
    use engine::{Engine, Error, Lane, Limits};

    const SECOND: u64 = 1_000;

    /// A store whose disk is as fast as the test says.
    struct Rig {
        engine: Engine<Waiter>,
        expiry: Expiry,
    }

    impl Rig {
        fn new() -> Self {
            Rig {
                engine: Engine::new(Limits::default()),
                expiry: Expiry::default(),
            }
        }

        fn grant(&mut self, now_ms: u64) {
            let write = Write::LeaseGrant { id: 7, ttl_s: 2 };
            let answer = self
                .engine
                .submit(write, Class::DURABLE, Waiter::Nobody, now_ms);
            assert!(answer.is_none());
        }

        /// One round of upkeep; returns how many ends it asked for.
        fn expire(&mut self, now_ms: u64) -> usize {
            let due = self.engine.due_leases(now_ms, AT_ONCE);
            let writes = self.expiry.round(due, now_ms).writes;
            let asked = writes.len();
            for (write, waiter) in writes {
                let _ = self.engine.submit(write, Class::DURABLE, waiter, now_ms);
            }
            asked
        }

        fn commit(&mut self, now_ms: u64) {
            let batch = self.engine.take_batch(Lane::Durable, usize::MAX).unwrap();
            let mut answers = Answers::new();
            let done = self.engine.complete(batch.ticket, now_ms, &mut answers);
            assert!(done.is_ok());
            assert!(answers.iter().all(|(_, answer)| answer.is_ok()));
        }

        fn fail(&mut self, error: Error) {
            let batch = self.engine.take_batch(Lane::Durable, usize::MAX).unwrap();
            let failed = self.engine.fail(batch.ticket, error, &mut Answers::new());
            assert!(failed.is_ok());
        }
    }

    #[test]
    fn an_end_is_asked_for_once_however_long_the_disk_takes() {
        let mut rig = Rig::new();
        rig.grant(0);
        rig.commit(0);
        assert_eq!(rig.expire(SECOND), 0);
        assert_eq!(rig.expire(3 * SECOND), 1);
        for s in 4..60 {
            assert_eq!(rig.expire(s * SECOND), 0, "after {s} s");
        }
        assert_eq!(rig.engine.waiting(), 0);
        // Who grants it anew meanwhile waits for the end, and keeps it.
        rig.grant(60 * SECOND);
        rig.commit(60 * SECOND);
        assert_eq!(rig.expire(60 * SECOND), 0);
        rig.commit(60 * SECOND);
        assert_eq!(rig.expire(61 * SECOND), 0);
        assert!(rig.engine.lease(7, 61 * SECOND, false).is_some());
        assert_eq!(rig.expire(62 * SECOND), 1);
    }

    #[test]
    fn an_end_that_was_refused_is_asked_for_again_after_a_pause() {
        let mut rig = Rig::new();
        rig.grant(0);
        rig.commit(0);
        assert_eq!(rig.expire(3_000), 1);
        rig.fail(Error::NoSpace);
        assert_eq!(rig.expire(3_050), 0);
        assert_eq!(rig.expire(3_999), 0);
        assert_eq!(rig.expire(4_000), 1);
        rig.commit(4_000);
        assert_eq!(rig.expire(4_050), 0);
        assert!(rig.expiry.asked.is_empty());
    }

    #[test]
    fn a_late_end_is_that_of_the_lease_that_was_due() {
        let mut rig = Rig::new();
        rig.grant(0);
        rig.commit(0);
        // Found, but not submitted before the client has revoked it and granted it anew.
        let due = rig.engine.due_leases(2_000, AT_ONCE);
        let late = rig.expiry.round(due, 2_000).writes;
        let revoke = Write::LeaseRevoke { id: 7 };
        let revoked = rig
            .engine
            .submit(revoke, Class::DURABLE, Waiter::Nobody, 2_000);
        assert!(revoked.is_none());
        rig.commit(2_000);
        rig.grant(2_367);
        rig.commit(2_367);
        for (write, waiter) in late {
            let answer = rig.engine.submit(write, Class::DURABLE, waiter, 2_755);
            assert_eq!(answer.map(|a| a.1), Some(Err(Error::LeaseNotFound)));
        }
        assert!(rig.engine.lease(7, 2_755, false).is_some());
        // Its own end comes when it is due.
        assert_eq!(rig.expire(4_366), 0);
        assert_eq!(rig.expire(4_367), 1);
        rig.commit(4_400);
        assert!(rig.engine.lease(7, 4_400, false).is_none());
    }
}
