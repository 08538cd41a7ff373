//! The plan of an experiment: which state a member is put in, for how long, how, and whether
//! it took hold.
//!
//! It is drawn from a seed and has no I/O. Who carries it out is `orlop forecast generate`.

use crate::rate::{mean, rate};
use crate::schema::{Column, Row, Sample, State};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// The shortest and the longest injected delay of one direction, in microseconds. The longest
/// is well below etcd's election timeout.
const DELAY_US: (f64, f64) = (5_000.0, 200_000.0);
/// The same of a sync.
const SYNC_US: (f64, f64) = (10_000.0, 150_000.0);
/// How often a fault is the leader's.
const LEADER_PART: f64 = 0.7;
/// Of an injected delay so much must be seen, in half of the samples: jitter and ramps make the
/// shortest read shorter than the delay at the sample's time.
const SEEN_PART: f64 = 0.5;
/// Cores that an overloaded member uses at least.
const OVERLOAD_CORES: f64 = 0.25;
/// Samples at the beginning of a period that are not looked at: the state is still building up.
const SAMPLES_SKIPPED: usize = 2;

/// How a delay goes on within a period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// It stays.
    Steady,
    /// It is up to this part more or less, anew every time.
    Jitter(f64),
    /// After this part of the period it is twice as long.
    Step(f64),
    /// It grows from nothing.
    Ramp,
}

/// What a leader is overloaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Linearizable reads of a value of 700 kB, as in the thesis.
    LargeReads,
    /// Writes.
    Writes,
    /// Many watchers of what is written.
    Watchers,
}

/// What is done in one period. Overload is always the leader's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Period {
    /// The state that the member is put in; the others stay idle.
    pub state: State,
    /// Whether the member is the leader.
    pub leader: bool,
    /// The delay of what leaves the member, one way, in microseconds; none without one.
    pub delay: Option<(f64, Shape)>,
    /// With what it is overloaded.
    pub load: Option<Load>,
    /// The delay of each of its syncs, in microseconds.
    pub sync_us: Option<f64>,
}

impl Period {
    fn draw(state: State, rng: &mut ChaCha8Rng) -> Self {
        let delayed = matches!(state, State::Network | State::Both);
        let loaded = matches!(state, State::Overload | State::Both);
        let leader = rng.random_bool(LEADER_PART) || loaded;
        let delay = (spread(DELAY_US, rng), shape(rng));
        let load = match rng.random_range(0..3) {
            0 => Load::LargeReads,
            1 => Load::Writes,
            _ => Load::Watchers,
        };
        let sync_us = spread(SYNC_US, rng);
        Period {
            state,
            leader,
            delay: delayed.then_some(delay),
            load: loaded.then_some(load),
            sync_us: (state == State::Disk).then_some(sync_us),
        }
    }

    /// The delay at this part (0 to 1) of the period. `chance` is from 0 to 1, new every time.
    #[must_use]
    pub fn delay_at(&self, part: f64, chance: f64) -> Option<Duration> {
        let (us, shape) = self.delay?;
        let us = match shape {
            Shape::Steady => us,
            Shape::Jitter(most) => us * (1.0 + most * (2.0 * chance - 1.0)),
            Shape::Step(at) if part >= at => us * 2.0,
            Shape::Step(_) => us,
            Shape::Ramp => us * part.clamp(0.0, 1.0),
        };
        Some(Duration::from_nanos((us * 1e3) as u64))
    }

    /// Whether the member's rows of the period, in their order, show what was injected; else
    /// what they do not show.
    ///
    /// # Errors
    /// In words.
    pub fn verify(&self, rows: &[&Row]) -> Result<(), String> {
        let rows = rows.get(SAMPLES_SKIPPED..).unwrap_or_default();
        let ([first, .., last], true) = (rows, rows.len() >= 2) else {
            return Err("too few samples".to_owned());
        };
        let (first, last) = (&first.sample, &last.sample);
        if self.delay.is_some() {
            let seen = rows.iter().filter(|row| late(row)).count();
            if seen * 2 < rows.len() {
                return Err(format!(
                    "reads are late in {seen} of {} samples",
                    rows.len()
                ));
            }
        }
        if let Some(wanted) = self.sync_us {
            let us = mean(first, last, Column::FsyncSeconds, Column::Fsyncs).map(|s| s * 1e6);
            if us.is_none_or(|us| us < wanted * SEEN_PART) {
                return Err(format!("a sync takes {us:?} us of {wanted:.0}"));
            }
        }
        if self.load.is_some() {
            let cores = rate(first, last, Column::CpuSeconds);
            if cores.is_none_or(|cores| cores < OVERLOAD_CORES) {
                return Err(format!("{cores:?} cores are in use"));
            }
        }
        Ok(())
    }
}

