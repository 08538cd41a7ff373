//! What was set, before it becomes a [`Config`](crate::Config).

use std::collections::BTreeMap;

use crate::golang::quote;
use crate::removed::{self, Removed, Successor};
use crate::table::{self, Flag};
use crate::value::{Kind, Value};
use crate::{Error, Notice, Url};

/// A name that may be set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known {
    Flag(&'static Flag),
    Removed(&'static Removed),
}

impl Known {
    pub(crate) fn find(name: &str) -> Option<Self> {
        let flag = table::find(name).map(Self::Flag);
        flag.or_else(|| removed::find(name).map(Self::Removed))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flag(flag) => flag.name,
            Self::Removed(removed) => removed.name,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Flag(flag) => flag.kind,
            Self::Removed(removed) => removed.kind,
        }
    }
}

/// The values that were given explicitly, and what there is to say about it.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, Value>,
    removed: BTreeMap<&'static str, (Value, String)>,
    pub(crate) notices: Vec<Notice>,
    /// Whether they come from a configuration file; etcd treats a few of them
    /// differently then.
    pub(crate) from_file: bool,
    refusals: Vec<Error>,
}

impl Settings {
    /// Reads and keeps one value.
    pub(crate) fn set(&mut self, known: Known, text: &str) -> Result<(), String> {
        let kind = known.kind();
        // Empty URLs leave what there is, and yet count as set: etcd's rule.
        let value = if kind == Kind::Urls && text.is_empty() {
            self.value(known.name())
        } else {
            kind.parse(text)?
        };
        self.insert(known, value, text);
        Ok(())
    }

    /// Keeps a value that was read; `text` is how it was written.
    pub(crate) fn insert(&mut self, known: Known, value: Value, text: &str) {
        match known {
            Known::Removed(removed) => {
                self.removed.insert(removed.name, (value, text.to_owned()));
            }
            Known::Flag(flag) => {
                let value = match (value, self.values.remove(flag.name)) {
                    (Value::Gates(new), Some(Value::Gates(mut old))) => {
                        old.extend(new);
                        Value::Gates(old)
                    }
                    (new, _) => new,
                };
                self.values.insert(flag.name, value);
            }
        }
    }

    /// Whether a flag, or a variable or key of its name, was given.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(crate) fn is_known_set(&self, known: Known) -> bool {
        match known {
            Known::Flag(flag) => self.values.contains_key(flag.name),
            Known::Removed(removed) => self.removed.contains_key(removed.name),
        }
    }

    /// The names that were given.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values.keys().copied()
    }

    /// Turns removed flags into their successors, with a warning each. A
    /// successor that was itself given wins.
    pub(crate) fn map_removed(&mut self) {
        for (name, (value, text)) in std::mem::take(&mut self.removed) {
            let Some(removed) = removed::find(name) else {
                continue;
            };
            let release = removed.release;
            let (instead, overruled) = match removed.successor {
                Successor::Flag(successor) => {
                    let overruled = self.is_set(successor);
                    if !overruled && let Some(flag) = table::find(successor) {
                        self.values.insert(flag.name, value);
                    }
                    (format!("use --{successor} instead"), overruled)
                }
                Successor::Gate(gate) => {
                    let mut gates = self.gates("feature-gates");
                    let overruled = gates.contains_key(gate);
                    if !overruled && let Value::Bool(on) = value {
                        gates.insert(gate.to_owned(), on);
                        self.values.insert("feature-gates", Value::Gates(gates));
                    }
                    (
                        format!("use --feature-gates={gate}={text} instead"),
                        overruled,
                    )
                }
                Successor::Nothing { harmless, why } => {
                    let written = match &value {
                        Value::Bool(on) => on.to_string(),
                        _ => text,
                    };
                    if !harmless.is_empty() && !harmless.contains(&written.as_str()) {
                        self.refusals.push(Error::Refused {
                            flag: removed.name,
                            why: why.to_owned(),
                        });
                    }
                    ("it is ignored".to_owned(), false)
                }
            };
            let but = if overruled {
                ", which was given too and wins"
            } else {
                ""
            };
            self.notices.push(Notice::warn(format!(
                "--{name} was removed in etcd {release}; {instead}{but}"
            )));
        }
    }

    /// The first removed flag that asked for something there is no more.
    pub(crate) fn take_refusal(&mut self) -> Option<Error> {
        (!self.refusals.is_empty()).then(|| self.refusals.remove(0))
    }

    /// The value of a flag, given or default.
    pub(crate) fn value(&self, name: &str) -> Value {
        let given = self.values.get(name).cloned();
        given
            .or_else(|| {
                table::find(name).and_then(|flag| flag.kind.parse_default(flag.default).ok())
            })
            .unwrap_or(Value::Text(String::new()))
    }

    // The getters below give a zero value for a name of another kind; the test
    // that sets every field of a `Config` finds such a mistake.

    pub(crate) fn bool(&self, name: &str) -> bool {
        matches!(self.value(name), Value::Bool(true))
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Int(number) => number,
            _ => 0,
        }
    }

    pub(crate) fn uint(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Uint(number) => number,
            _ => 0,
        }
    }

    /// In nanoseconds.
    pub(crate) fn duration_ns(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Duration(ns) => ns,
            _ => 0,
        }
    }

    pub(crate) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Value::Text(text) => text,
            _ => String::new(),
        }
    }

    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Value::List(words) => words,
            _ => Vec::new(),
        }
    }

    pub(crate) fn urls(&self, name: &str) -> Vec<Url> {
        match self.value(name) {
            Value::Urls(urls) => urls,
            _ => Vec::new(),
        }
    }

    pub(crate) fn gates(&self, name: &str) -> BTreeMap<String, bool> {
        match self.value(name) {
            Value::Gates(gates) => gates,
            _ => BTreeMap::new(),
        }
    }
}

/// Go's text for a value that a flag does not take.
pub(crate) fn invalid_value(text: &str, known: Known, reason: &str) -> String {
    let (name, text) = (known.name(), quote(text));
    if known.kind().is_bool() {
        format!("invalid boolean value {text} for -{name}: {reason}")
    } else {
        format!("invalid value {text} for flag -{name}: {reason}")
    }
}

#[cfg(test)]
mod tests {
    use crate::table::FLAGS;

    #[test]
    fn every_default_can_be_read() {
        for flag in FLAGS {
            let read = flag.kind.parse_default(flag.default);
            assert!(read.is_ok(), "--{}: {read:?}", flag.name);
        }
    }
}
