//! etcd's write-ahead log, read for one question: does it have writes that the database
//! beside it does not have yet?
//!
//! Files `SEQ-INDEX.wal` hold records: 8 bytes length (little-endian, the top byte says how
//! many padding bytes follow), then a protobuf message of type, checksum and data, padded to
//! 8 bytes. The checksum (CRC32C) goes on from record to record. A torn or damaged record
//! ends the log.

use crate::error::Error;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

const ENTRY: i64 = 2;
const CRC: i64 = 4;
const NORMAL_ENTRY: i32 = 0;

/// `walpb.Record`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

/// How far a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalEnd {
    /// Index of the last entry, 0 if there is none.
    pub last_index: u64,
    /// Requests after the index that was asked for. Whether the cluster has agreed on all of
    /// them cannot be told from one member's log.
    pub newer: u64,
}

/// Reads the log in `dir` (`member/wal`) and counts what comes after `index`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn end(dir: &Path, index: u64) -> Result<WalEnd, Error> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("list", dir))? {
        let path = entry.map_err(io("list", dir))?.path();
        if path.extension().is_some_and(|e| e == "wal") {
            files.push(path);
        }
    }
    files.sort();
    let mut log = Log {
        index,
        ..Log::default()
    };
    for path in files {
        let bytes = std::fs::read(&path).map_err(io("read", &path))?;
        log.read(bytes.into());
    }
    Ok(WalEnd {
        last_index: log.last_index,
        newer: log.newer.values().filter(|is_request| **is_request).count() as u64,
    })
}

#[derive(Default)]
struct Log {
    index: u64,
    last_index: u64,
    crc: u32,
    /// Entries after `index`, and whether each is a request.
    newer: BTreeMap<u64, bool>,
}

impl Log {
    fn read(&mut self, mut bytes: Bytes) {
        while let Some(record) = next_record(&mut bytes) {
            if record.kind == CRC {
                // A file begins with the checksum of the one before it.
                self.crc = record.crc;
                continue;
            }
            self.crc = crc32c::crc32c_append(self.crc, &record.data);
            if self.crc != record.crc {
                return;
            }
            if record.kind == ENTRY {
                let Ok(entry) = Entry::decode(record.data) else {
                    return;
                };
                // A new leader may replace what was not agreed on.
                self.last_index = entry.index;
                self.newer.split_off(&entry.index);
                if entry.index > self.index {
                    let is_request = entry.kind == NORMAL_ENTRY && !entry.data.is_empty();
                    self.newer.insert(entry.index, is_request);
                }
            }
        }
    }
}

/// Takes a record off the front; `None` where the file ends or was not written yet.
fn next_record(bytes: &mut Bytes) -> Option<Record> {
    let field = u64::from_le_bytes(*bytes.first_chunk::<8>()?);
    if field == 0 {
        return None;
    }
    let length = usize::try_from(field & (u64::MAX >> 8)).ok()?;
    let padding = if field >> 63 == 1 {
        (field >> 56 & 7) as usize
    } else {
        0
    };
    let rest = bytes.slice(8..);
    if length.checked_add(padding)? > rest.len() {
        return None;
    }
    *bytes = rest.slice(length + padding..);
    Record::decode(rest.slice(..length)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(entries: &[(u64, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut crc = 0;
        let mut push = |kind, data: Vec<u8>| {
            if kind != CRC {
                crc = crc32c::crc32c_append(crc, &data);
            }
            let record = Record {
                kind,
                crc,
                data: data.into(),
            };
            let mut bytes = record.encode_to_vec();
            let padding = (8 - bytes.len() % 8) % 8;
            let mut field = bytes.len() as u64;
            if padding > 0 {
                field |= (0x80 | padding as u64) << 56;
            }
            bytes.resize(bytes.len() + padding, 0);
            out.extend_from_slice(&field.to_le_bytes());
            out.extend_from_slice(&bytes);
        };
        push(CRC, Vec::new());
        for &(index, data) in entries {
            let entry = Entry {
                kind: NORMAL_ENTRY,
                term: 1,
                index,
                data: Bytes::copy_from_slice(data),
            };
            push(ENTRY, entry.encode_to_vec());
        }
        out
    }

    fn end_of(bytes: &[u8], index: u64) -> WalEnd {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("0000000000000000-0000000000000000.wal"),
            bytes,
        )
        .unwrap();
        end(dir.path(), index).unwrap()
    }

    #[test]
    fn counts_requests_after_an_index() {
        let bytes = file(&[(1, b"a"), (2, b""), (3, b"bcd"), (4, b"e")]);
        assert_eq!(
            end_of(&bytes, 1),
            WalEnd {
                last_index: 4,
                newer: 2
            }
        );
        assert_eq!(end_of(&bytes, 4).newer, 0);
    }

    #[test]
    fn an_entry_that_replaces_others_ends_the_log() {
        let bytes = file(&[(1, b"a"), (2, b"b"), (3, b"c"), (2, b"d")]);
        assert_eq!(
            end_of(&bytes, 1),
            WalEnd {
                last_index: 2,
                newer: 1
            }
        );
    }

    #[test]
    fn a_torn_end_and_room_ahead_are_no_entries() {
        let mut bytes = file(&[(1, b"a"), (2, b"b")]);
        let whole = bytes.clone();
        bytes.extend_from_slice(&[0; 64]);
        assert_eq!(end_of(&bytes, 0).newer, 2);
        for cut in 0..whole.len() {
            assert!(end_of(&whole[..cut], 0).newer < 2, "{cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            Log::default().read(bytes.into());
        }
    }
}
