//! Requests and answers, in the engine's own terms (etcd's names, no wire types).

use crate::interval::Bounds;
use crate::lane::Lane;
use crate::lease::DueLease;
use crate::range::RangeCursor;
use crate::tail::KeyValue;
use bytes::Bytes;
use std::ops;

/// A span of keys as etcd writes it: `end` empty for the one key, `\0` for everything
/// from `key` on, else the half-open interval `[key, end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub key: Bytes,
    /// etcd's `range_end`.
    pub end: Bytes,
}

impl KeyRange {
    /// A range of one key.
    pub fn one(key: Bytes) -> Self {
        KeyRange {
            key,
            end: Bytes::new(),
        }
    }

    fn len_bytes(&self) -> usize {
        self.key.len() + self.end.len()
    }

    /// Whether it names a single key.
    pub fn is_one(&self) -> bool {
        self.end.is_empty()
    }

    /// The exclusive end, `None` when open.
    pub fn upper(&self) -> Option<&[u8]> {
        if self.end.as_ref() == b"\0" {
            None
        } else {
            Some(&self.end)
        }
    }

    /// From where to where it goes, of more than one key; `None` if it is inverted and so holds
    /// none.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        let key = self.key.as_ref();
        let end = match self.upper() {
            Some(end) if end <= key => return None,
            Some(end) => ops::Bound::Excluded(end),
            None => ops::Bound::Unbounded,
        };
        Some((ops::Bound::Included(key), end))
    }

    /// Whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_one() {
            return key == self.key.as_ref();
        }
        key >= self.key.as_ref() && self.upper().is_none_or(|end| key < end)
    }
}

/// What a range's answer is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value.
    Value,
}

/// Sort order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// As found, by key; for another target ascending.
    #[default]
    None,
    /// Ascending.
    Ascend,
    /// Descending.
    Descend,
}

/// etcd's RangeRequest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeOp {
    /// Which keys.
    pub range: KeyRange,
    /// At most so many (0 or less: all).
    pub limit: i64,
    /// At which revision (0 or less: now).
    pub revision: i64,
    /// Sort order.
    pub sort_order: SortOrder,
    /// Sort target.
    pub sort_target: SortTarget,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Bounds on mod and create revision; 0 means none.
    pub min_mod_revision: i64,
    /// Upper bound on the mod revision.
    pub max_mod_revision: i64,
    /// Lower bound on the create revision.
    pub min_create_revision: i64,
    /// Upper bound on the create revision.
    pub max_create_revision: i64,
}

/// etcd's PutRequest.
#[derive(Clone, Debug, Default)]
pub struct PutOp {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Lease to attach, 0 for none.
    pub lease: i64,
    /// Answer with the key's former version.
    pub prev_kv: bool,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
    pub ignore_lease: bool,
}

/// etcd's DeleteRangeRequest.
#[derive(Clone, Debug, Default)]
pub struct DeleteOp {
    /// Which keys.
    pub range: KeyRange,
    /// Answer with what was deleted.
    pub prev_kv: bool,
}

/// What a compare looks at, and what with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The version.
    Version(i64),
    /// The create revision.
    Create(i64),
    /// The mod revision.
    Mod(i64),
    /// The value.
    Value(Bytes),
    /// The lease.
    Lease(i64),
    /// A target that this version of etcd does not know: compares equal.
    Unknown,
}

/// A compare's operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Equal.
    Equal,
    /// Greater.
    Greater,
    /// Less.
    Less,
    /// Not equal.
    NotEqual,
    /// One that this version of etcd does not know: always true.
    Unknown,
}

/// etcd's Compare: true if it holds for every key of the range.
#[derive(Clone, Debug)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// Left side and right side.
    pub target: Target,
    /// Operator.
    pub operator: Operator,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    /// A read.
    Range(RangeOp),
    /// A put.
    Put(PutOp),
    /// A delete.
    Delete(DeleteOp),
    /// A nested transaction.
    Txn(TxnOp),
}

