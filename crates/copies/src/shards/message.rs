//! What a shard and its server say, as Protocol Buffers: a field that a later release adds is
//! skipped by an earlier one; a change that must not be skipped is a new version
//! ([`super::VERSION`]).

use super::Fence;
use crate::message::{MessageError, Refused, wrapped};
use bytes::Bytes;
use journal::HeldFrame;

/// A shard's first message.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Hello {
    /// The oldest version that it speaks.
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    /// Its name, unlike that of any other shard.
    #[prost(string, tag = "3")]
    pub name: String,
    /// A number that it gave itself when it began.
    #[prost(uint64, tag = "4")]
    pub incarnation: u64,
    /// Its failure domain; empty if it has none but itself.
    #[prost(string, tag = "5")]
    pub zone: String,
    /// The cluster whose frames it holds; 0 if it holds none.
    #[prost(uint64, tag = "6")]
    pub cluster_id: u64,
    /// The highest term that it has seen.
    #[prost(uint64, tag = "7")]
    pub raft_term: u64,
    /// The highest start within that term.
    #[prost(uint64, tag = "8")]
    pub generation: u64,
    /// The most that it holds, in bytes.
    #[prost(uint64, tag = "9")]
    pub limit_bytes: u64,
}

impl Hello {
    /// The highest fence that it has seen.
    pub fn fence(&self) -> Fence {
        Fence {
            raft_term: self.raft_term,
            generation: self.generation,
        }
    }
}

/// How far a shard has a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Ack {
    /// The set.
    #[prost(uint64, tag = "1")]
    pub set: u64,
    /// The last frame up to which it holds all that was not on the server's disk.
    #[prost(uint64, tag = "2")]
    pub held: u64,
    /// Bytes that it holds.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

/// A frame of the server's log.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Frame {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// Headers of the segments that were begun for it.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub headers: Vec<Bytes>,
    /// Its bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub bytes: Bytes,
}

impl From<HeldFrame> for Frame {
    fn from(frame: HeldFrame) -> Self {
        Frame {
            lsn: frame.lsn,
            headers: frame.headers,
            bytes: frame.bytes,
        }
    }
}

impl From<Frame> for HeldFrame {
    fn from(frame: Frame) -> Self {
        HeldFrame {
            lsn: frame.lsn,
            headers: frame.headers,
            bytes: frame.bytes,
        }
    }
}

/// What a shard gives back.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Collected {
    /// Its next frames.
    #[prost(message, repeated, tag = "1")]
    pub frames: Vec<Frame>,
    /// They were all.
    #[prost(bool, tag = "2")]
    pub last: bool,
    /// With the last: the last frame that was held, or was said to be on the disk; 0 if it was
    /// given none of the set.
    #[prost(uint64, tag = "3")]
    pub held: u64,
}

/// A shard is about to stop: it is to hold nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Leaving {}

/// The server's answer to a shard that it takes. The shard is closed to earlier servers from here
/// on.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Welcome {
    /// The version that is spoken from here on.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The server's cluster.
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
    /// Its term.
    #[prost(uint64, tag = "3")]
    pub raft_term: u64,
    /// Its start.
    #[prost(uint64, tag = "4")]
    pub generation: u64,
    /// Its name.
    #[prost(string, tag = "5")]
    pub name: String,
}

impl Welcome {
    /// The server's fence.
    pub fn fence(&self) -> Fence {
        Fence {
            raft_term: self.raft_term,
            generation: self.generation,
        }
    }
}

/// A set begins: what was held before may be forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Begin {
    /// The set.
    #[prost(uint64, tag = "1")]
    pub set: u64,
    /// The last frame before it.
    #[prost(uint64, tag = "2")]
    pub after: u64,
}

/// The next frames of a set.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Frames {
    /// The set.
    #[prost(uint64, tag = "1")]
    pub set: u64,
    /// All up to here is on the server's disk: it may be forgotten, and need not have been there.
    #[prost(uint64, tag = "2")]
    pub synced: u64,
    /// They, in order.
    #[prost(message, repeated, tag = "3")]
    pub frames: Vec<Frame>,
}

/// A start asks for what is not on its disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Collect {
    /// The set.
    #[prost(uint64, tag = "1")]
    pub set: u64,
    /// The last frame that is on disk.
    #[prost(uint64, tag = "2")]
    pub after: u64,
}

/// What a shard says.
#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Told {
    /// First.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// After frames.
    #[prost(message, tag = "2")]
    Ack(Ack),
    /// When it is asked.
    #[prost(message, tag = "3")]
    Collected(Collected),
    /// Before it stops.
    #[prost(message, tag = "4")]
    Leaving(Leaving),
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
    /// The shard is one of a set.
    #[prost(message, tag = "3")]
    Begin(Begin),
    /// Frames, or how far the server's disk is.
    #[prost(message, tag = "4")]
    Frames(Frames),
    /// Only at a start.
    #[prost(message, tag = "5")]
    Collect(Collect),
}

#[derive(Clone, PartialEq, prost::Message)]
struct FromShard {
    #[prost(oneof = "Told", tags = "1, 2, 3, 4")]
    told: Option<Told>,
}

/// A message of a server, as it is encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromServer {
    #[prost(oneof = "Said", tags = "1, 2, 3, 4, 5")]
    said: Option<Said>,
}

wrapped!(Told, FromShard, told);
wrapped!(Said, FromServer, said);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_read_back() {
        let frames = Said::Frames(Frames {
            set: 3,
            synced: 4,
            frames: vec![Frame {
                lsn: 5,
                headers: vec!["head".into()],
                bytes: vec![7; 300].into(),
            }],
        });
        assert_eq!(
            Said::from_bytes(frames.clone().into_bytes()).unwrap(),
            frames
        );
        let ack = Told::Ack(Ack {
            set: 1,
            held: 2,
            bytes: 3,
        });
        assert_eq!(Told::from_bytes(ack.clone().into_bytes()).unwrap(), ack);
        assert!(matches!(
            Said::from_bytes(Bytes::new()),
            Err(MessageError::UnknownKind)
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = Told::from_bytes(bytes.clone());
            let _ = Said::from_bytes(bytes);
        }
    }
}
