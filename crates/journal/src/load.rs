//! Reading snapshots; `snapshot` has their format.

use crate::error::OpenError;
use crate::frame::{u32_at, u64_at};
use crate::record::{self, Unit};
use crate::replay::Replay;
use crate::snapshot::{
    BLOCK_HEADER, EPOCH, FOOTER, HEADER, MAGIC, MAX_BLOCK_BYTES, VERSION, block_crc,
};
use crate::{Epoch, Lsn, Position};
use engine::record::{SnapshotItem, SnapshotMeta, VersionItem};
use files::{File, FileSystem};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A snapshot's header, read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotHeader {
    pub(crate) meta: SnapshotMeta,
    pub(crate) cluster_id: u64,
    pub(crate) lsn: Lsn,
    pub(crate) crc: u32,
    /// The epoch that was open.
    pub(crate) epoch: Option<Epoch>,
}

/// A snapshot that is whole.
pub(crate) struct Snapshot {
    pub(crate) path: PathBuf,
    pub(crate) header: SnapshotHeader,
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    file: Arc<dyn File>,
}

/// Reads a file from its beginning.
struct FileReader {
    file: Arc<dyn File>,
    offset: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
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
        let mut blocks = Blocks::of(file.clone());
        let header = blocks.header()?;
        let (items, bytes) = loop {
            if let Part::End { items, bytes } = blocks.next()? {
                break (items, bytes);
            }
        };
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

/// A snapshot's blocks, front to back. Memory stays within one block.
struct Blocks<R> {
    input: R,
    offset: u64,
    number: u32,
    raw_total: u64,
    buffer: Vec<u8>,
}

/// What comes next in a snapshot.
enum Part<'a> {
    /// A block: where its data begins, compressed, and its size without.
    Block {
        offset: u64,
        data: &'a [u8],
        raw_bytes: usize,
    },
    /// The footer: that was all.
    End { items: u64, bytes: u64 },
}

impl Blocks<FileReader> {
    fn of(file: Arc<dyn File>) -> Self {
        Blocks::new(FileReader { file, offset: 0 })
    }
}

impl<R: Read> Blocks<R> {
    fn new(input: R) -> Self {
        Blocks {
            input,
            offset: 0,
            number: 0,
            raw_total: 0,
            buffer: Vec::new(),
        }
    }

    /// Appends the next bytes to the buffer; fewer only at the end. A length that is not true
    /// reserves nothing.
    fn more(&mut self, bytes: usize) -> io::Result<bool> {
        let n = (&mut self.input)
            .take(bytes as u64)
            .read_to_end(&mut self.buffer)?;
        Ok(n == bytes)
    }

    /// The header, which comes first.
    fn header(&mut self) -> Result<SnapshotHeader, Fault> {
        if !self.more(HEADER)? || &self.buffer[0..8] != MAGIC {
            return Err(Fault::Bad(0, "it does not begin like a snapshot"));
        }
        let mut header = std::mem::take(&mut self.buffer);
        let stated = u32_at(&header, 12);
        header[12..16].fill(0);
        if stated != crc32c::crc32c(&header) {
            return Err(Fault::Bad(0, "its header's checksum is wrong"));
        }
        let epoch = match u32_at(&header, 8) {
            VERSION => Some(self.epoch()?),
            version if version < VERSION => None,
            version => return Err(Fault::Version(version)),
        };
        self.offset = (HEADER + epoch.map_or(0, |_| EPOCH)) as u64;
        Ok(SnapshotHeader {
            cluster_id: u64_at(&header, 16),
            lsn: u64_at(&header, 24),
            meta: SnapshotMeta {
                revision: u64_at(&header, 32) as i64,
                compact_revision: u64_at(&header, 40) as i64,
            },
            crc: u32_at(&header, 48),
            epoch,
        })
    }

    fn epoch(&mut self) -> Result<Epoch, Fault> {
        let whole = self.more(EPOCH)?;
        let bytes = std::mem::take(&mut self.buffer);
        if !whole || u32_at(&bytes, 16) != crc32c::crc32c(&bytes[..16]) {
            return Err(Fault::Bad(0, "its header's checksum is wrong"));
        }
        Ok(Epoch {
            bound: u64_at(&bytes, 0) as i64,
            opened: u64_at(&bytes, 8),
        })
    }

