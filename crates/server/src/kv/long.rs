//! Reads of many keys, and answers of many bytes: made beside the worker.
//!
//! What takes milliseconds would keep the worker's processor from others for as long: its own
//! connections could have their turns in between, but the committer, woken on that processor,
//! would wait. The threads here rest as long as they work. They are few, also when clients
//! leave: a thread that nobody waits for ends its work all the same.

use crate::encode::{self, Ids};
use crate::pace::Pace;
use crate::status;
use crate::store::Read;
use engine::op::RangeReply;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::{Frame, Status, Unread};

/// An answer above this is encoded beside the worker.
pub(crate) const LARGE_ANSWER_BYTES: usize = 1 << 20;

/// Slices of a read on the worker, each with its turn, before it goes on beside it: some tenths
/// of a millisecond.
const SLICES_ON_WORKER: usize = 16;

/// So many reads are under way beside a worker, and so many answers are encoded.
const AT_ONCE: usize = 2;

/// Keys freed between two rests.
const FREED_KEYS: usize = 1024;

/// What goes on beside one worker.
pub(crate) struct Beside {
    reads: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

impl Default for Beside {
    fn default() -> Self {
        Beside {
            reads: Arc::new(Semaphore::new(AT_ONCE)),
            answers: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Beside {
    /// Reads to the end; the revision of the answer's header, and the answer.
    pub(crate) async fn finish(&self, mut read: Read) -> Result<(i64, RangeReply), Status> {
        for _ in 0..SLICES_ON_WORKER {
            if read.cursor.is_done() {
                return Ok(read.finish());
            }
            read.step();
            tokio::task::yield_now().await;
        }
        let permit = permit(&self.reads).await?;
        beside(permit, move || {
            let mut pace = Pace::start();
            while !read.step() {
                pace.rest();
            }
            read.finish()
        })
        .await
    }

    /// Encodes an answer; not for a client that leaves much unread, and none that does holds
    /// up others meanwhile.
    pub(crate) async fn encode(
        &self,
        ids: Ids,
        revision: i64,
        mut reply: RangeReply,
        unread: Unread,
    ) -> Result<Frame, Status> {
        let permit = loop {
            unread.room().await;
            let permit = permit(&self.answers).await?;
            if unread.has_room() {
                break permit;
            }
        };
        beside(permit, move || {
            let mut pace = Pace::start();
            let frame = encode::large_range(&ids, revision, &reply, &mut || pace.rest());
            while let left @ 1.. = reply.kvs.len() {
                reply.kvs.truncate(left.saturating_sub(FREED_KEYS));
                pace.rest();
            }
            frame
        })
        .await
    }
}

async fn permit(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    let permit = of.clone().acquire_owned().await;
    permit.map_err(|_| status::stopped())
}

/// Runs `work` on a thread of its own, which keeps the permit to its end.
async fn beside<T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| status::stopped())
}
