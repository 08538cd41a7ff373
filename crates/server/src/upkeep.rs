//! What the server does by itself: lease expiry, compaction in slices, the history
//! budget, automatic compaction, time-outs, and snapshots of the journal.

use crate::expiry::{self, Expiry};
use crate::shared::Shared;
use crate::store::{Open, SLICE_KEYS, Waiter};
use config::AutoCompaction;
use engine::op::Write;
use engine::sequencer::Answers;
use engine::{Engine, Error};
use ledger::Account;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use telemetry::Throttle;
use threads::{Pace, Panicked};

/// How often upkeep looks around.
const TICK: Duration = Duration::from_millis(50);
/// Events freed under the lock at a time.
const COMPACT_EVENTS: usize = 256;
/// A hash that failed is tried again so much later.
const HASH_RETRY: Duration = Duration::from_secs(1);
/// Compaction by time comes at least this often.
const HOUR: Duration = Duration::from_secs(3600);

/// Under steady load over the budget this would be said several times a second.
static HISTORY_WARNING: Throttle = Throttle::new(Duration::from_secs(60));
static PINS_WARNING: Throttle = Throttle::new(Duration::from_secs(60));

/// The upkeep thread's state.
pub(crate) struct Upkeep {
    shared: Arc<Shared>,
    auto: AutoCompaction,
    expiry: Expiry,
    periodic: Periodic,
    sampled_at: Instant,
    forced: Option<i64>,
    hashing: Hashing,
    compacting_since: Option<Instant>,
}

impl Upkeep {
    pub(crate) fn new(shared: Arc<Shared>, auto: AutoCompaction) -> Self {
        Upkeep {
            shared,
            auto,
            expiry: Expiry::default(),
            periodic: Periodic::default(),
            sampled_at: Instant::now(),
            forced: None,
            hashing: Hashing::default(),
            compacting_since: None,
        }
    }

    /// Runs until the server stops.
    pub(crate) fn run(mut self) {
        while !self.shared.stopping() {
            threads::fault_point("upkeep");
            self.expire_leases();
            self.expire_waiting();
            self.shared.rates.tick(&self.shared.metrics);
            self.keep_history_in_budget();
            self.compact_by_schedule();
            self.hash_compaction();
            let more = self.compact();
            self.shared.store.tell_compacted();
            if !more {
                std::thread::sleep(TICK);
            }
        }
    }

    fn expire_leases(&mut self) {
        let now_ms = self.shared.store.now_ms();
        let due = self.shared.store.lock().due_leases(now_ms, expiry::AT_ONCE);
        let round = self.expiry.round(due, now_ms);
        self.shared.metrics.lease_expired.add(round.new);
        for (write, waiter) in round.writes {
            self.shared.store.write_own(write, waiter);
        }
    }

    fn expire_waiting(&self) {
        let store = &self.shared.store;
        let mut answers = Answers::new();
        let open = {
            let mut engine = store.lock();
            if engine.waiting() == 0 {
                return;
            }
            engine.expire_waiting(store.now_ms(), &mut answers);
            Open::of(&engine)
        };
        store.raise(open);
        store.deliver(&mut answers);
        store.admit_ready(open);
    }

