//! The version of etcd whose schema a file follows.

use std::fmt;
use std::str::FromStr;

/// A minor version of etcd that a snapshot can be written for. The keys are the same in
/// all; an etcd refuses a file of a later version than its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StorageVersion {
    /// etcd 3.5, whose files do not name a version.
    V3_5,
    /// etcd 3.6.
    V3_6,
    /// etcd 3.7.
    #[default]
    V3_7,
}

impl StorageVersion {
    /// What the file's `storageVersion` says; 3.5 has none.
    pub(crate) fn stated(self) -> Option<&'static str> {
        match self {
            StorageVersion::V3_5 => None,
            StorageVersion::V3_6 => Some("3.6.0"),
            StorageVersion::V3_7 => Some("3.7.0"),
        }
    }
}

impl fmt::Display for StorageVersion {
    /// As etcd writes it: `3.7.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stated().unwrap_or("3.5.0"))
    }
}

impl FromStr for StorageVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim_start_matches('v').trim_end_matches(".0") {
            "3.5" => Ok(StorageVersion::V3_5),
            "3.6" => Ok(StorageVersion::V3_6),
            "3.7" => Ok(StorageVersion::V3_7),
            _ => Err("expected 3.5, 3.6 or 3.7".to_owned()),
        }
    }
}
