//! The marker: how far the log of visible writes reached, kept in memory.
//!
//! A file on tmpfs outlives a process and nothing else. Before a volatile write becomes
//! visible, its frame's LSN goes there, 8 bytes. A start that finds an open epoch trusts the
//! end of the log only if the marker is of this run of the machine and of these very files,
//! and the log reaches its LSN: then only a process died. Else the page cache may be lost,
//! and visible writes with it.
//!
//! Little-endian: magic (8 bytes), version (4), CRC32C of all but the LSN (4), boot id (64,
//! zeros behind it), cluster id, LSN that opened the epoch, segment id, its device, inode and
//! birth time (8 each), LSN (8).

use crate::Epoch;
use crate::Lsn;
use crate::dir::Layout;
use crate::frame::{u32_at, u64_at};
use crate::segment;
use files::{File, FileId, FileSystem, Kind, read_small};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"orlopmrk";
const VERSION: u32 = 1;
const BOOT_BYTES: usize = 64;
const LSN_AT: usize = 16 + BOOT_BYTES + 48;
const BYTES: usize = LSN_AT + 8;

/// What a marker says, all but the LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    boot: [u8; BOOT_BYTES],
    cluster_id: u64,
    /// The frame that opened the epoch: LSNs of such frames never come twice.
    opened: Lsn,
    segment: u64,
    file: FileId,
}

impl Claim {
    fn encode(&self, lsn: Lsn) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..16 + BOOT_BYTES].copy_from_slice(&self.boot);
        let numbers = [
            self.cluster_id,
            self.opened,
            self.segment,
            self.file.device,
            self.file.inode,
            self.file.birth_ns,
            lsn,
        ];
        for (at, number) in numbers.into_iter().enumerate() {
            let at = 16 + BOOT_BYTES + 8 * at;
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Option<(Claim, Lsn)> {
        if bytes.len() != BYTES
            || &bytes[0..8] != MAGIC
            || u32_at(bytes, 8) != VERSION
            || u32_at(bytes, 12) != checksum(bytes)
        {
            return None;
        }
        let mut boot = [0; BOOT_BYTES];
        boot.copy_from_slice(&bytes[16..16 + BOOT_BYTES]);
        let number = |n: usize| u64_at(bytes, 16 + BOOT_BYTES + 8 * n);
        let claim = Claim {
            boot,
            cluster_id: number(0),
            opened: number(1),
            segment: number(2),
            file: FileId {
                device: number(3),
                inode: number(4),
                birth_ns: number(5),
            },
        };
        Some((claim, number(6)))
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..12]);
    crc32c::crc32c_append(crc, &bytes[16..LSN_AT])
}

fn boot(fs: &dyn FileSystem) -> io::Result<[u8; BOOT_BYTES]> {
    let id = fs.boot_id()?;
    let mut boot = [0; BOOT_BYTES];
    let n = id.len().min(BOOT_BYTES);
    boot[..n].copy_from_slice(&id.as_bytes()[..n]);
    if n == 0 {
        return Err(io::Error::other("the system has no boot id"));
    }
    Ok(boot)
}

/// The marker's file, named after the data directory as the system knows it: a copy of the
/// directory has another one.
fn path(fs: &dyn FileSystem, marker_dir: &Path, layout: &Layout) -> io::Result<PathBuf> {
    let id = fs.file_id(&layout.dir)?;
    Ok(marker_dir.join(format!("orlop-{:x}-{:x}.marker", id.device, id.inode)))
}

/// The file of a segment, as the system knows it.
fn segment_file(fs: &dyn FileSystem, layout: &Layout, id: u64) -> io::Result<FileId> {
    fs.file_id(&segment::path(&layout.log, id))
}

/// Why there is no marker.
pub(crate) enum Failed {
    /// There is none, and none will be found.
    Gone,
    /// There is one that can neither be changed nor removed.
    Stuck(PathBuf, io::Error),
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Failed::Gone
    }
}

/// A marker of this process.
pub(crate) struct Marker {
    pub(crate) path: PathBuf,
    file: Arc<dyn File>,
    claim: Claim,
}

impl Marker {
    /// Makes the marker of an epoch; an older one of this directory goes. After an error there
    /// is none of this epoch, unless the error is of the second kind.
    pub(crate) fn create(
        fs: &dyn FileSystem,
        marker_dir: &Path,
        layout: &Layout,
        (cluster_id, opened): (u64, Lsn),
        segment: u64,
        lsn: Lsn,
    ) -> Result<Marker, Failed> {
        usable(fs, marker_dir)?;
        let path = path(fs, marker_dir, layout)?;
        let claim = Claim {
            boot: boot(fs)?,
            cluster_id,
            opened,
            segment,
            file: segment_file(fs, layout, segment)?,
        };
        if fs.kind(&path)?.is_some() {
            fs.remove(&path)?;
        }
        let file = fs.create(&path)?;
        let marker = Marker { path, file, claim };
        match marker.file.write_at(&claim.encode(lsn), 0) {
            Ok(()) => Ok(marker),
            Err(error) => Err(marker.give_up(fs, error)),
        }
    }

