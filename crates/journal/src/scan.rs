//! Looking for frames behind an end of the log, in one pass over the file.
//!
//! Any page may look like the start of a frame that reaches to the end of the file: clients
//! choose the bytes of their values, and a recycled segment still holds them. A checksum for
//! each such page would read the rest of the file as often as there are pages. CRCs are
//! linear, so one running checksum over the file gives those of all of its parts:
//! [`frame::Partial`] takes the difference at a candidate's beginning and judges it at its end.

use crate::Lsn;
use crate::dir::Format;
use crate::frame::{self, FrameHeader, HEADER, PAGE, Partial};
use crate::open::Guards;
use files::{File, read_full};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

/// Bytes read at a time, a multiple of [`PAGE`].
const CHUNK_BYTES: usize = 1 << 20;

/// A page that looks like the beginning of a frame that would prove something.
struct Candidate {
    header: FrameHeader,
    partial: Partial,
}

/// What a scan reads, and how far it is.
struct Scan {
    /// The running checksum, up to `at`.
    crc: u32,
    at: u64,
    /// By where they end: that, and the index in `candidates`.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    candidates: Vec<Candidate>,
    /// The first frame that is whole and proves `lsn` synced.
    found: Option<usize>,
}

impl Scan {
    /// Goes on to `to` within `chunk`, which begins at `start`, and judges what ends there.
    fn advance(&mut self, chunk: &[u8], start: u64, to: u64) {
        while let Some(Reverse((end, index))) = self.ends.peek().copied()
            && end <= to
        {
            self.ends.pop();
            self.run(chunk, start, end);
            let whole = self.candidates[index].partial.is_whole(self.crc);
            if whole && self.found.is_none_or(|found| index < found) {
                self.found = Some(index);
            }
        }
        self.run(chunk, start, to);
    }

    fn run(&mut self, chunk: &[u8], start: u64, to: u64) {
        let part = &chunk[(self.at - start) as usize..(to - start) as usize];
        self.crc = crc32c::crc32c_append(self.crc, part);
        self.at = to;
    }
}

/// The first frame of `segment` at `offset` (a page's start) or later that proves `lsn` synced.
/// Reads no byte twice.
pub(crate) fn find_mark(
    file: &dyn File,
    offset: u64,
    lsn: Lsn,
    segment: u64,
    format: &Format,
    guards: Guards,
) -> io::Result<Option<FrameHeader>> {
    let length = file.len()?;
    let mut scan = Scan {
        crc: 0,
        at: offset,
        ends: BinaryHeap::new(),
        candidates: Vec::new(),
        found: None,
    };
    let mut chunk = vec![0; CHUNK_BYTES.min(length.saturating_sub(offset) as usize)];
    while scan.at < length && scan.found.is_none() {
        let start = scan.at;
        let n = read_full(file, &mut chunk, start)?;
        if n == 0 {
            break;
        }
        let chunk = &chunk[..n];
        for (index, page) in chunk.chunks(PAGE as usize).enumerate() {
            let offset = start + index as u64 * PAGE;
            let Some(header) = frame::peek(page, segment, length - offset) else {
                continue;
            };
            if header.mark < lsn {
                continue;
            }
            if !guards.checksum {
                return Ok(Some(header));
            }
            scan.advance(chunk, start, offset + Partial::FROM);
            let end = offset + HEADER as u64 + u64::from(header.payload_bytes);
            scan.ends.push(Reverse((end, scan.candidates.len())));
            scan.candidates.push(Candidate {
                header,
                partial: Partial::begin(page, &header, format.salt, scan.crc),
            });
        }
        scan.advance(chunk, start, start + n as u64);
    }
    Ok(scan.found.map(|index| scan.candidates[index].header))
}
