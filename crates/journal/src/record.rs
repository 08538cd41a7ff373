//! Records and snapshot units as bytes.
//!
//! A record is a kind byte and its fields: numbers as LEB128 varints (an `i64` by its 64
//! bits), byte strings with their length before them. A kind that this version does not
//! know is reported as such, so that an older orlop refuses a newer one's log instead of
//! skipping what it cannot read. Kinds 0x40 to 0x4f are the journal's own notes between the
//! store's records: revision stamps and volatile epochs. `docs/decisions/0006-volatile-records.md`
//! says what they are for.

use crate::Lsn;
use bytes::Bytes;
use engine::record::{Effect, PutItem, Record, Revision, VersionItem};

const TXN: u8 = 1;
const LEASE_GRANT: u8 = 2;
const LEASE_REVOKE: u8 = 3;
const COMPACT: u8 = 4;
const ALARM: u8 = 5;
const STAMP: u8 = 0x40;
const EPOCH: u8 = 0x41;
const EPOCH_END: u8 = 0x42;
const JUMP: u8 = 0x43;
const FOLLOWED: u8 = 0x44;

const PUT: u8 = 1;
const DELETE: u8 = 2;

const UNIT_LEASE: u8 = 1;
const UNIT_ALARM: u8 = 2;
const UNIT_KEY: u8 = 3;
const UNIT_PUT: u8 = 4;
const UNIT_TOMBSTONE: u8 = 5;

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within a record, or a number has no end.
    #[error("the bytes end within a record")]
    Short,
    /// A kind byte of another version.
    #[error("record kind {0} is not known to this version of orlop; a newer one wrote it")]
    UnknownKind(u8),
    /// Bytes are left after the last record.
    #[error("{0} bytes are left after the last record")]
    Trailing(usize),
}

/// How far a follower's log has come in the stream of the server that it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// The stream: one run of a server.
    pub stream: u64,
    /// The last entry of it that is in the log.
    pub sequence: u64,
    /// The server's frame that this entry was, in the server's log.
    pub lsn: Lsn,
    /// The server's clock when it sent that, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What is known of the rest.
    pub proof: Proof,
}

/// What a follower knows of what its server acknowledged beyond the follower's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// Nothing: the server goes on without it.
    #[default]
    None,
    /// The server waits for this follower before it shows anything, and does not go on without.
    Waits,
    /// The server stopped, and this was all.
    Stopped,
}

impl Proof {
    fn number(self) -> u8 {
        match self {
            Proof::None => 0,
            Proof::Waits => 1,
            Proof::Stopped => 2,
        }
    }

    fn of(number: u8) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Proof::None),
            1 => Ok(Proof::Waits),
            2 => Ok(Proof::Stopped),
            other => Err(DecodeError::UnknownKind(other)),
        }
    }
}

/// What the journal notes for itself, in frames and in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// The records of durable frame `lsn` took the revisions after `revision_before`, and
    /// became visible here.
    Stamp { lsn: Lsn, revision_before: i64 },
    /// From here on volatile frames may come; no revision above `bound` is shown to anyone
    /// before the next such note. `opened` is the frame that opened the epoch, 0 for this one.
    Epoch { bound: i64, opened: Lsn },
    /// All before this is on disk if this is, and nothing volatile follows.
    EpochEnd,
    /// The store's revision jumped to `revision`, and all at and below it was compacted.
    Jump { revision: i64 },
    /// The store holds all of another server's records up to there, those of this frame among
    /// them.
    Followed(Followed),
}

/// One entry of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Record(Record),
    Note(Note),
}

