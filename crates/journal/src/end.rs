//! The log's end, where frames go, of durable and of volatile records.

use crate::allocator::{Closed, Shared};
use crate::dir::Format;
use crate::epochs::Epochs;
use crate::error::CommitError;
use crate::frame::{self, FLAG_CLOSE, FLAG_VOLATILE, FrameHeader, HEADER, PAGE};
use crate::hold::Hold;
use crate::marker::{Failed, Marker};
use crate::record::{self, Note};
use crate::segment::{self, SegmentHeader};
use crate::status::Status;
use crate::tap::{Lane, Tap};
use crate::unsynced::Unsynced;
use crate::watermarks::Watermarks;
use crate::{Lsn, Position};
use engine::record::Record;
use files::{File, is_no_space, read_full};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The commit buffer is given back above this, so that one large commit does not stay.
const KEEP_BUFFER_BYTES: usize = 16 << 20;

/// The segment that frames go to.
pub(crate) struct Current {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    file: Arc<dyn File>,
    pub(crate) bytes: u64,
    /// Where the next frame goes; 0 while not even the header is written.
    pub(crate) offset: u64,
    header: SegmentHeader,
}

/// What keeps a frame from being written. The log is as before; [`Log::clear`](crate::log::Log::clear)
/// deals with it, once the end is not held any more.
pub(crate) enum Hindrance {
    /// No segment of so many bytes or more is ready.
    Segment {
        min_bytes: u64,
    },
    /// What was written is to be synced before the next segment is begun.
    Sync,
    /// There is no reserve, without which a power loss in an epoch might end in a start that
    /// finds no room.
    Reserve,
    /// The write found no room. What got there was taken back; if that is in a file, nobody
    /// is told before it is synced.
    Full {
        path: PathBuf,
        taken_back: Option<Arc<dyn File>>,
    },
    Refused(CommitError),
}

impl From<CommitError> for Hindrance {
    fn from(error: CommitError) -> Self {
        Hindrance::Refused(error)
    }
}

/// A segment that gets no more frames, until its successor's header is on disk.
pub(crate) struct Behind {
    pub(crate) closed: Closed,
    /// Its file, until the frame is synced that says that all in it is.
    pub(crate) unsynced: Option<(Arc<dyn File>, Lsn)>,
}

/// What a frame is to hold.
#[derive(Clone, Copy, Default)]
pub(crate) struct Content<'a> {
    /// They come before the records.
    pub(crate) notes: &'a [Note],
    pub(crate) records: &'a [Record],
    pub(crate) revision_before: i64,
    pub(crate) flags: u32,
}

/// A frame that was written.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    pub(crate) position: Position,
    pub(crate) bytes: u64,
    pub(crate) write_us: u64,
}

/// Durable frames that are in the log and not visible yet, in log order.
#[derive(Default)]
pub(crate) struct InFlight {
    /// With the revisions that each takes.
    frames: VecDeque<(Lsn, i64)>,
    revisions: i64,
}

impl InFlight {
    pub(crate) fn add(&mut self, lsn: Lsn, revisions: i64) {
        self.frames.push_back((lsn, revisions));
        self.revisions += revisions;
    }

    /// A frame is visible.
    pub(crate) fn remove(&mut self, lsn: Lsn) {
        if let Ok(at) = self.frames.binary_search_by_key(&lsn, |(lsn, _)| *lsn)
            && let Some((_, revisions)) = self.frames.remove(at)
        {
            self.revisions -= revisions;
        }
    }

    /// The one that was written first.
    pub(crate) fn first(&self) -> Option<Lsn> {
        self.frames.front().map(|(lsn, _)| *lsn)
    }

    /// Revisions that all of them take.
    pub(crate) fn revisions(&self) -> i64 {
        self.revisions
    }
}

