//! What the members were like of late, and what each is like when it is quiet.

use crate::rate::{mean, rate, restarted};
use crate::schema::{Column, Sample};
use std::collections::{BTreeMap, VecDeque};

/// Samples of a member that are kept.
const RECENT: usize = 8;
/// A quiet value is taken of the values of so many milliseconds.
const QUIET_STEP_MS: u64 = 10_000;
/// So many of them are kept: 15 minutes.
const QUIET_KEPT: usize = 90;
/// With fewer nothing is known of a quiet member.
const QUIET_LEAST: usize = 3;
/// The part of them that are lower than what counts as quiet.
const QUIET_PART: f64 = 0.2;
/// Measures of a way between members that count: etcd makes one every 30 s.
const PEER_KEPT: usize = 4;
/// Samples over which the shortest probes are taken: what a queue adds is not in all of them,
/// what a way adds is.
const FLOOR_SAMPLES: usize = 2;
/// Samples over which syncs are averaged.
const SYNC_SAMPLES: usize = 4;

/// What is derived from samples, and has a quiet value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The way to the member and back, in microseconds: the shortest of the last reads.
    ClientUs,
    /// What a read queues there, in microseconds: the mean of the last reads less the shortest.
    QueueUs,
    /// From the member to the quorum and back, in microseconds.
    QuorumUs,
    /// A sync, in microseconds.
    SyncUs,
    /// The process's cores in use.
    Cores,
    /// Bytes a second to clients.
    ClientBytes,
    /// Calls that are under way.
    InFlight,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 7] = [
        Signal::ClientUs,
        Signal::QueueUs,
        Signal::QuorumUs,
        Signal::SyncUs,
        Signal::Cores,
        Signal::ClientBytes,
        Signal::InFlight,
    ];

    /// Its name as a feature.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Signal::ClientUs => "client_us",
            Signal::QueueUs => "queue_us",
            Signal::QuorumUs => "quorum_us",
            Signal::SyncUs => "sync_us",
            Signal::Cores => "cores",
            Signal::ClientBytes => "client_bytes",
            Signal::InFlight => "in_flight",
        }
    }
}

/// A member's usual value when nothing is wrong: a low percentile of the last quarter of an hour.
#[derive(Clone, Debug, Default)]
struct Quiet {
    step: u64,
    of_step: Vec<f64>,
    kept: VecDeque<f64>,
}

impl Quiet {
    fn add(&mut self, at_ms: u64, value: f64) {
        let step = at_ms / QUIET_STEP_MS;
        if step != self.step && !self.of_step.is_empty() {
            self.of_step.sort_by(f64::total_cmp);
            self.kept.push_back(self.of_step[self.of_step.len() / 2]);
            self.of_step.clear();
            if self.kept.len() > QUIET_KEPT {
                self.kept.pop_front();
            }
        }
        self.step = step;
        self.of_step.push(value);
    }

    fn value(&self) -> Option<f64> {
        if self.kept.len() < QUIET_LEAST {
            return None;
        }
        let mut sorted: Vec<f64> = self.kept.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        Some(sorted[(sorted.len() as f64 * QUIET_PART) as usize])
    }
}

/// One member's past.
#[derive(Clone, Debug, Default)]
pub struct Track {
    recent: VecDeque<Sample>,
    quiet: [Quiet; Signal::ALL.len()],
    peers: BTreeMap<u64, VecDeque<f64>>,
    sync_us: Option<f64>,
}

