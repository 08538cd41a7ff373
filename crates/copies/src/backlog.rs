//! What a server keeps of the stream for all who follow: the newest of it, encoded once, up to a
//! limit. Who is slower than that is told that it missed something, and costs nothing more.

use std::collections::VecDeque;

/// What the stream has come to at some place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    sequence: u64,
    records: u64,
    bytes: u64,
}

/// Entries that are sent together.
#[derive(Clone, Debug)]
struct Chunk<F> {
    before: Total,
    last: u64,
    bytes: u64,
    at_ms: u64,
    frame: F,
}

/// What a follower that has the stream up to some entry gets next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a, F> {
    /// These entries, of which the last is `last`. The first follows what it has, or it has the
    /// first ones already.
    Entries {
        /// The entries.
        frame: &'a F,
        /// The last of them.
        last: u64,
    },
    /// Nothing yet.
    Nothing,
    /// What it would need is not kept any more, or never came.
    Missed,
}

/// How far somebody is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Records that it does not have.
    pub records: u64,
    /// Their bytes, encoded.
    pub bytes: u64,
    /// For how long the oldest of them has been there, in milliseconds.
    pub ms: u64,
}

/// The newest entries of a stream. `F` is what is sent.
#[derive(Debug)]
pub struct Backlog<F> {
    limit_bytes: u64,
    chunk_bytes: u64,
    chunks: VecDeque<Chunk<F>>,
    held_bytes: u64,
    total: Total,
}

impl<F> Backlog<F> {
    /// An empty one of a stream whose first entry comes after `after`. It keeps `limit_bytes` at
    /// most, or one chunk if that is longer; a chunk takes `chunk_bytes` beyond what is sent of it.
    pub fn new(after: u64, limit_bytes: u64, chunk_bytes: u64) -> Self {
        Backlog {
            limit_bytes,
            chunk_bytes,
            chunks: VecDeque::new(),
            held_bytes: 0,
            total: Total {
                sequence: after,
                ..Total::default()
            },
        }
    }

    /// The next entries, up to `last`, with so many records, at a time.
    pub fn push(&mut self, last: u64, records: u64, bytes: u64, at_ms: u64, frame: F) {
        debug_assert!(last > self.total.sequence);
        self.chunks.push_back(Chunk {
            before: self.total,
            last,
            bytes,
            at_ms,
            frame,
        });
        self.total = Total {
            sequence: last,
            records: self.total.records + records,
            bytes: self.total.bytes + bytes,
        };
        self.held_bytes += bytes + self.chunk_bytes;
        while self.held_bytes > self.limit_bytes && self.chunks.len() > 1 {
            if let Some(oldest) = self.chunks.pop_front() {
                self.held_bytes -= oldest.bytes + self.chunk_bytes;
            }
        }
    }

    /// The last entry.
    pub fn sequence(&self) -> u64 {
        self.total.sequence
    }

    /// Bytes that are kept, with what chunks take themselves.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// What comes after entry `has`.
    pub fn after(&self, has: u64) -> Next<'_, F> {
        if has == self.total.sequence {
            return Next::Nothing;
        }
        match self.chunk_after(has) {
            Some(chunk) if chunk.before.sequence <= has => Next::Entries {
                frame: &chunk.frame,
                last: chunk.last,
            },
            _ => Next::Missed,
        }
    }

    /// Whether a follower that has the stream up to `has` can go on from there.
    pub fn covers(&self, has: u64) -> bool {
        !matches!(self.after(has), Next::Missed)
    }

    /// How far one is behind that has the stream up to `has`. What is not kept any more counts as
    /// far as the oldest that is.
    pub fn lag(&self, has: u64, now_ms: u64) -> Lag {
        if has >= self.total.sequence {
            return Lag::default();
        }
        self.chunk_after(has)
            .map_or_else(Lag::default, |chunk| Lag {
                records: self.total.records - chunk.before.records,
                bytes: self.total.bytes - chunk.before.bytes,
                ms: now_ms.saturating_sub(chunk.at_ms),
            })
    }

    /// The first chunk with an entry after `has`.
    fn chunk_after(&self, has: u64) -> Option<&Chunk<F>> {
        let at = self.chunks.partition_point(|chunk| chunk.last <= has);
        self.chunks.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(last: u64) -> Next<'static, u64> {
        let frame = Box::leak(Box::new(last));
        Next::Entries { frame, last }
    }

    #[test]
    fn everybody_gets_the_same_entries_until_they_are_too_far_behind() {
        let mut backlog = Backlog::new(10, 100, 0);
        assert_eq!(backlog.after(10), Next::Nothing);
        assert_eq!(backlog.after(9), Next::Missed);
        // Of another stream, or from the future.
        assert_eq!(backlog.after(11), Next::Missed);
        backlog.push(12, 3, 40, 1000, 12);
        backlog.push(13, 1, 40, 1010, 13);
        assert_eq!(backlog.after(10), entries(12));
        // It has the first of the two.
        assert_eq!(backlog.after(11), entries(12));
        assert_eq!(backlog.after(12), entries(13));
        assert_eq!(backlog.after(13), Next::Nothing);
        backlog.push(14, 1, 40, 1020, 14);
        assert_eq!(backlog.held_bytes(), 80);
        assert_eq!(backlog.after(11), Next::Missed);
        assert_eq!(backlog.after(12), entries(13));
        assert!(backlog.covers(12) && !backlog.covers(11) && !backlog.covers(15));
        // One that is longer than the limit is kept alone.
        backlog.push(15, 1, 1000, 1030, 15);
        assert_eq!((backlog.held_bytes(), backlog.sequence()), (1000, 15));
        assert_eq!(backlog.after(14), entries(15));
    }

    /// Otherwise many small entries would take several times the limit.
    #[test]
    fn chunks_count_with_what_they_take_themselves() {
        let mut backlog = Backlog::new(0, 1000, 90);
        for entry in 1..=50 {
            backlog.push(entry, 1, 10, 0, ());
        }
        assert_eq!((backlog.held_bytes(), backlog.chunks.len()), (1000, 10));
        assert_eq!(backlog.lag(40, 0).bytes, 100);
    }

    #[test]
    fn lag_is_told_in_records_bytes_and_time() {
        let mut backlog = Backlog::new(0, 1000, 0);
        backlog.push(2, 30, 100, 1000, ());
        backlog.push(3, 5, 10, 1500, ());
        let lag = |has| {
            let Lag { records, bytes, ms } = backlog.lag(has, 2000);
            (records, bytes, ms)
        };
        assert_eq!(lag(0), (35, 110, 1000));
        assert_eq!(lag(2), (5, 10, 500));
        assert_eq!(lag(3), (0, 0, 0));
        assert_eq!(lag(9), (0, 0, 0));
    }
}
