//! Opening for writing, and group commit.

use crate::allocator::{Allocator, Closed, Shared};
use crate::dir::{self, Format, Identity, Layout, NewDirectory, Opened};
use crate::error::{CommitError, OpenError};
use crate::frame::{self, FLAG_CLOSE, FrameHeader, HEADER, MAX_PAYLOAD_BYTES, PAGE};
use crate::fs::{File, FileSystem, Kind, Lock, is_no_space, read_full};
use crate::recovery::{self, Link, Recovered, Replay};
use crate::segment::{self, SegmentHeader};
use crate::{Lsn, Position, record};
use engine::record::Record;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;
/// The first segment of a start without a spare one: small, so that the start is quick.
const FIRST_SEGMENT_BYTES: u64 = 16 << 20;
const MIN_SEGMENT_BYTES: u64 = 4 * PAGE;
/// The commit buffer is given back above this, so that one large commit does not stay.
const KEEP_BUFFER_BYTES: usize = 16 << 20;

/// Protections that tests switch off, one at a time, to see a test fail without them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// Frames are taken only with a right checksum.
    pub checksum: bool,
    /// Marks tell a torn end from damage.
    pub mark: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            checksum: true,
            mark: true,
        }
    }
}

/// How to open a journal.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the directory gets if it is new.
    pub new: NewDirectory,
    /// Size of a segment in bytes, default 64 MiB, at least 16 KiB. A larger commit gets a
    /// segment of its own size.
    pub segment_bytes: u64,
    /// Retired segments kept to be used again, default 2.
    pub spare_segments: usize,
    /// Commits are not synced: a power loss loses what the system had not yet written, as
    /// with etcd's `--unsafe-no-fsync`. Default false.
    pub no_fsync: bool,
    #[doc(hidden)]
    pub guards: Guards,
}

impl Options {
    /// The defaults.
    pub fn new(new: NewDirectory) -> Self {
        Options {
            new,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            spare_segments: 2,
            no_fsync: false,
            guards: Guards::default(),
        }
    }
}

/// What a start found and did.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// Whose directory it is.
    pub identity: Identity,
    /// Whether it was made by this start.
    pub created: bool,
    /// The snapshot that it started from, 0 for none.
    pub snapshot_lsn: Lsn,
    /// Frames applied after the snapshot.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// The log's end.
    pub position: Position,
    /// Whether the last process closed it.
    pub closed: bool,
    /// A sentence if the log ended in a frame that was not whole, and that nobody was told of.
    pub cut_short: Option<String>,
    /// There was no room for a next segment: commits fail with [`CommitError::NoSpace`]
    /// until there is.
    pub no_space: bool,
    /// Sentences on what was wrong without harm.
    pub warnings: Vec<String>,
}

/// What a commit did and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// The log's end after it.
    pub position: Position,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Time in the write, in microseconds.
    pub write_us: u64,
    /// Time in the fdatasync, in microseconds.
    pub sync_us: u64,
}

/// The segment that frames go to.
struct Current {
    id: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    bytes: u64,
    /// Where the next frame goes; 0 while not even the header is written.
    offset: u64,
    header: SegmentHeader,
}

