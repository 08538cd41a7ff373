//! Snapshots: the store at one position of the log, so that the log before it can go.
//!
//! A file is a header, blocks of about 256 KiB of items each compressed and with a checksum
//! of its own, and a footer with counts. It is written beside the log, by a thread of the
//! caller's, and gets its name only when all of it is on disk: a file with the name is whole.
//!
//! Header, little-endian: magic (8 bytes), version (4), CRC32C (4), cluster id, LSN,
//! revision, compact revision (8 each), checksum of the frame at the LSN (4), zero (4).
//! Block: compressed bytes (4), bytes (4), number (4), CRC32C of these and the data (4),
//! data. Footer: zero (4), zero (4), blocks (4), CRC32C (4), items (8), bytes (8).

use crate::dir::Layout;
use crate::error::{OpenError, SnapshotError};
use crate::frame::{u32_at, u64_at};
use crate::fs::{File, FileSystem, is_no_space, read_full};
use crate::record::{self, Unit};
use crate::recovery::Replay;
use crate::{Lsn, Position};
use engine::record::{SnapshotItem, SnapshotMeta, VersionItem};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"orlopsnp";
const VERSION: u32 = 1;
const HEADER: usize = 56;
const BLOCK_HEADER: usize = 16;
const FOOTER: usize = BLOCK_HEADER + 16;
/// A block is closed when it has this many bytes; one unit may make it longer.
const BLOCK_BYTES: usize = 256 * 1024;
/// No block is longer than this, before or after compression: a unit is at most a value.
const MAX_BLOCK_BYTES: usize = (1 << 30) + (1 << 20);
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

/// Writes one snapshot. Dropped before [`finish`](SnapshotWriter::finish), it leaves nothing.
pub struct SnapshotWriter {
    fs: Arc<dyn FileSystem>,
    snap_dir: PathBuf,
    temporary: PathBuf,
    lsn: Lsn,
    file: Arc<dyn File>,
    compressor: zstd::bulk::Compressor<'static>,
    block: Vec<u8>,
    out: Vec<u8>,
    offset: u64,
    synced: u64,
    blocks: u32,
    items: u64,
    raw_bytes: u64,
    finished: bool,
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
            Ok((fs.create(&temporary)?, zstd::bulk::Compressor::new(LEVEL)?))
        };
        let (file, compressor) = start().map_err(|source| SnapshotError::Io {
            path: temporary.clone(),
            source,
        })?;
        let mut writer = SnapshotWriter {
            fs,
            snap_dir,
            temporary,
            lsn: at.lsn,
            file,
            compressor,
            block: Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4),
            out: Vec::new(),
            offset: 0,
            synced: 0,
            blocks: 0,
            items: 0,
            raw_bytes: 0,
            finished: false,
        };
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&at.cluster_id.to_le_bytes());
        header.extend_from_slice(&at.lsn.to_le_bytes());
        header.extend_from_slice(&meta.revision.to_le_bytes());
        header.extend_from_slice(&meta.compact_revision.to_le_bytes());
        header.extend_from_slice(&at.crc.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        let crc = crc32c::crc32c(&header);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        writer.append(&header)?;
        Ok(writer)
    }

    fn error(&self) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
        let path = self.temporary.clone();
        move |source| SnapshotError::Io { path, source }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file
            .write_at(bytes, self.offset)
            .map_err(self.error())?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= SYNC_EVERY_BYTES {
            self.file.sync_data().map_err(self.error())?;
            self.synced = self.offset;
        }
        Ok(())
    }

    /// Adds the next item, in the order that [`SnapshotItem`] asks for.
    ///
    /// # Errors
    /// Those of the file system; the writer is of no use then.
    pub fn push(&mut self, item: &SnapshotItem) -> Result<(), SnapshotError> {
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
    fn end_block(&mut self, at_least: usize) -> Result<(), SnapshotError> {
        if self.block.len() < at_least.max(1) {
            return Ok(());
        }
        let error = self.error();
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        out.resize(
            BLOCK_HEADER + zstd::zstd_safe::compress_bound(self.block.len()),
            0,
        );
        let compressed = self
            .compressor
            .compress_to_buffer(&self.block, &mut out[BLOCK_HEADER..])
            .map_err(error)?;
        out.truncate(BLOCK_HEADER + compressed);
        seal_block(
            &mut out,
            compressed as u32,
            self.block.len() as u32,
            self.blocks,
        );
        self.append(&out)?;
        self.blocks += 1;
        self.raw_bytes += self.block.len() as u64;
        self.block.clear();
        if self.block.capacity() > 8 * BLOCK_BYTES {
            self.block = Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4);
            out = Vec::new();
        }
        self.out = out;
        Ok(())
    }

    /// Makes the snapshot last, under its name. Then the log up to it may be retired.
    ///
    /// # Errors
    /// Those of the file system; then there is no snapshot, and no file left of it, unless
    /// only the last sync of the directory failed.
    pub fn finish(mut self) -> Result<SnapshotInfo, SnapshotError> {
        self.end_block(1)?;
        let mut footer = vec![0; BLOCK_HEADER];
        footer.extend_from_slice(&self.items.to_le_bytes());
        footer.extend_from_slice(&self.raw_bytes.to_le_bytes());
        seal_block(&mut footer, 0, 0, self.blocks);
        self.append(&footer)?;
        let path = path(&self.snap_dir, self.lsn);
        self.file.sync_data().map_err(self.error())?;
        self.fs
            .rename(&self.temporary, &path)
            .map_err(self.error())?;
        self.finished = true;
        self.fs
            .sync_dir(&self.snap_dir)
            .map_err(|source| SnapshotError::Io {
                path: path.clone(),
                source,
            })?;
        Ok(SnapshotInfo {
            path,
            bytes: self.offset,
            items: self.items,
        })
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed now is removed at the next start.
            let _ = self.fs.remove(&self.temporary);
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

fn seal_block(out: &mut [u8], compressed: u32, raw: u32, number: u32) {
    out[0..4].copy_from_slice(&compressed.to_le_bytes());
    out[4..8].copy_from_slice(&raw.to_le_bytes());
    out[8..12].copy_from_slice(&number.to_le_bytes());
    let crc = block_crc(out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn block_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[BLOCK_HEADER..])
}

/// A snapshot's header, read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotHeader {
    pub(crate) meta: SnapshotMeta,
    pub(crate) cluster_id: u64,
    pub(crate) lsn: Lsn,
    pub(crate) crc: u32,
}

