//! What clients, committer, snapshots and bad luck do, one step at a time.

use super::{Checked, DIR, Done, KEYS, Logged, Process, Running, Watcher, World, ensure, locked};
use crate::model::{Event, Live};
use bytes::Bytes;
use engine::history::Part;
use engine::op::{
    Bound, Class, Compare, DeleteOp, KeyRange, Op, Operator, Outcome, PutOp, Target, TxnOp, Write,
};
use engine::record::Record;
use engine::sequencer::Answers;
use engine::tail;
use engine::{Error, Lane};
use files::sim::Call;
use journal::{CommitError, Lsn, SnapshotWriter, VolatileWriter};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The simulation has no clock: nothing is ever late.
const WITHIN: Duration = Duration::from_secs(30);

impl World {
    pub(super) fn write(&mut self) -> Write {
        self.count += 1;
        let key = |n: usize| Bytes::from(format!("key/{n:02}"));
        let one = key(self.random.below(KEYS));
        let size = match self.random.below(30) {
            0 => 9000,
            1..6 => self.random.below(3000),
            _ => self.random.below(100),
        };
        let value = Bytes::from(format!("{}:{:size$}", self.count, ""));
        let put = |key, value| PutOp {
            key,
            value,
            ..PutOp::default()
        };
        let lease = |world: &mut World| 1 + world.random.below(6) as i64;
        match self.random.below(24) {
            0..8 => Write::Put(PutOp {
                lease: if self.random.chance(30) {
                    lease(self)
                } else {
                    0
                },
                prev_kv: self.random.chance(50),
                ..put(one, value)
            }),
            8..12 => {
                let modified = self.model.keys.get(&one).map_or(0, |live| live.modified);
                let off = i64::from(self.random.chance(20));
                Write::Txn(TxnOp {
                    compares: vec![Compare {
                        range: KeyRange::one(one.clone()),
                        target: Target::Mod(modified + off),
                        operator: Operator::Equal,
                    }],
                    success: vec![Op::Put(put(one, value))],
                    failure: Vec::new(),
                })
            }
            12..14 => {
                let first = self.random.below(KEYS - 3);
                let puts = (first..first + 3).map(|n| Op::Put(put(key(n), value.clone())));
                Write::Txn(TxnOp {
                    success: puts.collect(),
                    ..TxnOp::default()
                })
            }
            14..17 => Write::Delete(DeleteOp {
                range: KeyRange::one(one),
                prev_kv: false,
            }),
            17 => Write::Delete(DeleteOp {
                range: KeyRange {
                    key: one,
                    end: key(self.random.below(KEYS)),
                },
                prev_kv: false,
            }),
            18..21 => Write::LeaseGrant {
                id: lease(self),
                ttl_s: self.random.between(2, 40),
            },
            21 => Write::LeaseRevoke { id: lease(self) },
            _ => Write::Compact {
                revision: self
                    .random
                    .between(self.model.compacted.max(1), self.model.revision + 1),
            },
        }
    }

    pub(super) fn submit(&mut self, process: &mut Process) -> Checked {
        let write = self.write();
        self.submit_one(process, write)
    }

    pub(super) fn submit_one(&mut self, process: &mut Process, write: Write) -> Checked {
        let waiter = self.count * 2 + 1;
        self.count += 1;
        self.asked.insert(waiter, write.clone());
        let now = self.model.now_ms;
        let class = self.class(process, &write);
        let answer = process.engine().submit(write, class, waiter, now);
        match answer {
            Some(answer) => self.answered_at_once(answer),
            None => Ok(()),
        }
    }

    /// As rules would have it; now and then found from a value that is gone.
    fn class(&mut self, process: &Process, write: &Write) -> Class {
        let key = match write {
            Write::Put(put) => Some(&put.key),
            Write::Txn(txn) => txn.compares.first().map(|c| &c.range.key),
            Write::Delete(delete) if delete.range.is_one() => Some(&delete.range.key),
            _ => None,
        };
        let Some(key) = key.filter(|_| process.volatile && self.random.chance(60)) else {
            return Class::DURABLE;
        };
        let bound = self.random.chance(50).then(|| Bound {
            key: key.clone(),
            mod_revision: self.model.keys.get(key).map_or(0, |live| live.modified)
                - i64::from(self.random.chance(10)),
        });
        Class {
            lane: Lane::Volatile,
            sync_within_ms: 30_000,
            rules: process.rules - u64::from(self.random.chance(5)),
            bound,
            tags: 0,
        }
    }

