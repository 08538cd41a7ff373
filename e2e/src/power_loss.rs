//! A power loss, made from outside: of a killed server's log, the end that nothing proves to
//! be on the disk is taken away, and so is the marker that a machine keeps in memory.
//!
//! It knows the log's format (`docs/decisions/0002-journal-format.md`), and takes what a power
//! loss may take and no more: no durable frame, because one may have been answered without the
//! log telling, and nothing before one, because all that is synced by then is on the disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::kube::{Result, ensure, fail};

/// Frames begin on multiples of this.
const PAGE: u64 = 4096;
const SEGMENT_HEADER: usize = 72;
const FRAME_HEADER: usize = 64;
const SEGMENT_MAGIC: &[u8] = b"orlopseg";
const FRAME_MAGIC: &[u8] = b"oFrm";
const FLAG_VOLATILE: u32 = 4;

/// What is left of the frames that are not on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing.
    Gone,
    /// The first page of the first, if it has several.
    Torn,
    /// All but the first: a disk has its own order.
    Hole,
}

/// What was taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lost {
    /// Frames of volatile writes.
    pub frames: usize,
    /// Their bytes, padding included.
    pub bytes: u64,
}

/// A segment in use.
struct Segment {
    id: u64,
    first_lsn: u64,
    /// Up to where the log was known to be synced when it was begun.
    synced: u64,
    frames: Vec<Frame>,
}

struct Frame {
    file: PathBuf,
    at: u64,
    bytes: u64,
    lsn: u64,
    /// All up to there was known to be synced when it was written.
    mark: u64,
    volatile: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// The number in a file's name, which is hexadecimal.
fn number(path: &Path, extension: &str) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    u64::from_str_radix(name.strip_suffix(extension)?.strip_suffix('.')?, 16).ok()
}

/// Reads a segment; `None` if it is not in use.
fn segment(path: &Path, id: u64) -> Result<Option<Segment>> {
    let file = File::open(path)?;
    let mut header = [0; SEGMENT_HEADER];
    let read = file.read_at(&mut header, 0)?;
    let first_lsn = u64_at(&header, 32);
    if read < SEGMENT_HEADER || !header.starts_with(SEGMENT_MAGIC) || first_lsn == 0 {
        return Ok(None);
    }
    let synced = (first_lsn - 1).saturating_sub(u64::from(u32_at(&header, 60)));
    let (mut frames, mut at, mut crc) = (Vec::new(), PAGE, None);
    loop {
        let mut header = [0; FRAME_HEADER];
        let read = file.read_at(&mut header, at)?;
        // The chain of checksums tells what an earlier end of the log left behind.
        let follows = crc.is_none_or(|crc| u32_at(&header, 48) == crc);
        let own = header.starts_with(FRAME_MAGIC) && u64_at(&header, 16) == id;
        if read < FRAME_HEADER || !own || !follows {
            return Ok(Some(Segment {
                id,
                first_lsn,
                synced,
                frames,
            }));
        }
        crc = Some(u32_at(&header, 4));
        let bytes = (FRAME_HEADER as u64 + u64::from(u32_at(&header, 8))).next_multiple_of(PAGE);
        frames.push(Frame {
            file: path.to_owned(),
            at,
            bytes,
            lsn: u64_at(&header, 24),
            mark: u64_at(&header, 32),
            volatile: u32_at(&header, 52) & FLAG_VOLATILE != 0,
        });
        at += bytes;
    }
}

/// The frames that a power loss may take, in their order.
fn unsynced(data: &Path) -> Result<Vec<Frame>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(data.join("log"))? {
        let path = entry?.path();
        if let Some(id) = number(&path, "seg") {
            segments.extend(segment(&path, id)?);
        }
    }
    segments.sort_by_key(|segment| segment.id);
    let (mut frames, mut kept) = (Vec::new(), 0);
    while let Some(segment) = segments.pop() {
        // What an earlier loss left torn is still there, before the segment that goes on.
        for earlier in &mut segments {
            earlier.frames.retain(|frame| frame.lsn < segment.first_lsn);
        }
        kept = kept.max(segment.synced);
        frames.extend(segment.frames);
    }
    for entry in std::fs::read_dir(data.join("snap"))? {
        // A snapshot has all up to its frame, and is synced.
        kept = kept.max(number(&entry?.path(), "snap").unwrap_or(0));
    }
    frames.sort_by_key(|frame| frame.lsn);
    ensure(
        frames.windows(2).all(|pair| pair[0].lsn + 1 == pair[1].lsn),
        || format!("{}: the log is not as this test knows it", data.display()),
    )?;
    for frame in &frames {
        kept = kept.max(frame.mark);
        if !frame.volatile {
            kept = kept.max(frame.lsn);
        }
    }
    frames.retain(|frame| frame.lsn > kept);
    Ok(frames)
}

/// Makes a killed server's data directory one that a power loss left.
///
/// # Errors
/// If its files are not what this module knows.
pub fn take_the_end(data: &Path, end: End) -> Result<Lost> {
    let mut lost = Lost::default();
    for (n, frame) in unsynced(data)?.iter().enumerate() {
        let from = match (end, n) {
            (End::Torn, 0) if frame.bytes > PAGE => PAGE,
            (End::Hole, 1..) => frame.bytes,
            _ => 0,
        };
        let zeros = vec![0; (frame.bytes - from) as usize];
        let file = OpenOptions::new().write(true).open(&frame.file)?;
        file.write_all_at(&zeros, frame.at + from)?;
        lost.frames += 1;
        lost.bytes += frame.bytes;
    }
    Ok(lost)
}

/// Takes away what a server keeps in memory to know a killed process from a power loss.
///
/// # Errors
/// If there is none.
pub fn take_the_marker(data: &Path) -> Result<()> {
    let own = std::fs::metadata(data)?;
    let name = format!("orlop-{:x}-{:x}.marker", own.dev(), own.ino());
    for dir in ["/run/orlop", "/dev/shm"] {
        let path = Path::new(dir).join(&name);
        if path.is_file() {
            return Ok(std::fs::remove_file(path)?);
        }
    }
    fail(format!("there is no {name}"))
}
