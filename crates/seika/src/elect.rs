//! Who of several processes leads, by a Lease: the rules, without I/O and without a clock of its
//! own.
//!
//! As Kubernetes' own controllers do it: who holds the lease renews it; who does not takes it when
//! it has not changed for its duration *by this process's own clock*, so clocks need not agree.
//! Who could not renew for a while stops to act before another may take it.

/// Times of an election, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A lease that did not change for so long may be taken.
    pub duration_ms: u64,
    /// Who could not renew for so long leads no more. Less than the duration.
    pub deadline_ms: u64,
    /// Between two tries.
    pub retry_ms: u64,
}

impl Times {
    /// Times in the proportions of Kubernetes' own (15 s, 10 s, 2 s).
    #[must_use]
    pub fn of(duration_ms: u64) -> Self {
        Self {
            duration_ms,
            deadline_ms: duration_ms * 2 / 3,
            retry_ms: (duration_ms * 2 / 15).max(1),
        }
    }
}

/// What a lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty if it was given back.
    pub holder: String,
    /// The lease's resource version: it changes with each renewal.
    pub version: String,
}

/// What to do with the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// There is none: create it.
    Create,
    /// It is this process's: renew it.
    Renew,
    /// Its holder is silent or gave it back: take it.
    Take,
    /// Another leads.
    Wait,
}

/// A process's part in the election.
#[derive(Debug)]
pub struct Elector {
    me: String,
    times: Times,
    /// The record that was seen last, and when it was seen for the first time.
    seen: Option<(Record, u64)>,
    /// When the last renewal that succeeded was begun.
    renewed_ms: Option<u64>,
}

impl Elector {
    /// A process that is called `me`, as nobody else is.
    #[must_use]
    pub fn new(me: String, times: Times) -> Self {
        Self {
            me,
            times,
            seen: None,
            renewed_ms: None,
        }
    }

    /// Its times.
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// Its name.
    #[must_use]
    pub fn me(&self) -> &str {
        &self.me
    }

    /// What to do, now that the lease is `record`.
    pub fn see(&mut self, record: Option<Record>, now_ms: u64) -> Act {
        let Some(record) = record else {
            self.seen = None;
            return Act::Create;
        };
        let since_ms = match &self.seen {
            Some((seen, since_ms)) if *seen == record => *since_ms,
            _ => now_ms,
        };
        let act = if record.holder == self.me {
            Act::Renew
        } else if record.holder.is_empty()
            || now_ms.saturating_sub(since_ms) >= self.times.duration_ms
        {
            Act::Take
        } else {
            Act::Wait
        };
        self.seen = Some((record, since_ms));
        act
    }

    /// It has created, renewed or taken the lease; the call began at `began_ms`.
    pub fn holds(&mut self, began_ms: u64) {
        self.renewed_ms = Some(began_ms);
    }

    /// Another holds the lease.
    pub fn lost(&mut self) {
        self.renewed_ms = None;
    }

    /// Until when it may act, if nothing more is heard; `None` if it may not.
    #[must_use]
    pub fn leads_until_ms(&self) -> Option<u64> {
        Some(self.renewed_ms? + self.times.deadline_ms)
    }

    /// Who holds the lease, as far as is known.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref().map(|(record, _)| record.holder.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elector() -> Elector {
        Elector::new("me".into(), Times::of(15_000))
    }

    fn record(holder: &str, version: u32) -> Option<Record> {
        Some(Record {
            holder: holder.into(),
            version: version.to_string(),
        })
    }

    #[test]
    fn a_lease_that_goes_on_changing_is_never_taken() {
        let mut me = elector();
        for n in 0..20 {
            assert_eq!(me.see(record("other", n), u64::from(n) * 14_999), Act::Wait);
        }
    }

    #[test]
    fn a_silent_holder_is_succeeded_after_the_duration_by_our_own_clock() {
        let mut me = elector();
        assert_eq!(me.see(record("other", 1), 100), Act::Wait);
        assert_eq!(me.see(record("other", 1), 15_099), Act::Wait);
        assert_eq!(me.see(record("other", 1), 15_100), Act::Take);
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        assert_eq!(elector().see(record("", 1), 0), Act::Take);
        assert_eq!(elector().see(None, 0), Act::Create);
        assert_eq!(elector().see(record("me", 1), 0), Act::Renew);
    }

    #[test]
    fn who_cannot_renew_stops_before_another_may_take_over() {
        let mut me = elector();
        assert_eq!(me.leads_until_ms(), None);
        me.holds(1_000);
        let times = me.times();
        assert_eq!(me.leads_until_ms(), Some(11_000));
        // Another sees the renewal at the earliest when it was begun.
        assert!(1_000 + times.duration_ms > 11_000);
        me.lost();
        assert_eq!(me.leads_until_ms(), None);
    }
}
