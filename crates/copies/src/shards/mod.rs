//! Shards: followers that hold the log's newest frames in memory, until they are on the server's
//! disk.
//!
//! What the two sides say ([`message`]), what a shard does with it ([`memory`]), which shards hold
//! what and whether that counts ([`holding`], [`select`]), and whom a start asks after a power loss
//! ([`asking`]). `docs/decisions/0031-shards.md` says why nothing that was acknowledged is lost.

pub mod asking;
pub mod holding;
pub mod memory;
pub mod message;
pub mod select;

/// The one version of the shards' protocol that this release speaks.
pub const VERSION: u32 = 1;
/// The gRPC method that a shard calls: its service and name.
pub const METHOD: (&str, &str) = ("orlop.copies.v1.Copies", "Hold");

/// The longest message that a shard takes, in bytes. A longer frame ends the connection, and its
/// write waits for the server's disk: only what can be given back counts as held.
pub const MAX_SAID_BYTES: usize = 30 << 20;
/// The longest message that a server takes: the largest frame that was taken, with others before it
/// in the same message ([`COLLECTED_BYTES`]).
pub const MAX_TOLD_BYTES: usize = 32 << 20;
/// Frames that are given back go into one message up to about so many bytes, in whole frames.
pub const COLLECTED_BYTES: u64 = 1 << 20;

/// What tells a server from those that were there before it: holders take nothing from a lower one
/// than they have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// Its term: rises when a store goes over to another directory.
    pub raft_term: u64,
    /// How often a server that has shards was started from its directory.
    pub generation: u64,
}

impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "term {}, start {}", self.raft_term, self.generation)
    }
}

/// Protections that tests switch off, one at a time, to see a test fail without them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// A start that asks closes a shard to earlier servers first.
    pub seal: bool,
    /// A shard takes nothing from a server that is fenced off.
    pub fence: bool,
    /// A shard that was started anew is another one.
    pub incarnation: bool,
    /// A shard takes frames only as they follow each other.
    pub contiguity: bool,
    /// All of a set have to have a frame.
    pub all: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            seal: true,
            fence: true,
            incarnation: true,
            contiguity: true,
            all: true,
        }
    }
}
