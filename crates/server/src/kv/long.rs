//! Ranges of many keys or many bytes: read and encoded beside the worker.

use crate::beside::Beside;
use crate::encode::{self, Ids};
use crate::pace::Pace;
use crate::status;
use crate::store::{Read, Store};
use engine::op::{RangeOp, RangeReply};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Frame, Status, Unread};

/// An answer above this is made beside the worker.
pub(super) const LARGE_ANSWER_BYTES: usize = 1 << 20;

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
        let (revision, mut reply) = read_all(&store, op, &mut pace, unwanted)?;
        let took = began.elapsed();
        let keys = reply.kvs.len();
        let frame = encode::large_range(&ids, revision, &reply, &mut || pace.rest());
        while let left @ 1.. = reply.kvs.len() {
            reply.kvs.truncate(left.saturating_sub(FREED_KEYS));
            pace.rest();
        }
        Ok(Answer { frame, keys, took })
    };
    beside.run(Some(unread), work).await
}

/// Reads a range from its beginning: its header's revision, and what it holds.
pub(super) async fn read(
    beside: &Beside,
    store: &Arc<Store>,
    op: RangeOp,
) -> Result<(i64, RangeReply), Status> {
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
) -> Result<(i64, RangeReply), Status> {
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
