//! The text of a line.
//!
//! zap's JSON encoder, as etcd configures it: `level`, `ts` (microseconds,
//! RFC 3339 with `Z`), `caller` (directory and file), `msg`, then the fields
//! flat and in order. Its console encoder: the first four separated by tabs,
//! then the fields as JSON with a space after `:` and `,`.
//!
//! etcd writes local time; orlop always writes UTC, which is what a container
//! has.

use std::fmt::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Format, Level, Strings};

/// A line whose fields are being collected.
#[derive(Debug)]
pub(crate) struct Line {
    format: Format,
    message: String,
    fields: String,
}

impl Line {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            message: String::new(),
            fields: String::new(),
        }
    }

    /// Message and fields, to tell one line from another.
    pub(crate) fn words(&self) -> String {
        format!("{}{}", self.message, self.fields)
    }

    pub(crate) fn message(&mut self, text: &str) {
        self.message.push_str(text);
    }

    pub(crate) fn string(&mut self, key: &str, value: &str) {
        self.key(key);
        if self.format == Format::Human && is_plain(value) {
            self.fields.push_str(value);
        } else {
            push_quoted(&mut self.fields, value);
        }
    }

    /// A number or a truth value, which JSON has unquoted.
    pub(crate) fn number(&mut self, key: &str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.fields, "{value}");
    }

    pub(crate) fn float(&mut self, key: &str, value: f64) {
        if value.is_finite() {
            self.number(key, value);
        } else {
            // JSON has no such number; zap writes a string too.
            let text = match value {
                f64::INFINITY => "+Inf",
                f64::NEG_INFINITY => "-Inf",
                _ => "NaN",
            };
            self.string(key, text);
        }
    }

    pub(crate) fn strings(&mut self, key: &str, values: &Strings) {
        self.key(key);
        let separator = if self.format == Format::Console {
            ", "
        } else {
            ","
        };
        self.fields.push('[');
        for (nth, value) in values.0.iter().enumerate() {
            if nth > 0 {
                self.fields.push_str(separator);
            }
            push_quoted(&mut self.fields, value);
        }
        self.fields.push(']');
    }

    fn key(&mut self, key: &str) {
        // A field named with a Rust keyword.
        let key = key.strip_prefix("r#").unwrap_or(key);
        match self.format {
            Format::Json => {
                self.fields.push(',');
                push_quoted(&mut self.fields, key);
                self.fields.push(':');
            }
            Format::Console => {
                self.fields
                    .push_str(if self.fields.is_empty() { "{" } else { ", " });
                push_quoted(&mut self.fields, key);
                self.fields.push_str(": ");
            }
            Format::Human => {
                self.fields.push(' ');
                self.fields.push_str(key);
                self.fields.push('=');
            }
        }
    }
}

/// The whole line, with its newline.
pub(crate) fn finish(line: Line, level: Level, file: &str, at: u32) -> String {
    finish_at(line, level, file, at, SystemTime::now())
}

fn finish_at(line: Line, level: Level, file: &str, at: u32, now: SystemTime) -> String {
    let Line {
        format,
        message,
        fields,
    } = line;
    let mut out = String::with_capacity(128 + message.len() + fields.len());
    match format {
        Format::Json => {
            let _ = write!(out, "{{\"level\":\"{}\",\"ts\":\"", level.name());
            push_time(&mut out, now, 6);
            out.push_str("\",\"caller\":");
            push_quoted(&mut out, &caller(file, at));
            out.push_str(",\"msg\":");
            push_quoted(&mut out, &message);
            out.push_str(&fields);
            out.push('}');
        }
        Format::Console => {
            push_time(&mut out, now, 6);
            let _ = write!(out, "\t{}\t{}\t", level.name(), caller(file, at));
            push_escaped(&mut out, &message);
            if !fields.is_empty() {
                let _ = write!(out, "\t{fields}}}");
            }
        }
        Format::Human => {
            push_time(&mut out, now, 3);
            let _ = write!(out, " {:<5} ", level.name().to_ascii_uppercase());
            push_escaped(&mut out, &message);
            out.push_str(&fields);
        }
    }
    out.push('\n');
    out
}