/// A snapshot that is whole.
pub(crate) struct Snapshot {
    pub(crate) path: PathBuf,
    pub(crate) header: SnapshotHeader,
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    file: Arc<dyn File>,
}

/// What is wrong with a snapshot file.
enum Fault {
    Io(io::Error),
    Version(u32),
    Bad(u64, &'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Io(error)
    }
}

impl Fault {
    fn into_error(self, path: &Path) -> OpenError {
        match self {
            Fault::Io(source) => OpenError::io("read", path)(source),
            Fault::Version(version) => OpenError::UnknownVersion {
                path: path.to_owned(),
                found: version.to_string(),
                known: VERSION,
            },
            Fault::Bad(offset, what) => {
                OpenError::damaged(path, offset, what, "the store as it was at this snapshot")
            }
        }
    }
}

/// Opens a snapshot and reads all of it once, so that nothing of a damaged one is used.
pub(crate) fn open(fs: &dyn FileSystem, path: &Path) -> Result<Snapshot, OpenError> {
    let read = || -> Result<Snapshot, Fault> {
        let file = fs.open(path, false)?;
        let mut header = [0; HEADER];
        if read_full(&*file, &mut header, 0)? < HEADER || &header[0..8] != MAGIC {
            return Err(Fault::Bad(0, "it does not begin like a snapshot"));
        }
        let stated = u32_at(&header, 12);
        header[12..16].fill(0);
        if stated != crc32c::crc32c(&header) {
            return Err(Fault::Bad(0, "its header's checksum is wrong"));
        }
        if u32_at(&header, 8) != VERSION {
            return Err(Fault::Version(u32_at(&header, 8)));
        }
        let header = SnapshotHeader {
            cluster_id: u64_at(&header, 16),
            lsn: u64_at(&header, 24),
            meta: SnapshotMeta {
                revision: u64_at(&header, 32) as i64,
                compact_revision: u64_at(&header, 40) as i64,
            },
            crc: u32_at(&header, 48),
        };
        let mut items = 0;
        let bytes = each_block(&*file, |_, footer| {
            items = footer.unwrap_or(items);
            Ok::<_, Fault>(())
        })?;
        Ok(Snapshot {
            path: path.to_owned(),
            header,
            items,
            bytes,
            file,
        })
    };
    read().map_err(|fault| fault.into_error(path))
}

/// Where a block's data is, compressed, and its size without.
struct Block<'a> {
    offset: u64,
    data: &'a [u8],
    raw_bytes: usize,
}

