//! Watch answers. An event is encoded once a batch and copied into each watcher's frame.

use super::host::Sink;
use super::watchers::Watcher;
use crate::encode::{
    Ids, header_len, int_len, nested_len, put_header, put_int, put_kv, put_nested,
};
use bytes::{BufMut, Bytes, BytesMut};
use engine::history::Event;
use std::cell::OnceCell;
use std::sync::Arc;
use wire::{Frame, MAX_MESSAGE_BYTES, Refused};

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

/// What came of sending events to a watcher.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of them are in the stream's queue.
    All,
    /// The stream has no room for this revision and what comes after.
    Full(i64),
    /// The stream is gone.
    Closed,
    /// One revision makes an answer of so many bytes, more than gRPC can send.
    TooLarge(usize),
}

/// Some events, each encoded at most twice: with and without the former version.
#[derive(Debug)]
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

    /// The revision of event `i`.
    pub(super) fn revision(&self, i: u32) -> i64 {
        self.events[i as usize].revision.main
    }

    fn encoded(&self, i: u32, prev_kv: bool) -> &Bytes {
        let i = i as usize;
        self.encoded[i][usize::from(prev_kv)].get_or_init(|| event(&self.events[i], prev_kv))
    }

    /// Sends events to a watcher, in answers that hold whole revisions (or fragments, where
    /// asked for); `reached` is what the last one shows. Adds to `bytes` what was put together.
    pub(super) fn send(
        &self,
        to: &Recipient<'_, impl Sink>,
        indices: &[u32],
        reached: i64,
        bytes: &mut usize,
    ) -> Sent {
        let (w, sink) = (to.watcher, to.sink);
        let mut from = 0;
        while from < indices.len() {
            let mut to_index = from;
            let mut len = 0;
            let whole = |at: usize| {
                at == from || self.revision(indices[at]) != self.revision(indices[at - 1])
            };
            while to_index < indices.len() && (len < ANSWER_BYTES || !whole(to_index)) {
                len += nested_len(self.encoded(indices[to_index], w.prev_kv).len());
                to_index += 1;
            }
            let part = &indices[from..to_index];
            // An answer that is not the last shows the revision that it reaches.
            let last = part.last().map_or(reached, |&i| self.revision(i));
            let shown = if to_index == indices.len() {
                reached
            } else {
                last
            };
            let head = control(to.ids, shown, w.watch_id);
            let split = w.fragment && head.len() + len >= to.fragment_bytes;
            if !split && head.len() + len > MAX_MESSAGE_BYTES {
                return Sent::TooLarge(head.len() + len);
            }
            let full = Sent::Full(self.revision(indices[from]));
            // Nothing is put together that would be refused.
            if !split && sink.queued_bytes() > 0 && sink.queued_bytes() + len > sink.limit_bytes() {
                return full;
            }
            let events: Vec<&Bytes> = part.iter().map(|&i| self.encoded(i, w.prev_kv)).collect();
            *bytes += len;
            let frames = if split {
                fragments(head, &events, to.fragment_bytes)
            } else {
                vec![head.frame_with(&events)]
            };
            let mut frames = frames.into_iter();
            match frames.next().map(|first| sink.try_send(first)) {
                None | Some(Ok(())) => {}
                Some(Err(Refused::Full(_))) => return full,
                Some(Err(Refused::Closed)) => return Sent::Closed,
            }
            // The rest of a fragmented answer may not be separated from its beginning.
            for f in frames {
                sink.push(f);
            }
            from = to_index;
        }
        Sent::All
    }
}

/// Whom events are sent to.
pub(super) struct Recipient<'a, S> {
    pub(super) watcher: &'a Watcher,
    pub(super) sink: &'a S,
    pub(super) ids: &'a Ids,
    pub(super) fragment_bytes: usize,
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
