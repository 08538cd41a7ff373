//! What one run measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::load::{Outcome, Shape};
use super::ms;
use super::sample::{Sample, StoreLatency};
use super::track::Stage;

/// Points of a distribution that are kept for plots.
const CURVE_POINTS: usize = 200;
/// A run's last quarter may be slower than its second by this factor...
const GROWTH_FACTOR: f64 = 1.5;
/// ... and this many milliseconds, before it counts as growing.
const GROWTH_MS: f64 = 50.0;
/// Of what was asked for, at least this share must be bound when the load ends.
const IN_TIME_SHARE: f64 = 0.9;

/// Latencies in milliseconds from the intended time of a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Latencies {
    pub(crate) count: usize,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    /// At evenly spaced quantiles from the fastest to the slowest.
    pub(crate) curve_ms: Vec<f64>,
}

impl Latencies {
    /// None if there are none.
    fn of(mut ms: Vec<f64>) -> Option<Latencies> {
        ms.sort_by(f64::total_cmp);
        let max_ms = *ms.last()?;
        // The smallest value that the share of all is not above.
        let at = |quantile: f64| {
            let rank = (quantile * ms.len() as f64).ceil() as usize;
            ms.get(rank.saturating_sub(1)).copied().unwrap_or(max_ms)
        };
        let points = CURVE_POINTS.min(ms.len());
        Some(Latencies {
            count: ms.len(),
            mean_ms: ms.iter().sum::<f64>() / ms.len() as f64,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms,
            curve_ms: (1..=points).map(|n| at(n as f64 / points as f64)).collect(),
        })
    }
}

/// What one component used during the load and until all was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Used {
    pub(crate) cpu_ms: f64,
    pub(crate) cpu_ms_per_request: f64,
    pub(crate) rss_peak_bytes: u64,
    pub(crate) written_bytes: u64,
}

/// The course of a run, a point a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Course {
    pub(crate) seconds: Vec<f64>,
    /// Deployments that should have been asked for by then.
    pub(crate) asked: Vec<usize>,
    /// Of these, how many had all their pods bound.
    pub(crate) bound: Vec<usize>,
    /// Cores used since the point before.
    pub(crate) cores: BTreeMap<String, Vec<f64>>,
    pub(crate) rss_bytes: BTreeMap<String, Vec<u64>>,
    /// Of the store, since the point before; none where it did not tell.
    pub(crate) syncs_per_s: Vec<Option<f64>>,
    /// Mean of the store's writes since the point before, by its own clock; none where it did
    /// not tell, or had none.
    pub(crate) store_write_ms: Vec<Option<f64>>,
    pub(crate) written_bytes_per_s: Vec<f64>,
}

/// One run's figures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) store: String,
    pub(crate) round: usize,
    pub(crate) mode: &'static str,
    pub(crate) interval_ms: f64,
    pub(crate) load_s: f64,
    pub(crate) disk_delay_ms: f64,
    pub(crate) requests: usize,
    pub(crate) created: usize,
    /// Deployments bound within the load's time, a second.
    pub(crate) bound_per_s: f64,
    /// Median latency to bound in the last quarter of the load over that in the second.
    pub(crate) growth: f64,
    /// Whether the latency to bound did not grow over the load, and nearly all were bound
    /// within it.
    pub(crate) kept_up: bool,
    /// From the end of the load to when all was done.
    pub(crate) drain_s: f64,
    pub(crate) stages: BTreeMap<&'static str, Latencies>,
    /// The store's writes as the apiserver saw them.
    pub(crate) store_writes: Option<StoreLatency>,
    pub(crate) used: BTreeMap<String, Used>,
    pub(crate) syncs: Option<f64>,
    pub(crate) course: Course,
}

impl Run {
    pub(crate) fn new(
        store: &str,
        round: usize,
        shape: &Shape,
        disk_delay: Duration,
        outcome: &Outcome,
    ) -> Run {
        let tracker = &outcome.tracker;
        let mut stages = BTreeMap::new();
        for stage in Stage::ALL {
            let ms = tracker
                .latencies(stage)
                .iter()
                .map(|(_, l)| ms(*l))
                .collect();
            if let Some(latencies) = Latencies::of(ms) {
                stages.insert(stage.name(), latencies);
            }
        }
        let creations: Vec<_> = tracker.creations().collect();
        let load_end = outcome.began + shape.duration;
        let in_time = creations
            .iter()
            .filter(|(_, bound)| bound.is_some_and(|at| at <= load_end))
            .count();
        let (growth, steady) = growth(&tracker.latencies(Stage::Bound));
        let last = outcome.samples.last().map_or(load_end, |s| s.at);
        let first = outcome.samples.first();
        let used = used(&outcome.samples, outcome.requests);
        let syncs = |sample: Option<&Sample>| Some(sample?.store?.syncs);
        let syncs = syncs(outcome.samples.last())
            .zip(syncs(first))
            .map(|(after, before)| after - before);
        Run {
            store: store.to_owned(),
            round,
            mode: shape.mode(),
            interval_ms: ms(shape.interval),
            load_s: shape.duration.as_secs_f64(),
            disk_delay_ms: ms(disk_delay),
            requests: outcome.requests,
            created: creations.len(),
            bound_per_s: in_time as f64 / shape.duration.as_secs_f64(),
            growth,
            kept_up: steady && in_time as f64 >= creations.len() as f64 * IN_TIME_SHARE,
            drain_s: last.saturating_duration_since(load_end).as_secs_f64(),
            stages,
            store_writes: outcome.store,
            used,
            syncs,
            course: course(&outcome.samples, outcome.began, &creations),
        }
    }