/// Checks and hands out every block, then `None` with the item count of the footer; returns
/// the file's bytes. Memory stays within one block, and a block within the file.
fn each_block<E: From<Fault>>(
    file: &dyn File,
    mut each: impl FnMut(Option<Block<'_>>, Option<u64>) -> Result<(), E>,
) -> Result<u64, E> {
    let length = file.len().map_err(Fault::Io)?;
    let mut offset = HEADER as u64;
    let mut buffer = Vec::new();
    let mut raw_total = 0;
    for number in 0.. {
        let bad = |what| E::from(Fault::Bad(offset, what));
        let mut header = [0; BLOCK_HEADER];
        if read_full(file, &mut header, offset).map_err(Fault::Io)? < BLOCK_HEADER {
            return Err(bad("the file ends within a block"));
        }
        let compressed = u32_at(&header, 0) as usize;
        let raw_bytes = u32_at(&header, 4) as usize;
        let last = compressed == 0;
        let size = if last {
            FOOTER
        } else {
            BLOCK_HEADER + compressed
        };
        if size as u64 > length - offset || raw_bytes > MAX_BLOCK_BYTES {
            return Err(bad("a block is longer than the file"));
        }
        buffer.resize(size, 0);
        if read_full(file, &mut buffer, offset).map_err(Fault::Io)? < size {
            return Err(bad("the file ends within a block"));
        }
        if u32_at(&buffer, 12) != block_crc(&buffer) || u32_at(&buffer, 8) != number {
            return Err(bad("a block's checksum is wrong"));
        }
        if last {
            if raw_total != u64_at(&buffer, BLOCK_HEADER + 8) || offset + size as u64 != length {
                return Err(bad("the footer's counts are wrong"));
            }
            each(None, Some(u64_at(&buffer, BLOCK_HEADER)))?;
            return Ok(length);
        }
        each(
            Some(Block {
                offset,
                data: &buffer[BLOCK_HEADER..],
                raw_bytes,
            }),
            None,
        )?;
        raw_total += raw_bytes as u64;
        offset += size as u64;
    }
    Err(Fault::Bad(offset, "it has too many blocks").into())
}

/// Why loading stopped.
enum LoadFault {
    Read(Fault),
    Store(u64, String),
}

impl From<Fault> for LoadFault {
    fn from(fault: Fault) -> Self {
        LoadFault::Read(fault)
    }
}

/// A key whose versions are still coming.
struct OpenKey {
    key: bytes::Bytes,
    left: u64,
    versions: Vec<VersionItem>,
}

impl Snapshot {
    /// Gives the store all of it.
    pub(crate) fn load(&self, store: &mut dyn Replay) -> Result<(), OpenError> {
        let result = self.feed(store).and_then(|()| {
            store
                .end_of_snapshot()
                .map_err(|reason| LoadFault::Store(self.bytes, reason))
        });
        result.map_err(|fault| match fault {
            LoadFault::Read(fault) => fault.into_error(&self.path),
            LoadFault::Store(offset, reason) => OpenError::Replay {
                path: self.path.clone(),
                offset,
                lsn: self.header.lsn,
                reason,
            },
        })
    }

    fn feed(&self, store: &mut dyn Replay) -> Result<(), LoadFault> {
        store
            .snapshot(self.header.meta)
            .map_err(|reason| LoadFault::Store(0, reason))?;
        let mut open: Option<OpenKey> = None;
        let mut items = 0;
        let mut raw = Vec::new();
        each_block(&*self.file, |block, footer| {
            let Some(block) = block else {
                if open.is_some() || footer != Some(items) {
                    return Err(LoadFault::Store(
                        self.bytes,
                        "its items do not add up".to_owned(),
                    ));
                }
                return Ok(());
            };
            raw.resize(block.raw_bytes, 0);
            let n = zstd::bulk::decompress_to_buffer(block.data, &mut raw)
                .map_err(|_| Fault::Bad(block.offset, "a block does not decompress"))?;
            decode_block(&raw[..n], &mut open, &mut |item| {
                items += 1;
                store.item(item)
            })
            .map_err(|reason| LoadFault::Store(block.offset, reason))
        })?;
        Ok(())
    }
}

/// A decoding or store error's text.
struct Text(String);

impl From<record::DecodeError> for Text {
    fn from(error: record::DecodeError) -> Self {
        Text(error.to_string())
    }
}

/// Decodes a block; `open` carries a key over from one to the next.
fn decode_block(
    block: &[u8],
    open: &mut Option<OpenKey>,
    each: &mut dyn FnMut(SnapshotItem) -> Result<(), String>,
) -> Result<(), String> {
    record::decode_units(block, |unit| {
        let item = match (unit, open.as_mut()) {
            (Unit::Lease { id, ttl_s }, None) => SnapshotItem::Lease { id, ttl_s },
            (Unit::Alarm { alarm }, None) => SnapshotItem::Alarm { alarm },
            (Unit::Key { key, versions }, None) if versions > 0 => {
                *open = Some(OpenKey {
                    key,
                    left: versions,
                    versions: Vec::new(),
                });
                return Ok(());
            }
            (Unit::Version(version), Some(key)) => {
                key.versions.push(version);
                key.left -= 1;
                if key.left > 0 {
                    return Ok(());
                }
                match open.take() {
                    Some(OpenKey { key, versions, .. }) => SnapshotItem::Key { key, versions },
                    None => return Ok(()),
                }
            }
            _ => return Err(Text("its items are out of order".to_owned())),
        };
        each(item).map_err(Text)
    })
    .map_err(|Text(reason)| reason)
}

/// Decodes the bytes of one block, uncompressed. For fuzzing.
///
/// # Errors
/// A sentence if they are not whole items in order.
pub fn decode_block_items(block: &[u8]) -> Result<Vec<SnapshotItem>, String> {
    let mut open = None;
    let mut items = Vec::new();
    decode_block(block, &mut open, &mut |item| {
        items.push(item);
        Ok(())
    })?;
    match open {
        None => Ok(items),
        Some(_) => Err("it ends within a key".to_owned()),
    }
}
