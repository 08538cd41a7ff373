//! The kinds of value a flag takes, and how each is read from text.

use std::collections::BTreeMap;

use crate::gates;
use crate::golang::{NumberError, parse_bool, parse_duration, parse_int, parse_uint, quote};
use crate::url::Url;

/// What form a flag's value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; on a command line the bare flag means `true`.
    Bool,
    /// Like a bool on a command line, but its value is not looked at.
    Ignored,
    /// A signed 64-bit number.
    Int,
    /// An unsigned number of so many bits.
    Uint {
        /// 32 or 64: etcd reads the two through different functions, with
        /// different error texts.
        bits: u32,
    },
    /// A Go duration such as `1h30m`; in a configuration file nanoseconds.
    Duration,
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Several of these words, separated by commas.
    Choices(&'static [&'static str]),
    /// Words separated by commas, in the order given.
    List,
    /// Words separated by commas, sorted and without duplicates.
    Set,
    /// URLs separated by commas; empty leaves the default.
    Urls,
    /// URLs separated by commas, or `*`, or nothing.
    Origins,
    /// `Gate=true,Other=false`.
    Gates,
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    /// In nanoseconds, signed as in Go.
    Duration(i64),
    Text(String),
    List(Vec<String>),
    Urls(Vec<Url>),
    Gates(BTreeMap<String, bool>),
}

impl Kind {
    /// Whether the flag never takes the next argument as its value.
    pub(crate) fn is_bool(self) -> bool {
        matches!(self, Self::Bool | Self::Ignored)
    }

    /// Reads a value as the flag's `Set` does in etcd. The error is the text
    /// that etcd puts behind `invalid value "x" for flag -y: `.
    pub(crate) fn parse(self, text: &str) -> Result<Value, String> {
        let number = |error: NumberError| error.flag_text().to_owned();
        Ok(match self {
            Self::Bool => Value::Bool(parse_bool(text).ok_or("parse error")?),
            Self::Ignored => Value::Text(text.to_owned()),
            Self::Int => Value::Int(parse_int(text).map_err(number)?),
            Self::Uint { bits: 64 } => Value::Uint(parse_uint(text, 64).map_err(number)?),
            Self::Uint { bits } => Value::Uint(parse_uint(text, bits).map_err(|error| {
                format!(
                    "strconv.ParseUint: parsing {}: {}",
                    quote(text),
                    error.strconv_text()
                )
            })?),
            Self::Duration => {
                Value::Duration(parse_duration(text).map_err(|_| "parse error".to_owned())?)
            }
            Self::Text => Value::Text(text.to_owned()),
            Self::Choice(words) if words.contains(&text) => Value::Text(text.to_owned()),
            Self::Choice(_) => return Err("invalid value".to_owned()),
            Self::Choices(words) => match text.split(',').find(|word| !words.contains(word)) {
                Some(word) => return Err(format!("invalid value {}", quote(word))),
                None => Value::Text(text.to_owned()),
            },
            Self::List => Value::List(text.split(',').map(str::to_owned).collect()),
            Self::Set => {
                let mut words: Vec<_> = text.split(',').map(str::to_owned).collect();
                words.sort();
                words.dedup();
                Value::List(words)
            }
            Self::Urls => Value::Urls(Url::parse_list(text)?),
            Self::Origins => {
                if !matches!(text, "" | "*") {
                    Url::parse_list(text)?;
                }
                Value::Text(text.to_owned())
            }
            Self::Gates => Value::Gates(gates::parse(text)?),
        })
    }

    /// Reads a default from the table; there, empty lists and URLs are written
    /// as nothing.
    pub(crate) fn parse_default(self, text: &str) -> Result<Value, String> {
        match self {
            Self::List | Self::Set if text.is_empty() => Ok(Value::List(Vec::new())),
            Self::Urls if text.is_empty() => Ok(Value::Urls(Vec::new())),
            Self::Choices(_) => Ok(Value::Text(text.to_owned())),
            _ => self.parse(text),
        }
    }
}
