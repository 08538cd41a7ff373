//! From the journal's tap to the backlog: each record is encoded once, for all who follow.

use super::{Followers, Stream};
use crate::commit_log::{Errand, Stopping};
use crate::encode;
use crate::shared::{Shared, unix_ms};
use copies::backlog::Backlog;
use copies::message::{Batch, End, Entry, FromServer, Said};
use journal::{Follower, Next};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use wire::Frame;

/// Entries that came meanwhile are sent together, up to about so many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// How long it waits for more after an entry that came alone: nobody waits for a follower, and a
/// message, its encryption and its wake-ups cost the server the same for one entry and for many.
const GATHER: Duration = Duration::from_millis(10);
/// What a message that is kept takes beyond its bytes: its place in the backlog, and what the
/// allocator and the count of its users add.
const CHUNK_BYTES: u64 = 256;
/// How often the thread looks whether anybody still follows.
const LOOK: Duration = Duration::from_millis(500);
/// When nobody has followed for so long, nothing is kept any more: whoever comes back later gets a
/// snapshot.
const KEEP_IDLE: Duration = Duration::from_secs(60);

/// A message as it is sent.
pub(super) fn frame(said: Said) -> Frame {
    encode::message(&FromServer::from(said))
}

impl Followers {
    /// The stream's number, which begins now if there is none. Waits for the committer.
    pub(super) fn begin(&self, shared: &Arc<Shared>) -> Result<u64, Stopping> {
        let _one_at_a_time = self.beginning.lock();
        if let Some(stream) = &self.state.lock().stream {
            return Ok(stream.id);
        }
        let (to, follower) = channel();
        shared.log.order(Errand::Follow {
            limit_bytes: self.limit_bytes,
            to,
        })?;
        let follower = follower.try_recv().map_err(|_| Stopping)?;
        let id = RandomState::new().hash_one(Instant::now()).max(1);
        self.state.lock().stream = Some(Stream {
            id,
            backlog: Backlog::new(follower.after(), self.limit_bytes, CHUNK_BYTES),
            waiting_bytes: 0,
            end: None,
            idle_since: None,
        });
        let of_thread = shared.clone();
        let run = move || run(&of_thread, &follower, id);
        match threads::spawn_vital("followers", run) {
            Ok(thread) => {
                shared.lifecycle.keep(thread);
                Ok(id)
            }
            Err(error) => {
                tracing::error!(%error, "nobody can follow: the system has no thread");
                self.state.lock().stream = None;
                Err(Stopping)
            }
        }
    }

    fn push(&self, stream: u64, entries: Vec<Arc<journal::Entry>>, waiting_bytes: u64) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        let (first, last) = (first.sequence, last.sequence);
        let records: usize = entries.iter().map(|entry| entry.records.len()).sum();
        let batch = Batch {
            first,
            entries: entries.iter().map(|entry| Entry::of(entry)).collect(),
            unix_ms: unix_ms(),
            stream,
        };
        let frame = frame(Said::Batch(batch));
        let (bytes, at_ms) = (frame.len() as u64, self.now_ms());
        if let Some(own) = &mut self.state.lock().stream
            && own.id == stream
        {
            own.waiting_bytes = waiting_bytes;
            let records = records as u64;
            own.backlog.push(last, records, bytes, at_ms, frame);
        }
        self.fed.send_replace(());
    }

    /// Ends the stream if nobody has followed for long.
    fn is_idle(&self) -> bool {
        let mut state = self.state.lock();
        let idle = state.stream.as_ref().is_some_and(|stream| {
            let since = stream.idle_since;
            since.is_some_and(|since| since.elapsed() >= KEEP_IDLE)
        });
        if idle {
            state.stream = None;
        }
        idle
    }
}

fn run(shared: &Arc<Shared>, follower: &Follower, id: u64) {
    let followers = &shared.followers;
    let mut full = false;
    loop {
        match follower.next(LOOK) {
            Next::Entry(entry) => {
                if !full {
                    std::thread::sleep(GATHER);
                }
                let entries;
                (entries, full) = more(follower, entry);
                followers.push(id, entries, follower.waiting_bytes());
            }
            Next::Nothing => {
                if followers.is_idle() {
                    tracing::info!(
                        "nobody has followed for a minute: nothing is kept for followers any more"
                    );
                    return;
                }
            }
            Next::Missed(missed) => {
                tracing::error!(
                    lsn = missed.lsn,
                    "more was written at once than is kept for followers: all of them begin again with a snapshot; raise --followers-backlog-bytes if this happens again"
                );
                let mut state = followers.state.lock();
                state.cut_off += state.sessions.len() as u64;
                state.stream = None;
                drop(state);
                followers.fed.send_replace(());
                return;
            }
            Next::Closed => {
                end(shared, id);
                return;
            }
        }
    }
}

/// What else is there already, to be sent with the first, and whether there may be more than that.
fn more(follower: &Follower, first: Arc<journal::Entry>) -> (Vec<Arc<journal::Entry>>, bool) {
    let mut bytes = first.encoded_bytes_at_most();
    let mut entries = vec![first];
    while bytes < BATCH_BYTES as u64 {
        let Next::Entry(entry) = follower.next(Duration::ZERO) else {
            return (entries, false);
        };
        bytes += entry.encoded_bytes_at_most();
        entries.push(entry);
    }
    (entries, true)
}

/// The server has stopped: whoever has all up to here has all.
fn end(shared: &Arc<Shared>, id: u64) {
    let revision = shared.store.lock().revision();
    let followers = &shared.followers;
    if let Some(stream) = &mut followers.state.lock().stream
        && stream.id == id
    {
        stream.end = Some(frame(Said::End(End {
            sequence: stream.backlog.sequence(),
            revision,
            unix_ms: unix_ms(),
            stream: id,
        })));
    }
    followers.fed.send_replace(());
}
