//! Changes of the directory, each whole or not at all, and lasting when it returns.
//!
//! Modes are set on the open file: the caller's umask makes no difference.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::Error;

/// Mode of private keys.
pub(crate) const SECRET: u32 = 0o600;
/// Mode of certificates.
pub(crate) const PUBLIC: u32 = 0o644;

/// What names begin with that are not finished: they are nobody's.
const UNFINISHED: &str = ".new-";

/// The file system, and for tests the moment at which it ends.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// So many steps succeed; none limits them.
    steps_left: Cell<Option<u32>>,
}

impl Disk {
    /// One that fails at the step after so many, and at all after it, as if the process had been
    /// killed or the disk were full.
    #[cfg(test)]
    pub(crate) fn ending_after(steps: u32) -> Self {
        Self {
            steps_left: Cell::new(Some(steps)),
        }
    }

    fn step(&self) -> io::Result<()> {
        match self.steps_left.get() {
            None => Ok(()),
            Some(0) => Err(ErrorKind::StorageFull.into()),
            Some(left) => {
                self.steps_left.set(Some(left - 1));
                Ok(())
            }
        }
    }

    /// Makes a directory, its missing parents too, if it is not there.
    pub(crate) fn make_dir(&self, path: &Path, mode: u32) -> Result<(), Error> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            self.make_dir(parent, mode)?;
        }
        self.make_new_dir(path, mode)
    }

    fn make_new_dir(&self, path: &Path, mode: u32) -> Result<(), Error> {
        self.step()
            .and_then(|()| DirBuilder::new().mode(mode).create(path))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(Error::io("make the directory", path))
    }

    /// Makes a directory with these files, all of it at once; it must not be there.
    pub(crate) fn new_dir_with(
        &self,
        path: &Path,
        mode: u32,
        files: &[(&str, &str, u32)],
    ) -> Result<(), Error> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists(path.to_owned()));
        }
        let unfinished = beside(path);
        self.remove_dir(&unfinished)?;
        let made = self.fill(&unfinished, mode, files).and_then(|()| {
            self.step()
                .and_then(|()| rename_new(&unfinished, path))
                .map_err(|error| match error.kind() {
                    ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
                    _ => Error::io("make the directory", path)(error),
                })
        });
        if made.is_err() {
            // A full disk is no reason to leave half of it; a second failure changes nothing.
            let _ = self.remove_dir(&unfinished);
        }
        made?;
        self.sync_parent(path)
    }

    fn fill(&self, dir: &Path, mode: u32, files: &[(&str, &str, u32)]) -> Result<(), Error> {
        self.make_new_dir(dir, mode)?;
        for (name, text, mode) in files {
            self.write_new(&dir.join(name), text, *mode)?;
        }
        self.sync_dir(dir)
    }

    fn write_new(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        let write = || {
            self.step()?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(SECRET)
                .open(path)?;
            self.step()?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        };
        write().map_err(Error::io("write", path))
    }

    /// Writes a file under a name that is not finished, and gives its path.
    pub(crate) fn prepare(&self, path: &Path, text: &str, mode: u32) -> Result<PathBuf, Error> {
        let unfinished = beside(path);
        self.remove_file(&unfinished)?;
        let written = self.write_new(&unfinished, text, mode);
        if written.is_err() {
            let _ = self.remove_file(&unfinished);
        }
        written.map(|()| unfinished)
    }

    /// Gives what was prepared its name; the old file of that name goes.
    pub(crate) fn finish(&self, path: &Path) -> Result<(), Error> {
        self.rename(&beside(path), path)
    }

    /// What was prepared for this name and not finished, if it is there.
    pub(crate) fn prepared(path: &Path) -> Option<PathBuf> {
        Some(beside(path)).filter(|path| path.exists())
    }

    /// Replaces a file whole.
    pub(crate) fn replace(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        self.prepare(path, text, mode)?;
        self.finish(path)
    }

    /// Renames a file or a directory.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.step()
            .and_then(|()| fs::rename(from, to))
            .map_err(Error::io("rename", from))?;
        self.sync_parent(to)
    }

    /// Removes a file if it is there.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), Error> {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        self.step()
            .and_then(|()| fs::remove_file(path))
            .map_err(Error::io("remove", path))
    }

    /// Removes a directory if it is there.
    pub(crate) fn remove_dir(&self, path: &Path) -> Result<(), Error> {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        self.step()
            .and_then(|()| fs::remove_dir_all(path))
            .map_err(Error::io("remove", path))
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        self.step()
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(Error::io("sync", dir))
    }

    fn sync_parent(&self, path: &Path) -> Result<(), Error> {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }
}

/// The name of a file or directory while it is not finished.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(UNFINISHED);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Renames to a name that must be free.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without it; the caller has the lock and has looked.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        other => Ok(other?),
    }
}

/// Reads a small text file.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

/// The permission bits of a file.
pub(crate) fn mode(path: &Path) -> Result<u32, Error> {
    let meta = fs::metadata(path).map_err(Error::io("read", path))?;
    Ok(meta.permissions().mode() & 0o777)
}

/// The names of the directories in `dir`, sorted; none if it is not there. What is not finished
/// is left out.
pub(crate) fn directories(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
