//! Kubernetes' quantities: `250m`, `1.5`, `512Mi`, `1e3`.

/// Reads a quantity, in thousandths; rounded up. `None` for what is none, is negative or is beyond
/// what a number can hold.
#[must_use]
pub fn millis(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    // Of `1e3` and `1E3` the exponent is part of the number; `1E` alone is a unit.
    let exponent = unit
        .strip_prefix(['e', 'E'])
        .filter(|rest| !rest.is_empty())
        .map(str::parse::<i32>);
    let factor = match (exponent, unit) {
        (Some(power), _) => 1e3 * 10_f64.powi(power.ok()?),
        (None, "n") => 1e-6,
        (None, "u") => 1e-3,
        (None, "m") => 1.0,
        (None, "") => 1e3,
        (None, "k") => 1e6,
        (None, "M") => 1e9,
        (None, "G") => 1e12,
        (None, "T") => 1e15,
        (None, "P") => 1e18,
        (None, "E") => 1e21,
        (None, "Ki") => 1e3 * 1024.0,
        (None, "Mi") => 1e3 * 1024_f64.powi(2),
        (None, "Gi") => 1e3 * 1024_f64.powi(3),
        (None, "Ti") => 1e3 * 1024_f64.powi(4),
        (None, "Pi") => 1e3 * 1024_f64.powi(5),
        (None, "Ei") => 1e3 * 1024_f64.powi(6),
        _ => return None,
    };
    let value = number.parse::<f64>().ok()? * factor;
    // A last bit that is not exact is no whole thousandth more.
    let value = (value - 1e-6).ceil().max(0.0);
    (value < u64::MAX as f64).then_some(value as u64)
}

/// Reads a quantity as a whole number, rounded up: bytes, or pods.
#[must_use]
pub fn whole(text: &str) -> Option<u64> {
    // Thousandths of the largest memories do not fit.
    match millis(text) {
        Some(millis) => Some(millis.div_ceil(1_000)),
        None if text.ends_with(['i', 'P', 'E']) => Some(u64::MAX / 1_000),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [
            ("250m", Some(250)),
            ("1", Some(1_000)),
            ("1.5", Some(1_500)),
            ("0.1", Some(100)),
            ("100u", Some(1)),
            ("2e3", Some(2_000_000)),
            ("1E2", Some(100_000)),
            ("", None),
            ("-1", None),
            ("1Zi", None),
            ("x", None),
        ] {
            assert_eq!(millis(text), value, "{text}");
        }
        for (text, value) in [
            ("110", Some(110)),
            ("512Mi", Some(512 << 20)),
            ("16Gi", Some(16 << 30)),
            ("129e6", Some(129_000_000)),
            ("128974848", Some(128_974_848)),
            ("1k", Some(1_000)),
            ("500m", Some(1)),
        ] {
            assert_eq!(whole(text), value, "{text}");
        }
    }
}
