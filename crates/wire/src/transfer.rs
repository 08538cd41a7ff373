//! Large things on their way to a client: how slow it may be.
//!
//! What is sent from one moment's state holds that state's memory until the client has it. A
//! client that reads at a trickle, or not at all, must not hold it for as long as it likes.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Frame, Outbound};

/// A client may take its time at first.
const GRACE: Duration = Duration::from_secs(60);

/// From then on it is to take so much a second, of all since the beginning.
const MIN_BYTES_A_S: u64 = 1 << 20;

/// Longest that it may take nothing.
const STALL: Duration = Duration::from_secs(60);

/// Why a client gets no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Slow {
    /// It is gone.
    #[error("the client is gone")]
    Gone,
    /// It has taken nothing for a minute.
    #[error("the client has taken nothing for a minute")]
    Stalled,
    /// It takes some, and too little.
    #[error(
        "the client took less than 1 MiB a second after its first minute; what it is sent holds \
         memory until it has it: read faster, or copy from a machine nearer by"
    )]
    Trickles,
}

/// What a client has taken so far.
#[derive(Debug)]
pub struct Transfer {
    /// Since when it is to keep up; `None` if it only may not stop.
    since: Option<Instant>,
    bytes: u64,
}

impl Transfer {
    /// One that holds memory in proportion to its size, from now on.
    #[must_use]
    pub fn bounded() -> Self {
        Transfer {
            since: Some(Instant::now()),
            bytes: 0,
        }
    }

    /// One that holds little.
    #[must_use]
    pub fn unbounded() -> Self {
        Transfer {
            since: None,
            bytes: 0,
        }
    }

    /// When the client must have taken what was sent, and another `bytes`.
    fn deadline(&self, now: Instant, bytes: u64) -> Instant {
        let stall = now + STALL;
        let Some(since) = self.since else {
            return stall;
        };
        let due_ms = (self.bytes + bytes) * 1000 / MIN_BYTES_A_S;
        stall.min(since + GRACE + Duration::from_millis(due_ms))
    }

    /// Sends a frame when there is room for it.
    ///
    /// # Errors
    /// [`Slow`]: nothing more should be sent.
    pub async fn send(&mut self, outbound: &Outbound, frame: Frame) -> Result<(), Slow> {
        let bytes = frame.len() as u64;
        let began = Instant::now();
        let sent = tokio::time::timeout_at(self.deadline(began, bytes), outbound.send(frame)).await;
        self.bytes += bytes;
        match sent {
            Ok(sent) => sent.map_err(|_| Slow::Gone),
            Err(_) if began.elapsed() >= STALL => Err(Slow::Stalled),
            Err(_) => Err(Slow::Trickles),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_minute_and_a_second_for_each_mebibyte() {
        let seconds = Duration::from_secs;
        let mut transfer = Transfer::bounded();
        let began = transfer.since.unwrap();
        assert_eq!(transfer.deadline(began, 1 << 20), began + STALL);
        // It trickles.
        transfer.bytes = 5 << 20;
        let due = began + GRACE + seconds(10);
        assert_eq!(transfer.deadline(began + seconds(50), 5 << 20), due);
        // It keeps up.
        transfer.bytes = 4000 << 20;
        let later = began + seconds(3600);
        assert_eq!(transfer.deadline(later, 0), later + STALL);
        let unbounded = Transfer::unbounded();
        assert_eq!(unbounded.deadline(later, 1 << 40), later + STALL);
    }
}
