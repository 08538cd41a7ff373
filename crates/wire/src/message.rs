//! Request messages: cut from a body's chunks, decompressed, within limits.

use std::cell::Cell;
use std::io::Read as _;
use std::rc::Rc;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

use crate::grpc::{Code, PREFIX_BYTES, Status};

/// How a request's messages are compressed (`grpc-encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Not at all; `true` if the header said so explicitly or was absent.
    Identity,
    /// gzip: etcd's server accepts it, so some clients use it.
    Gzip,
}

impl Encoding {
    /// From the request's headers; an unknown one is refused with the text of Go's gRPC.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Status> {
        match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Ok(Encoding::Identity),
            Some(b"gzip") => Ok(Encoding::Gzip),
            Some(other) => Err(Status::new(
                Code::Unimplemented,
                format!(
                    "grpc: Decompressor is not installed for grpc-encoding {:?}",
                    String::from_utf8_lossy(other)
                ),
            )),
        }
    }
}

/// Cuts a request body's chunks into messages.
///
/// A message that lies within one chunk is a slice of it; one that spans chunks is copied once.
/// Memory follows what was received, never what a prefix announces.
#[derive(Debug)]
pub(crate) struct Assembler {
    encoding: Encoding,
    max_message_bytes: usize,
    budget: Rc<Budget>,
    chunk: Bytes,
    /// Bytes of a message or prefix whose rest has not arrived.
    partial: BytesMut,
    /// Flag and length of the message that is being received.
    prefix: Option<(u8, usize)>,
}

impl Assembler {
    pub(crate) fn new(encoding: Encoding, max_message_bytes: usize, budget: Rc<Budget>) -> Self {
        let (chunk, partial) = (Bytes::new(), BytesMut::new());
        Assembler {
            encoding,
            max_message_bytes,
            budget,
            chunk,
            partial,
            prefix: None,
        }
    }

    /// Takes the next chunk; call only after `next` returned `None`.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty());
        self.chunk = chunk;
    }

    /// Whether the body may end here.
    pub(crate) fn at_boundary(&self) -> bool {
        self.prefix.is_none() && self.partial.is_empty() && self.chunk.is_empty()
    }

    /// The next complete message, or `None` if more chunks are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let (flag, len) = match self.prefix {
            Some(prefix) => prefix,
            None => {
                let Some(mut bytes) = self.gather(PREFIX_BYTES)? else {
                    return Ok(None);
                };
                let flag = bytes.get_u8();
                let len = usize::try_from(bytes.get_u32()).unwrap_or(usize::MAX);
                if len > self.max_message_bytes {
                    return Err(Status::new(
                        Code::ResourceExhausted,
                        format!(
                            "grpc: received message larger than max ({len} vs. {})",
                            self.max_message_bytes
                        ),
                    ));
                }
                *self.prefix.insert((flag, len))
            }
        };
        let Some(payload) = self.gather(len)? else {
            return Ok(None);
        };
        self.prefix = None;
        match (flag, self.encoding) {
            (0, _) => Ok(Some(payload)),
            (1, Encoding::Gzip) => self.gunzip(&payload).map(Some),
            (1, Encoding::Identity) => Err(Status::new(
                Code::Internal,
                "grpc: compressed flag set with identity or empty encoding",
            )),
            (other, _) => Err(Status::new(
                Code::Internal,
                format!("grpc: received unexpected payload format {other}"),
            )),
        }
    }

    /// Exactly `len` bytes, or `None` after setting aside what is there.
    fn gather(&mut self, len: usize) -> Result<Option<Bytes>, Status> {
        if self.partial.is_empty() && self.chunk.len() >= len {
            return Ok(Some(self.chunk.split_to(len)));
        }
        let missing = len - self.partial.len();
        let take = missing.min(self.chunk.len());
        self.budget.take(take)?;
        self.partial.extend_from_slice(&self.chunk.split_to(take));
        if take < missing {
            return Ok(None);
        }
        self.budget.give(len);
        Ok(Some(std::mem::take(&mut self.partial).freeze()))
    }

    fn gunzip(&self, payload: &[u8]) -> Result<Bytes, Status> {
        let limit = self.max_message_bytes;
        let mut out = Vec::new();
        let read = flate2::read::GzDecoder::new(payload)
            .take(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1))
            .read_to_end(&mut out);
        if let Err(error) = read {
            return Err(Status::new(
                Code::Internal,
                format!("grpc: failed to decompress the received message: {error}"),
            ));
        }
        if out.len() > limit {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("grpc: received message after decompression larger than max {limit}"),
            ));
        }
        Ok(Bytes::from(out))
    }
}

impl Drop for Assembler {
    fn drop(&mut self) {
        self.budget.give(self.partial.len());
    }
}

/// A complete message that waits until its call may go on.
#[derive(Debug)]
pub(crate) struct Parked {
    message: Bytes,
    budget: Rc<Budget>,
}

impl Parked {
    /// Sets a message aside, within the budget.
    pub(crate) fn new(message: Bytes, budget: &Rc<Budget>) -> Result<Self, Status> {
        budget.take(message.len())?;
        let budget = Rc::clone(budget);
        Ok(Parked { message, budget })
    }

