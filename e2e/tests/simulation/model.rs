//! The oracle: a store as simple as it can be, that knows what must be answered.

use bytes::Bytes;
use engine::Error;
use engine::op::{Op, Outcome, Reply, Target, Write};
use engine::record::{Effect, Record};
use std::collections::BTreeMap;

/// A live key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) value: Bytes,
    pub(crate) create: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

/// An event, with what was there before its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) revision: i64,
    pub(crate) key: Bytes,
    pub(crate) new: Option<Live>,
    pub(crate) old: Option<Live>,
}

/// A lease: time to live, and the time it may not end before.
pub(crate) type Lease = (i64, u64);

/// The store.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    pub(crate) keys: BTreeMap<Bytes, Live>,
    pub(crate) events: Vec<Event>,
    pub(crate) leases: BTreeMap<i64, Lease>,
    pub(crate) now_ms: u64,
    pub(crate) disk_full: bool,
}

type Checked = Result<(), String>;

fn ensure(ok: bool, text: impl FnOnce() -> String) -> Checked {
    if ok { Ok(()) } else { Err(text()) }
}

impl Model {
    pub(crate) fn new() -> Self {
        Model {
            revision: 1,
            compacted: -1,
            keys: BTreeMap::new(),
            events: Vec::new(),
            leases: BTreeMap::new(),
            now_ms: 0,
            disk_full: false,
        }
    }

    /// Keys attached to a lease.
    pub(crate) fn attached(&self, id: i64) -> Vec<Bytes> {
        let own = |(key, live): (&Bytes, &Live)| (live.lease == id).then(|| key.clone());
        self.keys.iter().filter_map(own).collect()
    }

    /// The keys that existed at `revision`.
    pub(crate) fn at(&self, revision: i64) -> BTreeMap<Bytes, Live> {
        let mut keys = BTreeMap::new();
        for event in self.events.iter().filter(|e| e.revision <= revision) {
            match &event.new {
                Some(live) => keys.insert(event.key.clone(), live.clone()),
                None => keys.remove(&event.key),
            };
        }
        keys
    }

    fn set(&mut self, revision: i64, key: &Bytes, put: Option<(&Bytes, i64)>) {
        let old = self.keys.get(key).cloned();
        let new = put.map(|(value, lease)| Live {
            value: value.clone(),
            create: old.as_ref().map_or(revision, |old| old.create),
            modified: revision,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease,
        });
        match &new {
            Some(live) => self.keys.insert(key.clone(), live.clone()),
            None => self.keys.remove(key),
        };
        self.events.push(Event {
            revision,
            key: key.clone(),
            new,
            old,
        });
    }

    /// A record of the log happens.
    pub(crate) fn apply(&mut self, record: &Record) {
        let next = self.revision + 1;
        if record.takes_revision() {
            self.revision = next;
        }
        match record {
            Record::Txn(effects) => {
                for effect in effects {
                    match effect {
                        Effect::Put { key, value, lease } => {
                            self.set(next, key, Some((value, *lease)));
                        }
                        Effect::Delete { key } => self.set(next, key, None),
                    }
                }
            }
            Record::LeaseGrant { id, ttl_s } => self.renew(*id, *ttl_s),
            Record::LeaseRevoke { id, keys } => {
                keys.iter().for_each(|key| self.set(next, key, None));
                self.leases.remove(id);
            }
            Record::Compact { revision } => self.compacted = self.compacted.max(*revision),
            Record::Alarm { .. } => {}
        }
    }

    /// Everything up to `revision` is compacted, and the keys have the revisions that
    /// `revisions` says (create, mod).
    pub(crate) fn rebase(
        &mut self,
        revision: i64,
        revisions: impl Fn(&[u8]) -> Option<(i64, i64)>,
    ) {
        self.revision = revision;
        self.compacted = revision;
        self.events.clear();
        for (key, live) in &mut self.keys {
            if let Some((create, modified)) = revisions(key) {
                (live.create, live.modified) = (create, modified);
            }
            self.events.push(Event {
                revision: live.modified,
                key: key.clone(),
                new: Some(live.clone()),
                old: None,
            });
        }
        self.events.sort_by_key(|event| event.revision);
    }

    /// A lease has its full time again.
    pub(crate) fn renew(&mut self, id: i64, ttl_s: i64) {
        let until = self.now_ms + ttl_s as u64 * 1000;
        self.leases.insert(id, (ttl_s, until));
    }

    /// Whether there is such a lease, and its time is over.
    fn is_over(&self, id: i64) -> bool {
        self.leases.get(&id).is_some_and(|l| l.1 <= self.now_ms)
    }

