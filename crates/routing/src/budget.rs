//! How long a request may take until its answer begins.

/// The time of one request, over all its waiting, hops and attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    until_us: u64,
}

impl Budget {
    /// So long from now.
    #[must_use]
    pub fn new(now_us: u64, for_us: u64) -> Self {
        Self {
            until_us: now_us.saturating_add(for_us),
        }
    }

    /// Not longer than `for_us` from now either.
    #[must_use]
    pub fn at_most(self, now_us: u64, for_us: u64) -> Self {
        Self {
            until_us: self.until_us.min(now_us.saturating_add(for_us)),
        }
    }

    /// What is left; `None` when it is over.
    #[must_use]
    pub fn left_us(&self, now_us: u64) -> Option<u64> {
        self.until_us.checked_sub(now_us).filter(|left| *left > 0)
    }
}

/// The time of a header `grpc-timeout`: up to eight digits and a unit. What is none is ignored, as
/// gRPC's own servers would refuse the call themselves.
#[must_use]
pub fn grpc_timeout_us(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => number * 3_600_000_000,
        "M" => number * 60_000_000,
        "S" => number * 1_000_000,
        "m" => number * 1_000,
        "u" => number,
        "n" => number / 1_000,
        _ => return None,
    })
}