    /// Over its budget, history is compacted early; writes are not refused for it.
    fn keep_history_in_budget(&mut self) {
        let (sizes, target) = {
            let mut engine = self.shared.store.lock();
            engine.set_now(self.shared.store.now_ms());
            let sizes = engine.sizes();
            let history = sizes.history_bytes as u64;
            let budget = self.shared.settings.history_budget_bytes;
            // History also makes room for data: together they stay below 90 % of the quota,
            // so that etcd's alert at 95 % means data.
            let quota_bytes = self.shared.settings.quota.limit_bytes();
            let room = (quota_bytes / 10 * 9).saturating_sub(sizes.data_bytes as u64);
            let budget = budget.min(room.max(budget / 8));
            if history <= budget || engine.compaction_due() {
                return;
            }
            if self.break_pins(&mut engine) {
                return;
            }
            let excess = history - budget + budget / 10;
            (sizes, engine.revision_to_free(excess as usize))
        };
        let Some(revision) = target else { return };
        if self.forced == Some(revision) {
            return;
        }
        self.forced = Some(revision);
        if self
            .shared
            .store
            .write_unattended(Write::Compact { revision })
            .is_none()
        {
            self.shared.metrics.history_compactions_forced.inc();
            let Some(suppressed) = HISTORY_WARNING.allow() else {
                return;
            };
            tracing::warn!(
                suppressed,
                "history-bytes" = sizes.history_bytes as u64,
                "budget-bytes" = self.shared.settings.history_budget_bytes,
                "compact-revision" = revision,
                "history is over its budget: its oldest part is compacted early; watches and lists from before that revision start anew"
            );
        }
    }

    /// Compacted history that only a slow reader keeps is freed, and the reader told: else a
    /// client that reads at a trickle would let it grow without end. True if no compaction
    /// would free anything now: what is compacted already is on its way, or kept.
    fn break_pins(&self, engine: &mut Engine<Waiter>) -> bool {
        let broken = engine.break_oldest_pins();
        if broken == 0 {
            return engine.pinned().kept_bytes > 0;
        }
        self.shared.metrics.pins_broken.add(broken as u64);
        self.shared.ledger.count_shed(Account::Pins, broken as u64);
        if let Some(suppressed) = PINS_WARNING.allow() {
            tracing::warn!(
                suppressed,
                reads = broken as u64,
                "history is over its budget because of clients that are slow to read a RangeStream: the oldest ends with `required revision has been compacted`"
            );
        }
        true
    }

    fn compact_by_schedule(&mut self) {
        let (every, now) = (sample_interval(&self.auto), Instant::now());
        let Some(every) = every else { return };
        if now.duration_since(self.sampled_at) < every {
            return;
        }
        self.sampled_at = now;
        let revision = self.shared.store.lock().revision();
        let target = match self.auto {
            AutoCompaction::Off => return,
            AutoCompaction::Revision { retention } => revision - retention as i64,
            AutoCompaction::Periodic { retention } => {
                self.periodic.target(now, revision, retention).unwrap_or(0)
            }
        };
        if target <= 0 {
            return;
        }
        match self
            .shared
            .store
            .write_unattended(Write::Compact { revision: target })
        {
            None | Some(Ok(_)) => {
                tracing::info!(
                    revision = target,
                    "compacting by --auto-compaction-retention"
                );
            }
            Some(Err(Error::Compacted)) => {}
            Some(Err(error)) => tracing::warn!(%error, "automatic compaction was refused"),
        }
    }

    /// As etcd, keeps the hash of what is about to be compacted, for HashKV; what it needs
    /// is freed after it. On a thread of its own, since it reads everything.
    fn hash_compaction(&mut self) {
        if !self.hashing.may_begin(Instant::now()) {
            return;
        }
        let Some(mut cursor) = self.shared.store.lock().compaction_hash_open() else {
            return;
        };
        let store = self.shared.store.clone();
        let work = move || {
            threads::fault_point("hash");
            let mut pace = Pace::start();
            while !store.lock().hash_step(&mut cursor, SLICE_KEYS) {
                cursor.settle();
                pace.rest();
            }
            let hash = cursor.finish_hash(&mut || pace.rest());
            store.lock().compaction_hash_done(hash);
        };
        let failed = self.hashing.failed.clone();
        let ended = move |result: Result<(), Panicked>| {
            if let Err(error) = result {
                tracing::error!(%error, "failed to hash before a compaction; it is tried again, and nothing is freed before");
                *failed.lock() = Some(Instant::now());
            }
        };
        // Without a thread it is tried again at the next tick.
        self.hashing.thread = threads::spawn_job("hash", work, ended).ok();
    }

