//! Group commit.

use crate::allocator::{Allocator, Closed, Shared};
use crate::dir::Format;
use crate::error::CommitError;
use crate::frame::{self, FLAG_CLOSE, FrameHeader, HEADER, MAX_PAYLOAD_BYTES, PAGE};
use crate::fs::{File, Lock, is_no_space, read_full};
use crate::segment::SegmentHeader;
use crate::{Lsn, Position, record};
use engine::record::Record;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The commit buffer is given back above this, so that one large commit does not stay.
const KEEP_BUFFER_BYTES: usize = 16 << 20;

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
    pub(crate) shared: Arc<Shared>,
    _lock: Box<dyn Lock>,
    cluster_id: u64,
    salt: u64,
    no_fsync: bool,
    current: Option<Current>,
    /// The last segment with a header, and its LSN range's end: kept until the next is begun.
    pub(crate) previous: Option<Closed>,
    pub(crate) lsn: Lsn,
    pub(crate) crc: u32,
    /// The highest LSN known synced.
    pub(crate) synced: Lsn,
    /// The highest mark written.
    pub(crate) marked: Lsn,
    pub(crate) bytes: u64,
    /// A page for a segment's header, then the frame.
    buffer: Vec<u8>,
}

impl Journal {
    pub(crate) fn start(
        shared: Shared,
        lock: Box<dyn Lock>,
        format: &Format,
        no_fsync: bool,
    ) -> Self {
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
    pub(crate) fn begin_segment(
        &mut self,
        min_bytes: u64,
        revision: i64,
    ) -> Result<(), CommitError> {
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
        self.close_frame(revision)
    }

    pub(crate) fn close_frame(&mut self, revision: i64) -> Result<(), CommitError> {
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
