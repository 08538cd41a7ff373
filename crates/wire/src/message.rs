//! Request messages: cut from a body's chunks, decompressed, within limits.

use std::io::Read as _;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use ledger::{Charge, Local};

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

/// Messages up to this are copied out of their receive buffer, of some 8 to 32 KiB.
const COPIED_BYTES: usize = 4096;

/// Cuts a request body's chunks into messages.
///
/// A large message that lies within one chunk is a slice of it; others are copied once.
/// Memory follows what was received, never what a prefix announces.
#[derive(Debug)]
pub(crate) struct Assembler {
    encoding: Encoding,
    max_message_bytes: usize,
    /// Of `partial`.
    charge: Charge,
    chunk: Bytes,
    /// Bytes of a message or prefix whose rest has not arrived.
    partial: BytesMut,
    /// Flag and length of the message that is being received.
    prefix: Option<(u8, usize)>,
}

impl Assembler {
    pub(crate) fn new(encoding: Encoding, max_message_bytes: usize, requests: &Local) -> Self {
        let (chunk, partial) = (Bytes::new(), BytesMut::new());
        Assembler {
            encoding,
            max_message_bytes,
            charge: requests.charge(0),
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
            // A slice keeps its whole receive buffer, and what is small may be kept for long.
            (0, _) if payload.len() <= COPIED_BYTES => Ok(Some(Bytes::copy_from_slice(&payload))),
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
        self.charge.grow(take).map_err(|_| too_many_wait())?;
        self.partial.extend_from_slice(&self.chunk.split_to(take));
        if take < missing {
            return Ok(None);
        }
        self.charge.shrink(len);
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

/// A complete message that waits until its call may go on.
#[derive(Debug)]
pub(crate) struct Parked {
    message: Bytes,
    _charge: Charge,
}

impl Parked {
    /// Sets a message aside, if there is room.
    pub(crate) fn new(message: Bytes, requests: &Local) -> Result<Self, Status> {
        let _charge = requests
            .try_charge(message.len())
            .map_err(|_| too_many_wait())?;
        Ok(Parked { message, _charge })
    }

    /// The message.
    pub(crate) fn message(self) -> Bytes {
        self.message
    }
}

/// How a call ends for whose request there is no room. No handler has it.
pub(crate) fn too_many_wait() -> Status {
    Status::new(
        Code::ResourceExhausted,
        "too many requests wait: complete them, and read their answers",
    )
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use ledger::{Account, Ledger, Limits};
    use proptest::prelude::*;

    use super::*;
    use crate::grpc::Frame;

    fn requests(limit_bytes: usize) -> Local {
        let limits = Limits::none().with(Account::Requests, limit_bytes);
        Ledger::new(limits).worker(1).account(Account::Requests)
    }

    fn test_assembler(encoding: Encoding, max_message_bytes: usize) -> Assembler {
        Assembler::new(encoding, max_message_bytes, &requests(100_000))
    }

    #[test]
    fn incomplete_messages_share_an_account() {
        let requests = requests(10);
        let part = Bytes::from_static(b"\0\0\0\0\x10 1234");
        let mut first = Assembler::new(Encoding::Identity, 100, &requests);
        first.push(part.clone());
        assert_eq!(first.next(), Ok(None));
        assert_eq!(requests.held_bytes(), 5);
        let mut second = Assembler::new(Encoding::Identity, 100, &requests);
        second.push(part.clone());
        assert_eq!(second.next(), Ok(None));
        let mut third = Assembler::new(Encoding::Identity, 100, &requests);
        third.push(part);
        assert_eq!(third.next().unwrap_err().code, Code::ResourceExhausted);
        drop((first, second, third));
        assert_eq!(requests.held_bytes(), 0);
    }

    #[test]
    fn parked_messages_share_the_account() {
        let requests = requests(10);
        let park = |len| Parked::new(Bytes::from(vec![0; len]), &requests);
        let first = park(6).unwrap();
        assert_eq!(park(5).unwrap_err().code, Code::ResourceExhausted);
        assert_eq!(first.message().len(), 6);
        park(10).unwrap();
        assert_eq!(requests.held_bytes(), 0);
    }

    fn frame(payload: &[u8]) -> Bytes {
        let frame = Frame::encode(payload.len(), |buf| buf.put_slice(payload));
        frame.into_bytes().unwrap()
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
    fn a_small_message_keeps_no_buffer_and_a_large_one_is_not_copied() {
        for (len, copied) in [(7, true), (COPIED_BYTES, true), (COPIED_BYTES + 1, false)] {
            let chunk = frame(&vec![b'm'; len]);
            let start = chunk[PREFIX_BYTES..].as_ptr();
            let mut assembler = test_assembler(Encoding::Identity, 10_000);
            assembler.push(chunk);
            let message = assembler.next().unwrap().unwrap();
            assert_eq!(message, vec![b'm'; len]);
            assert_eq!(message.as_ptr() != start, copied, "{len}");
        }
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

    /// What a body is made of.
    #[derive(Debug, Clone)]
    enum Piece {
        /// A message, compressed or not.
        Message(Vec<u8>, bool),
        /// A prefix with any flag and length, and some bytes.
        Any(u8, u32, Vec<u8>),
    }

    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..60);
        let message =
            (bytes(), any::<bool>()).prop_map(|(bytes, gzip)| Piece::Message(bytes, gzip));
        let any = (0u8..4, 0u32..2000, bytes()).prop_map(|(f, len, b)| Piece::Any(f, len, b));
        prop::collection::vec(prop_oneof![4 => message, 1 => any], 0..8)
    }

    fn body(pieces: &[Piece]) -> Vec<u8> {
        use std::io::Write as _;
        let mut body = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Message(bytes, false) => body.extend_from_slice(&frame(bytes)),
                Piece::Message(bytes, true) => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                    encoder.write_all(bytes).unwrap();
                    let mut packed = frame(&encoder.finish().unwrap()).to_vec();
                    packed[0] = 1;
                    body.append(&mut packed);
                }
                Piece::Any(flag, len, bytes) => {
                    body.push(*flag);
                    body.extend_from_slice(&len.to_be_bytes());
                    body.extend_from_slice(bytes);
                }
            }
        }
        body
    }

