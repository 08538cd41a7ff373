//! Ranges of many keys or many bytes: read and encoded beside the worker.
//!
//! What takes milliseconds would keep the worker's processor from others for as long: its own
//! connections could have their turns in between, but the committer, woken on that processor,
//! would wait. The threads here rest as long as they work (a sort aside, which is one piece).
//! They are few; what waits for one holds nothing yet, and what nobody waits for any more ends.

use crate::encode::{self, Ids};
use crate::pace::Pace;
use crate::status;
use crate::store::{Read, Store};
use engine::op::{RangeOp, RangeReply};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use wire::{Frame, Status, Unread};

/// An answer above this is made beside the worker.
pub(super) const LARGE_ANSWER_BYTES: usize = 1 << 20;

/// Slices of a read on the worker, each with its turn, before it is done beside it: some tenths
/// of a millisecond.
const SLICES_ON_WORKER: usize = 16;

/// So many ranges and hashes are made at once beside a worker.
const AT_ONCE: usize = 2;

/// Keys freed between two rests.
const FREED_KEYS: usize = 1024;

/// What goes on beside one worker.
pub(crate) struct Beside(Arc<Semaphore>);

/// A range's answer that was made beside the worker.
pub(super) struct Answer {
    pub(super) frame: Frame,
    pub(super) keys: usize,
    /// How long it took to read.
    pub(super) took: Duration,
}

impl Default for Beside {
    fn default() -> Self {
        Beside(Arc::new(Semaphore::new(AT_ONCE)))
    }
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

impl Beside {
    /// Reads a range from its beginning, and encodes it; not for a client that leaves much
    /// unread, and none that does holds up others meanwhile.
    pub(super) async fn answer(
        &self,
        store: &Arc<Store>,
        ids: Ids,
        op: RangeOp,
        unread: &Unread,
    ) -> Result<Answer, Status> {
        let store = store.clone();
        self.run(Some(unread), move |unwanted| {
            let began = Instant::now();
            let mut pace = Pace::start();
            let (revision, mut reply) = read(&store, op, &mut pace, unwanted)?;
            let took = began.elapsed();
            let keys = reply.kvs.len();
            let frame = encode::large_range(&ids, revision, &reply, &mut || pace.rest());
            while let left @ 1.. = reply.kvs.len() {
                reply.kvs.truncate(left.saturating_sub(FREED_KEYS));
                pace.rest();
            }
            Ok(Answer { frame, keys, took })
        })
        .await
    }

    /// Reads a range from its beginning: its header's revision, and what it holds.
    pub(super) async fn read(
        &self,
        store: &Arc<Store>,
        op: RangeOp,
    ) -> Result<(i64, RangeReply), Status> {
        let store = store.clone();
        self.run(None, move |unwanted| {
            read(&store, op, &mut Pace::start(), unwanted)
        })
        .await
    }

    /// Runs `work` on a thread of its own, when there is one and the client has room. It is
    /// told whether it is still wanted.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        unread: Option<&Unread>,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let permit = loop {
            if let Some(unread) = unread {
                unread.room().await;
            }
            let permit = self.0.clone().acquire_owned().await;
            if unread.is_none_or(Unread::has_room) {
                break permit.map_err(|_| status::stopped())?;
            }
        };
        let wanted = Arc::new(());
        let asked = Arc::downgrade(&wanted);
        // The permit comes back with the result: if nobody takes that, it goes first.
        let thread = tokio::task::spawn_blocking(move || {
            let result = work(&|| asked.strong_count() == 0);
            (result, permit)
        });
        let (result, _permit) = thread.await.map_err(|_| status::stopped())?;
        drop(wanted);
        result
    }
}

fn read(
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
