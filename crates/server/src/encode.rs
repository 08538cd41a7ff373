//! Answers in protobuf, written straight from the engine's shared bytes.
//!
//! Keys and values are copied once, into the frame. Field numbers are those of etcd's
//! `rpc.proto`, named beside them.

use bytes::{BufMut, BytesMut};
use engine::op::{Outcome, RangeReply, Reply};
use engine::tail::{KeyValue, varint_len};
use wire::{Frame, MAX_MESSAGE_BYTES, Status};

/// Keys and values written between two rests.
const KVS_A_REST: usize = 64;

/// Sizes of the transactions inside an answer, in the order in which they are written. So each
/// is measured once, however deep it lies; most answers hold none.
type NestedLens = Vec<usize>;

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
    kvs.iter().map(KeyValue::field_len).sum()
}

fn put_kvs(buf: &mut impl BufMut, field: u8, kvs: &[KeyValue], rest: &mut impl FnMut()) {
    for some in kvs.chunks(KVS_A_REST) {
        for kv in some {
            put_kv(buf, field, &kv.key, &kv.tail);
        }
        rest();
    }
}

fn range_len(kvs_bytes: usize, more: bool, count: i64) -> usize {
    kvs_bytes + int_len(more.into()) + int_len(count as u64)
}

/// `RangeResponse{header=1, kvs=2, more=3, count=4}` without its header.
fn put_range(buf: &mut impl BufMut, r: &RangeReply, rest: &mut impl FnMut()) {
    put_kvs(buf, 2, &r.kvs, rest);
    put_int(buf, 3, r.more.into());
    put_int(buf, 4, r.count as u64);
}

/// Field number of an answer inside `ResponseOp`.
fn op_field(reply: &Reply) -> u8 {
    match reply {
        Reply::Range(_) | Reply::Measured { .. } | Reply::Unfinished(_) => 1,
        Reply::Put { .. } => 2,
        Reply::Delete { .. } => 3,
        Reply::Txn { .. } | Reply::LeaseGrant { .. } | Reply::Done => 4,
    }
}

fn reply_len(ids: Option<&Ids>, revision: i64, reply: &Reply, nested: &mut NestedLens) -> usize {
    nested_len(header_len(ids, revision))
        + match reply {
            Reply::Range(r) => range_len(kvs_len(&r.kvs), r.more, r.count),
            Reply::Measured {
                kvs_bytes,
                more,
                count,
            } => range_len(*kvs_bytes, *more, *count),
            // It says nothing yet: too large for any frame.
            Reply::Unfinished(_) => MAX_MESSAGE_BYTES,
            Reply::Put { prev } => prev.as_ref().map_or(0, KeyValue::field_len),
            Reply::Delete { deleted, prevs } => int_len(*deleted as u64) + kvs_len(prevs),
            Reply::Txn { succeeded, replies } => {
                let mut len = int_len((*succeeded).into());
                for (revision, reply) in replies {
                    let at = nested.len();
                    let is_txn = matches!(reply, Reply::Txn { .. });
                    if is_txn {
                        nested.push(0);
                    }
                    let own = reply_len(None, *revision, reply, nested);
                    if is_txn {
                        nested[at] = own;
                    }
                    len += nested_len(nested_len(own));
                }
                len
            }
            Reply::LeaseGrant { id, ttl_s } => int_len(*id as u64) + int_len(*ttl_s as u64),
            Reply::Done => 0,
        }
}

fn put_reply(
    buf: &mut impl BufMut,
    ids: Option<&Ids>,
    revision: i64,
    reply: &Reply,
    nested: &mut impl Iterator<Item = usize>,
    rest: &mut impl FnMut(),
) {
    put_header(buf, ids, revision);
    match reply {
        Reply::Range(r) => put_range(buf, r, rest),
        Reply::Put { prev } => put_kvs(buf, 2, prev.as_slice(), rest),
        Reply::Delete { deleted, prevs } => {
            put_int(buf, 2, *deleted as u64);
            put_kvs(buf, 3, prevs, rest);
        }
        Reply::Txn { succeeded, replies } => {
            put_int(buf, 2, (*succeeded).into());
            for (revision, reply) in replies {
                let known = matches!(reply, Reply::Txn { .. }).then(|| nested.next());
                let len = known
                    .flatten()
                    .unwrap_or_else(|| reply_len(None, *revision, reply, &mut NestedLens::new()));
                put_nested(buf, 3, nested_len(len));
                put_nested(buf, op_field(reply), len);
                put_reply(buf, None, *revision, reply, nested, rest);
            }
        }
        // LeaseGrantResponse{header=1, ID=2, TTL=3}
        Reply::LeaseGrant { id, ttl_s } => {
            put_int(buf, 2, *id as u64);
            put_int(buf, 3, *ttl_s as u64);
        }
        // Of the first two no frame is made: they are too large.
        Reply::Measured { .. } | Reply::Unfinished(_) | Reply::Done => {}
    }
}

/// A message's frame, unless the message is larger than any that is sent: that is known before
/// anything is written.
fn frame(len: usize, write: impl FnOnce(&mut BytesMut)) -> Result<Frame, Status> {
    if len > MAX_MESSAGE_BYTES {
        return Err(Status::message_too_large(len as u64));
    }
    Ok(Frame::encode(len, write))
}