    /// The message.
    pub(crate) fn message(&self) -> Bytes {
        self.message.clone()
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.budget.give(self.message.len());
    }
}

/// Bytes that one connection may hold in memory for messages that no handler has: those whose
/// rest has not arrived, and those that are [`Parked`].
#[derive(Debug)]
pub(crate) struct Budget {
    used: Cell<usize>,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Budget {
            used: Cell::new(0),
            limit,
        })
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let used = self.used.get() + bytes;
        if used > self.limit {
            return Err(Status::new(
                Code::ResourceExhausted,
                "too many requests wait on this connection: complete them, and read their answers",
            ));
        }
        self.used.set(used);
        Ok(())
    }

    fn give(&self, bytes: usize) {
        self.used.set(self.used.get() - bytes);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::*;
    use crate::grpc::Frame;

    fn test_assembler(encoding: Encoding, max_message_bytes: usize) -> Assembler {
        Assembler::new(encoding, max_message_bytes, Budget::new(1000))
    }

    #[test]
    fn incomplete_messages_share_a_budget() {
        let budget = Budget::new(10);
        let part = Bytes::from_static(b"\0\0\0\0\x10 1234");
        let mut first = Assembler::new(Encoding::Identity, 100, Rc::clone(&budget));
        first.push(part.clone());
        assert_eq!(first.next(), Ok(None));
        assert_eq!(budget.used.get(), 5);
        let mut second = Assembler::new(Encoding::Identity, 100, Rc::clone(&budget));
        second.push(part.clone());
        assert_eq!(second.next(), Ok(None));
        let mut third = Assembler::new(Encoding::Identity, 100, Rc::clone(&budget));
        third.push(part);
        assert_eq!(third.next().unwrap_err().code, Code::ResourceExhausted);
        drop((first, second, third));
        assert_eq!(budget.used.get(), 0);
    }

    #[test]
    fn parked_messages_share_the_budget() {
        let budget = Budget::new(10);
        let park = |len| Parked::new(Bytes::from(vec![0; len]), &budget);
        let first = park(6).unwrap();
        assert_eq!(park(5).unwrap_err().code, Code::ResourceExhausted);
        assert_eq!(first.message().len(), 6);
        drop(first);
        park(10).unwrap();
        assert_eq!(budget.used.get(), 0);
    }

    fn frame(payload: &[u8]) -> Bytes {
        Frame::encode(payload.len(), |buf| buf.put_slice(payload)).into_bytes()
    }

    #[test]
    fn messages_survive_every_cut() {
        let mut wire = BytesMut::new();
        let messages: [&[u8]; 4] = [b"", b"a", b"hello world", b""];
        for message in messages {
            wire.extend_from_slice(&frame(message));
        }
        let wire = wire.freeze();
        for step in 1..=wire.len() {
            let mut assembler = test_assembler(Encoding::Identity, 100);
            let mut seen = Vec::new();
            let mut rest = wire.clone();
            while !rest.is_empty() {
                assembler.push(rest.split_to(step.min(rest.len())));
                while let Some(message) = assembler.next().unwrap() {
                    seen.push(message);
                }
            }
            assert!(assembler.at_boundary());
            assert_eq!(seen, messages, "step {step}");
        }
    }

    #[test]
    fn whole_message_is_not_copied() {
        let chunk = frame(b"payload");
        let start = chunk[PREFIX_BYTES..].as_ptr();
        let mut assembler = test_assembler(Encoding::Identity, 100);
        assembler.push(chunk);
        assert_eq!(assembler.next().unwrap().unwrap().as_ptr(), start);
    }

    #[test]
    fn oversize_is_refused_by_its_prefix() {
        let mut assembler = test_assembler(Encoding::Identity, 10);
        assembler.push(Bytes::from_static(b"\0\xff\xff\xff\xff"));
        let status = assembler.next().unwrap_err();
        assert_eq!(status.code, Code::ResourceExhausted);
        assert_eq!(
            status.message,
            "grpc: received message larger than max (4294967295 vs. 10)"
        );
    }

    #[test]
    fn compressed_flag_needs_an_encoding() {
        let mut assembler = test_assembler(Encoding::Identity, 10);
        assembler.push(Bytes::from_static(b"\x01\0\0\0\x01x"));
        assert_eq!(assembler.next().unwrap_err().code, Code::Internal);
        let mut assembler = test_assembler(Encoding::Gzip, 10);
        assembler.push(Bytes::from_static(b"\x02\0\0\0\x01x"));
        assert_eq!(
            assembler.next().unwrap_err().message,
            "grpc: received unexpected payload format 2"
        );
    }

    #[test]
    fn gzip_is_bounded() {
        use std::io::Write as _;
        let pack = |len: usize| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(&vec![b'z'; len]).unwrap();
            let payload = encoder.finish().unwrap();
            let mut wire = BytesMut::from(&frame(&payload)[..]);
            wire[0] = 1;
            wire.freeze()
        };
        let mut assembler = test_assembler(Encoding::Gzip, 1000);
        assembler.push(pack(1000));
        assert_eq!(assembler.next().unwrap().unwrap().len(), 1000);
        assembler.push(pack(100_000));
        assert_eq!(assembler.next().unwrap_err().code, Code::ResourceExhausted);
    }
}
