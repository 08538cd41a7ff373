//! Points in time, in whole seconds, as certificates have them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use crate::Error;

/// Seconds of a day.
pub(crate) const DAY_S: i64 = 24 * 3600;
/// 2026-01-01: this code was not there before, so no clock that is right says less.
const EARLIEST_S: i64 = 1_767_225_600;

/// A point in time: seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// What this machine's clock says.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(since.map_or(0, |s| i64::try_from(s.as_secs()).unwrap_or(i64::MAX)))
    }

    /// So many seconds later, or earlier.
    #[must_use]
    pub fn plus_s(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Whole days from here to `later`, rounded down; negative if it is earlier.
    #[must_use]
    pub fn days_to(self, later: Self) -> i64 {
        later.0.saturating_sub(self.0).div_euclid(DAY_S)
    }

    /// Refuses a clock that was never set.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.0 < EARLIEST_S {
            return Err(Error::Clock {
                now: self,
                reason: "which is before this program was written".to_owned(),
            });
        }
        Ok(())
    }

    pub(crate) fn to_time(self) -> OffsetDateTime {
        // Out of range only for years that no certificate can name.
        OffsetDateTime::from_unix_timestamp(self.0).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.to_time();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn is_shown_in_universal_time_and_counts_whole_days() {
        let start = Moment(1_767_225_600);
        assert_eq!(start.to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(start.days_to(start.plus_s(86_399)), 0);
        assert_eq!(start.days_to(start.plus_s(86_400)), 1);
        assert_eq!(start.days_to(start.plus_s(-1)), -1);
        assert!(start.check().is_ok());
        assert!(start.plus_s(-1).check().is_err());
    }
}
