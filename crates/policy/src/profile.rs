//! The rule files that ship with orlop.

use crate::error::UnknownProfile;
use std::fmt;
use std::str::FromStr;

/// A rule file that ships with orlop. It is nothing but that: it can be printed, edited and
/// given back as a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Profile {
    /// Everything is durable. The default.
    Strict,
    /// What its writer computes again by itself is volatile: events, heartbeats, progress.
    Balanced,
    /// What controllers derive from a durable owner is volatile too.
    Ephemeral,
    /// `Ephemeral`, with shards to hold what is not on the disk yet.
    Shared,
    /// `Ephemeral`, and the pods of common CI systems.
    Ci,
}

impl Profile {
    /// All of them, from the strictest on.
    pub const ALL: [Profile; 5] = [
        Profile::Strict,
        Profile::Shared,
        Profile::Balanced,
        Profile::Ephemeral,
        Profile::Ci,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Strict => "strict",
            Profile::Balanced => "balanced",
            Profile::Ephemeral => "ephemeral",
            Profile::Shared => "shared",
            Profile::Ci => "ci",
        }
    }

    /// The rule file.
    pub fn text(self) -> &'static str {
        match self {
            Profile::Strict => include_str!("../profiles/strict.toml"),
            Profile::Balanced => include_str!("../profiles/balanced.toml"),
            Profile::Ephemeral => include_str!("../profiles/ephemeral.toml"),
            Profile::Shared => include_str!("../profiles/shared.toml"),
            Profile::Ci => include_str!("../profiles/ci.toml"),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Profile::ALL
            .into_iter()
            .find(|profile| profile.name() == name)
            .ok_or_else(|| UnknownProfile {
                name: name.to_string(),
            })
    }
}
