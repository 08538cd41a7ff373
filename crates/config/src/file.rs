//! etcd's YAML configuration file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_yaml_ng::{Mapping, Value as Yaml};

use crate::settings::{Known, Settings};
use crate::value::{Kind, Value};
use crate::{Error, Notice};

/// No configuration is this long; it keeps a wrong path from filling memory.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Keys of etcd that have no flag of their own and no meaning here.
const KEYS_WITHOUT_FLAG: [&str; 1] = ["grpc-additional-server-options"];

/// Flags that etcd's file has no key for.
const FLAGS_WITHOUT_KEY: [&str; 7] = [
    "client-crl-file",
    "config-file",
    "discovery-fallback",
    "peer-crl-file",
    "raft-read-timeout",
    "raft-write-timeout",
    "version",
];

/// Sections of the file, with the flags their keys stand for.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "client-transport-security",
        &[
            ("cert-file", "cert-file"),
            ("key-file", "key-file"),
            ("client-cert-file", "client-cert-file"),
            ("client-key-file", "client-key-file"),
            ("client-cert-auth", "client-cert-auth"),
            ("trusted-ca-file", "trusted-ca-file"),
            ("auto-tls", "auto-tls"),
            ("allowed-cn", "client-cert-allowed-cn"),
            ("allowed-hostname", "client-cert-allowed-hostname"),
        ],
    ),
    (
        "peer-transport-security",
        &[
            ("cert-file", "peer-cert-file"),
            ("key-file", "peer-key-file"),
            ("client-cert-file", "peer-client-cert-file"),
            ("client-key-file", "peer-client-key-file"),
            ("client-cert-auth", "peer-client-cert-auth"),
            ("trusted-ca-file", "peer-trusted-ca-file"),
            ("auto-tls", "peer-auto-tls"),
            ("allowed-cn", "peer-cert-allowed-cn"),
            ("allowed-hostname", "peer-cert-allowed-hostname"),
            (
                "skip-client-san-verification",
                "peer-skip-client-san-verification",
            ),
        ],
    ),
    (
        "socket-options",
        &[
            ("reuse-port", "socket-reuse-port"),
            ("reuse-address", "socket-reuse-address"),
        ],
    ),
    ("discovery-config", &[("token", "discovery-token")]),
];

/// The key of a flag, `section.key` for one in a section; none when the file
/// cannot set it.
pub(crate) fn key_of(flag: &'static str) -> Option<String> {
    for (section, keys) in SECTIONS {
        if let Some((key, _)) = keys.iter().find(|(_, name)| *name == flag) {
            return Some(format!("{section}.{key}"));
        }
    }
    match flag {
        "discovery-endpoints" => Some("discovery-config.client.endpoints".to_owned()),
        _ => Known::find(flag)
            .filter(|known| is_top_level(*known))
            .map(|_| flag.to_owned()),
    }
}

/// Whether the name is a key of its own, outside the sections.
fn is_top_level(known: Known) -> bool {
    let Known::Flag(flag) = known else {
        return true;
    };
    let name = flag.name;
    let in_section = SECTIONS
        .iter()
        .any(|(_, keys)| keys.iter().any(|(_, flag)| *flag == name));
    // discovery's details are in sections of `discovery-config` that are not
    // looked into; `discovery-srv` and its name are at the top.
    let discovery = name.starts_with("discovery-") && !name.starts_with("discovery-srv");
    let ignored = flag.kind == Kind::Ignored;
    !in_section && !discovery && !ignored && !FLAGS_WITHOUT_KEY.contains(&name)
}

/// Reads a configuration file.
pub(crate) fn read(path: &str) -> Result<Settings, Error> {
    let path = PathBuf::from(path);
    let text = read_limited(&path)?;
    let fail = |reason: String| Error::File {
        path: path.clone(),
        reason,
    };
    let yaml: Yaml = serde_yaml_ng::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let mut settings = Settings::default();
    settings.from_file = true;
    settings.notices.push(
        Notice::info(
            "loaded server configuration, other configuration command line flags and \
             environment variables will be ignored if provided",
        )
        .with("path", path.display().to_string()),
    );
    match yaml {
        Yaml::Null => {}
        Yaml::Mapping(keys) => read_top(&keys, &mut settings).map_err(fail)?,
        other => {
            return Err(fail(format!(
                "expected `key: value` lines, found {}",
                described(&other)
            )));
        }
    }
    Ok(settings)
}

