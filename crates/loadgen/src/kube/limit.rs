//! The highest rate that a store can keep up, by bisection over the time between requests.

use std::time::Duration;

use serde::Serialize;

use super::load::Shape;
use super::result::Run;
use super::run::Bench;
use super::stores::StoreSpec;
use super::track::Stage;
use super::{Result, ms};
use crate::Error;

/// The interval is found to within this factor.
const PRECISION: f64 = 1.05;

/// Where to look, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search {
    /// A shorter interval is not tried.
    pub(crate) shortest: Duration,
    /// A longer one neither.
    pub(crate) longest: Duration,
    /// Highest latency from the intended time to bound, at the 99th percentile.
    pub(crate) limit: Duration,
}

/// One attempt.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Attempt {
    pub(crate) interval_ms: f64,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) passed: bool,
    pub(crate) note: String,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Found {
    pub(crate) store: String,
    pub(crate) mode: &'static str,
    pub(crate) disk_delay_ms: f64,
    pub(crate) limit_ms: f64,
    /// Shortest interval that passed; none if the longest did not.
    pub(crate) interval_ms: Option<f64>,
    /// Requests a second at that interval.
    pub(crate) per_s: Option<f64>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) runs: Vec<Run>,
}

impl Bench {
    /// Searches for `store`'s limit.
    ///
    /// # Errors
    /// If a cluster does not start, or the user interrupts. A run that fails is an attempt
    /// that did not pass.
    pub(crate) async fn find_limit(
        &mut self,
        store: &StoreSpec,
        shape: &Shape,
        search: &Search,
    ) -> Result<Found> {
        let mut found = Found {
            store: store.name.clone(),
            mode: shape.mode(),
            disk_delay_ms: ms(self.disk_delay),
            limit_ms: ms(search.limit),
            interval_ms: None,
            per_s: None,
            attempts: Vec::new(),
            runs: Vec::new(),
        };
        let mut good = search.longest;
        if !self.attempt(store, shape, search, good, &mut found).await? {
            return Ok(found);
        }
        let mut bad = search.shortest;
        if self.attempt(store, shape, search, bad, &mut found).await? {
            good = bad;
        }
        while good.as_secs_f64() > bad.as_secs_f64() * PRECISION {
            let middle = (good.as_secs_f64() * bad.as_secs_f64()).sqrt();
            // Whole tenths of a millisecond read well.
            let middle = Duration::from_micros((middle * 1e4).round() as u64 * 100);
            if middle >= good || middle <= bad {
                break;
            }
            if self
                .attempt(store, shape, search, middle, &mut found)
                .await?
            {
                good = middle;
            } else {
                bad = middle;
            }
        }
        found.interval_ms = Some(ms(good));
        found.per_s = Some(1.0 / good.as_secs_f64());
        Ok(found)
    }

    async fn attempt(
        &mut self,
        store: &StoreSpec,
        shape: &Shape,
        search: &Search,
        interval: Duration,
        found: &mut Found,
    ) -> Result<bool> {
        let shape = Shape { interval, ..*shape };
        let round = found.attempts.len() + 1;
        let mut attempt = Attempt {
            interval_ms: ms(interval),
            p99_ms: None,
            passed: false,
            note: String::new(),
        };
        match self.load(store, round, &shape).await {
            Ok(run) => {
                let p99_ms = run.stage(Stage::Bound).map(|l| l.p99_ms);
                let within = p99_ms.is_some_and(|p99| p99 <= ms(search.limit));
                attempt.p99_ms = p99_ms;
                attempt.passed = within && run.kept_up;
                if !run.kept_up {
                    attempt.note = format!(
                        "did not keep up, at the end it took {:.1} times as long",
                        run.growth
                    );
                }
                found.runs.push(run);
            }
            Err(Error::Count(why)) => attempt.note = why,
            Err(error) => return Err(error),
        }
        let p99 = attempt
            .p99_ms
            .map_or_else(|| "-".into(), |p99| format!("{p99:.0}"));
        let verdict = match (attempt.passed, attempt.note.as_str()) {
            (true, _) => "kept up",
            (false, "") => "too much",
            (false, note) => note,
        };
        self.progress.done(&format!(
            "{} T={} ms: p99 to bound {p99} ms: {verdict}",
            store.name, attempt.interval_ms
        ));
        let passed = attempt.passed;
        found.attempts.push(attempt);
        Ok(passed)
    }
}
