//! A snapshot as a stream to a client: etcd's `Maintenance.Snapshot`.
//!
//! The thread that makes it is a few pieces ahead of the client at most: a slow one costs that
//! thread and the memory of what is replaced meanwhile, for as long as [`Transfer`] lets it; and
//! one that goes away ends it.

use crate::{Failure, STORAGE_VERSION, Source, encoder};
use etcd_api::etcdserverpb::SnapshotResponse;
use parking_lot::Mutex;
use prost::Message;
use snapshot::human_bytes;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use telemetry::GoDuration;
use threads::{Pace, Panicked};
use tokio::sync::mpsc::{Receiver, Sender};
use wire::{Call, Frame, Outbound, Slow, Transfer};

/// So many clients are sent a snapshot at once: each holds memory in proportion to the keys.
const SENT_AT_ONCE: usize = 4;
/// Bytes of the file in a message.
const PIECE_BYTES: usize = 64 << 10;
/// Messages ready before the client takes them.
const PIECES_AHEAD: usize = 8;

/// Why a client did not get all of a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The process ends, or the client is gone.
    #[error("the server stops, or the client is gone")]
    Stopped,
    /// The client takes too little.
    #[error(transparent)]
    Slow(#[from] Slow),
    /// The store cannot be written in etcd's format.
    #[error("cannot make a snapshot: {0}")]
    Encode(#[from] snapshot::Error),
    /// The thread that made it panicked.
    #[error("a bug in the server; the panic is in its log")]
    Panicked,
}

/// As many are sent as may be, or they hold too much.
#[derive(Debug, thiserror::Error)]
#[error("as many snapshots as allowed are being sent already; try again when one is done")]
pub struct NoPlace;

/// The snapshots that are being sent.
#[derive(Debug)]
pub struct Sending {
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
    pub fn new(limit_bytes: u64) -> Self {
        Sending {
            limit_bytes,
            now: Mutex::default(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.now.lock().count
    }

    /// Bytes of keys and values that they hold at most: as much as was there when they began,
    /// if all of it is replaced meanwhile.
    pub fn held_bytes(&self) -> u64 {
        self.now.lock().held_bytes
    }

    /// A place for one more, of about so many bytes.
    ///
    /// # Errors
    /// There are as many as may be, or they hold too much.
    pub fn begin(self: &Arc<Self>, bytes: u64) -> Result<Place, NoPlace> {
        let mut now = self.now.lock();
        let fits = now.count == 0 || now.held_bytes.saturating_add(bytes) <= self.limit_bytes;
        if now.count == SENT_AT_ONCE || !fits {
            return Err(NoPlace);
        }
        now.count += 1;
        now.held_bytes += bytes;
        Ok(Place {
            of: self.clone(),
            bytes,
        })
    }
}

/// The place of one of them, until it is dropped.
#[derive(Debug)]
pub struct Place {
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

/// Sends a snapshot of the store as it is now. `keep` gets the thread that makes it; `took` is told
/// how long a whole one took.
///
/// # Errors
/// [`SendError`]: the client has no whole one then, and no SHA-256 that says so.
pub async fn send(
    source: Arc<dyn Source>,
    place: Place,
    call: Call,
    outbound: Outbound,
    keep: impl FnOnce(JoinHandle<()>),
    took: impl Fn(Duration) + Send + 'static,
) -> Result<(), SendError> {
    let (pieces, ready) = tokio::sync::mpsc::channel(PIECES_AHEAD);
    let at_end = pieces.clone();
    let work = move || make(&*source, place, &pieces, took);
    let ended = move |result: Result<(), Panicked>| {
        if result.is_err() {
            // Without a word the client would take what it has for all.
            let _ = at_end.blocking_send(Err(SendError::Panicked));
        }
    };
    let thread =
        threads::spawn_job("send-snapshot", work, ended).map_err(|_| SendError::Stopped)?;
    keep(thread);
    hand_on(call, ready, outbound).await
}

/// Hands the pieces on as the client takes them.
async fn hand_on(
    call: Call,
    mut ready: Receiver<Result<Frame, SendError>>,
    outbound: Outbound,
) -> Result<(), SendError> {
    let closing = call.closing();
    let mut transfer = None;
    loop {
        let piece = tokio::select! {
            () = closing.wait() => return Err(SendError::Stopped),
            piece = ready.recv() => piece,
        };
        let Some(piece) = piece else { return Ok(()) };
        let sent = tokio::select! {
            () = closing.wait() => return Err(SendError::Stopped),
            sent = transfer
                .get_or_insert_with(Transfer::bounded)
                .send(&outbound, piece?) => sent.map_err(SendError::from),
        };
        if let Err(error) = sent {
            tracing::warn!(
                reason = %error,
                remote = call.peer.address.as_str(),
                "a database snapshot was not sent to its end"
            );
            return Err(error);
        }
    }
}

/// Makes all pieces; ends early when nobody takes them any more.
fn make(
    source: &dyn Source,
    mut place: Place,
    pieces: &Sender<Result<Frame, SendError>>,
    took: impl Fn(Duration),
) {
    threads::fault_point("send-snapshot");
    match make_pieces(source, &mut place, pieces) {
        Ok(whole_took) => took(whole_took),
        Err(Failure::Stopped) => {
            tracing::info!("the client left before it had all of the database snapshot");
        }
        Err(Failure::Encode(error)) => {
            tracing::error!(%error, "cannot make a database snapshot");
            // Nobody is told if nobody is there.
            let _ = pieces.blocking_send(Err(SendError::Encode(error)));
        }
    }
}

fn make_pieces(
    source: &dyn Source,
    place: &mut Place,
    pieces: &Sender<Result<Frame, SendError>>,
) -> Result<Duration, Failure> {
    let started = Instant::now();
    let mut pace = Pace::start();
    let (mut encoder, revision) = encoder(source, &mut pace, || pieces.is_closed())?;
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
        let frame = response(left, piece, &version);
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
    send(response(0, hash.to_vec().into(), &version))?;
    let took = started.elapsed();
    tracing::info!(
        "total-bytes" = total,
        size = %human_bytes(total),
        took = %GoDuration(took),
        "storage-version" = %version,
        revision,
        "successfully sent database snapshot to client"
    );
    Ok(took)
}

/// etcd fills no header in.
fn response(left: u64, blob: bytes::Bytes, version: &str) -> Frame {
    let message = SnapshotResponse {
        header: None,
        remaining_bytes: left,
        blob,
        version: version.to_owned(),
    };
    Frame::encode(message.encoded_len(), |b| message.encode_raw(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_have_a_number_and_a_size_and_one_may_be_larger() {
        let sending = Arc::new(Sending::new(100));
        let mut first = sending.begin(500).unwrap();
        assert!(sending.begin(1).is_err());
        first.holds(60);
        let second = sending.begin(40).unwrap();
        assert!(sending.begin(1).is_err());
        assert_eq!((sending.count(), sending.held_bytes()), (2, 100));
        drop((first, second));
        assert_eq!((sending.count(), sending.held_bytes()), (0, 0));
        let small: Vec<_> = (0..SENT_AT_ONCE)
            .map(|_| sending.begin(1).unwrap())
            .collect();
        assert!(sending.begin(1).is_err());
        drop(small);
        assert!(sending.begin(1).is_ok());
    }
}
