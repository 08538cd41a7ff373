//! Batches made visible, or refused.

use super::CommitLog;
use crate::store::{Open, Waiter};
use engine::Error;
use engine::sequencer::{Answers, Batch};
use journal::CommitError;
use std::time::{Duration, Instant};
use telemetry::{GoDuration, Throttle};

static SLOW_APPLY: Throttle = Throttle::new(Duration::from_secs(10));

/// What making a batch visible brought.
pub(super) struct Released {
    open: Open,
    quota_changed: bool,
    took: Duration,
}

impl CommitLog {
    /// Makes a batch visible. The journal calls this while it keeps the other lane out.
    pub(super) fn make_visible(&self, ticket: u64, answers: &mut Answers<Waiter>) -> Released {
        let began = Instant::now();
        let now_ms = self.store.now_ms();
        let mut engine = self.store.lock();
        threads::fault_point("publish");
        if self.disk_full() {
            // There was room for it: what waited for it need not be refused.
            engine.set_disk_full(false);
        }
        if let Err(error) = engine.complete(ticket, now_ms, answers) {
            self.die(&error.to_string());
        }
        Released {
            quota_changed: engine.check_quota(),
            open: Open::of(&engine),
            took: began.elapsed(),
        }
    }

    /// Hands out a visible batch's answers, and wakes who has something to do. Returns what
    /// there is to do.
    pub(super) fn answer(&self, released: &Released, answers: &mut Answers<Waiter>) -> Open {
        self.store.deliver(answers);
        self.store.raise(released.open);
        released.open
    }

    /// Says what an operator should know of a visible batch.
    pub(super) fn report(&self, released: &Released, records: usize) {
        if self.disk_full() {
            self.set_disk_full(false);
        }
        if released.quota_changed {
            self.log_quota();
        }
        if released.took > self.warning_apply {
            self.warn_slow_apply(released.took, records);
        }
    }

    /// Answers a batch that the journal did not take. After a failed sync nothing may be
    /// answered, since whether the writes are on the disk is unknown: the process ends.
    pub(super) fn refuse(&self, batch: &Batch, error: &CommitError) -> Open {
        self.metrics
            .proposals_failed
            .add(batch.records.len() as u64);
        let answer = match error {
            CommitError::NoSpace { .. } | CommitError::NoSegment { .. } => Error::NoSpace,
            // The engine admits no write of which that could be said.
            CommitError::TooLarge { .. } => Error::TooLarge,
            CommitError::Strict | CommitError::Closed => Error::Stopped,
            CommitError::Poisoned { .. } | CommitError::Unordered { .. } => {
                self.die(&error.to_string())
            }
        };
        if error.is_no_room() && !self.disk_full() {
            tracing::error!(%error, "the journal has no room: writes are refused with NOSPACE until there is");
            self.set_disk_full(true);
        }
        let mut answers = Answers::new();
        let open = {
            let mut engine = self.store.lock();
            if let Err(error) = engine.fail(batch.ticket, answer, &mut answers) {
                self.die(&error.to_string());
            }
            Open::of(&engine)
        };
        self.store.deliver(&mut answers);
        self.store.raise(open);
        open
    }

    fn warn_slow_apply(&self, took: Duration, records: usize) {
        self.metrics.slow_apply.inc();
        if let Some(suppressed) = SLOW_APPLY.allow() {
            tracing::warn!(
                took = %GoDuration(took),
                "expected-duration" = %GoDuration(self.warning_apply),
                records = records as u64,
                suppressed,
                "apply request took too long"
            );
        }
    }

    fn log_quota(&self) {
        let (sizes, full) = {
            let engine = self.store.lock();
            (engine.sizes(), engine.no_space())
        };
        let (data, quota) = (sizes.data_bytes as u64, self.quota.shown_bytes());
        if full {
            tracing::warn!(
                "data-bytes" = data,
                "quota-bytes" = quota,
                "alarm NOSPACE raised: data is over the quota; puts are refused until keys are deleted or --quota-backend-bytes is raised"
            );
        } else {
            tracing::info!(
                "data-bytes" = data,
                "quota-bytes" = quota,
                "alarm NOSPACE cleared: there is room again"
            );
        }
    }
}
