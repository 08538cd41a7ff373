//! Child processes of a test, and its end.

use std::process::Command;
use std::time::Duration;

pub use playground::proc::*;
use playground::{Result, ensure};

/// How long a program that ends by itself may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs a program to its end, which must be a good one; what it printed.
///
/// # Errors
/// If it cannot be run, fails, or does not end in time: with all that it said.
pub fn run(command: &mut Command) -> Result<String> {
    let left = output(command, "", RUN_TIMEOUT)?;
    let text = String::from_utf8_lossy(&left.stdout).into_owned();
    ensure(left.status.success(), || {
        let error = String::from_utf8_lossy(&left.stderr);
        format!("{command:?}: {}\n{text}{error}", left.status)
    })?;
    Ok(text)
}

/// Ends a test that ran in `dir`: a failure prints the end of every log there and
/// leaves the directory behind for a closer look.
///
/// # Panics
/// If `result` is an error.
#[allow(clippy::panic, reason = "a test's last step")]
pub fn conclude(dir: tempfile::TempDir, result: Result<()>) {
    let Err(error) = result else { return };
    let dir = dir.keep();
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            eprintln!("---- {} ends:\n{}", path.display(), tail(&path));
        }
    }
    panic!("{error}\n(whole logs are in {})", dir.display());
}
