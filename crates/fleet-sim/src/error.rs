//! What can be wrong with a scenario.

/// Why a scenario cannot be run; the text is for who wrote it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not TOML, or has a name that is not known.
    #[error("the scenario cannot be read: {0}")]
    Toml(#[from] toml::de::Error),
    /// A value makes no sense.
    #[error("the scenario's {what}: {why}")]
    Value {
        /// Where.
        what: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A setting of placement is out of its range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

use placement::SettingsError;

/// An [`Error::Value`].
pub(crate) fn value(what: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Value {
        what: what.into(),
        why: why.into(),
    }
}
