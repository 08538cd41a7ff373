//! Reading snapshots; `snapshot` has their format.

use crate::error::OpenError;
use crate::frame::{u32_at, u64_at};
use crate::record::{self, Unit};
use crate::replay::Replay;
use crate::snapshot::{
    BLOCK_HEADER, EPOCH, FOOTER, HEADER, MAGIC, MAX_BLOCK_BYTES, VERSION, block_crc,
};
use crate::{Epoch, Lsn};
use engine::record::{SnapshotItem, SnapshotMeta, VersionItem};
use files::{File, FileSystem, read_full};
use std::io;
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

impl SnapshotHeader {
    /// Where the blocks begin.
    fn bytes(&self) -> u64 {
        (HEADER + self.epoch.map_or(0, |_| EPOCH)) as u64
    }
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
        let epoch = match u32_at(&header, 8) {
            VERSION => Some(read_epoch(&*file)?),
            version if version < VERSION => None,
            version => return Err(Fault::Version(version)),
        };
        let header = SnapshotHeader {
            cluster_id: u64_at(&header, 16),
            lsn: u64_at(&header, 24),
            meta: SnapshotMeta {
                revision: u64_at(&header, 32) as i64,
                compact_revision: u64_at(&header, 40) as i64,
            },
            crc: u32_at(&header, 48),
            epoch,
        };
        let mut items = 0;
        let bytes = each_block(&*file, header.bytes(), |_, footer| {
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

fn read_epoch(file: &dyn File) -> Result<Epoch, Fault> {
    let mut bytes = [0; EPOCH];
    let n = read_full(file, &mut bytes, HEADER as u64)?;
    if n < EPOCH || u32_at(&bytes, 16) != crc32c::crc32c(&bytes[..16]) {
        return Err(Fault::Bad(0, "its header's checksum is wrong"));
    }
    Ok(Epoch {
        bound: u64_at(&bytes, 0) as i64,
        opened: u64_at(&bytes, 8),
    })
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
    start: u64,
    mut each: impl FnMut(Option<Block<'_>>, Option<u64>) -> Result<(), E>,
) -> Result<u64, E> {
    let length = file.len().map_err(Fault::Io)?;
    let mut offset = start;
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
        if size as u64 > length.saturating_sub(offset) || raw_bytes > MAX_BLOCK_BYTES {
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
        each_block(&*self.file, self.header.bytes(), |block, footer| {
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
