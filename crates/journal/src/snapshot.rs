//! Writing snapshots: the store at one position of the log, so that the log before it can go.
//!
//! A file is a header, blocks of about 256 KiB of items each compressed and with a checksum
//! of its own, and a footer with counts. It is written beside the log, by a thread of the
//! caller's, and gets its name only when all of it is on disk: a file with the name is whole.
//!
//! Header, little-endian: magic (8 bytes), version (4), CRC32C (4), cluster id, LSN,
//! revision, compact revision (8 each), checksum of the frame at the LSN (4), zero (4). That
//! is version 1; one taken within an epoch is of version 2 and goes on with the epoch's bound
//! and the LSN that opened it (8 each) and their CRC32C (4).
//! Block: compressed bytes (4), bytes (4), number (4), CRC32C of these and the data (4),
//! data. Footer: zero (4), zero (4), blocks (4), CRC32C (4), items (8), bytes (8).

use crate::dir::Layout;
use crate::error::SnapshotError;
use crate::{Lsn, Position, record};
use engine::record::{SnapshotItem, SnapshotMeta};
use files::{File, FileSystem, is_no_space};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const MAGIC: &[u8; 8] = b"orlopsnp";
const VERSION_PLAIN: u32 = 1;
/// The highest version known: taken within an epoch.
pub(crate) const VERSION: u32 = 2;
pub(crate) const HEADER: usize = 56;
/// Bytes of an epoch, behind the header.
pub(crate) const EPOCH: usize = 20;
pub(crate) const BLOCK_HEADER: usize = 16;
pub(crate) const FOOTER: usize = BLOCK_HEADER + 16;
/// A block is closed when it has this many bytes; one unit may make it longer.
const BLOCK_BYTES: usize = 256 * 1024;
/// No block is longer than this, before or after compression: a unit is at most a value.
pub(crate) const MAX_BLOCK_BYTES: usize = (1 << 30) + (1 << 20);
/// Bytes written between syncs, so that a large snapshot never leaves the disk a long
/// queue of writes for a commit to wait behind.
const SYNC_EVERY_BYTES: u64 = 4 << 20;
const LEVEL: i32 = 1;

/// The file of a snapshot at `lsn`.
pub(crate) fn path(snap_dir: &Path, lsn: Lsn) -> PathBuf {
    snap_dir.join(format!("{lsn:016x}.snap"))
}

/// LSNs of the snapshots in `snap/` ascending, and unfinished files.
pub(crate) fn list(fs: &dyn FileSystem, layout: &Layout) -> io::Result<(Vec<Lsn>, Vec<PathBuf>)> {
    let mut found = Vec::new();
    let mut temporary = Vec::new();
    for name in fs.read_dir(&layout.snap)? {
        if let Some(hex) = name.strip_suffix(".snap").filter(|hex| hex.len() == 16) {
            found.extend(u64::from_str_radix(hex, 16).ok());
        } else if name.ends_with(".tmp") {
            temporary.push(layout.snap.join(name));
        }
    }
    found.sort_unstable();
    Ok((found, temporary))
}

/// What a finished snapshot took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its file.
    pub path: PathBuf,
    /// The file's bytes.
    pub bytes: u64,
    /// Items in it.
    pub items: u64,
}

/// A file that is written front to back, and synced now and then.
struct Synced {
    file: Arc<dyn File>,
    offset: u64,
    synced: u64,
}

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= SYNC_EVERY_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced = self.offset;
        Ok(())
    }
}

/// Writes one snapshot into a directory. Dropped before [`finish`](SnapshotWriter::finish), it
/// leaves nothing.
pub struct SnapshotWriter {
    fs: Arc<dyn FileSystem>,
    snap_dir: PathBuf,
    temporary: PathBuf,
    lsn: Lsn,
    /// `None` once it is finished.
    encoder: Option<SnapshotEncoder<Synced>>,
}

impl SnapshotWriter {
    /// Starts a snapshot of the store as it is after the commit that gave `at`.
    ///
    /// # Errors
    /// Those of the file system, a full disk among them.
    pub fn create(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        meta: SnapshotMeta,
        at: Position,
    ) -> Result<Self, SnapshotError> {
        let snap_dir = Layout::new(dir).snap;
        let temporary = snap_dir.join(format!("{:016x}.tmp", at.lsn));
        let start = || -> io::Result<_> {
            if fs.kind(&temporary)?.is_some() {
                fs.remove(&temporary)?;
            }
            let out = Synced {
                file: fs.create(&temporary)?,
                offset: 0,
                synced: 0,
            };
            SnapshotEncoder::new(out, meta, at).inspect_err(|_| {
                let _ = fs.remove(&temporary);
            })
        };
        let encoder = start().map_err(|source| SnapshotError::Io {
            path: temporary.clone(),
            source,
        })?;
        Ok(SnapshotWriter {
            fs,
            snap_dir,
            temporary,
            lsn: at.lsn,
            encoder: Some(encoder),
        })
    }