/// Whether a read through the member took as long as it was held.
fn late(row: &Row) -> bool {
    let read = |sample: &Sample| sample.get(Column::SerializableMinUs);
    match (read(&row.sample), row.truth.delay_us) {
        (Some(us), Some(delay_us)) => us >= delay_us * SEEN_PART,
        _ => false,
    }
}

/// Evenly in its logarithm: short ones are as frequent as long ones.
fn spread((least, most): (f64, f64), rng: &mut ChaCha8Rng) -> f64 {
    (least.ln() + rng.random::<f64>() * (most / least).ln()).exp()
}

fn shape(rng: &mut ChaCha8Rng) -> Shape {
    match rng.random_range(0..4) {
        0 => Shape::Steady,
        1 => Shape::Jitter(rng.random_range(0.1..0.5)),
        2 => Shape::Step(rng.random_range(0.3..0.7)),
        _ => Shape::Ramp,
    }
}

/// So many periods of each state, in an order by chance.
#[must_use]
pub fn plan(seed: u64, of_each: u32) -> Vec<Period> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut states: Vec<State> = (0..of_each).flat_map(|_| State::ALL).collect();
    states.shuffle(&mut rng);
    let periods = states.into_iter();
    periods.map(|state| Period::draw(state, &mut rng)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Truth;

    #[test]
    fn a_seed_has_one_plan_with_all_states_alike() {
        let one = plan(7, 20);
        assert_eq!(one, plan(7, 20));
        assert_ne!(one, plan(8, 20));
        for state in State::ALL {
            let of: Vec<_> = one.iter().filter(|period| period.state == state).collect();
            assert_eq!(of.len(), 20);
            for period in of {
                let delayed = matches!(state, State::Network | State::Both);
                let loaded = matches!(state, State::Overload | State::Both);
                assert_eq!(period.delay.is_some(), delayed);
                assert_eq!(period.load.is_some(), loaded);
                assert_eq!(period.sync_us.is_some(), state == State::Disk);
                assert!(period.leader || !loaded);
            }
        }
    }

    #[test]
    fn a_delay_goes_as_its_shape_says() {
        let at = |shape, part, chance| {
            let delay = Some((10_000.0, shape));
            let period = Period {
                state: State::Network,
                leader: true,
                delay,
                load: None,
                sync_us: None,
            };
            period.delay_at(part, chance).map(|d| d.as_micros())
        };
        assert_eq!(at(Shape::Steady, 0.9, 0.9), Some(10_000));
        assert_eq!(at(Shape::Jitter(0.2), 0.5, 0.0), Some(8_000));
        assert_eq!(at(Shape::Jitter(0.2), 0.5, 1.0), Some(12_000));
        assert_eq!(at(Shape::Step(0.5), 0.4, 0.0), Some(10_000));
        assert_eq!(at(Shape::Step(0.5), 0.5, 0.0), Some(20_000));
        assert_eq!(at(Shape::Ramp, 0.25, 0.0), Some(2_500));
    }

    fn rows(read_us: f64, cores: f64, sync_us: f64) -> Vec<Row> {
        let row = |s: u32| {
            let mut sample = Sample::new(u64::from(s) * 1_000, 1, String::new());
            let s = f64::from(s);
            sample.set(Column::SerializableMinUs, Some(read_us));
            sample.set(Column::CpuSeconds, Some(s * cores));
            sample.set(Column::Fsyncs, Some(s * 10.0));
            sample.set(Column::FsyncSeconds, Some(s * 10.0 * sync_us / 1e6));
            let truth = Truth {
                delay_us: Some(40_000.0),
                ..Truth::default()
            };
            Row {
                run: String::new(),
                period: 1,
                since_ms: 0,
                truth,
                sample,
            }
        };
        (1..=10).map(row).collect()
    }

    #[test]
    fn what_did_not_take_hold_is_seen() {
        let held = rows(41_000.0, 0.9, 30_000.0);
        let quiet = rows(900.0, 0.05, 900.0);
        let all: Vec<_> = plan(3, 4);
        let injected = all.iter().filter(|period| period.state != State::Idle);
        for period in injected {
            let mut period = *period;
            period.sync_us = period.sync_us.map(|_| 30_000.0);
            assert_eq!(period.verify(&held.iter().collect::<Vec<_>>()), Ok(()));
            assert!(period.verify(&quiet.iter().collect::<Vec<_>>()).is_err());
            assert!(
                period
                    .verify(&held.iter().take(3).collect::<Vec<_>>())
                    .is_err()
            );
        }
    }
}
