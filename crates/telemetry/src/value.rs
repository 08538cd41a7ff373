//! Values that are written as Go writes them.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// A duration as Go's `Duration.String` has it (`1.753369ms`, `1m30s`), which
/// is how etcd logs one: `took = %GoDuration(elapsed)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write_decimal(f, nanos, 3, "µs"),
            1_000_000..1_000_000_000 => write_decimal(f, nanos, 6, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                let (hours, minutes) = (minutes / 60, minutes % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                write_decimal(f, nanos % 60_000_000_000, 9, "s")
            }
        }
    }
}

/// `value / 10^places` without zeros at the end, then the unit.
fn write_decimal(f: &mut fmt::Formatter<'_>, value: u128, places: u32, unit: &str) -> fmt::Result {
    let scale = 10u128.pow(places);
    write!(f, "{}", value / scale)?;
    let fraction = value % scale;
    if fraction > 0 {
        let digits = format!("{fraction:0width$}", width = places as usize);
        write!(f, ".{}", digits.trim_end_matches('0'))?;
    }
    f.write_str(unit)
}

/// A list that is logged as an array of strings, which tracing has no type
/// for: `"listen-client-urls" = Strings::new(urls).field()`.
///
/// It travels as an error value, the only one of tracing's that a subscriber
/// can tell apart by its type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings(pub(crate) Vec<String>);

impl Strings {
    /// The texts of the items.
    pub fn new<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> Self {
        Self(items.into_iter().map(|item| item.to_string()).collect())
    }

    /// The field value for a tracing macro.
    pub fn field(&self) -> &(dyn Error + 'static) {
        self
    }
}

impl fmt::Display for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Error for Strings {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (1_753_369, "1.753369ms"),
            (999_999_999, "999.999999ms"),
            (1_000_000_000, "1s"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (3_600_000_000_000, "1h0m0s"),
            (18_367_001_000_000, "5h6m7.001s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(GoDuration(Duration::from_nanos(nanos)).to_string(), text);
        }
    }
}
