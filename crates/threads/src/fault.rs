//! Panics on demand, for tests of debug builds.

/// A place at which a test can have the thread panic. Nothing in a release build.
///
/// In a debug build: if the variable `ORLOP_FAULT_PANIC` names a directory and a file with the
/// name of the place is in it, the file is removed and the thread panics.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn fault_point(_place: &str) {}

/// A place at which a test can have the thread panic. Nothing in a release build.
///
/// In a debug build: if the variable `ORLOP_FAULT_PANIC` names a directory and a file with the
/// name of the place is in it, the file is removed and the thread panics.
#[cfg(debug_assertions)]
#[allow(clippy::panic)] // what it is for
pub fn fault_point(place: &str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let dir = DIR.get_or_init(|| std::env::var_os("ORLOP_FAULT_PANIC").map(PathBuf::from));
    let asked = dir.as_ref().map(|dir| dir.join(place));
    if asked.is_some_and(|file| std::fs::remove_file(file).is_ok()) {
        panic!("asked for at {place}");
    }
}
