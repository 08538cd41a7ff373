//! Snapshots in etcd's format: all of the store as one file, streamed to a client.
//!
//! A thread of its own collects in slices, encodes and hashes, and gives way to writers in
//! between; it holds what is there already, not copies. It is a few pieces ahead of the
//! client at most: a slow one costs that thread and the memory of what is replaced
//! meanwhile, for as long as [`Transfer`] lets it; and one that goes away ends it.

use crate::encode::{int_len, nested_len, put_int, put_nested};
use crate::pace::Pace;
use crate::service::Service;
use crate::shared::Shared;
use crate::status;
use crate::store::SLICE_KEYS;
use crate::transfer::Transfer;
use bytes::BufMut;
use ledger::Account;
use parking_lot::Mutex;
use snapshot::{Encoder, Origin, StorageVersion, human_bytes};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use telemetry::GoDuration;
use threads::Panicked;
use tokio::sync::mpsc::{Receiver, Sender};
use wire::{Call, Frame, LocalFuture, Outbound, Status};

/// So many clients are sent a snapshot at once: each holds memory in proportion to the keys.
const SENT_AT_ONCE: usize = 4;
/// Bytes of the file in a message.
const PIECE_BYTES: usize = 64 << 10;
/// Messages ready before the client takes them.
const PIECES_AHEAD: usize = 8;

/// The etcd that the files are for.
const STORAGE_VERSION: StorageVersion = StorageVersion::V3_7;

/// Why there is no snapshot.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server stops, or nobody wants it any more.
    Stopped,
    /// It cannot be encoded.
    Encode(snapshot::Error),
}

/// The store as it is now, as an encoder of the file, and its revision. Takes its time: for
/// a background thread.
pub(crate) fn encoder(
    shared: &Arc<Shared>,
    pace: &mut Pace,
    unwanted: impl Fn() -> bool,
) -> Result<(Encoder, i64), Failure> {
    let store = &shared.store;
    let (mut cursor, head) = store.lock().export_open();
    while !store.lock().versions_step(&mut cursor, SLICE_KEYS) {
        cursor.settle();
        if unwanted() {
            return Err(Failure::Stopped);
        }
        pace.rest();
    }
    let versions = cursor.finish(&mut || pace.rest());
    pace.rest();
    let origin = Origin {
        member_id: shared.ids.member_id,
        raft_term: shared.ids.raft_term,
        raft_index: shared.log.committed_lsn(),
        storage_version: STORAGE_VERSION,
    };
    let encoder = Encoder::paced(&origin, &head, versions, &mut || pace.rest());
    Ok((encoder.map_err(Failure::Encode)?, head.revision))
}

/// The snapshots that are being sent.
#[derive(Debug)]
pub(crate) struct Sending {
    limit_bytes: u64,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    count: usize,
    held_bytes: u64,
}

impl Sending {
    /// All together may hold so many bytes, and one any number.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Sending {
            limit_bytes,
            now: Mutex::default(),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.now.lock().count
    }

    /// Bytes of keys and values that they hold at most: as much as was there when they began,
    /// if all of it is replaced meanwhile.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.now.lock().held_bytes
    }

    /// A place for one more, of about so many bytes; `None` if there are as many as may be, or if
    /// they hold too much.
    pub(crate) fn begin(self: &Arc<Self>, bytes: u64) -> Option<Place> {
        let mut now = self.now.lock();
        let fits = now.count == 0 || now.held_bytes.saturating_add(bytes) <= self.limit_bytes;
        if now.count == SENT_AT_ONCE || !fits {
            return None;
        }
        now.count += 1;
        now.held_bytes += bytes;
        Some(Place {
            of: self.clone(),
            bytes,
        })
    }
}

/// The place of one of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Sending>,
    bytes: u64,
}

impl Place {
    /// Says what it holds at most, now that it is known.
    fn holds(&mut self, bytes: u64) {
        let mut now = self.of.now.lock();
        now.held_bytes = now.held_bytes - self.bytes + bytes;
        self.bytes = bytes;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut now = self.of.now.lock();
        now.held_bytes -= self.bytes;
        now.count -= 1;
    }
}

impl Service {
    pub(crate) fn snapshot(
        self: &Rc<Self>,
        call: Call,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let bytes = shared.store.lock().sizes().data_bytes as u64;
            let Some(place) = shared.sending_snapshots.begin(bytes) else {
                shared.ledger.count_refused(Account::Snapshots);
                return Err(status::too_many_snapshots());
            };
            let (pieces, ready) = tokio::sync::mpsc::channel(PIECES_AHEAD);
            let at_end = pieces.clone();
            let job = shared.clone();
            let work = move || make(&job, place, &pieces);
            let ended = move |result: Result<(), Panicked>| {
                if result.is_err() {
                    // Without a word the client would take what it has for all.
                    let _ = at_end.blocking_send(Err(status::failed()));
                }
            };
            let thread =
                threads::spawn_job("send-snapshot", work, ended).map_err(|_| status::stopped())?;
            shared.lifecycle.keep(thread);
            send(call, ready, outbound).await
        })
    }
}

