//! What a keeper knows of itself, for pages and metrics.

use super::backups::Copy;
use crate::kept::{Keeper, Standing, Store};
use copies::message::Heartbeat;
use journal::{Identity, Proof};
use parking_lot::Mutex;
use snapshot::Origin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Shared by the thread that follows and whoever looks.
pub struct View {
    server: String,
    stopping: AtomicBool,
    now: Mutex<Now>,
}

/// Snapshots that the keeper saved by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Saved {
    /// When the newest was made, in Unix seconds; 0 if there is none.
    pub(crate) last_unix_s: i64,
    /// Bytes of the last.
    pub(crate) bytes: u64,
    pub(crate) failures: u64,
}

#[derive(Clone, Default)]
struct Now {
    store: Option<Arc<Mutex<Store>>>,
    saved: Saved,
    standing: Standing,
    identity: Option<Identity>,
    following_since: Option<Instant>,
    joining: bool,
    heard: Option<(Instant, u64)>,
    lag: (u64, u64, u64),
    problem: Option<String>,
    connects: u64,
    snapshots: u64,
    records: u64,
    log_bytes: u64,
}

/// What there is to see at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) server: String,
    pub(crate) standing: Standing,
    pub(crate) identity: Option<Identity>,
    pub(crate) following: bool,
    pub(crate) joining: bool,
    pub(crate) silent_ms: Option<u64>,
    pub(crate) last_contact_unix_ms: u64,
    pub(crate) lag_records: u64,
    pub(crate) lag_bytes: u64,
    pub(crate) lag_ms: u64,
    pub(crate) problem: Option<String>,
    pub(crate) connects: u64,
    pub(crate) snapshots: u64,
    pub(crate) records: u64,
    pub(crate) log_bytes: u64,
    pub(crate) saved: Saved,
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

impl View {
    pub(crate) fn new(server: &str) -> Self {
        View {
            server: server.to_owned(),
            stopping: AtomicBool::new(false),
            now: Mutex::default(),
        }
    }

    pub(crate) fn stands(&self, keeper: &Keeper) {
        let (standing, identity) = (keeper.standing(), keeper.identity().cloned());
        let (log_bytes, store) = (keeper.log_bytes(), keeper.store());
        let mut now = self.now.lock();
        now.store = store;
        now.standing = standing;
        now.identity = identity;
        now.log_bytes = log_bytes;
    }

    /// The copy as it is on disk; `None` while there is no whole one.
    pub(crate) fn copy(self: &Arc<Self>) -> Option<Copy> {
        let now = self.now.lock();
        let (store, identity) = (now.store.clone()?, now.identity.as_ref()?);
        let followed = now.standing.followed?;
        let origin = Origin {
            member_id: identity.member_id,
            raft_term: identity.raft_term,
            raft_index: followed.lsn.max(1),
            storage_version: backups::STORAGE_VERSION,
        };
        let cluster_id = identity.cluster_id;
        Some(Copy {
            store,
            origin,
            cluster_id,
        })
    }

    /// Notes how saving snapshots goes.
    pub(crate) fn saved(&self, note: impl FnOnce(&mut Saved)) {
        note(&mut self.now.lock().saved);
    }

    /// The keeper stops.
    pub(crate) fn stops(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// True once it does.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn connects(&self) {
        self.now.lock().connects += 1;
    }

    /// It takes a snapshot of the server's, and has no whole copy until that is done.
    pub(crate) fn joins(&self) {
        let mut now = self.now.lock();
        now.store = None;
        now.joining = true;
        now.heard = Some((Instant::now(), unix_ms()));
    }

    pub(crate) fn follows(&self, after_snapshot: bool) {
        let mut now = self.now.lock();
        now.joining = false;
        now.snapshots += u64::from(after_snapshot);
        now.following_since = Some(Instant::now());
        now.problem = None;
    }

    /// It follows nobody now, and why.
    pub(crate) fn is_broken(&self, problem: String) {
        let mut now = self.now.lock();
        now.following_since = None;
        now.joining = false;
        now.problem = Some(problem);
    }

    pub(crate) fn took(&self, records: u64) {
        self.now.lock().records += records;
    }

    pub(crate) fn heard(&self, heartbeat: &Heartbeat) {
        let mut now = self.now.lock();
        now.heard = Some((Instant::now(), unix_ms()));
        now.lag = (heartbeat.lag_records, heartbeat.lag_bytes, heartbeat.lag_ms);
    }

    pub(crate) fn seen(&self) -> Seen {
        let now = self.now.lock().clone();
        let silent_ms = now.heard.map(|(at, _)| at.elapsed().as_millis() as u64);
        let following = now.following_since.is_some();
        let (lag_records, lag_bytes, lag_ms) = now.lag;
        Seen {
            server: self.server.clone(),
            following,
            joining: now.joining,
            silent_ms,
            last_contact_unix_ms: now.heard.map_or(0, |(_, unix_ms)| unix_ms),
            lag_records,
            lag_bytes,
            lag_ms: match following {
                true => lag_ms,
                false => silent_ms.unwrap_or(0).max(lag_ms),
            },
            standing: now.standing,
            identity: now.identity,
            problem: now.problem,
            connects: now.connects,
            snapshots: now.snapshots,
            records: now.records,
            log_bytes: now.log_bytes,
            saved: now.saved,
        }
    }
}

impl Seen {
    /// Whether the copy is proven to be all that was acknowledged.
    pub(crate) fn complete(&self) -> bool {
        let proof = self.standing.followed.map(|at| at.proof);
        matches!(proof, Some(Proof::Stopped | Proof::Waits))
    }
}
