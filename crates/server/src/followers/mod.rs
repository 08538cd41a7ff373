//! Those who keep copies of this server's data: what they are sent, and how far they are.
//!
//! One thread takes the journal's tap and encodes what it gives once, into a backlog with a limit
//! ([`feed`]); each follower's connection sends from there at its own pace ([`session`]). One that
//! is further behind than the backlog reaches is cut off, and begins with a snapshot ([`send`])
//! when it comes back. As long as nobody follows there is no tap and no thread.

mod feed;
mod listen;
mod send;
mod session;

pub(crate) use listen::{PeerHost, bind, listen};

use crate::shared::Shared;
use copies::backlog::{Backlog, Lag};
use copies::message::Ack;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use wire::Frame;

/// How often a drain looks whether all have the end.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// All who follow, and what they are sent.
pub(crate) struct Followers {
    max: usize,
    limit_bytes: u64,
    state: Mutex<State>,
    /// Told when there is something to send; sessions wait for it.
    fed: watch::Sender<()>,
    /// Held while a stream is begun.
    beginning: Mutex<()>,
    started: Instant,
}

#[derive(Default)]
struct State {
    stream: Option<Stream>,
    sessions: BTreeMap<u64, Session>,
    last_session: u64,
    cut_off: u64,
    snapshots: u64,
}

/// What the tap has given, as long as somebody follows.
struct Stream {
    id: u64,
    backlog: Backlog<Frame>,
    /// What the tap holds that is not in the backlog.
    waiting_bytes: u64,
    /// What to send after all else: the server has stopped.
    end: Option<Frame>,
    /// Since when nobody follows.
    idle_since: Option<Instant>,
}

/// One connection.
struct Session {
    name: String,
    address: String,
    since: Instant,
    /// Its snapshot is on its way.
    joining: bool,
    acked: Ack,
    queued_bytes: u64,
    /// Another one of that name came.
    superseded: bool,
}

/// What a session is to send next.
enum Give {
    Entries {
        frame: Frame,
        last: u64,
    },
    Nothing,
    End(Frame),
    /// What it needs is not kept any more.
    CutOff,
    /// Another connection of that follower came, or the stream is gone.
    Over,
}

/// How one follower stands, for an operator.
#[derive(Clone, Debug)]
pub(crate) struct FollowerStatus {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) connected_s: u64,
    pub(crate) joining: bool,
    pub(crate) lag: Lag,
}

/// How all stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct FollowersStatus {
    pub(crate) max: usize,
    pub(crate) backlog_bytes: u64,
    pub(crate) backlog_limit_bytes: u64,
    pub(crate) cut_off: u64,
    pub(crate) snapshots: u64,
    pub(crate) followers: Vec<FollowerStatus>,
}

impl FollowersStatus {
    /// The lag of whoever is furthest behind, in each measure.
    pub(crate) fn worst(&self) -> Lag {
        self.followers.iter().fold(Lag::default(), |worst, of| Lag {
            records: worst.records.max(of.lag.records),
            bytes: worst.bytes.max(of.lag.bytes),
            ms: worst.ms.max(of.lag.ms),
        })
    }
}

impl Followers {
    /// Nobody follows yet. `max` may at once; 0 for nobody.
    pub(crate) fn new(max: usize, limit_bytes: u64) -> Self {
        Followers {
            max,
            limit_bytes,
            state: Mutex::default(),
            fed: watch::Sender::new(()),
            beginning: Mutex::default(),
            started: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Bytes that are held for all of them.
    pub(crate) fn held_bytes(&self) -> u64 {
        let state = self.state.lock();
        let queued: u64 = state.sessions.values().map(|s| s.queued_bytes).sum();
        let stream = state.stream.as_ref();
        queued + stream.map_or(0, |s| s.backlog.held_bytes() + s.waiting_bytes)
    }

    /// How all stand.
    pub(crate) fn status(&self) -> FollowersStatus {
        let now_ms = self.now_ms();
        let state = self.state.lock();
        let lag = |session: &Session| {
            let stream = state.stream.as_ref();
            stream.map_or_else(Lag::default, |stream| {
                stream.backlog.lag(session.acked.synced, now_ms)
            })
        };
        let followers = state.sessions.values().filter(|s| !s.superseded);
        FollowersStatus {
            max: self.max,
            backlog_bytes: state.stream.as_ref().map_or(0, |s| s.backlog.held_bytes()),
            backlog_limit_bytes: self.limit_bytes,
            cut_off: state.cut_off,
            snapshots: state.snapshots,
            followers: followers
                .map(|session| FollowerStatus {
                    name: session.name.clone(),
                    address: session.address.clone(),
                    connected_s: session.since.elapsed().as_secs(),
                    joining: session.joining,
                    lag: lag(session),
                })
                .collect(),
        }
    }

    /// Waits until all who follow have all that there was, and know that it was all; `timeout` at
    /// most. To be called when nothing more becomes visible.
    pub(crate) fn drain(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let waiting = {
                let state = self.state.lock();
                let open = state.sessions.values();
                open.filter(|s| !s.acked.ended && !s.superseded).count()
            };
            if waiting == 0 {
                return;
            }
            if Instant::now() >= deadline {
                tracing::warn!(
                    followers = waiting as u64,
                    "stopped before all followers had everything: they go on from a snapshot, or are promoted by a jump"
                );
                return;
            }
            std::thread::sleep(DRAIN_LOOK);
        }
    }

    /// What a session sends after entry `has` of a stream.
    fn give(&self, session: u64, stream: u64, has: u64) -> Give {
        let state = self.state.lock();
        let (Some(own), Some(at)) = (state.sessions.get(&session), state.stream.as_ref()) else {
            return Give::Over;
        };
        if own.superseded || at.id != stream {
            return Give::Over;
        }
        match at.backlog.after(has) {
            copies::backlog::Next::Entries { frame, last } => Give::Entries {
                frame: frame.clone(),
                last,
            },
            copies::backlog::Next::Nothing => at.end.clone().map_or(Give::Nothing, Give::End),
            copies::backlog::Next::Missed => Give::CutOff,
        }
    }
}

/// A session's place among the others; it ends with this.
struct Place {
    shared: Arc<Shared>,
    id: u64,
}

impl Place {
    /// A place for one of this name; another connection of the same follower is over. `None` if as
    /// many follow as may.
    fn take(shared: &Arc<Shared>, name: &str, address: &str) -> Option<Place> {
        let followers = &shared.followers;
        let mut state = followers.state.lock();
        for session in state.sessions.values_mut() {
            session.superseded |= session.name == name;
        }
        let open = state.sessions.values().filter(|s| !s.superseded).count();
        if open >= followers.max {
            return None;
        }
        state.last_session += 1;
        let id = state.last_session;
        let session = Session {
            name: name.to_owned(),
            address: address.to_owned(),
            since: Instant::now(),
            joining: true,
            acked: Ack::default(),
            queued_bytes: 0,
            superseded: false,
        };
        state.sessions.insert(id, session);
        if let Some(stream) = &mut state.stream {
            stream.idle_since = None;
        }
        drop(state);
        followers.fed.send_replace(());
        Some(Place {
            shared: shared.clone(),
            id,
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let mut state = self.shared.followers.state.lock();
        state.sessions.get_mut(&self.id).map(change)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.followers.state.lock();
        state.sessions.remove(&self.id);
        if state.sessions.is_empty()
            && let Some(stream) = &mut state.stream
        {
            stream.idle_since = Some(Instant::now());
        }
    }
}