/// Part of a snapshot: an item, or a piece of a key with many versions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Lease {
        id: i64,
        ttl_s: i64,
    },
    Alarm {
        alarm: i32,
    },
    /// A key; `versions` units follow.
    Key {
        key: Bytes,
        versions: u64,
    },
    Version(VersionItem),
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_i64(out: &mut Vec<u8>, value: i64) {
    put_varint(out, value as u64);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes that a record takes at most, encoded; for limits, before anything is copied.
pub(crate) fn encoded_bytes_at_most(record: &Record) -> u64 {
    const NUMBER: u64 = 10;
    match record {
        Record::Txn(effects) => effects.iter().fold(1 + NUMBER, |sum, effect| {
            sum + match effect {
                Effect::Put { key, value, .. } => {
                    1 + 3 * NUMBER + key.len() as u64 + value.len() as u64
                }
                Effect::Delete { key } => 1 + NUMBER + key.len() as u64,
            }
        }),
        Record::LeaseRevoke { keys, .. } => keys
            .iter()
            .fold(1 + 2 * NUMBER, |sum, key| sum + NUMBER + key.len() as u64),
        Record::LeaseGrant { .. } | Record::Compact { .. } | Record::Alarm { .. } => 1 + 2 * NUMBER,
    }
}

/// Appends a record's bytes.
pub(crate) fn encode(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Txn(effects) => {
            out.push(TXN);
            put_varint(out, effects.len() as u64);
            for effect in effects {
                match effect {
                    Effect::Put { key, value, lease } => {
                        out.push(PUT);
                        put_bytes(out, key);
                        put_i64(out, *lease);
                        put_bytes(out, value);
                    }
                    Effect::Delete { key } => {
                        out.push(DELETE);
                        put_bytes(out, key);
                    }
                }
            }
        }
        Record::LeaseGrant { id, ttl_s } => {
            out.push(LEASE_GRANT);
            put_i64(out, *id);
            put_i64(out, *ttl_s);
        }
        Record::LeaseRevoke { id, keys } => {
            out.push(LEASE_REVOKE);
            put_i64(out, *id);
            put_varint(out, keys.len() as u64);
            for key in keys {
                put_bytes(out, key);
            }
        }
        Record::Compact { revision } => {
            out.push(COMPACT);
            put_i64(out, *revision);
        }
        Record::Alarm { alarm, active } => {
            out.push(ALARM);
            put_i64(out, i64::from(*alarm));
            out.push(u8::from(*active));
        }
    }
}

/// Appends a note's bytes.
pub(crate) fn encode_note(note: &Note, out: &mut Vec<u8>) {
    match *note {
        Note::Stamp {
            lsn,
            revision_before,
        } => {
            out.push(STAMP);
            put_varint(out, lsn);
            put_i64(out, revision_before);
        }
        Note::Epoch { bound, opened } => {
            out.push(EPOCH);
            put_i64(out, bound);
            put_varint(out, opened);
        }
        Note::EpochEnd => out.push(EPOCH_END),
        Note::Jump { revision } => {
            out.push(JUMP);
            put_i64(out, revision);
        }
        Note::Followed(followed) => {
            out.push(FOLLOWED);
            put_varint(out, followed.stream);
            put_varint(out, followed.sequence);
            put_varint(out, followed.lsn);
            put_varint(out, followed.unix_ms);
            out.push(followed.proof.number());
        }
    }
}

/// Reads fields from the front of a slice. Byte strings are copied out at their exact
/// size: a slice of the read buffer would keep all of it alive for one small value.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.0.split_first().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Short)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(self.varint()? as i64)
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.varint()?;
        if length > self.0.len() as u64 {
            return Err(DecodeError::Short);
        }
        let (bytes, rest) = self.0.split_at(length as usize);
        self.0 = rest;
        Ok(Bytes::copy_from_slice(bytes))
    }

    /// A count of things of at least `min_bytes` each: more than fit are never reserved.
    fn count(&mut self, min_bytes: usize) -> Result<usize, DecodeError> {
        let count = self.varint()?;
        if count > (self.0.len() / min_bytes) as u64 {
            return Err(DecodeError::Short);
        }
        Ok(count as usize)
    }

    fn entry(&mut self) -> Result<Entry, DecodeError> {
        let note = match self.0.first() {
            Some(STAMP..=FOLLOWED) => self.byte()?,
            _ => return self.record().map(Entry::Record),
        };
        Ok(Entry::Note(match note {
            STAMP => Note::Stamp {
                lsn: self.varint()?,
                revision_before: self.i64()?,
            },
            EPOCH => Note::Epoch {
                bound: self.i64()?,
                opened: self.varint()?,
            },
            EPOCH_END => Note::EpochEnd,
            JUMP => Note::Jump {
                revision: self.i64()?,
            },
            _ => Note::Followed(Followed {
                stream: self.varint()?,
                sequence: self.varint()?,
                lsn: self.varint()?,
                unix_ms: self.varint()?,
                proof: Proof::of(self.byte()?)?,
            }),
        }))
    }

    fn record(&mut self) -> Result<Record, DecodeError> {
        Ok(match self.byte()? {
            TXN => {
                let count = self.count(2)?;
                let mut effects = Vec::with_capacity(count);
                for _ in 0..count {
                    effects.push(match self.byte()? {
                        PUT => {
                            let key = self.bytes()?;
                            let lease = self.i64()?;
                            Effect::Put {
                                key,
                                value: self.bytes()?,
                                lease,
                            }
                        }
                        DELETE => Effect::Delete { key: self.bytes()? },
                        kind => return Err(DecodeError::UnknownKind(kind)),
                    });
                }
                Record::Txn(effects)
            }
            LEASE_GRANT => Record::LeaseGrant {
                id: self.i64()?,
                ttl_s: self.i64()?,
            },
            LEASE_REVOKE => {
                let id = self.i64()?;
                let count = self.count(1)?;
                let keys = (0..count).map(|_| self.bytes()).collect::<Result<_, _>>()?;
                Record::LeaseRevoke { id, keys }
            }
            COMPACT => Record::Compact {
                revision: self.i64()?,
            },
            ALARM => Record::Alarm {
                alarm: self.i64()? as i32,
                active: self.byte()? != 0,
            },
            kind => return Err(DecodeError::UnknownKind(kind)),
        })
    }
}