    /// The next block, checked, or the footer.
    fn next(&mut self) -> Result<Part<'_>, Fault> {
        let offset = self.offset;
        let bad = |what| Err(Fault::Bad(offset, what));
        self.buffer.clear();
        if !self.more(BLOCK_HEADER)? {
            return bad("the file ends within a block");
        }
        let compressed = u32_at(&self.buffer, 0) as usize;
        let raw_bytes = u32_at(&self.buffer, 4) as usize;
        let last = compressed == 0;
        if compressed > 2 * MAX_BLOCK_BYTES || raw_bytes > MAX_BLOCK_BYTES {
            return bad("a block is longer than one can be");
        }
        let rest = if last {
            FOOTER - BLOCK_HEADER
        } else {
            compressed
        };
        if !self.more(rest)? {
            return bad("the file ends within a block");
        }
        let right = u32_at(&self.buffer, 12) == block_crc(&self.buffer);
        if !right || u32_at(&self.buffer, 8) != self.number {
            return bad("a block's checksum is wrong");
        }
        self.offset += self.buffer.len() as u64;
        if last {
            let counted = u64_at(&self.buffer, BLOCK_HEADER + 8);
            let items = u64_at(&self.buffer, BLOCK_HEADER);
            if self.raw_total != counted || self.more(1)? {
                return bad("the footer's counts are wrong");
            }
            let bytes = self.offset;
            return Ok(Part::End { items, bytes });
        }
        self.number = self.number.wrapping_add(1);
        self.raw_total += raw_bytes as u64;
        Ok(Part::Block {
            offset,
            data: &self.buffer[BLOCK_HEADER..],
            raw_bytes,
        })
    }
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

impl LoadFault {
    fn into_error(self, path: &Path, lsn: Lsn) -> OpenError {
        match self {
            LoadFault::Read(fault) => fault.into_error(path),
            LoadFault::Store(offset, reason) => OpenError::Replay {
                path: path.to_owned(),
                offset,
                lsn,
                reason,
            },
        }
    }
}

impl Snapshot {
    /// Gives the store all of it.
    pub(crate) fn load(&self, store: &mut dyn Replay) -> Result<(), OpenError> {
        let mut blocks = Blocks::of(self.file.clone());
        let header = blocks.header().map_err(LoadFault::Read);
        header
            .and_then(|header| feed(&mut blocks, &header, store))
            .map_err(|fault| fault.into_error(&self.path, self.header.lsn))
    }
}

/// Reads a snapshot that comes from elsewhere into a store, and tells the position that it
/// stands at. `name` is where it comes from, for errors. After an error the store holds a part
/// of it, and is of no use.
///
/// # Errors
/// [`OpenError`]: it is damaged or cut off, of another version, or the store does not take it.
pub fn read_snapshot(
    name: &Path,
    input: impl Read,
    store: &mut dyn Replay,
) -> Result<Position, OpenError> {
    let mut blocks = Blocks::new(input);
    let header = blocks.header().map_err(|fault| fault.into_error(name))?;
    feed(&mut blocks, &header, store).map_err(|fault| fault.into_error(name, header.lsn))?;
    Ok(Position {
        lsn: header.lsn,
        crc: header.crc,
        cluster_id: header.cluster_id,
        bytes: 0,
        epoch: header.epoch,
    })
}

/// Gives the store what comes after the header.
fn feed<R: Read>(
    blocks: &mut Blocks<R>,
    header: &SnapshotHeader,
    store: &mut dyn Replay,
) -> Result<(), LoadFault> {
    store
        .snapshot(header.meta)
        .map_err(|reason| LoadFault::Store(0, reason))?;
    let mut open: Option<OpenKey> = None;
    let mut items = 0;
    let mut raw = Vec::new();
    loop {
        match blocks.next()? {
            Part::Block {
                offset,
                data,
                raw_bytes,
            } => {
                raw.resize(raw_bytes, 0);
                let n = zstd::bulk::decompress_to_buffer(data, &mut raw)
                    .map_err(|_| Fault::Bad(offset, "a block does not decompress"))?;
                decode_block(&raw[..n], &mut open, &mut |item| {
                    items += 1;
                    store.item(item)
                })
                .map_err(|reason| LoadFault::Store(offset, reason))?;
            }
            Part::End { items: all, bytes } => {
                let fail = |reason| LoadFault::Store(bytes, reason);
                if open.is_some() || all != items {
                    return Err(fail("its items do not add up".to_owned()));
                }
                return store.end_of_snapshot().map_err(fail);
            }
        }
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
