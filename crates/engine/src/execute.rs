//! Makes planned operations visible, each at the next revision.

use crate::Engine;
use crate::op::{Outcome, PutOp, Reply};
use crate::plan::Step;
use crate::record::{Effect, Record, Revision};

impl<W> Engine<W> {
    pub(crate) fn apply_other(&mut self, record: Record) -> Outcome {
        let reply = match &record {
            Record::LeaseGrant { id, ttl_s } => Reply::LeaseGrant {
                id: *id,
                ttl_s: *ttl_s,
            },
            _ => Reply::Done,
        };
        let compacted = self.compact_revision;
        self.apply(record);
        if self.compact_revision != compacted {
            self.want_compaction_hash(compacted);
        }
        Outcome {
            revision: self.revision,
            reply,
        }
    }

    /// Executes a put at the next revision.
    pub(crate) fn execute_put(&mut self, op: &PutOp) -> Outcome {
        let at = Revision {
            main: self.revision + 1,
            sub: 0,
        };
        let prev = match op.prev_kv {
            true => self.index.live_kv(&op.key),
            false => None,
        };
        self.put_key(&op.key, &op.value, op.lease, at);
        self.revision = at.main;
        Outcome {
            revision: self.revision,
            reply: Reply::Put { prev },
        }
    }

    /// Executes a plan with its effects, at the next revision if there are any. Its ranges
    /// take from `range_keys` what they visit; what is too long is left for later.
    pub(crate) fn execute(
        &mut self,
        step: Step,
        effects: Vec<Effect>,
        range_keys: &mut usize,
    ) -> Outcome {
        let mut run = Run {
            main: self.revision + 1,
            sub: 0,
            effects: effects.into_iter(),
        };
        let (revision, reply) = self.step(step, &mut run, range_keys);
        if run.sub > 0 {
            self.revision = run.main;
        }
        // A transaction's own header shows the revision after all of it.
        let revision = if matches!(reply, Reply::Txn { .. }) {
            self.revision
        } else {
            revision
        };
        Outcome { revision, reply }
    }

    fn step(&mut self, step: Step, run: &mut Run, range_keys: &mut usize) -> (i64, Reply) {
        match step {
            Step::Range(op) => {
                let at = run.after(self.revision);
                let reply = self.range_in_txn(*op, at, range_keys);
                (run.shown(self.revision), reply)
            }
            Step::Put { prev_kv } => {
                let mut prev = None;
                if let Some(Effect::Put { key, value, lease }) = run.effects.next() {
                    if prev_kv {
                        prev = self.index.live_kv(&key);
                    }
                    self.put_key(&key, &value, lease, run.next());
                }
                (run.main, Reply::Put { prev })
            }
            Step::Delete { n, prev_kv } => {
                let mut prevs = Vec::new();
                for _ in 0..n {
                    if let Some(Effect::Delete { key }) = run.effects.next() {
                        if prev_kv {
                            prevs.extend(self.index.live_kv(&key));
                        }
                        self.delete_key(&key, run.next());
                    }
                }
                (
                    run.shown(self.revision),
                    Reply::Delete {
                        deleted: n as i64,
                        prevs,
                    },
                )
            }
            Step::Txn { succeeded, steps } => {
                let steps = steps.into_iter();
                let replies = steps.map(|s| self.step(s, run, range_keys)).collect();
                (0, Reply::Txn { succeeded, replies })
            }
        }
    }
}

struct Run {
    main: i64,
    sub: i64,
    effects: std::vec::IntoIter<Effect>,
}

impl Run {
    fn next(&mut self) -> Revision {
        self.sub += 1;
        Revision {
            main: self.main,
            sub: self.sub - 1,
        }
    }

    /// The last change that the transaction sees.
    fn after(&self, before: i64) -> Revision {
        match self.sub {
            0 => Revision::end_of(before),
            _ => Revision {
                main: self.main,
                sub: self.sub - 1,
            },
        }
    }

    /// The revision that an answer inside the transaction shows.
    fn shown(&self, before: i64) -> i64 {
        if self.sub > 0 { self.main } else { before }
    }
}
