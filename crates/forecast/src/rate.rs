//! From counters to rates.

use crate::schema::{Column, Sample};

/// The rate of a counter between two samples of one member, a second, as the thesis defines it:
/// (current - previous) / time between them. `None` where there is none: a value is missing, the
/// process has started again in between, the counter went back, or no time has passed.
#[must_use]
pub fn rate(before: &Sample, now: &Sample, column: Column) -> Option<f64> {
    if now.member != before.member || restarted(before, now) {
        return None;
    }
    let past_s = now.at_ms.checked_sub(before.at_ms)? as f64 / 1e3;
    let more = now.get(column)? - before.get(column)?;
    (past_s > 0.0 && more >= 0.0).then(|| more / past_s)
}

/// Whether the member's process started again between two samples. What is not known did not.
#[must_use]
pub fn restarted(before: &Sample, now: &Sample) -> bool {
    match (before.get(Column::StartS), now.get(Column::StartS)) {
        // Pages have it to some milliseconds.
        (Some(was), Some(is)) => (is - was).abs() > 0.5,
        _ => false,
    }
}

/// The mean of what a histogram has observed between two samples: `None` if it was nothing.
#[must_use]
pub fn mean(before: &Sample, now: &Sample, sum: Column, count: Column) -> Option<f64> {
    let (sum, count) = (rate(before, now, sum)?, rate(before, now, count)?);
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Column::{FsyncSeconds, Fsyncs, PeerSentBytes, StartS, WalWriteBytes};

    fn at(ms: u64, values: &[(Column, f64)]) -> Sample {
        let mut sample = Sample::new(ms, 1, String::new());
        for (column, value) in values {
            sample.set(*column, Some(*value));
        }
        sample
    }

    #[test]
    fn a_rate_is_the_difference_by_the_time_that_has_passed() {
        let before = at(10_000, &[(WalWriteBytes, 500.0), (StartS, 7.0)]);
        let now = at(15_000, &[(WalWriteBytes, 1_500.0), (StartS, 7.01)]);
        assert_eq!(rate(&before, &now, WalWriteBytes), Some(200.0));
        // By the time that passed, not by the interval that was asked for.
        let late = at(20_000, &[(WalWriteBytes, 1_500.0)]);
        assert_eq!(rate(&before, &late, WalWriteBytes), Some(100.0));
    }

    #[test]
    fn a_reset_a_restart_and_a_missing_value_have_no_rate() {
        let before = at(0, &[(WalWriteBytes, 500.0), (StartS, 7.0)]);
        let reset = at(1_000, &[(WalWriteBytes, 400.0), (StartS, 7.0)]);
        assert_eq!(rate(&before, &reset, WalWriteBytes), None);
        // A process that started again may have counted further than the one before.
        let again = at(1_000, &[(WalWriteBytes, 900.0), (StartS, 9.0)]);
        assert_eq!(rate(&before, &again, WalWriteBytes), None);
        assert_eq!(rate(&before, &reset, PeerSentBytes), None);
        assert_eq!(rate(&before, &before, WalWriteBytes), None);
        let backwards = at(1_000, &[(WalWriteBytes, 600.0)]);
        assert_eq!(rate(&backwards, &before, WalWriteBytes), None);
        let other = Sample {
            member: 2,
            ..at(1_000, &[(WalWriteBytes, 600.0)])
        };
        assert_eq!(rate(&before, &other, WalWriteBytes), None);
    }

    #[test]
    fn a_mean_is_of_what_was_observed_in_between() {
        let before = at(0, &[(FsyncSeconds, 1.0), (Fsyncs, 100.0)]);
        let now = at(2_000, &[(FsyncSeconds, 1.5), (Fsyncs, 200.0)]);
        let mean_s = mean(&before, &now, FsyncSeconds, Fsyncs).unwrap();
        assert!((mean_s - 0.005).abs() < 1e-12);
        assert_eq!(
            mean(
                &now,
                &at(3_000, &[(FsyncSeconds, 1.5), (Fsyncs, 200.0)]),
                FsyncSeconds,
                Fsyncs
            ),
            None
        );
    }
}
