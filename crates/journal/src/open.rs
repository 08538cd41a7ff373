//! Opening a directory for writing: making a new one, or making what was read last and
//! cleaning up.

use crate::allocator::{Closed, RESERVE_BYTES, Shared};
use crate::chain::Link;
use crate::dir::{self, Format, Identity, Layout, NewDirectory, Opened};
use crate::end::{Behind, Content};
use crate::epochs::Epochs;
use crate::error::{CommitError, OpenError};
use crate::frame::{FLAG_PLACED, HEADER, PAGE};
use crate::holders::{HolderSet, HoldersNote};
use crate::marker;
use crate::recover::{Complete, names};
use crate::recovery::{self, Recovered};
use crate::replay::Replay;
use crate::settle::{self, EpochReport, Settled};
use crate::watermarks::Watermarks;
use crate::{Journal, Lsn, Position, segment, snapshot};
use files::{FileSystem, Kind, read_full};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;
const MIN_SEGMENT_BYTES: u64 = 4 * PAGE;

/// Protections that tests switch off, one at a time, to see a test fail without them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// Frames are taken only with a right checksum.
    pub checksum: bool,
    /// Marks tell a torn end from damage.
    pub mark: bool,
    /// Revisions that a durable frame got behind volatile ones are noted.
    pub stamp: bool,
    /// Volatile frames come only in an epoch.
    pub epoch: bool,
    /// A log that ends before what the marker in memory says is not trusted.
    pub marker: bool,
    /// While frames are held elsewhere, what is not durable becomes visible when it is safe.
    pub held: bool,
    /// Holders count when their set is noted in the directory.
    pub noted_set: bool,
    /// What a holder gives back has to follow what is on disk.
    pub contiguity: bool,
}

/// What a start knows of holders, if the last process had any and the machine lost power.
#[derive(Clone, Debug, Default)]
pub enum Holders {
    /// They were not asked: if they have to be, the start is refused.
    #[default]
    NotAsked,
    /// What [`recover`](crate::recover()) came to.
    Complete(Complete),
    /// They are gone: what they held is given up, and revisions jump.
    GivenUp,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            checksum: true,
            mark: true,
            stamp: true,
            epoch: true,
            marker: true,
            held: true,
            noted_set: true,
            contiguity: true,
        }
    }
}

/// How to open a journal.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the directory gets if it is new.
    pub new: NewDirectory,
    /// Size of a segment in bytes, default 64 MiB, at least 16 KiB. While the log is shorter,
    /// so are its segments. A larger commit gets a segment of its own size.
    pub segment_bytes: u64,
    /// Retired segments kept to be used again, default 2.
    pub spare_segments: usize,
    /// Commits are not synced: a power loss loses what the system had not yet written, as
    /// with etcd's `--unsafe-no-fsync`. Default false.
    pub no_fsync: bool,
    /// A directory in memory (tmpfs) for a marker of what was visible, see
    /// [`files::real::memory_dir`]. Without one a start within an epoch cannot tell
    /// a killed process from a power loss. Default none.
    pub marker_dir: Option<PathBuf>,
    /// What came of asking those who hold the newest frames in memory. Default: not asked.
    pub holders: Holders,
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
            marker_dir: None,
            holders: Holders::NotAsked,
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
    /// What a start within an epoch of volatile writes came to.
    pub epoch: Option<EpochReport>,
    /// A sentence if no marker can be kept: a killed process then restarts as after a power
    /// loss, should it have volatile writes.
    pub marker_problem: Option<String>,
    /// Sentences on what was wrong without harm.
    pub warnings: Vec<String>,
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
        if let Some(format) = &opened.format {
            dir::check_role(dir, &format.identity, options.new.role)?;
        }
        let (journal, report) = match opened.format.clone() {
            None => create(fs, opened, options, store)?,
            Some(format) => {
                let mut found =
                    recovery::read(&*fs, &opened.layout, &format, options.guards, store)?;
                let set = HoldersNote::read(&*fs, dir)?.of_epoch(found.order.epoch);
                let complete = match &options.holders {
                    Holders::Complete(complete) => Some(complete.clone()),
                    _ => set.as_ref().and_then(HolderSet::nobody),
                };
                let settled = settle::settle(
                    &*fs,
                    &opened.layout,
                    &format,
                    (
                        options.marker_dir.as_deref(),
                        options.guards,
                        complete.as_ref(),
                    ),
                    &mut found,
                    store,
                )?;
                refuse_unasked(dir, set.as_ref(), settled.as_ref(), &options.holders)?;
                resume(fs, opened, format, options, found, settled)?
            }
        };
        let left_open = {
            let mut end = journal.log.end();
            end.revision = store.revision();
            end.epochs.open().is_some()
        };
        if !left_open {
            // The set was of an epoch that is over: nobody has to be asked any more.
            journal.forget_set()?;
        }
        Ok((journal, report))
    }
}

