//! What the probes of one peer showed over the last minute.

use std::collections::VecDeque;

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The round trip in microseconds.
    Answered(u32),
    /// No answer in time.
    Lost,
}

/// Probes that are over, by when they were sent; those of the window only.
#[derive(Clone, Debug, Default)]
pub struct Window {
    probes: VecDeque<(u64, Outcome)>,
    last_answer_us: Option<u64>,
}

/// Statistics at one moment. What there is no value for is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Median of the round trips of the last two periods, in ms.
    pub now_ms: Option<f64>,
    /// Median over the window, in ms.
    pub p50_ms: Option<f64>,
    /// 99th percentile over the window, in ms.
    pub p99_ms: Option<f64>,
    /// Part of the window's probes that were lost, from 0 to 1.
    pub loss: Option<f64>,
    /// Seconds since the last answer.
    pub age_s: Option<f64>,
    /// Whether one of the last two periods' probes was answered; absent while none is over.
    pub up: Option<bool>,
}

impl Window {
    /// Takes a probe that is over. The oldest of more than `most` goes.
    pub fn over(&mut self, sent_us: u64, outcome: Outcome, now_us: u64, most: usize) {
        if let Outcome::Answered(_) = outcome {
            self.last_answer_us = Some(now_us);
        }
        while self.probes.len() >= most.max(1) {
            self.probes.pop_front();
        }
        self.probes.push_back((sent_us, outcome));
    }

    /// Statistics over `window_us`, and over `recent_us`, the last two periods.
    #[must_use]
    pub fn stats(&self, now_us: u64, recent_us: u64, window_us: u64) -> Stats {
        let since = |us: u64| {
            let from = now_us.saturating_sub(us);
            self.probes.iter().filter(move |(sent, _)| *sent >= from)
        };
        let answered = |us: u64| {
            let mut times: Vec<u32> = since(us)
                .filter_map(|(_, outcome)| match outcome {
                    Outcome::Answered(us) => Some(*us),
                    Outcome::Lost => None,
                })
                .collect();
            times.sort_unstable();
            times
        };
        let (recent, all) = (answered(recent_us), answered(window_us));
        let over = since(window_us).count();
        let over_recently = since(recent_us).count();
        Stats {
            now_ms: quantile_ms(&recent, 0.5),
            p50_ms: quantile_ms(&all, 0.5),
            p99_ms: quantile_ms(&all, 0.99),
            loss: (over > 0).then(|| (over - all.len()) as f64 / over as f64),
            age_s: self
                .last_answer_us
                .map(|at| now_us.saturating_sub(at) as f64 / 1e6),
            up: (over_recently > 0).then_some(!recent.is_empty()),
        }
    }
}

/// A quantile of sorted times in microseconds, as ms: the least value that is not below that part
/// of them; of the middle two of an even number the mean.
fn quantile_ms(sorted_us: &[u32], part: f64) -> Option<f64> {
    let last = sorted_us.len().checked_sub(1)?;
    if part == 0.5 {
        let (low, high) = (last / 2, last.div_ceil(2));
        let sum = u64::from(sorted_us[low]) + u64::from(sorted_us[high]);
        return Some(sum as f64 / 2_000.0);
    }
    let rank = (part * sorted_us.len() as f64).ceil() as usize;
    let at = rank.saturating_sub(1).min(last);
    Some(f64::from(sorted_us[at]) / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000;

    #[test]
    fn what_is_there_is_said_and_what_is_not_is_absent() {
        let mut window = Window::default();
        assert_eq!(window.stats(0, 10 * S, 60 * S), Stats::default());
        for n in 0..10 {
            let outcome = if n == 3 {
                Outcome::Lost
            } else {
                Outcome::Answered(1_000 * (n + 1))
            };
            window.over(u64::from(n) * S, outcome, u64::from(n) * S, 100);
        }
        let stats = window.stats(9 * S, 2 * S, 60 * S);
        assert_eq!(stats.now_ms, Some(9.0));
        assert_eq!((stats.p50_ms, stats.p99_ms), (Some(6.0), Some(10.0)));
        assert_eq!((stats.loss, stats.age_s), (Some(0.1), Some(0.0)));
        assert_eq!(stats.up, Some(true));
    }

    #[test]
    fn a_dead_peer_has_no_value_and_is_down() {
        let mut window = Window::default();
        window.over(0, Outcome::Answered(500), 500, 100);
        for n in 1..8 {
            window.over(n * S, Outcome::Lost, (n + 2) * S, 100);
        }
        let stats = window.stats(10 * S, 5 * S, 60 * S);
        assert_eq!((stats.now_ms, stats.up), (None, Some(false)));
        assert_eq!(stats.p50_ms, Some(0.5), "of the minute");
        assert!(stats.age_s.unwrap_or(0.0) > 9.0);
        // Not asked any more: nothing is known.
        let later = window.stats(100 * S, 5 * S, 60 * S);
        assert_eq!((later.p50_ms, later.loss, later.up), (None, None, None));
    }

    proptest! {
        #[test]
        fn values_lie_among_those_measured(times in prop::collection::vec(1_u32..1_000_000, 1..200)) {
            let mut window = Window::default();
            for (n, time) in times.iter().enumerate() {
                window.over(n as u64, Outcome::Answered(*time), n as u64, 1_000);
            }
            let stats = window.stats(times.len() as u64, u64::MAX, u64::MAX);
            let least = f64::from(times.iter().copied().min().unwrap_or(0)) / 1e3;
            let most = f64::from(times.iter().copied().max().unwrap_or(0)) / 1e3;
            let (p50, p99) = (stats.p50_ms.unwrap_or(-1.0), stats.p99_ms.unwrap_or(-1.0));
            prop_assert!(least <= p50 && p50 <= p99 && p99 <= most);
            let not_above = times.iter().filter(|t| f64::from(**t) / 1e3 <= p50).count();
            prop_assert!(2 * not_above >= times.len());
        }

        #[test]
        fn memory_is_bounded(count in 0_usize..2_000, most in 0_usize..100) {
            let mut window = Window::default();
            for n in 0..count {
                window.over(n as u64, Outcome::Lost, n as u64, most);
            }
            prop_assert!(window.probes.len() <= most.max(1));
        }
    }
}
