//! Watch answers. An event is encoded once a batch and copied into each watcher's frame.

use super::hub::Watcher;
use crate::encode::{
    Ids, header_len, int_len, nested_len, put_header, put_int, put_kv, put_nested,
};
use crate::shared::Shared;
use bytes::{BufMut, Bytes, BytesMut};
use engine::history::Event;
use std::cell::OnceCell;
use std::sync::Arc;
use wire::{Frame, Outbound};

/// One answer holds at most about so many bytes of events, unless one revision has more.
const ANSWER_BYTES: usize = 256 << 10;

/// `WatchResponse{header=1, watch_id=2, created=3, canceled=4, compact_revision=5,
/// cancel_reason=6, fragment=7, events=11}` without events.
pub(super) struct Control<'a> {
    ids: &'a Ids,
    revision: i64,
    watch_id: i64,
    created: bool,
    canceled: bool,
    compact_revision: i64,
    reason: &'a str,
    fragment: bool,
}

/// Begins an answer.
pub(super) fn control(ids: &Ids, revision: i64, watch_id: i64) -> Control<'_> {
    Control {
        ids,
        revision,
        watch_id,
        created: false,
        canceled: false,
        compact_revision: 0,
        reason: "",
        fragment: false,
    }
}

impl<'a> Control<'a> {
    pub(super) fn created(mut self) -> Self {
        self.created = true;
        self
    }

    pub(super) fn canceled(mut self, reason: &'a str) -> Self {
        self.canceled = true;
        self.reason = reason;
        self
    }

    pub(super) fn compact_revision(mut self, revision: i64) -> Self {
        self.compact_revision = revision;
        self
    }

    fn len(&self) -> usize {
        nested_len(header_len(Some(self.ids), self.revision))
            + int_len(self.watch_id as u64)
            + int_len(self.created.into())
            + int_len(self.canceled.into())
            + int_len(self.compact_revision as u64)
            + if self.reason.is_empty() {
                0
            } else {
                nested_len(self.reason.len())
            }
            + int_len(self.fragment.into())
    }

    fn put(&self, buf: &mut impl BufMut) {
        put_header(buf, Some(self.ids), self.revision);
        put_int(buf, 2, self.watch_id as u64);
        put_int(buf, 3, self.created.into());
        put_int(buf, 4, self.canceled.into());
        put_int(buf, 5, self.compact_revision as u64);
        if !self.reason.is_empty() {
            put_nested(buf, 6, self.reason.len());
            buf.put_slice(self.reason.as_bytes());
        }
        put_int(buf, 7, self.fragment.into());
    }

    pub(super) fn frame(&self) -> Frame {
        Frame::encode(self.len(), |b| self.put(b))
    }

    fn frame_with(&self, events: &[&Bytes]) -> Frame {
        let len = events.iter().map(|e| nested_len(e.len())).sum::<usize>();
        Frame::encode(self.len() + len, |b| {
            self.put(b);
            for e in events {
                put_nested(b, 11, e.len());
                b.put_slice(e);
            }
        })
    }
}

/// Some events, each encoded at most twice: with and without the former version.
pub(super) struct Batch {
    events: Vec<Arc<Event>>,
    encoded: Vec<[OnceCell<Bytes>; 2]>,
}

impl Batch {
    pub(super) fn new(events: Vec<Arc<Event>>) -> Self {
        let encoded = events.iter().map(|_| Default::default()).collect();
        Batch { events, encoded }
    }

    pub(super) fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    fn encoded(&self, i: usize, prev_kv: bool) -> &Bytes {
        self.encoded[i][usize::from(prev_kv)].get_or_init(|| event(&self.events[i], prev_kv))
    }

    /// Sends events to a watcher, in answers that hold whole revisions (or fragments, where
    /// asked for). `Err` is the first revision that found no room.
    pub(super) fn send(
        &self,
        shared: &Shared,
        w: &Watcher,
        indices: &[usize],
        revision: i64,
        outbound: &Outbound,
    ) -> Result<(), i64> {
        let main = |i: usize| self.events[indices[i]].revision.main;
        let mut from = 0;
        while from < indices.len() {
            let mut to = from;
            let mut bytes = 0;
            while to < indices.len() && (bytes < ANSWER_BYTES || main(to) == main(to - 1)) {
                bytes += self.encoded(indices[to], w.prev_kv).len();
                to += 1;
            }
            let events: Vec<&Bytes> = indices[from..to]
                .iter()
                .map(|&i| self.encoded(i, w.prev_kv))
                .collect();
            // An answer that is not the last shows the revision that it reaches.
            let shown = if to == indices.len() {
                revision
            } else {
                main(to - 1)
            };
            let head = control(&shared.ids, shown, w.watch_id);
            let frames = if w.fragment && head.len() + bytes >= shared.fragment_bytes {
                fragments(head, &events, shared.fragment_bytes)
            } else {
                vec![head.frame_with(&events)]
            };
            let mut frames = frames.into_iter();
            if let Some(first) = frames.next() {
                outbound.try_send(first).map_err(|_| main(from))?;
            }
            // The rest of a fragmented answer may not be separated from its beginning.
            for f in frames {
                outbound.push(f);
            }
            from = to;
        }
        Ok(())
    }
}

/// Splits an answer as etcd does: each part below the limit, or of one event.
fn fragments(mut head: Control<'_>, events: &[&Bytes], limit_bytes: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut from = 0;
    while from < events.len() {
        let mut bytes = head.len();
        let mut to = from;
        while to < events.len() {
            bytes += nested_len(events[to].len());
            if to > from && bytes >= limit_bytes {
                break;
            }
            to += 1;
        }
        head.fragment = to < events.len();
        frames.push(head.frame_with(&events[from..to]));
        from = to;
    }
    frames
}

/// `mvccpb.Event{type=1, kv=2, prev_kv=3}`.
fn event(e: &Event, prev_kv: bool) -> Bytes {
    let mut buf = BytesMut::with_capacity(e.key.len() + 64);
    match &e.tail {
        Some(tail) => put_kv(&mut buf, 2, &e.key, tail),
        None => {
            // A delete shows its key and the revision (mod_revision, field 3).
            put_int(&mut buf, 1, 1);
            let mut tail = BytesMut::with_capacity(11);
            put_int(&mut tail, 3, e.revision.main as u64);
            put_kv(&mut buf, 2, &e.key, &tail);
        }
    }
    if let (true, Some(prev)) = (prev_kv, &e.prev) {
        put_kv(&mut buf, 3, &e.key, prev);
    }
    buf.freeze()
}
