//! Reads at a revision. Long ones run in slices, so that no writer waits for them: the
//! caller steps a [`RangeCursor`] under the store's lock and lets go in between. A cursor
//! that is not done pins what it has still to read.

use crate::Engine;
use crate::error::Error;
use crate::index::Entry;
use crate::op::{RangeOp, RangeReply, Reply, SortOrder, SortTarget};
use crate::pin::{Pin, PinStatus, Strength};
use crate::record::Revision;
use crate::tail::{Key, KeyValue};
use std::ops::Bound;

/// Where a sliced read stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeCursor {
    op: RangeOp,
    /// What it reads: all up to this change.
    at: Revision,
    /// The store's revision when it began; the answer's header.
    pub header_revision: i64,
    /// From the first slice that is not the last.
    pin: Option<Pin>,
    strength: Strength,
    next: Option<Key>,
    wanted: usize,
    kvs: Vec<KeyValue>,
    /// What was collected before `kvs`: one long list would have to be copied to grow.
    full: Vec<Vec<KeyValue>>,
    /// Keys handed out before the end.
    taken: usize,
    count: i64,
    bytes: usize,
    /// A slice ends here.
    pause_bytes: usize,
    /// Whether keys are collected, not only measured.
    keep: bool,
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

    /// Bytes of keys and values collected so far, as an answer has them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Has a slice end once so many bytes are collected, so that what waits to be taken
    /// ([`RangeCursor::take_collected`]) is little, whatever the values.
    pub fn pause_at_bytes(&mut self, bytes: usize) {
        self.pause_bytes = bytes;
    }

    /// From now on keys are only measured: the answer will be too large to be made. Without
    /// effect on a read that is not plain ([`RangeCursor::is_plain`]): what becomes of what it
    /// collects is known at its end.
    pub fn measure_only(&mut self) {
        if self.is_plain() {
            self.keep = false;
            self.kvs = Vec::new();
            self.full = Vec::new();
        }
    }

    /// Whether the store let go of what it was to read: it can only be given up.
    fn is_broken(&self) -> bool {
        self.pin.as_ref().is_some_and(Pin::is_broken)
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

    /// The answer; of a read that was only measured, its measure.
    pub fn finish_reply(self) -> Reply {
        if self.keep {
            return Reply::Range(self.finish());
        }
        Reply::Measured {
            kvs_bytes: self.bytes,
            more: self.op.limit > 0 && self.wanted == 0,
            count: self.count,
        }
    }

    fn visit(&mut self, entry: Entry<'_>) {
        let Some(tail) = entry.standing_at(self.at) else {
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
            // The last one wanted only tells whether there is more.
            if self.wanted > 0 || self.op.limit <= 0 {
                self.bytes += kv.field_len();
            }
            if !self.keep {
                return;
            }
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
    /// Opens a read and takes its first slice ([`Engine::range_step`]). A revision of 0 or less
    /// means now. `strength` says whether the store may break it off later, when it keeps too
    /// much history from being freed ([`Engine::break_oldest_pins`]).
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`].
    pub fn range_open(
        &self,
        op: RangeOp,
        strength: Strength,
        max_keys: usize,
    ) -> Result<RangeCursor, Error> {
        if op.revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let main = if op.revision <= 0 {
            self.revision
        } else {
            op.revision
        };
        if main < self.compact_revision {
            return Err(Error::Compacted);
        }
        let mut cursor = self.range_cursor(op, Revision::end_of(main), strength);
        self.range_step(&mut cursor, max_keys)?;
        Ok(cursor)
    }

    /// A read of what stands after the change `at`, of which nothing is read yet.
    pub(crate) fn range_cursor(
        &self,
        op: RangeOp,
        at: Revision,
        strength: Strength,
    ) -> RangeCursor {
        // One more than asked for tells whether there is more. Sorting and filtering need all.
        let wanted = if op.limit > 0 && op.default_order() && !op.filters() {
            (op.limit as usize).saturating_add(1)
        } else {
            usize::MAX
        };
        RangeCursor {
            at,
            header_revision: self.revision,
            pin: None,
            strength,
            next: None,
            wanted,
            kvs: Vec::new(),
            full: Vec::new(),
            taken: 0,
            count: 0,
            bytes: 0,
            pause_bytes: usize::MAX,
            keep: true,
            done: false,
            op,
        }
    }

    /// Reads on, visiting at most `max_keys` keys, at least one; returns how many it visited.
    ///
    /// # Errors
    /// [`Error::Compacted`] if its pin was broken: what it has still to read may be gone.
    pub fn range_step(&self, cursor: &mut RangeCursor, max_keys: usize) -> Result<usize, Error> {
        if cursor.done {
            return Ok(0);
        }
        if cursor.is_broken() {
            return Err(Error::Compacted);
        }
        let visited = self.visit_range(cursor, max_keys);
        if cursor.done {
            cursor.pin = None;
        } else if cursor.pin.is_none() {
            // What stood between two changes of one revision goes with that revision.
            let whole = cursor.at == Revision::end_of(cursor.at.main);
            let lowest = cursor.at.main - i64::from(!whole);
            cursor.pin = Some(self.pin(lowest, cursor.strength));
        }
        Ok(visited)
    }

    /// The same for whoever pins what is read.
    pub(crate) fn visit_range(&self, cursor: &mut RangeCursor, max_keys: usize) -> usize {
        if cursor.op.range.is_one() {
            if let Some(slot) = self.index.get(&cursor.op.range.key) {
                cursor.visit(slot);
            }
            cursor.done = true;
            return 1;
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
            if visited >= max_keys || cursor.bytes >= cursor.pause_bytes {
                last = Some(slot.key().clone());
                break;
            }
        }
        cursor.done = last.is_none();
        cursor.next = last;
        visited
    }

    /// A read inside a transaction, of what stands after the change `at` unless it names a
    /// revision. It takes from `left` what it visits; if that is not enough, it is to be read
    /// on outside of the transaction, which sees the same.
    pub(crate) fn range_in_txn(&self, op: RangeOp, at: Revision, left: &mut usize) -> Reply {
        let at = match op.revision {
            ..=0 => at,
            past => Revision::end_of(past),
        };
        let mut cursor = self.range_cursor(op, at, Strength::Firm);
        // Its revision was checked at admission, and compaction is locked out since; and what
        // is firm does not break.
        if let Ok(visited) = self.range_step(&mut cursor, (*left).max(1)) {
            *left = left.saturating_sub(visited);
        }
        if cursor.is_done() {
            Reply::Range(cursor.finish())
        } else {
            Reply::Unfinished(Box::new(cursor))
        }
    }

    /// Keeps all that can be seen at `revision` and above from being freed.
    pub(crate) fn pin(&self, revision: i64, strength: Strength) -> Pin {
        self.pins.pin(revision, strength, self.now_ms)
    }

    /// What is pinned.
    pub fn pinned(&self) -> PinStatus {
        let (count, oldest_ms) = self.pins.ages();
        let lowest = self.pins.lowest().unwrap_or(i64::MAX);
        let kept = match lowest < self.compact_revision {
            // All events are taken for equally large.
            true => self.history.share_between(lowest, self.compact_revision),
            false => 0.0,
        };
        PinStatus {
            count,
            oldest_ms,
            kept_bytes: (self.sizes().history_bytes as f64 * kept) as usize,
        }
    }

    /// Breaks the pins that keep the most history, where compaction has passed them and they
    /// may be broken; returns how many. Their readers are told at their next step.
    pub fn break_oldest_pins(&mut self) -> usize {
        self.pins.break_lowest(self.compact_revision)
    }
}
