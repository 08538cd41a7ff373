//! Answers in protobuf, written straight from the engine's shared bytes.
//!
//! Keys and values are copied once, into the frame. Field numbers are those of etcd's
//! `rpc.proto`, named beside them.

use bytes::BufMut;
use engine::op::{RangeReply, Reply};
use engine::tail::{KeyValue, varint_len};
use wire::Frame;

/// Who answers: the constant part of every header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    pub(crate) raft_term: u64,
}

pub(crate) fn put_varint(buf: &mut impl BufMut, mut v: u64) {
    while v >= 0x80 {
        buf.put_u8(v as u8 | 0x80);
        v >>= 7;
    }
    buf.put_u8(v as u8);
}

/// A varint field's length, tag included (field numbers below 16); 0 when default.
pub(crate) fn int_len(v: u64) -> usize {
    if v == 0 { 0 } else { 1 + varint_len(v) }
}

pub(crate) fn put_int(buf: &mut impl BufMut, field: u8, v: u64) {
    if v != 0 {
        buf.put_u8(field << 3);
        put_varint(buf, v);
    }
}

/// A length-delimited field's length, tag and length included.
pub(crate) fn nested_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

pub(crate) fn put_nested(buf: &mut impl BufMut, field: u8, len: usize) {
    buf.put_u8(field << 3 | 2);
    put_varint(buf, len as u64);
}

pub(crate) fn header_len(ids: Option<&Ids>, revision: i64) -> usize {
    let own = ids.map_or(0, |i| {
        int_len(i.cluster_id) + int_len(i.member_id) + int_len(i.raft_term)
    });
    own + int_len(revision as u64)
}

/// `ResponseHeader{cluster_id=1, member_id=2, revision=3, raft_term=4}` as field 1.
pub(crate) fn put_header(buf: &mut impl BufMut, ids: Option<&Ids>, revision: i64) {
    put_nested(buf, 1, header_len(ids, revision));
    if let Some(i) = ids {
        put_int(buf, 1, i.cluster_id);
        put_int(buf, 2, i.member_id);
    }
    put_int(buf, 3, revision as u64);
    if let Some(i) = ids {
        put_int(buf, 4, i.raft_term);
    }
}

pub(crate) fn put_kv(buf: &mut impl BufMut, field: u8, key: &[u8], tail: &[u8]) {
    put_nested(buf, field, nested_len(key.len()) + tail.len());
    put_nested(buf, 1, key.len());
    buf.put_slice(key);
    buf.put_slice(tail);
}

fn kvs_len(kvs: &[KeyValue]) -> usize {
    kvs.iter().map(|kv| nested_len(kv.encoded_len())).sum()
}

fn put_kvs(buf: &mut impl BufMut, field: u8, kvs: &[KeyValue]) {
    for kv in kvs {
        put_kv(buf, field, &kv.key, &kv.tail);
    }
}

fn range_len(r: &RangeReply) -> usize {
    kvs_len(&r.kvs) + int_len(r.more.into()) + int_len(r.count as u64)
}

/// `RangeResponse{header=1, kvs=2, more=3, count=4}` without its header.
fn put_range(buf: &mut impl BufMut, r: &RangeReply) {
    put_kvs(buf, 2, &r.kvs);
    put_range_end(buf, r);
}

fn put_range_end(buf: &mut impl BufMut, r: &RangeReply) {
    put_int(buf, 3, r.more.into());
    put_int(buf, 4, r.count as u64);
}

/// Field number of an answer inside `ResponseOp`.
fn op_field(reply: &Reply) -> u8 {
    match reply {
        Reply::Range(_) => 1,
        Reply::Put { .. } => 2,
        Reply::Delete { .. } => 3,
        Reply::Txn { .. } | Reply::LeaseGrant { .. } | Reply::Done => 4,
    }
}

fn reply_len(ids: Option<&Ids>, revision: i64, reply: &Reply) -> usize {
    nested_len(header_len(ids, revision))
        + match reply {
            Reply::Range(r) => range_len(r),
            Reply::Put { prev } => prev.as_ref().map_or(0, |kv| nested_len(kv.encoded_len())),
            Reply::Delete { deleted, prevs } => int_len(*deleted as u64) + kvs_len(prevs),
            Reply::Txn { succeeded, replies } => {
                let op = |(rev, r): &(i64, Reply)| nested_len(nested_len(reply_len(None, *rev, r)));
                int_len((*succeeded).into()) + replies.iter().map(op).sum::<usize>()
            }
            Reply::LeaseGrant { id, ttl_s } => int_len(*id as u64) + int_len(*ttl_s as u64),
            Reply::Done => 0,
        }
}

fn put_reply(buf: &mut impl BufMut, ids: Option<&Ids>, revision: i64, reply: &Reply) {
    put_header(buf, ids, revision);
    match reply {
        Reply::Range(r) => put_range(buf, r),
        Reply::Put { prev } => put_kvs(buf, 2, prev.as_slice()),
        Reply::Delete { deleted, prevs } => {
            put_int(buf, 2, *deleted as u64);
            put_kvs(buf, 3, prevs);
        }
        Reply::Txn { succeeded, replies } => {
            put_int(buf, 2, (*succeeded).into());
            for (rev, r) in replies {
                let len = reply_len(None, *rev, r);
                put_nested(buf, 3, nested_len(len));
                put_nested(buf, op_field(r), len);
                put_reply(buf, None, *rev, r);
            }
        }
        // LeaseGrantResponse{header=1, ID=2, TTL=3}
        Reply::LeaseGrant { id, ttl_s } => {
            put_int(buf, 2, *id as u64);
            put_int(buf, 3, *ttl_s as u64);
        }
        Reply::Done => {}
    }
}

/// An answer's frame.
pub(crate) fn reply(ids: &Ids, revision: i64, reply: &Reply) -> Frame {
    Frame::encode(reply_len(Some(ids), revision, reply), |b| {
        put_reply(b, Some(ids), revision, reply)
    })
}

/// Length of an answer's message, in bytes.
pub(crate) fn reply_bytes(ids: &Ids, revision: i64, reply: &Reply) -> usize {
    reply_len(Some(ids), revision, reply)
}

/// Length of a range's answer, in bytes.
pub(crate) fn range_bytes(ids: &Ids, revision: i64, r: &RangeReply) -> usize {
    nested_len(header_len(Some(ids), revision)) + range_len(r)
}

/// A large range's frame; `rest` is called now and then, to give way to others.
pub(crate) fn large_range(
    ids: &Ids,
    revision: i64,
    r: &RangeReply,
    rest: &mut dyn FnMut(),
) -> Frame {
    Frame::encode(range_bytes(ids, revision, r), |b| {
        put_header(b, Some(ids), revision);
        for some in r.kvs.chunks(64) {
            put_kvs(b, 2, some);
            rest();
        }
        put_range_end(b, r);
    })
}

/// A piece of a `RangeStreamResponse{range_response=1}`; only the last carries a header.
pub(crate) fn stream_piece(header: Option<(&Ids, i64)>, r: &RangeReply) -> Frame {
    let head = header.map_or(0, |(ids, rev)| nested_len(header_len(Some(ids), rev)));
    let len = head + range_len(r);
    Frame::encode(nested_len(len), |b| {
        put_nested(b, 1, len);
        if let Some((ids, rev)) = header {
            put_header(b, Some(ids), rev);
        }
        put_range(b, r);
    })
}

/// Any message of the wire API.
pub(crate) fn message(m: &impl prost::Message) -> Frame {
    Frame::encode(m.encoded_len(), |b| m.encode_raw(b))
}
