//! The tap: all records in the order in which they become visible, also those that take no
//! revision, for whoever follows.
//!
//! It is fed where records are ordered, while the log's end is held. Without a follower that is
//! one look at an empty list. A follower has a queue with a limit in bytes, and keeps nobody
//! waiting: if more comes than fits, it is dropped, and what it is told last is from where on
//! it knows nothing.

use crate::Lsn;
use crate::record::encoded_bytes_at_most;
use engine::record::Record;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a record was when it was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// On disk.
    Durable,
    /// In the log's file.
    Volatile,
}

/// Records of one frame, in order of visibility.
#[derive(Debug)]
pub struct Entry {
    /// Its place in the order of visibility, counted from when somebody followed: without gaps
    /// for whoever follows.
    pub sequence: u64,
    /// Their frame: in the order of writing, which is not this one.
    pub lsn: Lsn,
    /// The revision before the first of them.
    pub revision_before: i64,
    /// Their class.
    pub lane: Lane,
    /// The records.
    pub records: Vec<Record>,
    bytes: u64,
}

impl Entry {
    /// Bytes that its records take at most, encoded.
    pub fn encoded_bytes_at_most(&self) -> u64 {
        self.bytes
    }

    /// For tests of who follows.
    #[doc(hidden)]
    pub fn for_tests(
        sequence: u64,
        lsn: Lsn,
        revision_before: i64,
        lane: Lane,
        records: Vec<Record>,
    ) -> Self {
        Entry {
            sequence,
            lsn,
            revision_before,
            lane,
            records,
            bytes: 0,
        }
    }
}

/// From where on a follower knows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The frame of the first records that it was not given.
    pub lsn: Lsn,
    /// The revision before them.
    pub revision_before: i64,
}

/// What a follower is given next.
#[derive(Debug)]
pub enum Next {
    /// Records.
    Entry(Arc<Entry>),
    /// None came in the time given.
    Nothing,
    /// More came than its queue holds: from here on nothing follows.
    Missed(Missed),
    /// The journal was closed, and this was all.
    Closed,
}

/// How a queue goes on.
#[derive(Clone, Copy, Debug)]
enum Fed {
    Open,
    Missed(Missed),
    Closed,
}

#[derive(Debug)]
struct Waiting {
    entries: VecDeque<Arc<Entry>>,
    bytes: u64,
    fed: Fed,
}

#[derive(Debug)]
struct Queue {
    limit_bytes: u64,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    /// Every change of it is a single step, so one that a panic left is whole.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if it is full.
    fn push(&self, entry: &Arc<Entry>) -> bool {
        let mut waiting = self.waiting();
        let fits = waiting.bytes + entry.bytes <= self.limit_bytes;
        if fits {
            waiting.bytes += entry.bytes;
            waiting.entries.push_back(entry.clone());
        } else {
            waiting.fed = Fed::Missed(Missed {
                lsn: entry.lsn,
                revision_before: entry.revision_before,
            });
        }
        self.changed.notify_one();
        fits
    }
}

/// One who follows. Dropped, it costs nothing from the next records on.
#[derive(Debug)]
pub struct Follower {
    queue: Arc<Queue>,
    after: u64,
}

impl Follower {
    /// The [`Entry::sequence`] before the first that it is given.
    pub fn after(&self) -> u64 {
        self.after
    }

    /// Bytes of records that wait for it.
    pub fn waiting_bytes(&self) -> u64 {
        self.queue.waiting().bytes
    }

    /// What comes next, waiting for it at most `timeout`.
    pub fn next(&self, timeout: Duration) -> Next {
        let deadline = Instant::now() + timeout;
        let mut waiting = self.queue.waiting();
        loop {
            if let Some(entry) = waiting.entries.pop_front() {
                waiting.bytes -= entry.bytes;
                return Next::Entry(entry);
            }
            match waiting.fed {
                Fed::Open => {}
                Fed::Missed(missed) => return Next::Missed(missed),
                Fed::Closed => return Next::Closed,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            let woken = self.queue.changed.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// All who follow.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    queues: Vec<Arc<Queue>>,
    /// Entries given to anybody so far.
    fed: u64,
}

impl Tap {
    pub(crate) fn follow(&mut self, limit_bytes: u64) -> Follower {
        let queue = Arc::new(Queue {
            limit_bytes,
            waiting: Mutex::new(Waiting {
                entries: VecDeque::new(),
                bytes: 0,
                fed: Fed::Open,
            }),
            changed: Condvar::new(),
        });
        self.queues.push(queue.clone());
        Follower {
            queue,
            after: self.fed,
        }
    }

    /// The last entry's [`Entry::sequence`].
    pub(crate) fn fed(&self) -> u64 {
        self.fed
    }

    /// Records were ordered.
    pub(crate) fn feed(
        &mut self,
        (lsn, revision_before): (Lsn, i64),
        lane: Lane,
        records: &[Record],
    ) {
        if self.queues.is_empty() {
            return;
        }
        self.fed += 1;
        let entry = Arc::new(Entry {
            sequence: self.fed,
            lsn,
            revision_before,
            lane,
            records: records.to_vec(),
            bytes: records.iter().map(encoded_bytes_at_most).sum(),
        });
        // Whose follower is gone has no other holder.
        self.queues
            .retain(|queue| Arc::strong_count(queue) > 1 && queue.push(&entry));
    }
}

impl Tap {
    /// Nothing more becomes visible.
    pub(crate) fn close(&mut self) {
        for queue in self.queues.drain(..) {
            queue.waiting().fed = Fed::Closed;
            queue.changed.notify_one();
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.close();
    }
}
