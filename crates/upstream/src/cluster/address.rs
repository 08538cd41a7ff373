//! One address that is asked: whether it answers, how fast, and what it said last.

use super::report::{Answer, Failure};
use crate::endpoint::Endpoint;
use crate::view::{Health, RoundTrip};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many deadlines in a row pass before a member that has answered is unhealthy: one may be a
/// pause, and its peers tell sooner if it is more than that.
const SILENCES: u32 = 2;
/// Round trips that percentiles are taken of.
const WINDOW: usize = 128;
/// As for TCP: the smoothed round trip takes an eighth of each new one.
const SMOOTHING: u64 = 8;

/// What a member said of itself, and when it was asked.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) answer: Answer,
    pub(super) asked: Instant,
}

/// An address.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) endpoint: Endpoint,
    /// It was given, and not found in a member list.
    pub(super) given: bool,
    pub(super) health: Health,
    pub(super) statement: Option<Statement>,
    /// Another member that has answered here before: one address may stand for several.
    pub(super) other: Option<u64>,
    silences: u32,
    smoothed_us: Option<u64>,
    window_us: VecDeque<u64>,
}

impl Address {
    pub(super) fn new(endpoint: Endpoint, given: bool) -> Self {
        Address {
            endpoint,
            given,
            health: Health::Unknown,
            statement: None,
            other: None,
            silences: 0,
            smoothed_us: None,
            window_us: VecDeque::new(),
        }
    }

    /// The member that answered here last.
    pub(super) fn member_id(&self) -> Option<u64> {
        Some(self.statement.as_ref()?.answer.member_id)
    }

    /// Takes an answer; returns whether it says something else of the leader than the last one.
    pub(super) fn answered(&mut self, answer: Answer, asked: Instant) -> bool {
        self.silences = 0;
        self.health = Health::Healthy;
        let claim = |a: &Answer| (a.member_id, a.term, a.follows);
        let known = self.statement.as_ref().map(|s| claim(&s.answer));
        if let Some((id, ..)) = known.filter(|(id, ..)| *id != answer.member_id) {
            self.other = Some(id);
            self.smoothed_us = None;
            self.window_us.clear();
        }
        let news = known != Some(claim(&answer));
        self.statement = Some(Statement { answer, asked });
        news
    }

    /// Takes a failure; returns whether it became unhealthy by that.
    pub(super) fn failed(&mut self, failure: &Failure, asked: Instant) -> bool {
        let why = match failure {
            Failure::Unreachable(why) | Failure::Refused(why) => why.clone(),
            Failure::Silent => {
                self.silences = self.silences.saturating_add(1);
                if self.health.is_healthy() && self.silences < SILENCES {
                    return false;
                }
                "it does not answer in time".to_owned()
            }
        };
        self.unhealthy(why, asked)
    }

    /// Is unhealthy from now on; returns whether that is new.
    pub(super) fn unhealthy(&mut self, why: String, now: Instant) -> bool {
        match &mut self.health {
            Health::Unhealthy { why: known, .. } => {
                *known = why;
                false
            }
            _ => {
                self.health = Health::Unhealthy { since: now, why };
                true
            }
        }
    }

    /// Counts a round trip.
    pub(super) fn took(&mut self, round_trip: Duration) {
        let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        self.smoothed_us = Some(match self.smoothed_us {
            None => us,
            Some(smoothed) => (smoothed / SMOOTHING)
                .saturating_mul(SMOOTHING - 1)
                .saturating_add(us / SMOOTHING)
                // What the divisions have cut off.
                .saturating_add(
                    (smoothed % SMOOTHING * (SMOOTHING - 1) + us % SMOOTHING) / SMOOTHING,
                ),
        });
        if self.window_us.len() == WINDOW {
            self.window_us.pop_front();
        }
        self.window_us.push_back(us);
    }

    pub(super) fn round_trip(&self) -> RoundTrip {
        let mut sorted: Vec<u64> = self.window_us.iter().copied().collect();
        sorted.sort_unstable();
        // The nearest rank: the least that so many of a hundred are not above.
        let percentile = |n: usize| {
            sorted
                .get((sorted.len() * n).div_ceil(100).checked_sub(1)?)
                .copied()
        };
        RoundTrip {
            smoothed_us: self.smoothed_us,
            p50_us: percentile(50),
            p99_us: percentile(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::new("http://a:1".parse().unwrap(), true)
    }

    fn answer(member_id: u64, term: u64) -> Answer {
        Answer {
            member_id,
            term,
            ..Answer::default()
        }
    }

    #[test]
    fn round_trips_are_smoothed_and_ranked_over_a_window() {
        let mut at = address();
        assert_eq!(at.round_trip(), RoundTrip::default());
        for us in 1..=100 {
            at.took(Duration::from_micros(us));
        }
        let trip = at.round_trip();
        assert_eq!((trip.p50_us, trip.p99_us), (Some(50), Some(99)));
        let smoothed = trip.smoothed_us.unwrap();
        assert!((85..100).contains(&smoothed), "{smoothed}");
        for _ in 0..WINDOW {
            at.took(Duration::from_millis(1));
        }
        let trip = at.round_trip();
        assert_eq!((trip.p50_us, trip.p99_us), (Some(1000), Some(1000)));
        assert!(
            (990..=1000).contains(&trip.smoothed_us.unwrap()),
            "{trip:?}"
        );
        assert_eq!(at.window_us.len(), WINDOW);
    }

    #[test]
    fn one_pause_is_not_yet_unhealthy_and_a_refusal_is() {
        let now = Instant::now();
        let mut at = address();
        assert!(at.failed(&Failure::Silent, now), "one that never answered");
        at.answered(answer(1, 1), now);
        assert!(!at.failed(&Failure::Silent, now));
        assert!(at.health.is_healthy());
        assert!(at.failed(&Failure::Silent, now));
        at.answered(answer(1, 1), now);
        assert!(!at.failed(&Failure::Silent, now), "an answer begins anew");
        assert!(at.failed(&Failure::Unreachable("refused".to_owned()), now));
        let later = now + Duration::from_secs(1);
        assert!(!at.failed(&Failure::Refused("stopped".to_owned()), later));
        let Health::Unhealthy { since, why } = &at.health else {
            panic!("{at:?}");
        };
        assert_eq!((*since, why.as_str()), (now, "stopped"));
    }

    #[test]
    fn only_news_of_the_leader_are_news() {
        let now = Instant::now();
        let mut at = address();
        assert!(at.answered(answer(1, 1), now));
        assert!(!at.answered(answer(1, 1), now));
        assert!(at.answered(answer(1, 2), now));
        let mut follows = answer(1, 2);
        follows.follows = Some(3);
        assert!(at.answered(follows.clone(), now));
        follows.raft_index = 10;
        assert!(!at.answered(follows, now));
        assert_eq!(at.other, None);
        assert!(at.answered(answer(2, 2), now));
        assert_eq!(at.other, Some(1));
    }
}