/// The state behind the mutex.
pub(crate) struct End {
    shared: Arc<Shared>,
    status: Arc<Status>,
    cluster_id: u64,
    salt: u64,
    no_fsync: bool,
    pub(crate) current: Option<Current>,
    pub(crate) behind: Vec<Behind>,
    pub(crate) marks: Watermarks,
    pub(crate) crc: u32,
    pub(crate) bytes: u64,
    /// The revision after all that was visible, as far as this journal was told.
    pub(crate) revision: i64,
    /// A page for a segment's header, then the frame.
    buffer: Vec<u8>,
    pub(crate) unsynced: Unsynced,
    pub(crate) epochs: Epochs,
    pub(crate) in_flight: InFlight,
    pub(crate) tap: Tap,
    marker: Option<Marker>,
    /// Frames are held elsewhere too until they are on disk: while it is there, what is not
    /// durable becomes visible when it is safe ([`Hold`]).
    pub(crate) hold: Option<Arc<Hold>>,
    /// A frame that is ordered and not visible yet, since it is not safe. There is one at most:
    /// nothing else is ordered before it is visible.
    pub(crate) unreleased: Option<Lsn>,
    pub(crate) closed: bool,
    /// The frame that closed the log, if none came after it.
    pub(crate) closed_at: Option<Lsn>,
    /// Frames that found no room and were taken back, which is not synced yet.
    pub(crate) taking_back: usize,
}

/// Checks, before anything is copied, that records take `limit` bytes at most in a frame.
pub(crate) fn check_size(records: &[Record], limit: u64) -> Result<(), CommitError> {
    let bytes: u64 = records.iter().map(record::encoded_bytes_at_most).sum();
    if bytes > limit {
        return Err(CommitError::TooLarge { bytes, limit });
    }
    Ok(())
}

/// Bytes of a frame with these records, at most.
pub(crate) fn frame_bytes_at_most(records: &[Record]) -> u64 {
    let payload_bytes: u64 = records.iter().map(record::encoded_bytes_at_most).sum();
    (HEADER as u64 + payload_bytes).next_multiple_of(PAGE)
}

/// How many revisions records take.
pub(crate) fn revisions(records: &[Record]) -> i64 {
    records.iter().filter(|r| r.takes_revision()).count() as i64
}

impl End {
    /// Before anything is in it.
    pub(crate) fn new(
        shared: Arc<Shared>,
        status: Arc<Status>,
        format: &Format,
        no_fsync: bool,
    ) -> End {
        End {
            shared,
            status,
            cluster_id: format.identity.cluster_id,
            salt: format.salt,
            no_fsync,
            current: None,
            behind: Vec::new(),
            marks: Watermarks::default(),
            crc: 0,
            bytes: 0,
            revision: 0,
            buffer: Vec::new(),
            unsynced: Unsynced::default(),
            epochs: Epochs::default(),
            in_flight: InFlight::default(),
            tap: Tap::default(),
            marker: None,
            hold: None,
            unreleased: None,
            closed: false,
            closed_at: None,
            taking_back: 0,
        }
    }