impl Track {
    fn add(&mut self, sample: &Sample) {
        if self
            .recent
            .back()
            .is_some_and(|last| last.at_ms >= sample.at_ms)
        {
            // The clock was set back: what was before cannot be compared.
            self.recent.clear();
        }
        for (peer, us) in &sample.peer_round_trips {
            let kept = self.peers.entry(*peer).or_default();
            kept.push_back(*us);
            if kept.len() > PEER_KEPT {
                kept.pop_front();
            }
        }
        self.recent.push_back(sample.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        // Until a sync was seen, what the process has had since its start stands for it.
        self.sync_us = self.syncs().or(self.sync_us).or_else(|| {
            let (sum, count) = (
                sample.get(Column::FsyncSeconds)?,
                sample.get(Column::Fsyncs)?,
            );
            (count > 0.0).then(|| sum / count * 1e6)
        });
        for signal in Signal::ALL {
            if let Some(value) = self.signal(signal) {
                self.quiet[signal as usize].add(sample.at_ms, value);
            }
        }
    }

    /// The last sample.
    #[must_use]
    pub fn last(&self) -> Option<&Sample> {
        self.recent.back()
    }

    /// The sample `back` before the last, if the process is the same.
    #[must_use]
    pub fn before(&self, back: usize) -> Option<&Sample> {
        let at = self.recent.len().checked_sub(1 + back)?;
        let (sample, last) = (self.recent.get(at)?, self.recent.back()?);
        (!restarted(sample, last)).then_some(sample)
    }

    /// A counter's rate between the last two samples.
    #[must_use]
    pub fn rate(&self, column: Column) -> Option<f64> {
        rate(self.before(1)?, self.last()?, column)
    }

    /// The mean of a histogram between the last two samples, in its own unit.
    #[must_use]
    pub fn mean(&self, sum: Column, count: Column) -> Option<f64> {
        mean(self.before(1)?, self.last()?, sum, count)
    }

    /// Mean sync of the last samples, in microseconds.
    fn syncs(&self) -> Option<f64> {
        let back = SYNC_SAMPLES.min(self.recent.len().checked_sub(1)?);
        let before = (1..=back).rev().find_map(|back| self.before(back))?;
        let s = mean(before, self.last()?, Column::FsyncSeconds, Column::Fsyncs)?;
        Some(s * 1e6)
    }

    fn floor(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let last = self.recent.iter().rev().take(FLOOR_SAMPLES);
        last.filter_map(of).reduce(f64::min)
    }

    /// A signal now; `None` where it cannot be told.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> Option<f64> {
        let get = |column: Column| move |sample: &Sample| sample.get(column);
        match signal {
            Signal::ClientUs => self.floor(get(Column::SerializableMinUs)),
            Signal::QueueUs => {
                let mean = self.last()?.get(Column::SerializableMeanUs)?;
                Some((mean - self.signal(Signal::ClientUs)?).max(0.0))
            }
            Signal::QuorumUs => self.floor(|sample| {
                let linearizable = sample.get(Column::LinearizableMinUs)?;
                Some((linearizable - sample.get(Column::SerializableMinUs)?).max(0.0))
            }),
            // Without writes there is nothing new of it; without scrapes nothing is known.
            Signal::SyncUs => {
                let mut recent = self.recent.iter();
                recent
                    .any(|sample| sample.get(Column::Fsyncs).is_some())
                    .then_some(self.sync_us)?
            }
            Signal::Cores => self.rate(Column::CpuSeconds),
            Signal::ClientBytes => self.rate(Column::ClientSentBytes),
            Signal::InFlight => {
                let last = self.last()?;
                Some((last.get(Column::Started)? - last.get(Column::Handled)?).max(0.0))
            }
        }
    }

    /// What a signal is when the member is quiet; `None` until half a minute is known.
    #[must_use]
    pub fn quiet(&self, signal: Signal) -> Option<f64> {
        self.quiet[signal as usize].value()
    }

    /// The member's own measure of the way to a peer and back when nothing is wrong, in
    /// microseconds. It is late, so it tells of distances and not of faults.
    #[must_use]
    pub fn peer_us(&self, peer: u64) -> Option<f64> {
        self.peers.get(&peer)?.iter().copied().reduce(f64::min)
    }
}

/// The past of all members.
#[derive(Clone, Debug, Default)]
pub struct History {
    members: BTreeMap<u64, Track>,
}