/// An answer's frame.
///
/// # Errors
/// ResourceExhausted, as from etcd, if the answer is larger than any message that is sent. What
/// it answers has happened.
pub(crate) fn reply(ids: &Ids, outcome: &Outcome) -> Result<Frame, Status> {
    paced_reply(ids, outcome, &mut || {})
}

/// The same for a large one; `rest` is called now and then, to give way to others.
///
/// # Errors
/// Those of [`reply`].
pub(crate) fn paced_reply(
    ids: &Ids,
    outcome: &Outcome,
    rest: &mut impl FnMut(),
) -> Result<Frame, Status> {
    let Outcome { revision, reply } = outcome;
    let mut nested = NestedLens::new();
    let len = reply_len(Some(ids), *revision, reply, &mut nested);
    frame(len, |b| {
        let nested = &mut nested.into_iter();
        put_reply(b, Some(ids), *revision, reply, nested, rest);
    })
}

/// Length of an answer's message, in bytes.
pub(crate) fn reply_bytes(ids: &Ids, outcome: &Outcome) -> usize {
    let mut nested = NestedLens::new();
    reply_len(Some(ids), outcome.revision, &outcome.reply, &mut nested)
}

/// A piece of a `RangeStreamResponse{range_response=1}`; only the last carries a header.
pub(crate) fn stream_piece(header: Option<(&Ids, i64)>, r: &RangeReply) -> Frame {
    let head = header.map_or(0, |(ids, rev)| nested_len(header_len(Some(ids), rev)));
    let len = head + range_len(kvs_len(&r.kvs), r.more, r.count);
    Frame::encode(nested_len(len), |b| {
        put_nested(b, 1, len);
        if let Some((ids, rev)) = header {
            put_header(b, Some(ids), rev);
        }
        put_range(b, r, &mut || {});
    })
}

/// Any message of the wire API.
pub(crate) fn message(m: &impl prost::Message) -> Frame {
    Frame::encode(m.encoded_len(), |b| m.encode_raw(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::tail::{Fields, Key, encode};
    use etcd_api::etcdserverpb as pb;
    use prost::Message;
    use wire::Code;

    const IDS: Ids = Ids {
        cluster_id: 1 << 63,
        member_id: 7,
        raft_term: 2,
    };

    fn kvs(count: usize, value_bytes: usize) -> Vec<KeyValue> {
        let kv = KeyValue {
            key: Key::from(&b"key"[..]),
            tail: encode(&Fields {
                create_revision: 5,
                mod_revision: 300,
                version: 2,
                value: &vec![b'v'; value_bytes],
                lease: 9,
            }),
        };
        vec![kv; count]
    }

    fn range(kvs: Vec<KeyValue>) -> Reply {
        Reply::Range(RangeReply {
            count: kvs.len() as i64,
            more: false,
            kvs,
        })
    }

    fn nested(replies: Vec<(i64, Reply)>) -> Reply {
        Reply::Txn {
            succeeded: true,
            replies,
        }
    }

    #[test]
    fn an_answer_of_nested_transactions_is_etcds_message() {
        let inner = nested(vec![(301, range(kvs(2, 10))), (301, nested(Vec::new()))]);
        let deleted = Reply::Delete {
            deleted: 1,
            prevs: kvs(1, 200),
        };
        let middle = nested(vec![(0, inner.clone()), (302, deleted), (0, inner.clone())]);
        let outcome = Outcome {
            revision: 302,
            reply: nested(vec![
                (0, inner),
                (302, Reply::Put { prev: None }),
                (0, middle),
            ]),
        };
        let frame = reply(&IDS, &outcome).unwrap();
        assert_eq!(frame.message().len(), reply_bytes(&IDS, &outcome));
        let read = pb::TxnResponse::decode(frame.message()).unwrap();
        // What is longer or shorter than its length says does not come out the same again.
        assert_eq!(read.encode_to_vec(), frame.message());
        let Some(pb::response_op::Response::ResponseTxn(last)) = &read.responses[2].response else {
            panic!("{read:?}")
        };
        assert_eq!(last.responses.len(), 3);
    }

    #[test]
    fn an_answer_above_two_gibibytes_is_refused_with_its_size_and_not_built() {
        let refused = |reply: Reply| {
            let outcome = Outcome { revision: 9, reply };
            let bytes = reply_bytes(&IDS, &outcome);
            let mut built = false;
            let status = paced_reply(&IDS, &outcome, &mut || built = true).unwrap_err();
            assert!(!built);
            assert_eq!(status.code, Code::ResourceExhausted);
            let text =
                format!("grpc: trying to send message larger than max ({bytes} vs. 2147483647)");
            assert_eq!(status.message, text);
            bytes
        };
        let mib = 1 << 20;
        let large = || range(kvs(2100, mib));
        assert!(refused(large()) > 2100 * mib);
        assert!(refused(nested(vec![(9, Reply::Put { prev: None }), (9, large())])) > 2100 * mib);
        let deleted = Reply::Delete {
            deleted: 2100,
            prevs: kvs(2100, mib),
        };
        assert!(refused(deleted) > 2100 * mib);
        // Above what the frame's own length can say.
        let two = nested(vec![(9, large()), (9, large())]);
        assert!(refused(nested(vec![(0, two.clone()), (0, two)])) > 8000 * mib);
    }
}
