//! Shards: other machines that hold the log's newest frames in memory, so that a replicated write
//! need not wait for the disk.
//!
//! Which of them hold what, and whether that counts, is decided in [`copies::shards::holding`];
//! here are their connections ([`session`]), the thread that watches over them ([`watch`]), and
//! what a start asks of them ([`ask`]). It is all there before the log is open: a start after a
//! power loss needs what they have. Without `--max-shards` there is none of this.

mod ask;
pub(crate) mod session;
mod watch;

pub(crate) use watch::watch;

use copies::message::{Reason, Refused};
use copies::shards::Fence;
use copies::shards::asking::Present;
use copies::shards::holding::{Act, Holding, Member, Settings, Standing};
use copies::shards::message::{Ack, Collected, Hello, Welcome};
use journal::{Hold, Holder, HolderSet, Lsn};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;
use tokio::sync::watch as signal;

/// All shards of this server, and what they are told.
pub(crate) struct Shards {
    settings: config::Shards,
    state: Mutex<State>,
    /// Told when there are frames, or some may be forgotten: those that hold look.
    fed: signal::Sender<()>,
    /// Told when a session is to do something else, or to end: all look.
    ordered: signal::Sender<()>,
    /// Sets that are to count.
    counts: Sender<Vec<Holder>>,
    to_count: Mutex<Option<Receiver<Vec<Holder>>>>,
    started: Instant,
}

/// Whether shards may come in.
#[derive(Clone, Debug, Default)]
enum Door {
    /// Whose server this is, is not known yet.
    #[default]
    Shut,
    /// It is.
    Open(Welcome),
}

#[derive(Default)]
struct State {
    door: Door,
    /// What replicated writes need; there while the rules ask for copies.
    held: Option<Held>,
    conns: BTreeMap<u64, Conn>,
    last_session: u64,
}

struct Held {
    holding: Holding,
    hold: Arc<Hold>,
    /// What a holder was sent last: the others of its set mostly need the same.
    last_sent: Option<Sent>,
}

/// Frames as they go to a holder.
#[derive(Clone)]
struct Sent {
    set: u64,
    /// The last frame that the holder had, and what it knew to be on disk.
    had: (Lsn, Lsn),
    /// The same after it.
    has: (Lsn, Lsn),
    message: wire::Frame,
}

/// One connection.
struct Conn {
    member: Member,
    address: String,
    since: Instant,
    /// What it was told: the set, and the last frame that it was sent or need not be.
    set: Option<(u64, Lsn)>,
    /// The set was not sent yet.
    begins: bool,
    /// Others hold from here on: it is told what it may forget, and nothing else.
    retired: bool,
    /// It holds so much.
    bytes: u64,
    /// What it is to be asked, and who waits for that.
    asked: Option<(copies::shards::message::Collect, Sender<Collected>)>,
    answers: Option<Sender<Collected>>,
    /// It is to end, and why.
    close: Option<&'static str>,
}

/// How one shard stands, for an operator.
#[derive(Clone, Debug)]
pub(crate) struct ShardStatus {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) address: String,
    pub(crate) connected_s: u64,
    pub(crate) holds: bool,
    pub(crate) bytes: u64,
    pub(crate) behind_frames: u64,
}

/// How all stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardsStatus {
    pub(crate) max: usize,
    pub(crate) copies: usize,
    pub(crate) counting: bool,
    pub(crate) set: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) lost: u64,
    pub(crate) shards: Vec<ShardStatus>,
}

impl Shards {
    pub(crate) fn new(settings: config::Shards) -> Self {
        let (counts, to_count) = channel();
        Shards {
            settings,
            state: Mutex::default(),
            fed: signal::Sender::new(()),
            ordered: signal::Sender::new(()),
            counts,
            to_count: Mutex::new(Some(to_count)),
            started: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Lets shards in: whose server this is, and which start of it, is known.
    pub(crate) fn open(&self, cluster_id: u64, fence: Fence, name: &str) {
        self.state.lock().door = Door::Open(Welcome {
            version: copies::shards::VERSION,
            cluster_id,
            raft_term: fence.raft_term,
            generation: fence.generation,
            name: name.to_owned(),
        });
        self.ordered.send_replace(());
    }

    /// From here on `copies` shards are to hold each frame that is not on the disk.
    pub(crate) fn begin(self: &Arc<Self>, hold: Arc<Hold>, copies: usize) {
        let fed = self.fed.clone();
        hold.set_waker(move || {
            fed.send_replace(());
        });
        let settings = Settings {
            copies,
            health_ms: self.settings.health_timeout.as_millis() as u64,
        };
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        let mut holding = Holding::new(settings);
        let mut acts = holding.tick(0, false, now_ms);
        for (session, conn) in &state.conns {
            acts.extend(holding.joined(*session, conn.member.clone(), now_ms));
        }
        state.held = Some(Held {
            holding,
            hold,
            last_sent: None,
        });
        self.act(&mut state, acts);
    }

    /// The rules ask for no copies any more.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.held = None;
        for conn in state.conns.values_mut() {
            conn.set = None;
        }
    }

    /// How many copies are asked for now, if any.
    pub(crate) fn copies(&self) -> Option<usize> {
        let state = self.state.lock();
        let held = state.held.as_ref();
        held.map(|held| held.holding.standing().copies)
    }

    /// Bytes of frames that are kept for shards.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.held.as_ref().map_or(0, |held| held.hold.bytes())
    }

