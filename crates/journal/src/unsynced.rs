//! What a power loss would take: volatile frames that no sync has covered yet, and when each
//! was promised to be on disk.

use std::time::{Duration, Instant};

/// At so many unsynced bytes a sync is due at once.
const SYNC_AT_BYTES: u64 = 32 << 20;
/// At so many, volatile writes wait.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, Default)]
struct Frames {
    count: u64,
    bytes: u64,
    oldest: Option<Instant>,
    /// When the sync has to begin to end in time.
    begin_by: Option<Instant>,
    /// When the first of them was promised to be on disk.
    promised: Option<Instant>,
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Frames {
    fn and(self, other: Frames) -> Frames {
        Frames {
            count: self.count + other.count,
            bytes: self.bytes + other.bytes,
            oldest: earlier(self.oldest, other.oldest),
            begin_by: earlier(self.begin_by, other.begin_by),
            promised: earlier(self.promised, other.promised),
        }
    }
}

/// Volatile frames that are not known to be on disk.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    /// Written since the last sync began.
    waiting: Frames,
    /// A sync under way covers these.
    syncing: Frames,
    /// How long syncs took of late.
    recent_sync: Duration,
}

impl Unsynced {
    /// Adds a frame that is to be on disk within `within`. True if a sync is due earlier now.
    pub(crate) fn add(&mut self, bytes: u64, now: Instant, within: Duration) -> bool {
        let margin = (self.recent_sync * 2).min(within / 2);
        let full = self.waiting.bytes + bytes > SYNC_AT_BYTES;
        let begin_by = if full { now } else { now + within - margin };
        let before = self.waiting.begin_by;
        self.waiting = self.waiting.and(Frames {
            count: 1,
            bytes,
            oldest: Some(now),
            begin_by: Some(begin_by),
            promised: Some(now + within),
        });
        before != self.waiting.begin_by
    }

    /// A sync of all that was written begins.
    pub(crate) fn sync_begins(&mut self) {
        self.syncing = self.syncing.and(std::mem::take(&mut self.waiting));
    }

    /// It succeeded.
    pub(crate) fn sync_ended(&mut self, took: Duration) {
        self.syncing = Frames::default();
        self.recent_sync = took.max(self.recent_sync / 8 * 7);
    }

    /// When the next sync has to begin.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.begin_by
    }

    /// Whether more than was promised, or too much, is unsynced.
    pub(crate) fn overdue(&self, now: Instant) -> bool {
        let all = self.waiting.and(self.syncing);
        all.promised.is_some_and(|promised| promised < now) || all.bytes > MAX_BYTES
    }

    /// Frames, bytes, and when the oldest was written.
    pub(crate) fn totals(&self) -> (u64, u64, Option<Instant>) {
        let all = self.waiting.and(self.syncing);
        (all.count, all.bytes, all.oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_due_in_time_to_end_within_the_promise() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut unsynced = Unsynced::default();
        assert_eq!(unsynced.due(), None);
        assert!(unsynced.add(4096, now, ms(100)));
        assert_eq!(unsynced.due(), Some(now + ms(100)));
        assert!(!unsynced.add(4096, now, ms(5000)));
        unsynced.sync_begins();
        assert_eq!(unsynced.due(), None);
        assert!(!unsynced.overdue(now + ms(99)) && unsynced.overdue(now + ms(101)));
        assert_eq!(unsynced.totals(), (2, 8192, Some(now)));
        unsynced.sync_ended(ms(8));
        assert_eq!(unsynced.totals(), (0, 0, None));
        assert!(!unsynced.overdue(now + ms(200)));
        unsynced.add(4096, now, ms(100));
        assert_eq!(unsynced.due(), Some(now + ms(84)));
        unsynced.sync_ended(ms(400));
        assert!(unsynced.add(4096, now, ms(50)));
        assert_eq!(unsynced.due(), Some(now + ms(25)), "at least half of it");
    }

    #[test]
    fn much_that_is_unsynced_is_synced_at_once_and_then_held_back() {
        let now = Instant::now();
        let mut unsynced = Unsynced::default();
        unsynced.add(SYNC_AT_BYTES + 1, now, Duration::from_secs(30));
        assert_eq!(unsynced.due(), Some(now));
        assert!(!unsynced.overdue(now));
        unsynced.add(MAX_BYTES, now, Duration::from_secs(30));
        assert!(unsynced.overdue(now));
    }
}
