//! Answers of many keys or many bytes: read and encoded beside the worker.

use crate::encode::{self, Ids};
use crate::offload::Offload;
use crate::read::{self, Sliced};
use crate::status;
use crate::store::Store;
use engine::Error;
use engine::op::{Outcome, Reply};
use engine::tail::KeyValue;
use std::sync::Arc;
use std::time::{Duration, Instant};
use threads::Pace;
use wire::{Frame, MAX_MESSAGE_BYTES, Status, Unread};

/// An answer above this is made beside the worker.
const LARGE_ANSWER_BYTES: usize = 1 << 20;

/// So is one of more keys than this: a tenth of a millisecond.
const LARGE_ANSWER_KEYS: usize = 1024;

/// Slices of a read on the worker, each with its turn, before it is done beside it: some tenths
/// of a millisecond.
const SLICES_ON_WORKER: usize = 16;

/// Keys freed between two rests.
const FREED_KEYS: usize = 1024;

/// An answer that was made beside the worker.
pub(super) struct Answer {
    pub(super) frame: Frame,
    /// How many keys each range has.
    pub(super) keys: Vec<usize>,
    /// How long it took to read.
    pub(super) took: Duration,
}

/// Goes on with a read on the worker, with turns for others. True if that was all of it, and
/// its answer is not large.
pub(super) async fn short(store: &Store, read: &mut impl Sliced) -> Result<bool, Status> {
    for _ in 0..SLICES_ON_WORKER {
        if read.is_done() || is_large(read) {
            break;
        }
        tokio::task::yield_now().await;
        read.step(store).map_err(status::of)?;
    }
    Ok(read.is_done() && !is_large(read))
}

/// Whether the answer of what is read so far is made beside the worker.
pub(super) fn is_large(read: &impl Sliced) -> bool {
    read.bytes() >= LARGE_ANSWER_BYTES
}

/// What was read beside the worker.
struct Collected {
    outcome: Outcome,
    /// How large its answer is.
    bytes: usize,
    took: Duration,
}

/// Reads from the beginning, and encodes what was read when the client has room for it. Where
/// that is not at once, what was read is given back meanwhile, and read again.
pub(super) async fn answer<S: Sliced>(
    offload: &Offload,
    store: &Arc<Store>,
    open: impl FnOnce(&Store) -> Result<S, Error> + Clone + Send + 'static,
    ids: Ids,
    unread: &Unread,
) -> Result<Answer, Status> {
    let collect = |open| {
        let store = store.clone();
        move |unwanted: &dyn Fn() -> bool| {
            let began = Instant::now();
            let outcome = read_all(&store, open, &mut Pace::start(), unwanted)?;
            let took = began.elapsed();
            let bytes = encode::reply_bytes(&ids, &outcome);
            Ok(Collected {
                outcome,
                bytes,
                took,
            })
        }
    };
    let mut collected = offload.run(Some(unread), collect(open.clone())).await?;
    let bytes = collected.bytes;
    let claim = if bytes > MAX_MESSAGE_BYTES {
        // There will be no answer of that size.
        None
    } else if let Some(claim) = unread.try_claim(bytes) {
        Some(claim)
    } else {
        let give_back = move |_: &dyn Fn() -> bool| {
            free(collected.outcome.reply, &mut Pace::start());
            Ok(())
        };
        offload.run(None, give_back).await?;
        let claim = unread.claim(bytes).await;
        collected = offload.run(None, collect(open)).await?;
        Some(claim)
    };
    let encode = move |_: &dyn Fn() -> bool| {
        let (took, keys) = (collected.took, keys_of(&collected.outcome));
        let frame = encode_and_free(&ids, collected.outcome, &mut Pace::start())?;
        Ok(Answer { frame, keys, took })
    };
    let answer = offload.run(None, encode).await;
    // The answer is counted by itself from the end of this turn on.
    drop(claim);
    answer
}

/// How many keys a range's answer has, or each range's in a transaction's.
pub(super) fn keys_of(outcome: &Outcome) -> Vec<usize> {
    match &outcome.reply {
        Reply::Txn { replies, .. } => {
            let ranges = replies.iter().map(|(_, reply)| reply);
            let ranges = ranges.filter(|reply| matches!(reply, Reply::Range(_)));
            ranges.map(Reply::kvs).collect()
        }
        reply => vec![reply.kvs()],
    }
}

/// Encodes a write's answer: here if that is little, else beside the worker, where also its
/// long ranges are read.
pub(super) async fn encode(
    offload: &Offload,
    store: &Arc<Store>,
    ids: &Ids,
    mut outcome: Outcome,
    unread: Option<&Unread>,
) -> Result<Frame, Status> {
    let keys = outcome.reply.kvs();
    let large = keys > LARGE_ANSWER_KEYS
        || outcome.reply.is_unfinished()
        || (keys > 0 && encode::reply_bytes(ids, &outcome) > LARGE_ANSWER_BYTES);
    if !large {
        return encode::reply(ids, &outcome);
    }
    let (ids, store) = (*ids, store.clone());
    let finish = move |_: &dyn Fn() -> bool| {
        let mut pace = Pace::start();
        let read = read::finish_reply(&store, &mut outcome.reply, MAX_MESSAGE_BYTES, || {
            pace.rest();
        });
        read.map_err(status::of)?;
        let bytes = encode::reply_bytes(&ids, &outcome);
        Ok((outcome, bytes))
    };
    let (outcome, bytes) = offload.run(None, finish).await?;
    let claim = match unread {
        // What it answers has happened: it cannot be read again.
        Some(unread) if bytes <= MAX_MESSAGE_BYTES => Some(unread.claim(bytes).await),
        _ => None,
    };
    let encode = move |_: &dyn Fn() -> bool| encode_and_free(&ids, outcome, &mut Pace::start());
    let frame = offload.run(None, encode).await;
    drop(claim);
    frame
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
        Reply::Measured { .. }
        | Reply::Unfinished(_)
        | Reply::Put { .. }
        | Reply::LeaseGrant { .. }
        | Reply::Done => {}
    }
}

fn free_kvs(kvs: &mut Vec<KeyValue>, pace: &mut Pace) {
    while let left @ 1.. = kvs.len() {
        kvs.truncate(left.saturating_sub(FREED_KEYS));
        pace.rest();
    }
}

/// Reads from the beginning.
pub(super) async fn read<S: Sliced>(
    offload: &Offload,
    store: &Arc<Store>,
    open: impl FnOnce(&Store) -> Result<S, Error> + Send + 'static,
) -> Result<Outcome, Status> {
    let store = store.clone();
    let work =
        move |unwanted: &dyn Fn() -> bool| read_all(&store, open, &mut Pace::start(), unwanted);
    offload.run(None, work).await
}

/// With rests, a sort at the end aside: that is one piece. What is too large for any answer is
/// measured, for the error to say so, and not kept.
fn read_all<S: Sliced>(
    store: &Store,
    open: impl FnOnce(&Store) -> Result<S, Error>,
    pace: &mut Pace,
    unwanted: &dyn Fn() -> bool,
) -> Result<Outcome, Status> {
    let mut read = open(store).map_err(status::of)?;
    while !read.is_done() {
        if unwanted() {
            return Err(status::stopped());
        }
        pace.rest();
        read.step(store).map_err(status::of)?;
        if read.bytes() > MAX_MESSAGE_BYTES {
            read.measure_only();
        }
    }
    Ok(read.finish())
}