/// A log open for writing. One thread owns it.
pub struct Journal {
    shared: Arc<Shared>,
    _lock: Box<dyn Lock>,
    cluster_id: u64,
    salt: u64,
    no_fsync: bool,
    current: Option<Current>,
    /// The last segment with a header, and its LSN range's end: kept until the next is begun.
    previous: Option<Closed>,
    lsn: Lsn,
    crc: u32,
    /// The highest LSN known synced.
    synced: Lsn,
    /// The highest mark written.
    marked: Lsn,
    bytes: u64,
    /// A page for a segment's header, then the frame.
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or makes a data directory: reads all that it holds into `store`, makes what was
    /// read last on disk, and readies a new segment.
    ///
    /// # Errors
    /// [`OpenError`], in sentences for an operator.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: Options,
        store: &mut dyn Replay,
    ) -> Result<(Journal, OpenReport), OpenError> {
        let opened = dir::open(&*fs, dir)?;
        match opened.format.clone() {
            None => create(fs, opened, options, store),
            Some(format) => {
                let found = recovery::read(&*fs, &opened.layout, &format, options.guards, store)?;
                resume(fs, opened, format, options, found)
            }
        }
    }

    fn start(shared: Shared, lock: Box<dyn Lock>, format: &Format, no_fsync: bool) -> Self {
        Journal {
            shared: Arc::new(shared),
            _lock: lock,
            cluster_id: format.identity.cluster_id,
            salt: format.salt,
            no_fsync,
            current: None,
            previous: None,
            lsn: 0,
            crc: 0,
            synced: 0,
            marked: 0,
            bytes: 0,
            buffer: Vec::new(),
        }
    }

    /// Puts records on disk, all or none: one write and one sync. When it returns they are
    /// there after any crash. `revision_before` is the store's revision before them.
    ///
    /// # Errors
    /// After [`CommitError::NoSpace`] and [`CommitError::TooLarge`] the log is as before.
    /// After [`CommitError::Poisoned`] nothing is known of these records until the next start,
    /// and every later call fails the same.
    pub fn commit(
        &mut self,
        records: &[Record],
        revision_before: i64,
    ) -> Result<CommitInfo, CommitError> {
        let bytes: u64 = records.iter().map(record::encoded_bytes_at_most).sum();
        if bytes > MAX_PAYLOAD_BYTES {
            return Err(CommitError::TooLarge {
                bytes,
                limit: MAX_PAYLOAD_BYTES,
            });
        }
        let info = self.append(records, revision_before, 0)?;
        if self.no_fsync {
            return Ok(info);
        }
        let began = Instant::now();
        self.sync()?;
        Ok(CommitInfo {
            sync_us: micros(began),
            ..info
        })
    }

    /// Notes in the log that its end is synced, so that damage to the last commit is told
    /// from a torn one. To be called when no commit has come for a while; it is not synced
    /// itself, and does nothing if there is nothing to note.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn mark(&mut self, revision: i64) -> Result<(), CommitError> {
        let room = self
            .current
            .as_ref()
            .is_some_and(|c| c.offset + PAGE <= c.bytes);
        if !room || self.marked >= self.synced || self.synced < self.lsn {
            return self.shared.poison().map_or(Ok(()), Err);
        }
        self.append(&[], revision, 0).map(drop)
    }

    /// Writes a frame; does not sync it.
    fn append(
        &mut self,
        records: &[Record],
        revision_before: i64,
        flags: u32,
    ) -> Result<CommitInfo, CommitError> {
        if let Some(error) = self.shared.poison() {
            return Err(error);
        }
        let page = PAGE as usize;
        self.buffer.resize(page + HEADER, 0);
        for record in records {
            record::encode(record, &mut self.buffer);
        }
        let payload_bytes = (self.buffer.len() - page - HEADER) as u32;
        let frame_end = self.buffer.len();
        self.buffer.resize(frame_end.next_multiple_of(page), 0);
        let frame_bytes = (self.buffer.len() - page) as u64;

        let fits = self
            .current
            .as_ref()
            .is_some_and(|c| c.offset.max(PAGE) + frame_bytes <= c.bytes);
        if !fits {
            self.begin_segment(PAGE + frame_bytes, revision_before)?;
        }
        let Some(current) = &mut self.current else {
            return Err(CommitError::NoSpace {
                path: self.shared.layout.log.clone(),
            });
        };
        let header = FrameHeader {
            payload_bytes,
            records: records.len() as u32,
            segment: current.id,
            lsn: self.lsn + 1,
            mark: self.synced,
            revision_before,
            previous_crc: self.crc,
            flags,
        };
        let crc = frame::seal(&mut self.buffer[page..frame_end], &header, self.salt);
        let from = if current.offset == 0 {
            current.header.encode(self.salt, &mut self.buffer[..page]);
            0
        } else {
            page
        };
        let began = Instant::now();
        if let Err(error) = current.file.write_at(&self.buffer[from..], current.offset) {
            // Full without having been told (copy-on-write file systems): this frame was not
            // acknowledged, and the next one goes to the same place, under the same LSN.
            return Err(if is_no_space(&error) {
                withdraw(current, &header, self.salt)
                    .map_err(|error| self.shared.set_poison(&current.path, error))?;
                CommitError::NoSpace {
                    path: current.path.clone(),
                }
            } else {
                self.shared.set_poison(&current.path, error)
            });
        }
        let write_us = micros(began);
        current.offset = current.offset.max(PAGE) + frame_bytes;
        self.lsn += 1;
        self.crc = crc;
        self.marked = self.synced;
        self.bytes += frame_bytes;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        let position = self.position();
        Ok(CommitInfo {
            position,
            bytes: frame_bytes,
            write_us,
            sync_us: 0,
        })
    }

    fn sync(&mut self) -> Result<(), CommitError> {
        if self.synced == self.lsn {
            return Ok(());
        }
        if let Some(error) = self.shared.poison() {
            return Err(error);
        }
        if let Some(current) = &self.current {
            current
                .file
                .sync_data()
                .map_err(|error| self.shared.set_poison(&current.path, error))?;
        }
        self.synced = self.lsn;
        // The current segment's header is on disk: the one before it may be retired.
        if let Some(previous) = self.previous.take() {
            self.shared.add_closed(previous);
        }
        Ok(())
    }

    /// Goes on to a segment with room for `min_bytes`. Its header comes with its first frame.
    fn begin_segment(&mut self, min_bytes: u64, revision: i64) -> Result<(), CommitError> {
        let ready = self.shared.take_ready(min_bytes)?;
        // The new header will say that all before it is synced, and name the segment before.
        self.sync()?;
        self.write_header()?;
        if let Some(Current { id, bytes, .. }) = self.current.take() {
            let ended = Closed {
                id,
                last_lsn: self.lsn,
                bytes,
                whole: true,
            };
            if let Some(previous) = self.previous.replace(ended) {
                self.shared.add_closed(previous);
            }
        }
        self.current = Some(Current {
            header: SegmentHeader {
                id: ready.id,
                cluster_id: self.cluster_id,
                first_lsn: self.lsn + 1,
                previous: self.previous.as_ref().map_or(0, |previous| previous.id),
                revision,
                previous_crc: self.crc,
                bytes: ready.bytes,
            },
            id: ready.id,
            path: ready.path,
            file: ready.file,
            bytes: ready.bytes,
            offset: 0,
        });
        Ok(())
    }

    /// Writes and syncs the current segment's header if no frame brought it yet.
    fn write_header(&mut self) -> Result<(), CommitError> {
        let Some(current) = self.current.as_mut().filter(|current| current.offset == 0) else {
            return Ok(());
        };
        let mut page = vec![0; PAGE as usize];
        current.header.encode(self.salt, &mut page);
        current
            .file
            .write_at(&page, 0)
            .and_then(|()| current.file.sync_data())
            .map_err(|error| {
                // Nothing was acknowledged by this header: it can be written again, but a
                // sync that failed cannot be tried again.
                self.shared.set_poison(&current.path, error)
            })?;
        current.offset = PAGE;
        Ok(())
    }

    /// The log's end.
    pub fn position(&self) -> Position {
        Position {
            lsn: self.lsn,
            crc: self.crc,
            cluster_id: self.cluster_id,
            bytes: self.bytes,
        }
    }

    /// The position for a snapshot of the store as of the last commit. Without fsync, what
    /// came before it is synced now: a snapshot says that it was.
    ///
    /// # Errors
    /// As [`commit`](Journal::commit).
    pub fn snapshot_position(&mut self) -> Result<Position, CommitError> {
        self.sync()?;
        Ok(self.position())
    }

    /// Sees to it that a next segment is ready; so, whether a full disk has room again.
    ///
    /// # Errors
    /// [`CommitError::NoSpace`] if not, or the error that ended the journal.
    pub fn ensure_room(&mut self) -> Result<(), CommitError> {
        if self.shared.has_ready() {
            return self.shared.poison().map_or(Ok(()), Err);
        }
        self.shared.prepare_default()
    }

    /// What makes segments ahead, for a thread of the caller's.
    pub fn allocator(&self) -> Allocator {
        Allocator(self.shared.clone())
    }

    /// Bytes of frames since the latest snapshot; what a start would have to replay.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.bytes
            .saturating_sub(self.shared.snapshot_bytes.load(Ordering::Relaxed))
    }

    /// Bytes of the log's files, those ready and spare included.
    pub fn log_bytes(&self) -> u64 {
        self.shared.log_bytes.load(Ordering::Relaxed)
    }

    /// The error that ended all commits, if one did.
    pub fn poisoned(&self) -> Option<CommitError> {
        self.shared.poison()
    }

    /// Closes the log: a last frame says that all before it is synced and nothing follows.
    ///
    /// # Errors
    /// If the journal was poisoned before, or is by this. On a full disk that frame is
    /// left out, which is no error.
    pub fn close(mut self, revision: i64) -> Result<(), CommitError> {
        self.sync()?;
        if self.current.is_some() {
            match self.append(&[], revision, FLAG_CLOSE) {
                Ok(_) => self.sync()?,
                Err(CommitError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// After a write that found no room: if all of the frame got there nevertheless (its padding
/// did not), takes it back, for it is not to be found at the next start.
fn withdraw(current: &Current, header: &FrameHeader, salt: u64) -> io::Result<()> {
    let offset = current.offset.max(PAGE);
    let mut frame = vec![0; HEADER + header.payload_bytes as usize];
    let whole = read_full(&*current.file, &mut frame, offset)? == frame.len()
        && frame::peek(&frame, current.id, u64::MAX).as_ref() == Some(header)
        && frame::verify(&frame, salt, true).is_some();
    if whole {
        current.file.write_at(&[0; HEADER], offset)?;
        current.file.sync_data()?;
    }
    Ok(())
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// A commit error of the start.
fn open_error(error: CommitError) -> OpenError {
    match error {
        CommitError::NoSpace { path } => OpenError::NoSpace { path },
        CommitError::Poisoned { file, source } => OpenError::Io {
            action: "write",
            path: file,
            source: io::Error::new(source.kind(), source.to_string()),
        },
        CommitError::TooLarge { bytes, limit } => {
            OpenError::mismatch("", format!("{bytes} bytes are over {limit}"))
        }
    }
}

fn new_shared(
    fs: Arc<dyn FileSystem>,
    layout: Layout,
    format: &Format,
    options: &Options,
    next_id: u64,
    in_use: u64,
) -> Shared {
    let segment_bytes = options
        .segment_bytes
        .max(MIN_SEGMENT_BYTES)
        .next_multiple_of(PAGE);
    let sizes = (segment_bytes, options.spare_segments);
    let identity = (format.identity.cluster_id, format.salt);
    Shared::new(fs, layout, identity, sizes, next_id, in_use)
}

/// Makes a directory: first a segment whose header is on disk, then the format file. So a
/// directory with a format file always has a segment in use, and one without has no data.
fn create(
    fs: Arc<dyn FileSystem>,
    opened: Opened,
    options: Options,
    store: &mut dyn Replay,
) -> Result<(Journal, OpenReport), OpenError> {
    let Opened { layout, lock, .. } = opened;
    dir::lay_out(&*fs, &layout)?;
    let format = dir::new_format(&options.new);
    let shared = new_shared(fs.clone(), layout.clone(), &format, &options, 1, 0);
    let mut journal = Journal::start(shared, lock, &format, options.no_fsync);
    let first = options
        .segment_bytes
        .min(FIRST_SEGMENT_BYTES)
        .max(MIN_SEGMENT_BYTES);
    journal
        .shared
        .prepare(first.next_multiple_of(PAGE))
        .map_err(open_error)?;
    journal
        .begin_segment(MIN_SEGMENT_BYTES, store.revision())
        .map_err(open_error)?;
    journal.write_header().map_err(open_error)?;
    let format = dir::write_format(&*fs, &layout, &options.new)?;
    let report = OpenReport {
        identity: format.identity,
        created: true,
        snapshot_lsn: 0,
        frames: 0,
        records: 0,
        bytes: 0,
        position: journal.position(),
        closed: true,
        cut_short: None,
        no_space: false,
        warnings: Vec::new(),
    };
    Ok((journal, report))
}

/// Makes what was read safe to build on, cleans up, and readies the next segment.
fn resume(
    fs: Arc<dyn FileSystem>,
    opened: Opened,
    format: Format,
    options: Options,
    found: Recovered,
) -> Result<(Journal, OpenReport), OpenError> {
    let Opened { layout, lock, .. } = opened;
    rewrite_tail(&*fs, &found)?;
    // Names too may be readable and not on disk, if the last process died before its sync.
    for path in [&layout.dir, &layout.log, &layout.snap] {
        fs.sync_dir(path).map_err(OpenError::io("sync", path))?;
    }

    let ids = found.files.segments.iter().chain(&found.files.spares);
    let next_id = ids.max().copied().unwrap_or(0) + 1;
    let in_use = found.chain.last().map_or(0, |link| link.header.id);
    let shared = new_shared(fs, layout, &format, &options, next_id, in_use);
    let mut journal = Journal::start(shared, lock, &format, options.no_fsync);
    journal.lsn = found.end.lsn;
    journal.crc = found.end.crc;
    journal.synced = found.end.lsn;
    journal.marked = found.end.lsn;
    journal.bytes = found.end.bytes;
    adopt(&mut journal, &found)?;
    let report = OpenReport {
        identity: format.identity,
        created: false,
        snapshot_lsn: found.snapshot_lsn(),
        frames: found.frames,
        records: found.records,
        bytes: found.bytes,
        position: journal.position(),
        closed: found.closed,
        cut_short: found.cut_short,
        no_space: ready_first(&journal, &options)?,
        warnings: found.warnings,
    };
    Ok((journal, report))
}

/// Writes again, and syncs, what nothing in the log proves synced: after a failed sync the
/// system may show bytes as written that are not on disk, and never write them by itself.
fn rewrite_tail(fs: &dyn FileSystem, found: &Recovered) -> Result<(), OpenError> {
    let last = found.chain.len() - 1;
    for (index, link) in found.chain.iter().enumerate() {
        let frames: Vec<_> = found
            .tail
            .iter()
            .filter(|tail| tail.link == index)
            .collect();
        if frames.is_empty() && index != last {
            continue;
        }
        let rewrite = || -> io::Result<()> {
            let file = fs.open(&link.path, true)?;
            let pages = frames.iter().map(|tail| (tail.offset, tail.bytes));
            // The first page too: it came with the first frame.
            for (offset, bytes) in std::iter::once((0, PAGE)).chain(pages) {
                let mut buffer = vec![0; bytes as usize];
                let n = read_full(&*file, &mut buffer, offset)?;
                file.write_at(&buffer[..n], offset)?;
            }
            file.sync_data()
        };
        rewrite().map_err(OpenError::io("rewrite the end of", &link.path))?;
    }
    Ok(())
}

/// Takes over the files that were found; removes or sets aside those without use.
fn adopt(journal: &mut Journal, found: &Recovered) -> Result<(), OpenError> {
    let shared = &journal.shared;
    let (fs, layout) = (&*shared.fs, &shared.layout);
    for path in found
        .files
        .temporary
        .iter()
        .chain(&found.snapshot_leftovers)
    {
        fs.remove(path).map_err(OpenError::io("remove", path))?;
    }
    let snapshot_lsn = found.snapshot_lsn();
    let outdated = found.snapshots.iter().filter(|lsn| **lsn != snapshot_lsn);
    for path in outdated.map(|lsn| crate::snapshot::path(&layout.snap, *lsn)) {
        fs.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
    for id in &found.superseded {
        let path = segment::path(&layout.log, *id);
        fs.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
    let mut total = 0;
    let closed = |link: &Link| Closed {
        id: link.header.id,
        last_lsn: link.last_lsn,
        bytes: link.end_offset,
        whole: false,
    };
    let Some((last, before)) = found.chain.split_last() else {
        return Ok(());
    };
    for link in before {
        total += link.end_offset;
        shared.add_closed(closed(link));
    }
    // What is left of it would only take room: a process that starts often and writes
    // little would fill the disk.
    let punched = fs
        .open(&last.path, true)
        .and_then(|file| file.punch(last.end_offset));
    match punched {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => {
            return Err(OpenError::io("cut off", &last.path)(error));
        }
        _ => {}
    }
    let last = closed(last);
    total += last.bytes;
    let spare_limit = shared.spare_limit();
    let unused = found
        .unused
        .iter()
        .map(|id| (*id, segment::path(&layout.log, *id)));
    let spares = found
        .files
        .spares
        .iter()
        .map(|id| (*id, dir::spare_path(&layout.log, *id)));
    let mut keep = Vec::new();
    // The last first, each made to last: a segment made ahead names the one before it, which
    // must not seem lost.
    for (id, path) in unused.rev().chain(spares) {
        let kind = fs.kind(&path).map_err(OpenError::io("look at", &path))?;
        let spare = dir::spare_path(&layout.log, id);
        match kind {
            Some(Kind::File(bytes)) if shared.fits_spare(bytes) && keep.len() < spare_limit => {
                if path != spare {
                    fs.rename(&path, &spare)
                        .map_err(OpenError::io("rename", &path))?;
                }
                keep.push((id, bytes));
                total += bytes;
            }
            _ => fs.remove(&path).map_err(OpenError::io("remove", &path))?,
        }
    }
    fs.sync_dir(&layout.log)
        .map_err(OpenError::io("sync", &layout.log))?;
    keep.into_iter()
        .for_each(|(id, bytes)| shared.add_spare(id, bytes));
    shared.log_bytes.store(total, Ordering::Relaxed);
    journal.previous = Some(last);
    Ok(())
}

/// Readies a segment for the first commit; true if there is no room for one.
fn ready_first(journal: &Journal, options: &Options) -> Result<bool, OpenError> {
    let shared = &journal.shared;
    let first = options
        .segment_bytes
        .clamp(MIN_SEGMENT_BYTES, FIRST_SEGMENT_BYTES);
    match shared.prepare(first.next_multiple_of(PAGE)) {
        Ok(()) => Ok(false),
        Err(CommitError::NoSpace { .. }) => Ok(true),
        Err(error) => Err(open_error(error)),
    }
}