    /// Whether `write`, whose record is this one, was right to make it now, and was told so.
    pub(crate) fn logged(&self, write: &Write, record: &Record, outcome: &Outcome) -> Checked {
        let revision = self.revision + i64::from(record.takes_revision());
        ensure(outcome.revision == revision, || {
            format!(
                "{write:?} got revision {}, not {revision}",
                outcome.revision
            )
        })?;
        let expected = self.record_of(write);
        ensure(expected.as_ref() == Some(record), || {
            format!("{write:?} was logged as {record:?}, not {expected:?}")
        })?;
        let told = match (&outcome.reply, write) {
            (Reply::Put { prev }, Write::Put(put)) => {
                let old = self.keys.get(&put.key).map(|live| live.modified);
                prev.as_ref().map(|kv| kv.fields().mod_revision) == old.filter(|_| put.prev_kv)
            }
            (Reply::Delete { deleted, .. }, Write::Delete(_)) => {
                matches!(record, Record::Txn(effects) if effects.len() as i64 == *deleted)
            }
            (Reply::Txn { succeeded, .. }, Write::Txn(_)) => *succeeded,
            (Reply::LeaseGrant { id, .. }, Write::LeaseGrant { id: asked, .. }) => id == asked,
            (
                Reply::Done,
                Write::LeaseRevoke { .. } | Write::LeaseExpire(_) | Write::Compact { .. },
            ) => true,
            _ => false,
        };
        ensure(told, || format!("{write:?} was told {outcome:?}"))
    }

    /// Whether `write`, which left no record, was right to leave none now.
    pub(crate) fn at_once(&self, write: &Write, answer: &Result<Outcome, Error>) -> Checked {
        let right = match (answer, write) {
            (Ok(outcome), _) => {
                self.record_of(write).is_none() && outcome.revision == self.revision
            }
            (Err(Error::NoSpace), Write::Put(_) | Write::Txn(_) | Write::LeaseGrant { .. }) => {
                self.disk_full
            }
            (Err(Error::LeaseNotFound), Write::Put(put)) => !self.leases.contains_key(&put.lease),
            (Err(Error::LeaseNotFound), Write::LeaseRevoke { id }) => !self.leases.contains_key(id),
            (Err(Error::LeaseNotFound), Write::LeaseExpire(due)) => !self.is_over(due.id),
            (Err(Error::LeaseExists), Write::LeaseGrant { id, .. }) => self.leases.contains_key(id),
            (Err(Error::Compacted), Write::Compact { revision }) => *revision <= self.compacted,
            (Err(Error::FutureRevision), Write::Compact { revision }) => *revision > self.revision,
            (Err(Error::TimedOut), _) => true,
            _ => false,
        };
        ensure(right, || format!("{write:?} was told {answer:?}"))
    }

    /// What a write does to this store; `None` if nothing.
    fn record_of(&self, write: &Write) -> Option<Record> {
        match write {
            Write::Put(put) => Some(Record::Txn(vec![Effect::Put {
                key: put.key.clone(),
                value: put.value.clone(),
                lease: put.lease,
            }])),
            Write::Delete(delete) => {
                let own = |key: &&Bytes| delete.range.contains(key);
                let keys = self.keys.keys().filter(own);
                let deletes = keys.map(|key| Effect::Delete { key: key.clone() });
                let deletes: Vec<Effect> = deletes.collect();
                (!deletes.is_empty()).then_some(Record::Txn(deletes))
            }
            // The simulation's transactions compare one mod revision, and put.
            Write::Txn(txn) => {
                let holds = txn.compares.iter().all(|compare| {
                    let live = self.keys.get(&compare.range.key);
                    compare.target == Target::Mod(live.map_or(0, |live| live.modified))
                });
                let puts = txn.success.iter().filter_map(|op| match op {
                    Op::Put(put) => Some(Effect::Put {
                        key: put.key.clone(),
                        value: put.value.clone(),
                        lease: put.lease,
                    }),
                    _ => None,
                });
                holds.then(|| Record::Txn(puts.collect()))
            }
            Write::LeaseGrant { id, ttl_s } => Some(Record::LeaseGrant {
                id: *id,
                ttl_s: *ttl_s,
            }),
            Write::LeaseRevoke { id } => Some(Record::LeaseRevoke {
                id: *id,
                keys: self.attached(*id),
            }),
            Write::LeaseExpire(due) => self.is_over(due.id).then(|| Record::LeaseRevoke {
                id: due.id,
                keys: self.attached(due.id),
            }),
            Write::Compact { revision } => Some(Record::Compact {
                revision: *revision,
            }),
            Write::Alarm { .. } => None,
        }
    }
}
