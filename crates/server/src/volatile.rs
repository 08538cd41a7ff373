//! Volatile batches: written into the log's file and made visible. A few writes at a time the
//! worker takes there itself, which spares two switches between threads; the volatile writer's
//! thread takes the rest. Neither syncs: the committer syncs what they wrote.

use crate::durability::{MAX_BATCH_BYTES, Published, publish, refuse};
use crate::shared::Shared;
use crate::store::Waiter;
use engine::op::VOLATILE;
use engine::sequencer::{Answers, Batch};
use journal::{CommitError, VolatileInfo, VolatileWriter};
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A worker takes so many writes to the log at most: with more the hand-over costs less than
/// what the worker could do meanwhile.
const HERE_WRITES: usize = 8;
/// And so many bytes, some tens of microseconds.
const HERE_BYTES: usize = 64 << 10;
/// After a write that the kernel kept waiting, workers write nothing for so many times as long:
/// what waits for a worker loses a thousandth of its time to slow disks at most.
const REST: u32 = 1000;

/// Whether workers may write to the log.
#[derive(Debug, Default)]
pub(crate) struct Here {
    /// When they may again, on the store's clock.
    again_ms: AtomicU64,
}

impl Here {
    fn allowed(&self, now_ms: u64) -> bool {
        self.again_ms.load(Ordering::Relaxed) <= now_ms
    }

    fn rest(&self, now_ms: u64, kept: Duration) {
        let rest = (kept * REST).as_millis() as u64;
        self.again_ms.fetch_max(now_ms + rest, Ordering::Relaxed);
    }
}

/// The volatile writer's thread: runs until the server stops and nothing volatile is left.
pub(crate) fn run(shared: &Arc<Shared>, writer: &VolatileWriter) {
    loop {
        let stopping = shared.stopping();
        let batch = shared.store.lock().take_batch(VOLATILE, MAX_BATCH_BYTES);
        match batch {
            Some(batch) => {
                let mut answers = Answers::new();
                let result = writer.write(
                    &batch.records,
                    within(&batch),
                    || shared.store.lock().revision(),
                    || publish(shared, batch.ticket, &mut answers),
                );
                end(shared, &batch, result, answers);
            }
            None if stopping => break,
            None => {
                shared.store.volatile.wait(Duration::from_secs(3600));
            }
        }
    }
}

/// On a worker: takes the open volatile writes to the log, if they are few and nothing keeps
/// them. False if the volatile writer should.
pub(crate) fn write_here(shared: &Shared) -> bool {
    let store = &shared.store;
    let load = store.lock().lane_load(VOLATILE);
    if load.open == 0 {
        return true;
    }
    let few = load.open <= HERE_WRITES && load.open_bytes <= HERE_BYTES;
    let now_ms = store.now_ms();
    if !few || load.in_flight > 0 || !shared.here.allowed(now_ms) {
        return false;
    }
    let Some(turn) = shared.volatile.turn(|| store.lock().revision()) else {
        return false;
    };
    let batch = {
        let mut engine = store.lock();
        // Batches become visible in the order in which they were taken.
        match engine.lane_load(VOLATILE).in_flight {
            0 => engine.take_batch(VOLATILE, HERE_BYTES),
            _ => return false,
        }
    };
    let Some(batch) = batch else { return true };
    let (before, began) = (waits(), Instant::now());
    let mut answers = Answers::new();
    let result = turn.write(&batch.records, within(&batch), || {
        if waits() != before {
            shared.here.rest(now_ms, began.elapsed());
        }
        publish(shared, batch.ticket, &mut answers)
    });
    end(shared, &batch, result, answers);
    true
}

/// How often this thread has waited for something other than a processor.
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

fn within(batch: &Batch) -> Duration {
    Duration::from_millis(batch.sync_within_ms.into())
}

fn end(
    shared: &Shared,
    batch: &Batch,
    result: Result<(VolatileInfo, Published), CommitError>,
    mut answers: Answers<Waiter>,
) {
    let store = &shared.store;
    match result {
        Ok((info, published)) => {
            store.deliver(&mut answers);
            store.raise(published.open);
            let (m, records) = (&shared.metrics, batch.records.len() as u64);
            shared.committed(info.lsn, records);
            m.wal_write.observe(Duration::from_micros(info.write_us));
            m.wal_write_bytes.add(info.bytes);
            m.writes.volatile.add(records);
            m.write_bytes.volatile.add(info.bytes);
            published.report(shared, batch.records.len());
        }
        Err(error) => refuse(shared, batch, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_was_kept_rests_a_thousand_times_as_long() {
        let here = Here::default();
        assert!(here.allowed(0));
        here.rest(5_000, Duration::from_millis(3));
        assert!(!here.allowed(7_999) && here.allowed(8_000));
        // A shorter wait of another worker does not shorten the rest.
        here.rest(5_001, Duration::from_micros(50));
        assert!(!here.allowed(7_999) && here.allowed(8_000));
    }

    #[test]
    fn waiting_is_told_from_working() {
        let before = waits();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(2) {}
        assert_eq!(waits(), before);
        std::thread::sleep(Duration::from_millis(1));
        assert!(waits() > before);
    }
}
