//! Reads at a revision. Long ones run in slices, so that no writer waits for them: the
//! caller steps a [`RangeCursor`] under the store's lock and lets go in between, with a
//! pin that keeps compaction from taking what is still to be read.

use crate::Engine;
use crate::error::Error;
use crate::index::Entry;
use crate::op::{RangeOp, RangeReply, SortOrder, SortTarget};
use crate::tail::{Key, KeyValue};
use std::ops::Bound;

/// Where a sliced read stands.
#[derive(Debug)]
pub struct RangeCursor {
    op: RangeOp,
    /// The revision read at.
    pub revision: i64,
    /// The store's revision when it began; the answer's header.
    pub header_revision: i64,
    next: Option<Key>,
    wanted: usize,
    kvs: Vec<KeyValue>,
    /// What was collected before `kvs`: one long list would have to be copied to grow.
    full: Vec<Vec<KeyValue>>,
    /// Keys handed out before the end.
    taken: usize,
    count: i64,
    bytes: usize,
    done: bool,
}

/// Keys in a part of a long answer.
const PART: usize = 4096;

impl RangeOp {
    fn default_order(&self) -> bool {
        self.sort_order == SortOrder::None
            || (self.sort_target == SortTarget::Key && self.sort_order == SortOrder::Ascend)
    }

    fn filters(&self) -> bool {
        self.min_mod_revision != 0
            || self.max_mod_revision != 0
            || self.min_create_revision != 0
            || self.max_create_revision != 0
    }
}

impl RangeCursor {
    /// What was asked for.
    pub fn op(&self) -> &RangeOp {
        &self.op
    }

    /// Whether all has been read.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether it reads in key order without filters, so that it may be answered in pieces.
    pub fn is_plain(&self) -> bool {
        self.op.sort_target == SortTarget::Key
            && self.op.sort_order != SortOrder::Descend
            && !self.op.filters()
    }

    /// Bytes of keys and values collected so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes what has been collected so far, for an answer in pieces; only for a plain read
    /// ([`RangeCursor::is_plain`]). With a limit, all pieces together hold one key more than
    /// it if there is more.
    pub fn take_collected(&mut self) -> Vec<KeyValue> {
        self.bytes = 0;
        let kvs = self.collected();
        self.taken += kvs.len();
        kvs
    }

    fn collected(&mut self) -> Vec<KeyValue> {
        let last = std::mem::take(&mut self.kvs);
        if self.full.is_empty() {
            return last;
        }
        let full = std::mem::take(&mut self.full);
        full.into_iter().flatten().chain(last).collect()
    }

    /// How many keys may still be handed out.
    fn allowed(&self) -> usize {
        if self.op.limit > 0 {
            (self.op.limit as usize).saturating_sub(self.taken)
        } else {
            usize::MAX
        }
    }

    /// Keys counted so far, whatever the limit; all of them once done.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Filters, sorts and cuts what was collected, as etcd does, in that order.
    pub fn finish(mut self) -> RangeReply {
        self.kvs = self.collected();
        let allowed = self.allowed();
        let op = &self.op;
        if op.filters() {
            let within =
                |v: i64, min: i64, max: i64| (min == 0 || v >= min) && (max == 0 || v <= max);
            self.kvs.retain(|kv| {
                let f = kv.fields();
                within(f.mod_revision, op.min_mod_revision, op.max_mod_revision)
                    && within(
                        f.create_revision,
                        op.min_create_revision,
                        op.max_create_revision,
                    )
            });
        }
        if op.sort_target != SortTarget::Key || op.sort_order == SortOrder::Descend {
            sort(
                &mut self.kvs,
                op.sort_target,
                op.sort_order == SortOrder::Descend,
            );
        }
        let more = self.kvs.len() > allowed;
        self.kvs.truncate(allowed);
        if op.keys_only && op.sort_target == SortTarget::Value {
            self.kvs = self.kvs.iter().map(KeyValue::without_value).collect();
        }
        RangeReply {
            kvs: self.kvs,
            more,
            count: self.count,
        }
    }

