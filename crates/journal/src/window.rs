//! Finding frames in a segment's file.

use crate::dir::Format;
use crate::frame::{self, FrameHeader, HEADER};
use crate::open::Guards;
use files::{File, read_full};
use std::io;
use std::sync::Arc;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads a file front to back through a window of memory.
pub(crate) struct Window {
    file: Arc<dyn File>,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub(crate) fn new(file: Arc<dyn File>) -> io::Result<Self> {
        Ok(Window {
            length: file.len()?,
            file,
            start: 0,
            bytes: Vec::new(),
        })
    }

    /// Up to `length` bytes from `offset`; fewer at the end of the file.
    fn get(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + length as u64 > end {
            let left = self.length.saturating_sub(offset);
            self.bytes
                .resize(length.max(CHUNK_BYTES).min(left as usize), 0);
            let n = read_full(&*self.file, &mut self.bytes, offset)?;
            self.bytes.truncate(n);
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        let to = (from + length).min(self.bytes.len());
        Ok(&self.bytes[from.min(to)..to])
    }

    /// The frame of `segment` at `offset` with its checksum and payload, if a good one is there.
    pub(crate) fn frame(
        &mut self,
        offset: u64,
        segment: u64,
        format: &Format,
        guards: Guards,
    ) -> io::Result<Option<(FrameHeader, u32, &[u8])>> {
        let room = self.length.saturating_sub(offset);
        let Some(header) = frame::peek(self.get(offset, HEADER)?, segment, room) else {
            return Ok(None);
        };
        let bytes = self.get(offset, HEADER + header.payload_bytes as usize)?;
        if bytes.len() < HEADER + header.payload_bytes as usize {
            return Ok(None);
        }
        let crc = frame::verify(bytes, format.salt, guards.checksum);
        Ok(crc.map(|crc| (header, crc, &bytes[HEADER..])))
    }
}