    /// How all stand.
    pub(crate) fn status(&self) -> ShardsStatus {
        let state = self.state.lock();
        let standing: Option<Standing> = state.held.as_ref().map(|held| held.holding.standing());
        let written = state.held.as_ref().map_or(0, |held| held.hold.written());
        let held_by = |name: &str| {
            let standing = standing.as_ref()?;
            let mut members = standing.members.iter();
            members.find(|(member, _)| member.name == name)?.1
        };
        let one = |conn: &Conn| {
            let held = held_by(&conn.member.name);
            ShardStatus {
                name: conn.member.name.clone(),
                zone: conn.member.zone.clone(),
                address: conn.address.clone(),
                connected_s: conn.since.elapsed().as_secs(),
                holds: held.is_some(),
                bytes: conn.bytes,
                behind_frames: held.map_or(0, |held| written.saturating_sub(held)),
            }
        };
        ShardsStatus {
            max: self.settings.max,
            copies: standing.as_ref().map_or(0, |of| of.copies),
            counting: standing.as_ref().is_some_and(|of| of.counting),
            set: standing.as_ref().map_or(0, |of| of.set),
            kept_bytes: state.held.as_ref().map_or(0, |held| held.hold.bytes()),
            lost: standing.as_ref().map_or(0, |of| of.lost),
            shards: state.conns.values().map(one).collect(),
        }
    }

    /// Whether one that comes may hold, and its place if so.
    fn receive(&self, hello: &Hello, address: &str) -> Result<(u64, Welcome), Refused> {
        let refused = |reason: Reason, text: String| Refused {
            reason: reason.into(),
            text,
        };
        let version = copies::shards::VERSION;
        if !(hello.version_min..=hello.version_max).contains(&version) {
            let text = format!(
                "the server speaks version {version} of the shards' protocol, and the shard \
                 versions {} to {}: upgrade the older one",
                hello.version_min, hello.version_max
            );
            return Err(refused(Reason::Version, text));
        }
        if hello.name.is_empty() || hello.name.len() > 256 || hello.zone.len() > 256 {
            let text = "a shard needs a name of 1 to 256 bytes, and a zone of 256 at most";
            return Err(refused(Reason::Version, text.to_owned()));
        }
        let mut state = self.state.lock();
        let Door::Open(welcome) = &state.door else {
            let text = "the server is starting".to_owned();
            return Err(refused(Reason::Later, text));
        };
        let welcome = welcome.clone();
        if hello.cluster_id != 0 && hello.cluster_id != welcome.cluster_id {
            let text = format!(
                "the shard holds frames of cluster {:x}, and this server is of cluster {:x}: name \
                 the right server, or start the shard anew",
                hello.cluster_id, welcome.cluster_id
            );
            return Err(refused(Reason::Cluster, text));
        }
        if hello.cluster_id != 0 && hello.fence() > welcome.fence() {
            let text = format!(
                "the shard has seen a later server ({}), and this one ({}) was replaced by it, or \
                 its directory was put back to an older state: then start the shard anew",
                hello.fence(),
                welcome.fence()
            );
            return Err(refused(Reason::Term, text));
        }
        let open = state.conns.values();
        let others = open.filter(|conn| conn.member.name != hello.name && conn.close.is_none());
        if others.count() >= self.settings.max {
            let text = "as many shards are connected as may be (--max-shards)".to_owned();
            return Err(refused(Reason::Full, text));
        }
        state.last_session += 1;
        let session = state.last_session;
        let member = Member {
            name: hello.name.clone(),
            incarnation: hello.incarnation,
            zone: hello.zone.clone(),
            leaving: false,
        };
        let conn = Conn {
            member: member.clone(),
            address: address.to_owned(),
            since: Instant::now(),
            set: None,
            begins: false,
            retired: false,
            bytes: 0,
            asked: None,
            answers: None,
            close: None,
        };
        for older in state.conns.values_mut() {
            if older.member.name == hello.name {
                older.close = Some("another connection of this name came");
            }
        }
        state.conns.insert(session, conn);
        Ok((session, welcome))
    }

