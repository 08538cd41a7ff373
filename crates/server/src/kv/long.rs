//! Answers of many keys or many bytes: read and encoded beside the worker.

use crate::beside::Beside;
use crate::encode::{self, Ids};
use crate::pace::Pace;
use crate::status;
use crate::store::{Read, Store};
use engine::op::{Outcome, RangeOp, Reply};
use engine::tail::KeyValue;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Frame, Status, Unread};

/// An answer above this is made beside the worker.
pub(super) const LARGE_ANSWER_BYTES: usize = 1 << 20;

/// So is one of more keys than this: a tenth of a millisecond.
const LARGE_ANSWER_KEYS: usize = 1024;

/// Slices of a read on the worker, each with its turn, before it is done beside it: some tenths
/// of a millisecond.
const SLICES_ON_WORKER: usize = 16;

/// Keys freed between two rests.
const FREED_KEYS: usize = 1024;

/// A range's answer that was made beside the worker.
pub(super) struct Answer {
    pub(super) frame: Frame,
    pub(super) keys: usize,
    /// How long it took to read.
    pub(super) took: Duration,
}

/// Goes on with a read on the worker, with turns for others. True if that was all of it, and
/// its answer is not large.
pub(super) async fn short(read: &mut Read) -> bool {
    for _ in 0..SLICES_ON_WORKER {
        if read.cursor.is_done() || read.cursor.bytes() >= LARGE_ANSWER_BYTES {
            break;
        }
        tokio::task::yield_now().await;
        read.step();
    }
    read.cursor.is_done() && read.cursor.bytes() < LARGE_ANSWER_BYTES
}

/// Reads a range from its beginning, and encodes it.
pub(super) async fn answer(
    beside: &Beside,
    store: &Arc<Store>,
    ids: Ids,
    op: RangeOp,
    unread: &Unread,
) -> Result<Answer, Status> {
    let store = store.clone();
    let work = move |unwanted: &dyn Fn() -> bool| {
        let began = Instant::now();
        let mut pace = Pace::start();
        let outcome = read_all(&store, op, &mut pace, unwanted)?;
        let took = began.elapsed();
        let keys = outcome.reply.kvs();
        let frame = encode_and_free(&ids, outcome, &mut pace)?;
        Ok(Answer { frame, keys, took })
    };
    beside.run(Some(unread), work).await
}

/// Encodes what is there already: here if that is little, else beside the worker.
pub(super) async fn encode(
    beside: &Beside,
    ids: &Ids,
    outcome: Outcome,
    unread: Option<&Unread>,
) -> Result<Frame, Status> {
    let keys = outcome.reply.kvs();
    let large = keys > LARGE_ANSWER_KEYS
        || (keys > 0 && encode::reply_bytes(ids, &outcome) > LARGE_ANSWER_BYTES);
    if !large {
        return encode::reply(ids, &outcome);
    }
    let ids = *ids;
    let work = move |_: &dyn Fn() -> bool| encode_and_free(&ids, outcome, &mut Pace::start());
    beside.run(unread, work).await
}

fn encode_and_free(ids: &Ids, outcome: Outcome, pace: &mut Pace) -> Result<Frame, Status> {
    let frame = encode::paced_reply(ids, &outcome, &mut || pace.rest());
    free(outcome.reply, pace);
    frame
}

/// Gives an answer's memory back, with rests.
fn free(reply: Reply, pace: &mut Pace) {
    match reply {
        Reply::Range(mut r) => free_kvs(&mut r.kvs, pace),
        Reply::Delete { mut prevs, .. } => free_kvs(&mut prevs, pace),
        Reply::Txn { replies, .. } => replies.into_iter().for_each(|(_, r)| free(r, pace)),
        Reply::Put { .. } | Reply::LeaseGrant { .. } | Reply::Done => {}
    }
}

fn free_kvs(kvs: &mut Vec<KeyValue>, pace: &mut Pace) {
    while let left @ 1.. = kvs.len() {
        kvs.truncate(left.saturating_sub(FREED_KEYS));
        pace.rest();
    }
}

/// Reads a range from its beginning: its header's revision, and what it holds.
pub(super) async fn read(
    beside: &Beside,
    store: &Arc<Store>,
    op: RangeOp,
) -> Result<Outcome, Status> {
    let store = store.clone();
    let work =
        move |unwanted: &dyn Fn() -> bool| read_all(&store, op, &mut Pace::start(), unwanted);
    beside.run(None, work).await
}

/// With rests, a sort at the end aside: that is one piece.
fn read_all(
    store: &Arc<Store>,
    op: RangeOp,
    pace: &mut Pace,
    unwanted: &dyn Fn() -> bool,
) -> Result<Outcome, Status> {
    let mut read = store.read(op).map_err(status::of)?;
    while !read.cursor.is_done() {
        if unwanted() {
            return Err(status::stopped());
        }
        pace.rest();
        read.step();
    }
    Ok(read.finish())
}
