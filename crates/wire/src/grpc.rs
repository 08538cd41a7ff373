//! gRPC's own layer: status codes, message frames, time-outs, the reassembly of messages.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::Read as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// Bytes before every message: a compression flag and the message's length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// A gRPC status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Success.
    Ok = 0,
    /// The caller cancelled the call, or went away.
    Canceled = 1,
    /// An error without a better code.
    Unknown = 2,
    /// The request is wrong whatever the server's state.
    InvalidArgument = 3,
    /// The call's deadline passed first.
    DeadlineExceeded = 4,
    /// What was asked for does not exist.
    NotFound = 5,
    /// What was to be created exists.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A limit was hit.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// Aborted by a conflict.
    Aborted = 10,
    /// Outside the valid range (compacted or future revisions).
    OutOfRange = 11,
    /// Not offered by this server.
    Unimplemented = 12,
    /// The server broke one of its own rules.
    Internal = 13,
    /// Not available now: try again.
    Unavailable = 14,
    /// Data is lost for good.
    DataLoss = 15,
    /// No valid credentials.
    Unauthenticated = 16,
}

impl Code {
    /// Every code, in numeric order.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Canceled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// The name that Go's gRPC prints, as used in metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Canceled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }

    /// The number as sent in `grpc-status`.
    fn digits(self) -> &'static str {
        const DIGITS: [&str; 17] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
            "16",
        ];
        DIGITS[self as usize]
    }
}

/// How a call ends: a code and, for errors, a text that clients may match on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// The text; empty for success.
    pub message: Cow<'static, str>,
}

impl Status {
    /// A status from its parts.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Status {
            code,
            message: message.into(),
        }
    }

    /// Success.
    pub const OK: Status = Status {
        code: Code::Ok,
        message: Cow::Borrowed(""),
    };

    /// What a call gets whose deadline passed; the text is Go's.
    pub fn deadline_exceeded() -> Self {
        Status::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// What a handler sees when its client reset the stream or went away; the text is Go's.
    pub fn canceled() -> Self {
        Status::new(Code::Canceled, "context canceled")
    }

    /// Adds `grpc-status` and `grpc-message` to trailers.
    pub(crate) fn write_to(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from_static(self.code.digits()));
        if self.message.is_empty() {
            return;
        }
        let value = match percent_encode(&self.message) {
            Cow::Borrowed(plain) => HeaderValue::from_str(plain),
            Cow::Owned(encoded) => HeaderValue::try_from(encoded),
        };
        if let Ok(value) = value {
            headers.insert("grpc-message", value);
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Status {}

/// `grpc-message`'s encoding: printable ASCII but `%` as it is, all else as `%XX`.
fn percent_encode(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    Cow::Owned(out)
}

/// One encoded message with its gRPC prefix, ready to be sent.
///
/// A clone shares the bytes: encode a watch event once, send it to many streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// Encodes a message behind its prefix, in one allocation.
    ///
    /// `message_len` is the message's encoded length in bytes, an estimate is enough: the prefix
    /// takes what `write` wrote.
    pub fn encode(message_len: usize, write: impl FnOnce(&mut BytesMut)) -> Frame {
        let mut buf = BytesMut::with_capacity(PREFIX_BYTES + message_len);
        buf.put_bytes(0, PREFIX_BYTES);
        write(&mut buf);
        let written = u32::try_from(buf.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
        buf[1..PREFIX_BYTES].copy_from_slice(&written.to_be_bytes());
        Frame(buf.freeze())
    }

    /// Length in bytes, prefix included.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a frame has at least its prefix"
    )]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The message without its prefix.
    pub fn message(&self) -> &[u8] {
        &self.0[PREFIX_BYTES..]
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

/// Whether a content-type names gRPC (`application/grpc`, optionally with `+codec` or `;params`).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// Reads a `grpc-timeout` value such as `250m`; `Err` is the text that Go's gRPC answers with.
pub(crate) fn parse_timeout(value: &[u8]) -> Result<Duration, String> {
    let shown = || String::from_utf8_lossy(value).into_owned();
    if value.len() < 2 {
        return Err(format!(
            "transport: timeout string is too short: {:?}",
            shown()
        ));
    }
    if value.len() > 9 {
        return Err(format!(
            "transport: timeout string is too long: {:?}",
            shown()
        ));
    }
    let (digits, unit) = value.split_at(value.len() - 1);
    let mut count: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            let digits = String::from_utf8_lossy(digits).into_owned();
            return Err(format!(
                "strconv.ParseUint: parsing {digits:?}: invalid syntax"
            ));
        }
        count = count * 10 + u64::from(digit - b'0');
    }
    match unit {
        b"H" => Ok(Duration::from_secs(count * 3600)),
        b"M" => Ok(Duration::from_secs(count * 60)),
        b"S" => Ok(Duration::from_secs(count)),
        b"m" => Ok(Duration::from_millis(count)),
        b"u" => Ok(Duration::from_micros(count)),
        b"n" => Ok(Duration::from_nanos(count)),
        _ => Err(format!(
            "transport: timeout unit is not recognized: {:?}",
            shown()
        )),
    }
}

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

/// Bytes that one connection may hold in memory for messages whose rest has not arrived.
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
                "too many incomplete requests on this connection",
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
    use super::*;

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

    fn frame(payload: &[u8]) -> Bytes {
        Frame::encode(payload.len(), |buf| buf.put_slice(payload)).into_bytes()
    }

    #[test]
    fn frame_has_prefix() {
        assert_eq!(&frame(b"abc")[..], b"\0\0\0\0\x03abc");
        let frame = Frame::encode(0, |buf| buf.put_slice(b"xy"));
        assert_eq!((frame.message(), frame.len()), (&b"xy"[..], 7));
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

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout(b"250m"), Ok(Duration::from_millis(250)));
        assert_eq!(
            parse_timeout(b"99999999H"),
            Ok(Duration::from_secs(99_999_999 * 3600))
        );
        assert!(parse_timeout(b"m").unwrap_err().contains("too short"));
        assert!(
            parse_timeout(b"1234567890m")
                .unwrap_err()
                .contains("too long")
        );
        assert!(parse_timeout(b"12x").unwrap_err().contains("unit"));
        assert!(parse_timeout(b"-1m").is_err());
    }

    #[test]
    fn messages_are_percent_encoded() {
        let mut headers = HeaderMap::new();
        Status::new(Code::Internal, "50% \n ü").write_to(&mut headers);
        assert_eq!(headers["grpc-status"], "13");
        assert_eq!(headers["grpc-message"], "50%25 %0A %C3%BC");
    }

    #[test]
    fn content_types() {
        let check = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            is_grpc(&headers)
        };
        assert!(check("application/grpc") && check("application/grpc+proto"));
        assert!(!check("application/grpc-web") && !check("application/json"));
    }
}
