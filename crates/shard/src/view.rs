//! What a shard knows of itself, for pages and metrics.

use copies::shards::memory::Shard;
use parking_lot::Mutex;

/// Shared by the thread that holds and whoever looks.
#[derive(Debug)]
pub struct View {
    now: Mutex<Seen>,
}

/// What there is to see at a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) server: String,
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) incarnation: u64,
    pub(crate) connected: bool,
    pub(crate) set: u64,
    pub(crate) held: u64,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) problem: Option<String>,
    pub(crate) connects: u64,
    pub(crate) messages: u64,
}

impl View {
    pub(crate) fn new(server: &str, name: &str, zone: &str, limit_bytes: u64) -> Self {
        View {
            now: Mutex::new(Seen {
                server: server.to_owned(),
                name: name.to_owned(),
                zone: zone.to_owned(),
                limit_bytes,
                ..Seen::default()
            }),
        }
    }

    pub(crate) fn connects(&self) {
        self.now.lock().connects += 1;
    }

    /// A server has taken it.
    pub(crate) fn is_taken(&self) {
        let mut now = self.now.lock();
        now.connected = true;
        now.problem = None;
    }

    /// It has no server now, and why.
    pub(crate) fn is_broken(&self, problem: String) {
        let mut now = self.now.lock();
        now.connected = false;
        now.problem = Some(problem);
    }

    pub(crate) fn holds(&self, shard: &Shard) {
        let mut now = self.now.lock();
        now.messages += 1;
        now.incarnation = shard.incarnation();
        (now.set, now.held) = shard.set().unwrap_or_default();
        now.frames = shard.frames() as u64;
        now.bytes = shard.bytes();
    }

    pub(crate) fn seen(&self) -> Seen {
        self.now.lock().clone()
    }
}
