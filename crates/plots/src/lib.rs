//! Plots as SVG, without a library or a script.
//!
//! For reports that are one HTML file: every function returns a piece of HTML. No I/O.

use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
const TICKS: usize = 5;
/// Told apart by people who do not see some colours, too (Okabe and Ito's).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#f0e442",
];

/// A named line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// x and y of its points, in order of x.
    pub points: Vec<(f64, f64)>,
    /// Drawn dashed.
    pub dashed: bool,
}

/// Text that means nothing to HTML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The colour of the n-th line or part.
#[must_use]
pub fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

/// A round number at or above `value`.
fn ceiling(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps
        .into_iter()
        .map(|step| step * unit)
        .find(|top| *top >= value * 0.999)
        .unwrap_or(10.0 * unit)
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        v if v >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A chart of lines over a common axis that begins at zero; with `log_x`, at the smallest x.
#[must_use]
pub fn lines(x_label: &str, y_label: &str, lines: &[Line], log_x: bool) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let x_max = points().map(|p| p.0).fold(0.0, f64::max);
    let y_top = ceiling(points().map(|p| p.1).fold(0.0, f64::max));
    let x_low = if log_x {
        let least = points().map(|p| p.0).fold(f64::INFINITY, f64::min);
        10f64.powf(least.max(0.1).log10().floor())
    } else {
        0.0
    };
    let x_top = if log_x {
        ceiling(x_max.max(x_low * 2.0))
    } else {
        ceiling(x_max)
    };
    let x_at = |x: f64| {
        let share = if log_x {
            (x.max(x_low) / x_low).log10() / (x_top / x_low).log10()
        } else {
            x.max(0.0) / x_top
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    };
    let y_at = |y: f64| HEIGHT - BOTTOM - (y / y_top) * (HEIGHT - TOP - BOTTOM);
    let mut svg = frame(y_top, &y_at);
    let mut ticks = Vec::new();
    if log_x {
        let mut decade = x_low;
        while decade <= x_top {
            ticks.extend(
                [1.0, 2.0, 5.0]
                    .map(|step| step * decade)
                    .into_iter()
                    .filter(|t| *t <= x_top),
            );
            decade *= 10.0;
        }
    } else {
        ticks.extend((0..=TICKS).map(|n| x_top * n as f64 / TICKS as f64));
    }
    for tick in ticks {
        let x = x_at(tick);
        let (bottom, text) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 15.0);
        let _ = write!(
            svg,
            r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="#eee"/><text x="{x:.1}" y="{text}" text-anchor="middle">{}</text>"##,
            number(tick)
        );
    }
    for (n, line) in lines.iter().enumerate() {
        let path: String = line
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1} ", x_at(*x), y_at(*y)))
            .collect();
        let dash = if line.dashed {
            r#" stroke-dasharray="5 4""#
        } else {
            ""
        };
        let _ = write!(
            svg,
            r#"<polyline fill="none" stroke="{}" stroke-width="1.8"{dash} points="{path}"/>"#,
            colour(n)
        );
    }
    let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
    finish(svg, x_label, y_label, &names)
}

/// Stacked bars: a bar for each of `bars`, a part for each of `parts`; `values[bar][part]`.
#[must_use]
pub fn bars(y_label: &str, bars: &[String], parts: &[String], values: &[Vec<f64>]) -> String {
    let y_top = ceiling(
        values
            .iter()
            .map(|bar| bar.iter().sum())
            .fold(0.0, f64::max),
    );
    let y_at = |y: f64| HEIGHT - BOTTOM - (y / y_top) * (HEIGHT - TOP - BOTTOM);
    let mut svg = frame(y_top, &y_at);
    let step = (WIDTH - LEFT - RIGHT) / bars.len().max(1) as f64;
    for (n, (name, bar)) in bars.iter().zip(values).enumerate() {
        let (x, width) = (LEFT + step * (n as f64 + 0.2), step * 0.6);
        let mut below = 0.0;
        for (part, value) in bar.iter().enumerate() {
            let (top, bottom) = (y_at(below + value), y_at(below));
            let _ = write!(
                svg,
                r#"<rect x="{x:.1}" y="{top:.1}" width="{width:.1}" height="{:.1}" fill="{}"><title>{}: {value:.2}</title></rect>"#,
                bottom - top,
                colour(part),
                escape(parts.get(part).map_or("", String::as_str))
            );
            below += value;
        }
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{}" text-anchor="middle">{}</text>"#,
            x + width / 2.0,
            HEIGHT - BOTTOM + 15.0,
            escape(name)
        );
    }
    let names: Vec<_> = parts.iter().map(String::as_str).collect();
    finish(svg, "", y_label, &names)
}

fn frame(y_top: f64, y_at: &dyn Fn(f64) -> f64) -> String {
    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#);
    for n in 0..=TICKS {
        let value = y_top * n as f64 / TICKS as f64;
        let y = y_at(value);
        let _ = write!(
            svg,
            r##"<line x1="{LEFT}" y1="{y:.1}" x2="{}" y2="{y:.1}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{}</text>"##,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            number(value)
        );
    }
    svg
}

fn finish(mut svg: String, x_label: &str, y_label: &str, names: &[&str]) -> String {
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0);
    let _ = write!(
        svg,
        r#"<text x="{middle}" y="{bottom}" text-anchor="middle">{}</text><text transform="rotate(-90)" x="{}" y="14" text-anchor="middle">{}</text></svg><p class="legend">"#,
        escape(x_label),
        -(TOP + HEIGHT - BOTTOM) / 2.0,
        escape(y_label)
    );
    for (n, name) in names.iter().enumerate() {
        let _ = write!(
            svg,
            r#"<span><i style="background:{}"></i>{}</span>"#,
            colour(n),
            escape(name)
        );
    }
    svg + "</p>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(
            (ceiling(0.0), ceiling(7.1), ceiling(130.0)),
            (1.0, 8.0, 150.0)
        );
        assert_eq!(
            (number(12_500.0), number(0.25)),
            ("12.5k".into(), "0.25".into())
        );
    }

    #[test]
    fn a_chart_has_its_lines_and_no_raw_text() {
        let line = Line {
            name: "<a>".into(),
            points: vec![(1.0, 1.0), (100.0, 3.0)],
            dashed: false,
        };
        for log_x in [false, true] {
            let svg = lines("x", "y", std::slice::from_ref(&line), log_x);
            assert!(svg.contains("polyline") && svg.contains("&lt;a&gt;"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
        assert!(!lines("x", "y", &[], true).contains("NaN"));
        let svg = bars("y", &["b".into()], &["p".into()], &[vec![2.0]]);
        assert!(svg.contains("<rect"));
    }
}