    pub(super) fn answered_at_once(&mut self, answer: (u64, Result<Outcome, Error>)) -> Checked {
        match self.asked.remove(&answer.0) {
            Some(write) => self.model.at_once(&write, &answer.1),
            None => Err(format!("two answers, the second {:?}", answer.1)),
        }
    }

    pub(super) fn take(&mut self, process: &mut Process) {
        let max_bytes = self.random.pick(&[200, 5000, 1 << 20]);
        let batch = process.engine().take_batch(Lane::Durable, max_bytes);
        process.taken.extend(batch);
    }

    /// Commits the next batch, with volatile writes during its sync now and then. Returns the
    /// records that were not answered if that ended the journal.
    pub(super) fn commit(
        &mut self,
        process: &mut Process,
    ) -> Result<Option<Vec<Vec<Record>>>, String> {
        let Some(batch) = process.taken.pop_front() else {
            return Ok(None);
        };
        let now = self.model.now_ms;
        if process.volatile && self.random.chance(60) {
            let (engine, writer) = (process.engine.clone(), process.writer.clone());
            let meanwhile = process.meanwhile.clone();
            let mut left = 1 + self.random.below(2);
            let back = Arc::new(Mutex::new(process.waiting.take()));
            let waiting = back.clone();
            self.fs.during_next_sync(move || {
                let next = || {
                    let first = locked(&waiting).take();
                    first.or_else(|| locked(&engine).take_batch(Lane::Volatile, 5000))
                };
                while left > 0
                    && let Some(batch) = next()
                {
                    left -= 1;
                    match write_batch(&engine, &writer, &batch, now) {
                        Some(Ok(done)) => locked(&meanwhile).push(done),
                        // Later, or never: the commit will find out.
                        _ => {
                            *locked(&waiting) = Some(batch);
                            return;
                        }
                    }
                }
            });
            let result = self.commit_batch(process, batch);
            self.fs.during_next_sync(|| {});
            let back = locked(&back).take();
            return match (result, back) {
                (Ok(Some(mut unanswered)), Some(batch)) => {
                    // It took its turn before the durable one.
                    unanswered.insert(0, batch.records);
                    Ok(Some(unanswered))
                }
                (result, back) => {
                    process.waiting = back;
                    result
                }
            };
        }
        self.commit_batch(process, batch)
    }

    fn commit_batch(
        &mut self,
        process: &mut Process,
        batch: engine::sequencer::Batch,
    ) -> Result<Option<Vec<Vec<Record>>>, String> {
        let now = self.model.now_ms;
        let mut answers = Answers::new();
        let engine = process.engine.clone();
        let result = process.journal.commit(
            &batch.records,
            || locked(&engine).revision(),
            || complete(&engine, batch.ticket, now, &mut answers),
        );
        for done in std::mem::take(&mut *locked(&process.meanwhile)) {
            self.tally.count("volatile writes during a sync");
            self.visible(process, done)?;
        }
        match result {
            Ok((info, ())) => {
                self.floor = self.floor.max(info.position.lsn());
                self.visible(process, (info.position.lsn(), batch.records, answers))?;
                Ok(None)
            }
            Err(error) if error.is_no_room() => {
                self.refused(process, &batch)?;
                Ok(None)
            }
            Err(CommitError::Poisoned { .. }) => {
                if !self.fs.crashed() {
                    self.tally.count("failed syncs");
                }
                // Nothing may be acknowledged any more.
                let again = process
                    .journal
                    .commit(&[Record::Compact { revision: 1 }], || 1, || ());
                ensure(again.is_err(), || "a dead journal took a commit".to_owned())?;
                Ok(Some(vec![batch.records]))
            }
            Err(error) => Err(format!("a commit ended with {error}")),
        }
    }

