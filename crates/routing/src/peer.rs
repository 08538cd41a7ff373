//! Which other routers answer.

/// Times of the questions to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTimes {
    /// From one question to the next.
    pub every_us: u64,
    /// One that has not answered for so long is down: nothing new is sent there.
    pub down_after_us: u64,
    /// One that has not answered for so long is lost: what is under way there has failed.
    pub lost_after_us: u64,
}

impl Default for PeerTimes {
    fn default() -> Self {
        Self {
            every_us: 100_000,
            down_after_us: 450_000,
            lost_after_us: 2_000_000,
        }
    }
}

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It was not asked for long enough to know. It is used, as nothing speaks against it.
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// A peer's health, by when it last answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    health: Health,
    heard_us: u64,
}

impl Peer {
    /// A peer that is asked from now on.
    #[must_use]
    pub fn new(now_us: u64) -> Self {
        Self {
            health: Health::Unknown,
            heard_us: now_us,
        }
    }

    /// It answered.
    pub fn answered(&mut self, now_us: u64) {
        self.health = Health::Up;
        self.heard_us = self.heard_us.max(now_us);
    }

    /// It says that it ends: nothing new goes there. An answer to a later question brings it back.
    pub fn leaves(&mut self, now_us: u64) {
        self.health = Health::Down;
        // It is there: what is under way may end.
        self.heard_us = self.heard_us.max(now_us);
    }

    /// Time has passed. `true` if it is down by that.
    pub fn tick(&mut self, now_us: u64, times: &PeerTimes) -> bool {
        if self.health == Health::Down || self.silent_us(now_us) < times.down_after_us {
            return false;
        }
        self.health = Health::Down;
        true
    }

    /// What is known of it.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// For how long it has not answered.
    #[must_use]
    pub fn silent_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.heard_us)
    }

    /// Whether requests go there.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.health != Health::Down
    }
}
