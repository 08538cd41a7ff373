//! The oracle: etcd's semantics, as plainly as they can be written. It keeps every version
//! that there ever was and works everything out from that; nothing is fast, nothing is
//! shared with the engine but the request types.

use engine::Error;
use engine::hash::KvHash;
use engine::op::{
    Compare, DeleteOp, KeyRange, Op, Operator, PutOp, RangeOp, SortOrder, SortTarget, Target,
    TxnOp, Write,
};
use std::collections::BTreeMap;

pub(crate) type Key = Vec<u8>;

/// A key's version as an answer shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: Key,
    pub(crate) create: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) main: i64,
    pub(crate) sub: i64,
    /// `None` for a tombstone.
    pub(crate) kv: Option<Kv>,
}

/// An event as a watch with `prev_kv` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) main: i64,
    pub(crate) sub: i64,
    pub(crate) key: Key,
    pub(crate) kv: Option<Kv>,
    pub(crate) prev: Option<Kv>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Range {
        kvs: Vec<Kv>,
        more: bool,
        count: i64,
    },
    Put {
        prev: Option<Kv>,
    },
    Delete {
        deleted: i64,
        prevs: Vec<Kv>,
    },
    Txn {
        succeeded: bool,
        answers: Vec<(i64, Answer)>,
    },
    Grant {
        id: i64,
        ttl_s: i64,
    },
    Done,
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) ttl_s: i64,
    pub(crate) expires_at_ms: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Oracle {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) keys: BTreeMap<Key, Vec<Version>>,
    pub(crate) leases: BTreeMap<i64, Lease>,
    pub(crate) alarms: Vec<i32>,
    /// etcd's database: revisions, and what they hold, until a compaction deletes them.
    bucket: BTreeMap<(i64, i64), (Key, Option<Kv>)>,
    pub(crate) compaction_hashes: Vec<KvHash>,
    pub(crate) now_ms: u64,
}

/// A transaction under way.
struct Run {
    main: i64,
    sub: i64,
}