/// What others hold of the newest writes is not passed over in silence.
fn refuse_unasked(
    dir: &Path,
    set: Option<&HolderSet>,
    settled: Option<&Settled>,
    holders: &Holders,
) -> Result<(), OpenError> {
    let untrusted = settled.is_some_and(|settled| !settled.report.trusted);
    let set = set.filter(|set| untrusted && !set.holders.is_empty());
    match (set, holders) {
        (Some(set), Holders::NotAsked | Holders::Complete(_)) => Err(OpenError::Holders {
            path: dir.to_owned(),
            holders: names(&set.holders),
            told: "They were not asked.".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// A commit error of the start.
pub(crate) fn open_error(error: CommitError) -> OpenError {
    match error {
        CommitError::NoSpace { path } => OpenError::NoSpace { path },
        CommitError::NoSegment { path, source } => OpenError::Io {
            action: "make",
            path,
            source: io::Error::new(source.kind(), source.to_string()),
        },
        CommitError::Poisoned { file, source } => OpenError::Io {
            action: "write",
            path: file,
            source: io::Error::new(source.kind(), source.to_string()),
        },
        error @ (CommitError::TooLarge { .. }
        | CommitError::Strict
        | CommitError::Unordered { .. }
        | CommitError::Closed) => OpenError::mismatch("", error.to_string()),
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
    let layout = opened.layout.clone();
    let journal = begin(fs.clone(), opened, &options, store.revision())?;
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
        epoch: None,
        marker_problem: marker_problem(&*fs, &options),
        warnings: Vec::new(),
    };
    Ok((journal, report))
}

/// All of a new directory but its format file.
pub(crate) fn begin(
    fs: Arc<dyn FileSystem>,
    opened: Opened,
    options: &Options,
    revision: i64,
) -> Result<Journal, OpenError> {
    let Opened { layout, lock, .. } = opened;
    dir::lay_out(&*fs, &layout)?;
    let format = dir::new_format(&options.new);
    let shared = new_shared(fs, layout, &format, options, 1, 0);
    let journal = Journal::start(shared, lock, &format, options);
    ready_first(&journal)?;
    let begun = journal.log.end().begin(revision);
    // The segment was made, so that nothing can be missing.
    begun
        .or_else(|hindrance| journal.log.clear(hindrance))
        .map_err(open_error)?;
    Ok(journal)
}

/// Makes what was read safe to build on, cleans up, and readies the next segment.
fn resume(
    fs: Arc<dyn FileSystem>,
    opened: Opened,
    format: Format,
    options: Options,
    found: Recovered,
    settled: Option<Settled>,
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
    let marker_problem = marker_problem(&*shared.fs, &options);
    let journal = Journal::start(shared, lock, &format, &options);
    adopt(&journal, &found)?;
    let no_space = ready_first(&journal)?;
    let epoch = close_left_open(&journal, settled)?;
    // The marker may name one of these; its epoch is over now.
    for id in &found.superseded {
        let fs = &journal.log.shared.fs;
        let path = segment::path(&journal.log.shared.layout.log, *id);
        fs.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
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
        no_space,
        epoch,
        marker_problem,
        warnings: found.warnings,
    };
    Ok((journal, report))
}

/// Notes in the log what a start within an epoch came to, and that the epoch is over. A jump
/// has to be on disk before anyone sees a revision behind it.
fn close_left_open(
    journal: &Journal,
    settled: Option<Settled>,
) -> Result<Option<EpochReport>, OpenError> {
    let Some(Settled {
        notes,
        revision_before,
        report,
    }) = settled
    else {
        return Ok(None);
    };
    let log = &journal.log;
    let mut reserve = (!report.trusted).then_some(());
    let written = loop {
        let appended = log.end().append(Content {
            notes: &notes,
            revision_before,
            flags: FLAG_PLACED,
            ..Content::default()
        });
        match appended.map_err(|hindrance| log.clear(hindrance)) {
            Ok(_) => {
                if !log.shared.has_reserve() {
                    // The rest of it is no room for another epoch.
                    log.end().fill_segment();
                }
                break log.sync().map(drop);
            }
            Err(Ok(())) => {}
            Err(Err(error)) if error.is_no_room() && reserve.take().is_some() => {
                log.shared.use_reserve().map_err(open_error)?;
            }
            Err(Err(error)) => break Err(error),
        }
    };
    match written {
        Ok(()) => log.remove_marker(),
        // The next commit notes it: until then all is as it was when the process was killed.
        Err(error) if error.is_no_room() && report.trusted => {}
        Err(error) => return Err(open_error(error)),
    }
    Ok(Some(report))
}

/// A sentence if no marker can be kept.
fn marker_problem(fs: &dyn FileSystem, options: &Options) -> Option<String> {
    let Some(dir) = &options.marker_dir else {
        return Some(
            "there is no directory in memory to keep a marker in: after a killed process, as \
             after a power loss, watchers relist"
                .to_owned(),
        );
    };
    let error = marker::usable(fs, dir).err()?;
    Some(format!(
        "no marker can be kept in {}: {error}; after a killed process, as after a power loss, \
         watchers relist",
        dir.display()
    ))
}

/// Writes again, and syncs, what nothing in the log proves synced: after a failed sync the
/// system may show bytes as written that are not on disk, and never write them by itself.
fn rewrite_tail(fs: &dyn FileSystem, found: &Recovered) -> Result<(), OpenError> {
    let last = found.chain.len() - 1;
    let mut tail = found.tail.iter().peekable();
    for (index, link) in found.chain.iter().enumerate() {
        let mut frames = Vec::new();
        while let Some(frame) = tail.next_if(|frame| frame.link == index) {
            frames.push(frame);
        }
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
fn adopt(journal: &Journal, found: &Recovered) -> Result<(), OpenError> {
    let shared = &journal.log.shared;
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
    for path in outdated.map(|lsn| snapshot::path(&layout.snap, *lsn)) {
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
    cut_off(fs, last).map_err(OpenError::io("cut off", &last.path))?;
    let last = closed(last);
    total += last.bytes;
    shared.set_frame_bytes(found.end.bytes);
    if found.files.reserve {
        shared.adopt_reserve();
        total += RESERVE_BYTES;
    }
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
        let of_use = |bytes| match found.ahead == Some(id) {
            true => bytes <= shared.next_bytes(),
            false => keep.len() < shared.spare_limit(bytes),
        };
        match kind {
            Some(Kind::File(bytes)) if of_use(bytes) => {
                if path != spare {
                    fs.rename(&path, &spare)
                        .map_err(OpenError::io("rename", &path))?;
                }
                keep.push((id, bytes));
                total += bytes;
            }
            _ => fs.remove(&path).map_err(OpenError::io("remove", &path))?,
        }
        if found.unused.len() > 1 {
            // One that follows must not be left when the one that it names is gone.
            fs.sync_dir(&layout.log)
                .map_err(OpenError::io("sync", &layout.log))?;
        }
    }
    fs.sync_dir(&layout.log)
        .map_err(OpenError::io("sync", &layout.log))?;
    keep.into_iter()
        .for_each(|(id, bytes)| shared.add_spare(id, bytes));
    shared.log_bytes.store(total, Ordering::Relaxed);
    let mut end = journal.log.end();
    end.marks = Watermarks::found(found.end.lsn);
    end.crc = found.end.crc;
    end.closed_at = found.closed.then_some(found.end.lsn);
    end.bytes = found.end.bytes;
    end.epochs = Epochs::found(found.order.epoch);
    end.behind.push(Behind {
        closed: last,
        unsynced: None,
    });
    end.publish();
    Ok(())
}

/// Takes away what the last segment holds behind the log's end, on disk. It would only take
/// room: a process that starts often and writes little would fill the disk. And a frame that is
/// no part of the log now must not be one later: after a failed sync the disk may hold one that
/// the system shows as zeros, until it forgets what it shows.
fn cut_off(fs: &dyn FileSystem, last: &Link) -> io::Result<()> {
    let file = fs.open(&last.path, true)?;
    match file.punch(last.end_offset) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            if file.len()? >= last.end_offset + PAGE {
                file.write_at(&[0; HEADER], last.end_offset)?;
            }
        }
        result => result?,
    }
    file.sync_data()
}

/// Readies a segment for the first commit; true if there is no room for one.
fn ready_first(journal: &Journal) -> Result<bool, OpenError> {
    match journal.log.shared.prepare_first() {
        Ok(()) => Ok(false),
        Err(error) if error.is_no_room() => Ok(!journal.log.shared.has_ready()),
        Err(error) => Err(open_error(error)),
    }
}