/// The file with its directory, or with its crate's if that is `src`.
fn caller(file: &str, line: u32) -> String {
    let parts: Vec<_> = Path::new(file)
        .iter()
        .map(|part| part.to_string_lossy())
        .filter(|part| part != "src")
        .collect();
    let from = parts.len().saturating_sub(2);
    format!("{}:{line}", parts.get(from..).unwrap_or_default().join("/"))
}

/// Whether a value needs no quotes to stand after `key=`.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value
            .chars()
            .all(|c| !c.is_whitespace() && !c.is_control() && c != '"' && c != '\\')
}

fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c => push_unless_control(out, c),
        }
    }
    out.push('"');
}

/// Control characters escaped, so that a message stays on its line.
fn push_escaped(out: &mut String, text: &str) {
    text.chars().for_each(|c| push_unless_control(out, c));
}

fn push_unless_control(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c < ' ' => {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// UTC, with this many digits of the second's fraction (3 or 6).
fn push_time(out: &mut String, now: SystemTime, digits: usize) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let fraction = if digits == 3 {
        since.subsec_millis()
    } else {
        since.subsec_micros()
    };
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:0digits$}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
    );
}

/// Year, month and day of a day since 1970, by the Gregorian calendar. Years
/// begin in March here, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    // Days from 1 March 0000 to 1 January 1970, and in 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// 2026-11-21T11:36:12.335335Z
    fn moment() -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(1_795_260_972_335_335)
    }

    fn text(format: Format, fill: impl FnOnce(&mut Line)) -> String {
        let mut line = Line::new(format);
        fill(&mut line);
        finish_at(
            line,
            Level::Warn,
            "crates/server/src/serve.rs",
            139,
            moment(),
        )
    }

    #[test]
    fn json_is_zaps() {
        let line = text(Format::Json, |line| {
            line.message("it \"is\"\nso");
            line.string("data-dir", "/a\\b");
            line.number("took-ms", 12u64);
            line.number("r#type", true);
            line.float("ratio", 0.5);
            line.float("none", f64::NAN);
            line.strings("urls", &Strings::new(["http://a", "b\u{1}"]));
        });
        assert_eq!(
            line,
            concat!(
                r#"{"level":"warn","ts":"2026-11-21T11:36:12.335335Z","caller":"server/serve.rs:139","#,
                r#""msg":"it \"is\"\nso","data-dir":"/a\\b","took-ms":12,"type":true,"ratio":0.5,"#,
                r#""none":"NaN","urls":["http://a","b\u0001"]}"#,
                "\n"
            )
        );
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }

    #[test]
    fn console_is_zaps() {
        let fill = |line: &mut Line| {
            line.message("opened");
            line.string("path", "d/db");
            line.strings("args", &Strings::new(["a", "b"]));
        };
        assert_eq!(
            text(Format::Console, fill),
            "2026-11-21T11:36:12.335335Z\twarn\tserver/serve.rs:139\topened\t{\"path\": \"d/db\", \"args\": [\"a\", \"b\"]}\n"
        );
        assert_eq!(
            text(Format::Console, |line| line.message("no fields")),
            "2026-11-21T11:36:12.335335Z\twarn\tserver/serve.rs:139\tno fields\n"
        );
    }

    #[test]
    fn a_persons_line_quotes_only_what_needs_it() {
        let line = text(Format::Human, |line| {
            line.message("listening\nhere");
            line.string("url", "http://127.0.0.1:2379");
            line.string("reason", "no room");
            line.string("empty", "");
            line.number("keys", 5);
        });
        assert_eq!(
            line,
            "2026-11-21T11:36:12.335Z WARN  listening\\nhere url=http://127.0.0.1:2379 reason=\"no room\" empty=\"\" keys=5\n"
        );
    }

    #[test]
    fn callers_are_short() {
        assert_eq!(caller("crates/server/src/serve.rs", 1), "server/serve.rs:1");
        assert_eq!(
            caller("crates/server/src/http/health.rs", 2),
            "http/health.rs:2"
        );
        assert_eq!(caller("/a/b/h2-0.4.1/src/lib.rs", 3), "h2-0.4.1/lib.rs:3");
        assert_eq!(caller("main.rs", 4), "main.rs:4");
    }

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(59), (1970, 3, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_778), (2026, 11, 21));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }
}