    /// After a change that failed and may have been made all the same: sees to it that no
    /// start finds this marker, which would vouch for less than was visible.
    pub(crate) fn give_up(self, fs: &dyn FileSystem, error: io::Error) -> Failed {
        match fs.remove(&self.path) {
            Ok(()) => Failed::Gone,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Failed::Gone,
            Err(_) => Failed::Stuck(self.path, error),
        }
    }

    /// The segment that it names.
    pub(crate) fn segment(&self) -> u64 {
        self.claim.segment
    }

    /// Notes that the log is to reach `lsn`.
    pub(crate) fn reach(&self, lsn: Lsn) -> io::Result<()> {
        self.file.write_at(&lsn.to_le_bytes(), LSN_AT as u64)
    }

    /// Goes on to the next segment.
    pub(crate) fn follow(
        &mut self,
        fs: &dyn FileSystem,
        layout: &Layout,
        segment: u64,
        lsn: Lsn,
    ) -> io::Result<()> {
        self.claim.segment = segment;
        self.claim.file = segment_file(fs, layout, segment)?;
        self.file.write_at(&self.claim.encode(lsn), 0)
    }
}

/// Removes the marker of an epoch that is over. One that stays harms nothing: it names an
/// epoch that is not open.
pub(crate) fn remove(fs: &dyn FileSystem, marker_dir: Option<&Path>, layout: &Layout) {
    let Some(Ok(path)) = marker_dir.map(|dir| path(fs, dir, layout)) else {
        return;
    };
    if matches!(fs.kind(&path), Ok(Some(Kind::File(_)))) {
        let _ = fs.remove(&path);
    }
}

/// Whether markers can be kept in this directory.
pub(crate) fn usable(fs: &dyn FileSystem, marker_dir: &Path) -> io::Result<()> {
    if fs.in_memory(marker_dir)? {
        return Ok(());
    }
    Err(io::Error::other(
        "it is not on a file system in memory (tmpfs), and so would outlive a power loss",
    ))
}

/// What a start makes of the end of a log within an open epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) trusted: bool,
    /// A sentence.
    pub(crate) reason: String,
}

/// Whether all that was visible is in a log that ends with frame `end`. `check_lsn` is false
/// only in a test that wants to see what happens then.
pub(crate) fn judge(
    fs: &dyn FileSystem,
    marker_dir: Option<&Path>,
    layout: &Layout,
    cluster_id: u64,
    epoch: Epoch,
    end: Lsn,
    check_lsn: bool,
) -> Verdict {
    let doubt = |reason: String| Verdict {
        trusted: false,
        reason,
    };
    let Some(marker_dir) = marker_dir else {
        return doubt("no directory in memory was given to keep a marker in".to_owned());
    };
    let read = || -> io::Result<_> {
        usable(fs, marker_dir)?;
        let path = path(fs, marker_dir, layout)?;
        let bytes = match fs.kind(&path)? {
            Some(Kind::File(bytes)) if bytes == BYTES as u64 => Some(read_small(fs, &path, bytes)?),
            _ => None,
        };
        let here = boot(fs)?;
        Ok((path, bytes, here))
    };
    let (path, bytes, here) = match read() {
        Ok(found) => found,
        Err(error) => return doubt(format!("no marker can be read: {error}")),
    };
    let path = path.display();
    let Some(bytes) = bytes else {
        return doubt(format!(
            "there is no marker {path}: the machine was restarted, or what it had in memory is gone"
        ));
    };
    let Some((claim, lsn)) = Claim::parse(&bytes) else {
        return doubt(format!("the marker {path} is not one that orlop wrote"));
    };
    if claim.boot != here {
        return doubt("the machine was restarted since".to_owned());
    }
    if claim.cluster_id != cluster_id || claim.opened != epoch.opened {
        return doubt(format!(
            "the marker {path} is of another log, or an older one"
        ));
    }
    match segment_file(fs, layout, claim.segment) {
        Ok(file) if file == claim.file => {}
        _ => {
            return doubt(
                "the log's files are not the ones that were written: the directory was copied or \
                 restored"
                    .to_owned(),
            );
        }
    }
    if check_lsn && end < lsn {
        return doubt(format!(
            "frame {lsn} was written and the log ends with frame {end}: the disk lost what the \
             system had not yet written to it"
        ));
    }
    Verdict {
        trusted: true,
        reason: format!("only the process ended: the marker {path} says that the log is complete"),
    }
}
