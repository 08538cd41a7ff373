//! Volatile batches: written into the log's file and made visible. A few writes at a time the
//! worker takes there itself, which spares two switches between threads; the volatile writer's
//! thread takes the rest. Neither syncs: the committer syncs what they wrote.

use super::release::Released;
use super::{CommitLog, MAX_BATCH_BYTES};
use crate::store::{Open, Waiter};
use engine::sequencer::{Answers, Batch, LaneLoad};
use engine::{Engine, Lane};
use journal::{CommitError, VolatileInfo, VolatileWriter};
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A worker takes so many writes to the log at most: with more the hand-over costs less than
/// what the worker could do meanwhile.
const WORKER_WRITES: usize = 8;
/// And so many bytes, some tens of microseconds.
const WORKER_BYTES: usize = 64 << 10;
/// After a write that the kernel kept waiting, workers write nothing for so many times as long:
/// what waits for a worker loses a thousandth of its time to slow disks at most.
const REST: u32 = 1000;

/// Whether workers may write to the log.
#[derive(Debug, Default)]
pub(super) struct WorkerWrites {
    /// When they may again, on the store's clock.
    again_ms: AtomicU64,
}

impl WorkerWrites {
    fn allowed(&self, now_ms: u64) -> bool {
        self.again_ms.load(Ordering::Relaxed) <= now_ms
    }

    fn rest(&self, now_ms: u64, kept: Duration) {
        let rest = (kept * REST).as_millis() as u64;
        self.again_ms.fetch_max(now_ms + rest, Ordering::Relaxed);
    }
}

/// The volatile writer's thread: runs until the server stops and nothing volatile is left.
pub(super) fn run(log: &CommitLog, writer: &VolatileWriter) {
    loop {
        threads::fault_point("volatile");
        let stopping = log.lifecycle.stopping();
        let batch = take(&mut log.store.lock(), MAX_BATCH_BYTES);
        match batch {
            Some(batch) => {
                let mut answers = Answers::new();
                let result = writer.write(
                    &batch.records,
                    within(&batch),
                    || log.store.lock().revision(),
                    || log.make_visible(batch.ticket, &mut answers),
                );
                let open = end(log, &batch, result, answers);
                log.store.admit_ready(open);
            }
            None if stopping => break,
            None => {
                let open = Open::of(&log.store.lock());
                log.store.admit_ready(open);
                log.store.volatile.wait(Duration::from_secs(3600));
            }
        }
    }
}

/// Takes the open volatile batch, unless one is on its way: who has that looks for more at its
/// end. Two at a time could end in another order than they were taken in, and the engine knows
/// no such order.
fn take(engine: &mut Engine<Waiter>, max_bytes: usize) -> Option<Batch> {
    match engine.lane_load(Lane::Volatile).in_flight {
        0 => engine.take_batch(Lane::Volatile, max_bytes),
        _ => None,
    }
}

impl CommitLog {
    /// On a worker: takes the open volatile writes to the log, if they are few and nothing keeps
    /// them. False if the volatile writer should.
    pub(crate) fn write_on_worker(&self) -> bool {
        let store = &self.store;
        let load = store.lock().lane_load(Lane::Volatile);
        if load.open == 0 {
            return true;
        }
        let now_ms = store.now_ms();
        if !few(load) || !self.worker_writes.allowed(now_ms) {
            return false;
        }
        // From here on a batch may be on its way, and nobody else brings it to its end.
        let _critical = threads::critical();
        let Some(turn) = self.volatile.turn(|| store.lock().revision()) else {
            return false;
        };
        let batch = {
            let mut engine = store.lock();
            match few(engine.lane_load(Lane::Volatile)) {
                true => take(&mut engine, WORKER_BYTES),
                false => None,
            }
        };
        let Some(batch) = batch else { return false };
        let (before, began) = (waits(), Instant::now());
        let rest_if_kept = || {
            if waits() != before {
                self.worker_writes.rest(now_ms, began.elapsed());
            }
        };
        let mut answers = Answers::new();
        let result = turn.write(&batch.records, within(&batch), || {
            rest_if_kept();
            self.make_visible(batch.ticket, &mut answers)
        });
        if result.is_err() {
            rest_if_kept();
        }
        if end(self, &batch, result, answers).ready {
            // That may be more than a worker should take on.
            store.volatile.raise();
        }
        true
    }
}

/// Whether a worker may write so much.
fn few(load: LaneLoad) -> bool {
    load.open <= WORKER_WRITES && load.open_bytes <= WORKER_BYTES && load.in_flight == 0
}

/// How often this thread has waited for something other than a processor.
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

fn within(batch: &Batch) -> Duration {
    Duration::from_millis(batch.sync_within_ms.into())
}

