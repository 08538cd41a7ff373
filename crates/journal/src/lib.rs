//! The durable log: segments, group commit, recovery, snapshots.
//!
//! It keeps records in the order given, and gives back after any crash all of those that it
//! acknowledged, or says what is lost. It may not know what a record means, start threads,
//! or touch files other than through [`fs::FileSystem`]. Calls block: the server gives the
//! journal a thread. How files look is told in `docs/decisions/0002-journal-format.md` and
//! in the modules here: [`dir`] the directory, `segment` and `frame` the log, `snapshot`,
//! and `recovery` what a start makes of them.
//!
//! Today every record is durable. Storage classes find their seams in the frame header's
//! `revision_before` and `mark`, in record kinds kept free, and in recovery's notes.

mod allocator;
mod chain;
mod check;
pub mod dir;
mod error;
mod frame;
pub mod fs;
mod load;
mod open;
mod record;
mod recovery;
mod seed;
mod segment;
mod snapshot;
mod window;
mod writer;

pub use allocator::{Allocator, Retired};
pub use check::{CheckReport, check, read};
pub use dir::{DirState, Identity, NewDirectory, inspect};
pub use error::{CommitError, Damage, OpenError, SnapshotError};
pub use fs::real::fs_warning;
pub use load::decode_block_items;
pub use open::{Guards, OpenReport, Options};
pub use record::{DecodeError, decode_record};
pub use recovery::Replay;
pub use seed::{seed, seed_engine};
pub use snapshot::{SnapshotInfo, SnapshotWriter};
pub use writer::{CommitInfo, Journal};

/// Log sequence number: frames count from 1, without gaps; 0 is before all of them.
pub type Lsn = u64;

/// A point of the log, after one of its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub(crate) lsn: Lsn,
    /// Checksum of that frame, which stands for all before it.
    pub(crate) crc: u32,
    pub(crate) cluster_id: u64,
    /// Frame bytes since the snapshot that this process started from.
    pub(crate) bytes: u64,
}

impl Position {
    /// The frame that it is after.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}
