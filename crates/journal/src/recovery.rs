//! Reading a directory back: the latest snapshot, then the frames after it, in order.
//!
//! This only reads; [`crate::writer`] does what must be written before serving, and
//! [`crate::check`] reports instead. Memory stays within one frame or snapshot block.
//!
//! **Where the log ends.** The first bad frame ends it, whatever follows, unless something
//! says that this frame had been synced: a later frame's mark, a later segment's header
//! (which says how much before it was synced when it was written), a snapshot at or after it.
//! Then bytes that were on disk are gone, and the start is refused.
//!
//! **What does not belong.** A new segment is begun at every start. A segment names the one
//! before it and its own first LSN, so frames left behind an end that was once found are
//! passed over. Each frame carries the checksum of the one before it, through all segments,
//! and a snapshot that of its frame: files of different histories do not join.
//!
//! **What follows.** [`crate::order`] gives the store the records in the order of their
//! revisions. If the log ends within an epoch, [`crate::settle`] says what that means.

use crate::chain::{Headers, Link, check_chain, choose_snapshot, read_headers};
use crate::dir::{self, Format, Layout};
use crate::error::OpenError;
use crate::frame::{self, FLAG_CLOSE, HEADER, PAGE};
use crate::load::Snapshot;
use crate::open::Guards;
use crate::order::{Order, Refusal};
use crate::replay::Replay;
use crate::scan;
use crate::segment;
use crate::snapshot;
use crate::window::Window;
use crate::{Lsn, Position};
use files::{FileSystem, read_full};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

/// A frame that nothing later proves synced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailFrame {
    /// Index in [`Recovered::chain`].
    pub(crate) link: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) lsn: Lsn,
}

/// What was found.
pub(crate) struct Recovered {
    /// The segments that were read, in order; at least one.
    pub(crate) chain: Vec<Link>,
    /// Segments that the snapshot made superfluous.
    pub(crate) superseded: Vec<u64>,
    /// Segments after the log's end: made ahead, or with frames that follow lost ones. They
    /// have to go one by one, the last first.
    pub(crate) unused: Vec<u64>,
    /// The newest of those that were made ahead.
    pub(crate) ahead: Option<u64>,
    pub(crate) files: dir::LogFiles,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) snapshots: Vec<Lsn>,
    pub(crate) snapshot_leftovers: Vec<PathBuf>,
    pub(crate) tail: VecDeque<TailFrame>,
    /// What is not yet visible at the end, and whether an epoch is open there.
    pub(crate) order: Order,
    pub(crate) end: Position,
    pub(crate) frames: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) closed: bool,
    pub(crate) cut_short: Option<String>,
    pub(crate) warnings: Vec<String>,
}

impl Recovered {
    pub(crate) fn snapshot_lsn(&self) -> Lsn {
        self.snapshot.as_ref().map_or(0, |s| s.header.lsn)
    }

    /// Frames up to `synced` are no part of the tail.
    fn proven(&mut self, synced: Lsn) {
        while self.tail.front().is_some_and(|tail| tail.lsn <= synced) {
            self.tail.pop_front();
        }
    }
}

/// Reads everything, feeding `store`.
pub(crate) fn read(
    fs: &dyn FileSystem,
    layout: &Layout,
    format: &Format,
    guards: Guards,
    store: &mut dyn Replay,
) -> Result<Recovered, OpenError> {
    for sub in [&layout.log, &layout.snap] {
        if fs
            .kind(sub)
            .map_err(OpenError::io("look at", sub))?
            .is_none()
        {
            return Err(OpenError::mismatch(
                sub,
                "it is missing: restore a copy of the whole data directory",
            ));
        }
    }
    let files = dir::list_log(fs, layout)?;
    let Headers {
        mut started,
        unused,
        damaged,
    } = read_headers(fs, layout, format, &files)?;
    let (snapshots, snapshot_leftovers) =
        snapshot::list(fs, layout).map_err(OpenError::io("list", &layout.snap))?;
    let mut warnings = Vec::new();
    let (snapshot, first) = choose_snapshot(
        fs,
        layout,
        format,
        &snapshots,
        &started,
        &damaged,
        &mut warnings,
    )?;
    let superseded = started.drain(..first).map(|link| link.header.id).collect();
    let later = check_chain(layout, &mut started, &unused, &damaged)?;
    let mut found = Recovered {
        chain: started,
        superseded,
        ahead: unused.last().copied(),
        unused,
        files,
        snapshot,
        snapshots,
        snapshot_leftovers,
        tail: VecDeque::new(),
        order: Order::default(),
        end: Position::default(),
        frames: 0,
        records: 0,
        bytes: 0,
        closed: false,
        cut_short: None,
        warnings,
    };
    if let Some(snapshot) = &found.snapshot {
        snapshot.load(store)?;
        found.order.epoch = snapshot.header.epoch;
    }
    Replayer {
        fs,
        layout,
        format,
        guards,
        store,
    }
    .run(&mut found, later, &damaged)?;
    Ok(found)
}

