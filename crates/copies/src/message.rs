//! What the two sides say. Protocol Buffers, so that a field that a later release adds is skipped
//! by an earlier one; a change that must not be skipped is a new version ([`crate::VERSION`]), and
//! a server speaks one that all of its followers know.

use bytes::Bytes;
use engine::record::Record;
use journal::Lane;

/// Why bytes are not a message that this release understands.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// They are no message at all.
    #[error("not a message of the copies' stream: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// It says nothing that this release knows.
    #[error("a message of a kind that this release does not know: a newer one sent it")]
    UnknownKind,
    /// Its records are not.
    #[error("records of the copies' stream do not decode: {0}")]
    Records(#[from] journal::DecodeError),
}

/// What a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Role {
    /// One that this release does not know.
    Unknown = 0,
    /// It keeps snapshot and log on a disk of its own.
    Keeper = 1,
}

/// The class of an entry's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Class {
    /// One that this release does not know.
    Unknown = 0,
    /// On the server's disk when it was sent.
    Durable = 1,
    /// In the server's log when it was sent, and on its disk soon.
    Volatile = 2,
}

impl From<Lane> for Class {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Durable => Class::Durable,
            Lane::Volatile => Class::Volatile,
        }
    }
}

/// A place in a stream, after one of its entries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Position {
    /// The stream: one run of a server, as long as somebody follows it. Never 0.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// The entry, counted from 1 without gaps.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Its frame in the server's log; frames become visible in another order than this.
    #[prost(uint64, tag = "3")]
    pub lsn: u64,
    /// The store's revision after it.
    #[prost(int64, tag = "4")]
    pub revision: i64,
}

/// A follower's first message.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Hello {
    /// The oldest version that it speaks.
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    /// What it is.
    #[prost(enumeration = "Role", tag = "3")]
    pub role: i32,
    /// Its name, unlike that of any other follower.
    #[prost(string, tag = "4")]
    pub name: String,
    /// The cluster that it holds a copy of; 0 if it holds none.
    #[prost(uint64, tag = "5")]
    pub cluster_id: u64,
    /// The highest term of that cluster that it has seen; a server of a lower one was replaced.
    #[prost(uint64, tag = "6")]
    pub raft_term: u64,
    /// Where it stands, if it stands anywhere.
    #[prost(message, optional, tag = "7")]
    pub position: Option<Position>,
}

/// How far a follower has the stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Ack {
    /// The stream.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// The last entry that is in its log or memory.
    #[prost(uint64, tag = "2")]
    pub written: u64,
    /// The last entry that is on its disk.
    #[prost(uint64, tag = "3")]
    pub synced: u64,
    /// It has noted that the server stopped after that.
    #[prost(bool, tag = "4")]
    pub ended: bool,
}

/// The server's answer to a follower that may follow.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Welcome {
    /// The version that is spoken from here on.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The server's cluster.
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
    /// Its member id.
    #[prost(uint64, tag = "3")]
    pub member_id: u64,
    /// Its name.
    #[prost(string, tag = "4")]
    pub name: String,
    /// Its term.
    #[prost(uint64, tag = "5")]
    pub raft_term: u64,
    /// The stream.
    #[prost(uint64, tag = "6")]
    pub stream: u64,
    /// The entry after which the first batch begins.
    #[prost(uint64, tag = "7")]
    pub after: u64,
    /// A snapshot of the store as it is there comes first, in parts.
    #[prost(bool, tag = "8")]
    pub snapshot: bool,
    /// The revision of that snapshot; of the store where the stream begins.
    #[prost(int64, tag = "9")]
    pub revision: i64,
}

/// Why a follower may not follow, so that it can tell what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Reason {
    /// One that this release does not know.
    Unknown = 0,
    /// No version in common.
    Version = 1,
    /// A copy of another cluster.
    Cluster = 2,
    /// The follower has seen a later server: this one was replaced.
    Term = 3,
    /// The follower has what this server does not: it was put back, or lost writes.
    Ahead = 4,
    /// As many follow as may.
    Full = 5,
    /// The server is busy or stops: to be tried again.
    Later = 6,
}

/// The server's answer to a follower that may not follow. The stream ends.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Refused {
    /// Why.
    #[prost(enumeration = "Reason", tag = "1")]
    pub reason: i32,
    /// The same in a sentence for an operator.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// Records of one frame of the server's log, in order of visibility.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Entry {
    /// The frame.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// The store's revision before the first of them.
    #[prost(int64, tag = "2")]
    pub revision_before: i64,
    /// Their class.
    #[prost(enumeration = "Class", tag = "3")]
    pub class: i32,
    /// How many they are.
    #[prost(uint32, tag = "4")]
    pub count: u32,
    /// The records, as the journal encodes them.
    #[prost(bytes = "bytes", tag = "5")]
    pub records: Bytes,
}

impl Entry {
    /// Encodes what the tap gave.
    pub fn of(entry: &journal::Entry) -> Self {
        let mut records = Vec::new();
        journal::encode_records(&entry.records, &mut records);
        Entry {
            lsn: entry.lsn,
            revision_before: entry.revision_before,
            class: Class::from(entry.lane).into(),
            count: entry.records.len() as u32,
            records: records.into(),
        }
    }

    /// The records.
    ///
    /// # Errors
    /// They are of another version, or damaged.
    pub fn decode(&self) -> Result<Vec<Record>, MessageError> {
        Ok(journal::decode_records(&self.records, self.count)?)
    }
}

/// Entries that follow each other in the stream.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Batch {
    /// The place of the first.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// They.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<Entry>,
    /// The server's clock, in milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub unix_ms: u64,
    /// The stream.
    #[prost(uint64, tag = "4")]
    pub stream: u64,
}