    /// Writes a frame; does not sync it, nor anything else. After an error the log is as
    /// before, or poisoned.
    pub(crate) fn append(&mut self, content: Content<'_>) -> Result<Written, Hindrance> {
        if let Some(error) = self.shared.poison() {
            return Err(error.into());
        }
        if content.revision_before < self.revision {
            // A frame that says so could never be read back.
            let what = format!(
                "the store says that it is at revision {}, and was at revision {} before: a fault \
                 in orlop",
                content.revision_before, self.revision
            );
            let poison = self
                .shared
                .set_poison(&self.shared.layout.log, io::Error::other(what));
            return Err(poison.into());
        }
        let page = PAGE as usize;
        self.buffer.resize(page + HEADER, 0);
        for note in content.notes {
            record::encode_note(note, &mut self.buffer);
        }
        for record in content.records {
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
            self.begin_segment(PAGE + frame_bytes, content)?;
        }
        let Some(current) = &mut self.current else {
            let min_bytes = PAGE + frame_bytes;
            return Err(Hindrance::Segment { min_bytes });
        };
        let header = FrameHeader {
            payload_bytes,
            records: (content.notes.len() + content.records.len()) as u32,
            segment: current.id,
            lsn: self.marks.written() + 1,
            mark: self.marks.synced(),
            revision_before: content.revision_before,
            previous_crc: self.crc,
            flags: content.flags,
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
            let path = current.path.clone();
            if !is_no_space(&error) {
                return Err(self.shared.set_poison(&path, error).into());
            }
            let taken_back = take_back(current, &header, self.salt)
                .map_err(|error| self.shared.set_poison(&path, error))?;
            self.taking_back += usize::from(taken_back.is_some());
            return Err(Hindrance::Full { path, taken_back });
        }
        let write_us = micros(began);
        if let Some(hold) = &self.hold {
            if from == 0 {
                hold.began_segment(&self.buffer[..segment::HEADER]);
            }
            hold.wrote(header.lsn, &self.buffer[page..frame_end]);
        }
        current.offset = current.offset.max(PAGE) + frame_bytes;
        let id = current.id;
        self.marks.wrote_next();
        self.crc = crc;
        self.bytes += frame_bytes;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        self.closed_at = (content.flags & FLAG_CLOSE != 0).then_some(self.marks.written());
        for note in content.notes {
            self.take_note(note);
        }
        // The segment of the last frame is there at the next start, whatever else goes.
        let lsn = self.marks.written();
        if self.marker.as_ref().is_some_and(|m| m.segment() != id) {
            self.with_marker(|m, shared| m.follow(&*shared.fs, &shared.layout, id, lsn))?;
        }
        self.publish();
        Ok(Written {
            position: self.position(),
            bytes: frame_bytes,
            write_us,
        })
    }

    /// The note that the next durable frame should carry, after which the revision is
    /// `revision`.
    pub(crate) fn note_due(&self, revision: i64) -> Option<Note> {
        let note = self.epochs.note_due(revision);
        note.filter(|note| self.may_note(note).is_ok())
    }

    /// Whether a note may be written now. An epoch is not opened without a reserve for the start
    /// that has to end it; and what is in flight became, or becomes, visible by the rules of the
    /// time that it was written at.
    pub(crate) fn may_note(&self, note: &Note) -> Result<(), Hindrance> {
        match *note {
            Note::Epoch { opened: 0, .. } | Note::EpochEnd => {
                self.nothing_in_flight()?;
                let reserved = *note == Note::EpochEnd || self.shared.has_reserve();
                reserved.then_some(()).ok_or(Hindrance::Reserve)
            }
            _ => Ok(()),
        }
    }

    /// An error if a frame is in the log that is not visible.
    pub(crate) fn nothing_in_flight(&self) -> Result<(), CommitError> {
        let first = self.in_flight.first();
        first.map_or(Ok(()), |lsn| Err(CommitError::Unordered { lsn }))
    }

    /// A note is in the log.
    fn take_note(&mut self, note: &Note) {
        if self.epochs.noted(note, self.marks.written()) {
            if let Some(hold) = &self.hold {
                // A set is of its epoch.
                hold.disk_only();
            }
            self.set_marker(None);
        }
    }

    /// Nothing more goes to the segment in use.
    pub(crate) fn fill_segment(&mut self) {
        if let Some(current) = &mut self.current {
            current.bytes = current.offset;
        }
    }

