//! What clients saw of a store, and whether a store that keeps its promises can have
//! shown it.
//!
//! Clients ([`client`]) note when they asked and when they were answered; an observer
//! ([`observer`]) watches everything from the first revision on. Afterwards [`check`]
//! looks for a contradiction. Because every answer names its revision, the order in which
//! things happened is known, and the check is linear in time: it replays all of it, and
//! looks whether the order of revisions agrees with the clock.

pub mod check;
pub mod client;
pub mod observer;
pub mod world;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Put a value that nobody else puts.
    Put {
        /// The value.
        value: String,
        /// The lease attached, 0 for none.
        lease: i64,
    },
    /// Put, if the key's mod revision is `expected` (0: if it does not exist).
    Cas {
        /// The mod revision expected.
        expected: i64,
        /// The value.
        value: String,
    },
    /// Delete the key.
    Delete,
    /// Read the key.
    Read,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It happened, at the answer's revision; or, a delete of what does not exist and a
    /// failed comparison, did not have to.
    Done {
        /// The revision in the answer's header.
        revision: i64,
        /// Whether anything was changed.
        changed: bool,
        /// Value and mod revision that a read, or a failed comparison, found.
        found: Option<(String, i64)>,
    },
    /// Refused: nothing happened.
    Refused,
    /// No answer, or one that does not tell.
    Unknown,
}

/// One operation on one key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// What was asked.
    pub asked: Asked,
    /// What was answered.
    pub answer: Answer,
    /// When it was asked, in microseconds.
    pub from_us: u64,
    /// When the answer, or the error, came.
    pub to_us: u64,
}

/// A server's life as seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// When it was known to be up.
    pub at_us: u64,
    /// When the one before was known to be dead.
    pub down_us: u64,
    /// Its first revision.
    pub revision: i64,
}

/// All that was seen, shared by those who see.
#[derive(Debug, Clone)]
pub struct Recorder {
    began: Instant,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            entries: Arc::default(),
        }
    }
}

impl Recorder {
    /// The time now, in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an operation that has ended.
    pub fn note(&self, entry: Entry) {
        self.lock().push(entry);
    }

    /// All operations so far.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    /// The highest revision that anybody was told.
    #[must_use]
    pub fn highest(&self) -> i64 {
        let told = |entry: &Entry| match entry.answer {
            Answer::Done { revision, .. } => revision,
            _ => 0,
        };
        self.lock().iter().map(told).max().unwrap_or(0)
    }
}
