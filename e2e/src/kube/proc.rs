//! Child processes of a test, and its end.

use playground::Result;
pub use playground::proc::*;

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
