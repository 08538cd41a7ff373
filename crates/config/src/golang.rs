//! The forms in which Go's standard library reads and quotes values.

use std::fmt::Write as _;

/// Why a number was not read (`strconv.ErrSyntax`, `strconv.ErrRange`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberError {
    Syntax,
    Range,
}

impl NumberError {
    /// The text of Go's `flag` package.
    pub(crate) fn flag_text(self) -> &'static str {
        match self {
            Self::Syntax => "parse error",
            Self::Range => "value out of range",
        }
    }

    /// The text of Go's `strconv` package.
    pub(crate) fn strconv_text(self) -> &'static str {
        match self {
            Self::Syntax => "invalid syntax",
            Self::Range => "value out of range",
        }
    }
}

/// `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `strconv.ParseUint(text, 0, bits)`: a prefix chooses the base, `_` may
/// stand between digits.
pub(crate) fn parse_uint(text: &str, bits: u32) -> Result<u64, NumberError> {
    let lower = text.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [] => return Err(NumberError::Syntax),
        [b'0', b'b', _, ..] => (2, &lower[2..]),
        [b'0', b'o', _, ..] => (8, &lower[2..]),
        [b'0', b'x', _, ..] => (16, &lower[2..]),
        [b'0', ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    let max = if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    };
    let mut number = 0_u64;
    for c in digits.chars() {
        if c == '_' {
            continue;
        }
        let digit = c.to_digit(base).ok_or(NumberError::Syntax)?;
        number = number
            .checked_mul(u64::from(base))
            .and_then(|n| n.checked_add(u64::from(digit)))
            .filter(|n| *n <= max)
            .ok_or(NumberError::Range)?;
    }
    if underscores_separate_digits(&lower) {
        Ok(number)
    } else {
        Err(NumberError::Syntax)
    }
}

/// `strconv.ParseInt(text, 0, 64)`.
pub(crate) fn parse_int(text: &str) -> Result<i64, NumberError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = i128::from(parse_uint(digits, 64)?);
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| NumberError::Range)
}

/// Go's rule: an underscore stands between two digits, or between the base's
/// prefix and a digit. A leading 0 of an octal number is a digit.
fn underscores_separate_digits(lower: &str) -> bool {
    let bytes = lower.as_bytes();
    let start = match bytes {
        [b'0', b'b' | b'o' | b'x', ..] => 2,
        _ => 0,
    };
    let mut digit_before = start > 0;
    for (i, byte) in bytes.iter().enumerate().skip(start) {
        if *byte == b'_' {
            let digit_after = bytes.get(i + 1).is_some_and(u8::is_ascii_hexdigit);
            if !digit_before || !digit_after {
                return false;
            }
        }
        digit_before = byte.is_ascii_hexdigit();
    }
    true
}

const MAX_MAGNITUDE: u128 = 1 << 63;

/// `time.ParseDuration`, in nanoseconds. The error is Go's text.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0_u128;
    while !rest.is_empty() {
        let (whole, after_whole) = split_digits(rest);
        let (fraction, after_number) = match after_whole.strip_prefix('.') {
            Some(after_point) => split_digits(after_point),
            None => ("", after_whole),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_length = after_number
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after_number.len());
        let (unit, after_unit) = after_number.split_at(unit_length);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        let unit_ns: u128 = match unit {
            "ns" => 1,
            // MICRO SIGN and GREEK SMALL LETTER MU.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(format!(
                    "time: unknown unit {} in duration {}",
                    quote(unit),
                    quote(text)
                ));
            }
        };
        let whole = number_up_to_magnitude(whole).ok_or_else(invalid)?;
        // Digits beyond 18 are below a nanosecond for every unit.
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let fraction = number_up_to_magnitude(fraction).ok_or_else(invalid)?;
        total += whole * unit_ns + fraction * unit_ns / scale;
        if total > MAX_MAGNITUDE {
            return Err(invalid());
        }
        rest = after_unit;
    }
    let signed = i128::try_from(total).map_err(|_| invalid())?;
    i64::try_from(if negative { -signed } else { signed }).map_err(|_| invalid())
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// The number of a run of digits (none: 0), unless it is above 2^63.
fn number_up_to_magnitude(digits: &str) -> Option<u128> {
    digits.bytes().try_fold(0_u128, |number, digit| {
        let number = number * 10 + u128::from(digit - b'0');
        (number <= MAX_MAGNITUDE).then_some(number)
    })
}

/// `fmt`'s `%q`.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_reads_them() {
        assert_eq!(parse_int("-0x10"), Ok(-16));
        assert_eq!(parse_int("+7"), Ok(7));
        assert_eq!(parse_int("010"), Ok(8));
        assert_eq!(parse_int("0"), Ok(0));
        assert_eq!(parse_int("0_1"), Ok(1));
        assert_eq!(parse_int("1_000"), Ok(1000));
        assert_eq!(parse_int("0x_ff"), Ok(255));
        assert_eq!(parse_int("9223372036854775807"), Ok(i64::MAX));
        assert_eq!(parse_int("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_int("9223372036854775808"), Err(NumberError::Range));
        for bad in [
            "", "-", "1__0", "_1", "1_", "0x", "0b2", "09", "1.0", " 1", "1e3",
        ] {
            assert_eq!(parse_int(bad), Err(NumberError::Syntax), "{bad:?}");
        }
        assert_eq!(parse_uint("4294967296", 32), Err(NumberError::Range));
        assert_eq!(parse_uint("-1", 64), Err(NumberError::Syntax));
    }

    #[test]
    fn durations_as_go_reads_them() {
        let second = 1_000_000_000;
        assert_eq!(parse_duration("0"), Ok(0));
        assert_eq!(parse_duration("1h30m"), Ok(5_400 * second));
        assert_eq!(parse_duration("100ms"), Ok(second / 10));
        assert_eq!(parse_duration("-1.5s"), Ok(-3 * second / 2));
        assert_eq!(parse_duration(".5m"), Ok(30 * second));
        assert_eq!(parse_duration("1.s"), Ok(second));
        assert_eq!(parse_duration("3\u{b5}s"), Ok(3_000));
        assert_eq!(parse_duration("9223372036854775807ns"), Ok(i64::MAX));
        for bad in [
            "",
            "-",
            "5",
            "5x",
            "s",
            ".s",
            "1h30",
            "9223372036854775808ns",
            "1 h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            parse_duration("5").unwrap_err(),
            "time: missing unit in duration \"5\""
        );
    }

    #[test]
    fn quotes_as_go_does() {
        assert_eq!(quote("a\"b\\\n\u{1}\u{e9}"), "\"a\\\"b\\\\\\n\\x01\u{e9}\"");
    }
}