    /// The disk had no room for a batch.
    fn refused(&mut self, process: &Process, batch: &engine::sequencer::Batch) -> Checked {
        self.tally.count("full disks");
        self.model.disk_full = true;
        let mut answers = Answers::new();
        {
            let mut engine = process.engine();
            engine.set_disk_full(true);
            let failed = engine.fail(batch.ticket, Error::NoSpace, &mut answers);
            ensure(failed.is_ok(), || format!("{failed:?}"))?;
        }
        for (n, (waiter, answer)) in answers.into_iter().enumerate() {
            if n < batch.records.len() {
                let refused = answer == Err(Error::NoSpace);
                ensure(refused, || format!("a full disk answered {answer:?}"))?;
                self.asked.remove(&waiter);
            } else {
                self.answered_at_once((waiter, answer))?;
            }
        }
        Ok(())
    }

    /// Writes the next volatile batch, as its own thread would. Returns the records that were
    /// not answered if that ended the journal.
    pub(super) fn write_volatile(
        &mut self,
        process: &mut Process,
    ) -> Result<Option<Vec<Vec<Record>>>, String> {
        let next = process.waiting.take();
        let Some(batch) = next.or_else(|| process.engine().take_batch(Lane::Volatile, 5000)) else {
            return Ok(None);
        };
        let now = self.model.now_ms;
        match write_batch(&process.engine, &process.writer, &batch, now) {
            None => {
                process.waiting = Some(batch);
                self.upkeep(process)
            }
            Some(Ok(done)) => {
                self.tally.count("volatile writes");
                self.visible(process, done)?;
                Ok(None)
            }
            Some(Err(error)) if error.is_no_room() => {
                self.refused(process, &batch)?;
                Ok(None)
            }
            Some(Err(CommitError::Poisoned { .. })) => Ok(Some(vec![batch.records])),
            Some(Err(error)) => Err(format!("a volatile write ended with {error}")),
        }
    }

    /// What the committer does between batches.
    fn upkeep(&mut self, process: &mut Process) -> Result<Option<Vec<Vec<Record>>>, String> {
        let engine = process.engine.clone();
        match process.journal.upkeep(|| locked(&engine).revision()) {
            Ok(synced) => {
                if synced.is_some() {
                    self.floor = process.journal.position().lsn();
                }
                // Without room for the epoch the batch that waits is refused.
                let revision = process.engine().revision();
                if let Some(batch) = process.waiting.take() {
                    let given_up = process.journal.due().is_none();
                    if given_up && process.writer.would_wait(&batch.records, revision) {
                        self.refused(process, &batch)?;
                    } else {
                        process.waiting = Some(batch);
                    }
                }
                Ok(None)
            }
            Err(CommitError::Poisoned { .. }) => Ok(Some(Vec::new())),
            Err(error) => Err(format!("upkeep ended with {error}")),
        }
    }

    /// Other rules come into force: volatile writes are asked for, or not any more.
    pub(super) fn switch(
        &mut self,
        process: &mut Process,
    ) -> Result<Option<Vec<Vec<Record>>>, String> {
        process.rules += 1;
        process.engine().set_rules(process.rules);
        if !process.volatile {
            self.tally.count("switches from strict");
            process.journal.allow_volatile();
            process.volatile = true;
            return Ok(None);
        }
        process.volatile = false;
        let (admitted, _) = process.engine().lane_progress(Lane::Volatile);
        for _ in 0..1000 {
            if process.engine().lane_progress(Lane::Volatile).1 >= admitted {
                break;
            }
            if let Some(records) = self.write_volatile(process)? {
                return Ok(Some(records));
            }
        }
        let (_, done) = process.engine().lane_progress(Lane::Volatile);
        ensure(done >= admitted, || {
            format!(
                "{done} of {admitted} volatile writes got through: {:?}, due {:?}, {:?} waits",
                process.journal.volatile_status(),
                process.journal.due(),
                process.waiting,
            )
        })?;
        let engine = process.engine.clone();
        match process.journal.close_epoch(|| locked(&engine).revision()) {
            Ok(()) => {
                self.tally.count("switches to strict");
                self.floor = process.journal.position().lsn();
                let status = process.journal.volatile_status();
                ensure(
                    status.unsynced_bytes == 0 && status.epoch_bound.is_none(),
                    || format!("strict, and {status:?}"),
                )?;
                Ok(None)
            }
            Err(error) if error.is_no_room() => Ok(None),
            Err(_) => Ok(Some(Vec::new())),
        }
    }

