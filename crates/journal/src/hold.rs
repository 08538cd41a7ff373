//! Frames that others hold in memory until they are on disk here.
//!
//! While this is on, nothing that is not durable becomes visible before its frame, and every frame
//! before it, is *safe*: on this disk, or held by all of the holders that count. The log's frames
//! are kept as they were written, for whoever sends them to holders. Which holders count is noted
//! in the directory before they do ([`crate::HolderSet`]); `docs/decisions/0031-shards.md` says
//! why nothing that was acknowledged is lost.

use crate::Lsn;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A frame of the log as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFrame {
    /// Its number.
    pub lsn: Lsn,
    /// Headers of the segments that were begun for it, each without its padding.
    pub headers: Vec<Bytes>,
    /// Its header and payload, without padding.
    pub bytes: Bytes,
}

impl HeldFrame {
    /// Bytes that it takes in memory, about.
    pub fn size_bytes(&self) -> u64 {
        let headers: usize = self.headers.iter().map(Bytes::len).sum();
        (self.bytes.len() + headers) as u64 + FRAME_BYTES
    }
}

/// What a frame takes beside its bytes.
const FRAME_BYTES: u64 = 128;

/// Who counts, and how far they have the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    set: u64,
    held: Lsn,
}

/// Whether frames are kept, and whether anybody's holding them counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Frames are safe when they are on disk here.
    #[default]
    DiskOnly,
    /// Frames are kept for holders that do not count yet.
    Keeping,
    /// Frames are safe too when these have them.
    Counting(Counted),
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    frames: VecDeque<HeldFrame>,
    bytes: u64,
    /// Of segments that were begun, to go with the next frame.
    headers: Vec<Bytes>,
    written: Lsn,
    synced: Lsn,
    /// A frame that somebody waits for.
    waiting: Option<Lsn>,
}

impl State {
    fn is_safe(&self, lsn: Lsn) -> bool {
        let held = match self.phase {
            Phase::Counting(counted) => counted.held,
            Phase::DiskOnly | Phase::Keeping => 0,
        };
        lsn <= self.synced.max(held)
    }

    fn counts(&self) -> bool {
        matches!(self.phase, Phase::Counting(_))
    }

    fn drop_frames(&mut self) {
        self.frames.clear();
        self.headers.clear();
        self.bytes = 0;
    }
}

/// How long a wait for a frame took, in its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The frame is safe.
    Safe,
    /// Nobody's holding it counts: it has to be synced.
    DiskOnly,
    /// The time is over.
    NotYet,
}

/// What a holder gets next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextFrames {
    /// All up to here is on the server's disk: a holder may forget it, and need not have had it.
    pub synced: Lsn,
    /// Frames that follow what the holder has, or `synced`.
    pub frames: Vec<HeldFrame>,
}

/// What the log's writers and those who send its frames to holders share.
#[derive(Default)]
pub struct Hold {
    state: Mutex<State>,
    changed: Condvar,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state().fmt(f)
    }
}