/// Decodes `count` entries that fill `payload` exactly, handing each to `each`.
pub(crate) fn decode_all<E: From<DecodeError>>(
    payload: &[u8],
    count: u32,
    mut each: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = Reader(payload);
    for _ in 0..count {
        each(reader.entry()?)?;
    }
    match reader.0.len() {
        0 => Ok(()),
        left => Err(DecodeError::Trailing(left).into()),
    }
}

/// Appends the bytes of records, as frames have them; for who follows from elsewhere.
pub fn encode_records(records: &[Record], out: &mut Vec<u8>) {
    for record in records {
        encode(record, out);
    }
}

/// Decodes `count` records that fill `bytes` exactly: what [`encode_records`] made.
///
/// # Errors
/// If they are not `count` records of this version.
pub fn decode_records(bytes: &[u8], count: u32) -> Result<Vec<Record>, DecodeError> {
    let mut records = Vec::new();
    decode_all(bytes, count, |entry| match entry {
        Entry::Record(record) => {
            records.push(record);
            Ok(())
        }
        // The journal's own are no part of a stream.
        Entry::Note(_) => Err(DecodeError::UnknownKind(STAMP)),
    })?;
    Ok(records)
}

/// Decodes one record that fills `bytes` exactly; `None` for a note of the journal's own. For
/// tests and fuzzing.
///
/// # Errors
/// If the bytes are not one record of this version.
pub fn decode_record(bytes: &[u8]) -> Result<Option<Record>, DecodeError> {
    let mut found = None;
    decode_all(bytes, 1, |entry| {
        if let Entry::Record(record) = entry {
            found = Some(record);
        }
        Ok::<_, DecodeError>(())
    })?;
    Ok(found)
}

/// Appends a lease's, alarm's or key's unit.
pub(crate) fn encode_lease(id: i64, ttl_s: i64, out: &mut Vec<u8>) {
    out.push(UNIT_LEASE);
    put_i64(out, id);
    put_i64(out, ttl_s);
}

pub(crate) fn encode_alarm(alarm: i32, out: &mut Vec<u8>) {
    out.push(UNIT_ALARM);
    put_i64(out, i64::from(alarm));
}

pub(crate) fn encode_key(key: &[u8], versions: usize, out: &mut Vec<u8>) {
    out.push(UNIT_KEY);
    put_bytes(out, key);
    put_varint(out, versions as u64);
}

pub(crate) fn encode_version(version: &VersionItem, out: &mut Vec<u8>) {
    out.push(if version.put.is_some() {
        UNIT_PUT
    } else {
        UNIT_TOMBSTONE
    });
    put_i64(out, version.revision.main);
    put_i64(out, version.revision.sub);
    if let Some(put) = &version.put {
        put_i64(out, put.create_revision);
        put_i64(out, put.version);
        put_i64(out, put.lease);
        put_bytes(out, &put.value);
    }
}

/// Decodes units until `block` is used up.
pub(crate) fn decode_units<E: From<DecodeError>>(
    block: &[u8],
    mut each: impl FnMut(Unit) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = Reader(block);
    while !reader.0.is_empty() {
        each(decode_unit(&mut reader)?)?;
    }
    Ok(())
}

fn decode_unit(reader: &mut Reader<'_>) -> Result<Unit, DecodeError> {
    Ok(match reader.byte()? {
        UNIT_LEASE => Unit::Lease {
            id: reader.i64()?,
            ttl_s: reader.i64()?,
        },
        UNIT_ALARM => Unit::Alarm {
            alarm: reader.i64()? as i32,
        },
        UNIT_KEY => Unit::Key {
            key: reader.bytes()?,
            versions: reader.varint()?,
        },
        kind @ (UNIT_PUT | UNIT_TOMBSTONE) => {
            let revision = Revision {
                main: reader.i64()?,
                sub: reader.i64()?,
            };
            let put = if kind == UNIT_PUT {
                Some(PutItem {
                    create_revision: reader.i64()?,
                    version: reader.i64()?,
                    lease: reader.i64()?,
                    value: reader.bytes()?,
                })
            } else {
                None
            };
            Unit::Version(VersionItem { revision, put })
        }
        kind => return Err(DecodeError::UnknownKind(kind)),
    })
}
