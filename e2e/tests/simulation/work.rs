//! What clients, committer, snapshots and bad luck do, one step at a time.

use super::{Checked, DIR, KEYS, Process, Running, Watcher, World, ensure};
use crate::model::{Event, Live};
use bytes::Bytes;
use engine::Error;
use engine::op::{Class, Compare, DeleteOp, KeyRange, Op, Operator, Outcome, PutOp, Target, TxnOp, Write};
use engine::record::Record;
use engine::sequencer::Answers;
use engine::tail;
use journal::fs::sim::Call;
use journal::{CommitError, SnapshotWriter};
use std::io::ErrorKind;
use std::path::Path;

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
        match process.engine.submit(write, Class::DURABLE, waiter, now) {
            Some(answer) => self.answered_at_once(answer),
            None => Ok(()),
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
        if let Some(batch) = process.engine.take_batch(0, max_bytes) {
            process.taken.push_back((batch, false));
        }
    }

    /// Commits the next batch. Returns its records if that ended the journal.
    pub(super) fn commit(&mut self, process: &mut Process) -> Result<Option<Vec<Record>>, String> {
        let mut revision = process.engine.revision();
        let Some(at) = process.taken.iter().position(|(_, committed)| !committed) else {
            return Ok(None);
        };
        for (batch, _) in process.taken.iter().take(at) {
            revision += batch.records.iter().filter(|r| r.takes_revision()).count() as i64;
        }
        let (batch, committed) = &mut process.taken[at];
        match process.journal.commit(&batch.records, revision) {
            Ok(_) => {
                *committed = true;
                if self.model.disk_full {
                    self.model.disk_full = false;
                    process.engine.set_disk_full(false);
                }
                Ok(None)
            }
            Err(CommitError::NoSpace { .. }) => {
                self.tally.count("full disks");
                for _ in 0..at {
                    self.complete(process)?;
                }
                self.model.disk_full = true;
                process.engine.set_disk_full(true);
                let Some((batch, _)) = process.taken.pop_front() else {
                    return Err("the batch is gone".to_owned());
                };
                let mut answers = Answers::new();
                process
                    .engine
                    .fail(batch.ticket, Error::NoSpace, &mut answers);
                let of_batch = batch.records.len();
                for (n, (waiter, answer)) in answers.into_iter().enumerate() {
                    if n < of_batch {
                        let refused = answer == Err(Error::NoSpace);
                        ensure(refused, || format!("a full disk answered {answer:?}"))?;
                        self.asked.remove(&waiter);
                    } else {
                        self.answered_at_once((waiter, answer))?;
                    }
                }
                Ok(None)
            }
            Err(CommitError::TooLarge { .. }) => Err("a commit was too large".to_owned()),
            Err(CommitError::Poisoned { .. }) => {
                if !self.fs.crashed() {
                    self.tally.count("failed syncs");
                }
                // Nothing may be acknowledged any more.
                let again = process
                    .journal
                    .commit(&[Record::Compact { revision: 1 }], revision);
                ensure(again.is_err(), || "a dead journal took a commit".to_owned())?;
                let records = process.taken.remove(at).map(|(batch, _)| batch.records);
                Ok(records)
            }
        }
    }

    /// Makes the first committed batch visible and checks every answer.
    pub(super) fn complete(&mut self, process: &mut Process) -> Checked {
        if !matches!(process.taken.front(), Some((_, true))) {
            return Ok(());
        }
        let Some((batch, _)) = process.taken.pop_front() else {
            return Ok(());
        };
        let mut answers = Answers::new();
        let now = self.model.now_ms;
        process.engine.complete(batch.ticket, now, &mut answers);
        let mut answers = answers.into_iter();
        for record in &batch.records {
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
        answers.try_for_each(|answer| self.answered_at_once(answer))?;
        ensure(process.engine.revision() == self.model.revision, || {
            "the revision is not that of the last answer".to_owned()
        })
    }

    pub(super) fn snapshot(&mut self, process: &mut Process) {
        let Some(mut running) = process.snapshot.take() else {
            // As the server does: between commits, with all that the log has visible.
            if !process.taken.iter().any(|(_, committed)| *committed)
                && let Ok(at) = process.journal.snapshot_position()
            {
                let (cursor, head) = process.engine.snapshot_open();
                let writer =
                    SnapshotWriter::create(self.fs.shared(), Path::new(DIR), cursor.meta, at);
                if let Ok(writer) = writer {
                    process.engine.pin(cursor.pin());
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
        let pin = running.cursor.pin();
        if let Some(item) = running.head.pop_front() {
            match running.writer.push(&item) {
                Ok(()) => process.snapshot = Some(running),
                Err(_) => process.engine.unpin(pin),
            }
            return;
        }
        let mut keys = Vec::new();
        let slice = 1 + self.random.below(12);
        let done = process
            .engine
            .snapshot_step(&mut running.cursor, slice, &mut keys);
        let mut items = keys.into_iter().map(|key| key.into_item());
        let pushed = items.all(|item| running.writer.push(&item).is_ok());
        if pushed && !done {
            process.snapshot = Some(running);
            return;
        }
        process.engine.unpin(pin);
        if pushed && running.writer.finish().is_ok() {
            self.tally.count("snapshots");
            if self.random.chance(80) {
                drop(process.journal.allocator().retire(running.at));
            }
        }
    }

    pub(super) fn compact(&mut self, process: &mut Process) {
        if let Some(mut cursor) = process.engine.compaction_hash_open() {
            while !process.engine.hash_step(&mut cursor, 5) {}
            process.engine.compaction_hash_done(cursor.finish_hash(&mut || ()));
        }
        if process.engine.compaction_due() {
            process.engine.compact_step(1 + self.random.below(20));
        }
    }

    /// A watcher asks for what comes next.
    pub(super) fn watch(&mut self, process: &mut Process, n: usize) -> Checked {
        let Watcher { next, seen } = self.watchers[n];
        if next < process.engine.compact_revision() {
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
        process.engine.events_since(next, max, &mut found);
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
            if let Ok(ttl_s) = process.engine.keep_alive(id, now) {
                self.model.renew(id, ttl_s);
            }
        }
        for id in process.engine.due_leases(now, 2) {
            let until = self.model.leases.get(&id).map_or(0, |lease| lease.1);
            ensure(until <= now, || {
                format!("lease {id} ends at {now}, and was promised until {until}")
            })?;
            self.tally.count("expired leases");
            self.submit_one(process, Write::LeaseRevoke { id })?;
        }
        let mut answers = Answers::new();
        process.engine.expire_waiting(now, &mut answers);
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
            process.engine.set_disk_full(false);
        }
    }
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