fn end(
    log: &CommitLog,
    batch: &Batch,
    result: Result<(VolatileInfo, Released), CommitError>,
    mut answers: Answers<Waiter>,
) -> Open {
    match result {
        Ok((info, released)) => {
            let open = log.answer(&released, &mut answers);
            let (m, records) = (&log.metrics, batch.records.len() as u64);
            log.committed(info.lsn, records);
            m.wal_write.observe(Duration::from_micros(info.write_us));
            m.wal_write_bytes.add(info.bytes);
            m.writes.volatile.add(records);
            m.write_bytes.volatile.add(info.bytes);
            log.report(&released, batch.records.len());
            open
        }
        Err(error) => log.refuse(batch, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::op::{Class, PutOp, Write};

    #[test]
    fn a_worker_that_was_kept_rests_a_thousand_times_as_long() {
        let writes = WorkerWrites::default();
        assert!(writes.allowed(0));
        writes.rest(5_000, Duration::from_millis(3));
        assert!(!writes.allowed(7_999) && writes.allowed(8_000));
        // A shorter wait of another worker does not shorten the rest.
        writes.rest(5_001, Duration::from_micros(50));
        assert!(!writes.allowed(7_999) && writes.allowed(8_000));
    }

    #[test]
    fn a_batch_is_not_taken_while_another_is_on_its_way() {
        let mut engine = Engine::new(engine::Limits::default());
        let put = |engine: &mut Engine<Waiter>, key: &'static str| {
            let write = Write::Put(PutOp {
                key: key.into(),
                ..PutOp::default()
            });
            let class = Class {
                lane: Lane::Volatile,
                ..Class::DURABLE
            };
            assert!(engine.submit(write, class, Waiter::Nobody, 0).is_none());
        };
        put(&mut engine, "a");
        let first = take(&mut engine, MAX_BATCH_BYTES).unwrap();
        put(&mut engine, "b");
        assert!(!few(engine.lane_load(Lane::Volatile)));
        assert!(take(&mut engine, MAX_BATCH_BYTES).is_none());
        let refused = engine::Error::NoSpace;
        engine
            .fail(first.ticket, refused, &mut Answers::new())
            .unwrap();
        assert!(few(engine.lane_load(Lane::Volatile)));
        let second = take(&mut engine, MAX_BATCH_BYTES).unwrap();
        engine
            .complete(second.ticket, 0, &mut Answers::new())
            .unwrap();
        assert_eq!(engine.revision(), 2);
    }

    /// Writes of the model below; the worker has a turn for each.
    const WRITES: u64 = 2;

    /// What the worker does next, one hold of the engine's lock a step.
    #[derive(Clone, Copy)]
    enum Worker {
        Submit,
        Look,
        Take,
        Complete(u64),
        Done,
    }

    /// What the volatile writer does next.
    #[derive(Clone, Copy)]
    enum Writer {
        Take,
        Complete(u64),
        Wait,
    }

    /// One run of both, a step at a time: [`CommitLog::write_on_worker`] and [`run`], without the
    /// journal.
    struct Handover {
        engine: Engine<Waiter>,
        submitted: u64,
        worker: Worker,
        writer: Writer,
        /// The writer's signal.
        raised: bool,
    }

    impl Handover {
        fn new() -> Self {
            Handover {
                engine: Engine::new(engine::Limits::default()),
                submitted: 0,
                worker: Worker::Submit,
                writer: Writer::Take,
                raised: false,
            }
        }

        fn complete(&mut self, ticket: u64) {
            let mut answers = Answers::new();
            self.engine.complete(ticket, 0, &mut answers).unwrap();
            self.raised |= Open::of(&self.engine).volatile;
        }

        fn worker_steps(&mut self) -> bool {
            self.worker = match self.worker {
                Worker::Submit if self.submitted == WRITES => return false,
                Worker::Submit => {
                    self.submitted += 1;
                    let write = Write::Put(PutOp {
                        key: self.submitted.to_string().into(),
                        ..PutOp::default()
                    });
                    let class = Class {
                        lane: Lane::Volatile,
                        ..Class::DURABLE
                    };
                    let answer = self.engine.submit(write, class, Waiter::Nobody, 0);
                    assert!(answer.is_none());
                    match Open::of(&self.engine).volatile {
                        true => Worker::Look,
                        false => Worker::Done,
                    }
                }
                Worker::Look => match self.engine.lane_load(Lane::Volatile) {
                    load if load.open == 0 => Worker::Done,
                    load if few(load) => Worker::Take,
                    _ => {
                        self.raised = true;
                        Worker::Done
                    }
                },
                Worker::Take => {
                    let load = self.engine.lane_load(Lane::Volatile);
                    let batch = few(load).then(|| take(&mut self.engine, WORKER_BYTES));
                    match batch.flatten() {
                        Some(batch) => Worker::Complete(batch.ticket),
                        None => {
                            self.raised = true;
                            Worker::Done
                        }
                    }
                }
                Worker::Complete(ticket) => {
                    self.complete(ticket);
                    Worker::Done
                }
                Worker::Done => Worker::Submit,
            };
            true
        }

        fn writer_steps(&mut self) -> bool {
            self.writer = match self.writer {
                Writer::Take => match take(&mut self.engine, MAX_BATCH_BYTES) {
                    Some(batch) => Writer::Complete(batch.ticket),
                    None => Writer::Wait,
                },
                Writer::Complete(ticket) => {
                    self.complete(ticket);
                    Writer::Take
                }
                Writer::Wait if !std::mem::take(&mut self.raised) => return false,
                Writer::Wait => Writer::Take,
            };
            true
        }

        fn step(&mut self, worker: bool) -> bool {
            match worker {
                true => self.worker_steps(),
                false => self.writer_steps(),
            }
        }
    }

    /// Goes on from the run that took these steps (`true`: the worker's), in every order. The
    /// number of orders.
    fn explore(steps: &mut Vec<bool>) -> u32 {
        let mut orders = 0;
        let mut stuck = 0;
        for who in [true, false] {
            let mut run = Handover::new();
            for step in steps.iter() {
                assert!(run.step(*step));
            }
            if run.step(who) {
                steps.push(who);
                orders += explore(steps);
                steps.pop();
            } else {
                stuck += 1;
            }
            if stuck == 2 {
                let left = run.engine.lane_load(Lane::Volatile);
                assert_eq!((left.open, left.in_flight), (0, 0), "stranded: {steps:?}");
                assert_eq!(run.engine.revision(), 1 + WRITES as i64);
                orders += 1;
            }
        }
        orders
    }

    #[test]
    fn in_every_order_of_worker_and_writer_no_batch_is_stranded() {
        assert!(explore(&mut Vec::new()) > 100);
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
