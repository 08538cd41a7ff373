//! Reads of the store in slices: each takes the store's lock for a moment, and others have
//! their turns in between.

use crate::store::{SLICE_KEYS, Store};
use engine::Error;
use engine::op::{Outcome, RangeOp, Reply, TxnOp};
use engine::pin::Strength;
use engine::range::RangeCursor;
use engine::read_txn::TxnCursor;

/// A read that may take several slices.
pub(crate) trait Sliced {
    /// Takes another slice of the store that it was opened in.
    ///
    /// # Errors
    /// Those of the read.
    fn step(&mut self, store: &Store) -> Result<(), Error>;

    /// Whether all has been read.
    fn is_done(&self) -> bool;

    /// Bytes of keys and values that its answer would have by now.
    fn bytes(&self) -> usize;

    /// From now on measures only: the answer will be too large to be made.
    fn measure_only(&mut self);

    /// What was read.
    fn finish(self) -> Outcome;
}

/// A range.
pub(crate) struct Read {
    pub(crate) cursor: RangeCursor,
}

impl Read {
    /// Opens a read and takes its first slice; short reads end there. See
    /// [`engine::Engine::range_open`] for `strength`.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`].
    pub(crate) fn open(store: &Store, op: RangeOp, strength: Strength) -> Result<Read, Error> {
        let cursor = store.lock().range_open(op, strength, SLICE_KEYS)?;
        Ok(Read { cursor })
    }
}

impl Sliced for Read {
    fn step(&mut self, store: &Store) -> Result<(), Error> {
        let engine = store.lock();
        let step = engine.range_step(&mut self.cursor, SLICE_KEYS);
        // The next slice may follow at once, and others wait.
        engine.unlock_fair();
        step.map(drop)
    }

    fn is_done(&self) -> bool {
        self.cursor.is_done()
    }

    fn bytes(&self) -> usize {
        self.cursor.bytes()
    }

    fn measure_only(&mut self) {
        self.cursor.measure_only();
    }

    fn finish(self) -> Outcome {
        Outcome {
            revision: self.cursor.header_revision,
            reply: self.cursor.finish_reply(),
        }
    }
}

/// A transaction that only reads.
pub(crate) struct ReadTxn {
    cursor: TxnCursor,
}

impl ReadTxn {
    /// Opens one and takes its first slice; short ones end there.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`].
    pub(crate) fn open(store: &Store, op: TxnOp) -> Result<ReadTxn, Error> {
        let mut cursor = {
            let engine = store.lock();
            let mut cursor = engine.read_txn_open(op);
            engine.read_txn_step(&mut cursor, SLICE_KEYS)?;
            cursor
        };
        cursor.settle();
        Ok(ReadTxn { cursor })
    }
}

impl Sliced for ReadTxn {
    fn step(&mut self, store: &Store) -> Result<(), Error> {
        let engine = store.lock();
        let step = engine.read_txn_step(&mut self.cursor, SLICE_KEYS);
        engine.unlock_fair();
        self.cursor.settle();
        step
    }

    fn is_done(&self) -> bool {
        self.cursor.is_done()
    }

    fn bytes(&self) -> usize {
        self.cursor.bytes()
    }

    fn measure_only(&mut self) {
        self.cursor.measure_only();
    }

    fn finish(self) -> Outcome {
        self.cursor.finish()
    }
}

/// Reads on what a write's answer still lacks.
///
/// The keys of ranges together become measured only when they exceed `max_bytes`.
///
/// # Errors
/// Those of a range; its pin is firm, so there are none but by a defect.
pub(crate) fn finish_reply(
    store: &Store,
    reply: &mut Reply,
    max_bytes: usize,
    mut between: impl FnMut(),
) -> Result<(), Error> {
    let mut bytes = 0;
    let mut result = Ok(());
    reply.unfinished(&mut |part| {
        let Reply::Unfinished(cursor) = std::mem::replace(part, Reply::Done) else {
            return;
        };
        let mut read = Read { cursor: *cursor };
        while result.is_ok() && !read.is_done() {
            between();
            result = read.step(store);
            if bytes + read.bytes() > max_bytes {
                read.measure_only();
            }
        }
        *part = read.cursor.finish_reply();
        bytes += part.range_bytes();
        if bytes > max_bytes {
            part.measure_only();
        }
    });
    result
}
