//! The state of a member by fixed limits, which need no training.

use crate::history::{History, Signal};
use crate::schema::State;

/// A way is slow when it is so many microseconds and so many times longer than when quiet.
const WAY: (f64, f64) = (5_000.0, 2.0);
/// A read queues when it does so for so long, and so many times longer than when quiet.
const QUEUE: (f64, f64) = (10_000.0, 4.0);
/// Syncs are slow.
const SYNC: (f64, f64) = (8_000.0, 3.0);
/// Calls under way beyond the quiet number.
const IN_FLIGHT: f64 = 200.0;

/// The state of a member; `None` until it is known what it is like when quiet.
#[must_use]
pub fn state(history: &History, member: u64) -> Option<State> {
    let track = history.of(member)?;
    let above = |signal: Signal, (more, times): (f64, f64)| {
        let (now, quiet) = (track.signal(signal)?, track.quiet(signal)?);
        Some(now > quiet + more && now > quiet * times)
    };
    let network = above(Signal::ClientUs, WAY)?;
    let queues = above(Signal::QueueUs, QUEUE).unwrap_or(false);
    let in_flight = above(Signal::InFlight, (IN_FLIGHT, 1.0)).unwrap_or(false);
    let disk = above(Signal::SyncUs, SYNC).unwrap_or(false);
    Some(match (network, queues || in_flight) {
        (true, true) => State::Both,
        (true, false) => State::Network,
        (false, true) => State::Overload,
        (false, false) if disk => State::Disk,
        (false, false) => State::Idle,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, Sample};

    fn after_quiet(values: &[(Column, f64)]) -> Option<State> {
        let mut history = History::default();
        let quiet = [
            (Column::SerializableMinUs, 1_000.0),
            (Column::SerializableMeanUs, 1_200.0),
            (Column::Started, 30.0),
            (Column::Handled, 20.0),
        ];
        for s in 0..60u64 {
            let mut sample = Sample::new(s * 1_000, 1, String::new());
            let syncs = s as f64 * 10.0;
            let usual = [
                (Column::Fsyncs, syncs),
                (Column::FsyncSeconds, syncs * 0.002),
            ];
            let slow = [
                (Column::Fsyncs, syncs),
                (Column::FsyncSeconds, 1.0 + (syncs - 500.0) * 0.03),
            ];
            let disk = values.iter().any(|(column, _)| *column == Column::Fsyncs);
            let now = match s {
                0..50 => [&quiet[..], &usual].concat(),
                _ if disk => [&quiet[..], &slow].concat(),
                _ => [&quiet[..], &usual, values].concat(),
            };
            now.iter()
                .for_each(|(column, value)| sample.set(*column, Some(*value)));
            history.add(&[sample]);
        }
        state(&history, 1)
    }

    #[test]
    fn each_state_has_its_signs() {
        let mean = |us| (Column::SerializableMeanUs, us);
        let min = |us| (Column::SerializableMinUs, us);
        for (values, expected) in [
            (vec![], State::Idle),
            (vec![min(46_000.0), mean(46_500.0)], State::Network),
            (vec![min(1_100.0), mean(40_000.0)], State::Overload),
            (vec![(Column::Started, 1_000.0)], State::Overload),
            (vec![min(46_000.0), mean(99_000.0)], State::Both),
            (vec![(Column::Fsyncs, 0.0)], State::Disk),
        ] {
            assert_eq!(after_quiet(&values), Some(expected), "{values:?}");
        }
        assert_eq!(state(&History::default(), 1), None);
    }
}
