//! Durations as rule files write them: a whole number and `ms` or `s`.

use std::fmt;

/// The longest that a rule may leave a write unsynced.
pub(crate) const MAX_SYNC_WITHIN_MS: u32 = 30_000;

/// What a volatile rule that does not say gets.
pub(crate) const DEFAULT_SYNC_WITHIN_MS: u32 = 100;
/// Where shards hold the write meanwhile.
pub(crate) const DEFAULT_REPLICATED_SYNC_WITHIN_MS: u32 = 1000;

/// Prints milliseconds as a rule file would write them.
pub(crate) struct Ms(pub(crate) u32);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms >= 1000 && ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

/// Reads `sync_within`; the error is a sentence for a person.
pub(crate) fn parse_sync_within(text: &str) -> Result<u32, String> {
    let form =
        || format!("{text:?} is not a duration; write a whole number and ms or s, as in \"100ms\"");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| form())?;
    let ms = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        _ => return Err(form()),
    };
    match ms {
        Some(ms @ 1..=MAX_SYNC_WITHIN_MS) => Ok(ms),
        _ => Err(format!(
            "sync_within is {text}; it is at least 1ms and at most 30s"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_bounded() {
        assert_eq!(parse_sync_within("100ms"), Ok(100));
        assert_eq!(parse_sync_within("30s"), Ok(30_000));
        assert_eq!(parse_sync_within("1ms"), Ok(1));
        for bad in [
            "",
            "100",
            "ms",
            "0ms",
            "31s",
            "30001ms",
            "1.5s",
            "-1s",
            " 1s",
            "1m",
            "5000000000s",
            "4294968s",
        ] {
            assert!(parse_sync_within(bad).is_err(), "{bad}");
        }
        assert_eq!(Ms(1500).to_string(), "1500ms");
        assert_eq!(Ms(2000).to_string(), "2s");
    }
}
