//! A measured value that noise does not move.

use crate::Settings;

/// Samples until a value is settled: before, the mean of all so far is used.
const SETTLING: u8 = 10;

/// A damped value, and the one in use, which follows it only when it leaves a band: noise changes
/// nothing that is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Damped {
    damped: f32,
    in_use: f32,
    samples: u8,
}

impl Damped {
    /// Whether its first samples are over.
    pub(crate) fn is_settled(&self) -> bool {
        self.samples > SETTLING
    }

    /// The value to decide with; `None` before the first sample.
    pub(crate) fn value(&self) -> Option<f64> {
        (self.samples > 0).then(|| f64::from(self.in_use))
    }

    /// The damped value itself, which moves with each sample; `None` before the first one.
    pub(crate) fn damped(&self) -> Option<f64> {
        (self.samples > 0).then(|| f64::from(self.damped))
    }

    /// Takes a sample.
    pub(crate) fn measured(&mut self, new: f64, settings: &Settings) {
        self.samples = self.samples.saturating_add(1);
        // A mean at first: a first value that was far off does not stay.
        let weight = settings.damping.max(1.0 / f64::from(self.samples));
        self.go_to(new, weight, settings);
    }

    /// Goes a part of the way to `target`.
    pub(crate) fn go_to(&mut self, target: f64, part: f64, settings: &Settings) {
        let damped = f64::from(self.damped) + part * (target - f64::from(self.damped));
        self.damped = damped as f32;
        let in_use = f64::from(self.in_use);
        let leaves_band = (damped - in_use).abs() > settings.dead_band * in_use;
        if self.samples <= SETTLING || leaves_band {
            self.in_use = self.damped;
        }
    }
}
