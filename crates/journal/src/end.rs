//! The log's end, where frames go, of durable and of volatile records.

use crate::allocator::{Closed, Shared};
use crate::dir::Format;
use crate::error::CommitError;
use crate::frame::{self, FrameHeader, HEADER, MAX_PAYLOAD_BYTES, PAGE};
use crate::marker::{Failed, Marker};
use crate::record::{self, Note};
use crate::segment::{self, SegmentHeader};
use crate::unsynced::Unsynced;
use crate::{Epoch, Lsn, Position};
use engine::record::Record;
use files::{File, is_no_space, read_full};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The commit buffer is given back above this, so that one large commit does not stay.
const KEEP_BUFFER_BYTES: usize = 16 << 20;

/// Revisions that an epoch reserves. A power loss skips as many at most.
const RESERVE: i64 = 4_000_000;
/// It is renewed when fewer are left.
pub(crate) const RENEW_BELOW: i64 = 2_000_000;

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

/// A segment that gets no more frames, until its successor's header is on disk.
pub(crate) struct Behind {
    pub(crate) closed: Closed,
    /// Its file, if frames in it are not synced.
    pub(crate) file: Option<Arc<dyn File>>,
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

/// Epochs as this process sees them.
#[derive(Default)]
pub(crate) struct Epochs {
    /// The one that is open in the log.
    pub(crate) open: Option<Epoch>,
    /// The last process left it open, and there was no room to close it.
    pub(crate) left_open: bool,
    /// Revisions up to here may be shown by volatile writes; 0: none.
    pub(crate) reserved: i64,
    /// The frame with the latest bound, until it is synced and `reserved` follows it; 0: none.
    pub(crate) noted_in: Lsn,
    /// A volatile writer wants more.
    pub(crate) wanted: bool,
    /// How often there was no room to give it.
    pub(crate) refusals: u64,
    /// Volatile writes are accepted.
    pub(crate) accepting: bool,
    /// Revisions that the durable batch under way will take.
    pub(crate) pending: i64,
}

/// The state behind the mutex.
pub(crate) struct End {
    shared: Arc<Shared>,
    cluster_id: u64,
    salt: u64,
    no_fsync: bool,
    pub(crate) current: Option<Current>,
    pub(crate) behind: Vec<Behind>,
    pub(crate) lsn: Lsn,
    pub(crate) crc: u32,
    /// The highest LSN known synced.
    pub(crate) synced: Lsn,
    /// The highest mark written.
    pub(crate) marked: Lsn,
    pub(crate) bytes: u64,
    /// The revision after all that was visible, as far as this journal was told.
    pub(crate) revision: i64,
    /// A page for a segment's header, then the frame.
    buffer: Vec<u8>,
    pub(crate) unsynced: Unsynced,
    pub(crate) epochs: Epochs,
    pub(crate) marker: Option<Marker>,
    pub(crate) closed: bool,
}

/// Checks, before anything is copied, that records fit into a frame.
pub(crate) fn check_size(records: &[Record]) -> Result<(), CommitError> {
    let bytes: u64 = records.iter().map(record::encoded_bytes_at_most).sum();
    if bytes > MAX_PAYLOAD_BYTES {
        return Err(CommitError::TooLarge {
            bytes,
            limit: MAX_PAYLOAD_BYTES,
        });
    }
    Ok(())
}

/// How many revisions records take.
pub(crate) fn revisions(records: &[Record]) -> i64 {
    records.iter().filter(|r| r.takes_revision()).count() as i64
}

impl Epochs {
    /// The note that a frame after which the revision is `revision` should carry: an epoch
    /// is wanted, or its revisions run low, or it was left open.
    pub(crate) fn note_due(&self, revision: i64) -> Option<Note> {
        if self.left_open && !self.wanted {
            return Some(Note::EpochEnd);
        }
        let low = self.reserved > 0 && self.reserved - revision < RENEW_BELOW;
        if self.noted_in != 0 || !(self.wanted || low) {
            return None;
        }
        let opened = match self.open {
            Some(epoch) if self.reserved > 0 => epoch.opened,
            _ => 0,
        };
        Some(Note::Epoch {
            bound: revision.saturating_add(RESERVE),
            opened,
        })
    }
}

impl End {
    /// Before anything is in it.
    pub(crate) fn new(shared: Arc<Shared>, format: &Format, no_fsync: bool) -> End {
        End {
            shared,
            cluster_id: format.identity.cluster_id,
            salt: format.salt,
            no_fsync,
            current: None,
            behind: Vec::new(),
            lsn: 0,
            crc: 0,
            synced: 0,
            marked: 0,
            bytes: 0,
            revision: 0,
            buffer: Vec::new(),
            unsynced: Unsynced::default(),
            epochs: Epochs::default(),
            marker: None,
            closed: false,
        }
    }

