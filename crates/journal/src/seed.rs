//! A new data directory that begins with a store: what a restore from a backup makes.
//!
//! The snapshot stands at LSN 0, before all frames. The first frame, which closes the log,
//! says at which revision the store then is: were the snapshot lost, a start would be refused
//! instead of beginning with an empty store. The format file comes last, and until then a
//! marker has every start refuse the directory: a restore that was cut short is never served.

use crate::Journal;
use crate::dir;
use crate::error::{OpenError, SnapshotError};
use crate::open::{self, Options};
use crate::snapshot::{SnapshotInfo, SnapshotWriter};
use engine::Engine;
use engine::record::SnapshotMeta;
use files::FileSystem;
use std::path::Path;
use std::sync::Arc;

/// Versions of keys taken from the engine between two writes.
const VERSIONS_AT_ONCE: usize = 4096;

/// Makes `dir`, which must not exist or be empty, with a snapshot that `fill` writes as all
/// that it holds. All of it is on disk when this returns.
///
/// # Errors
/// [`OpenError`], in sentences for an operator. What was written until then is left; it is
/// refused by every start.
pub fn seed(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    options: Options,
    meta: SnapshotMeta,
    fill: impl FnOnce(&mut SnapshotWriter) -> Result<(), SnapshotError>,
) -> Result<SnapshotInfo, OpenError> {
    let known = fs.kind(dir).map_err(OpenError::io("look at", dir))?;
    if known.is_some() {
        let names = fs.read_dir(dir).map_err(OpenError::io("list", dir))?;
        // What a new file system has in its root.
        if let Some(name) = names.iter().find(|name| *name != "lost+found") {
            return Err(OpenError::mismatch(
                dir,
                format!(
                    "it is not empty (it has `{name}`), and a restore overwrites nothing: name \
                     another directory, or empty this one"
                ),
            ));
        }
    }
    let opened = dir::open(&*fs, dir)?;
    let layout = opened.layout.clone();
    let marker = b"a restore fills this directory\n";
    dir::replace(&*fs, dir, dir::RESTORING, marker)?;
    let mut journal = open::begin(fs.clone(), opened, &options, meta.revision)?;
    let info = snapshot(&fs, dir, meta, &mut journal, fill).map_err(of_snapshot)?;
    journal
        .close_frame(meta.revision)
        .map_err(open::open_error)?;
    dir::write_format(&*fs, &layout, &options.new)?;
    let marker = dir.join(dir::RESTORING);
    let removed = fs.remove(&marker).and_then(|()| fs.sync_dir(dir));
    removed.map_err(OpenError::io("remove", marker))?;
    Ok(info)
}

/// Makes `dir` with all of a store: [`seed`] filled from the engine.
///
/// # Errors
/// As [`seed`].
pub fn seed_engine<W>(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    options: Options,
    engine: &Engine<W>,
) -> Result<SnapshotInfo, OpenError> {
    let (mut cursor, head) = engine.snapshot_open();
    seed(fs, dir, options, cursor.meta, |out| {
        for item in &head {
            out.push(item)?;
        }
        let mut keys = Vec::new();
        loop {
            let done = engine.snapshot_step(&mut cursor, VERSIONS_AT_ONCE, &mut keys);
            for key in keys.drain(..) {
                out.push(&key.into_item())?;
            }
            if done {
                return Ok(());
            }
        }
    })
}

fn of_snapshot(SnapshotError::Io { path, source }: SnapshotError) -> OpenError {
    OpenError::io("write", path)(source)
}

fn snapshot(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    meta: SnapshotMeta,
    journal: &mut Journal,
    fill: impl FnOnce(&mut SnapshotWriter) -> Result<(), SnapshotError>,
) -> Result<SnapshotInfo, SnapshotError> {
    let mut out = SnapshotWriter::create(fs.clone(), dir, meta, journal.position())?;
    fill(&mut out)?;
    out.finish()
}