impl History {
    /// Takes one turn's samples. Members that are not among them are forgotten.
    pub fn add(&mut self, samples: &[Sample]) {
        self.members
            .retain(|id, _| samples.iter().any(|sample| sample.member == *id));
        for sample in samples {
            self.members.entry(sample.member).or_default().add(sample);
        }
    }

    /// One member's past.
    #[must_use]
    pub fn of(&self, member: u64) -> Option<&Track> {
        self.members.get(&member)
    }

    /// All members with their past.
    pub fn all(&self) -> impl Iterator<Item = (u64, &Track)> {
        self.members.iter().map(|(id, track)| (*id, track))
    }

    /// The quiet way between two members and back, in microseconds, by what they measure.
    #[must_use]
    pub fn way_us(&self, a: u64, b: u64) -> Option<f64> {
        let one = |from: u64, to: u64| self.of(from)?.peer_us(to);
        match (one(a, b), one(b, a)) {
            (Some(there), Some(back)) => Some((there + back) / 2.0),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, values: &[(Column, f64)]) -> Sample {
        let mut sample = Sample::new(at_ms, 1, String::new());
        values
            .iter()
            .for_each(|(column, value)| sample.set(*column, Some(*value)));
        sample
    }

    #[test]
    fn a_queue_is_not_taken_for_a_way() {
        let mut history = History::default();
        history.add(&[sample(1_000, &[(Column::SerializableMinUs, 900.0)])]);
        let queued = [
            (Column::SerializableMinUs, 40_000.0),
            (Column::SerializableMeanUs, 90_000.0),
        ];
        history.add(&[sample(2_000, &queued)]);
        let track = history.of(1).unwrap();
        assert_eq!(track.signal(Signal::ClientUs), Some(900.0));
        assert_eq!(track.signal(Signal::QueueUs), Some(89_100.0));
        history.add(&[sample(3_000, &queued)]);
        assert_eq!(
            history.of(1).unwrap().signal(Signal::ClientUs),
            Some(40_000.0)
        );
    }

    #[test]
    fn quiet_is_what_it_is_most_of_the_time() {
        let mut history = History::default();
        for s in 0..600u64 {
            // Four minutes of ten with a fault.
            let us = if (200..440).contains(&s) {
                50_000.0
            } else {
                1_000.0
            };
            history.add(&[sample(s * 1_000, &[(Column::SerializableMinUs, us)])]);
            if s == 20 {
                assert_eq!(history.of(1).unwrap().quiet(Signal::ClientUs), None);
            }
        }
        assert_eq!(
            history.of(1).unwrap().quiet(Signal::ClientUs),
            Some(1_000.0)
        );
    }

    #[test]
    fn what_is_known_of_syncs_outlives_a_pause_of_writes_and_a_restart() {
        let mut history = History::default();
        let syncs = |at_ms, sum: f64, n: f64, start: f64| {
            sample(
                at_ms,
                &[
                    (Column::FsyncSeconds, sum),
                    (Column::Fsyncs, n),
                    (Column::StartS, start),
                ],
            )
        };
        history.add(&[syncs(1_000, 1.0, 100.0, 5.0)]);
        history.add(&[syncs(2_000, 1.2, 200.0, 5.0)]);
        let known = |history: &History| {
            history
                .of(1)
                .unwrap()
                .signal(Signal::SyncUs)
                .unwrap()
                .round()
        };
        assert_eq!(known(&history), 2_000.0);
        for s in 3..20 {
            history.add(&[syncs(s * 1_000, 1.2, 200.0, 5.0)]);
        }
        history.add(&[syncs(30_000, 0.1, 1.0, 29.0)]);
        assert_eq!(known(&history), 2_000.0);
        history.add(&[syncs(31_000, 0.5, 11.0, 29.0)]);
        assert_eq!(known(&history), 40_000.0);
    }

    #[test]
    fn a_member_that_is_gone_is_forgotten() {
        let mut history = History::default();
        history.add(&[sample(1, &[])]);
        history.add(&[]);
        assert!(history.of(1).is_none());
    }
}
