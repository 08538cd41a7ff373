//! Who of several processes acts, by a Lease: the rules, without I/O and without a clock of its own.
//!
//! As with Kubernetes' own controllers: who holds the Lease renews it; another takes it when it has
//! not changed for its duration, by that one's own clock, so clocks need not agree. Who could not
//! renew stops to act before another may begin.

/// Times of an election, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A Lease that has not changed for so long may be taken.
    pub duration_ms: u64,
}

impl Times {
    /// Who could not renew for so long acts no more.
    #[must_use]
    pub fn deadline_ms(self) -> u64 {
        self.duration_ms * 2 / 3
    }

    /// From one look at the Lease to the next: in the proportion of Kubernetes' own (15 s, 10 s, 2 s).
    #[must_use]
    pub fn retry_ms(self) -> u64 {
        (self.duration_ms / 8).max(1)
    }
}

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty if nobody does.
    pub holder: String,
    /// Its resource version, which each renewal changes.
    pub version: String,
}

/// What to do with the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this process's name and time into it, if it is still as it was read.
    Claim,
    /// Nothing: another holds it.
    Wait,
}

/// What a process is in the election.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Not the one that acts; the Lease that it saw last, and since when.
    Follower { seen: Option<(Seen, u64)> },
    /// The one that acts; when the renewal that succeeded last was begun.
    Leader { renewed_ms: u64 },
}

/// A process in the election.
#[derive(Clone, Debug)]
pub struct Candidate {
    me: String,
    times: Times,
    part: Part,
}

impl Candidate {
    /// A process with a name that no other has.
    #[must_use]
    pub fn new(me: String, times: Times) -> Self {
        Self {
            me,
            times,
            part: Part::Follower { seen: None },
        }
    }

    /// Its name.
    #[must_use]
    pub fn me(&self) -> &str {
        &self.me
    }

    /// What to do about the Lease as it was just read; `None` if there is none.
    pub fn look(&mut self, lease: Option<Seen>, now_ms: u64) -> Step {
        let Some(lease) = lease else {
            return Step::Claim;
        };
        if lease.holder == self.me || lease.holder.is_empty() {
            return Step::Claim;
        }
        // Another holds it, whatever this process thought.
        let since_ms = match &self.part {
            Part::Follower {
                seen: Some((before, since_ms)),
            } if *before == lease => *since_ms,
            _ => now_ms,
        };
        self.part = Part::Follower {
            seen: Some((lease, since_ms)),
        };
        match now_ms.saturating_sub(since_ms) >= self.times.duration_ms {
            true => Step::Claim,
            false => Step::Wait,
        }
    }

    /// The claim that was begun at `began_ms` succeeded.
    pub fn claimed(&mut self, began_ms: u64) {
        self.part = Part::Leader {
            renewed_ms: began_ms,
        };
    }

    /// The claim failed because another was faster.
    pub fn outrun(&mut self) {
        self.part = Part::Follower { seen: None };
    }

    /// Whether it may act at this time.
    #[must_use]
    pub fn acts(&self, now_ms: u64) -> bool {
        match self.part {
            Part::Leader { renewed_ms } => {
                now_ms.saturating_sub(renewed_ms) < self.times.deadline_ms()
            }
            Part::Follower { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMES: Times = Times {
        duration_ms: 15_000,
    };

    fn seen(holder: &str, version: u64) -> Option<Seen> {
        Some(Seen {
            holder: holder.into(),
            version: version.to_string(),
        })
    }

    #[test]
    fn a_silent_holder_is_succeeded_by_ones_own_clock() {
        let mut b = Candidate::new("b".into(), TIMES);
        assert_eq!(b.look(seen("a", 1), 1_000), Step::Wait);
        assert_eq!(b.look(seen("a", 1), 15_999), Step::Wait);
        assert_eq!(b.look(seen("a", 1), 16_000), Step::Claim);
        b.outrun();
        assert_eq!(b.look(seen("a", 2), 16_001), Step::Wait);
        assert_eq!(b.look(None, 16_002), Step::Claim);
        assert_eq!(b.look(seen("", 3), 16_003), Step::Claim);
        b.claimed(16_003);
        assert!(b.acts(26_002) && !b.acts(26_003));
        // It sees that another holds it.
        assert_eq!(b.look(seen("a", 4), 16_004), Step::Wait);
        assert!(!b.acts(16_005));
    }

    proptest! {
        /// Two candidates over one Lease with delays and lost calls: never do both act.
        #[test]
        fn never_two_at_once(steps in prop::collection::vec((0_usize..2, 1_u64..9_000, any::<bool>()), 1..200)) {
            let mut both = [Candidate::new("a".into(), TIMES), Candidate::new("b".into(), TIMES)];
            let mut lease: Option<Seen> = None;
            let (mut version, mut now_ms) = (0, 0);
            for (who, passed_ms, lost) in steps {
                now_ms += passed_ms;
                if both[who].look(lease.clone(), now_ms) == Step::Claim {
                    version += 1;
                    lease = seen(both[who].me(), version);
                    // The answer may be lost: it took effect all the same.
                    if !lost {
                        both[who].claimed(now_ms);
                    }
                }
                prop_assert!(!(both[0].acts(now_ms) && both[1].acts(now_ms)));
            }
        }
    }
}
