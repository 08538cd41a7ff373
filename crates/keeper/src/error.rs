//! What can go wrong, in sentences for an operator.

use copies::message::MessageError;
use journal::{ChoiceError, CommitError, OpenError, SnapshotError};

/// Why a keeper did not take what a server sent, or could not be promoted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The log.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A snapshot of the keeper's own.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The storage rules that go along.
    #[error(transparent)]
    Rules(#[from] ChoiceError),
    /// What was sent is no message of this version.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The server speaks another version.
    #[error(
        "the server answers in version {found} of the copies' stream, which this release does not \
         speak: upgrade the keeper"
    )]
    Version {
        /// What it speaks.
        found: u32,
    },
    /// The server is of another cluster.
    #[error(
        "the directory holds a copy of cluster {own:x}, and the server is of cluster {server:x}: \
         name the right server, or give the keeper an empty directory"
    )]
    ForeignCluster {
        /// The directory's cluster.
        own: u64,
        /// The server's.
        server: u64,
    },
    /// The server was replaced by one that this keeper has seen.
    #[error(
        "the server is of term {server}, and this keeper has seen term {seen}: that server was \
         replaced, and nothing is taken from it. Point --server at the one that replaced it"
    )]
    OldServer {
        /// The server's term.
        server: u64,
        /// The highest term seen.
        seen: u64,
    },
    /// The server's store is older than the copy.
    #[error(
        "the copy is at revision {own}, and the server's snapshot at {server}: the server lost \
         writes or was put back, and the copy keeps what it has. To go on from the server's state, \
         give the keeper an empty directory; to go on from the copy's, stop the server and promote \
         the copy"
    )]
    Ahead {
        /// The copy's revision.
        own: i64,
        /// The snapshot's.
        server: i64,
    },
    /// Entries are missing in between.
    #[error("entry {first} of the stream came, and entry {expected} was to come")]
    Gap {
        /// What came.
        first: u64,
        /// What was expected.
        expected: u64,
    },
    /// An entry does not belong to this copy.
    #[error(
        "an entry of frame {lsn} belongs after revision {expected}, and the copy is at revision \
         {own}: the copy is taken anew"
    )]
    Diverged {
        /// The server's frame.
        lsn: u64,
        /// What the entry says.
        expected: i64,
        /// Where the copy is.
        own: i64,
    },
    /// The server's messages are out of order.
    #[error("the server's messages are out of order: {0}")]
    OutOfOrder(&'static str),
    /// A promotion that was not asked for in full, or that is not one.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether the copy does not fit the stream, so that only a snapshot helps.
    pub fn wants_snapshot(&self) -> bool {
        matches!(self, Error::Diverged { .. })
    }

    /// Whether trying again is of no use before an operator did something.
    pub fn is_final(&self) -> bool {
        match self {
            Error::ForeignCluster { .. } | Error::Refused(_) | Error::Open(_) => true,
            Error::Commit(error) => matches!(error, CommitError::Poisoned { .. }),
            _ => false,
        }
    }
}
