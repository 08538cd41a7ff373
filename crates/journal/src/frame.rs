//! Frames: what one group commit writes.
//!
//! A frame starts on a page, so that it never shares one with a frame whose sync is under
//! way, and is padded with zeros to the next. Its checksum covers header and payload, and
//! starts from the directory's salt: bytes of another directory, of a recycled segment (the
//! header names the segment, and segment ids never come twice) or of a user's value never
//! pass for a frame. The header, little-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic |
//! | 4 | 4 | CRC32C of all but itself |
//! | 8 | 4 | payload bytes |
//! | 12 | 4 | records |
//! | 16 | 8 | segment id |
//! | 24 | 8 | LSN, one a frame, +1 each |
//! | 32 | 8 | mark: the highest LSN known synced when this was written |
//! | 40 | 8 | the store's revision when this was written |
//! | 48 | 4 | checksum of the frame before, a chain through all segments |
//! | 52 | 4 | flags: 1 closes the log, 2 placed, 4 volatile |
//! | 56 | 8 | zero |
//!
//! While an epoch is open (see `record::Note`), the records of a frame that is not *placed*
//! took their revisions when it became visible, which is later than here; those of a placed
//! one follow the revision in its header. Without an epoch every frame is as if placed.

use crate::Lsn;

/// Frames and segment headers start on multiples of this many bytes.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of a frame header.
pub(crate) const HEADER: usize = 64;
/// A frame's payload is at most this long: 1 GiB.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 30;
const MAGIC: u32 = u32::from_le_bytes(*b"oFrm");
/// The log was closed after this frame: nothing follows it in its segment.
pub(crate) const FLAG_CLOSE: u32 = 1;
/// Its records follow the revision in its header.
pub(crate) const FLAG_PLACED: u32 = 2;
/// It was visible before it was synced.
pub(crate) const FLAG_VOLATILE: u32 = 4;
/// All flags that this version knows.
pub(crate) const KNOWN_FLAGS: u32 = FLAG_CLOSE | FLAG_PLACED | FLAG_VOLATILE;

/// A frame's header, less magic and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) payload_bytes: u32,
    pub(crate) records: u32,
    pub(crate) segment: u64,
    pub(crate) lsn: Lsn,
    pub(crate) mark: Lsn,
    pub(crate) revision_before: i64,
    pub(crate) previous_crc: u32,
    pub(crate) flags: u32,
}