/// etcd's TxnRequest.
#[derive(Clone, Debug, Default)]
pub struct TxnOp {
    /// All must hold for `success` to be taken.
    pub compares: Vec<Compare>,
    /// Taken when they hold.
    pub success: Vec<Op>,
    /// Taken when one does not.
    pub failure: Vec<Op>,
}

/// A request that may change the store.
#[derive(Clone, Debug)]
pub enum Write {
    /// A put.
    Put(PutOp),
    /// A delete.
    Delete(DeleteOp),
    /// A transaction, also one that only reads.
    Txn(TxnOp),
    /// Grants a lease; `id` is not 0, the caller has chosen one.
    LeaseGrant {
        /// Lease id.
        id: i64,
        /// Time to live asked for, in seconds.
        ttl_s: i64,
    },
    /// Revokes a lease and deletes its keys.
    LeaseRevoke {
        /// Lease id.
        id: i64,
    },
    /// Ends a lease whose time was over, and deletes its keys. A lease that has been granted
    /// anew under the same id by the time that this is admitted is another one: it stays.
    LeaseExpire(DueLease),
    /// Forgets history at and below a revision.
    Compact {
        /// The revision.
        revision: i64,
    },
    /// Sets or clears an alarm (etcd's `AlarmType` number).
    Alarm {
        /// etcd's `AlarmType` number.
        alarm: i32,
        /// Set or clear.
        active: bool,
    },
}

/// What a write costs while it waits or is pending, beyond its keys and values, about, in
/// bytes: what is kept of it, its record and its locks.
const WRITE_BYTES: usize = 512;
/// The same of an operation or a compare of a transaction.
const OP_BYTES: usize = 512;

impl Write {
    /// What it holds in memory while it waits or is pending, about, in bytes.
    pub fn held_bytes(&self) -> usize {
        WRITE_BYTES
            + match self {
                Write::Put(op) => op.key.len() + op.value.len(),
                Write::Delete(op) => op.range.len_bytes(),
                Write::Txn(op) => op.held_bytes(),
                Write::LeaseGrant { .. }
                | Write::LeaseRevoke { .. }
                | Write::LeaseExpire(_)
                | Write::Compact { .. }
                | Write::Alarm { .. } => 0,
            }
    }
}

impl TxnOp {
    /// Whether both branches hold nothing but reads, at any depth.
    pub fn only_reads(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|o| match o {
            Op::Range(_) => true,
            Op::Put(_) | Op::Delete(_) => false,
            Op::Txn(t) => t.only_reads(),
        })
    }

    fn held_bytes(&self) -> usize {
        let op = |o: &Op| match o {
            Op::Range(r) => r.range.len_bytes(),
            Op::Put(p) => p.key.len() + p.value.len(),
            Op::Delete(d) => d.range.len_bytes(),
            Op::Txn(t) => t.held_bytes(),
        };
        let compare = |c: &Compare| {
            c.range.len_bytes()
                + match &c.target {
                    Target::Value(value) => value.len(),
                    _ => 0,
                }
        };
        let ops = self.success.iter().chain(&self.failure);
        ops.map(|o| OP_BYTES + op(o)).sum::<usize>()
            + self
                .compares
                .iter()
                .map(|c| OP_BYTES + compare(c))
                .sum::<usize>()
    }
}

/// A range's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeReply {
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// More keys lie beyond the limit.
    pub more: bool,
    /// Number of keys in the range, whatever the limit and filters.
    pub count: i64,
}

