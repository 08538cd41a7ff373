//! Clients that ping too often: hyper has no rule for them, gRPC's servers do.
//!
//! As in Go's gRPC, pings that come closer together than the minimum time count as strikes, unless
//! the server sent headers or data in between; after the third the connection ends with a GOAWAY
//! that the client's library understands. Unlike there, a connection without open calls may ping
//! as often as one with calls.

use std::time::{Duration, Instant};

/// Strikes that are forgiven.
const STRIKES_MAX: u8 = 2;

/// Acknowledgements that nobody asked for and that are forgiven. h2 logs a line for each.
const STRAY_ACKS_MAX: i64 = 8;

/// What a client did too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misuse {
    #[error("the client pings too often")]
    Pings,
    #[error("the client acknowledges pings that were not sent")]
    StrayAcks,
}

/// GOAWAY on stream 0: last stream 2^31 - 1, ENHANCE_YOUR_CALM, and the text Go's clients look for.
pub(crate) const TOO_MANY_PINGS: &[u8] =
    b"\x00\x00\x16\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x0btoo_many_pings";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const ACK: u8 = 1;

/// Finds the frames' heads in an HTTP/2 byte stream that comes in pieces.
#[derive(Debug, Default)]
struct FrameWalk {
    head: [u8; 9],
    head_len: usize,
    payload_left: usize,
}

impl FrameWalk {
    /// Calls `each` with type and flags of every frame whose head is complete within `bytes`.
    fn walk(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, u8)) {
        loop {
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = (self.head.len() - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len == self.head.len() {
                self.head_len = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.payload_left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                each(kind, flags);
            }
        }
    }

    fn between_frames(&self) -> bool {
        self.head_len == 0 && self.payload_left == 0
    }
}

/// Counts one connection's strikes.
#[derive(Debug)]
pub(crate) struct PingPolicy {
    min_time: Duration,
    received: FrameWalk,
    sent: FrameWalk,
    last_ping: Option<Instant>,
    strikes: u8,
    /// Pings of ours that the client has not acknowledged yet; below zero, acknowledgements that
    /// nobody asked for.
    unacknowledged: i64,
    /// Headers or data were sent since the last ping.
    answered: bool,
}

impl PingPolicy {
    /// For a connection whose preface was read. Any pace will do if `min_time` is zero.
    pub(crate) fn new(min_time: Duration) -> Self {
        PingPolicy {
            min_time,
            received: FrameWalk::default(),
            sent: FrameWalk::default(),
            last_ping: None,
            strikes: 0,
            unacknowledged: 0,
            answered: false,
        }
    }

    /// Takes note of what was sent.
    pub(crate) fn on_sent(&mut self, bytes: &[u8]) {
        let (answered, unacknowledged) = (&mut self.answered, &mut self.unacknowledged);
        self.sent.walk(bytes, |kind, flags| {
            *answered |= matches!(kind, DATA | HEADERS);
            *unacknowledged += i64::from(kind == PING && flags & ACK == 0);
        });
    }

    /// Whether another frame may be sent now, from outside hyper.
    pub(crate) fn may_send(&self) -> bool {
        self.sent.between_frames()
    }

    /// Takes note of what was received; what of it was too much.
    pub(crate) fn on_received(
        &mut self,
        bytes: &[u8],
        now: impl Fn() -> Instant,
    ) -> Result<(), Misuse> {
        let (mut pings, mut acks) = (0, 0);
        self.received.walk(bytes, |kind, flags| {
            pings += u32::from(kind == PING && flags & ACK == 0);
            acks += i64::from(kind == PING && flags & ACK != 0);
        });
        self.unacknowledged -= acks;
        if self.unacknowledged < -STRAY_ACKS_MAX {
            return Err(Misuse::StrayAcks);
        }
        for _ in 0..pings {
            let now = now();
            let last = self.last_ping.replace(now);
            if std::mem::take(&mut self.answered) {
                self.strikes = 0;
            } else if last.is_some_and(|last| now < last + self.min_time) {
                self.strikes = self.strikes.saturating_add(1);
            }
        }
        match self.strikes > STRIKES_MAX {
            true => Err(Misuse::Pings),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING_FRAME: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingpong";
    const PING_ACK: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0pingpong";
    const DATA_FRAME: &[u8] = b"\0\0\x03\0\0\0\0\0\x01abc";

    #[test]
    fn the_goaway_is_one_frame() {
        let mut walk = FrameWalk::default();
        let mut seen = Vec::new();
        walk.walk(TOO_MANY_PINGS, |kind, flags| seen.push((kind, flags)));
        assert!(walk.between_frames());
        assert_eq!(seen, [(7, 0)]);
    }

    #[test]
    fn frames_are_found_in_any_pieces() {
        let bytes = [DATA_FRAME, PING_FRAME, PING_ACK, DATA_FRAME].concat();
        for step in 1..=bytes.len() {
            let mut walk = FrameWalk::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                walk.walk(piece, |kind, flags| seen.push((kind, flags)));
            }
            assert_eq!(
                seen,
                [(DATA, 0), (PING, 0), (PING, ACK), (DATA, 0)],
                "step {step}"
            );
            assert!(walk.between_frames());
        }
    }

    #[test]
    fn pings_strike_out_unless_answered_or_slow() {
        let begun = Instant::now();
        let mut policy = PingPolicy::new(Duration::from_secs(5));
        // Acknowledgements do not count; the first ping cannot be too early.
        assert_eq!(policy.on_received(&PING_ACK.repeat(8), || begun), Ok(()));
        assert_eq!(policy.on_received(&PING_FRAME.repeat(3), || begun), Ok(()));
        policy.on_sent(PING_ACK);
        policy.on_sent(DATA_FRAME);
        assert_eq!(policy.on_received(&PING_FRAME.repeat(3), || begun), Ok(()));
        assert_eq!(policy.on_received(PING_FRAME, || begun), Err(Misuse::Pings));
        let mut slow = PingPolicy::new(Duration::from_secs(5));
        for beat in 0..20 {
            let now = || begun + Duration::from_secs(5 * beat);
            assert_eq!(slow.on_received(PING_FRAME, now), Ok(()));
        }
        let mut any_pace = PingPolicy::new(Duration::ZERO);
        let many = PING_FRAME.repeat(100);
        assert_eq!(any_pace.on_received(&many, || begun), Ok(()));
    }

    #[test]
    fn acknowledgements_are_of_pings_that_were_sent() {
        let begun = Instant::now();
        let mut policy = PingPolicy::new(Duration::ZERO);
        for _ in 0..100 {
            policy.on_sent(PING_FRAME);
            assert_eq!(policy.on_received(PING_ACK, || begun), Ok(()));
        }
        assert_eq!(policy.on_received(&PING_ACK.repeat(8), || begun), Ok(()));
        assert_eq!(
            policy.on_received(PING_ACK, || begun),
            Err(Misuse::StrayAcks)
        );
    }
}