/// How far the server is, now and then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Heartbeat {
    /// The last entry of the stream.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Records that the follower has not said that it has.
    #[prost(uint64, tag = "2")]
    pub lag_records: u64,
    /// Their bytes.
    #[prost(uint64, tag = "3")]
    pub lag_bytes: u64,
    /// Since when the oldest of them waits, in milliseconds.
    #[prost(uint64, tag = "4")]
    pub lag_ms: u64,
    /// The server's clock, in milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub unix_ms: u64,
    /// The server shows nothing that this follower does not have on its disk, and does not go on
    /// without it.
    #[prost(bool, tag = "6")]
    pub waits: bool,
}

/// The storage rules that were chosen at run time, as far as there are any.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Rules {
    /// A profile's name, or that of a file.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The TOML; empty if nothing is chosen.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// The server stopped in order, and this was all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct End {
    /// The last entry.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// The store's revision.
    #[prost(int64, tag = "2")]
    pub revision: i64,
    /// The server's clock, in milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub unix_ms: u64,
    /// The stream.
    #[prost(uint64, tag = "4")]
    pub stream: u64,
}

/// How a kind of message goes as bytes and comes back: as the one field of `$message`.
macro_rules! wrapped {
    ($kind:ident, $message:ident, $field:ident) => {
        impl From<$kind> for $message {
            fn from(kind: $kind) -> Self {
                $message { $field: Some(kind) }
            }
        }

        impl $kind {
            /// The bytes of a message.
            pub fn into_bytes(self) -> Bytes {
                prost::Message::encode_to_vec(&$message::from(self)).into()
            }

            /// Reads a message. Byte strings are slices of it.
            ///
            /// # Errors
            /// [`MessageError`].
            pub fn from_bytes(message: Bytes) -> Result<Self, MessageError> {
                let message = <$message as prost::Message>::decode(message)?;
                message.$field.ok_or(MessageError::UnknownKind)
            }
        }
    };
}
pub(crate) use wrapped;

/// What a follower says.
#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Told {
    /// First.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// From then on.
    #[prost(message, tag = "2")]
    Ack(Ack),
}

/// What a server says.
#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Said {
    /// First.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// Or this.
    #[prost(message, tag = "2")]
    Refused(Refused),
    /// The next part of the snapshot; an empty one ends it.
    #[prost(bytes = "bytes", tag = "3")]
    Snapshot(Bytes),
    /// What became visible.
    #[prost(message, tag = "4")]
    Batch(Batch),
    /// How far the server is.
    #[prost(message, tag = "5")]
    Heartbeat(Heartbeat),
    /// What storage rules it has.
    #[prost(message, tag = "6")]
    Rules(Rules),
    /// The last.
    #[prost(message, tag = "7")]
    End(End),
}

#[derive(Clone, PartialEq, prost::Message)]
struct FromFollower {
    #[prost(oneof = "Told", tags = "1, 2")]
    told: Option<Told>,
}

/// A message of a server, as it is encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromServer {
    #[prost(oneof = "Said", tags = "1, 2, 3, 4, 5, 6, 7")]
    said: Option<Said>,
}

wrapped!(Told, FromFollower, told);
wrapped!(Said, FromServer, said);

#[cfg(test)]
mod tests {
    use super::*;
    use engine::record::Effect;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 3,
            role: Role::Keeper.into(),
            name: "b".to_owned(),
            cluster_id: u64::MAX,
            raft_term: 2,
            position: Some(Position {
                stream: 7,
                sequence: 9,
                lsn: 11,
                revision: -1,
            }),
        }
    }

    #[test]
    fn messages_read_back_and_a_cut_one_never_panics() {
        let records = vec![
            Record::Txn(vec![Effect::Put {
                key: "k".into(),
                value: vec![7; 300].into(),
                lease: 5,
            }]),
            Record::Compact { revision: 3 },
        ];
        let entry = journal::Entry::for_tests(4, 17, 8, Lane::Volatile, records.clone());
        let entry = Entry::of(&entry);
        assert_eq!(entry.decode().unwrap(), records);
        assert_eq!(entry.class(), Class::Volatile);
        let batch = Said::Batch(Batch {
            first: 4,
            entries: vec![entry],
            unix_ms: 1,
            stream: 3,
        });
        let bytes = batch.clone().into_bytes();
        assert_eq!(Said::from_bytes(bytes.clone()).unwrap(), batch);
        for at in 0..bytes.len() {
            if let Ok(Said::Batch(batch)) = Said::from_bytes(bytes.slice(..at)) {
                let _ = batch.entries.iter().map(Entry::decode).count();
            }
        }
        let told = Told::Hello(hello());
        assert_eq!(Told::from_bytes(told.clone().into_bytes()).unwrap(), told);
        assert!(matches!(
            Told::from_bytes(Bytes::new()),
            Err(MessageError::UnknownKind)
        ));
    }

    /// A later release's field is skipped, its kind of message is not.
    #[test]
    fn what_a_newer_release_says_is_skipped_or_named() {
        let mut bytes = Told::Hello(hello()).into_bytes().to_vec();
        // Field 99, a varint.
        bytes.extend_from_slice(&[0x98, 0x06, 1]);
        assert_eq!(
            Told::from_bytes(bytes.into()).unwrap(),
            Told::Hello(hello())
        );
        let unknown = Bytes::from_static(&[0x9a, 0x06, 0]);
        assert!(matches!(
            Said::from_bytes(unknown),
            Err(MessageError::UnknownKind)
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = Told::from_bytes(bytes.clone());
            if let Ok(Said::Batch(batch)) = Said::from_bytes(bytes) {
                for entry in batch.entries {
                    let _ = entry.decode();
                }
            }
        }
    }
}