    /// A shard that was welcomed may be given something.
    fn join(&self, session: u64) {
        let now_ms = self.now_ms();
        let state = &mut *self.state.lock();
        let Some(conn) = state.conns.get(&session) else {
            return;
        };
        let member = conn.member.clone();
        if let Some(held) = &mut state.held {
            let acts = held.holding.joined(session, member, now_ms);
            self.act(state, acts);
        }
        self.ordered.send_replace(());
    }

    fn acked(&self, session: u64, ack: Ack) {
        let now_ms = self.now_ms();
        let state = &mut *self.state.lock();
        if let Some(conn) = state.conns.get_mut(&session) {
            conn.bytes = ack.bytes;
        }
        let Some(held) = &mut state.held else { return };
        let written = held.hold.written();
        if let Some(Act::Held { set, lsn }) = held.holding.acked(session, ack, written, now_ms) {
            held.hold.held(set, lsn);
        }
    }

    fn leaving(&self, session: u64) {
        let now_ms = self.now_ms();
        let state = &mut *self.state.lock();
        match &mut state.held {
            Some(held) => {
                let acts = held.holding.leaving(session, now_ms);
                self.act(state, acts);
            }
            None => {
                if let Some(conn) = state.conns.get_mut(&session) {
                    conn.close = Some("it leaves");
                }
            }
        }
        self.ordered.send_replace(());
    }

    fn left(&self, session: u64) {
        let now_ms = self.now_ms();
        let state = &mut *self.state.lock();
        state.conns.remove(&session);
        if let Some(held) = &mut state.held {
            let acts = held.holding.left(session, now_ms);
            self.act(state, acts);
        }
        self.ordered.send_replace(());
    }

    fn tick(&self) {
        let now_ms = self.now_ms();
        let state = &mut *self.state.lock();
        if let Some(held) = &mut state.held {
            let (written, counts) = (held.hold.written(), held.hold.counts());
            let acts = held.holding.tick(written, counts, now_ms);
            // Who needs the same takes it at once: it is not kept for longer.
            held.last_sent = None;
            self.act(state, acts);
        }
    }

    fn counted(&self, set: Option<&HolderSet>) {
        let now_ms = self.now_ms();
        let state = &mut *self.state.lock();
        if set.is_some() {
            state
                .conns
                .values_mut()
                .for_each(|conn| conn.retired = true);
        }
        if let Some(held) = &mut state.held {
            let acts = held.holding.counted(set, now_ms);
            self.act(state, acts);
        }
    }

    /// Does what is to be done. Nothing here waits.
    fn act(&self, state: &mut State, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::DiskOnly => {
                    if let Some(held) = &state.held {
                        held.hold.disk_only();
                    }
                    tracing::warn!(
                        "a shard that held the newest writes is gone: writes wait for the disk until others hold them"
                    );
                }
                Act::Count(holders) => {
                    // The thread lives as long as the server.
                    let _ = self.counts.send(holders);
                }
                Act::Begin {
                    session,
                    set,
                    after,
                } => {
                    if let Some(conn) = state.conns.get_mut(&session) {
                        conn.set = Some((set, after));
                        conn.begins = true;
                        conn.retired = false;
                    }
                }
                Act::Held { set, lsn } => {
                    if let Some(held) = &state.held {
                        held.hold.held(set, lsn);
                    }
                }
                Act::Close { session, why } => {
                    if let Some(conn) = state.conns.get_mut(&session) {
                        conn.close = Some(why);
                    }
                }
            }
        }
        self.ordered.send_replace(());
    }

    /// Those that are connected.
    fn present<T>(&self, look: impl FnOnce(&[Present<'_>]) -> T) -> T {
        let state = self.state.lock();
        let present: Vec<Present<'_>> = state
            .conns
            .iter()
            .filter(|(_, conn)| conn.close.is_none())
            .map(|(session, conn)| Present {
                session: *session,
                name: &conn.member.name,
                incarnation: conn.member.incarnation,
            })
            .collect();
        look(&present)
    }
}
