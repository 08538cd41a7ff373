//! Snapshots in etcd's format of a store that goes on being written: all of it as one file, saved
//! to a directory at an interval ([`Scheduled`]) or sent to a client ([`send()`]).
//!
//! A thread of its own collects in slices, encodes and hashes, and gives way to writers in
//! between; it holds what is there already, not copies. Whose store it is, it knows as a
//! [`Source`]; it may not change one.

mod scheduled;
mod send;

pub use scheduled::{Scheduled, Settings, Told};
pub use send::{NoPlace, Place, SendError, Sending, send};

use engine::versions::{StoreHead, VersionsCursor};
use snapshot::{Encoder, Origin, StorageVersion};
use threads::Pace;

/// The etcd that the files are for.
pub const STORAGE_VERSION: StorageVersion = StorageVersion::V3_7;

/// A store, as it is now and as it goes on.
pub trait Source: Send + Sync {
    /// The store at this moment: what is in it besides keys, and where its versions begin.
    fn open(&self) -> (VersionsCursor, StoreHead);
    /// Collects some of the moment's versions, under whatever lock there is; true when all are
    /// collected.
    fn step(&self, cursor: &mut VersionsCursor) -> bool;
    /// Whose store it is, and up to which place of its log.
    fn origin(&self) -> Origin;
    /// The cluster's id.
    fn cluster_id(&self) -> u64;
    /// Bytes of its keys and values, about.
    fn data_bytes(&self) -> u64;
}

/// Why there is no snapshot.
#[derive(Debug)]
enum Failure {
    /// The process ends, or nobody wants it any more.
    Stopped,
    /// It cannot be encoded.
    Encode(snapshot::Error),
}

/// The store as it is now, as an encoder of the file, and its revision. Takes its time: for
/// a background thread.
fn encoder(
    source: &dyn Source,
    pace: &mut Pace,
    unwanted: impl Fn() -> bool,
) -> Result<(Encoder, i64), Failure> {
    let (mut cursor, head) = source.open();
    while !source.step(&mut cursor) {
        cursor.settle();
        if unwanted() {
            return Err(Failure::Stopped);
        }
        pace.rest();
    }
    let versions = cursor.finish(&mut || pace.rest());
    pace.rest();
    let encoder = Encoder::paced(&source.origin(), &head, versions, &mut || pace.rest());
    Ok((encoder.map_err(Failure::Encode)?, head.revision))
}