/// An operation's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A range's.
    Range(RangeReply),
    /// That of a range whose keys were measured and not kept, since the answer would be too
    /// large.
    Measured {
        /// Bytes that its keys and values would take.
        kvs_bytes: usize,
        /// More keys lie beyond the limit.
        more: bool,
        /// Number of keys in the range.
        count: i64,
    },
    /// That of a range inside a transaction that is too long to be read in one hold of the
    /// store's lock: it is read on with [`crate::Engine::range_step`], and sees what the
    /// transaction saw. No answer has it when all is read ([`Reply::unfinished`]).
    Unfinished(Box<RangeCursor>),
    /// A put's.
    Put {
        /// The former version, where asked for.
        prev: Option<KeyValue>,
    },
    /// A delete's.
    Delete {
        /// How many keys went.
        deleted: i64,
        /// What they were, where asked for.
        prevs: Vec<KeyValue>,
    },
    /// A transaction's, with the revision that each answer's header shows.
    Txn {
        /// Which branch.
        succeeded: bool,
        /// The branch's answers.
        replies: Vec<(i64, Reply)>,
    },
    /// A granted lease's.
    LeaseGrant {
        /// Lease id.
        id: i64,
        /// Granted time to live in seconds.
        ttl_s: i64,
    },
    /// Any other's.
    Done,
}

impl Reply {
    /// How many keys with their values it holds, those of answers inside it included.
    pub fn kvs(&self) -> usize {
        match self {
            Reply::Range(r) => r.kvs.len(),
            Reply::Put { prev } => usize::from(prev.is_some()),
            Reply::Delete { prevs, .. } => prevs.len(),
            Reply::Txn { replies, .. } => replies.iter().map(|(_, r)| r.kvs()).sum(),
            Reply::Measured { .. }
            | Reply::Unfinished(_)
            | Reply::LeaseGrant { .. }
            | Reply::Done => 0,
        }
    }

    /// Bytes that the keys and values of a range's answer take.
    pub fn range_bytes(&self) -> usize {
        match self {
            Reply::Range(r) => r.kvs.iter().map(KeyValue::field_len).sum(),
            Reply::Measured { kvs_bytes, .. } => *kvs_bytes,
            _ => 0,
        }
    }

    /// Lets go of a range's keys, and keeps how large they are.
    pub fn measure_only(&mut self) {
        let kvs_bytes = self.range_bytes();
        if let Reply::Range(r) = self {
            *self = Reply::Measured {
                kvs_bytes,
                more: r.more,
                count: r.count,
            };
        }
    }

    /// The ranges in it that are to be read on, in order.
    pub fn unfinished(&mut self, found: &mut impl FnMut(&mut Reply)) {
        match self {
            Reply::Unfinished(_) => found(self),
            Reply::Txn { replies, .. } => {
                for (_, reply) in replies {
                    reply.unfinished(found);
                }
            }
            _ => {}
        }
    }

    /// Whether a range in it is to be read on.
    pub fn is_unfinished(&self) -> bool {
        match self {
            Reply::Unfinished(_) => true,
            Reply::Txn { replies, .. } => replies.iter().any(|(_, r)| r.is_unfinished()),
            _ => false,
        }
    }
}

/// An answer with the revision that its header shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The store's revision after it; for a write its own.
    pub revision: i64,
    /// The answer.
    pub reply: Reply,
}

/// A write's storage class, as its caller found it, and what that was found from. If that
/// has changed when the write is admitted, the write is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its lane.
    pub lane: Lane,
    /// How long it may stay off the disk, in milliseconds; of volatile writes only.
    pub sync_within_ms: u32,
    /// The generation of the rules that decided it ([`crate::Engine::set_rules`]).
    pub rules: u64,
    /// The version that it replaces, where a rule looked at it.
    pub bound: Option<Bound>,
    /// Bits of the caller's; a batch has those that all of its writes have.
    pub tags: u8,
}

/// A version of a key that a class was found from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The key.
    pub key: Bytes,
    /// Its mod revision; 0 if the key did not exist.
    pub mod_revision: i64,
}

impl Class {
    /// The class of whatever no rule makes volatile.
    pub const DURABLE: Class = Class {
        lane: Lane::Durable,
        sync_within_ms: 0,
        rules: 0,
        bound: None,
        tags: 0,
    };
}