    /// A batch is visible: checks every answer.
    fn visible(&mut self, process: &Process, (lsn, records, answers): Done) -> Checked {
        self.model.disk_full = false;
        let mut answers = answers.into_iter();
        for record in &records {
            let Some((waiter, Ok(outcome))) = answers.next() else {
                return Err(format!("{record:?} was not answered, or with an error"));
            };
            let write = self.asked.remove(&waiter).ok_or("two answers")?;
            self.model.logged(&write, record, &outcome)?;
            self.happened(record);
            self.tally.count("acknowledged");
            if matches!(record, Record::Compact { .. }) {
                self.tally.count("compactions");
            }
        }
        self.log.push(Logged { lsn, records });
        answers.try_for_each(|answer| self.answered_at_once(answer))?;
        // While others are still to be checked the store is ahead.
        ensure(process.engine().revision() >= self.model.revision, || {
            "the revision is not that of the last answer".to_owned()
        })
    }

    pub(super) fn snapshot(&mut self, process: &mut Process) {
        let Some(mut running) = process.snapshot.take() else {
            // As the server does: between commits, with all that the log has visible.
            let engine = process.engine.clone();
            let open = || locked(&engine).snapshot_open();
            if let Ok((at, (cursor, head))) = process.journal.snapshot_position(open) {
                self.floor = at.lsn();
                let writer =
                    SnapshotWriter::create(self.fs.shared(), Path::new(DIR), cursor.meta, at);
                if let Ok(writer) = writer {
                    process.snapshot = Some(Running {
                        writer,
                        head: head.into(),
                        cursor,
                        at,
                    });
                }
            }
            return;
        };
        if let Some(item) = running.head.pop_front() {
            if running.writer.push(&item).is_ok() {
                process.snapshot = Some(running);
            }
            return;
        }
        let mut keys = Vec::new();
        let slice = 1 + self.random.below(12);
        let done = process
            .engine()
            .snapshot_step(&mut running.cursor, slice, &mut keys);
        let mut items = keys.into_iter().map(|key| key.into_item());
        let pushed = items.all(|item| running.writer.push(&item).is_ok());
        if pushed && !done {
            process.snapshot = Some(running);
            return;
        }
        if pushed && running.writer.finish().is_ok() {
            self.tally.count("snapshots");
            if self.random.chance(80) {
                drop(process.journal.allocator().retire(running.at));
            }
        }
    }

    pub(super) fn compact(&mut self, process: &mut Process) {
        let mut engine = process.engine();
        if let Some(mut cursor) = engine.compaction_hash_open() {
            while !engine.hash_step(&mut cursor, 5) {}
            engine.compaction_hash_done(cursor.finish_hash(&mut || ()));
        }
        if engine.compaction_due() {
            engine.compact_step(1 + self.random.below(20));
        }
    }

    /// A watcher asks for what comes next.
    pub(super) fn watch(&mut self, process: &mut Process, n: usize) -> Checked {
        let Watcher { next, seen } = self.watchers[n];
        if next < process.engine().compact_revision() {
            // It is told so, and starts anew with what is there.
            self.tally.count("watches overtaken by compaction");
            let all = &self.model.events;
            self.watchers[n] = Watcher {
                next: self.model.revision + 1,
                seen: all.len(),
            };
            return Ok(());
        }
        let mut found = Vec::new();
        let max = 1 + self.random.below(20);
        process
            .engine()
            .events_since(next, Part::events(max), &mut found);
        let compacted = self.model.compacted;
        let expected = &self.model.events[seen..];
        ensure(!found.is_empty() || expected.is_empty(), || {
            format!(
                "a watch from {next} sees nothing of {} events",
                expected.len()
            )
        })?;
        for (event, expected) in found.iter().zip(expected) {
            ensure(same(event, expected, compacted), || {
                format!("a watch from {next} saw {event:?}, not {expected:?}")
            })?;
        }
        if let Some(last) = found.last().map(|event| event.revision.main) {
            let whole = expected.get(found.len()).is_none_or(|e| e.revision > last);
            ensure(whole && found.len() <= expected.len(), || {
                format!("a watch from {next} got a part of revision {last}")
            })?;
            self.watchers[n] = Watcher {
                next: last + 1,
                seen: seen + found.len(),
            };
        }
        Ok(())
    }