    /// Bytes that the segment in use has left.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.current
            .as_ref()
            .map_or(0, |c| c.bytes.saturating_sub(c.offset.max(PAGE)))
    }

    /// Files with frames that are not synced, in log order.
    pub(crate) fn unsynced_files(&self) -> Vec<(u64, Arc<dyn File>)> {
        let behind = self
            .behind
            .iter()
            .filter_map(|behind| Some((behind.closed.id, behind.unsynced.clone()?.0)));
        let current = self
            .current
            .iter()
            .filter(|current| current.offset > PAGE)
            .map(|current| (current.id, current.file.clone()));
        behind.chain(current).collect()
    }

    /// All up to `target` is on disk.
    pub(crate) fn note_synced(&mut self, target: Lsn, took: Duration) {
        self.marks.synced_up_to(target);
        self.unsynced.sync_ended(took);
        let synced = self.marks.synced();
        if let Some(hold) = &self.hold {
            hold.note_synced(synced);
        }
        for behind in &mut self.behind {
            behind.unsynced.take_if(|(_, until)| *until <= synced);
        }
        // A successor's header is on disk with its first frame: those before it may go.
        while self
            .behind
            .first()
            .is_some_and(|behind| behind.closed.last_lsn < synced)
        {
            self.shared.add_closed(self.behind.remove(0).closed);
        }
        self.publish();
    }

    /// The revision that the next frame is written at. `told` is the store's; a frame that is
    /// ordered and not visible yet has taken those after it.
    pub(crate) fn revision_now(&self, told: i64) -> i64 {
        match self.unreleased {
            Some(_) => self.revision,
            None => told,
        }
    }

    /// Leaves for others what they may know.
    pub(crate) fn publish(&self) {
        self.status.publish(self);
    }

    /// There is a marker of the open epoch now, or none any more.
    pub(crate) fn set_marker(&mut self, marker: Option<Marker>) {
        self.status
            .set_marker(marker.as_ref().map(|m| m.path.as_path()));
        self.marker = marker;
    }

    /// Goes on to a segment with room for `min_bytes`. Its header comes with its first frame,
    /// and says how much before it is not yet synced.
    fn begin_segment(&mut self, min_bytes: u64, content: Content<'_>) -> Result<(), Hindrance> {
        // Without an epoch all before a segment is synced, and its header says so.
        let strict = self.epochs.open().is_none() && !self.no_fsync;
        if strict && content.flags & FLAG_VOLATILE == 0 && !self.marks.is_synced() {
            return Err(Hindrance::Sync);
        }
        if !self.shared.has_ready_of(min_bytes) {
            return Err(Hindrance::Segment { min_bytes });
        }
        self.write_header()?;
        let Some(ready) = self.shared.take_ready(min_bytes) else {
            return Err(Hindrance::Segment { min_bytes });
        };
        self.shared.set_frame_bytes(self.bytes);
        let mut unsynced = self.marks.unsynced_frames();
        if let Some(current) = self.current.take() {
            let mut until = self.marks.written();
            if current.offset == 0 {
                // A sync of the next frame covers its header too. The next header is not to
                // vouch for it.
                until += 1;
                unsynced = unsynced.max(1);
            }
            let closed = Closed {
                id: current.id,
                last_lsn: self.marks.written(),
                bytes: current.bytes,
                whole: true,
            };
            self.behind.push(Behind {
                closed,
                unsynced: (self.marks.synced() < until).then_some((current.file, until)),
            });
        }
        self.current = Some(Current {
            header: SegmentHeader {
                id: ready.id,
                cluster_id: self.cluster_id,
                first_lsn: self.marks.written() + 1,
                previous: self.behind.last().map_or(0, |behind| behind.closed.id),
                revision: content.revision_before,
                previous_crc: self.crc,
                unsynced: u32::try_from(unsynced).unwrap_or(u32::MAX),
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

    /// Writes the header of the segment in use if no frame brought it yet; does not sync it.
    fn write_header(&mut self) -> Result<(), Hindrance> {
        let Some(current) = self.current.as_ref().filter(|current| current.offset == 0) else {
            return Ok(());
        };
        let mut page = vec![0; PAGE as usize];
        current.header.encode(self.salt, &mut page);
        let written = current.file.write_at(&page, 0);
        if let Some(hold) = self.hold.as_ref().filter(|_| written.is_ok()) {
            hold.began_segment(&page[..segment::HEADER]);
        }
        // There is no frame in it: it can be written again.
        written.map_err(|error| CommitError::unprepared(&current.path, error).into())
    }

    /// Begins a new directory's first segment: its header alone, on disk.
    pub(crate) fn begin(&mut self, revision: i64) -> Result<(), Hindrance> {
        let content = Content {
            revision_before: revision,
            ..Content::default()
        };
        self.begin_segment(PAGE, content)?;
        self.write_header()?;
        if let Some(current) = &mut self.current {
            sync_files(&self.shared, &[(current.id, current.file.clone())])?;
            current.offset = PAGE;
        }
        Ok(())
    }

    /// Records of a frame were ordered.
    pub(crate) fn feed(
        &mut self,
        written: &Written,
        revision_before: i64,
        lane: Lane,
        records: &[Record],
    ) {
        let place = (written.position.lsn, revision_before);
        self.tap.feed(place, lane, records);
    }

    /// Records that take `taken` revisions become visible, at `before` or later.
    pub(crate) fn show(&mut self, before: i64, taken: i64) {
        self.revision = self.revision.max(before) + taken;
    }

    /// Notes in the marker that the log reaches its end, before what is there is visible.
    pub(crate) fn mark_reached(&mut self) -> Result<(), CommitError> {
        let lsn = self.marks.written();
        self.with_marker(|marker, _| marker.reach(lsn))
    }

    /// Changes the marker, or goes on without one.
    fn with_marker(
        &mut self,
        change: impl FnOnce(&mut Marker, &Shared) -> io::Result<()>,
    ) -> Result<(), CommitError> {
        let Some(marker) = &mut self.marker else {
            return Ok(());
        };
        let Err(error) = change(marker, &self.shared) else {
            return Ok(());
        };
        self.status.set_marker(None);
        match self
            .marker
            .take()
            .map(|marker| marker.give_up(&*self.shared.fs, error))
        {
            Some(Failed::Stuck(path, error)) => Err(self.shared.set_poison(&path, error)),
            _ => Ok(()),
        }
    }

    /// The log's end.
    pub(crate) fn position(&self) -> Position {
        Position {
            lsn: self.marks.written(),
            crc: self.crc,
            cluster_id: self.cluster_id,
            bytes: self.bytes,
            epoch: self.epochs.open(),
        }
    }
}

/// Syncs segments' files, in log order. One that fails poisons the log.
pub(crate) fn sync_files(
    shared: &Shared,
    files: &[(u64, Arc<dyn File>)],
) -> Result<(), CommitError> {
    files.iter().try_for_each(|(id, file)| {
        file.sync_data().map_err(|error| {
            let path = segment::path(&shared.layout.log, *id);
            shared.set_poison(&path, error)
        })
    })
}

/// After a write that found no room: takes back what got there nevertheless. It is not to be
/// found at the next start: not if it is all of the frame (its padding was not written), nor if
/// the next frame here is cut off, and what it left makes this one whole. Returns the file if
/// that is still to be synced.
fn take_back(
    current: &Current,
    header: &FrameHeader,
    salt: u64,
) -> io::Result<Option<Arc<dyn File>>> {
    let offset = current.offset.max(PAGE);
    let mut frame = vec![0; HEADER + header.payload_bytes as usize];
    let n = read_full(&*current.file, &mut frame, offset)?;
    let Some(there) = frame::peek(&frame[..n], current.id, u64::MAX) else {
        return Ok(None);
    };
    let whole = n == frame.len() && there == *header && frame::verify(&frame, salt, true).is_some();
    match current.file.write_at(&[0; HEADER], offset) {
        // A part, as any crash may leave it.
        Err(error) if !whole && is_no_space(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(current.file.clone())),
    }
}

pub(crate) fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}
