//! What may be sent again.

/// How far an attempt had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No byte of the request has reached a pod: no connection, or the pod's router refused it.
    NotSent,
    /// A pod may have seen it. No answer has begun.
    Sent,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// How far it came.
    pub progress: Progress,
    /// Its method may be repeated by its definition (GET, HEAD, OPTIONS, TRACE, PUT, DELETE).
    pub idempotent: bool,
    /// All of the request is still here: it has no body, or none of it was given away.
    pub whole: bool,
}

/// Why it is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A pod may have acted on it, or a part of it is gone.
    Unsafe,
    /// It was sent as often as one request may be.
    Attempts,
    /// Too many requests were sent again of late: they would be the load that they flee from.
    Budget,
}

/// Retries of a service: each request earns a part of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retries {
    /// Retries that may be made now.
    tokens: f64,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            tokens: Self::TOKENS_MAX,
        }
    }
}

impl Retries {
    /// Times that one request is sent again, at most.
    pub const MAX: u32 = 3;
    /// Retries that can be saved up.
    pub const TOKENS_MAX: f64 = 100.0;
    /// Part of a retry that a request earns.
    pub const EARNED: f64 = 0.2;

    /// A request came.
    pub fn earned(&mut self) {
        self.tokens = (self.tokens + Self::EARNED).min(Self::TOKENS_MAX);
    }

    /// Whether a request that was sent again `retries` times before may be sent once more.
    ///
    /// # Errors
    /// Why not.
    pub fn again(&mut self, attempt: Attempt, retries: u32) -> Result<(), Stop> {
        let safe = match attempt.progress {
            Progress::NotSent => attempt.whole,
            Progress::Sent => attempt.whole && attempt.idempotent,
        };
        if !safe {
            return Err(Stop::Unsafe);
        }
        if retries >= Self::MAX {
            return Err(Stop::Attempts);
        }
        if self.tokens < 1.0 {
            return Err(Stop::Budget);
        }
        self.tokens -= 1.0;
        Ok(())
    }
}
