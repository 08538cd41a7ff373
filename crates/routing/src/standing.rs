//! Pods that fail are left alone for a while.

/// When a pod is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierSettings {
    /// Failures one after the other.
    pub failures: u32,
    /// How long the first time; each time after that so much longer.
    pub eject_us: u64,
    /// At most.
    pub eject_max_us: u64,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            failures: 5,
            eject_us: 5_000_000,
            eject_max_us: 60_000_000,
        }
    }
}

/// How a pod stands with one router. A failure is one of the way to it (no connection, one that
/// broke, no answer in time), never an answer, whatever its code: a service's own errors are no
/// reason to take its pods away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is used.
    Good {
        /// Failures since the last success.
        failures: u32,
        /// How often it was ejected, less one for each success since.
        ejections: u32,
    },
    /// It is not used.
    Ejected {
        /// Until then.
        until_us: u64,
        /// How often by now.
        ejections: u32,
    },
}

impl Default for Standing {
    fn default() -> Self {
        Self::Good {
            failures: 0,
            ejections: 0,
        }
    }
}

impl Standing {
    /// Whether it may be used now.
    #[must_use]
    pub fn is_good(&self, now_us: u64) -> bool {
        match self {
            Self::Good { .. } => true,
            Self::Ejected { until_us, .. } => now_us >= *until_us,
        }
    }

    /// A request was answered.
    pub fn succeeded(&mut self) {
        let (Self::Good { ejections, .. } | Self::Ejected { ejections, .. }) = *self;
        *self = Self::Good {
            failures: 0,
            ejections: ejections.saturating_sub(1),
        };
    }

    /// The way to it failed. `true` if that ejects it.
    pub fn failed(&mut self, now_us: u64, settings: &OutlierSettings) -> bool {
        let ejections = match *self {
            Self::Good {
                failures,
                ejections,
            } if failures + 1 < settings.failures => {
                *self = Self::Good {
                    failures: failures + 1,
                    ejections,
                };
                return false;
            }
            Self::Good { ejections, .. } => ejections,
            // Requests that were under way when it was ejected say nothing new.
            Self::Ejected { until_us, .. } if now_us < until_us => return false,
            // It was tried again, and failed at once.
            Self::Ejected { ejections, .. } => ejections,
        };
        let ejections = ejections.saturating_add(1);
        let long = settings.eject_us.saturating_mul(u64::from(ejections));
        *self = Self::Ejected {
            until_us: now_us.saturating_add(long.min(settings.eject_max_us)),
            ejections,
        };
        true
    }
}