    /// Frees a slice of what compaction made unreachable; true if there is more.
    fn compact(&mut self) -> bool {
        let started = Instant::now();
        let (removed, more) = {
            let mut engine = self.shared.store.lock();
            if !engine.compaction_due() {
                return false;
            }
            let removed = engine.compact_step(COMPACT_EVENTS);
            (removed, engine.compaction_due())
        };
        let m = &self.shared.metrics;
        m.compaction_keys.add(removed as u64);
        let pause_ms = millis(started.elapsed());
        m.compaction_pause_ms.observe_value(pause_ms);
        // Index and values are one structure here.
        m.compaction_index_pause_ms.observe_value(pause_ms);
        let since = *self.compacting_since.get_or_insert(started);
        if more {
            // Writers first: an unfair lock would otherwise come straight back here.
            std::thread::sleep(Duration::from_micros(100));
        } else {
            m.compaction_total_ms.observe_value(millis(since.elapsed()));
            self.compacting_since = None;
            self.shared.compacted_now();
        }
        more
    }
}

/// The hash before a compaction.
#[derive(Debug, Default)]
struct Hashing {
    thread: Option<JoinHandle<()>>,
    /// When the last one failed.
    failed: Arc<Mutex<Option<Instant>>>,
}

impl Hashing {
    /// Whether none runs, and none has failed just now.
    fn may_begin(&self, now: Instant) -> bool {
        let running = self.thread.as_ref().is_some_and(|t| !t.is_finished());
        let rests = |at: Instant| now.saturating_duration_since(at) < HASH_RETRY;
        !running && !self.failed.lock().is_some_and(rests)
    }
}

/// Remembers the revisions of the last period, for compaction by time.
#[derive(Debug, Default)]
struct Periodic {
    samples: VecDeque<(Instant, i64)>,
    compacted_at: Option<Instant>,
}

impl Periodic {
    /// Takes a sample. Returns the newest revision that is as old as `retention` if it is
    /// time to compact at it: as in etcd every `retention`, at least every hour.
    fn target(&mut self, now: Instant, revision: i64, retention: Duration) -> Option<i64> {
        let old = |t: Instant| now.saturating_duration_since(t) >= retention;
        self.samples.push_back((now, revision));
        while self.samples.get(1).is_some_and(|(t, _)| old(*t)) {
            self.samples.pop_front();
        }
        let interval = retention.min(HOUR);
        let waited = self
            .compacted_at
            .is_none_or(|at| now.saturating_duration_since(at) >= interval);
        let &(sampled_at, target) = self.samples.front()?;
        if !waited || !old(sampled_at) {
            return None;
        }
        self.compacted_at = Some(now);
        Some(target)
    }
}

fn sample_interval(auto: &AutoCompaction) -> Option<Duration> {
    match auto {
        AutoCompaction::Off => None,
        AutoCompaction::Revision { .. } => Some(Duration::from_secs(300)),
        // As etcd: a tenth of the time between two compactions.
        AutoCompaction::Periodic { retention } => Some((*retention).min(HOUR) / 10),
    }
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacts_by_time_as_often_as_etcd() {
        for (retention_s, every_s) in [(300, 300), (3600, 3600), (7200, 3600), (86400, 3600)] {
            let retention = Duration::from_secs(retention_s);
            let tick_s = retention.min(HOUR).as_secs() / 10;
            let (start, mut periodic) = (Instant::now(), Periodic::default());
            let mut found = Vec::new();
            for t in (tick_s..retention_s * 3 + 4 * 3600).step_by(tick_s as usize) {
                // The revision is the time, so that a target shows its age.
                let now = start + Duration::from_secs(t);
                if let Some(target) = periodic.target(now, t as i64, retention) {
                    assert_eq!(t - target as u64, retention_s);
                    found.push(t);
                }
            }
            assert_eq!(found[0], retention_s + tick_s);
            assert!(
                found.windows(2).all(|w| w[1] - w[0] == every_s),
                "{found:?}"
            );
            assert!(periodic.samples.len() as u64 <= retention_s / tick_s + 1);
        }
    }
}