/// Hands the pieces on as the client takes them.
async fn send(
    call: Call,
    mut ready: Receiver<Result<Frame, Status>>,
    outbound: Outbound,
) -> Result<(), Status> {
    let closing = call.closing();
    let mut transfer = None;
    loop {
        let piece = tokio::select! {
            () = closing.wait() => return Err(status::stopped()),
            piece = ready.recv() => piece,
        };
        let Some(piece) = piece else { return Ok(()) };
        let sent = tokio::select! {
            () = closing.wait() => return Err(status::stopped()),
            sent = transfer
                .get_or_insert_with(Transfer::bounded)
                .send(&outbound, piece?) => sent,
        };
        if let Err(error) = sent {
            let (reason, remote) = (error.message.as_ref(), call.peer.address.as_str());
            tracing::warn!(
                reason,
                remote,
                "a database snapshot was not sent to its end"
            );
            return Err(error);
        }
    }
}

/// Makes all pieces; ends early when nobody takes them any more.
fn make(shared: &Arc<Shared>, mut place: Place, pieces: &Sender<Result<Frame, Status>>) {
    threads::fault_point("send-snapshot");
    match make_pieces(shared, &mut place, pieces) {
        Ok(()) => {}
        Err(Failure::Stopped) => {
            tracing::info!("the client left before it had all of the database snapshot");
        }
        Err(Failure::Encode(error)) => {
            tracing::error!(%error, "cannot make a database snapshot");
            // Nobody is told if nobody is there.
            let _ = pieces.blocking_send(Err(status::no_snapshot(&error)));
        }
    }
}

fn make_pieces(
    shared: &Arc<Shared>,
    place: &mut Place,
    pieces: &Sender<Result<Frame, Status>>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut pace = Pace::start();
    let (mut encoder, revision) = encoder(shared, &mut pace, || pieces.is_closed())?;
    let version = STORAGE_VERSION.to_string();
    let total = encoder.bytes();
    place.holds(total);
    tracing::info!(
        "total-bytes" = total,
        size = %human_bytes(total),
        "storage-version" = %version,
        revision,
        "sending database snapshot to client"
    );
    let send = |frame| {
        let sent = pieces.blocking_send(Ok(frame));
        sent.map_err(|_| Failure::Stopped)
    };
    let mut left = total;
    while let Some(piece) = encoder.next_chunk(PIECE_BYTES).map_err(Failure::Encode)? {
        left = left.saturating_sub(piece.len() as u64);
        let frame = response(left, &piece, &version);
        drop(piece);
        pace.rest();
        send(frame)?;
        pace.restart();
    }
    let hash = encoder.sha256();
    encoder.free(&mut || pace.rest());
    tracing::info!(
        "total-bytes" = total,
        "checksum-size" = hash.len() as u64,
        "sending database sha256 checksum to client"
    );
    send(response(0, &hash, &version))?;
    let took = started.elapsed();
    shared.metrics.backend_snapshot.observe(took);
    tracing::info!(
        "total-bytes" = total,
        size = %human_bytes(total),
        took = %GoDuration(took),
        "storage-version" = %version,
        revision,
        "successfully sent database snapshot to client"
    );
    Ok(())
}

/// `SnapshotResponse{remaining_bytes=2, blob=3, version=4}`; etcd fills no header in.
fn response(left: u64, blob: &[u8], version: &str) -> Frame {
    let len = int_len(left) + nested_len(blob.len()) + nested_len(version.len());
    Frame::encode(len, |b| {
        put_int(b, 2, left);
        put_nested(b, 3, blob.len());
        b.put_slice(blob);
        put_nested(b, 4, version.len());
        b.put_slice(version.as_bytes());
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_api::etcdserverpb::SnapshotResponse;
    use prost::Message;

    #[test]
    fn snapshots_have_a_number_and_a_size_and_one_may_be_larger() {
        let sending = Arc::new(Sending::new(100));
        let mut first = sending.begin(500).unwrap();
        assert!(sending.begin(1).is_none());
        first.holds(60);
        let second = sending.begin(40).unwrap();
        assert!(sending.begin(1).is_none());
        assert_eq!((sending.count(), sending.held_bytes()), (2, 100));
        drop((first, second));
        assert_eq!((sending.count(), sending.held_bytes()), (0, 0));
        let small: Vec<_> = (0..SENT_AT_ONCE)
            .map(|_| sending.begin(1).unwrap())
            .collect();
        assert!(sending.begin(1).is_none());
        drop(small);
        assert!(sending.begin(1).is_some());
    }

    #[test]
    fn a_piece_is_etcds_message() {
        for left in [0, 300] {
            let frame = response(left, b"blob", "3.7.0");
            let want = SnapshotResponse {
                header: None,
                remaining_bytes: left,
                blob: "blob".into(),
                version: "3.7.0".into(),
            };
            assert_eq!(SnapshotResponse::decode(frame.message()).unwrap(), want);
        }
    }
}
