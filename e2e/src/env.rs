//! Numbers that a test is told by its environment.

use crate::kube::{Result, fail};

/// The number in the environment variable `name`; none if it is not set.
///
/// # Errors
/// If it is set to anything else: a misspelt number must not pass for the default.
pub fn number(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => fail(format!("{name}={text}: not a number")),
        },
        Err(_) => Ok(None),
    }
}
