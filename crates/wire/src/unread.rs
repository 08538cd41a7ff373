//! How much memory answers take that clients have not read.
//!
//! A request of 50 bytes can ask for an answer of 100 MB, and nobody has to read it. So a
//! connection with much unread is not asked for more: its further calls wait until it has
//! read, and no other connection notices.

use std::future::Future;
use std::pin::Pin;
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
    waiters: Mutex<Waiters>,
}

/// Calls that wait, each with its connection.
#[derive(Debug, Default)]
struct Waiters {
    entries: Vec<Option<(Arc<AtomicUsize>, Waker)>>,
    free: Vec<usize>,
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
    pub fn room(&self) -> Room {
        Room {
            unread: self.clone(),
            key: None,
        }
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
        let before = worker.bytes.fetch_sub(self.bytes.len(), Ordering::SeqCst);
        let limit = self.unread.worker_limit_bytes;
        // Room for all, or for this connection; who has none is not woken for nothing.
        let all = before >= limit && before - self.bytes.len() < limit;
        if !all && !self.unread.has_room() {
            return;
        }
        let waiters = worker.waiters.lock();
        for (waiter, waker) in waiters.entries.iter().flatten() {
            if all || Arc::ptr_eq(waiter, own) {
                waker.wake_by_ref();
            }
        }
    }
}

/// Waits for room for another answer: see [`Unread::room`].
#[derive(Debug)]
pub struct Room {
    unread: Unread,
    key: Option<usize>,
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.unread.has_room() {
            return Poll::Ready(());
        }
        let known = self.key;
        let key = {
            let mut guard = self.unread.worker.waiters.lock();
            let Waiters { entries, free } = &mut *guard;
            let key = known.or_else(|| free.pop()).unwrap_or_else(|| {
                entries.push(None);
                entries.len() - 1
            });
            match &mut entries[key] {
                Some((_, waker)) => waker.clone_from(cx.waker()),
                entry => *entry = Some((self.unread.own.clone(), cx.waker().clone())),
            }
            key
        };
        self.key = Some(key);
        // Everything may have been read in between.
        match self.unread.has_room() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mut waiters = self.unread.worker.waiters.lock();
            waiters.entries[key] = None;
            waiters.free.push(key);
        }
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
        let first = one.count(Bytes::from(vec![1; 12_000]));
        assert!(!one.has_room() && other.has_room());
        let second = other.count(Bytes::from(vec![2; 5_000]));
        assert!(!other.has_room(), "over the worker's limit");
        let slice = first.slice(11_000..);
        drop(first);
        assert!(!one.has_room());
        drop(slice);
        assert!(one.has_room() && other.has_room());
        drop(second);
        assert_eq!(worker.bytes.load(Ordering::SeqCst), 0);
    }

    /// A waker that counts.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Woken {
        fn polls(self: &Arc<Self>, room: &mut Room) -> bool {
            let waker = Waker::from(self.clone());
            Pin::new(room)
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
        }

        fn times(&self) -> usize {
            self.0.swap(0, Ordering::SeqCst)
        }
    }

    #[test]
    fn who_waits_is_woken_when_there_is_room_and_not_before() {
        let worker = Arc::default();
        let (one, other) = (
            Unread::new(&worker, 10_000, 30_000),
            Unread::new(&worker, 10_000, 30_000),
        );
        let (of_one, of_other) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        let large = |unread: &Unread, bytes| unread.count(Bytes::from(vec![0; bytes]));
        let (a, b) = (large(&one, 8_000), large(&one, 6_000));
        let c = large(&other, 12_000);
        let (mut waits, mut others) = (one.room(), other.room());
        assert!(!of_one.polls(&mut waits) && !of_one.polls(&mut waits));
        assert!(!of_other.polls(&mut others));
        drop(b);
        assert_eq!((of_one.times(), of_other.times()), (1, 0));
        assert!(of_one.polls(&mut waits));
        drop(waits);
        // One that has gone is not woken, and its place is used again.
        drop((a, one.room()));
        assert_eq!((of_one.times(), of_other.times()), (0, 0));
        drop(c);
        assert_eq!((of_one.times(), of_other.times()), (0, 1));
        assert!(of_other.polls(&mut others));
        // Over the limit of all, who has little unread waits, too, and is woken when others read.
        let (small, _much) = (large(&one, 5_000), large(&other, 9_000));
        let most = large(&other, 18_000);
        let mut waits = one.room();
        assert!(!of_one.polls(&mut waits));
        drop(most);
        assert_eq!(of_one.times(), 1);
        assert!(of_one.polls(&mut waits));
        drop((small, waits, others));
        let waiters = worker.waiters.lock();
        assert!(waiters.entries.iter().all(Option::is_none));
        assert_eq!(waiters.entries.len(), 2);
    }
}