fn live(versions: &[Version], at: i64) -> Option<&Kv> {
    versions
        .iter()
        .rfind(|v| v.main <= at)
        .and_then(|v| v.kv.as_ref())
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Oracle {
            revision: 1,
            compact_revision: -1,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            alarms: Vec::new(),
            bucket: BTreeMap::new(),
            compaction_hashes: Vec::new(),
            now_ms: 0,
        }
    }

    /// All keys of a range at a revision, in order.
    pub(crate) fn at(&self, range: &KeyRange, revision: i64) -> Vec<Kv> {
        let within = |k: &Key| {
            if range.end.is_empty() {
                k[..] == range.key[..]
            } else if range.end[..] == b"\0"[..] {
                k[..] >= range.key[..]
            } else {
                k[..] >= range.key[..] && k[..] < range.end[..]
            }
        };
        self.keys
            .iter()
            .filter(|(k, _)| within(k))
            .filter_map(|(_, v)| live(v, revision).cloned())
            .collect()
    }

    pub(crate) fn range(&self, op: &RangeOp, now: i64) -> Result<Answer, Error> {
        if op.revision > now {
            return Err(Error::FutureRevision);
        }
        let revision = if op.revision <= 0 { now } else { op.revision };
        if revision < self.compact_revision {
            return Err(Error::Compacted);
        }
        let mut kvs = self.at(&op.range, revision);
        let count = kvs.len() as i64;
        if op.count_only {
            return Ok(Answer::Range {
                kvs: Vec::new(),
                more: false,
                count,
            });
        }
        let filters = [
            (op.max_mod_revision, 0),
            (op.min_mod_revision, 1),
            (op.max_create_revision, 2),
            (op.min_create_revision, 3),
        ];
        let filtered = filters.iter().any(|f| f.0 != 0);
        let plain = op.sort_order == SortOrder::None
            || (op.sort_target == SortTarget::Key && op.sort_order == SortOrder::Ascend);
        if op.limit > 0 && plain && !filtered {
            kvs.truncate((op.limit as usize).saturating_add(1));
        }
        if op.keys_only && op.sort_target != SortTarget::Value {
            kvs.iter_mut().for_each(|kv| kv.lease = 0);
        }
        for (bound, which) in filters {
            if bound != 0 {
                kvs.retain(|kv| match which {
                    0 => kv.modified <= bound,
                    1 => kv.modified >= bound,
                    2 => kv.create <= bound,
                    _ => kv.create >= bound,
                });
            }
        }
        let order = |a: &Kv, b: &Kv| match op.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create.cmp(&b.create),
            SortTarget::Mod => a.modified.cmp(&b.modified),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        match op.sort_order {
            SortOrder::Descend => kvs.sort_by(|a, b| order(b, a)),
            _ => kvs.sort_by(order),
        }
        let more = op.limit > 0 && kvs.len() as i64 > op.limit;
        if more {
            kvs.truncate(op.limit as usize);
        }
        if op.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(Answer::Range { kvs, more, count })
    }

    pub(crate) fn lease_keys(&self, id: i64) -> Vec<Key> {
        self.at(&everything(), i64::MAX)
            .into_iter()
            .filter(|kv| kv.lease == id)
            .map(|kv| kv.key)
            .collect()
    }

    pub(crate) fn no_space(&self) -> bool {
        self.alarms.contains(&1)
    }

    /// Applies a write; the answer and the revision in its header.
    pub(crate) fn apply(&mut self, write: &Write) -> Result<(i64, Answer), Error> {
        let mut run = Run {
            main: self.revision + 1,
            sub: 0,
        };
        let (revision, answer) = match write {
            Write::Put(op) => {
                self.check_put(op)?;
                self.put(op, &mut run)
            }
            Write::Delete(op) => self.delete(op, &mut run),
            Write::Txn(op) => {
                let path = self.path(op);
                self.check(op, &mut path.iter())?;
                let answer = self.txn(op, &mut path.iter(), &mut run);
                let revision = self.revision + i64::from(run.sub > 0);
                (revision, answer)
            }
            Write::LeaseGrant { id, ttl_s } => {
                if *ttl_s > 9_000_000_000 {
                    return Err(Error::LeaseTtlTooLarge);
                }
                if self.leases.contains_key(id) {
                    return Err(Error::LeaseExists);
                }
                let ttl_s = (*ttl_s).max(2);
                let expires_at_ms = self.now_ms + ttl_s as u64 * 1000;
                self.leases.insert(
                    *id,
                    Lease {
                        ttl_s,
                        expires_at_ms,
                    },
                );
                (self.revision, Answer::Grant { id: *id, ttl_s })
            }
            Write::LeaseRevoke { id } => {
                if !self.leases.contains_key(id) {
                    return Err(Error::LeaseNotFound);
                }
                for key in self.lease_keys(*id) {
                    self.push(&key, None, &mut run);
                }
                self.leases.remove(id);
                (self.revision + i64::from(run.sub > 0), Answer::Done)
            }
            Write::LeaseExpire(due) => {
                // Also when it has been granted anew since it was found to be due.
                let lease = self.leases.get(&due.id);
                if lease.is_none_or(|l| l.expires_at_ms != due.expired_at_ms) {
                    return Err(Error::LeaseNotFound);
                }
                return self.apply(&Write::LeaseRevoke { id: due.id });
            }
            Write::Compact { revision } => {
                if *revision <= self.compact_revision {
                    return Err(Error::Compacted);
                }
                if *revision > self.revision {
                    return Err(Error::FutureRevision);
                }
                self.compact(*revision);
                (self.revision, Answer::Done)
            }
            Write::Alarm { alarm, active } => {
                self.alarms.retain(|a| a != alarm);
                if *active {
                    self.alarms.push(*alarm);
                }
                (self.revision, Answer::Done)
            }
        };
        if run.sub > 0 {
            self.revision = run.main;
        }
        Ok((revision, answer))
    }

    fn push(&mut self, key: &[u8], kv: Option<Kv>, run: &mut Run) {
        let (main, sub) = (run.main, run.sub);
        run.sub += 1;
        self.bucket.insert((main, sub), (key.to_vec(), kv.clone()));
        let versions = self.keys.entry(key.to_vec()).or_default();
        versions.push(Version { main, sub, kv });
    }

    fn now(&self, key: &[u8]) -> Option<Kv> {
        self.keys.get(key).and_then(|v| live(v, i64::MAX)).cloned()
    }

    fn check_put(&self, op: &PutOp) -> Result<(), Error> {
        if op.lease != 0 && !self.leases.contains_key(&op.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (op.ignore_value || op.ignore_lease) && self.now(&op.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, op: &PutOp, run: &mut Run) -> (i64, Answer) {
        let old = self.now(&op.key);
        let mut kv = Kv {
            key: op.key.to_vec(),
            create: run.main,
            modified: run.main,
            version: 1,
            value: op.value.to_vec(),
            lease: op.lease,
        };
        if let Some(old) = &old {
            kv.create = old.create;
            kv.version = old.version + 1;
            if op.ignore_value {
                kv.value = old.value.clone();
            }
            if op.ignore_lease {
                kv.lease = old.lease;
            }
        }
        self.push(&op.key, Some(kv), run);
        let prev = old.filter(|_| op.prev_kv);
        (run.main, Answer::Put { prev })
    }

    fn delete(&mut self, op: &DeleteOp, run: &mut Run) -> (i64, Answer) {
        let prevs = self.at(&op.range, i64::MAX);
        for kv in &prevs {
            self.push(&kv.key, None, run);
        }
        let answer = Answer::Delete {
            deleted: prevs.len() as i64,
            prevs: if op.prev_kv { prevs } else { Vec::new() },
        };
        (self.shown(run), answer)
    }

    fn shown(&self, run: &Run) -> i64 {
        self.revision + i64::from(run.sub > 0)
    }

    /// Which branches are taken, in the order in which they are met.
    fn path(&self, op: &TxnOp) -> Vec<bool> {
        let holds = op.compares.iter().all(|c| self.holds(c));
        let mut path = vec![holds];
        for o in branch(op, holds) {
            if let Op::Txn(t) = o {
                path.extend(self.path(t));
            }
        }
        path
    }

    fn check(&self, op: &TxnOp, path: &mut dyn Iterator<Item = &bool>) -> Result<(), Error> {
        for o in branch(op, *path.next().unwrap()) {
            match o {
                Op::Range(r) if r.revision == 0 => {}
                Op::Range(r) if r.revision > self.revision => return Err(Error::FutureRevision),
                Op::Range(r) if r.revision < self.compact_revision => return Err(Error::Compacted),
                Op::Put(p) => self.check_put(p)?,
                Op::Txn(t) => self.check(t, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, op: &TxnOp, path: &mut dyn Iterator<Item = &bool>, run: &mut Run) -> Answer {
        let succeeded = *path.next().unwrap();
        let mut answers = Vec::new();
        for o in branch(op, succeeded) {
            answers.push(match o {
                Op::Range(r) => {
                    let now = self.shown(run);
                    (now, self.range(r, now).unwrap())
                }
                Op::Put(p) => self.put(p, run),
                Op::Delete(d) => self.delete(d, run),
                Op::Txn(t) => (0, self.txn(t, path, run)),
            });
        }
        Answer::Txn { succeeded, answers }
    }

    fn holds(&self, c: &Compare) -> bool {
        let kvs = self.at(&c.range, self.revision);
        if kvs.is_empty() {
            return !matches!(c.target, Target::Value(_)) && compare(c, &Kv::default());
        }
        kvs.iter().all(|kv| compare(c, kv))
    }

    /// Every event from a revision on, as a watch that starts there sees it now.
    pub(crate) fn events_from(&self, from: i64) -> Vec<Event> {
        let mut events = Vec::new();
        for (key, versions) in &self.keys {
            for v in versions.iter().filter(|v| v.main >= from) {
                let create = v.kv.as_ref().is_some_and(|kv| kv.create == v.main);
                let shown = !create && v.main > self.compact_revision;
                events.push(Event {
                    main: v.main,
                    sub: v.sub,
                    key: key.clone(),
                    kv: v.kv.clone(),
                    prev: live(versions, v.main - 1).filter(|_| shown).cloned(),
                });
            }
        }
        events.sort_by_key(|e| (e.main, e.sub));
        events
    }

    /// etcd's index: what compacting at `at` leaves of a key. Generations end in a
    /// tombstone; the first that is not over before `at` counts.
    fn available(versions: &[Version], at: i64) -> Option<&Version> {
        let generations = versions.split_inclusive(|v| v.kv.is_none());
        for g in generations {
            let over = g.last().is_some_and(|v| v.kv.is_none() && v.main < at);
            if !over {
                return g.iter().rfind(|v| v.main <= at);
            }
        }
        None
    }

    /// etcd's `hashByRev`.
    pub(crate) fn hash(&self, revision: i64) -> Result<KvHash, Error> {
        if revision > 0 && revision < self.compact_revision {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let revision = if revision == 0 {
            self.revision
        } else {
            revision
        };
        let keep: Vec<(i64, i64)> = self
            .keys
            .values()
            .filter_map(|v| Self::available(v, revision))
            .filter(|v| v.kv.is_some())
            .map(|v| (v.main, v.sub))
            .collect();
        Ok(self.hash_bucket(self.compact_revision, revision, &keep))
    }

    /// The database's entries, in its order, as they are encoded.
    pub(crate) fn entries(&self) -> Vec<(i64, i64, bool, Vec<u8>)> {
        let entry = |(&(main, sub), (key, kv)): (&(i64, i64), &(Key, Option<Kv>))| {
            let mut bytes = Vec::new();
            let tombstone = Kv {
                key: key.clone(),
                ..Kv::default()
            };
            marshal(kv.as_ref().unwrap_or(&tombstone), &mut bytes);
            (main, sub, kv.is_none(), bytes)
        };
        self.bucket.iter().map(entry).collect()
    }

    fn hash_bucket(&self, compact_revision: i64, revision: i64, keep: &[(i64, i64)]) -> KvHash {
        let mut bytes = b"key".to_vec();
        for (&(main, sub), (key, kv)) in &self.bucket {
            let scheduled = main <= compact_revision && !keep.is_empty();
            if main > revision
                || (scheduled && !keep.contains(&(main, sub)))
                || (main == compact_revision && kv.is_none())
            {
                continue;
            }
            bytes.extend(main.to_be_bytes());
            bytes.push(b'_');
            bytes.extend(sub.to_be_bytes());
            if kv.is_none() {
                bytes.push(b't');
            }
            let kv = kv.clone().unwrap_or(Kv {
                key: key.clone(),
                ..Kv::default()
            });
            marshal(&kv, &mut bytes);
        }
        KvHash {
            hash: crc32c::crc32c(&bytes),
            revision,
            compact_revision,
        }
    }

    fn compact(&mut self, at: i64) {
        let keep: Vec<(i64, i64)> = self
            .keys
            .values()
            .filter_map(|v| Self::available(v, at))
            .map(|v| (v.main, v.sub))
            .collect();
        let hash = self.hash_bucket(self.compact_revision, at, &keep);
        self.compaction_hashes.push(hash);
        if self.compaction_hashes.len() > 10 {
            self.compaction_hashes.remove(0);
        }
        self.bucket
            .retain(|rev, _| rev.0 > at || keep.contains(rev));
        self.compact_revision = at;
    }
}

pub(crate) fn everything() -> KeyRange {
    KeyRange {
        key: bytes::Bytes::from_static(b"\0"),
        end: bytes::Bytes::from_static(b"\0"),
    }
}

fn branch(op: &TxnOp, succeeded: bool) -> &[Op] {
    if succeeded { &op.success } else { &op.failure }
}

fn compare(c: &Compare, kv: &Kv) -> bool {
    let order = match &c.target {
        Target::Version(v) => kv.version.cmp(v),
        Target::Create(v) => kv.create.cmp(v),
        Target::Mod(v) => kv.modified.cmp(v),
        Target::Value(v) => kv.value[..].cmp(&v[..]),
        Target::Lease(v) => kv.lease.cmp(v),
        Target::Unknown => std::cmp::Ordering::Equal,
    };
    match c.operator {
        Operator::Equal => order.is_eq(),
        Operator::NotEqual => order.is_ne(),
        Operator::Greater => order.is_gt(),
        Operator::Less => order.is_lt(),
        Operator::Unknown => true,
    }
}

/// `mvccpb.KeyValue`.
fn marshal(kv: &Kv, out: &mut Vec<u8>) {
    fn varint(mut v: u64, out: &mut Vec<u8>) {
        while v > 127 {
            out.push((v % 128) as u8 + 128);
            v /= 128;
        }
        out.push(v as u8);
    }
    let bytes = |field: u8, v: &[u8], out: &mut Vec<u8>| {
        if !v.is_empty() {
            out.push(field << 3 | 2);
            varint(v.len() as u64, out);
            out.extend(v);
        }
    };
    let number = |field: u8, v: i64, out: &mut Vec<u8>| {
        if v != 0 {
            out.push(field << 3);
            varint(v as u64, out);
        }
    };
    bytes(1, &kv.key, out);
    number(2, kv.create, out);
    number(3, kv.modified, out);
    number(4, kv.version, out);
    bytes(5, &kv.value, out);
    number(6, kv.lease, out);
}
