//! The durable log: segments, group commit, recovery, snapshots.
//!
//! It keeps records in the order given, and gives back after any crash all of those that it
//! acknowledged, or says what is lost. It may not know what a record means (a store does:
//! [`Replay`]), start threads, or touch files other than
//! through [`files::FileSystem`]. Calls block: the server gives the journal a thread. How files look is told in `docs/decisions/0002-journal-format.md` and
//! in the modules here: [`dir`] the directory, `segment` and `frame` the log, `snapshot`,
//! and `recovery` what a start makes of them.
//!
//! A record is *durable* (acknowledged when it is on disk) or *volatile* (acknowledged when it
//! is in the log's file): [`Journal`] writes the ones, [`VolatileWriter`] the others, into one
//! log. `docs/decisions/0006-volatile-records.md` says what that takes.

mod allocator;
mod chain;
mod check;
mod choice;
mod count;
pub mod dir;
mod end;
mod epochs;
mod error;
mod frame;
mod hold;
mod holders;
mod load;
mod log;
mod marker;
mod open;
mod order;
mod record;
mod recover;
mod recovery;
mod replay;
mod scan;
mod seed;
mod segment;
mod settle;
mod snapshot;
mod status;
mod steps;
mod tap;
mod unsynced;
mod volatile;
mod watermarks;
mod window;
mod writer;

pub use allocator::{Allocator, Retired};
pub use check::{CheckReport, check, read};
pub use choice::{ChoiceError, RulesChoice, RulesKeeper};
pub use count::CountError;
pub use dir::{DirState, FIRST_RAFT_TERM, Identity, NewDirectory, Role, inspect};
pub use error::{CommitError, Damage, OpenError, SnapshotError};
pub use frame::MAX_PAYLOAD_BYTES;
pub use hold::{HeldFrame, Hold, NextFrames};
pub use holders::{Holder, HolderSet, HoldersNote};
pub use load::{decode_block_items, read_snapshot};
pub use open::{Guards, Holders, OpenReport, Options};
pub use record::{DecodeError, Followed, Proof, decode_record, decode_records, encode_records};
pub use recover::{Asked, Begun, Complete, Found, recover};
pub use replay::Replay;
pub use seed::{seed, seed_engine};
pub use settle::EpochReport;
pub use snapshot::{SnapshotEncoder, SnapshotInfo, SnapshotWriter};
pub use status::VolatileStatus;
pub use steps::{Appended, NotOrdered, Ordered, Point};
pub use tap::{Entry, Follower, Lane, Missed, Next};
pub use volatile::{Placed, Turn, VolatileInfo, VolatileWriter};
pub use writer::{CommitInfo, Journal};

/// Log sequence number: frames count from 1, without gaps; 0 is before all of them.
pub type Lsn = u64;

/// An epoch: a stretch of the log that volatile frames may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// No revision above this was shown to anyone.
    pub(crate) bound: i64,
    /// The frame that opened it.
    pub(crate) opened: Lsn,
}

/// A point of the log, after one of its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub(crate) lsn: Lsn,
    /// Checksum of that frame, which stands for all before it.
    pub(crate) crc: u32,
    pub(crate) cluster_id: u64,
    /// Frame bytes since the snapshot that this process started from.
    pub(crate) bytes: u64,
    /// The epoch that is open there.
    pub(crate) epoch: Option<Epoch>,
}

impl Position {
    /// The frame that it is after.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}
