//! A stopped server's data directory into an engine, without changing it.

use crate::failure::Failure;
use engine::{Engine, Limits};
use files::real::RealFs;
use journal::CheckReport;
use std::path::Path;
use std::sync::Arc;

/// A directory, read.
pub(crate) struct Read {
    pub(crate) engine: Engine<()>,
    pub(crate) report: CheckReport,
}

/// Reads all of a directory that no server has open.
pub(crate) fn read(dir: &Path) -> Result<Read, Failure> {
    let mut engine: Engine<()> = Engine::new(Limits::default());
    let marker_dir = files::real::memory_dir();
    let files = Arc::new(RealFs::new());
    let report = journal::read(files, dir, marker_dir.as_deref(), &mut engine)?;
    Ok(Read { engine, report })
}