    /// Writes a frame; does not sync it. After an error the log is as before, or poisoned.
    pub(crate) fn append(&mut self, content: Content<'_>) -> Result<Written, CommitError> {
        if let Some(error) = self.shared.poison() {
            return Err(error);
        }
        if content.revision_before < self.revision {
            // A frame that says so could never be read back.
            let what = format!(
                "the store says that it is at revision {}, and was at revision {} before: a fault \
                 in orlop",
                content.revision_before, self.revision
            );
            return Err(self
                .shared
                .set_poison(&self.shared.layout.log, io::Error::other(what)));
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
            self.begin_segment(PAGE + frame_bytes, content.revision_before)?;
        }
        let Some(current) = &mut self.current else {
            return Err(CommitError::NoSpace {
                path: self.shared.layout.log.clone(),
            });
        };
        let header = FrameHeader {
            payload_bytes,
            records: (content.notes.len() + content.records.len()) as u32,
            segment: current.id,
            lsn: self.lsn + 1,
            mark: self.synced,
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
        let id = current.id;
        self.lsn += 1;
        self.crc = crc;
        self.marked = self.synced;
        self.bytes += frame_bytes;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        for note in content.notes {
            self.take_note(note);
        }
        // The segment of the last frame is there at the next start, whatever else goes.
        let lsn = self.lsn;
        if self.marker.as_ref().is_some_and(|m| m.segment() != id) {
            self.with_marker(|m, shared| m.follow(&*shared.fs, &shared.layout, id, lsn))?;
        }
        Ok(Written {
            position: self.position(),
            bytes: frame_bytes,
            write_us,
        })
    }

    /// A note is in the log.
    fn take_note(&mut self, note: &Note) {
        match *note {
            Note::Epoch { bound, opened } => {
                let opened = match opened {
                    0 => self.lsn,
                    opened => opened,
                };
                self.epochs.open = Some(Epoch { bound, opened });
                self.epochs.noted_in = self.lsn;
                self.epochs.left_open = false;
            }
            Note::EpochEnd => {
                self.marker = None;
                self.epochs = Epochs {
                    refusals: self.epochs.refusals,
                    accepting: self.epochs.accepting,
                    ..Epochs::default()
                };
            }
            Note::Stamp { .. } | Note::Jump { .. } => {}
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
            .filter_map(|behind| Some((behind.closed.id, behind.file.clone()?)));
        let current = self
            .current
            .iter()
            .filter(|current| current.offset > PAGE)
            .map(|current| (current.id, current.file.clone()));
        behind.chain(current).collect()
    }

    /// All up to `target` is on disk.
    pub(crate) fn note_synced(&mut self, target: Lsn, took: Duration) {
        self.synced = self.synced.max(target);
        self.unsynced.sync_ended(took);
        let synced = self.synced;
        for behind in &mut self.behind {
            if behind.closed.last_lsn <= synced {
                behind.file = None;
            }
        }
        // A successor's header is on disk with its first frame: those before it may go.
        while self
            .behind
            .first()
            .is_some_and(|behind| behind.closed.last_lsn < synced)
        {
            self.shared.add_closed(self.behind.remove(0).closed);
        }
    }

    /// Syncs while the mutex is held: for when no volatile write can be waiting for it.
    pub(crate) fn sync_inline(&mut self) -> Result<(), CommitError> {
        if self.synced == self.lsn {
            return Ok(());
        }
        if let Some(error) = self.shared.poison() {
            return Err(error);
        }
        let began = Instant::now();
        self.unsynced.sync_begins();
        sync_files(&self.shared, &self.unsynced_files())?;
        self.note_synced(self.lsn, began.elapsed());
        Ok(())
    }

    /// Goes on to a segment with room for `min_bytes`. Its header comes with its first frame,
    /// and says how much before it is not yet synced.
    pub(crate) fn begin_segment(
        &mut self,
        min_bytes: u64,
        revision: i64,
    ) -> Result<(), CommitError> {
        let ready = self.shared.take_ready(min_bytes)?;
        if self.epochs.open.is_none() || self.no_fsync {
            self.sync_inline()?;
        }
        self.write_header()?;
        if let Some(Current {
            id, bytes, file, ..
        }) = self.current.take()
        {
            self.behind.push(Behind {
                closed: Closed {
                    id,
                    last_lsn: self.lsn,
                    bytes,
                    whole: true,
                },
                file: (self.synced < self.lsn).then_some(file),
            });
        }
        self.current = Some(Current {
            header: SegmentHeader {
                id: ready.id,
                cluster_id: self.cluster_id,
                first_lsn: self.lsn + 1,
                previous: self.behind.last().map_or(0, |behind| behind.closed.id),
                revision,
                previous_crc: self.crc,
                unsynced: u32::try_from(self.lsn - self.synced).unwrap_or(u32::MAX),
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
    pub(crate) fn write_header(&mut self) -> Result<(), CommitError> {
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

    /// Records that take `taken` revisions become visible, at `before` or later.
    pub(crate) fn show(&mut self, before: i64, taken: i64) {
        self.revision = self.revision.max(before) + taken;
    }

    /// Notes in the marker that the log reaches its end, before what is there is visible.
    pub(crate) fn mark_reached(&mut self) -> Result<(), CommitError> {
        let lsn = self.lsn;
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
            lsn: self.lsn,
            crc: self.crc,
            cluster_id: self.cluster_id,
            bytes: self.bytes,
            epoch: self.epochs.open,
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
/// the next frame here is cut off, and what it left makes this one whole.
fn withdraw(current: &Current, header: &FrameHeader, salt: u64) -> io::Result<()> {
    let offset = current.offset.max(PAGE);
    let mut frame = vec![0; HEADER + header.payload_bytes as usize];
    let n = read_full(&*current.file, &mut frame, offset)?;
    let Some(there) = frame::peek(&frame[..n], current.id, u64::MAX) else {
        return Ok(());
    };
    let whole = n == frame.len() && there == *header && frame::verify(&frame, salt, true).is_some();
    match current.file.write_at(&[0; HEADER], offset) {
        // A part, as any crash may leave it.
        Err(error) if !whole && is_no_space(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => current.file.sync_data(),
    }
}

pub(crate) fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}