impl FrameHeader {
    /// Bytes that the frame takes in its segment, padding included.
    pub(crate) fn frame_bytes(&self) -> u64 {
        (HEADER as u64 + u64::from(self.payload_bytes)).next_multiple_of(PAGE)
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// The checksum's start for a directory.
pub(crate) fn seed(salt: u64) -> u32 {
    crc32c::crc32c(&salt.to_le_bytes())
}

fn checksum(salt: u64, frame: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(seed(salt), &frame[..4]);
    crc32c::crc32c_append(crc, &frame[8..])
}

/// The CRC's polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// A checksum's difference after `bytes` more of the same bytes: times x to the power of as
/// many bits.
fn carry(mut difference: u32, mut bytes: u64) -> u32 {
    let times = |a: u32, mut b: u32| {
        let mut product = 0;
        for bit in (0..32).rev() {
            if a >> bit & 1 == 1 {
                product ^= b;
            }
            b = b >> 1 ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
        }
        product
    };
    // x to the power of 8, squared for each binary digit.
    let mut power = 1 << 23;
    while bytes > 0 {
        if bytes & 1 == 1 {
            difference = times(power, difference);
        }
        power = times(power, power);
        bytes >>= 1;
    }
    difference
}

/// A frame's checksum, as far as a running checksum of the bytes around it tells.
pub(crate) struct Partial {
    stated: u32,
    /// Between the frame's checksum and the running one, where its bytes begin.
    difference: u32,
    /// How many bytes follow.
    bytes: u64,
}

impl Partial {
    /// Where in a frame the running checksum is taken.
    pub(crate) const FROM: u64 = 8;

    /// A frame whose first page is `page` and whose header is `header`; `running` covers all
    /// up to its byte [`FROM`](Partial::FROM).
    pub(crate) fn begin(page: &[u8], header: &FrameHeader, salt: u64, running: u32) -> Partial {
        let before = crc32c::crc32c_append(seed(salt), &page[..4]);
        Partial {
            stated: u32_at(page, 4),
            difference: before ^ running,
            bytes: HEADER as u64 - Partial::FROM + u64::from(header.payload_bytes),
        }
    }

    /// Whether its checksum is right; `running` covers all up to its end.
    pub(crate) fn is_whole(&self, running: u32) -> bool {
        running ^ carry(self.difference, self.bytes) == self.stated
    }
}

/// Fills in the header of `frame`, whose payload starts at [`HEADER`]; returns its checksum.
pub(crate) fn seal(frame: &mut [u8], header: &FrameHeader, salt: u64) -> u32 {
    frame[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    frame[8..12].copy_from_slice(&header.payload_bytes.to_le_bytes());
    frame[12..16].copy_from_slice(&header.records.to_le_bytes());
    frame[16..24].copy_from_slice(&header.segment.to_le_bytes());
    frame[24..32].copy_from_slice(&header.lsn.to_le_bytes());
    frame[32..40].copy_from_slice(&header.mark.to_le_bytes());
    frame[40..48].copy_from_slice(&header.revision_before.to_le_bytes());
    frame[48..52].copy_from_slice(&header.previous_crc.to_le_bytes());
    frame[52..56].copy_from_slice(&header.flags.to_le_bytes());
    frame[56..64].fill(0);
    let crc = checksum(salt, frame);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads a header if the bytes look like one of `segment`, with a length that fits into
/// `room_bytes`. Only [`verify`] says whether it is one.
pub(crate) fn peek(header: &[u8], segment: u64, room_bytes: u64) -> Option<FrameHeader> {
    if header.len() < HEADER || u32_at(header, 0) != MAGIC || u64_at(header, 16) != segment {
        return None;
    }
    let parsed = FrameHeader {
        payload_bytes: u32_at(header, 8),
        records: u32_at(header, 12),
        segment,
        lsn: u64_at(header, 24),
        mark: u64_at(header, 32),
        revision_before: u64_at(header, 40) as i64,
        previous_crc: u32_at(header, 48),
        flags: u32_at(header, 52),
    };
    let fits = HEADER as u64 + u64::from(parsed.payload_bytes) <= room_bytes
        && u64::from(parsed.payload_bytes) <= MAX_PAYLOAD_BYTES;
    fits.then_some(parsed)
}

/// The checksum that `frame` (header and payload, no padding) carries, if it is right.
pub(crate) fn verify(frame: &[u8], salt: u64, check: bool) -> Option<u32> {
    let stated = u32_at(frame, 4);
    (!check || stated == checksum(salt, frame)).then_some(stated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_checksum_tells_a_frames_own() {
        let bytes: Vec<u8> = (0..40_000u32).map(|n| (n * n % 251) as u8).collect();
        let salt = 77;
        for (at, length) in [(0, 64), (4096, 64), (4096, 4097), (8192, 31_000)] {
            let mut file = bytes.clone();
            let header = FrameHeader {
                payload_bytes: length as u32 - HEADER as u32,
                records: 1,
                segment: 3,
                lsn: 9,
                mark: 8,
                revision_before: 1,
                previous_crc: 5,
                flags: 0,
            };
            seal(&mut file[at..at + length], &header, salt);
            let judge = |file: &[u8]| {
                let begin = crc32c::crc32c(&file[..at + Partial::FROM as usize]);
                let end = crc32c::crc32c(&file[..at + length]);
                Partial::begin(&file[at..], &header, salt, begin).is_whole(end)
            };
            assert!(judge(&file), "{at} {length}");
            file[at + length - 1] ^= 4;
            assert!(!judge(&file), "{at} {length}");
        }
    }
}
