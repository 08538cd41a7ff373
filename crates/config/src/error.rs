//! What can be wrong with a configuration.

use std::path::PathBuf;

/// Why a configuration was not taken. Displayed, it tells an operator what is
/// wrong and, where the text is not etcd's, what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The command line does not follow Go's flag syntax, or a value has the
    /// wrong form. The text is Go's.
    #[error("{0}")]
    Syntax(String),
    /// An argument that belongs to no flag (already quoted).
    #[error("{0} is not a valid flag")]
    Positional(String),
    /// An argument or variable is not UTF-8.
    #[error("{0} is not valid UTF-8; flags, variables and paths given in them must be")]
    NotUtf8(String),
    /// A variable's value has the wrong form.
    #[error("invalid value {value} for {variable}: {reason}")]
    Variable {
        /// The value, quoted.
        value: String,
        /// The variable's name.
        variable: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A flag was given, and the variable of the same setting is there too.
    #[error(
        "conflicting environment variable is shadowed by corresponding command-line flag \
         (either unset environment variable or disable flag)): {variable}"
    )]
    Shadowed {
        /// The variable's name.
        variable: String,
    },
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The configuration file is no YAML mapping, or a key has a wrong value.
    #[error("configuration file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the key.
        reason: String,
    },
    /// A setting that etcd has and orlop does not.
    #[error("--{flag} is not supported: {why}")]
    Refused {
        /// The flag.
        flag: &'static str,
        /// The reason, and what to do instead.
        why: String,
    },
    /// Settings that do not go together or are out of range.
    #[error("{0}")]
    Invalid(String),
    /// The data directory does not fit the settings.
    #[error("data directory {}: {reason}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
}

impl Error {
    /// The exit code etcd would end with: 2 for a command line that cannot be
    /// parsed, 1 for everything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Syntax(_) => 2,
            _ => 1,
        }
    }

    /// Whether the command line itself was at fault, so that the usage helps.
    #[must_use]
    pub fn wants_usage(&self) -> bool {
        matches!(self, Self::Syntax(_))
    }
}