    /// All messages of a body that comes in pieces of these lengths, and how it ended; what is
    /// held never exceeds what came and was not given out.
    fn assemble(body: &[u8], cuts: &[usize], encoding: Encoding) -> (Vec<Bytes>, Option<Status>) {
        let requests = requests(100_000);
        let mut assembler = Assembler::new(encoding, 1000, &requests);
        let (mut seen, mut rest) = (Vec::new(), Bytes::copy_from_slice(body));
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let cut = cuts.next().copied().unwrap_or(usize::MAX).min(rest.len());
            assembler.push(rest.split_to(cut));
            loop {
                match assembler.next() {
                    Ok(Some(message)) => seen.push(message),
                    Ok(None) => break,
                    Err(status) => return (seen, Some(status)),
                }
            }
            assert_eq!(requests.held_bytes(), assembler.partial.len());
            assert!(requests.held_bytes() <= 1000);
        }
        drop(assembler);
        assert_eq!(requests.held_bytes(), 0);
        (seen, None)
    }

    proptest! {
        #[test]
        fn how_a_body_is_cut_changes_nothing(
            pieces in pieces(),
            cuts in prop::collection::vec(1usize..40, 1..10),
            gzip in any::<bool>(),
        ) {
            let body = body(&pieces);
            let encoding = if gzip { Encoding::Gzip } else { Encoding::Identity };
            let whole = assemble(&body, &[usize::MAX], encoding);
            prop_assert_eq!(&assemble(&body, &cuts, encoding), &whole);
            let only_messages = pieces.iter().all(|piece| match piece {
                Piece::Message(_, packed) => gzip || !packed,
                Piece::Any(..) => false,
            });
            if only_messages {
                let sent: Vec<Bytes> = pieces
                    .iter()
                    .map(|piece| match piece {
                        Piece::Message(bytes, _) | Piece::Any(_, _, bytes) => bytes.clone().into(),
                    })
                    .collect();
                prop_assert_eq!(whole, (sent, None));
            }
        }

        #[test]
        fn any_bytes_end_in_messages_or_a_status(
            body in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(1usize..40, 1..10),
        ) {
            let whole = assemble(&body, &[usize::MAX], Encoding::Gzip);
            prop_assert_eq!(assemble(&body, &cuts, Encoding::Gzip), whole);
        }
    }
}
