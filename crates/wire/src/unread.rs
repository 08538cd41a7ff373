//! How much memory answers take that clients have not read.
//!
//! A request of 50 bytes can ask for an answer of 100 MB, and nobody has to read it. So a
//! connection with much unread is not asked for more: its further calls wait until it has
//! read, and no other connection notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

/// Smaller answers are not counted: the number of a connection's streams bounds them.
const COUNTED_BYTES: usize = 4096;

/// What all connections of a worker have unread.
#[derive(Debug, Default)]
pub(crate) struct WorkerUnread {
    bytes: AtomicUsize,
    waiters: Mutex<Vec<Waker>>,
}

/// What one connection has unread of its unary calls' answers. Clones share the count.
#[derive(Debug, Clone)]
pub struct Unread {
    worker: Arc<WorkerUnread>,
    own: Arc<AtomicUsize>,
    limit_bytes: usize,
    worker_limit_bytes: usize,
}

/// An answer that counts until the transport has written it or dropped it.
struct Counted {
    bytes: Bytes,
    unread: Unread,
}

impl Unread {
    pub(crate) fn new(
        worker: &Arc<WorkerUnread>,
        limit_bytes: usize,
        worker_limit_bytes: usize,
    ) -> Self {
        Unread {
            worker: Arc::clone(worker),
            own: Arc::default(),
            limit_bytes,
            worker_limit_bytes,
        }
    }

    /// Waits until another answer may be made. The transport does so before it hands a call to
    /// the handler; a handler whose answer is large and comes later asks again.
    pub async fn room(&self) {
        std::future::poll_fn(|cx| match self.poll_room(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Whether another answer may be made. If not, `cx` is woken when that may have changed.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> bool {
        if self.has_room() {
            return true;
        }
        let mut waiters = self.worker.waiters.lock();
        if !waiters.iter().any(|known| known.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
        // Everything may have been read in between.
        drop(waiters);
        self.has_room()
    }

    /// Whether another answer may be made now. A connection that has read everything may always
    /// have one.
    pub fn has_room(&self) -> bool {
        match self.own.load(Ordering::SeqCst) {
            0 => true,
            own => {
                own < self.limit_bytes
                    && self.worker.bytes.load(Ordering::SeqCst) < self.worker_limit_bytes
            }
        }
    }

    /// Counts an answer while any part of it is held.
    pub(crate) fn count(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < COUNTED_BYTES {
            return bytes;
        }
        self.own.fetch_add(bytes.len(), Ordering::SeqCst);
        self.worker.bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        Bytes::from_owner(Counted {
            bytes,
            unread: self.clone(),
        })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Unread { worker, own, .. } = &self.unread;
        own.fetch_sub(self.bytes.len(), Ordering::SeqCst);
        worker.bytes.fetch_sub(self.bytes.len(), Ordering::SeqCst);
        let waiters = std::mem::take(&mut *worker.waiters.lock());
        waiters.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_its_last_slice_is_gone() {
        let worker = Arc::default();
        let (one, other) = (
            Unread::new(&worker, 10_000, 15_000),
            Unread::new(&worker, 10_000, 15_000),
        );
        let cx = Context::from_waker(Waker::noop());
        let first = one.count(Bytes::from(vec![1; 12_000]));
        assert!(!one.poll_room(&cx) && other.poll_room(&cx));
        let second = other.count(Bytes::from(vec![2; 5_000]));
        assert!(!other.poll_room(&cx), "over the worker's limit");
        let slice = first.slice(11_000..);
        drop(first);
        assert!(!one.poll_room(&cx) && !worker.waiters.lock().is_empty());
        drop(slice);
        assert!(one.poll_room(&cx) && other.poll_room(&cx));
        assert!(worker.waiters.lock().is_empty(), "all were woken");
        drop(second);
        assert_eq!(worker.bytes.load(Ordering::SeqCst), 0);
    }
}
