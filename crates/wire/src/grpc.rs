//! gRPC's own layer: status codes, message frames, time-outs.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
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

    /// What a call gets whose handler panicked.
    pub(crate) fn panicked(panicked: &threads::Panicked) -> Self {
        let text = format!("orlop: {panicked}; what was asked for may have happened");
        Status::new(Code::Internal, text)
    }

    /// What a handler sees when its client reset the stream or went away; the text is Go's.
    pub fn canceled() -> Self {
        Status::new(Code::Canceled, "context canceled")
    }

    /// How a unary call ends whose answer would be longer than [`MAX_MESSAGE_BYTES`]; the text is
    /// Go's. It is final: clients do not repeat the call.
    pub fn message_too_large(message_bytes: u64) -> Self {
        let text = too_large_text(message_bytes);
        Status::new(Code::ResourceExhausted, format!("grpc: {text}"))
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

/// Longest message that gRPC's clients and servers in Go send or take, in bytes.
pub const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// One encoded message with its gRPC prefix, ready to be sent.
///
/// A clone shares the bytes: encode a watch event once, send it to many streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Content);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// Prefix and message.
    Encoded(Bytes),
    /// Longer than [`MAX_MESSAGE_BYTES`]: only its length is kept. The call that sends it ends
    /// with [`Status::message_too_large`].
    TooLarge { message_bytes: u64 },
}

impl Frame {
    /// Encodes a message behind its prefix, in one allocation.
    ///
    /// `message_len` is the message's encoded length in bytes, an estimate is enough: the prefix
    /// takes what `write` wrote. Above [`MAX_MESSAGE_BYTES`] nothing is written: who sends the
    /// frame is told so.
    pub fn encode(message_len: usize, write: impl FnOnce(&mut BytesMut)) -> Frame {
        let too_large = |len: usize| {
            Frame(Content::TooLarge {
                message_bytes: u64::try_from(len).unwrap_or(u64::MAX),
            })
        };
        if message_len > MAX_MESSAGE_BYTES {
            return too_large(message_len);
        }
        let mut buf = BytesMut::with_capacity(PREFIX_BYTES + message_len);
        buf.put_bytes(0, PREFIX_BYTES);
        write(&mut buf);
        let len = buf.len() - PREFIX_BYTES;
        match u32::try_from(len) {
            Ok(written) if len <= MAX_MESSAGE_BYTES => {
                buf[1..PREFIX_BYTES].copy_from_slice(&written.to_be_bytes());
                Frame(Content::Encoded(buf.freeze()))
            }
            _ => too_large(len),
        }
    }

    /// Length in bytes, prefix included; that of the prefix alone if the message is too large.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a frame has at least its prefix"
    )]
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Encoded(bytes) => bytes.len(),
            Content::TooLarge { .. } => PREFIX_BYTES,
        }
    }

    /// The message without its prefix; empty if it is too large.
    pub fn message(&self) -> &[u8] {
        match &self.0 {
            Content::Encoded(bytes) => &bytes[PREFIX_BYTES..],
            Content::TooLarge { .. } => &[],
        }
    }

    /// What to send; or how a call ends whose message is too large.
    pub(crate) fn into_bytes(self) -> Result<Bytes, TooLarge> {
        match self.0 {
            Content::Encoded(bytes) => Ok(bytes),
            Content::TooLarge { message_bytes } => Err(TooLarge { message_bytes }),
        }
    }
}

/// A message that no client would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge {
    message_bytes: u64,
}

impl TooLarge {
    /// How a unary call ends.
    pub(crate) fn of_unary(self) -> Status {
        Status::message_too_large(self.message_bytes)
    }

    /// How a stream ends; Go's text differs.
    pub(crate) fn of_stream(self) -> Status {
        Status::new(Code::ResourceExhausted, too_large_text(self.message_bytes))
    }
}

fn too_large_text(message_bytes: u64) -> String {
    format!("trying to send message larger than max ({message_bytes} vs. {MAX_MESSAGE_BYTES})")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Bytes {
        let frame = Frame::encode(payload.len(), |buf| buf.put_slice(payload));
        frame.into_bytes().unwrap()
    }

    #[test]
    fn what_is_too_long_is_never_built() {
        let len = MAX_MESSAGE_BYTES + 1;
        let frame = Frame::encode(len, |_| panic!("built"));
        assert_eq!((frame.len(), frame.message()), (PREFIX_BYTES, &b""[..]));
        let status = frame.into_bytes().unwrap_err().of_unary();
        assert_eq!(status.code, Code::ResourceExhausted);
        assert_eq!(
            status.message,
            "grpc: trying to send message larger than max (2147483648 vs. 2147483647)"
        );
        // A length that no 32 bits hold.
        let frame = Frame::encode(5 << 32, |_| panic!("built"));
        assert_eq!(
            frame.into_bytes().unwrap_err().of_stream().message,
            "trying to send message larger than max (21474836480 vs. 2147483647)"
        );
    }

    #[test]
    fn frame_has_prefix() {
        assert_eq!(&frame(b"abc")[..], b"\0\0\0\0\x03abc");
        let frame = Frame::encode(0, |buf| buf.put_slice(b"xy"));
        assert_eq!((frame.message(), frame.len()), (&b"xy"[..], 7));
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