fn read_limited(path: &Path) -> Result<String, Error> {
    let unreadable = |reason: String| Error::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(format!(
            "it is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    Ok(text)
}

fn read_top(keys: &Mapping, settings: &mut Settings) -> Result<(), String> {
    for (key, value) in keys {
        let key = key_text(key)?;
        if let Some((section, flags)) = SECTIONS.iter().find(|(section, _)| *section == key) {
            read_section(section, flags, value, settings)?;
        } else if let Some(known) = Known::find(&key).filter(|known| is_top_level(*known)) {
            set(known, &key, value, settings)?;
        } else {
            warn_of(&key, KEYS_WITHOUT_FLAG.contains(&key.as_str()), settings);
        }
    }
    Ok(())
}

fn read_section(
    section: &str,
    flags: &[(&str, &str)],
    value: &Yaml,
    settings: &mut Settings,
) -> Result<(), String> {
    let keys = match value {
        Yaml::Mapping(keys) => keys,
        // etcd takes an empty section, except this one.
        Yaml::Null if section != "peer-transport-security" => return Ok(()),
        _ => {
            return Err(format!(
                "invalid {section}: expected `key: value` lines below it"
            ));
        }
    };
    for (key, value) in keys {
        let key = key_text(key)?;
        let full = format!("{section}.{key}");
        let flag = flags
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, flag)| *flag);
        if let Some(known) = flag.and_then(Known::find) {
            set(known, &full, value, settings)?;
        } else if full == "discovery-config.client" {
            let endpoints = value.get("endpoints").unwrap_or(&Yaml::Null);
            if let Some(known) = Known::find("discovery-endpoints") {
                set(
                    known,
                    "discovery-config.client.endpoints",
                    endpoints,
                    settings,
                )?;
            }
        } else {
            warn_of(
                &full,
                full == "client-transport-security.skip-client-san-verification",
                settings,
            );
        }
    }
    Ok(())
}

fn warn_of(key: &str, etcds: bool, settings: &mut Settings) {
    let message = if etcds {
        "this key of the configuration file has no meaning here and is ignored"
    } else {
        "ignoring an unknown key of the configuration file, as etcd does"
    };
    settings
        .notices
        .push(Notice::warn(message).with("key", key));
}

/// Go matches keys whatever their case.
fn key_text(key: &Yaml) -> Result<String, String> {
    match key {
        Yaml::String(key) => Ok(key.to_ascii_lowercase()),
        Yaml::Bool(key) => Ok(key.to_string()),
        Yaml::Number(key) => Ok(key.to_string()),
        other => Err(format!("a key must be a word, not {}", described(other))),
    }
}

/// Sets one value; null leaves the default, as in Go.
fn set(known: Known, key: &str, value: &Yaml, settings: &mut Settings) -> Result<(), String> {
    let wrong = |expected: &str| format!("{key}: expected {expected}, found {}", described(value));
    let read = match (known.kind(), value) {
        (_, Yaml::Null) => return Ok(()),
        (Kind::Bool, Yaml::Bool(on)) => Value::Bool(*on),
        // YAML 1.1, which etcd reads, has further words for them.
        (Kind::Bool, Yaml::String(word)) => match word.to_ascii_lowercase().as_str() {
            "yes" | "on" | "y" => Value::Bool(true),
            "no" | "off" | "n" => Value::Bool(false),
            _ => return Err(wrong("true or false")),
        },
        (Kind::Bool, _) => return Err(wrong("true or false")),
        (Kind::Int, _) => Value::Int(value.as_i64().ok_or_else(|| wrong("a whole number"))?),
        (Kind::Uint { bits }, _) => {
            let number = value
                .as_u64()
                .filter(|number| bits >= 64 || *number >> bits == 0);
            Value::Uint(number.ok_or_else(|| wrong("a whole number from 0 up"))?)
        }
        (Kind::Duration, _) => Value::Duration(value.as_i64().ok_or_else(|| {
            wrong("a duration in whole nanoseconds, such as 5000000000 for 5s (etcd's rule)")
        })?),
        (Kind::List | Kind::Set, Yaml::Sequence(words)) => {
            let words = words.iter().map(|word| word.as_str().map(str::to_owned));
            Value::List(
                words
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong("a list of strings"))?,
            )
        }
        // These two are lists on the command line and one string here.
        (Kind::List | Kind::Set, _) if known.name() != "host-whitelist" => {
            return Err(wrong("a list of strings"));
        }
        // Empty is `new`, unlike on a command line.
        (Kind::Choice(_), Yaml::String(text)) if text.is_empty() => return Ok(()),
        (_, Yaml::String(text)) => {
            // What etcd checks later, and with other words, than on a command line.
            let late = matches!(known.kind(), Kind::Choice(_) | Kind::Choices(_));
            if late && known.kind().parse(text).is_err() {
                return Err(unexpected_choice(known.name(), text));
            }
            return settings
                .set(known, text)
                .map_err(|reason| format!("unexpected error setting up {key}: {reason}"));
        }
        _ => return Err(wrong("a string; put it in quotes")),
    };
    settings.insert(known, read, &plain(value));
    Ok(())
}

fn unexpected_choice(name: &str, text: &str) -> String {
    let text = crate::golang::quote(text);
    match name {
        "initial-cluster-state" => format!("unexpected clusterState {text}"),
        _ => format!("{name}: unexpected value {text}"),
    }
}

fn plain(value: &Yaml) -> String {
    match value {
        Yaml::Bool(on) => on.to_string(),
        Yaml::Number(number) => number.to_string(),
        Yaml::String(text) => text.clone(),
        _ => String::new(),
    }
}

fn described(value: &Yaml) -> String {
    match value {
        Yaml::Null => "nothing".to_owned(),
        Yaml::Bool(on) => format!("{on}"),
        Yaml::Number(number) => format!("the number {number}"),
        Yaml::String(text) => format!("the string {}", crate::golang::quote(text)),
        Yaml::Sequence(_) => "a list".to_owned(),
        Yaml::Mapping(_) => "`key: value` lines".to_owned(),
        Yaml::Tagged(_) => "a tagged value".to_owned(),
    }
}