impl Hold {
    /// Every change of it is a single step, so one that a panic left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is called when there is something for holders: a frame, or frames that they may
    /// forget. It must not block. The first one stays.
    pub fn set_waker(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(wake));
    }

    fn wake(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }

    /// A log that ends with `written`, and is on disk up to `synced`.
    pub(crate) fn begin(&self, written: Lsn, synced: Lsn) {
        let mut state = self.state();
        state.written = written;
        state.synced = synced;
    }

    /// A segment was begun.
    pub(crate) fn began_segment(&self, header: &[u8]) {
        let mut state = self.state();
        if state.phase != Phase::DiskOnly {
            state.headers.push(Bytes::copy_from_slice(header));
        }
    }

    /// A frame was written.
    pub(crate) fn wrote(&self, lsn: Lsn, bytes: &[u8]) {
        let mut state = self.state();
        state.written = lsn;
        if state.phase == Phase::DiskOnly {
            return;
        }
        let frame = HeldFrame {
            lsn,
            headers: std::mem::take(&mut state.headers),
            bytes: Bytes::copy_from_slice(bytes),
        };
        state.bytes += frame.size_bytes();
        state.frames.push_back(frame);
        drop(state);
        self.wake();
    }

    /// All up to there is on disk.
    pub(crate) fn note_synced(&self, synced: Lsn) {
        let mut state = self.state();
        state.synced = state.synced.max(synced);
        while state
            .frames
            .front()
            .is_some_and(|frame| frame.lsn <= synced)
        {
            if let Some(frame) = state.frames.pop_front() {
                state.bytes -= frame.size_bytes();
            }
        }
        drop(state);
        self.changed.notify_all();
        self.wake();
    }

    /// Keeps frames from the next one on. Nobody counts.
    pub(crate) fn keep(&self) -> Lsn {
        let mut state = self.state();
        state.drop_frames();
        state.phase = Phase::Keeping;
        drop(state);
        self.changed.notify_all();
        self.state().written
    }

    /// From here on a frame is safe when all of a set have it. `after` is the last frame before
    /// those that they are given: it is on disk.
    pub(crate) fn count(&self, set: u64, after: Lsn) {
        let mut state = self.state();
        if state.phase == Phase::Keeping {
            state.phase = Phase::Counting(Counted { set, held: after });
        }
        drop(state);
        self.changed.notify_all();
        self.wake();
    }

    /// From here on nobody counts, and no frames are kept: frames are safe when they are on disk.
    /// The caller sees to it that they get there.
    pub fn disk_only(&self) {
        let mut state = self.state();
        state.drop_frames();
        state.phase = Phase::DiskOnly;
        drop(state);
        self.changed.notify_all();
    }

    /// All of a set have the log up to there. Nothing if another set counts by now.
    pub fn held(&self, set: u64, lsn: Lsn) {
        let mut state = self.state();
        if let Phase::Counting(counted) = &mut state.phase
            && counted.set == set
            && counted.held < lsn
        {
            counted.held = lsn;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// What comes after `has` for a holder, up to about so many bytes.
    pub fn after(&self, has: Lsn, max_bytes: u64) -> NextFrames {
        let state = self.state();
        let from = state.frames.partition_point(|frame| frame.lsn <= has);
        let mut bytes = 0;
        let frames = state.frames.range(from..);
        let frames = frames.take_while(|frame| {
            let fits = bytes < max_bytes;
            bytes += frame.size_bytes();
            fits
        });
        NextFrames {
            synced: state.synced,
            frames: frames.cloned().collect(),
        }
    }

    /// The last frame that was written.
    pub fn written(&self) -> Lsn {
        self.state().written
    }

    /// Bytes of the frames that are kept.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Whether a frame is safe.
    pub fn is_safe(&self, lsn: Lsn) -> bool {
        self.state().is_safe(lsn)
    }

    /// Whether holders count now; if not, frames have to be synced to be safe.
    pub fn counts(&self) -> bool {
        self.state().counts()
    }

    /// Whether somebody waits for a frame that only a sync makes safe.
    pub(crate) fn wants_sync(&self) -> bool {
        let state = self.state();
        !state.counts() && state.waiting.is_some_and(|lsn| !state.is_safe(lsn))
    }

    /// Somebody waits for this frame from here on, or for none.
    pub(crate) fn set_waiting(&self, lsn: Option<Lsn>) {
        self.state().waiting = lsn;
    }

    /// Waits until a frame is safe, or has to be synced, but not for longer than `timeout`.
    pub(crate) fn wait(&self, lsn: Lsn, timeout: Duration) -> Waited {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            if state.is_safe(lsn) {
                return Waited::Safe;
            }
            if !state.counts() {
                return Waited::DiskOnly;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::NotYet;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until anything changes, but not for longer than `timeout`; true once a frame is safe.
    pub(crate) fn wait_safe(&self, lsn: Lsn, timeout: Duration) -> bool {
        let state = self.state();
        if state.is_safe(lsn) {
            return true;
        }
        let woken = self.changed.wait_timeout(state, timeout);
        woken.unwrap_or_else(PoisonError::into_inner).0.is_safe(lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsns(next: &NextFrames) -> Vec<Lsn> {
        next.frames.iter().map(|frame| frame.lsn).collect()
    }

    #[test]
    fn a_frame_is_safe_on_disk_or_when_those_who_count_have_it() {
        let hold = Hold::default();
        hold.begin(4, 4);
        hold.wrote(5, b"five");
        assert!(hold.is_safe(4) && !hold.is_safe(5) && !hold.counts());
        hold.set_waiting(Some(5));
        assert!(hold.wants_sync());
        // What was written before is not theirs.
        assert_eq!(hold.keep(), 5);
        hold.wrote(6, b"six");
        hold.held(1, 6);
        assert!(!hold.is_safe(6));
        hold.note_synced(5);
        hold.count(1, 5);
        assert!(hold.is_safe(5) && !hold.is_safe(6) && hold.counts());
        hold.held(2, 6);
        assert!(!hold.is_safe(6), "another set");
        hold.held(1, 6);
        assert!(hold.is_safe(6) && !hold.is_safe(7));
        // They are gone: what they had counts no more, what is on disk does.
        hold.disk_only();
        assert!(hold.is_safe(5) && !hold.is_safe(6));
        hold.held(1, 9);
        assert!(!hold.is_safe(6));
        hold.count(1, 6);
        assert!(!hold.counts(), "nothing is kept for them");
    }

    #[test]
    fn holders_get_what_is_not_on_disk_in_order_with_the_headers_of_segments() {
        let hold = Hold::default();
        hold.begin(0, 0);
        hold.began_segment(b"not kept");
        hold.wrote(1, b"a");
        hold.keep();
        hold.wrote(2, b"b");
        hold.began_segment(b"seven");
        hold.began_segment(b"eight");
        hold.wrote(3, b"c");
        hold.wrote(4, b"d");
        assert_eq!(lsns(&hold.after(1, 1 << 20)), [2, 3, 4]);
        assert_eq!(lsns(&hold.after(3, 1 << 20)), [4]);
        assert_eq!(lsns(&hold.after(1, 1)), [2]);
        assert_eq!(hold.after(2, 1).frames[0].headers, ["seven", "eight"]);
        hold.note_synced(3);
        let next = hold.after(1, 1 << 20);
        assert_eq!((next.synced, lsns(&next)), (3, vec![4]));
        let bytes = next.frames[0].size_bytes();
        assert_eq!(hold.bytes(), bytes);
        hold.disk_only();
        assert_eq!((hold.bytes(), hold.written()), (0, 4));
    }
}