    pub(super) fn pass_time(&mut self, process: &mut Process) -> Checked {
        self.model.now_ms += self.random.pick(&[1, 100, 1500]);
        let now = self.model.now_ms;
        let leases: Vec<i64> = self.model.leases.keys().copied().collect();
        if !leases.is_empty() && self.random.chance(50) {
            let id = self.random.pick(&leases);
            let renewed = process.engine().keep_alive(id, now);
            if let Ok(ttl_s) = renewed {
                self.model.renew(id, ttl_s);
            }
        }
        let due = process.engine().due_leases(now, 2);
        for lease in due {
            let id = lease.id;
            let until = self.model.leases.get(&id).map_or(0, |lease| lease.1);
            ensure(until <= now, || {
                format!("lease {id} ends at {now}, and was promised until {until}")
            })?;
            self.tally.count("expired leases");
            self.submit_one(process, Write::LeaseExpire(lease))?;
        }
        let mut answers = Answers::new();
        process.engine().expire_waiting(now, &mut answers);
        answers
            .into_iter()
            .try_for_each(|answer| self.answered_at_once(answer))
    }

    pub(super) fn break_something(&mut self) {
        let after = self.random.below(4) as u64;
        match self.random.below(6) {
            0 => {
                let kind = self
                    .random
                    .pick(&[ErrorKind::Other, ErrorKind::StorageFull]);
                self.fs.fail(Call::SyncData, after, 1, kind);
            }
            1 => {
                let call = self.random.pick(&[Call::Write, Call::Allocate]);
                self.fs.fail(call, after, 1, ErrorKind::StorageFull);
            }
            2 => self.fs.fail(Call::SyncDir, after, 1, ErrorKind::Other),
            _ => {
                let room = self.random.below(40_000) as u64;
                self.fs.set_capacity(Some(self.fs.used() + room));
            }
        }
    }

    /// Somebody makes room, and the server finds it.
    pub(super) fn room(&mut self, process: &mut Process) {
        self.fs.set_capacity(None);
        if self.model.disk_full && process.journal.ensure_room().is_ok() {
            self.model.disk_full = false;
            process.engine().set_disk_full(false);
        }
    }
}

/// Makes a batch visible: there was room for it.
fn complete(
    engine: &Mutex<engine::Engine<u64>>,
    ticket: u64,
    now: u64,
    answers: &mut Answers<u64>,
) {
    let mut engine = locked(engine);
    engine.set_disk_full(false);
    let ended = engine.complete(ticket, now, answers);
    assert!(ended.is_ok(), "{ended:?}");
}

/// Writes a volatile batch; `None` if that would wait.
fn write_batch(
    engine: &Mutex<engine::Engine<u64>>,
    writer: &VolatileWriter,
    batch: &engine::sequencer::Batch,
    now: u64,
) -> Option<Result<Done, CommitError>> {
    let revision = locked(engine).revision();
    if writer.would_wait(&batch.records, revision) {
        return None;
    }
    let mut answers = Answers::new();
    let visible = || complete(engine, batch.ticket, now, &mut answers);
    let revision = || locked(engine).revision();
    // Some as a worker does it, some as the volatile writer's thread.
    let turn = match batch.ticket % 2 {
        0 => writer.turn(revision),
        _ => None,
    };
    let result = match turn {
        Some(turn) => turn.write(&batch.records, WITHIN, visible),
        None => writer.write(&batch.records, WITHIN, revision, visible),
    };
    Some(result.map(|(info, ())| -> Done {
        let lsn: Lsn = info.lsn;
        (lsn, batch.records.clone(), answers)
    }))
}

/// An engine's event is the oracle's. At the compact revision the version before is gone.
fn same(event: &engine::history::Event, expected: &Event, compacted: i64) -> bool {
    let live = |tail: &Option<std::sync::Arc<[u8]>>| {
        let fields = tail.as_deref().map(tail::decode);
        fields.map(|f| (Bytes::copy_from_slice(f.value), f.mod_revision, f.version))
    };
    let old = expected.old.as_ref();
    let old = old.filter(|_| expected.revision > compacted);
    let of = |live: &Live| (live.value.clone(), live.modified, live.version);
    event.revision.main == expected.revision
        && event.key[..] == expected.key[..]
        && live(&event.tail) == expected.new.as_ref().map(of)
        && live(&event.prev) == old.map(of)
}