    fn error(&self) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
        let path = self.temporary.clone();
        move |source| SnapshotError::Io { path, source }
    }

    /// Adds the next item, in the order that [`SnapshotItem`] asks for.
    ///
    /// # Errors
    /// Those of the file system; the writer is of no use then.
    pub fn push(&mut self, item: &SnapshotItem) -> Result<(), SnapshotError> {
        let error = self.error();
        let encoder = self.encoder.as_mut();
        encoder.map_or(Ok(()), |encoder| encoder.push(item).map_err(error))
    }

    /// Makes the snapshot last, under its name. Then the log up to it may be retired.
    ///
    /// # Errors
    /// Those of the file system; then there is no snapshot, and no file left of it, unless
    /// only the last sync of the directory failed.
    pub fn finish(mut self) -> Result<SnapshotInfo, SnapshotError> {
        let (path, error) = (path(&self.snap_dir, self.lsn), self.error());
        let mut finish = || -> io::Result<(u64, u64)> {
            let Some(encoder) = self.encoder.take() else {
                return Err(io::ErrorKind::Other.into());
            };
            let items = encoder.items;
            let mut out = encoder.finish()?;
            out.flush()?;
            self.fs.rename(&self.temporary, &path)?;
            Ok((out.offset, items))
        };
        let (bytes, items) = finish().inspect_err(|_| self.remove()).map_err(error)?;
        self.fs
            .sync_dir(&self.snap_dir)
            .map_err(|source| SnapshotError::Io {
                path: path.clone(),
                source,
            })?;
        Ok(SnapshotInfo { path, bytes, items })
    }

    /// What cannot be removed now is removed at the next start.
    fn remove(&self) {
        let _ = self.fs.remove(&self.temporary);
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if self.encoder.is_some() {
            self.remove();
        }
    }
}

impl SnapshotError {
    /// Whether the disk or a quota is full.
    pub fn is_no_space(&self) -> bool {
        let SnapshotError::Io { source, .. } = self;
        is_no_space(source)
    }
}

/// Writes a snapshot's bytes to anything that takes bytes: a file, or who follows from
/// elsewhere. [`read_snapshot`](crate::read_snapshot) reads them.
pub struct SnapshotEncoder<W> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    block: Vec<u8>,
    compressed: Vec<u8>,
    blocks: u32,
    items: u64,
    raw_bytes: u64,
}

impl<W: Write> SnapshotEncoder<W> {
    /// Starts a snapshot of the store as it is at `at`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W, meta: SnapshotMeta, at: Position) -> io::Result<Self> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        let version = at.epoch.map_or(VERSION_PLAIN, |_| VERSION);
        header.extend_from_slice(&version.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&at.cluster_id.to_le_bytes());
        header.extend_from_slice(&at.lsn.to_le_bytes());
        header.extend_from_slice(&meta.revision.to_le_bytes());
        header.extend_from_slice(&meta.compact_revision.to_le_bytes());
        header.extend_from_slice(&at.crc.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        let crc = crc32c::crc32c(&header);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        if let Some(epoch) = at.epoch {
            header.extend_from_slice(&epoch.bound.to_le_bytes());
            header.extend_from_slice(&epoch.opened.to_le_bytes());
            let crc = crc32c::crc32c(&header[HEADER..]);
            header.extend_from_slice(&crc.to_le_bytes());
        }
        out.write_all(&header)?;
        Ok(SnapshotEncoder {
            out,
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            block: Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4),
            compressed: Vec::new(),
            blocks: 0,
            items: 0,
            raw_bytes: 0,
        })
    }

    /// Adds the next item, in the order that [`SnapshotItem`] asks for.
    ///
    /// # Errors
    /// Those of the output; the encoder is of no use then.
    pub fn push(&mut self, item: &SnapshotItem) -> io::Result<()> {
        self.items += 1;
        match item {
            SnapshotItem::Lease { id, ttl_s } => {
                record::encode_lease(*id, *ttl_s, &mut self.block);
            }
            SnapshotItem::Alarm { alarm } => record::encode_alarm(*alarm, &mut self.block),
            SnapshotItem::Key { key, versions } => {
                record::encode_key(key, versions.len(), &mut self.block);
                // A key's versions may be many: they go on over as many blocks as they need.
                for version in versions {
                    record::encode_version(version, &mut self.block);
                    self.end_block(BLOCK_BYTES)?;
                }
            }
        }
        self.end_block(BLOCK_BYTES)
    }

    /// Writes the open block out if it has `at_least` bytes.
    fn end_block(&mut self, at_least: usize) -> io::Result<()> {
        if self.block.len() < at_least.max(1) {
            return Ok(());
        }
        let out = &mut self.compressed;
        out.clear();
        out.resize(
            BLOCK_HEADER + zstd::zstd_safe::compress_bound(self.block.len()),
            0,
        );
        let compressed = self
            .compressor
            .compress_to_buffer(&self.block, &mut out[BLOCK_HEADER..])?;
        out.truncate(BLOCK_HEADER + compressed);
        seal_block(out, compressed as u32, self.block.len() as u32, self.blocks);
        self.out.write_all(out)?;
        self.blocks += 1;
        self.raw_bytes += self.block.len() as u64;
        self.block.clear();
        if self.block.capacity() > 8 * BLOCK_BYTES {
            self.block = Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4);
            self.compressed = Vec::new();
        }
        Ok(())
    }

    /// Ends the snapshot, and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_block(1)?;
        let mut footer = vec![0; BLOCK_HEADER];
        footer.extend_from_slice(&self.items.to_le_bytes());
        footer.extend_from_slice(&self.raw_bytes.to_le_bytes());
        seal_block(&mut footer, 0, 0, self.blocks);
        self.out.write_all(&footer)?;
        Ok(self.out)
    }
}

fn seal_block(out: &mut [u8], compressed: u32, raw: u32, number: u32) {
    out[0..4].copy_from_slice(&compressed.to_le_bytes());
    out[4..8].copy_from_slice(&raw.to_le_bytes());
    out[8..12].copy_from_slice(&number.to_le_bytes());
    let crc = block_crc(out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
}

pub(crate) fn block_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[BLOCK_HEADER..])
}
