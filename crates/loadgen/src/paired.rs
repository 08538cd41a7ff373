//! Ratios of two that were measured in turn, with the interval that their rounds allow.

use serde::Serialize;
use std::fmt;

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];
/// For more.
const NORMAL_95: f64 = 1.96;

/// The geometric mean of the rounds' ratios.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// It.
    pub ratio: f64,
    /// Its 95 % interval, by Student's t over the ratios' logarithms; none for one round.
    pub interval: Option<(f64, f64)>,
    /// How many rounds.
    pub rounds: usize,
}

/// The ratio of pairs of positive figures, one pair a round; none of none.
#[must_use]
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    let logs: Vec<f64> = pairs
        .iter()
        .filter(|(of, to)| *of > 0.0 && *to > 0.0)
        .map(|(of, to)| (of / to).ln())
        .collect();
    if logs.is_empty() {
        return None;
    }
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let interval = (logs.len() > 1).then(|| {
        let variance = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let t = T_95.get(logs.len() - 2).copied().unwrap_or(NORMAL_95);
        let half = t * (variance / count).sqrt();
        ((mean - half).exp(), (mean + half).exp())
    });
    Some(Ratio {
        ratio: mean.exp(),
        interval,
        rounds: logs.len(),
    })
}

/// A measured run, of several that were compared in turn.
pub(crate) trait InTurn {
    /// What was compared.
    type Way: Copy + PartialEq;
    /// Under which conditions; ways are compared where these are equal.
    type At: PartialEq;

    /// What this run was of.
    fn way(&self) -> Self::Way;
    /// In which round; runs of one round are a pair.
    fn round(&self) -> usize;
    /// Its conditions.
    fn at(&self) -> &Self::At;
}

/// All conditions, in the order first measured.
pub(crate) fn conditions<R: InTurn>(runs: &[R]) -> Vec<&R::At> {
    let mut all = Vec::new();
    for run in runs {
        if !all.contains(&run.at()) {
            all.push(run.at());
        }
    }
    all
}

/// The runs of a way under some conditions.
pub(crate) fn of_way<'a, R: InTurn>(
    runs: &'a [R],
    at: &R::At,
    way: R::Way,
) -> impl Iterator<Item = &'a R> {
    runs.iter()
        .filter(move |run| run.way() == way && run.at() == at)
}

/// Ways under some conditions, the first of the command line first: it began the first round.
pub(crate) fn ways<R: InTurn>(runs: &[R], at: &R::At) -> Vec<R::Way> {
    let mut all = Vec::new();
    for run in runs.iter().filter(|run| run.at() == at) {
        if !all.contains(&run.way()) {
            all.push(run.way());
        }
    }
    all
}

/// A figure of the runs of `way`, each with that of the same round's run of `first`, where both
/// have one.
pub(crate) fn pairs<R: InTurn>(
    runs: &[R],
    at: &R::At,
    (way, first): (R::Way, R::Way),
    figure: impl Fn(&R) -> Option<f64>,
) -> Vec<(f64, f64)> {
    of_way(runs, at, way)
        .filter_map(|run| {
            let other = of_way(runs, at, first).find(|other| other.round() == run.round())?;
            Some((figure(run)?, figure(other)?))
        })
        .collect()
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.ratio)?;
        match self.interval {
            Some((low, high)) => write!(f, " [{low:.3}, {high:.3}]"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_has_the_interval_of_its_rounds() {
        let equal = ratio(&[(2.0, 1.0), (4.0, 2.0), (6.0, 3.0)]).unwrap();
        assert!((equal.ratio - 2.0).abs() < 1e-9);
        let (low, high) = equal.interval.unwrap();
        assert!((high - low).abs() < 1e-9);
        // Logarithms -1, 0, 1: mean 0, deviation 1, half 4.303 / sqrt(3).
        let e = std::f64::consts::E;
        let wide = ratio(&[(1.0, e), (1.0, 1.0), (e, 1.0)]).unwrap();
        assert!((wide.ratio - 1.0).abs() < 1e-9);
        assert!((wide.interval.unwrap().1.ln() - 4.303 / 3f64.sqrt()).abs() < 1e-3);
    }

    #[test]
    fn one_round_has_no_interval_and_nothing_no_ratio() {
        assert_eq!(ratio(&[(3.0, 2.0)]).unwrap().to_string(), "1.500");
        assert_eq!(ratio(&[(3.0, 0.0)]), None);
        assert_eq!(ratio(&[]), None);
    }
}