    fn visit(&mut self, entry: Entry<'_>) {
        let Some(tail) = entry.live_at(self.revision) else {
            return;
        };
        self.count += 1;
        if !self.op.count_only && self.wanted > 0 {
            // What is taken before the end still counts against the limit.
            self.wanted -= 1;
            let mut kv = KeyValue {
                key: entry.key().clone(),
                tail: tail.clone(),
            };
            if self.op.keys_only && self.op.sort_target != SortTarget::Value {
                // etcd answers from its index, which knows no lease.
                kv = kv.without_value_and_lease();
            }
            self.bytes += kv.key.len() + kv.tail.len();
            if self.kvs.len() == PART {
                let part = Vec::with_capacity(PART);
                self.full.push(std::mem::replace(&mut self.kvs, part));
            }
            self.kvs.push(kv);
        }
    }
}

fn sort(kvs: &mut [KeyValue], target: SortTarget, descend: bool) {
    let number = |kv: &KeyValue| {
        let f = kv.fields();
        match target {
            SortTarget::Version => f.version,
            SortTarget::Create => f.create_revision,
            _ => f.mod_revision,
        }
    };
    // Equal ones stay in key order, also when descending. (etcd's sort is not stable, but
    // for up to twelve keys it does the same.)
    if descend {
        kvs.reverse();
    }
    match target {
        SortTarget::Key => kvs.sort_by(|a, b| a.key.cmp(&b.key)),
        SortTarget::Value => kvs.sort_by(|a, b| a.fields().value.cmp(b.fields().value)),
        _ => kvs.sort_by_key(number),
    }
    if descend {
        kvs.reverse();
    }
}

impl<W> Engine<W> {
    /// Opens a read. A revision of 0 or less means now.
    pub fn range_open(&self, op: RangeOp) -> Result<RangeCursor, Error> {
        if op.revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let revision = if op.revision <= 0 {
            self.revision
        } else {
            op.revision
        };
        if revision < self.compact_revision {
            return Err(Error::Compacted);
        }
        // One more than asked for tells whether there is more. Sorting and filtering need all.
        let wanted = if op.limit > 0 && op.default_order() && !op.filters() {
            (op.limit as usize).saturating_add(1)
        } else {
            usize::MAX
        };
        Ok(RangeCursor {
            revision,
            header_revision: self.revision,
            next: None,
            wanted,
            kvs: Vec::new(),
            full: Vec::new(),
            taken: 0,
            count: 0,
            bytes: 0,
            done: false,
            op,
        })
    }

    /// Reads on, visiting at most `max_keys` keys, at least one.
    pub fn range_step(&self, cursor: &mut RangeCursor, max_keys: usize) {
        if cursor.done {
            return;
        }
        if cursor.op.range.is_one() {
            if let Some(slot) = self.index.get(&cursor.op.range.key) {
                cursor.visit(slot);
            }
            cursor.done = true;
            return;
        }
        let range = cursor.op.range.clone();
        let from = cursor.next.take();
        let start = match &from {
            Some(k) => Bound::Excluded(k.as_ref()),
            None => Bound::Included(range.key.as_ref()),
        };
        let end = range.upper().map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let mut visited = 0;
        for slot in self.index.range(start, end) {
            cursor.visit(slot);
            visited += 1;
            if visited >= max_keys {
                last = Some(slot.key().clone());
                break;
            }
        }
        cursor.done = last.is_none();
        cursor.next = last;
    }

    /// A whole read in one go: for reads inside transactions.
    pub(crate) fn range_in_txn(&self, op: &RangeOp) -> RangeReply {
        let mut op = op.clone();
        if op.revision <= 0 {
            // What the transaction itself has written is not below `self.revision` yet.
            op.revision = 0;
        }
        let now = op.revision == 0;
        match self.range_open(op) {
            Ok(mut c) => {
                if now {
                    c.revision = i64::MAX;
                }
                self.range_step(&mut c, usize::MAX);
                c.finish()
            }
            // Checked at admission, and compaction is locked out since.
            Err(_) => RangeReply::default(),
        }
    }

    /// Keeps physical compaction at or below `revision` until [`Engine::unpin`].
    pub fn pin(&mut self, revision: i64) {
        *self.pins.entry(revision).or_default() += 1;
    }

    /// Number of pins held.
    pub fn pinned(&self) -> usize {
        self.pins.values().sum()
    }

    /// Gives a pin back.
    pub fn unpin(&mut self, revision: i64) {
        if let Some(n) = self.pins.get_mut(&revision) {
            *n -= 1;
            if *n == 0 {
                self.pins.remove(&revision);
            }
        }
    }
}
