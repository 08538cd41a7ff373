//! Segments: the files that the log is made of.
//!
//! A segment is a header page and frames. It is made ahead of its use, with a header that
//! says so and names the segment then in use; its real header is written together with its
//! first frame, so that going on to the next segment costs no sync of its own. Ids go up by
//! at least one and never come twice in a directory.

use crate::Lsn;
use crate::frame::{self, PAGE, u32_at, u64_at};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"orlopseg";
/// A segment that was begun when all before it was synced, as is always so without volatile
/// records.
const VERSION_SYNCED: u32 = 1;
/// The highest version known: one that was begun before all of the one before it was synced.
pub(crate) const VERSION: u32 = 2;
/// Bytes of the header that its checksum covers.
pub(crate) const HEADER: usize = 72;

/// The first page of a segment. On disk, little-endian: magic (8 bytes), version (4), CRC32C
/// (4), then these fields in this order, 8 bytes each; the frame's checksum takes 4, and 4 say
/// how many frames before its first were not synced (0 in version 1, more in version 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: u64,
    pub(crate) cluster_id: u64,
    /// LSN of its first frame, 0 if it was made ahead and never used.
    pub(crate) first_lsn: Lsn,
    /// Id of the segment before it, 0 for none; if it was made ahead, of the one in use then.
    pub(crate) previous: u64,
    /// The store's revision before its first frame.
    pub(crate) revision: i64,
    /// Checksum of the last frame before it.
    pub(crate) previous_crc: u32,
    /// Frames before its first that were not known to be synced when this was written.
    pub(crate) unsynced: u32,
    /// Length of its file: a shorter one was cut off.
    pub(crate) bytes: u64,
}

/// What a first page turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstPage {
    Header(SegmentHeader),
    /// A valid header of a format that this version does not know.
    UnknownVersion(u32),
    Damaged,
}

impl SegmentHeader {
    /// The last frame before it that was known to be synced.
    pub(crate) fn synced(&self) -> Lsn {
        self.first_lsn
            .saturating_sub(1)
            .saturating_sub(u64::from(self.unsynced))
    }

    /// The header page's bytes.
    pub(crate) fn encode(&self, salt: u64, page: &mut [u8]) {
        page[..PAGE as usize].fill(0);
        page[0..8].copy_from_slice(MAGIC);
        let version = match self.unsynced {
            0 => VERSION_SYNCED,
            _ => VERSION,
        };
        page[8..12].copy_from_slice(&version.to_le_bytes());
        page[16..24].copy_from_slice(&self.id.to_le_bytes());
        page[24..32].copy_from_slice(&self.cluster_id.to_le_bytes());
        page[32..40].copy_from_slice(&self.first_lsn.to_le_bytes());
        page[40..48].copy_from_slice(&self.previous.to_le_bytes());
        page[48..56].copy_from_slice(&self.revision.to_le_bytes());
        page[56..60].copy_from_slice(&self.previous_crc.to_le_bytes());
        page[60..64].copy_from_slice(&self.unsynced.to_le_bytes());
        page[64..72].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = checksum(salt, page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
    }
}

fn checksum(salt: u64, page: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(frame::seed(salt), &page[..12]);
    crc32c::crc32c_append(crc, &page[16..HEADER])
}

/// Reads a first page; fewer bytes count as damaged.
pub(crate) fn parse(page: &[u8], salt: u64) -> FirstPage {
    if page.len() < HEADER || &page[0..8] != MAGIC || u32_at(page, 12) != checksum(salt, page) {
        return FirstPage::Damaged;
    }
    match u32_at(page, 8) {
        VERSION_SYNCED | VERSION => FirstPage::Header(SegmentHeader {
            id: u64_at(page, 16),
            cluster_id: u64_at(page, 24),
            first_lsn: u64_at(page, 32),
            previous: u64_at(page, 40),
            revision: u64_at(page, 48) as i64,
            previous_crc: u32_at(page, 56),
            unsynced: u32_at(page, 60),
            bytes: u64_at(page, 64),
        }),
        version => FirstPage::UnknownVersion(version),
    }
}

/// The file of a segment in use or made ahead.
pub(crate) fn path(log_dir: &Path, id: u64) -> PathBuf {
    log_dir.join(format!("{id:016x}.seg"))
}

/// The id in a segment's file name.
pub(crate) fn id_of(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".seg")?;
    (hex.len() == 16)
        .then(|| u64::from_str_radix(hex, 16).ok())
        .flatten()
        .filter(|id| *id > 0)
}