struct Replayer<'a> {
    fs: &'a dyn FileSystem,
    layout: &'a Layout,
    format: &'a Format,
    guards: Guards,
    store: &'a mut dyn Replay,
}

impl Replayer<'_> {
    fn run(
        &mut self,
        found: &mut Recovered,
        mut later: Vec<Link>,
        damaged: &[u64],
    ) -> Result<(), OpenError> {
        let snapshot_lsn = found.snapshot_lsn();
        // What is known synced from outside the frames.
        let mut synced = found.snapshots.last().copied().unwrap_or(0);
        let first = found.chain[0].header;
        let mut crc = first.previous_crc;
        let mut expected = first.first_lsn;
        let mut end_offset = PAGE;
        if first.first_lsn == snapshot_lsn + 1 {
            self.check_snapshot_joins(found, crc)?;
        }
        let mut index = 0;
        while index < found.chain.len() {
            let link = &found.chain[index];
            let (id, path) = (link.header.id, link.path.clone());
            if link.header.first_lsn != expected || link.header.previous_crc != crc {
                return Err(OpenError::mismatch(
                    path,
                    format!(
                        "it does not continue the segment before it (its first frame is {}, the \
                         next would be {expected}): old and new files are mixed; restore a copy of \
                         the whole directory, made while orlop was stopped",
                        link.header.first_lsn
                    ),
                ));
            }
            synced = synced.max(link.header.synced());
            let next = found.chain.get(index + 1).map(|link| link.header.first_lsn);
            let mut window =
                Window::new(link.file.clone()).map_err(OpenError::io("read", &path))?;
            let mut offset = PAGE;
            found.closed = false;
            // Frames at and after the next segment's first were once found to be no part
            // of the log.
            while next != Some(expected) {
                let frame = window
                    .frame(offset, id, self.format, self.guards)
                    .map_err(OpenError::io("read", &path))?;
                let Some((header, frame_crc, payload)) =
                    frame.filter(|(header, ..)| header.lsn == expected)
                else {
                    break;
                };
                if header.previous_crc != crc {
                    return Err(OpenError::mismatch(
                        path,
                        format!(
                            "frame {expected} at offset {offset} belongs to another history than \
                             the frame before it; restore a copy of the whole directory"
                        ),
                    ));
                }
                if header.lsn > snapshot_lsn {
                    let applied = found.order.frame(self.store, &header, payload);
                    applied.map_err(|Refusal(reason)| OpenError::Replay {
                        path: path.clone(),
                        offset,
                        lsn: expected,
                        reason,
                    })?;
                    found.frames += 1;
                    found.records += u64::from(header.records);
                    found.bytes += header.frame_bytes();
                }
                crc = frame_crc;
                if header.lsn == snapshot_lsn {
                    self.check_snapshot_joins(found, crc)?;
                }
                synced = synced.max(header.mark);
                let bytes = header.frame_bytes();
                found.tail.push_back(TailFrame {
                    link: index,
                    offset,
                    bytes,
                    lsn: header.lsn,
                });
                found.proven(synced);
                found.closed = header.flags & FLAG_CLOSE != 0;
                found.chain[index].last_lsn = expected;
                expected += 1;
                offset += bytes;
            }
            if next != Some(expected) {
                // The log ends here, unless something proves it longer.
                later.splice(0..0, found.chain.drain(index + 1..));
                let proof = if synced >= expected {
                    Some(synced)
                } else if found.closed && later.is_empty() || !self.guards.mark {
                    None
                } else {
                    let file = &*found.chain[index].file;
                    scan::find_mark(file, offset, expected, id, self.format, self.guards)
                        .map_err(OpenError::io("read", &path))?
                        .map(|header| header.mark)
                };
                if let Some(last) = proof.or_else(|| proven_by_headers(&later, expected)) {
                    return Err(self.lost(found, path, offset, expected, last));
                }
            }
            found.chain[index].end_offset = offset;
            end_offset = offset;
            index += 1;
        }
        let last = found.chain.len() - 1;
        self.look_beyond(found, &later, damaged, (expected, end_offset))?;
        found.cut_short = cut_short(&found.chain[last], end_offset, expected, found.closed)
            .map_err(OpenError::io("read", &found.chain[last].path))?;
        found.proven(synced);
        found.end = Position {
            lsn: expected - 1,
            crc,
            cluster_id: self.format.identity.cluster_id,
            bytes: found.bytes,
            epoch: found.order.epoch,
        };
        Ok(())
    }

    /// Segments after the log's end: anything in them that proves the log longer?
    fn look_beyond(
        &self,
        found: &mut Recovered,
        later: &[Link],
        damaged: &[u64],
        (expected, end_offset): (Lsn, u64),
    ) -> Result<(), OpenError> {
        let last = &found.chain[found.chain.len() - 1];
        let (last_id, last_path) = (last.header.id, last.path.clone());
        let mut beyond = found.unused.clone();
        beyond.extend(later.iter().map(|link| link.header.id));
        beyond.extend_from_slice(damaged);
        for id in beyond
            .into_iter()
            .filter(|id| *id > last_id && self.guards.mark)
        {
            let path = segment::path(&self.layout.log, id);
            let mark = self
                .fs
                .open(&path, false)
                .and_then(|file| {
                    scan::find_mark(&*file, PAGE, expected, id, self.format, self.guards)
                })
                .map_err(OpenError::io("read", &path))?;
            if let Some(header) = mark {
                let first_page = if damaged.contains(&id) {
                    (path, 0)
                } else {
                    (last_path, end_offset)
                };
                return Err(self.lost(found, first_page.0, first_page.1, expected, header.mark));
            }
        }
        found.unused.extend(later.iter().map(|link| link.header.id));
        found.unused.extend(damaged);
        found.unused.sort_unstable();
        Ok(())
    }

    fn lost(&self, found: &Recovered, path: PathBuf, offset: u64, from: Lsn, to: Lsn) -> OpenError {
        let covered = found.snapshot_lsn();
        let note = if to <= covered {
            format!(" (a snapshot has what was in them, up to frame {covered})")
        } else {
            String::new()
        };
        OpenError::damaged(
            path,
            offset,
            format!("frame {from} should be here and was on disk once"),
            format!("frames {from} to {to} at least, and all acknowledged after them{note}"),
        )
    }

    fn check_snapshot_joins(&self, found: &Recovered, crc: u32) -> Result<(), OpenError> {
        let Some(snapshot) = found.snapshot.as_ref().filter(|s| s.header.crc != crc) else {
            return Ok(());
        };
        Err(OpenError::mismatch(
            &snapshot.path,
            "the snapshot and the log come from different histories: old and new files are mixed; \
             restore a copy of the whole directory, made while orlop was stopped",
        ))
    }
}

/// The last frame that headers of segments from `later` on prove synced, if it is one that
/// should be there.
fn proven_by_headers(later: &[Link], expected: Lsn) -> Option<Lsn> {
    let synced = later.iter().map(|link| link.header.synced()).max()?;
    (synced >= expected).then_some(synced)
}

/// A sentence if there is more than zeros where the next frame would be.
fn cut_short(last: &Link, offset: u64, expected: Lsn, closed: bool) -> io::Result<Option<String>> {
    let mut page = vec![0; PAGE as usize];
    let n = read_full(&*last.file, &mut page, offset)?;
    let ours = n >= HEADER && frame::peek(&page[..n], last.header.id, u64::MAX).is_some();
    Ok((ours && !closed).then(|| {
        format!(
            "the log ends with frame {} in {} at offset {offset}; what follows was being written \
             when the process or the machine stopped, and nobody was told that it is on disk",
            expected - 1,
            last.path.display()
        )
    }))
}
