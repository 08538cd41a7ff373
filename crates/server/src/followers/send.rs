//! The store as it is at a point of the stream, on its way to a follower: the journal's own
//! snapshot, with history down to the compact revision.

use super::feed::frame;
use crate::commit_log::AtPoint;
use crate::shared::Shared;
use crate::store::SLICE_KEYS;
use bytes::Bytes;
use copies::message::Said;
use journal::SnapshotEncoder;
use std::io::{self, Write};
use std::sync::Arc;
use threads::{Pace, Panicked};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use wire::Frame;

/// Bytes of the snapshot in a message.
const PIECE_BYTES: usize = 256 << 10;
/// Messages ready before the follower takes them.
const PIECES_AHEAD: usize = 8;

/// A piece of a snapshot, as it is sent.
pub(super) enum Piece {
    /// Others follow.
    Part(Frame),
    /// The snapshot is whole with this one.
    Last(Frame),
}

/// The pieces, each to be sent as the follower takes it. They end without a last one if the
/// snapshot cannot be made.
pub(super) fn begin(
    shared: &Arc<Shared>,
    place: backups::Place,
    at: AtPoint,
) -> io::Result<Receiver<Piece>> {
    let (pieces, ready) = channel(PIECES_AHEAD);
    let job = shared.clone();
    let work = move || {
        let _place = place;
        make(&job, at, pieces)
    };
    let ended = |result: Result<io::Result<()>, Panicked>| match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a follower was not sent its snapshot to the end"),
        // Said by the panic itself; the follower sees a snapshot without an end.
        Err(_) => {}
    };
    let thread = threads::spawn_job("send-copy", work, ended)?;
    shared.lifecycle.keep(thread);
    Ok(ready)
}

/// What is written goes out in pieces.
struct Pieces {
    to: Sender<Piece>,
    piece: Vec<u8>,
}

impl Pieces {
    fn send(&mut self, kind: fn(Frame) -> Piece) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        let sent = self.to.blocking_send(kind(frame(Said::Snapshot(piece))));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the follower is gone"))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.send(Piece::Part)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.send(Piece::Part)
    }
}

fn make(shared: &Arc<Shared>, mut at: AtPoint, to: Sender<Piece>) -> io::Result<()> {
    let out = Pieces {
        to,
        piece: Vec::new(),
    };
    let mut encoder = SnapshotEncoder::new(out, at.cursor.meta, at.point.position)?;
    for item in &at.head {
        encoder.push(item)?;
    }
    let mut keys = Vec::new();
    let mut pace = Pace::start();
    loop {
        if shared.stopping() {
            return Err(io::Error::other("the server stops"));
        }
        let done = shared
            .store
            .lock()
            .snapshot_step(&mut at.cursor, SLICE_KEYS, &mut keys);
        for key in keys.drain(..) {
            encoder.push(&key.into_item())?;
        }
        if done {
            break;
        }
        pace.rest();
    }
    drop(at.cursor);
    let mut out = encoder.finish()?;
    out.flush()?;
    // An empty piece says that this was all.
    out.send(Piece::Last)
}
