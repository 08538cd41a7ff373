//! Compaction. The compact revision moves at once; what it makes unreachable is freed in
//! slices afterwards, never below a pinned reader.

use crate::Engine;

/// A compaction's progress.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Events at the front of the ring that were visited but stay (those at the target).
    visited: usize,
    /// The target that `visited` belongs to.
    target: i64,
}

impl<W> Engine<W> {
    /// Whether there is something left to free that no pin protects.
    pub fn compaction_due(&self) -> bool {
        let target = self.compaction_target();
        let visited = if self.compaction.target == target {
            self.compaction.visited
        } else {
            0
        };
        self.history
            .get(visited)
            .is_some_and(|e| e.revision.main <= target)
    }

    fn compaction_target(&self) -> i64 {
        let pinned = self.pins.lowest().unwrap_or(i64::MAX);
        self.compact_revision.min(pinned)
    }

    /// Frees what up to `max_events` events of compacted history hold. Returns the number
    /// of versions that went.
    pub fn compact_step(&mut self, max_events: usize) -> usize {
        let target = self.compaction_target();
        if self.compaction.target != target {
            self.compaction = Progress { visited: 0, target };
        }
        let mut removed = 0;
        for _ in 0..max_events {
            let Some(event) = self.history.get(self.compaction.visited) else {
                break;
            };
            let main = event.revision.main;
            if main > target {
                break;
            }
            let key = event.key.clone();
            // An event at the target may still be the start of a watch.
            if main < target {
                self.history.pop_front();
            } else {
                self.compaction.visited += 1;
            }
            // Only as far as this event: what a later one makes unreachable goes with that
            // one, so that a key with many versions is not freed in one go.
            removed += self.index.forget(&key, target.min(main + 1));
        }
        removed
    }
}
