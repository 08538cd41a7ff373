//! What can be wrong with a rule file.

use std::fmt;

/// One mistake in a rule file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong and what to write instead, in words.
    pub reason: String,
}

/// All the mistakes of a rule file, in the order in which they stand in it.
///
/// Prints one a line as `FILE:LINE:COLUMN: reason`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct RuleErrors {
    /// What the file is called.
    pub file: String,
    /// At least one.
    pub errors: Vec<RuleError>,
}

impl fmt::Display for RuleErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            let end = if i + 1 == self.errors.len() { "" } else { "\n" };
            write!(
                f,
                "{}:{}:{}: {}{end}",
                self.file, error.line, error.column, error.reason
            )?;
        }
        Ok(())
    }
}

/// A profile that does not exist.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "there is no profile {name:?}; the profiles are strict, balanced, ephemeral and ci, and a rule file of your own is given with --rules"
)]
pub struct UnknownProfile {
    /// The name that was asked for.
    pub name: String,
}
