//! A start after a power loss, when others held the log's newest frames in memory: their frames go
//! back to where they were in the log's files, byte for byte, before the log is opened. Then it is
//! as if only the process had ended.

use crate::check::Counter;
use crate::dir::{self, DirState, Format, Layout};
use crate::error::OpenError;
use crate::frame::{self, FrameHeader, HEADER, PAGE};
use crate::hold::HeldFrame;
use crate::holders::{Holder, HoldersNote, next_generation};
use crate::marker;
use crate::open::Guards;
use crate::recovery::{self, Recovered};
use crate::segment::{self, FirstPage};
use crate::{Lsn, chain::Link};
use files::{File, FileSystem, Kind};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a start has to ask of holders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The cluster whose frames they hold.
    pub cluster_id: u64,
    /// The directory's term.
    pub raft_term: u64,
    /// Which start this is: holders are to take nothing from earlier ones.
    pub generation: u64,
    /// The set that they were.
    pub set: u64,
    /// Any one of these is enough, if it is still what it was.
    pub holders: Vec<Holder>,
    /// The last frame that is on disk: what comes after it is asked for.
    pub after: Lsn,
}

/// What came of it. A holder that answers was closed first to every server that was started
/// earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One of them answered, with all frames of the set that it holds.
    Held {
        /// Which.
        holder: Holder,
        /// Its frames, in order; none if it was given none of the set.
        frames: Vec<HeldFrame>,
        /// The last frame that it held, or was told to be on the disk; 0 if it was given none of
        /// the set.
        held: Lsn,
    },
    /// None of them did; a sentence about each.
    Nobody(String),
}

/// The log in a directory is complete up to there: nothing that was visible is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete {
    pub(crate) lsn: Lsn,
    /// Frames that came from a holder.
    pub frames: u64,
    /// Which holder, if any was asked.
    pub holder: Option<Holder>,
    /// Why, in a sentence.
    pub reason: String,
}

/// What a start of a server that has holders begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// Which start this is, noted on disk; `None` if there is no directory yet, and
    /// [`Journal::next_generation`](crate::Journal::next_generation) is to say.
    pub generation: Option<u64>,
    /// For [`Options::holders`](crate::Options::holders); `None` if nobody had to be asked: the
    /// directory is new, was closed, nobody held anything, or only a process ended.
    pub complete: Option<Complete>,
}

/// Begins a start of a server that has holders: notes it, asks holders for what a power loss took
/// from the directory's log, and puts it back.
///
/// # Errors
/// [`OpenError::Holders`] if no holder answers; nothing was changed then. [`OpenError`] if what
/// one holds does not follow what is on disk, or the directory cannot be read or written.
pub fn recover(
    fs: &dyn FileSystem,
    dir: &Path,
    marker_dir: Option<&Path>,
    guards: Guards,
    ask: &mut dyn FnMut(&Asked) -> Found,
) -> Result<Begun, OpenError> {
    let state = dir::inspect(fs, dir).map_err(OpenError::io("look at", dir))?;
    if state != DirState::Orlop {
        return Ok(Begun::default());
    }
    // It is locked from here on.
    let opened = dir::open(fs, dir)?;
    let Some(format) = &opened.format else {
        return Ok(Begun::default());
    };
    let generation = next_generation(fs, dir)?;
    let begun = Begun {
        generation: Some(generation),
        complete: None,
    };
    let note = HoldersNote::read(fs, dir)?;
    let Some(set) = note.set.filter(|set| !set.holders.is_empty()) else {
        return Ok(begun);
    };
    let mut store = Counter { revision: 1 };
    let found = recovery::read(fs, &opened.layout, format, guards, &mut store)?;
    let Some(epoch) = found.order.epoch.filter(|epoch| epoch.opened == set.opened) else {
        return Ok(begun);
    };
    let end = found.end.lsn;
    let (cluster_id, raft_term) = (format.identity.cluster_id, format.identity.raft_term);
    let verdict = marker::judge(
        fs,
        marker_dir,
        &opened.layout,
        cluster_id,
        epoch,
        end,
        guards.marker,
    );
    if verdict.trusted {
        return Ok(begun);
    }
    let asked = Asked {
        cluster_id,
        raft_term,
        generation,
        set: set.number,
        holders: set.holders.clone(),
        after: end,
    };
    match ask(&asked) {
        Found::Nobody(told) => Err(OpenError::Holders {
            path: dir.to_owned(),
            holders: names(&asked.holders),
            told,
        }),
        Found::Held {
            holder,
            frames,
            held,
        } => {
            let frames = joined(format, &opened.layout, &found, guards, frames)?;
            let count = frames.len() as u64;
            let last = end + count;
            if last < held.max(set.after) && guards.contiguity {
                return Err(does_not_join(&opened.layout, held.max(set.after)));
            }
            put_back(fs, &opened.layout, format, &found, frames)?;
            let reason = match count {
                0 => format!(
                    "{} held nothing of the set that the disk does not have",
                    holder.name
                ),
                _ => format!(
                    "{} held frames {} to {last}, which the disk had lost",
                    holder.name,
                    end + 1
                ),
            };
            let complete = Complete {
                lsn: last,
                frames: count,
                holder: Some(holder),
                reason,
            };
            Ok(Begun {
                complete: Some(complete),
                ..begun
            })
        }
    }
}