    pub(crate) fn stage(&self, stage: Stage) -> Option<&Latencies> {
        self.stages.get(stage.name())
    }
}

/// Growth of a latency over a run, and whether it stays as it is.
fn growth(latencies: &[(Instant, Duration)]) -> (f64, bool) {
    let quarter = latencies.len() / 4;
    let median = |n: usize| {
        let part = latencies.get(n * quarter..(n + 1) * quarter)?;
        crate::report::median(part.iter().map(|(_, latency)| ms(*latency)))
    };
    match (median(1), median(3)) {
        (Some(second), Some(last)) => {
            let grown = last > second * GROWTH_FACTOR && last > second + GROWTH_MS;
            (last / second.max(0.001), !grown)
        }
        _ => (1.0, true),
    }
}

fn used(samples: &[Sample], requests: usize) -> BTreeMap<String, Used> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return BTreeMap::new();
    };
    last.uses
        .iter()
        .filter_map(|(name, after)| {
            let before = first.uses.get(name)?;
            let cpu_ms = after.cpu_ms - before.cpu_ms;
            let used = Used {
                cpu_ms,
                cpu_ms_per_request: cpu_ms / requests.max(1) as f64,
                rss_peak_bytes: after.rss_peak_bytes,
                written_bytes: after.written_bytes.saturating_sub(before.written_bytes),
            };
            Some((name.clone(), used))
        })
        .collect()
}

fn course(samples: &[Sample], began: Instant, creations: &[(Instant, Option<Instant>)]) -> Course {
    let mut course = Course::default();
    let mut asked: Vec<Instant> = creations.iter().map(|(intended, _)| *intended).collect();
    let mut bound: Vec<Instant> = creations.iter().filter_map(|(_, at)| *at).collect();
    asked.sort();
    bound.sort();
    for pair in samples.windows(2) {
        let [before, now] = pair else { continue };
        let seconds = now
            .at
            .saturating_duration_since(before.at)
            .as_secs_f64()
            .max(1e-3);
        course
            .seconds
            .push(now.at.saturating_duration_since(began).as_secs_f64());
        course.asked.push(asked.partition_point(|at| *at <= now.at));
        course.bound.push(bound.partition_point(|at| *at <= now.at));
        for (name, after) in &now.uses {
            let earlier = before.uses.get(name).copied().unwrap_or(*after);
            let cores = (after.cpu_ms - earlier.cpu_ms) / 1e3 / seconds;
            course.cores.entry(name.clone()).or_default().push(cores);
            course
                .rss_bytes
                .entry(name.clone())
                .or_default()
                .push(after.rss_bytes);
            if name == super::STORE {
                let written = after.written_bytes.saturating_sub(earlier.written_bytes);
                course.written_bytes_per_s.push(written as f64 / seconds);
            }
        }
        let store = now.store.zip(before.store);
        let rate = store.map(|(now, before)| (now.syncs - before.syncs) / seconds);
        course.syncs_per_s.push(rate);
        let mean = store.and_then(|(now, before)| {
            let writes = now.writes - before.writes;
            (writes > 0.0).then(|| (now.writes_s - before.writes_s) / writes * 1e3)
        });
        course.store_write_ms.push(mean);
    }
    course
}

#[cfg(test)]
mod tests {
    use super::super::sample::StoreUse;
    use super::*;

    #[test]
    fn percentiles_are_of_all() {
        let latencies = Latencies::of((1..=1000).rev().map(f64::from).collect()).unwrap();
        assert_eq!((latencies.p50_ms, latencies.p99_ms), (500.0, 990.0));
        assert_eq!((latencies.p999_ms, latencies.max_ms), (999.0, 1000.0));
        assert_eq!(latencies.curve_ms.len(), CURVE_POINTS);
        assert_eq!(latencies.curve_ms.last(), Some(&1000.0));
        assert_eq!(Latencies::of(vec![]), None);
        assert_eq!(Latencies::of(vec![7.0]).unwrap().p50_ms, 7.0);
    }

    #[test]
    fn a_course_has_all_its_points() {
        let began = Instant::now();
        let told = [Some((5.0, 4.0)), None, Some((9.0, 4.0)), Some((15.0, 8.0))];
        let mut samples: Vec<Sample> = told
            .into_iter()
            .enumerate()
            .map(|(n, told)| Sample {
                at: began + Duration::from_secs(2 * n as u64),
                uses: BTreeMap::new(),
                store: told.map(|(syncs, writes)| StoreUse {
                    syncs,
                    writes,
                    writes_s: writes / 100.0,
                }),
            })
            .collect();
        let last = samples[3].clone();
        samples.push(Sample {
            at: last.at + Duration::from_secs(1),
            ..last
        });
        let course = course(&samples, began, &[]);
        assert_eq!(course.seconds, [2.0, 4.0, 6.0, 7.0]);
        assert_eq!(course.syncs_per_s, [None, None, Some(3.0), Some(0.0)]);
        assert_eq!(course.store_write_ms, [None, None, Some(10.0), None]);
    }

    #[test]
    fn a_latency_that_grows_is_seen() {
        let now = Instant::now();
        let run = |f: fn(u64) -> u64| -> Vec<(Instant, Duration)> {
            (0..100)
                .map(|n| (now, Duration::from_millis(f(n))))
                .collect()
        };
        assert!(growth(&run(|_| 80)).1);
        assert!(
            growth(&run(|n| 10 + n / 10)).1,
            "a few milliseconds are noise"
        );
        assert!(!growth(&run(|n| 50 + 10 * n)).1);
        assert!(growth(&[]).1);
    }
}