/// Holders' names, for a sentence.
pub(crate) fn names(holders: &[Holder]) -> String {
    let names: Vec<&str> = holders.iter().map(|holder| holder.name.as_str()).collect();
    names.join(", ")
}

/// A frame, taken apart.
struct Frame {
    header: FrameHeader,
    held: HeldFrame,
}

/// Those of a holder's frames that come after the log's end, which they have to follow without a
/// hole: by number, and each with the checksum of the one before it.
fn joined(
    format: &Format,
    layout: &Layout,
    found: &Recovered,
    guards: Guards,
    frames: Vec<HeldFrame>,
) -> Result<Vec<Frame>, OpenError> {
    let mut at = (found.end.lsn, found.end.crc);
    let mut joined = Vec::new();
    for held in frames {
        let bytes = &held.bytes;
        let segment = (bytes.len() >= HEADER).then(|| frame::u64_at(bytes, 16));
        let header = segment.and_then(|id| frame::peek(bytes, id, bytes.len() as u64));
        let parsed = header.filter(|header| {
            bytes.len() == HEADER + header.payload_bytes as usize && header.lsn == held.lsn
        });
        let crc = parsed.and_then(|_| frame::verify(bytes, format.salt, guards.checksum));
        let Some((header, crc)) = parsed.zip(crc) else {
            return Err(OpenError::mismatch(
                &layout.log,
                format!("what a shard holds as frame {} is damaged", held.lsn),
            ));
        };
        if header.lsn <= at.0 && joined.is_empty() {
            if header.lsn == at.0 && crc != at.1 && guards.contiguity {
                return Err(does_not_join(layout, header.lsn));
            }
            continue;
        }
        if (header.lsn != at.0 + 1 || header.previous_crc != at.1) && guards.contiguity {
            return Err(does_not_join(layout, header.lsn));
        }
        at = (header.lsn, crc);
        joined.push(Frame { header, held });
    }
    Ok(joined)
}

fn does_not_join(layout: &Layout, lsn: Lsn) -> OpenError {
    OpenError::mismatch(
        &layout.log,
        format!(
            "frame {lsn}, which a shard holds, does not follow what is on this disk: the directory \
             is older than the shard's frames, or another server used it meanwhile. Start from the \
             newest copy of the directory; with --recover-without-shards what shards hold is left \
             out, and writes of the class `replicated` of the last moments may be missing"
        ),
    )
}

/// The file that frames go back to.
struct Target {
    id: u64,
    file: Arc<dyn File>,
    offset: u64,
}

/// Writes frames to where they were. Done again after a crash, it writes the same.
fn put_back(
    fs: &dyn FileSystem,
    layout: &Layout,
    format: &Format,
    found: &Recovered,
    frames: Vec<Frame>,
) -> Result<(), OpenError> {
    let Some(last) = found.chain.last().filter(|_| !frames.is_empty()) else {
        return Ok(());
    };
    let mut target = open_last(fs, last).map_err(OpenError::io("open", &last.path))?;
    let mut files = vec![(last.path.clone(), target.file.clone())];
    for Frame { header, held } in frames {
        for page in &held.headers {
            let FirstPage::Header(of_segment) = segment::parse(page, format.salt) else {
                return Err(OpenError::mismatch(
                    &layout.log,
                    format!(
                        "what a shard holds with frame {} is no segment's header",
                        held.lsn
                    ),
                ));
            };
            if of_segment.id <= target.id {
                continue;
            }
            let path = segment::path(&layout.log, of_segment.id);
            let begun = begin_segment(fs, &path, page, of_segment.bytes);
            let file = begun.map_err(OpenError::io("write", &path))?;
            files.push((path, file.clone()));
            target = Target {
                id: of_segment.id,
                file,
                offset: PAGE,
            };
        }
        if header.segment != target.id {
            return Err(does_not_join(layout, header.lsn));
        }
        let mut bytes = held.bytes.to_vec();
        bytes.resize(header.frame_bytes() as usize, 0);
        let written = target.file.write_at(&bytes, target.offset);
        written.map_err(OpenError::io("write", &layout.log))?;
        target.offset += header.frame_bytes();
    }
    for (path, file) in files {
        file.sync_data().map_err(OpenError::io("sync", &path))?;
    }
    fs.sync_dir(&layout.log)
        .map_err(OpenError::io("sync", &layout.log))
}

fn open_last(fs: &dyn FileSystem, last: &Link) -> io::Result<Target> {
    Ok(Target {
        id: last.header.id,
        file: fs.open(&last.path, true)?,
        offset: last.end_offset,
    })
}

/// A segment with this header and no frames. It was made before it was used, mostly.
fn begin_segment(
    fs: &dyn FileSystem,
    path: &Path,
    header: &[u8],
    bytes: u64,
) -> io::Result<Arc<dyn File>> {
    let (file, length) = match fs.kind(path)? {
        Some(Kind::File(length)) => (fs.open(path, true)?, length),
        _ => (fs.create(path)?, 0),
    };
    let mut at = length / PAGE * PAGE;
    while at < bytes {
        let piece = (bytes - at).min(1 << 20);
        file.write_zeros(at, piece as usize)?;
        at += piece;
    }
    let mut page = header.to_vec();
    page.resize(PAGE as usize, 0);
    file.write_at(&page, 0)?;
    Ok(file)
}
